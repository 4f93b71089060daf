//! Dirty logs that panic, and the guest that goes on before its log is put away.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::thread;

use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::{DirtyBitmap, DirtyLog, DirtyLogError};
use multifd_engine::source::{self, Guest, GuestState, SourceFailure};
use multifd_engine::{Failure, Parameters, Statistics, VmHandle};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;

use crate::scenarios::{Before, busy_guest, check_next_attempt};
use testkit::engine::{Place, TestGuest, TestVm, offered};

/// A log that sees nothing, and says before each call what it is.
struct Told<F>(F);

impl<F: FnMut(&'static str) + Send> DirtyLog for Told<F> {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        (self.0)("start");
        Ok(())
    }

    fn fetch(&mut self, _: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        (self.0)("fetch");
        Ok(())
    }

    fn stop(&mut self) {
        (self.0)("stop");
    }
}

type Sent = Result<Statistics, SourceFailure>;

/// Sends the guest to a destination whose VM fails where `there` says; `None` if the source has
/// panicked.
fn send(
    guest: &TestGuest,
    dirty: &mut dyn DirtyLog,
    vm: &mut dyn VmHandle,
    there: &str,
) -> (Option<Sent>, Result<(), Failure>) {
    let _ = guest;
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let fails = |call: &str| match call == there {
                true => Err("as it should".into()),
                false => Ok(()),
            };
            let (settings, none) = (DestinationSettings::default(), &mut |_| {});
            let mut vm = TestVm::empty();
            let vm = &mut Before(&fails, &mut vm);
            destination::receive(&mut acceptor, offered, vm, &settings, &Cancel::new(), none)
                .map(drop)
        });
        let source = Guest {
            uuid: [7; 16],
            memory: &guest.memory,
            dirty,
            vm,
        };
        let none = &mut |_: &_| {};
        let (parameters, cancel) = (Parameters::default(), Cancel::new());
        let send = || source::send(&place.address, source, &parameters, &cancel, none);
        let sent = catch_unwind(AssertUnwindSafe(send)).ok();
        (sent, destination.join().unwrap())
    })
}

pub fn that_panic() {
    // The second fetch is the one after the guest was stopped.
    for (call, number) in [("start", 1), ("fetch", 1), ("fetch", 2), ("stop", 1)] {
        let guest = busy_guest();
        let mut calls = 0;
        let mut log = Told(|called| {
            calls += u32::from(called == call);
            if called == call && calls == number {
                resume_unwind(Box::new("as it should"));
            }
        });
        // Otherwise it would be away when its log is put away.
        let there = if call == "stop" { "load" } else { "" };
        let (sent, received) = send(&guest, &mut log, &mut guest.vm(), there);
        assert!(received.is_err());
        match sent {
            // Where the guest is, is told; the log no longer matters.
            Some(sent) => {
                assert_eq!(call, "stop");
                assert!(matches!(sent.unwrap_err().guest, GuestState::Runs));
            }
            None => assert_ne!(call, "stop"),
        }
        assert!(guest.gate.is_open(), "{call} {number}");
        check_next_attempt(&guest);
    }
    // One that is away is away.
    let guest = busy_guest();
    let mut log = Told(|called| {
        if called == "stop" {
            resume_unwind(Box::new("as it should"));
        }
    });
    let idle = TestGuest::of(testkit::engine::memory(&[("ram", testkit::engine::MIB)]));
    let (sent, received) = send(&idle, &mut log, &mut idle.vm(), "");
    assert!(sent.unwrap().is_ok() && received.is_ok());
    assert!(!idle.gate.is_open() && guest.gate.is_open());
}

/// To put a log away takes time, in which the guest would stand still.
pub fn the_guest_goes_on_first() {
    let guest = busy_guest();
    let calls = Mutex::new(Vec::new());
    let note = |call: &str| {
        calls.lock().unwrap().push(call.to_owned());
        Ok(())
    };
    let mut log = Told(|call| note(call).unwrap_or_default());
    let mut vm = guest.vm();
    let (sent, _) = send(&guest, &mut log, &mut Before(&note, &mut vm), "load");
    assert!(sent.unwrap().is_err());
    let calls = calls.into_inner().unwrap();
    let wanted = ["start", "fetch", "pause", "save", "fetch", "resume", "stop"];
    assert_eq!(calls, wanted);
    check_next_attempt(&guest);
}

/// Even that is told, and the log is put away.
pub fn a_guest_that_cannot_go_on() {
    let guest = busy_guest();
    let stopped = Mutex::new(false);
    let panics = |call: &str| match call {
        "resume" => resume_unwind(Box::new("as it should")),
        _ => Ok(()),
    };
    let mut log = Told(|call| *stopped.lock().unwrap() = call == "stop");
    let mut vm = guest.vm();
    let (sent, _) = send(&guest, &mut log, &mut Before(&panics, &mut vm), "load");
    let failure = sent.unwrap().unwrap_err();
    assert!(matches!(failure.guest, GuestState::Stopped(_)));
    let said = failure.to_string();
    assert!(said.contains("could not be resumed"), "{said}");
    assert!(*stopped.lock().unwrap());
}
