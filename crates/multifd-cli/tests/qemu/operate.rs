//! `multifd accept` and `multifd migrate`: they drive two QEMUs, and leave them as they were.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::leg::LegAddress;
use qemu_lab::{Config, Guest, Qemu, QemuBinary, Version};
use serde_json::{Value, json};

use super::failures::LIMIT;
use super::lost::has_postcopy;
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
        let mut all = Vec::new();
        for qemu in [&mut self.source, &mut self.destination] {
            for command in ["query-migrate-capabilities", "query-migrate-parameters"] {
                all.push(qemu.execute(command, json!({})).unwrap());
            }
        }
        all.try_into().expect("four answers")
    }

    /// Sets values that are no defaults, to be found again.
    fn set_oddly(&mut self) {
        for qemu in [&mut self.source, &mut self.destination] {
            let capabilities = [("return-path", true), ("xbzrle", true)];
            let capabilities =
                capabilities.map(|(name, state)| json!({"capability": name, "state": state}));
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
    // On a socket of this host the effort that is found out is most often none.
    for (channels, compression, ratio, strands) in
        [("4", "zstd", 1.5, "1"), ("1", "auto", 1.0, "3")]
    {
        let Some(mut pair) = Pair::new(version, &busy()) else {
            return;
        };
        pair.set_oddly();
        let before = pair.settings();
        let (accept, trunk) = pair.accept(&["--channels", channels]);
        let options = [
            ["--channels", channels],
            ["--compression", compression],
            ["--trunk-channels", strands],
        ];
        let options = options.concat();
        let (migrated, accepted) = (pair.migrate(&trunk, &options).end(), accept.end());
        assert_eq!(migrated.status.code(), Some(0), "{migrated:?} {accepted:?}");
        assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
        let (near, far) = (end(&migrated), end(&accepted));
        for told in [&near, &far] {
            assert_eq!(told["outcome"], "whole", "{near} {far}");
            assert_eq!(told["guest"], "destination", "{near} {far}");
            assert_eq!(told["channels"].to_string(), channels, "{near} {far}");
        }
        assert_eq!(far["state"], "running", "{far}");
        assert!(near["ratio"].as_f64().unwrap() > ratio, "{near}");
        assert!(near["total_time"].as_u64().unwrap() > 0, "{near}");
        assert!(
            near["memory"]["total"].as_u64().unwrap() >= 32 << 20,
            "{near}"
        );
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

/// So slow, and with so short a pause, that a busy guest never gets through.
const SLOW: [&str; 4] = ["--max-bandwidth", "2M", "--downtime-limit", "1"];

/// The command failed in this way, and the source has the guest.
fn assert_failed(ended: &Ended, status: i32, outcome: &str) -> String {
    assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    let told = end(ended);
    assert_eq!(told["outcome"], outcome, "{ended:?}");
    assert_eq!(told["guest"], "source", "{ended:?}");
    let error = told["error"].as_str().unwrap().to_owned();
    assert!(ended.stderr.contains(&error), "{ended:?}");
    error
}

impl Pair {
    /// The guest runs on at the source, which is set as it was.
    fn source_is_as_before(&mut self, before: &[Value; 4]) {
        self.source.check_goes_on(LIMIT).unwrap();
        let commands = ["query-migrate-capabilities", "query-migrate-parameters"];
        for (command, before) in commands.iter().zip(before) {
            let now = self.source.execute(command, json!({})).unwrap();
            assert_eq!(now, *before, "{}, {command}", self.binary);
        }
    }
}

/// A signal cancels through QEMU: its guest runs on, and its settings are as before.
#[test]
fn a_signal_cancels_and_the_guest_runs_on() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        for name in ["INT", "TERM"] {
            let Some(mut pair) = Pair::new(version, &busy()) else {
                continue;
            };
            pair.set_oddly();
            let before = pair.settings();
            let (accept, trunk) = pair.accept(&[]);
            let mut migrate = pair.migrate(&trunk, &SLOW);
            wait_sent(&mut migrate, 256 << 10);
            signal(&migrate, name);
            let (migrated, accepted) = (migrate.end(), accept.end());
            let error = assert_failed(&migrated, 4, "cancelled");
            assert!(error.contains("The guest runs on at the source"), "{error}");
            assert_failed(&accepted, 1, "failed");
            pair.source_is_as_before(&before);
        }
    }
}

/// A destination that nobody has called gives its settings back.
#[test]
fn a_destination_that_is_told_to_end_is_as_before() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        let Some(mut pair) = Pair::new(version, &Guest::default()) else {
            continue;
        };
        pair.set_oddly();
        let before = pair.settings();
        let (accept, _) = pair.accept(&[]);
        signal(&accept, "TERM");
        assert_failed(&accept.end(), 4, "cancelled");
        assert_eq!(pair.settings(), before, "{}", pair.binary);
    }
}

/// A destination with another machine refuses the guest in its own words.
#[test]
fn a_destination_that_refuses_is_quoted() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        let other = |binary: &QemuBinary| {
            let guest = Guest {
                ram_mib: 48,
                ..busy()
            };
            Config::new(binary, &guest).incoming()
        };
        let Some((binary, destination)) = Pair::with(version, other) else {
            continue;
        };
        let mut pair = Pair::of(binary, &busy(), destination);
        let before = pair.settings();
        let (accept, trunk) = pair.accept(&[]);
        let (migrated, accepted) = (pair.migrate(&trunk, &[]).end(), accept.end());
        let told = assert_failed(&migrated, 1, "failed");
        assert!(told.contains("The source QEMU says: "), "{told}");
        let told = assert_failed(&accepted, 1, "failed");
        let words = match version {
            // It exits when a migration fails.
            Version::V7_2 => "The destination QEMU has gone",
            _ => "The destination QEMU says: load of migration failed",
        };
        assert!(told.contains(words), "{told}");
        pair.source_is_as_before(&before);
    }
}

/// A source with fewer or more channels than the destination waits for.
fn channels_differ(version: Version) {
    for (here, there) in [("2", "4"), ("4", "2")] {
        let Some(mut pair) = Pair::new(version, &busy()) else {
            return;
        };
        let before = pair.settings();
        let (accept, trunk) = pair.accept(&["--channels", there]);
        let migrate = pair.migrate(&trunk, &["--channels", here]);
        let (migrated, accepted) = (migrate.end(), accept.end());
        let told = assert_failed(&migrated, 1, "failed");
        let words = format!("need the same --channels (here {here})");
        assert!(told.contains(&words), "{told}");
        let told = assert_failed(&accepted, 1, "failed");
        assert!(told.contains("the same --channels"), "{told}");
        pair.source_is_as_before(&before);
    }
}

#[test]
fn different_channels_are_named_7_2() {
    channels_differ(Version::V7_2);
}

#[test]
fn different_channels_are_named_10_0() {
    channels_differ(Version::V10_0);
}

#[test]
fn different_channels_are_named_11_1() {
    channels_differ(Version::V11_1);
}

#[test]
fn a_time_limit_cancels_and_says_why() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        let Some(mut pair) = Pair::new(version, &busy()) else {
            continue;
        };
        let before = pair.settings();
        let (accept, trunk) = pair.accept(&[]);
        let migrate = pair.migrate(&trunk, &[&SLOW[..], &["--timeout", "4"]].concat());
        let (migrated, accepted) = (migrate.end(), accept.end());
        let told = assert_failed(&migrated, 1, "failed");
        assert!(told.contains("did not end within 4 s: after "), "{told}");
        assert!(told.contains("the guest writes to "), "{told}");
        assert_failed(&accepted, 1, "failed");
        pair.source_is_as_before(&before);
    }
}

/// The command beside the destination dies in the middle.
#[test]
fn a_dead_accept_leaves_the_guest_at_the_source() {
    let Some(mut pair) = Pair::new(Version::V11_1, &busy()) else {
        return;
    };
    let before = pair.settings();
    let (accept, trunk) = pair.accept(&[]);
    let mut migrate = pair.migrate(&trunk, &SLOW);
    wait_sent(&mut migrate, 256 << 10);
    accept.kill();
    assert_failed(&migrate.end(), 1, "failed");
    pair.source_is_as_before(&before);
}

#[test]
fn nobody_at_the_trunk_is_said() {
    let Some(mut pair) = Pair::new(Version::V10_0, &Guest::default()) else {
        return;
    };
    let before = pair.settings();
    let trunk = format!("trunk+{}", unix(pair.folder.path(), "nobody"));
    let told = assert_failed(&pair.migrate(&trunk, &[]).end(), 1, "failed");
    assert!(told.contains("cannot connect to trunk+unix:"), "{told}");
    pair.source_is_as_before(&before);
}

#[test]
fn a_dry_run_changes_nothing() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        let Some(mut pair) = Pair::new(version, &Guest::default()) else {
            continue;
        };
        let before = pair.settings();
        let ends = [("accept", "--listen"), ("migrate", "--to")];
        for (command, leg) in ends {
            let qmp = match command {
                "accept" => pair.destination.operator_socket(),
                _ => pair.source.operator_socket(),
            };
            let words = [command, leg, "trunk+tcp:127.0.0.1:1", "--dry-run", "--qmp"];
            let told = Multifd::spawn(Command::new(program()).args(words).arg(qmp));
            let told = told.end().well();
            assert!(told.contains("\n  multifd on (now off)\n"), "{told}");
            assert!(told.contains("\n  multifd-channels 4 (now 2)\n"), "{told}");
            let limit = told.contains("\n  max-bandwidth 0 (now 134217728)\n");
            assert_eq!(limit, command == "migrate", "{told}");
        }
        assert_eq!(pair.settings(), before);
        assert_eq!(pair.source.run_state().unwrap(), "running");
        assert_eq!(pair.destination.run_state().unwrap(), "inmigrate");
    }
}

/// Each command at the other's QEMU, and at a monitor that somebody else has.
#[test]
fn wrong_monitors_are_named() {
    let Some(pair) = Pair::new(Version::V10_0, &Guest::default()) else {
        return;
    };
    let trunk = "trunk+tcp:127.0.0.1:1";
    let (source, destination) = (&pair.source, &pair.destination);
    for (command, leg, qmp, words) in [
        (
            "accept",
            "--listen",
            source.operator_socket(),
            "Start it with -incoming defer",
        ),
        (
            "migrate",
            "--to",
            destination.operator_socket(),
            "no guest to send: its state is inmigrate",
        ),
        (
            "migrate",
            "--to",
            source.socket_path("qmp"),
            "another client may have it",
        ),
        (
            "migrate",
            "--to",
            source.socket_path("none"),
            "no QEMU listens at ",
        ),
    ] {
        let mut told = Command::new(program());
        let told = Multifd::spawn(told.args([command, leg, trunk, "--qmp"]).arg(qmp)).end();
        assert_eq!(told.status.code(), Some(1), "{told:?}");
        assert!(told.stderr.contains(words), "{told:?}");
    }
}

/// A guest that would not get through goes on at the destination, and its memory follows.
#[test]
fn postcopy_on_11_1() {
    let Some(mut pair) = Pair::new(Version::V11_1, &busy()) else {
        return;
    };
    if !has_postcopy(&pair.binary) {
        return;
    }
    let before = pair.settings();
    let (accept, trunk) = pair.accept(&["--postcopy"]);
    let more = [&SLOW[..], &["--postcopy-after", "2"]].concat();
    let (migrated, accepted) = (pair.migrate(&trunk, &more).end(), accept.end());
    assert_eq!(migrated.status.code(), Some(0), "{migrated:?} {accepted:?}");
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    assert_eq!(end(&migrated)["outcome"], "whole", "{migrated:?}");
    let statuses = lines(&migrated);
    let mut statuses = statuses.iter().filter_map(|line| line["status"].as_str());
    assert!(
        statuses.any(|status| status == "postcopy-active"),
        "{migrated:?}"
    );
    pair.destination.check_goes_on(LIMIT).unwrap();
    assert_eq!(pair.settings(), before);
}

/// The command beside the source dies in the middle: QEMU itself ends the migration.
#[test]
fn a_dead_migrate_leaves_the_guest_at_the_source() {
    let Some(mut pair) = Pair::new(Version::V11_1, &busy()) else {
        return;
    };
    let (accept, trunk) = pair.accept(&[]);
    let mut migrate = pair.migrate(&trunk, &SLOW);
    wait_sent(&mut migrate, 256 << 10);
    migrate.kill();
    assert_failed(&accept.end(), 1, "failed");
    pair.source.wait_migration(LIMIT).unwrap();
    pair.source.check_goes_on(LIMIT).unwrap();
}

/// Over TLS, and with what people see instead of JSON.
#[cfg(feature = "tls")]
#[test]
fn a_guest_moves_over_tls() {
    let Some(mut pair) = Pair::new(Version::V10_0, &busy()) else {
        return;
    };
    let pki = pair.folder.path().join("pki");
    let init = ["tls", "init", pki.to_str().unwrap(), "--host", "127.0.0.1"];
    Multifd::start(init).end().well();
    let command = |command, leg, address: &str, qmp| {
        let mut all = Command::new(program());
        all.args([command, leg, address, "--qmp"]).arg(qmp);
        Multifd::spawn(all.arg("--tls-dir").arg(&pki))
    };
    let qmp = pair.destination.operator_socket();
    let mut accept = command("accept", "--listen", "trunk:127.0.0.1:0", qmp);
    let trunk: LegAddress = (*accept).address();
    let qmp = pair.source.operator_socket();
    let migrate = command("migrate", "--to", &trunk.to_string(), qmp);
    let migrated = migrate.end();
    assert!(
        migrated.stderr.contains("QEMU's migration is completed"),
        "{migrated:?}"
    );
    let told = migrated.well();
    assert!(
        told.starts_with("the destination has the guest; total "),
        "{told}"
    );
    assert!(told.contains("; 4 channels, "), "{told}");
    let told = accept.end().well();
    assert!(
        told.starts_with("this QEMU has the guest (its state is running)"),
        "{told}"
    );
    pair.destination.check_goes_on(LIMIT).unwrap();
}

/// Signals from the first moment on: in the set-up, in a round, in the switch-over, too late.
/// Whatever comes of it, one QEMU has the guest, and the exit status says which.
#[test]
fn a_signal_at_any_time_leaves_one_guest() {
    for version in [Version::V7_2, Version::V10_0, Version::V11_1] {
        for delay in [10, 20, 30, 50, 80, 130] {
            let Some(mut pair) = Pair::new(version, &busy()) else {
                continue;
            };
            let (accept, trunk) = pair.accept(&[]);
            let migrate = pair.migrate(&trunk, &[]);
            thread::sleep(Duration::from_millis(delay));
            signal(&migrate, "INT");
            let migrated = migrate.end();
            let what = format!("{}, {delay} ms: {migrated:?}", pair.binary);
            match migrated.status.code() {
                Some(0) => pair.destination.check_goes_on(LIMIT).expect(&what),
                Some(4) => pair.source.check_goes_on(LIMIT).expect(&what),
                // It came before the command took charge of signals.
                None | Some(130) => {
                    pair.source.check_goes_on(LIMIT).expect(&what);
                    continue;
                }
                // The destination had everything, and its word did not come. It is asked itself.
                Some(3) => {
                    signal(&accept, "INT");
                    accept.end();
                    let here = pair.source.check_goes_on(LIMIT).is_ok();
                    let there = pair.destination.run_state();
                    let there = there.is_ok_and(|state| state == "running");
                    assert!(here != there, "here {here}, there {there}: {what}");
                    continue;
                }
                _ => panic!("{what}"),
            }
            if !migrated.status.success() {
                // It may wait for a guest still.
                let id = accept.id().to_string();
                let _ = Command::new("kill").arg(id).status();
            }
            let accepted = accept.end().status.code();
            assert_eq!(accepted == Some(0), migrated.status.success(), "{what}");
        }
    }
}
