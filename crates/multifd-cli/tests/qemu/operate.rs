//! `multifd accept` and `multifd migrate`: they drive two QEMUs, and leave them as they were.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::leg::LegAddress;
use qemu_lab::{Config, Guest, Qemu, QemuBinary, Version};
use serde_json::{Value, json};

use super::failures::LIMIT;
use super::relays::{folder, unix};
use crate::support::{Ended, Multifd, program};

/// Two QEMUs of a release, the first of which has a guest.
struct Pair {
    binary: QemuBinary,
    source: Qemu,
    destination: Qemu,
    folder: tempfile::TempDir,
}

/// A guest that writes to many pages, as a busy one does.
fn busy() -> Guest {
    Guest {
        ram_mib: 32,
        counters: 2000,
        pages_per_tick: 100,
        ..Guest::default()
    }
}

impl Pair {
    #[track_caller]
    fn new(version: Version, guest: &Guest) -> Option<Self> {
        Self::with(version, |binary| Config::new(binary, guest).incoming())
            .map(|(binary, destination)| Self::of(binary, guest, destination))
    }

    #[track_caller]
    fn with(version: Version, of: impl Fn(&QemuBinary) -> Config) -> Option<(QemuBinary, Qemu)> {
        let binary = QemuBinary::require(version)?;
        let destination = of(&binary).start().unwrap();
        Some((binary, destination))
    }

    fn of(binary: QemuBinary, guest: &Guest, destination: Qemu) -> Self {
        let mut source = Config::new(&binary, guest).start().unwrap();
        source.wait_for_pass(2, LIMIT).unwrap();
        Self {
            binary,
            source,
            destination,
            folder: folder(),
        }
    }

    /// Starts `multifd accept`. Returns it with the address of its trunk.
    fn accept(&self, more: &[&str]) -> (Multifd, String) {
        let listen = format!("trunk+{}", unix(self.folder.path(), "trunk"));
        let qmp = self.destination.operator_socket();
        let mut command = Command::new(program());
        command.args(["accept", "--listen", &listen, "--json-lines", "--qmp"]);
        let mut accept = Multifd::spawn(command.arg(qmp).args(more));
        let address: LegAddress = (*accept).address();
        (accept, address.to_string())
    }

    /// Starts `multifd migrate`.
    fn migrate(&self, to: &str, more: &[&str]) -> Multifd {
        let mut command = Command::new(program());
        command.args(["migrate", "--to", to, "--json-lines", "--qmp"]);
        Multifd::spawn(command.arg(self.source.operator_socket()).args(more))
    }

    /// The settings of both ends.
    fn settings(&mut self) -> [Value; 4] {
        let mut ask = |qemu: fn(&mut Self) -> &mut Qemu, command| {
            qemu(self).execute(command, json!({})).unwrap()
        };
        let (source, destination): (fn(&mut Self) -> &mut Qemu, fn(&mut Self) -> &mut Qemu) =
            (|pair| &mut pair.source, |pair| &mut pair.destination);
        [
            ask(source, "query-migrate-capabilities"),
            ask(source, "query-migrate-parameters"),
            ask(destination, "query-migrate-capabilities"),
            ask(destination, "query-migrate-parameters"),
        ]
    }

    /// Sets values that are no defaults, to be found again.
    fn set_oddly(&mut self) {
        for qemu in [&mut self.source, &mut self.destination] {
            let capabilities = [("return-path", true), ("xbzrle", true)];
            let capabilities = capabilities.map(|(name, state)| json!({"capability": name, "state": state}));
            let arguments = json!({ "capabilities": capabilities });
            qemu.execute("migrate-set-capabilities", arguments).unwrap();
            let arguments = json!({"multifd-channels": 3, "multifd-compression": "zlib",
                "max-bandwidth": 12_345_678, "downtime-limit": 77});
            qemu.execute("migrate-set-parameters", arguments).unwrap();
        }
    }
}

/// All lines of JSON of a command that has ended.
fn lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The last line.
fn end(ended: &Ended) -> Value {
    let last = lines(ended).pop().unwrap_or_else(|| panic!("{ended:?}"));
    assert_eq!(last["event"], "end", "{ended:?}");
    last
}

fn signal(process: &Multifd, name: &str) {
    let id = process.id().to_string();
    let status = Command::new("kill").args(["-s", name, &id]).status();
    assert!(status.unwrap().success());
}

/// Waits until the source has sent something.
fn wait_sent(migrate: &mut Multifd, bytes: u64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let line: Value = serde_json::from_str(&migrate.result()).unwrap();
        if line["memory"]["transferred"].as_u64().unwrap_or(0) >= bytes {
            return;
        }
        assert!(Instant::now() < deadline, "{line}");
    }
}

fn a_guest_moves(version: Version) {
    for channels in ["4", "1"] {
        let Some(mut pair) = Pair::new(version, &busy()) else {
            return;
        };
        pair.set_oddly();
        let before = pair.settings();
        let (accept, trunk) = pair.accept(&["--channels", channels]);
        let migrate = pair.migrate(&trunk, &["--channels", channels]);
        let (migrated, accepted) = (migrate.end(), accept.end());
        assert_eq!(migrated.status.code(), Some(0), "{migrated:?} {accepted:?}");
        assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
        let (near, far) = (end(&migrated), end(&accepted));
        for told in [&near, &far] {
            assert_eq!(told["outcome"], "whole", "{near} {far}");
            assert_eq!(told["guest"], "destination", "{near} {far}");
            assert_eq!(told["channels"].to_string(), channels, "{near} {far}");
        }
        assert_eq!(far["state"], "running", "{far}");
        assert!(near["ratio"].as_f64().unwrap() > 1.5, "{near}");
        assert!(near["total_time"].as_u64().unwrap() > 0, "{near}");
        assert!(near["memory"]["total"].as_u64().unwrap() >= 32 << 20, "{near}");
        assert_eq!(pair.source.run_state().unwrap(), "postmigrate");
        pair.destination.check_goes_on(LIMIT).unwrap();
        assert_eq!(pair.settings(), before, "{}", pair.binary);
        // Nothing of it stays.
        let own = pair.source.operator_socket();
        let mut left = std::fs::read_dir(own.parent().unwrap()).unwrap();
        let is_ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("multifd-");
        assert!(!left.any(|entry| is_ours(&entry.unwrap().file_name())));
    }
}

#[test]
fn a_guest_of_7_2_moves() {
    a_guest_moves(Version::V7_2);
}

#[test]
fn a_guest_of_10_0_moves() {
    a_guest_moves(Version::V10_0);
}

#[test]
fn a_guest_of_11_1_moves() {
    a_guest_moves(Version::V11_1);
}
