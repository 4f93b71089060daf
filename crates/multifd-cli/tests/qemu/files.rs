//! A real QEMU's migration taken into files, and out of a file into a real QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu_lab::{Config, Guest, Parameters, Qemu, QemuBinary, Ram, Version, compare_ram};

use serde_json::json;

use super::relays::{Relay, folder, report, unix};
use crate::support::Multifd;

const LIMIT: Duration = Duration::from_secs(30);

const METHODS: [&str; 3] = ["none", "zlib", "zstd"];

/// A running guest that has used all its pages.
fn source(binary: &QemuBinary, parameters: &Parameters) -> Qemu {
    let mut source = Config::new(binary, &Guest::default()).start().unwrap();
    source.wait_for_pass(3, LIMIT).unwrap();
    source.set_migration(parameters).unwrap();
    source
}

fn send(source: &mut Qemu, address: &str) {
    source.migrate(address).unwrap();
    let status = source.wait_migration(LIMIT).unwrap();
    assert!(status.is_completed(), "{status:?}");
}

/// The image that is as long as the guest's memory: machines name the block each in its way.
pub fn image_of_ram(folder: &Path) -> PathBuf {
    let ram_bytes = Guest::default().ram_bytes();
    let mut images = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    images
        .find(|path| fs::metadata(path).unwrap().len() == ram_bytes)
        .unwrap_or_else(|| panic!("no image of {ram_bytes} bytes in {}", folder.display()))
}

fn receives(version: Version) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    for method in METHODS {
        for return_path in [false, true] {
            let parameters = Parameters {
                return_path,
                ..Parameters::multifd(4, method)
            };
            let mut source = source(&binary, &parameters);
            let folder = folder();
            let dump = folder.path().join("dump");
            let listen = unix(folder.path(), "receive");
            let arguments = [
                "receive",
                "--listen",
                &listen,
                "--dump",
                dump.to_str().unwrap(),
                "--json",
            ];
            let receiver = Relay::listening(&arguments);
            send(&mut source, &receiver.address);
            let report = report(receiver.end());
            assert_eq!(report["channels"], 4, "{report}");
            let image = Ram::open(&image_of_ram(&dump)).unwrap();
            let different = compare_ram(source.ram(), &image).unwrap();
            assert_eq!(
                different,
                [] as [u64; 0],
                "{version:?}, {method}: pages that differ from the source's"
            );
        }
    }
}

#[test]
fn receive_from_7_2() {
    receives(Version::V7_2);
}

#[test]
fn receive_from_10_0() {
    receives(Version::V10_0);
}

#[test]
fn receive_from_11_1() {
    receives(Version::V11_1);
}

/// Without multifd, all pages come on the main channel.
#[test]
fn receive_without_multifd() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let parameters = Parameters {
        channels: None,
        ..Parameters::default()
    };
    let mut source = source(&binary, &parameters);
    let folder = folder();
    let dump = folder.path().join("dump");
    let listen = unix(folder.path(), "receive");
    let receiver = Relay::listening(&[
        "receive",
        "--listen",
        &listen,
        "--dump",
        dump.to_str().unwrap(),
    ]);
    send(&mut source, &receiver.address);
    assert!(receiver.end().status.success());
    let image = Ram::open(&image_of_ram(&dump)).unwrap();
    assert_eq!(compare_ram(source.ram(), &image).unwrap(), [] as [u64; 0]);
}

/// A source that may not stop its guest before it is told to. QEMU 11.1 asks only for devices that
/// need it, of which there are none, and takes an answer that it did not ask for as an error; the
/// machine types tell which is which.
#[test]
fn receive_with_switchover_ack() {
    for version in [Version::V10_0, Version::V11_1] {
        let Some(binary) = QemuBinary::require(version) else {
            continue;
        };
        let parameters = Parameters {
            return_path: true,
            ..Parameters::multifd(2, "none")
        };
        let mut source = source(&binary, &parameters);
        let capability = json!({"capability": "switchover-ack", "state": true});
        source
            .execute(
                "migrate-set-capabilities",
                json!({"capabilities": [capability]}),
            )
            .unwrap();
        let folder = folder();
        let dump = folder.path().join("dump");
        let listen = unix(folder.path(), "receive");
        let receiver = Relay::listening(&[
            "receive",
            "--listen",
            &listen,
            "--dump",
            dump.to_str().unwrap(),
        ]);
        send(&mut source, &receiver.address);
        assert!(receiver.end().status.success());
    }
}

fn records_and_replays(version: Version) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    for method in METHODS {
        for return_path in [false, true] {
            let parameters = Parameters {
                return_path,
                ..Parameters::multifd(2, method)
            };
            let mut source = source(&binary, &parameters);
            let folder = folder();
            let file = folder.path().join("guest.mfd");
            let file = file.to_str().unwrap();
            let recorder = Relay::listening(&[
                "record",
                "--listen",
                &unix(folder.path(), "record"),
                "--out",
                file,
            ]);
            send(&mut source, &recorder.address);
            let recorded = recorder.end();
            assert!(recorded.status.success(), "{recorded:?}");

            let mut destination = Config::new(&binary, &Guest::default())
                .incoming()
                .paused()
                .start()
                .unwrap();
            destination.set_migration(&parameters).unwrap();
            let uri = format!("unix:{}", destination.socket_path("incoming").display());
            let listening = destination.listen(&uri).unwrap();
            let replayed = Multifd::start(["replay", file, "--connect", &listening]).end();
            assert!(replayed.status.success(), "{replayed:?}");
            assert!(destination.wait_migration(LIMIT).unwrap().is_completed());
            assert_eq!(
                compare_ram(source.ram(), destination.ram()).unwrap(),
                [] as [u64; 0]
            );
            let pass = destination.check_guest().unwrap();
            destination.resume().unwrap();
            destination.wait_for_pass(pass + 3, LIMIT).unwrap();

            let inspected = report(Multifd::start(["inspect", file, "--json"]).end());
            assert_eq!(inspected[0]["kind"], "recording");
            let methods = inspected[0]["methods"].as_array().unwrap();
            assert!(methods.iter().any(|name| name == method), "{inspected}");
        }
    }
}

#[test]
fn record_and_replay_7_2() {
    records_and_replays(Version::V7_2);
}

#[test]
fn record_and_replay_10_0() {
    records_and_replays(Version::V10_0);
}

#[test]
fn record_and_replay_11_1() {
    records_and_replays(Version::V11_1);
}
