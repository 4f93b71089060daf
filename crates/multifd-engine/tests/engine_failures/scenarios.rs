//! The scenarios, and what has to hold in each.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::num::{NonZeroU8, NonZeroU64};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_engine::control::Preamble;
use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::{DirtyBitmap, DirtyLog, DirtyLogError, PagemapLog};
use multifd_engine::failure::Cause;
use multifd_engine::source::{self, Guest, GuestState, SourceFailure};
use multifd_engine::{EngineError, Failure, Parameters, Phase, VmError, VmHandle};
use multifd_transport::failure::{Cause as TransportCause, SetupFault};
use multifd_transport::incoming::{Acceptor, Note, Peer};
use multifd_transport::{Address, Cancel, Listener, Stream};
use multifd_wire::Method;

use crate::{bases, cut, logs, peers};
use testkit::engine::{
    MIB, Outcome, Place, TestGuest, TestVm, assert_equal, memory, migrate, migrate_with, offered,
};

/// The scenarios, by name.
const SCENARIOS: &[(&str, fn())] = &[
    ("cut links", cut::links),
    ("cancelled in every phase", cancelled_in_every_phase),
    ("cancelled at any moment", cancelled_at_any_moment),
    ("destination cancelled", destination_cancelled),
    ("a destination that stalls", peers::destination_stalls),
    ("VMs that fail", vms_that_fail),
    ("a source that panics", a_source_that_panics),
    ("logs that panic", logs::that_panic),
    ("the guest before its log", logs::the_guest_goes_on_first),
    ("a guest that cannot go on", logs::a_guest_that_cannot_go_on),
    ("nothing undoes a start", nothing_undoes_a_start),
    ("a guest faster than the link", a_guest_faster_than_the_link),
    ("other blocks", other_blocks),
    ("a log that loses writes", a_log_that_loses_writes),
    ("versions and methods", peers::versions_and_methods),
    (
        "a channel that breaks the rules",
        peers::a_channel_that_breaks_the_rules_is_named,
    ),
    (
        "a source that leaves pages out",
        peers::a_source_that_leaves_pages_out,
    ),
    ("sources that fall silent", peers::sources_that_fall_silent),
    ("a base that somebody changed", bases::that_somebody_changed),
    ("a base that never came", bases::that_never_came),
    ("a destination without differences", bases::old_destination),
    ("nobody listens", nobody_listens),
    ("QEMUs and engines", qemus_and_engines),
    ("strangers among the channels", strangers_among_the_channels),
    ("bandwidth holds", bandwidth_holds),
];

pub fn run_all() {
    for (name, scenario) in SCENARIOS {
        let before = left_over();
        let started = Instant::now();
        scenario();
        // Threads that were joined are gone from /proc only a moment later.
        let deadline = Instant::now() + Duration::from_secs(5);
        while left_over() != before && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(left_over(), before, "{name}: threads and descriptors");
        println!("{name}: {:.2} s", started.elapsed().as_secs_f64());
    }
}

/// Threads and descriptors of this process.
fn left_over() -> (usize, usize) {
    let count = |path| fs::read_dir(path).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// A guest that is busy but not for long, and quick to send.
pub fn busy_guest() -> TestGuest {
    let mut guest = TestGuest::new(4 * MIB);
    guest.write_everywhere(3, 0.1);
    guest
}

/// Whether the caller ended the migration.
fn is_cancelled(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::Transport(TransportCause::Cancelled))
}

pub fn engine_fault(failure: &Failure) -> &EngineError {
    match &failure.cause {
        Cause::Engine(fault) => fault,
        other => panic!("{}: {other:?}", failure.explain()),
    }
}

/// Whether the other end gave up because it was cancelled.
fn gave_up_cancelled(failure: &Failure) -> bool {
    let said = engine_fault(failure).to_string();
    said.starts_with(GAVE_UP) && said.contains("cancelled")
}

/// The words of a migration that the other end gave up.
const GAVE_UP: &str = "the other end gave up: ";

/// Whether the guest is in one place, and that is known.
pub fn check_one_guest(guest: &TestGuest, outcome: &Outcome) {
    let runs_here = guest.gate.is_open();
    let runs_there = outcome.vm.runs.load(Ordering::SeqCst);
    match &outcome.source {
        Ok(_) => assert!(runs_there && !runs_here),
        Err(SourceFailure {
            guest: GuestState::Runs,
            ..
        }) => assert!(runs_here && !runs_there),
        Err(SourceFailure {
            guest: GuestState::Unknown,
            ..
        }) => assert!(!runs_here),
        Err(failure) => panic!("{failure:?}"),
    }
    assert_eq!(outcome.destination.is_ok(), runs_there);
    if let Ok(received) = &outcome.destination {
        assert_equal(&guest.memory, &received.memory);
    }
}

/// The guest goes on where it is, and can be migrated after all.
pub fn check_next_attempt(guest: &TestGuest) {
    let before = guest.steps.load(Ordering::SeqCst);
    while guest.steps.load(Ordering::SeqCst) == before {
        thread::sleep(Duration::from_millis(1));
    }
    let outcome = migrate(guest, &Place::unix(), &Parameters::default());
    assert!(outcome.source.is_ok());
    check_one_guest(guest, &outcome);
}

fn cancelled_in_every_phase() {
    for phase in [Phase::Setup, Phase::Bulk, Phase::Dirty, Phase::SwitchOver] {
        let mut guest = busy_guest();
        let cancel = Cancel::new();
        let mut parameters = Parameters::default();
        if matches!(phase, Phase::Dirty | Phase::Setup) {
            // Only so that it comes to more rounds.
            parameters.downtime_limit = Duration::ZERO;
            guest.write_everywhere(4, 0.5);
        }
        if phase == Phase::Setup {
            cancel.cancel();
        }
        let place = Place::unix();
        let mut acceptor = Acceptor::bind(&place.address).unwrap();
        let destination_cancel = Cancel::new();
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let outcome = thread::scope(|scope| {
            let destination = scope.spawn(|| {
                let mut vm = TestVm::empty();
                let received = destination::receive(
                    &mut acceptor,
                    offered,
                    &mut vm,
                    &DestinationSettings::default(),
                    &destination_cancel,
                    &mut |_| {},
                );
                (received, vm)
            });
            let source = source::send(
                &place.address,
                Guest {
                    uuid: [7; 16],
                    memory: &guest.memory,
                    dirty: &mut log,
                    vm: &mut guest.vm(),
                },
                &parameters,
                &cancel,
                &mut |progress| {
                    if progress.phase == phase {
                        cancel.cancel();
                    }
                },
            );
            if phase == Phase::Setup {
                destination_cancel.cancel();
            }
            let (destination, vm) = destination.join().unwrap();
            Outcome {
                source,
                destination,
                vm,
            }
        });
        check_one_guest(&guest, &outcome);
        let failure = outcome.source.unwrap_err();
        assert!(is_cancelled(&failure.failure));
        if phase != Phase::Setup {
            let failure = outcome.destination.unwrap_err();
            assert!(gave_up_cancelled(&failure), "{}", failure.explain());
        }
        drop(log);
        check_next_attempt(&guest);
    }
}

fn cancelled_at_any_moment() {
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    for step in 0..20 {
        let guest = busy_guest();
        let cancel = Cancel::new();
        let mut parameters = Parameters::default();
        parameters.multifd_channels = NonZeroU8::new(4).unwrap();
        parameters.multifd_compression = Method::Zlib;
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(1 + step * 4));
                cancel.cancel();
            });
            migrate_with(
                &guest,
                &mut acceptor,
                &parameters,
                &mut log,
                &cancel,
                &mut |_| {},
            )
        });
        check_one_guest(&guest, &outcome);
        drop(log);
        if outcome.source.is_err() {
            check_next_attempt(&guest);
        }
    }
}

fn destination_cancelled() {
    let guest = busy_guest();
    let place = Place::tcp();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let address = acceptor.address().clone();
    let cancel = Cancel::new();
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = NonZeroU64::new(1_000_000);
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            destination::receive(
                &mut acceptor,
                offered,
                &mut TestVm::empty(),
                &DestinationSettings::default(),
                &cancel,
                &mut |_| {},
            )
        });
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            cancel.cancel();
        });
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let source = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: &mut log,
            vm: &mut guest.vm(),
        };
        let failure = source::send(&address, source, &parameters, &Cancel::new(), &mut |_| {});
        let failure = failure.unwrap_err();
        assert!(matches!(failure.guest, GuestState::Runs));
        let failure = failure.failure;
        assert!(gave_up_cancelled(&failure), "{}", failure.explain());
        let failure = destination.join().unwrap().unwrap_err();
        assert!(is_cancelled(&failure));
    });
    check_next_attempt(&guest);
}

/// Sends a guest to whoever listens at `address`.
pub fn send_to(address: &Address, guest: &TestGuest, parameters: &Parameters) -> SourceFailure {
    let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
    let source = Guest {
        uuid: [7; 16],
        memory: &guest.memory,
        dirty: &mut log,
        vm: &mut guest.vm(),
    };
    source::send(address, source, parameters, &Cancel::new(), &mut |_| {}).unwrap_err()
}

/// A VM, and what happens before each call to it, which is told its name.
pub struct Before<'a>(
    pub &'a (dyn Fn(&str) -> Result<(), VmError> + Sync),
    pub &'a mut TestVm,
);

impl VmHandle for Before<'_> {
    fn pause(&mut self) -> Result<(), VmError> {
        self.0("pause")?;
        self.1.pause()
    }

    fn resume(&mut self) -> Result<(), VmError> {
        self.0("resume")?;
        self.1.resume()
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        self.0("save")?;
        self.1.save_device_state()
    }

    fn load_device_state(&mut self, state: &[u8]) -> Result<(), VmError> {
        self.0("load")?;
        self.1.load_device_state(state)
    }
}

/// Lets one call fail.
fn fails(what: &str) -> impl Fn(&str) -> Result<(), VmError> + Sync {
    move |call| match call == what {
        true => Err(format!("{what} is broken").into()),
        false => Ok(()),
    }
}

fn vms_that_fail() {
    for (here, there) in [
        ("pause", ""),
        ("save", ""),
        ("", "load"),
        ("", "resume"),
        ("", "state too long"),
        ("", "memory"),
    ] {
        let guest = busy_guest();
        let place = Place::unix();
        let mut acceptor = Acceptor::bind(&place.address).unwrap();
        let outcome = thread::scope(|scope| {
            let destination = scope.spawn(|| {
                let mut settings = DestinationSettings::default();
                if there == "state too long" {
                    settings.device_state_bytes = 1000;
                }
                let mut vm = TestVm::empty();
                let received = destination::receive(
                    &mut acceptor,
                    |offer| match there {
                        "memory" => Err("memory is broken".into()),
                        _ => offered(offer),
                    },
                    &mut Before(&fails(there), &mut vm),
                    &settings,
                    &Cancel::new(),
                    &mut |_| {},
                );
                (received, vm)
            });
            let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
            let source = Guest {
                uuid: [7; 16],
                memory: &guest.memory,
                dirty: &mut log,
                vm: &mut Before(&fails(here), &mut guest.vm()),
            };
            let source = source::send(
                &place.address,
                source,
                &Parameters::default(),
                &Cancel::new(),
                &mut |_| {},
            );
            let (destination, vm) = destination.join().unwrap();
            Outcome {
                source,
                destination,
                vm,
            }
        });
        check_one_guest(&guest, &outcome);
        let said = outcome.source.unwrap_err().failure.explain();
        let wanted = match there {
            "" => format!("{here} is broken"),
            "state too long" => "more than 1000 bytes of device state".to_owned(),
            there => format!("{there} is broken"),
        };
        assert!(said.contains(&wanted), "{said}");
        check_next_attempt(&guest);
    }
}

/// Whoever takes the panic has a guest that runs.
fn a_source_that_panics() {
    let panics = |call: &str| match call {
        "save" => resume_unwind(Box::new("as it should")),
        _ => Ok(()),
    };
    let guest = busy_guest();
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let (vm, settings) = (&mut TestVm::empty(), DestinationSettings::default());
            let none = &mut |_| {};
            destination::receive(&mut acceptor, offered, vm, &settings, &Cancel::new(), none)
        });
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let source = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: &mut log,
            vm: &mut Before(&panics, &mut guest.vm()),
        };
        let none = &mut |_: &_| {};
        let send = || {
            source::send(
                &place.address,
                source,
                &Parameters::default(),
                &Cancel::new(),
                none,
            )
        };
        assert!(catch_unwind(AssertUnwindSafe(send)).is_err());
        assert!(destination.join().unwrap().is_err());
    });
    check_next_attempt(&guest);
}

/// From its start on the guest is the destination's, whatever becomes of connections, and of
/// wishes.
fn nothing_undoes_a_start() {
    let guest = busy_guest();
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let outcome = thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let (mut vm, cancel) = (TestVm::empty(), Cancel::new());
            let before = |call: &str| {
                if call == "resume" {
                    cancel.cancel();
                    // Long enough to be noticed.
                    thread::sleep(Duration::from_millis(200));
                }
                Ok(())
            };
            let starting = &mut Before(&before, &mut vm);
            let (settings, none) = (DestinationSettings::default(), &mut |_| {});
            let received =
                destination::receive(&mut acceptor, offered, starting, &settings, &cancel, none);
            (received, vm)
        });
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let source = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty: &mut log,
            vm: &mut guest.vm(),
        };
        let none = &mut |_: &_| {};
        let source = source::send(
            &place.address,
            source,
            &Parameters::default(),
            &Cancel::new(),
            none,
        );
        let (destination, vm) = destination.join().unwrap();
        Outcome {
            source,
            destination,
            vm,
        }
    });
    assert!(outcome.source.is_ok());
    check_one_guest(&guest, &outcome);
}

fn a_guest_faster_than_the_link() {
    let mut guest = TestGuest::new(8 * MIB);
    guest.write_everywhere(1, 1.0);
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = NonZeroU64::new(20_000_000);
    parameters.downtime_limit = Duration::from_millis(20);
    parameters.timeout = Duration::from_secs(2);
    let outcome = migrate(&guest, &Place::unix(), &parameters);
    check_one_guest(&guest, &outcome);
    let failure = outcome.source.unwrap_err();
    let fault = engine_fault(&failure.failure);
    assert!(fault.is_timeout(), "{fault}");
    let words = fault.to_string();
    assert!(!words.contains("in round 0"), "{words}");
    let rates = words.contains(" sent per second") && words.contains(" written by the guest");
    assert!(rates, "{words}");
    assert_eq!(failure.statistics.downtime, Duration::ZERO);
    // It converges once it may be stopped for long enough.
    parameters.downtime_limit = Duration::from_secs(5);
    parameters.timeout = Duration::from_secs(60);
    let outcome = migrate(&guest, &Place::unix(), &parameters);
    check_one_guest(&guest, &outcome);
    assert!(outcome.source.is_ok());
}

fn other_blocks() {
    for blocks in [
        &[("ram", 4 * MIB), ("rom", MIB)] as &[_],
        &[("rom", 4 * MIB)],
        &[("ram", 8 * MIB)],
        &[],
    ] {
        let guest = busy_guest();
        let place = Place::unix();
        let mut acceptor = Acceptor::bind(&place.address).unwrap();
        thread::scope(|scope| {
            let destination = scope.spawn(|| {
                destination::receive(
                    &mut acceptor,
                    |_| Ok(memory(blocks)),
                    &mut TestVm::empty(),
                    &DestinationSettings::default(),
                    &Cancel::new(),
                    &mut |_| {},
                )
            });
            let failure = send_to(&place.address, &guest, &Parameters::default());
            let said = engine_fault(&failure.failure).to_string();
            assert!(said.starts_with(GAVE_UP), "{said}");
            let failure = destination.join().unwrap().unwrap_err();
            let said = engine_fault(&failure).to_string();
            let words = [
                " RAM blocks, this guest has ",
                "this guest has no block of that name",
                " bytes at the source and ",
            ];
            assert!(words.iter().any(|words| said.contains(words)), "{said}");
        });
        check_next_attempt(&guest);
    }
    // Not a whole number of pages, and a page size that the destination knows only from the source.
    let guest = TestGuest::of(memory(&[("ram", 20 << 10)]));
    let mut parameters = Parameters::default();
    parameters.page_size = multifd_wire::PageSize::MAX;
    let place = Place::unix();
    let _listener = Listener::bind(&place.address).unwrap();
    parameters.timeout = Duration::from_millis(300);
    let failure = send_to(&place.address, &guest, &parameters);
    assert!(matches!(failure.guest, GuestState::Runs));
}

/// A log that forgets everything.
struct Forgetful;

impl DirtyLog for Forgetful {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn fetch(&mut self, _: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn stop(&mut self) {}
}

/// A log that cannot be read.
struct Broken;

impl DirtyLog for Broken {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn fetch(&mut self, _: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        let error: Box<dyn Error + Send + Sync> = "the log is broken".into();
        Err(error.into())
    }

    fn stop(&mut self) {}
}

fn a_log_that_loses_writes() {
    let mut guest = TestGuest::new(16 * MIB);
    guest.write_everywhere(3, 1.0);
    guest.write_everywhere(4, 1.0);
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let mut parameters = Parameters::default();
    parameters.digest = true;
    let mut attempt = |log: &mut dyn DirtyLog| {
        let outcome = migrate_with(
            &guest,
            &mut acceptor,
            &parameters,
            log,
            &Cancel::new(),
            &mut |_| {},
        );
        check_one_guest(&guest, &outcome);
        outcome.source.unwrap_err().failure.explain()
    };
    let said = attempt(&mut Forgetful);
    assert!(
        said.contains("the digests of the memory at both ends differ"),
        "{said}"
    );
    let said = attempt(&mut Broken);
    assert!(said.contains("the log is broken"), "{said}");
    check_next_attempt(&guest);
}

fn nobody_listens() {
    let guest = busy_guest();
    let place = Place::unix();
    let failure = send_to(&place.address, &guest, &Parameters::default());
    assert!(matches!(
        failure.failure.cause,
        Cause::Transport(TransportCause::Dial { .. })
    ));
    assert!(matches!(failure.guest, GuestState::Runs));
    assert_eq!(
        failure.to_string(),
        "the migration failed; the guest runs on here"
    );
    let mut parameters = Parameters::default();
    parameters.multifd_compression = Method::Uadk;
    let failure = send_to(&place.address, &guest, &parameters);
    let said = failure.failure.explain();
    assert!(said.contains("no codec for the uadk method"), "{said}");
    check_next_attempt(&guest);
}

/// A QEMU's main channel up to the end of its RAM section's set-up: one block of 64 KiB, and no
/// multifd flush mark.
const QEMU_SETUP: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\
    \x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\0\x01\0\x04\x06pc.ram\0\0\0\0\0\x01\0\0\
    \0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

/// What is passed over for being of the other kind; the first of it cancels.
fn other_kinds(acceptor: &Acceptor) -> (Cancel, mpsc::Receiver<String>) {
    let cancel = Cancel::new();
    let (passed_over, faults) = mpsc::channel();
    let enough = cancel.clone();
    acceptor.on_note(move |note| {
        if let Note::PassedOver { reason, .. } = note {
            passed_over.send(reason.to_string()).unwrap();
            enough.cancel();
        }
    });
    (cancel, faults)
}

/// Each kind is told from the other, and passed over with a word where only the other is served.
fn qemus_and_engines() {
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let (cancel, faults) = other_kinds(&acceptor);
    let qemu = Stream::connect(&place.address).unwrap();
    (&qemu).write_all(QEMU_SETUP).unwrap();
    assert_eq!(acceptor.peer(&Cancel::new()).unwrap(), Peer::Qemu);
    let outcome = destination::receive(
        &mut acceptor,
        offered,
        &mut TestVm::empty(),
        &DestinationSettings::default(),
        &cancel,
        &mut |_| {},
    );
    assert!(is_cancelled(&outcome.unwrap_err()));
    assert_eq!(faults.try_recv(), Ok(SetupFault::Qemu.to_string()));
    assert!(qemu.peer_has_closed());

    let (cancel, faults) = other_kinds(&acceptor);
    let engine = Stream::connect(&place.address).unwrap();
    (&engine).write_all(&Preamble::OURS.to_bytes()).unwrap();
    assert_eq!(acceptor.peer(&Cancel::new()).unwrap(), Peer::Engine);
    assert!(is_cancelled(
        &acceptor.accept(&cancel).unwrap_err().widened()
    ));
    assert_eq!(faults.try_recv(), Ok(SetupFault::Engine.to_string()));
    assert!(engine.peer_has_closed());
}

fn strangers_among_the_channels() {
    let guest = busy_guest();
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    // Channels of an attempt that is over, one that says nothing, one that is gone.
    let hello = multifd_wire::Hello::new([9; 16], 0);
    let old: Vec<_> = (0..2)
        .map(|_| Stream::connect(&place.address).unwrap())
        .collect();
    old.iter()
        .for_each(|mut stream| stream.write_all(&hello.to_bytes()).unwrap());
    let silent = Stream::connect(&place.address).unwrap();
    // And one that stops in the middle of its word.
    let stalled = Stream::connect(&place.address).unwrap();
    let beginning = &hello.to_bytes()[..10];
    (&stalled).write_all(beginning).unwrap();
    drop(Stream::connect(&place.address).unwrap());
    let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
    let outcome = migrate_with(
        &guest,
        &mut acceptor,
        &Parameters::default(),
        &mut log,
        &Cancel::new(),
        &mut |_| {},
    );
    assert!(
        outcome.source.is_ok(),
        "{}",
        outcome.source.unwrap_err().failure.explain()
    );
    check_one_guest(&guest, &outcome);
    // They have their time to say what they are, and no longer than the acceptor is there.
    drop(acceptor);
    assert!(stalled.peer_has_closed() && silent.peer_has_closed());
}

fn bandwidth_holds() {
    let guest = busy_guest();
    let mut parameters = Parameters::default();
    let rate = 10_000_000;
    parameters.max_bandwidth = NonZeroU64::new(rate);
    parameters.multifd_channels = NonZeroU8::new(4).unwrap();
    let outcome = migrate(&guest, &Place::tcp(), &parameters);
    check_one_guest(&guest, &outcome);
    let statistics = outcome.source.unwrap();
    let pages = statistics.normal * 4096;
    // What is saved up, and what four channels send before they are told to wait, is less than a
    // fifth.
    let least = Duration::from_secs_f64(pages as f64 / rate as f64 * 0.8);
    assert!(statistics.total_time >= least, "{statistics:?}");
    assert!(
        statistics.mbps < rate as f64 * 8.0 / 1e6 * 1.25,
        "{statistics:?}"
    );
}
