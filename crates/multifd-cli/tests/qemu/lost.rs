//! No guest is lost: what once lost guests, doubled them or froze a destination, with real QEMUs.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use qemu_lab::{
    Chain, Config, Guest, Hop, LabError, Parameters, Qemu, QemuBinary, QmpError, Ram, Version,
    compare_ram, not_run,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::failures::{LIMIT, Lab, far, near};
use super::files::image_of_ram;
use super::relays::{Relay, folder, hop_through, report, unix};
use crate::support::Multifd;

/// Slow enough that something can happen meanwhile.
const SLOW: u64 = 2 << 20;

/// What QEMU itself takes for no limit.
const FAST: u64 = 1 << 40;

const POSTCOPY: &str = "it switched to postcopy, whose pages are not compressed";
const PREEMPT: &str = "postcopy's own connection was passed on";

/// A QEMU that waits for a guest, and where.
pub fn waiting(config: Config, parameters: &Parameters) -> (Qemu, String) {
    let mut destination = config.incoming().start().unwrap();
    destination.set_migration(parameters).unwrap();
    let uri = format!("unix:{}", destination.socket_path("incoming").display());
    let listening = destination.listen(&uri).unwrap();
    (destination, listening)
}

/// A guest that has used all of its pages.
pub fn running(binary: &QemuBinary, guest: &Guest, parameters: &Parameters) -> Qemu {
    let mut source = Config::new(binary, guest).start().unwrap();
    source.wait_for_pass(3, LIMIT).unwrap();
    source.set_migration(parameters).unwrap();
    source
}

/// Waits until a source has sent this many bytes, and goes on sending.
pub fn wait_sent(source: &mut Qemu, bytes: u64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = source.migration().unwrap();
        if status.ram.transferred >= bytes {
            assert_eq!(status.status, "active");
            return;
        }
        assert!(
            Instant::now() < deadline && !status.is_final(),
            "{status:?}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

fn remarks(report: &Value) -> Vec<&str> {
    let remarks = report["remarks"].as_array().unwrap().iter();
    remarks.map(|remark| remark.as_str().unwrap()).collect()
}

/// A destination whose guest will not come knows that, answers, and runs nothing. A QEMU before 9.1
/// exits.
fn lets_go(destination: &mut Qemu) {
    let status = match destination.wait_migration(LIMIT) {
        Err(LabError::Ended { .. }) if destination.binary().release() < (9, 1) => return,
        status => status.unwrap(),
    };
    assert_eq!(status.status, "failed");
    let state = destination.run_state().unwrap();
    assert_ne!(state, "running");
}

/// A source whose machine leaves out the description of its devices: nothing but the end of main
/// tells that it is over. A relay that is slower than its source has pages in its hands then.
#[test]
fn without_a_description_of_devices_all_pages_arrive() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let guest = Guest {
        ram_mib: 16,
        still: 3000,
        ..Guest::default()
    };
    let mut chain = Chain::start(&binary, &guest, "q35,suppress-vmdesc=on").unwrap();
    for return_path in [false, true] {
        let parameters = |compression| Parameters {
            return_path,
            ..Parameters::multifd(2, compression)
        };
        let hop = Hop {
            source_parameters: parameters("none"),
            ..Hop::to(&binary, &parameters("zstd"))
        };
        let (_, [report]) = hop_through(&mut chain, &hop, |folder, destination| {
            let options = ["--zstd-level", "15", "--once"];
            [Relay::start(folder, "relay", destination, "zstd", &options)]
        });
        let confirmed = return_path.then_some(true);
        assert_eq!(report["confirmed"], Value::from(confirmed), "{report}");
    }
}

/// Connections that say nothing, before a real migration and while it comes.
#[test]
fn idle_connections_take_nothing_from_receive() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    for return_path in [false, true] {
        let parameters = Parameters {
            return_path,
            ..Parameters::multifd(2, "none")
        };
        let mut source = running(&binary, &Guest::default(), &parameters);
        let folder = folder();
        let dump = folder.path().join("dump");
        let arguments = ["receive", "--json", "--listen", "tcp:127.0.0.1:0", "--dump"];
        let receiver = Relay::listening(&[&arguments[..], &[dump.to_str().unwrap()]].concat());
        let at = receiver.address.strip_prefix("tcp:").unwrap().to_owned();
        let mut idle: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(&at).unwrap()).collect();
        let opening = thread::spawn(move || {
            let more = (0..40).map_while(|_| {
                thread::sleep(Duration::from_micros(300));
                // It may have all that it waits for, and listen no more.
                TcpStream::connect(&at).ok()
            });
            more.collect::<Vec<_>>()
        });
        source.migrate(&receiver.address).unwrap();
        let status = source.wait_migration(LIMIT).unwrap();
        assert!(status.is_completed(), "{status:?}");
        let report = report(receiver.end());
        idle.extend(opening.join().unwrap());
        assert!(idle.len() > 10);
        assert_eq!(report["channels"], 2, "{report}");
        let image = Ram::open(&image_of_ram(&dump)).unwrap();
        assert_eq!(compare_ram(source.ram(), &image).unwrap(), [] as [u64; 0]);
    }
}

/// Whether a QEMU can do postcopy here. If not, the test is put on record.
#[track_caller]
pub fn has_postcopy(binary: &QemuBinary) -> bool {
    let parameters = Parameters {
        channels: None,
        capabilities: vec!["postcopy-ram"],
        ..Parameters::default()
    };
    let config = Config::new(binary, &Guest::default());
    let mut destination = config.incoming().start().unwrap();
    match destination.set_migration(&parameters) {
        Ok(()) => true,
        Err(LabError::Qmp {
            source: QmpError::Refused { .. },
            ..
        }) => {
            not_run("userfaultfd(2), for faults in the kernel, in a QEMU");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// With postcopy on, with and without a connection of its own for pages that are asked for.
pub fn with_postcopy(channels: Option<u8>, preempt: bool) -> Parameters {
    let mut capabilities = vec!["postcopy-ram"];
    if preempt {
        capabilities.push("postcopy-preempt");
    }
    Parameters {
        channels,
        return_path: true,
        capabilities,
        ..Parameters::default()
    }
}

/// One relay, or two with zlib between them, the last of which is the one to connect to.
fn relays(count: usize, folder: &std::path::Path, destination: &str) -> Vec<Relay> {
    let once = ["--once"];
    let mut relays = vec![Relay::start(folder, "far", destination, "none", &once)];
    if count == 2 {
        let connect = relays[0].address.clone();
        relays.push(Relay::start(folder, "near", &connect, "zlib", &once));
    }
    relays
}

/// The guest runs at the destination before its pages are there, and asks for them through relays.
fn postcopies(version: Version, channels: Option<u8>) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    if !has_postcopy(&binary) {
        return;
    }
    for preempt in [false, true] {
        for count in [1, 2] {
            let parameters = with_postcopy(channels, preempt);
            let config = Config::new(&binary, &Guest::default());
            let (mut destination, listening) = waiting(config, &parameters);
            let slow = Parameters {
                max_bandwidth: Some(SLOW),
                ..parameters
            };
            let mut source = running(&binary, &Guest::default(), &slow);
            let folder = folder();
            let relays = relays(count, folder.path(), &listening);
            source.migrate(&relays[count - 1].address).unwrap();
            wait_sent(&mut source, 256 << 10);
            source.start_postcopy().unwrap();
            let what = format!("{binary}, preempt {preempt}, {count} relays");
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
                let remarks = remarks(&report);
                assert!(remarks.contains(&POSTCOPY), "{what}: {report}");
                assert_eq!(remarks.contains(&PREEMPT), preempt, "{what}: {report}");
            }
        }
    }
}

#[test]
fn postcopy_on_7_2() {
    postcopies(Version::V7_2, None);
}

#[test]
fn postcopy_on_10_0() {
    postcopies(Version::V10_0, None);
}

#[test]
fn postcopy_on_11_1() {
    postcopies(Version::V11_1, None);
}

#[test]
fn postcopy_on_11_1_with_multifd() {
    postcopies(Version::V11_1, Some(2));
}

/// Postcopy that is on at both ends, as management software has it, and not needed.
fn postcopy_unused(version: Version, channels: &[Option<u8>]) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    if !has_postcopy(&binary) {
        return;
    }
    let mut chain = Chain::start(&binary, &Guest::default(), "q35").unwrap();
    for &channels in channels {
        for preempt in [false, true] {
            for count in [1, 2] {
                let hop = Hop::to(&binary, &with_postcopy(channels, preempt));
                let folder = folder();
                let mut started = Vec::new();
                let hopped = chain.hop_via(&hop, |destination| {
                    started = relays(count, folder.path(), destination);
                    started[count - 1].address.clone()
                });
                hopped.unwrap();
                for relay in started {
                    let report = report(relay.end());
                    assert_eq!(report["confirmed"], true, "{report}");
                    assert!(!remarks(&report).contains(&POSTCOPY), "{report}");
                }
            }
        }
    }
}

#[test]
fn postcopy_that_is_never_used_on_10_0() {
    postcopy_unused(Version::V10_0, &[None]);
}

#[test]
fn postcopy_that_is_never_used_on_11_1() {
    postcopy_unused(Version::V11_1, &[None, Some(2)]);
}

/// A file runs no guest that could ask for its pages. That is said while the source still has it.
#[test]
fn receive_and_record_refuse_postcopy() {
    for (version, channels) in [(Version::V10_0, None), (Version::V11_1, Some(2))] {
        let Some(binary) = QemuBinary::require(version) else {
            continue;
        };
        if !has_postcopy(&binary) {
            return;
        }
        for (command, out) in [("receive", "--dump"), ("record", "--out")] {
            let mut source = running(&binary, &Guest::default(), &with_postcopy(channels, false));
            let folder = folder();
            let written = folder.path().join("written");
            let listen = unix(folder.path(), command);
            let file = written.to_str().unwrap();
            let taker = Relay::listening(&[command, "--listen", &listen, out, file]);
            source.migrate(&taker.address).unwrap();
            let ended = taker.end();
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            assert!(ended.stderr.contains("postcopy-ram"), "{ended:?}");
            let left = fs::read_dir(&written).map_or(0, Iterator::count);
            assert!(left == 0 && !written.is_file(), "{ended:?}");
            let status = source.wait_migration(LIMIT).unwrap();
            assert_eq!(status.status, "failed");
            source.check_goes_on(LIMIT).unwrap();
        }
    }
}

/// However far a migration has come when it is cancelled, the destination answers and knows; the
/// same relays carry the next one.
fn cancelled_anywhere(version: Version) {
    let Some(mut lab) = Lab::new(version) else {
        return;
    };
    for round in 0..20 {
        // QEMU 11.1 can stand still when it is cancelled in its set-up, until the relay ends it
        // (docs/qemu-notes.md).
        let mut destination = lab.begin_to(round * (96 << 10));
        lab.chain.current().cancel_migration().unwrap();
        lab.source_goes_on(&["cancelled", "failed"]);
        if round == 0 {
            // It may not have been dialled yet, and then knows nothing.
            assert_ne!(destination.run_state().unwrap(), "running");
        } else {
            lets_go(&mut destination);
        }
    }
    lab.next_succeeds();
    for relay in [&mut lab.near, &mut lab.far] {
        let mut failures = 0;
        while relay.next_report()["confirmed"] != true {
            failures += 1;
        }
        assert!((19..=20).contains(&failures), "{failures}");
    }
}

#[test]
fn cancelled_anywhere_on_10_0() {
    cancelled_anywhere(Version::V10_0);
}

#[test]
fn cancelled_anywhere_on_11_1() {
    cancelled_anywhere(Version::V11_1);
}

fn signal(process: &Qemu, signal: Signal) {
    let id = i32::try_from(process.id()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
}

/// All buffers up to the destination are full when the source cancels.
#[test]
fn cancelled_while_the_destination_stands_still() {
    for version in [Version::V10_0, Version::V11_1] {
        let Some(mut lab) = Lab::new(version) else {
            continue;
        };
        for _ in 0..2 {
            let mut destination = lab.begin_to(512 << 10);
            signal(&destination, Signal::STOP);
            let stopped = Instant::now();
            let source = lab.chain.current();
            source.set_parameter("max-bandwidth", FAST).unwrap();
            thread::sleep(Duration::from_secs(1));
            source.cancel_migration().unwrap();
            // It need not wait for the destination.
            lab.source_goes_on(&["cancelled", "failed"]);
            thread::sleep(Duration::from_secs(2).saturating_sub(stopped.elapsed()));
            signal(&destination, Signal::CONT);
            lets_go(&mut destination);
        }
        lab.next_succeeds();
    }
}

/// One of two relays ends without a word: the source runs on, and the destination is not frozen.
fn killed_anywhere(version: Version) {
    let Some(mut lab) = Lab::new(version) else {
        return;
    };
    for round in 1..=8 {
        let mut destination = lab.begin_to(round * (200 << 10));
        let folder = lab.folder.path().to_owned();
        if round % 2 == 0 {
            lab.near.kill();
        } else {
            lab.far.kill();
        }
        lab.source_goes_on(&["failed"]);
        lets_go(&mut destination);
        if round % 2 == 0 {
            lab.near = near(&folder);
        } else {
            lab.far = far(&folder);
        }
        // QEMU says that a migration has failed a moment before it has done with it.
        thread::sleep(Duration::from_millis(500));
    }
    lab.next_succeeds();
}

#[test]
fn killed_anywhere_on_10_0() {
    killed_anywhere(Version::V10_0);
}

#[test]
fn killed_anywhere_on_11_1() {
    killed_anywhere(Version::V11_1);
}

/// Two guests that differ move at the same time, each to where its address leads.
#[test]
fn two_guests_at_once_through_one_relay() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let parameters = |compression, max_bandwidth| Parameters {
        return_path: true,
        max_bandwidth,
        ..Parameters::multifd(2, compression)
    };
    let guests = [700, 500].map(|still| Guest {
        still,
        ..Guest::default()
    });
    let destinations = guests.each_ref().map(|guest| {
        let config = Config::new(&binary, guest);
        waiting(config, &parameters("zlib", None))
    });
    let mut sources = guests
        .each_ref()
        .map(|guest| running(&binary, guest, &parameters("none", Some(SLOW))));
    let folder = folder();
    let listening = ["first", "second"].map(|name| unix(folder.path(), name));
    let mut relay = vec!["relay", "--json", "--compression", "zlib"];
    let routes = [0, 1].map(|index| format!("{}={}", listening[index], destinations[index].1));
    for route in &routes {
        relay.extend(["--route", route]);
    }
    let mut relay = Multifd::start(relay);
    for listening in &listening {
        while !relay.complaint().contains(listening) {}
    }
    for (source, address) in sources.iter_mut().zip(&listening) {
        source.migrate(address).unwrap();
    }
    for source in &mut sources {
        wait_sent(source, 512 << 10);
    }
    for source in &mut sources {
        assert_eq!(source.migration().unwrap().status, "active");
    }
    for source in &mut sources {
        source.set_parameter("max-bandwidth", FAST).unwrap();
    }
    for (source, (mut destination, _)) in sources.iter_mut().zip(destinations) {
        let status = source.wait_migration(LIMIT).unwrap();
        assert!(status.is_completed(), "{status:?}");
        let status = destination.wait_migration(LIMIT).unwrap();
        assert!(status.is_completed(), "{status:?}");
        destination.check_goes_on(LIMIT).unwrap();
    }
    let mut routes = [(), ()].map(|()| {
        let report: Value = serde_json::from_str(&relay.result()).unwrap();
        assert_eq!(report["confirmed"], true, "{report}");
        report["route"].as_str().unwrap().to_owned()
    });
    routes.sort();
    assert_eq!(routes, listening);
}
