//! Links that are cut after some number of bytes.

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use multifd_engine::Parameters;
use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::dirty::PagemapLog;
use multifd_engine::source::{self, Guest, GuestState};
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Address, Cancel, Listener, Stream};

use crate::scenarios::{busy_guest, check_next_attempt, check_one_guest};
use testkit::engine::{Outcome, Place, TestGuest, TestVm, offered};

/// Passes connections on to `to` and cuts all of them once this many bytes have come through, in
/// both directions together. Ends when `over` is set.
fn cutting_relay(listener: &Listener, to: &Address, bytes: u64, over: &AtomicBool) {
    let passed = AtomicU64::new(0);
    let cut = AtomicBool::new(false);
    thread::scope(|scope| {
        while !over.load(Ordering::Relaxed) {
            let Some(near) = listener.try_accept().unwrap() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            let (passed, cut) = (&passed, &cut);
            scope.spawn(move || {
                let Ok(far) = Stream::connect(to) else { return };
                let (near, far) = (&near, &far);
                thread::scope(|scope| {
                    for (from, to) in [(near, far), (far, near)] {
                        scope.spawn(move || {
                            let _ = from.set_read_timeout(Some(Duration::from_millis(5)));
                            let mut piece = [0; 4096];
                            while !over.load(Ordering::Relaxed) && !cut.load(Ordering::Relaxed) {
                                let count = match from.read_some(&mut piece) {
                                    Ok(0) => break,
                                    Ok(count) => count,
                                    Err(_) => continue,
                                };
                                let before = passed.fetch_add(count as u64, Ordering::Relaxed);
                                let room = bytes.saturating_sub(before).min(count as u64);
                                if (&mut &*to).write_all(&piece[..room as usize]).is_err() {
                                    break;
                                }
                                if room < count as u64 {
                                    cut.store(true, Ordering::Relaxed);
                                }
                            }
                            let _ = from.shutdown(Shutdown::Both);
                            let _ = to.shutdown(Shutdown::Both);
                        });
                    }
                });
            });
        }
    });
}

/// A migration through a relay that cuts it after this many bytes.
fn migrate_through_cut(guest: &TestGuest, bytes: u64) -> Outcome {
    let (near, far) = (Place::unix(), Place::unix());
    let listener = Listener::bind(&near.address).unwrap();
    let mut acceptor = Acceptor::bind(&far.address).unwrap();
    let over = AtomicBool::new(false);
    let cancel = Cancel::new();
    thread::scope(|scope| {
        scope.spawn(|| cutting_relay(&listener, &far.address, bytes, &over));
        let destination = scope.spawn(|| {
            let mut vm = TestVm::empty();
            let received = destination::receive(
                &mut acceptor,
                offered,
                &mut vm,
                &DestinationSettings::default(),
                &cancel,
                &mut |_| {},
            );
            (received, vm)
        });
        let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
        let mut vm = guest.vm();
        let source = source::send(
            &near.address,
            Guest {
                uuid: [7; 16],
                memory: &guest.memory,
                dirty: &mut log,
                vm: &mut vm,
            },
            &Parameters::default(),
            &Cancel::new(),
            &mut |_| {},
        );
        if source.is_err() {
            // It may never have heard of the source.
            thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        }
        let (destination, vm) = destination.join().unwrap();
        over.store(true, Ordering::Relaxed);
        Outcome {
            source,
            destination,
            vm,
        }
    })
}

pub fn links() {
    let guest = busy_guest();
    let whole = {
        let guest = busy_guest();
        let outcome = migrate_through_cut(&guest, u64::MAX);
        check_one_guest(&guest, &outcome);
        outcome.source.unwrap().transferred
    };
    let (mut failed, mut unknown) = (0, 0);
    let inside = (1..8).map(|part| whole * part / 8);
    let opening = [0, 5, 20, 60, 100, 200, 300];
    // The last bytes are the devices' state, 240 KB, and what is said about the end.
    let closing = (0..24).map(|step| whole - 20 + step * 4);
    for bytes in opening.into_iter().chain(inside).chain(closing) {
        // One that was given away stands still: then another one is taken.
        let fresh;
        let guest = match guest.gate.is_open() {
            true => &guest,
            false => {
                fresh = busy_guest();
                &fresh
            }
        };
        let outcome = migrate_through_cut(guest, bytes);
        check_one_guest(guest, &outcome);
        match &outcome.source {
            Err(failure) if matches!(failure.guest, GuestState::Unknown) => unknown += 1,
            Err(_) => failed += 1,
            Ok(_) => {}
        }
    }
    assert!(failed >= 14, "{failed} failed, {unknown} unknown");
    if guest.gate.is_open() {
        check_next_attempt(&guest);
    }
}
