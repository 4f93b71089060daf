//! QEMU, relay, trunk, relay, QEMU: with multifd and without, with postcopy, and with cancels.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use multifd_relay::leg::LegAddress;
use multifd_transport::Address;
use qemu_lab::{Chain, Config, Guest, Hop, Parameters, QemuBinary, Version};
use serde_json::Value;

use super::failures::LIMIT;
use super::lost::{has_postcopy, running, wait_sent, waiting, with_postcopy};
use super::relays::{Relay, folder, hop_through, report, unix};
use crate::support::made::{Shape, long};
use crate::support::peers::{Destination, Limits, Role, SHUT_FAILED, SHUT_WELL, Source, dial};
use crate::support::{Migration, Multifd};

/// Slow enough that something can happen meanwhile.
const SLOW: u64 = 2 << 20;

/// The relay at the destination, which listens to trunks.
fn far(folder: &Path, destination: &str, tcp: bool, more: &[&str]) -> Relay {
    let listen = match tcp {
        true => "trunk+tcp:127.0.0.1:0".to_owned(),
        false => format!("trunk+{}", unix(folder, "far")),
    };
    let args = ["relay", "--json", "--listen", &listen];
    let connect = ["--connect", destination, "--compression", "none"];
    Relay::listening(&[&args, &connect, more].concat())
}

/// The relay at the source, which writes zstd to the trunk.
fn near(folder: &Path, trunk: &str, more: &[&str]) -> Relay {
    let listen = unix(folder, "near");
    let args = ["relay", "--json", "--listen", &listen];
    let connect = ["--connect", trunk, "--compression", "zstd"];
    Relay::listening(&[&args, &connect, more].concat())
}

/// Both, for one migration; the one to connect to is the last. They compare its pages. Over TCP
/// several connections carry each channel.
fn pair(folder: &Path, destination: &str, tcp: bool) -> [Relay; 2] {
    let far = far(folder, destination, tcp, &["--once"]);
    let strands = if tcp { "3" } else { "1" };
    let more = ["--once", "--verify", "--trunk-channels", strands];
    let near = near(folder, &far.address, &more);
    [far, near]
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap()
}

/// With each number of channels, and as one stream; with a return path and without.
fn everything_on(version: Version, machine: &str) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), machine).unwrap();
    for channels in [None, Some(1), Some(4), Some(16)] {
        for return_path in [false, true] {
            let parameters = Parameters {
                channels,
                return_path,
                ..Parameters::default()
            };
            let hop = Hop::to(&binary, &parameters);
            let (_, [far, near]) = hop_through(&mut chain, &hop, |folder, destination| {
                pair(folder, destination, return_path)
            });
            let what = format!("{binary}, {channels:?}: {near} {far}");
            let confirmed = match return_path {
                true => Value::Bool(true),
                false => Value::Null,
            };
            assert_eq!(near["confirmed"], confirmed, "{what}");
            assert_eq!(far["confirmed"], confirmed, "{what}");
            assert_eq!(near["channels"], channels.unwrap_or(0), "{what}");
            assert_eq!(near["pages"], far["pages"], "{what}");
            assert_eq!(near["verified"], far["verified"], "{what}");
            let all = number(&near, "pages") + number(&near, "zero_pages");
            assert_eq!(near["verified"]["pages"], all, "{what}");
            if channels.is_some() {
                let (read, wrote) = (number(&near, "bytes_in"), number(&near, "bytes_out"));
                assert!(wrote < read * 4 / 5, "{what}");
            }
        }
    }
}

#[test]
fn all_of_7_2() {
    everything_on(Version::V7_2, "pc-q35-7.2");
}

#[test]
fn all_of_10_0() {
    everything_on(Version::V10_0, "pc-q35-10.0");
}

#[test]
fn all_of_11_1() {
    everything_on(Version::V11_1, "q35");
}

/// A guest that writes to its pages all the time, again and again, with memory for all pages and
/// for few: what it has sent already goes as differences, and it arrives whole.
fn a_busy_guest(version: Version, machine: &str) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let guest = Guest {
        ram_mib: 32,
        counters: 2000,
        pages_per_tick: 100,
        ..Guest::default()
    };
    let mut chain = Chain::start(&binary, &guest, machine).unwrap();
    for (channels, memory) in [(1, "1G"), (4, "1G"), (4, "4M"), (16, "1M"), (2, "0")] {
        let parameters = Parameters {
            max_bandwidth: Some(48 << 20),
            return_path: true,
            ..Parameters::multifd(channels, "none")
        };
        let hop = Hop::to(&binary, &parameters);
        let (_, [far, near]) = hop_through(&mut chain, &hop, |folder, destination| {
            let far = far(folder, destination, false, &["--once"]);
            let memory = ["--once", "--verify", "--delta-memory", memory];
            let near = near(folder, &far.address, &memory);
            [far, near]
        });
        let what = format!("{binary}, {channels} channels, {memory}: {near} {far}");
        assert_eq!(near["confirmed"], true, "{what}");
        assert_eq!(near["pages"], far["pages"], "{what}");
        match memory {
            "0" => assert_eq!(near["differences"], Value::Null, "{what}"),
            _ => {
                let pages = number(&near["differences"], "pages");
                // A place for one page in ten is of little use to pages that are alike hot.
                let least = if memory == "1M" { 1 } else { 100 };
                assert!(pages >= least, "{what}");
                let bytes = number(&near["differences"], "difference_bytes");
                assert!(bytes / pages < 100, "{what}");
            }
        }
    }
}

#[test]
fn a_busy_guest_of_7_2() {
    a_busy_guest(Version::V7_2, "pc-q35-7.2");
}

#[test]
fn a_busy_guest_of_10_0() {
    a_busy_guest(Version::V10_0, "pc-q35-10.0");
}

#[test]
fn a_busy_guest_of_11_1() {
    a_busy_guest(Version::V11_1, "q35");
}

/// The guest runs at the destination before its pages are there, and asks for them over the trunk.
#[test]
fn postcopy_on_11_1() {
    let Some(binary) = QemuBinary::require(Version::V11_1) else {
        return;
    };
    if !has_postcopy(&binary) {
        return;
    }
    for channels in [None, Some(2)] {
        for preempt in [false, true] {
            let parameters = with_postcopy(channels, preempt);
            let config = Config::new(&binary, &Guest::default());
            let (mut destination, listening) = waiting(config, &parameters);
            let slow = Parameters {
                max_bandwidth: Some(SLOW),
                ..parameters
            };
            let mut source = running(&binary, &Guest::default(), &slow);
            let folder = folder();
            let relays = pair(folder.path(), &listening, preempt);
            source.migrate(&relays[1].address).unwrap();
            wait_sent(&mut source, 256 << 10);
            source.start_postcopy().unwrap();
            let what = format!("{channels:?}, preempt {preempt}");
            let status = source.wait_migration(LIMIT);
            let status = status.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(status.is_completed(), "{what}: {status:?}");
            let status = destination.wait_migration(LIMIT).unwrap();
            assert!(status.is_completed(), "{what}: {status:?}");
            destination.check_goes_on(LIMIT).unwrap();
            assert_ne!(source.run_state().unwrap(), "running");
            for relay in relays {
                let report = report(relay.end());
                assert_eq!(report["confirmed"], true, "{what}: {report}");
            }
        }
    }
}

/// Relays for any number of migrations, whose destination is at a fixed name.
struct Lab {
    folder: tempfile::TempDir,
    far: Relay,
    near: Relay,
}

impl Lab {
    fn new() -> Self {
        let folder = folder();
        let destination = unix(folder.path(), "destination");
        let far = far(folder.path(), &destination, true, &[]);
        let near = near(folder.path(), &far.address, &[]);
        Self { folder, far, near }
    }

    /// A QEMU listens there from now on.
    fn destination_is(&self, listening: &str) {
        let name = self.folder.path().join("destination");
        let _ = std::fs::remove_file(&name);
        symlink(listening.strip_prefix("unix:").unwrap(), &name).unwrap();
    }
}

/// A migration that is cancelled in the middle leaves its guest where it is, and the next one goes
/// through the same trunk.
#[test]
fn a_cancelled_migration_is_made_again() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        let Some(binary) = QemuBinary::require(version) else {
            continue;
        };
        for channels in [None, Some(4)] {
            let mut lab = Lab::new();
            let fast = Parameters {
                channels,
                return_path: true,
                ..Parameters::default()
            };
            let slow = Parameters {
                max_bandwidth: Some(SLOW),
                ..fast.clone()
            };
            let config = || Config::new(&binary, &Guest::default());
            let (given_up, listening) = waiting(config().paused(), &fast);
            lab.destination_is(&listening);
            let mut source = running(&binary, &Guest::default(), &slow);
            source.migrate(&lab.near.address).unwrap();
            wait_sent(&mut source, 256 << 10);
            source.cancel_migration().unwrap();
            let ended = match source.wait_migration(LIMIT) {
                Ok(ended) => ended,
                // Seen once in about a hundred cancels. The relay must have closed everything; what
                // stands still then is QEMU itself (docs/qemu-notes.md).
                Err(late) => {
                    let complaint = lab.near.next_complaint();
                    eprintln!(
                        "{binary}, {channels:?}: {late}, behind a relay that said {complaint}"
                    );
                    continue;
                }
            };
            assert!(!ended.is_completed(), "{ended:?}");
            source.check_goes_on(LIMIT).unwrap();
            let complaint = lab.near.next_complaint();
            assert!(complaint.contains("channel"), "{complaint}");
            drop(given_up);
            // QEMU 10.0 crashes where the next one begins at once.
            thread::sleep(Duration::from_millis(500));
            let (mut destination, listening) = waiting(config(), &fast);
            lab.destination_is(&listening);
            source.set_migration(&fast).unwrap();
            source.migrate(&lab.near.address).unwrap();
            for qemu in [&mut source, &mut destination] {
                let ended = qemu.wait_migration(LIMIT).unwrap();
                assert!(ended.is_completed(), "{binary}, {channels:?}: {ended:?}");
            }
            destination.check_goes_on(LIMIT).unwrap();
            assert_eq!(lab.near.next_report()["confirmed"], true);
            // The first one may have ended before its set-up was read there, which is no migration.
            let mut report = lab.far.next_report();
            if report["confirmed"] == false {
                report = lab.far.next_report();
            }
            assert_eq!(report["confirmed"], true, "{report}");
        }
    }
}

/// A QEMU's guest goes to another QEMU, through a relay of its own and the far one that all share.
fn goes_along(binary: &QemuBinary, folder: &Path, trunk: &str, name: &str, channels: Option<u8>) {
    let parameters = Parameters {
        channels,
        return_path: true,
        ..Parameters::default()
    };
    let config = Config::new(binary, &Guest::default());
    let (mut destination, listening) = waiting(config, &parameters);
    symlink(listening.strip_prefix("unix:").unwrap(), folder.join(name)).unwrap();
    let mut source = running(binary, &Guest::default(), &parameters);
    let listen = unix(folder, &format!("near-{name}"));
    let args = ["relay", "--json", "--once", "--name", name];
    let legs = ["--listen", &listen, "--connect", trunk];
    let near = Relay::listening(&[&args[..], &legs].concat());
    source.migrate(&near.address).unwrap();
    for qemu in [&mut source, &mut destination] {
        let ended = qemu.wait_migration(LIMIT).unwrap();
        assert!(ended.is_completed(), "{name}: {ended:?}");
    }
    destination.check_goes_on(LIMIT).unwrap();
    let report = report(near.end());
    assert_eq!(report["confirmed"], true, "{name}: {report}");
}

/// A made source, and a relay of its own. It listens by TCP, whose sockets hold all that is sent.
fn made_source(trunk: &str, name: &str, migration: &Migration) -> (Multifd, Source) {
    let args = ["relay", "--once", "--name", name];
    let legs = ["--listen", "tcp:127.0.0.1:0", "--connect", trunk];
    let mut near = Multifd::start([&args[..], &legs].concat());
    let source = Source::begin(&near.address(), migration);
    (near, source)
}

/// A made guest does the same. Its destination says `word` once it has everything.
fn goes_beside(folder: &Path, trunk: &str, name: &str, word: &[u8]) {
    let migration = long(&Shape {
        return_path: true,
        ..Shape::default()
    });
    let address = Address::Unix(folder.join(name));
    let destination = Destination::at(&address, 2, Limits::default());
    let (near, source) = made_source(trunk, name, &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    destination.say(Role::Main, word);
    source.hears(word);
    drop(source);
    destination.close_all();
    let status = if word == SHUT_WELL { 0 } else { 1 };
    assert_eq!(near.end().status.code(), Some(status), "{name}");
}

/// Twenty guests at once over one port: three QEMUs of three releases, made ones, one whose
/// destination fails and one whose destination is stuck. Each ends as if it were alone.
#[test]
fn twenty_guests_three_of_them_of_real_qemus() {
    let folder = folder();
    let folder = folder.path();
    let destinations = unix(folder, "{name}");
    let far = far(folder, &destinations, true, &[]);
    let trunk = far.address.as_str();
    let port: LegAddress = trunk.parse().unwrap();
    let stranger = dial(&port.address);
    let stuck = Address::Unix(folder.join("stuck"));
    let nothing = Limits {
        main: 0,
        channel: 0,
    };
    let stuck = Destination::at(&stuck, 2, nothing);
    let migration = long(&Shape {
        return_path: true,
        ..Shape::default()
    });
    let (near, source) = made_source(trunk, "stuck", &migration);
    thread::scope(|scope| {
        for (name, version, channels) in [
            ("qemu-a", Version::V7_2, Some(4)),
            ("qemu-b", Version::V10_0, None),
            ("qemu-c", Version::V11_1, Some(2)),
        ] {
            let Some(binary) = QemuBinary::require(version) else {
                continue;
            };
            scope.spawn(move || goes_along(&binary, folder, trunk, name, channels));
        }
        for guest in 0..15 {
            scope.spawn(move || goes_beside(folder, trunk, &format!("vm{guest}"), &SHUT_WELL));
        }
        scope.spawn(move || goes_beside(folder, trunk, "fails", &SHUT_FAILED));
    });
    // It has ended nobody, and ends when its source gives up.
    drop(source);
    assert_eq!(near.end().status.code(), Some(1));
    stuck.close_all();
    drop(stranger);
}
