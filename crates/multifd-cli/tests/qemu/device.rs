//! Relays whose pages a simulated IAA compresses and decompresses, under the real libqpl, with
//! everything that can go wrong.
//!
//! Whatever the device does, the migration completes and the guest's memory is whole ([`Chain`]
//! sees to both), and the relay's report says what happened: it is compared with what the device
//! itself has counted.

use std::num::NonZeroU32;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use iaa_sim::settings::{AccelConfig, Access, Fault, FaultKind, Operations, Order};
use iaa_sim::{Counters, Settings};
use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};
use tempfile::TempDir;

use super::libqpl::{CANNED, DYNAMIC, Done, FIXED, Libqpl, Paged};
use super::relays::{Relay, folder, hop_through, unix};
use crate::support::Multifd;

const LIMIT: Duration = Duration::from_secs(30);

/// The link's name.
const DESTINATION: &str = "destination";

const QPL: [&str; 2] = ["--accel", "qpl"];

/// What is reported of hardware that is in use.
const HARDWARE: &str = "qpl-hardware";

/// What is reported when the deadline of a job has passed.
const LOST: &str = "IAA given up: a job has not ended within 2 s";

/// A guest that migrates from QEMU to QEMU through relays on simulated machines.
struct Lab {
    relays: Relays,
    binary: QemuBinary,
    chain: Chain,
    channels: u8,
}

/// What starts the relays.
struct Relays {
    libqpl: Libqpl,
    /// For the devices' counters.
    folder: TempDir,
}

/// A device under a relay.
struct Device {
    counters: PathBuf,
    /// What it had counted when the relay had tried it and began to listen.
    before: Counters,
}

/// A relay that serves one migration after another.
struct Standing {
    relay: Relay,
    /// Has a link to where the next destination listens.
    folder: TempDir,
    counters: PathBuf,
}

/// What a relay reports of the direction that its device works in, and what the device has counted
/// meanwhile.
#[derive(Debug)]
struct Told {
    done: Done,
    /// Before the migration, when the relay tried the device.
    tried: Counters,
    device: Counters,
}

impl Relays {
    /// A command that starts `multifd` on a machine of its own, and the file with its counters.
    fn command(&self, machine: &Settings, name: &str) -> (Command, PathBuf) {
        let counters = self.folder.path().join(name);
        let machine = Settings {
            counters: Some(counters.clone()),
            ..machine.clone()
        };
        // Of the relay before.
        let _ = std::fs::remove_file(&counters);
        (self.libqpl.multifd_on(&machine), counters)
    }

    /// A relay for one migration, on a machine of its own.
    fn start(
        &self,
        machine: &Settings,
        folder: &Path,
        name: &str,
        connect: &str,
        compression: &str,
        options: &[&str],
    ) -> (Relay, Device) {
        let (command, counters) = self.command(machine, name);
        let options = [&QPL, &["--once"][..], options].concat();
        let relay = Relay::of(command, folder, name, connect, compression, &options);
        // A machine that libqpl has not found has no counters.
        let before = Counters::read(&counters).unwrap_or_default();
        (relay, Device { counters, before })
    }
}

impl Device {
    fn tells(self, done: Done) -> Told {
        let now = Counters::read(&self.counters).unwrap_or_default();
        Told {
            done,
            tried: self.before,
            device: now.since(self.before),
        }
    }
}

impl Lab {
    #[track_caller]
    fn new(channels: u8) -> Option<Lab> {
        let libqpl = Libqpl::require()?;
        let binary = QemuBinary::require(Version::V10_0)?;
        let chain = Chain::start(&binary, &Guest::default(), "pc-q35-10.0").unwrap();
        let folder = folder();
        Some(Lab {
            relays: Relays { libqpl, folder },
            binary,
            chain,
            channels,
        })
    }

    fn parameters(&self, compression: &str) -> Parameters {
        Parameters {
            return_path: true,
            ..Parameters::multifd(self.channels, compression)
        }
    }

    /// To a stock QEMU, which inflates what the relay's device has compressed.
    fn stock_reads(&mut self, machine: &Settings, options: &[&str]) -> Told {
        let hop = Hop {
            source_parameters: self.parameters("none"),
            ..Hop::to(&self.binary, &self.parameters("zlib"))
        };
        let mut device = None;
        let (_, [report]) = hop_through(&mut self.chain, &hop, |folder, connect| {
            let (relay, on) = self
                .relays
                .start(machine, folder, "relay", connect, "zlib", options);
            device = Some(on);
            [relay]
        });
        device
            .expect("a relay was started")
            .tells(Done::encoding(&report))
    }

    /// To a plain QEMU, from a relay whose device compresses through one whose device decompresses.
    fn between_two(
        &mut self,
        near: &Settings,
        far: &Settings,
        (method, options): Paged,
    ) -> [Told; 2] {
        let hop = Hop::to(&self.binary, &self.parameters("none"));
        let mut devices = None;
        let (_, reports) = hop_through(&mut self.chain, &hop, |folder, connect| {
            let (far, reads) = self.relays.start(far, folder, "far", connect, "none", &[]);
            let connect = &far.address;
            let (near, writes) = self
                .relays
                .start(near, folder, "near", connect, method, options);
            devices = Some((writes, reads));
            [far, near]
        });
        let [far, near] = reports;
        let (writes, reads) = devices.expect("relays were started");
        let written = writes.tells(Done::encoding(&near));
        let read = reads.tells(Done::decoding(&far));
        for done in [&written.done, &read.done] {
            assert_eq!(done.method, method);
        }
        assert_eq!(written.done.raw, read.done.raw);
        [written, read]
    }

    /// A stream whose pieces are of several pages, and each way to send pages by themselves.
    fn all(&mut self, machine: &Settings) -> Vec<Told> {
        let mut all = vec![self.stock_reads(machine, &["--streams", "16"])];
        for pages in [FIXED, DYNAMIC, CANNED] {
            all.extend(self.between_two(machine, machine, pages));
        }
        all
    }

    /// A relay that stays, whatever becomes of its device.
    fn standing(&self, machine: &Settings) -> Standing {
        let folder = folder();
        let (command, counters) = self.relays.command(machine, "standing");
        let connect = unix(folder.path(), DESTINATION);
        let relay = Relay::of(command, folder.path(), "standing", &connect, "zlib", &QPL);
        Standing {
            relay,
            folder,
            counters,
        }
    }

    /// The guest runs on where it has arrived in the end.
    fn runs_on(mut self) {
        self.chain.current().check_goes_on(LIMIT).unwrap();
    }
}

impl Standing {
    /// To a stock QEMU.
    fn hop(&mut self, lab: &mut Lab) -> Done {
        let hop = Hop {
            source_parameters: lab.parameters("none"),
            ..Hop::to(&lab.binary, &lab.parameters("zlib"))
        };
        let hopped = lab.chain.hop_via(&hop, |listening| {
            let destination = self.folder.path().join(DESTINATION);
            let _ = std::fs::remove_file(&destination);
            symlink(listening.strip_prefix("unix:").unwrap(), &destination).unwrap();
            self.relay.address.clone()
        });
        hopped.unwrap();
        Done::encoding(&self.relay.next_report())
    }
}

/// A machine on which this goes wrong when the relay is at work: after what it tries the device
/// with and some pages more.
fn at_work(kind: FaultKind, every: u32, limit: u32) -> Settings {
    Settings {
        healthy_for: 20,
        faults: vec![Fault {
            kind,
            every: NonZeroU32::new(every).unwrap(),
            limit,
        }],
        ..Settings::default()
    }
}

/// A machine that gives each of these records once, among many that are right.
fn records(records: impl IntoIterator<Item = (u8, u8)>) -> Settings {
    let fault = |(status, error)| Fault {
        kind: FaultKind::Record { status, error },
        every: NonZeroU32::new(2).unwrap(),
        limit: 1,
    };
    Settings {
        healthy_for: 20,
        faults: records.into_iter().map(fault).collect(),
        ..Settings::default()
    }
}

/// What is reported of a device that was used for everything that it could do, software doing the
/// rest.
fn assert_in_use(told: &Told) {
    assert!(told.done.hardware > told.done.software, "{told:?}");
    if told.done.backend == HARDWARE {
        assert_eq!(told.done.software, 0, "{told:?}");
    } else {
        assert_missed(told, "");
    }
}

/// What is reported of a device that is in use and has not done everything, for a reason that
/// begins like this.
fn assert_missed(told: &Told, reason: &str) {
    let expected = format!("{HARDWARE} (not all of it: {reason}");
    assert!(told.done.backend.starts_with(&expected), "{told:?}");
}

/// What is reported when software has taken over for this reason.
fn assert_taken_over(told: &Told, reason: &str) {
    let [writes, reads] = ["qpl-software", "software"].map(|by| format!("{by} ({reason})"));
    assert!([writes, reads].contains(&told.done.backend), "{told:?}");
    assert!(told.done.software > 0, "{told:?}");
}

#[test]
fn healthy_devices() {
    let Some(mut lab) = Lab::new(2) else { return };
    let one = Settings::default();
    let several = Settings {
        devices: 3,
        queues: 2,
        ..Settings::default()
    };
    let slow = Settings {
        latency: Duration::from_micros(300),
        ..Settings::default()
    };
    let out_of_order = Settings {
        order: Order::Reversed,
        ..slow.clone()
    };
    let waiting = Settings {
        block_on_fault: true,
        faults: at_work(FaultKind::ReadPage, 5, 0).faults,
        ..Settings::default()
    };
    // libqpl offers a thread the devices of its own socket, and the relay takes any rather than
    // none.
    let elsewhere = Settings {
        numa_node: 7,
        ..Settings::default()
    };
    for machine in [one, several, slow, out_of_order, waiting, elsewhere] {
        for told in lab.all(&machine) {
            assert_eq!(told.done.software, 0, "{machine}: {told:?}");
            assert_eq!(told.done.backend, HARDWARE);
        }
        let [written, read] = lab.between_two(&machine, &machine, FIXED);
        // A page is a descriptor, so that report and device count the same.
        assert_eq!(written.done.hardware, written.device.successes);
        assert_eq!(read.done.hardware, read.device.successes);
        assert_eq!(read.done.hardware, written.done.hardware);
        let queues = u64::from(machine.devices * machine.queues);
        assert_eq!([written, read].map(|told| told.tried.probes), [queues; 2]);
    }
    lab.runs_on();
}

#[test]
fn queues_with_too_few_places() {
    let Some(mut lab) = Lab::new(8) else { return };
    // Each channel alone would keep half of the second's places busy.
    for (depth, latency_us) in [(1, 100), (128, 0)] {
        let machine = Settings {
            depth,
            latency: Duration::from_micros(latency_us),
            ..Settings::default()
        };
        for told in lab.all(&machine) {
            assert!(told.done.hardware > 0, "{told:?}");
            if told.done.software > 0 {
                assert_missed(&told, "its queues were full)");
            } else {
                assert!(depth > 1, "{told:?}");
            }
        }
    }
    lab.runs_on();
}

#[test]
fn queues_that_others_keep_full() {
    let Some(mut lab) = Lab::new(2) else { return };
    let busy = Settings {
        busy: true,
        ..Settings::default()
    };
    // In a moment nothing can be said but that each page was refused.
    for told in lab.all(&busy) {
        assert_eq!((told.done.hardware, told.device.successes), (0, 0));
        assert!(told.done.software > 0, "{told:?}");
        assert_missed(&told, "its queues were full)");
    }
    // For a judgement they have to be full for longer than a migration takes.
    let mut standing = lab.standing(&busy);
    assert_eq!(standing.hop(&mut lab).hardware, 0);
    thread::sleep(Duration::from_secs(1));
    let done = standing.hop(&mut lab);
    let reason = "IAA not used for now: its queues were full for 1 s";
    assert_eq!(done.backend, format!("qpl-software ({reason})"));
    lab.runs_on();
}

#[test]
fn now_and_then_a_fault() {
    let Some(mut lab) = Lab::new(2) else { return };
    let addressed = [FaultKind::ReadPage, FaultKind::WritePage];
    let nowhere = [FaultKind::ReadPageNowhere, FaultKind::WritePageNowhere];
    for kind in addressed.into_iter().chain(nowhere) {
        let machine = at_work(kind, 9, 0);
        for told in lab.all(&machine) {
            assert_in_use(&told);
            let Counters {
                read_faults,
                write_faults,
                ..
            } = told.device;
            let faults = match kind {
                FaultKind::ReadPage | FaultKind::ReadPageNowhere => read_faults,
                _ => write_faults,
            };
            assert!(
                faults > 0 && faults == read_faults + write_faults,
                "{kind:?}: {told:?}"
            );
            // libqpl repairs the one fault of each job's that has an address.
            if nowhere.contains(&kind) {
                assert!(told.done.software > 0, "{kind:?}: {told:?}");
            }
        }
        let [written, read] = lab.between_two(&machine, &machine, FIXED);
        assert_eq!(written.done.hardware, written.device.successes);
        if nowhere.contains(&kind) {
            let faults = read.device.read_faults + read.device.write_faults;
            assert_eq!(read.done.software, faults);
        }
    }
    lab.runs_on();
}

/// Every error record that concerns one job: the device is used on, and the job's pages are
/// software's.
#[test]
fn every_error_record_of_a_job() {
    let Some(mut lab) = Lab::new(2) else { return };
    let by_error_byte = (1..=36).map(|error| (0x0a, error));
    let by_status_byte = [
        0x04, 0x0a, 0x0b, 0x10, 0x11, 0x12, 0x16, 0x19, 0x1a, 0x1b, 0x1c, 0x2f, 0x30, 0x31, 0x32,
        0x84, 0x9a,
    ];
    let all: Vec<_> = by_error_byte
        .chain(by_status_byte.map(|status| (status, 0)))
        .collect();
    let machine = records(all.iter().copied());
    for told in lab.all(&machine) {
        assert_in_use(&told);
        assert_eq!(told.device.records, all.len() as u64, "{told:?}");
        assert!(told.done.software > 0, "{told:?}");
    }
    let [_, read] = lab.between_two(&machine, &machine, FIXED);
    assert_eq!(read.done.software, all.len() as u64);
    lab.runs_on();
}

/// Errors that concern the device: after some of them it is asked no more.
#[test]
fn records_of_a_device_that_fails() {
    let Some(mut lab) = Lab::new(2) else { return };
    let bus = [0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24].map(|status| (status, 0));
    for four in [&bus[..4], &bus[3..]] {
        for told in lab.all(&records(four.iter().copied())) {
            assert_taken_over(&told, "IAA given up: 4 failures of device or bus");
            assert!(told.done.hardware > 0, "{told:?}");
        }
    }
    let stalls = at_work(record(0x0a, 19), 10, 2);
    for told in lab.all(&stalls) {
        assert_taken_over(&told, "IAA given up: a job made no progress, again");
        assert!(told.done.hardware > 0, "{told:?}");
    }
    let cases = [
        (
            record(0x10, 0),
            "IAA not used for now: 32 failures in a row",
        ),
        (
            FaultKind::ReadPageNowhere,
            "IAA not used for now: 32 page faults in a row",
        ),
        (
            FaultKind::WritePageNowhere,
            "IAA not used for now: 32 page faults in a row",
        ),
    ];
    for (kind, reason) in cases {
        for told in lab.all(&at_work(kind, 1, 0)) {
            assert_taken_over(&told, reason);
        }
    }
    lab.runs_on();
}

/// Records that say that the program may not use the device, or not in this way.
#[test]
fn records_of_a_device_that_may_not_be_used() {
    let Some(mut lab) = Lab::new(1) else { return };
    for status in [0x13, 0x1d, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e] {
        let told = lab.stock_reads(&at_work(record(status, 0), 1, 0), &[]);
        let backend = &told.done.backend;
        assert!(backend.starts_with("qpl-software (no IAA: "), "{backend}");
        let number = format!("({})", 300 + u32::from(status));
        assert!(backend.contains(&number), "{backend}");
        assert!(told.done.software > 0);
    }
    lab.runs_on();
}

#[test]
fn jobs_that_never_end() {
    let Some(mut lab) = Lab::new(2) else { return };
    let one = at_work(FaultKind::Lost, 1, 1);
    let all = at_work(FaultKind::Lost, 1, 0);
    for machine in [one, all] {
        let told = lab.stock_reads(&machine, &["--streams", "16"]);
        assert_taken_over(&told, LOST);
        assert!(told.done.hardware > 0 && told.device.lost > 0, "{told:?}");
        for pages in [FIXED, CANNED] {
            for told in lab.between_two(&machine, &machine, pages) {
                assert_taken_over(&told, LOST);
                assert!(told.done.hardware > 0 && told.device.lost > 0, "{told:?}");
            }
        }
    }
    lab.runs_on();
}

/// What a device completes after the deadline it writes into memory of jobs that were given up, in
/// a relay that goes on.
#[test]
fn jobs_that_end_too_late() {
    let Some(mut lab) = Lab::new(2) else { return };
    let late = FaultKind::Late(Duration::from_millis(2300));
    let mut standing = lab.standing(&at_work(late, 3, 0));
    for migration in 0..2 {
        let done = standing.hop(&mut lab);
        assert_eq!(done.backend, format!("qpl-software ({LOST})"));
        assert_eq!(done.hardware > 0, migration == 0, "{done:?}");
        // Before the next, all that the device had is done.
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = Counters::read(&standing.counters).unwrap();
            assert!(now.late > 0 && now.lost == 0, "{now:?}");
            let begun = now.compressions + now.statistics + now.decompressions;
            if begun == now.successes + now.failures {
                break;
            }
            assert!(Instant::now() < deadline, "{now:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
    lab.runs_on();
}

/// Devices that libqpl does not find, may not use or does not get an answer from: the reason is
/// told before the migration and after it, and who wants hardware or nothing gets nothing.
#[test]
fn devices_that_cannot_be_used() {
    let Some(mut lab) = Lab::new(1) else { return };
    let none = Settings {
        devices: 0,
        ..Settings::default()
    };
    let disabled = Settings {
        device_enabled: false,
        ..Settings::default()
    };
    let without_queue = Settings {
        queue_enabled: false,
        ..Settings::default()
    };
    let dedicated = Settings {
        dedicated: true,
        ..Settings::default()
    };
    let dumb = Settings {
        faults: vec![Fault::always(FaultKind::Lost)],
        ..Settings::default()
    };
    let [denied, refused] = [Access::Denied, Access::Refused].map(|access| Settings {
        access,
        ..Settings::default()
    });
    let [old, old_kernel, broken] = [
        AccelConfig::Old,
        AccelConfig::OldKernel,
        AccelConfig::Broken,
    ]
    .map(|library| Settings {
        library,
        ..Settings::default()
    });
    let machines = [
        none,
        disabled,
        without_queue,
        dedicated,
        dumb,
        denied,
        refused,
        old,
        old_kernel,
        broken,
    ];
    for machine in machines {
        let told = lab.stock_reads(&machine, &[]);
        let backend = &told.done.backend;
        let reason = backend.strip_prefix("qpl-software (no IAA: ");
        let reason = reason.unwrap_or_else(|| panic!("{machine}: {backend}"));
        assert!(reason.len() > 5, "{reason}");
        assert!(
            told.done.software > 0 && told.done.hardware == 0,
            "{told:?}"
        );

        for (compression, method) in [("zlib", "zlib"), ("none", "qpl")] {
            let mut command = lab.relays.libqpl.multifd_on(&machine);
            command.args([
                "relay",
                "--listen",
                "tcp:127.0.0.1:0",
                "--connect",
                "tcp:127.0.0.1:1",
            ]);
            command.args(["--accel", "qpl-hardware", "--compression", compression]);
            let ended = Multifd::spawn(&mut command).end();
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            let refusal = format!(
                "accelerator qpl-hardware is not available for the {method} method: no IAA: "
            );
            assert!(ended.stderr.contains(&refusal), "{ended:?}");
        }
    }
    lab.runs_on();
}

/// A queue that takes one kind of operation only, and one that takes a page and no more.
#[test]
fn devices_that_can_be_used_for_a_part() {
    let Some(mut lab) = Lab::new(2) else { return };
    for permitted in [Operations::Compress, Operations::Decompress] {
        let machine = Settings {
            operations: permitted,
            ..Settings::default()
        };
        let [written, read] = lab.between_two(&machine, &machine, FIXED);
        let (good, bad) = match permitted {
            Operations::Compress => (written, read),
            _ => (read, written),
        };
        assert_in_use(&good);
        assert_eq!(bad.done.hardware, 0);
        let backend = &bad.done.backend;
        assert!(backend.contains("QPL_STS_NOT_SUPPORTED_BY_WQ"), "{backend}");
    }
    let small = Settings {
        max_transfer_bytes: 16 << 10,
        ..Settings::default()
    };
    for told in lab.between_two(&small, &small, FIXED) {
        assert_in_use(&told);
    }
    let told = lab.stock_reads(&small, &["--streams", "1"]);
    let backend = &told.done.backend;
    assert!(backend.starts_with("qpl-software (no IAA: "), "{backend}");
    assert!(
        backend.contains("QPL_STS_TRANSFER_SIZE_INVALID"),
        "{backend}"
    );
    lab.runs_on();
}

fn record(status: u8, error: u8) -> FaultKind {
    FaultKind::Record { status, error }
}
