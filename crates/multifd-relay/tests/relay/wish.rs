//! A wish to end that meets the switch-over.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::Failure;
use multifd_relay::failure::Cause;
use multifd_relay::relay::{MigrationNote, MigrationReport, Relay, Update, pass_on};
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Cancel, Stream};
use multifd_wire::Method;

use super::{END, PONG, Whole, accept, channel_bytes, config, main_bytes, unix};

const CONFIRMATION: &[u8] = b"\0\x01\0\x04\0\0\0\0";

/// The end of main, with the description of devices.
const DESCRIBED_END: &[u8] = b"\0\x06\0\0\0\x02{}";

/// Nothing comes of it in this time.
const A_WHILE: Duration = Duration::from_millis(400);

/// What is to end the migration once the destination has got this much of main, and whether the
/// channel breaks then.
struct Meeting {
    main: Vec<u8>,
    got: usize,
    wishes: bool,
    breaks: bool,
    /// The relay passes over wishes in postcopy.
    stays: bool,
}

/// Returns how it ended, what the destination got of main in the end, and what the source heard.
fn meet(meeting: &Meeting) -> (Result<MigrationReport, Failure>, Vec<u8>, Vec<u8>, bool) {
    let folder = tempfile::tempdir().unwrap();
    let [listen, connect] = ["relay", "destination"].map(|name| unix(folder.path(), name));
    let mut destination = Acceptor::bind(&connect).unwrap();
    let mut config = config(&connect, Method::None);
    config.stays_in_postcopy = meeting.stays;
    let mut relay = Relay::bind(&listen, config).unwrap();
    let main = &meeting.main;
    let channel = channel_bytes(0, 1, Method::None);
    let cancel = Cancel::new();
    let (tell, go_on) = mpsc::channel();
    thread::scope(|scope| {
        let (listen, channel) = (&listen, &channel);
        let source = scope.spawn(move || {
            let stream = Stream::connect(listen).unwrap();
            let other = Stream::connect(listen).unwrap();
            (&stream).write_all(&main[..meeting.got]).unwrap();
            (&other).write_all(channel).unwrap();
            go_on.recv().unwrap();
            if meeting.breaks {
                // No packet begins so.
                let _ = (&other).write_all(&[0xff; 64]);
                let _ = other.shutdown(Shutdown::Write);
            }
            thread::sleep(A_WHILE / 4);
            // A relay that is to end now looks about ten times a second.
            let deadline = Instant::now() + Duration::from_secs(20);
            let is_whole = meeting.got == main.len();
            while !is_whole && !stream.peer_has_closed() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            // The relay may have closed.
            let _ = (&stream).write_all(&main[meeting.got..]);
            let mut heard = Vec::new();
            // A source closes at the word.
            let most = (PONG.len() + CONFIRMATION.len()) as u64;
            let _ = (&stream).take(most).read_to_end(&mut heard);
            heard
        });
        let (destination, wish) = (&mut destination, cancel.clone());
        let taken = scope.spawn(move || {
            let Whole { incoming, channels } = accept(destination, 1);
            let stream = &*incoming.main;
            (&*stream).write_all(PONG).unwrap();
            let mut got = incoming.main_start.clone();
            thread::scope(|scope| {
                scope.spawn(|| (&channels[0].stream).read_to_end(&mut Vec::new()));
                let mut rest = vec![0; meeting.got - got.len()];
                (&*stream).read_exact(&mut rest).unwrap();
                got.append(&mut rest);
                if meeting.wishes {
                    wish.cancel();
                }
                tell.send(()).unwrap();
                thread::sleep(A_WHILE);
                let mut piece = [0; 4096];
                loop {
                    match stream.read_now(&mut piece) {
                        Ok(0) => break,
                        Ok(count) => got.extend_from_slice(&piece[..count]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            (&*stream).write_all(CONFIRMATION).unwrap();
                            break;
                        }
                        Err(_) => break,
                    }
                }
                let _ = stream.read_some(&mut piece);
                incoming.main.shutdown(Shutdown::Both).unwrap();
                channels[0].stream.shutdown(Shutdown::Both).unwrap();
            });
            got
        });
        let mut is_told = false;
        let mut observe = |update| {
            let words = "the destination may have everything, and may start the guest";
            let is_awaited = |note: &MigrationNote| note.to_string().starts_with(words);
            let note = matches!(&update, Update::Note(note) if is_awaited(note));
            is_told |= note;
        };
        let incoming = relay.accept(&Cancel::new()).unwrap();
        let outcome = pass_on(incoming, relay.config(), &cancel, &mut observe);
        let (got, heard) = (taken.join().unwrap(), source.join().unwrap());
        (outcome, got, heard, is_told)
    })
}

/// The destination starts its guest, whatever is closed then: so its word is waited for, and the
/// source hears it. Otherwise the guest would run at both ends.
#[test]
fn an_end_without_need_waits_for_a_word_that_is_due() {
    let whole = main_bytes(true);
    // A device's state that looks like its end, and hides that of main; and what no QEMU has.
    let (memory, end) = whole.split_at(whole.len() - DESCRIBED_END.len());
    let device = b"\x04\0\0\0\x03\x03dev\0\0\0\0\0\0\0\x01\x7e\0\0\0\x03";
    let hides = b"\x04\0\0\0\x09\x03abc\0\0\0\0\0\0\0\x01 state \x7e\0\0\0\x03";
    let hidden = [memory, device, hides, end].concat();
    let unknown = [memory, b"\x55\0\0\0\x02{}", end].concat();
    for (main, wishes, breaks) in [
        (&whole, true, false),
        (&whole, false, true),
        (&hidden, true, false),
        (&unknown, true, false),
    ] {
        let meeting = Meeting {
            main: main.clone(),
            got: main.len(),
            wishes,
            breaks,
            stays: false,
        };
        let (outcome, got, heard, is_told) = meet(&meeting);
        let report = outcome.unwrap_or_else(|failure| panic!("{}", failure.explain()));
        assert_eq!(report.confirmed, Some(true));
        assert_eq!(got, *main);
        assert_eq!(heard, [PONG, CONFIRMATION].concat());
        assert!(is_told);
    }
}

/// The guest may run there by now, and a part of it is only at the source.
#[test]
fn a_wish_in_postcopy_cuts_off_no_guest_that_has_just_begun() {
    let whole = main_bytes(true);
    let listen = b"\x08\0\x04\0\0".as_slice();
    let main = [&whole[..whole.len() - END.len()], listen].concat();
    for stays in [false, true] {
        let meeting = Meeting {
            main: main.clone(),
            got: main.len(),
            wishes: true,
            breaks: false,
            stays,
        };
        let (outcome, got, heard, is_told) = meet(&meeting);
        let report = outcome.unwrap_or_else(|failure| panic!("{}", failure.explain()));
        assert_eq!(report.confirmed, Some(true));
        assert_eq!(got, main);
        assert_eq!(heard, [PONG, CONFIRMATION].concat());
        assert_eq!(is_told, !stays, "who passes over a wish waits for nothing");
    }
}

/// Before that no destination can have the guest, and gets nothing more that would make it.
#[test]
fn a_wish_before_the_last_of_it_ends_the_migration() {
    let main = main_bytes(true);
    let meeting = Meeting {
        main: main.clone(),
        got: main.len() - END.len(),
        wishes: true,
        breaks: false,
        stays: false,
    };
    let (outcome, got, heard, is_told) = meet(&meeting);
    let failure = outcome.unwrap_err();
    let cause = &failure.cause;
    assert!(
        matches!(cause, Cause::Transport(TransportCause::Cancelled)),
        "{}",
        failure.explain()
    );
    assert!(got.len() < main.len() && main.starts_with(&got));
    assert_eq!(heard, PONG);
    assert!(!is_told);
}

/// A source that waits for no word has given its guest up when it has sent everything, and relays
/// may still hold the most of it.
#[test]
fn a_wish_behind_a_source_that_has_gone_leaves_nothing_undelivered() {
    let folder = tempfile::tempdir().unwrap();
    let [listen, connect] = ["relay", "destination"].map(|name| unix(folder.path(), name));
    let mut destination = Acceptor::bind(&connect).unwrap();
    let mut relay = Relay::bind(&listen, config(&connect, Method::None)).unwrap();
    let (main, channel) = (main_bytes(false), channel_bytes(0, 1, Method::None));
    let cancel = Cancel::new();
    thread::scope(|scope| {
        let (main, channel, listen) = (&main, &channel, &listen);
        let (tell, is_done) = mpsc::channel();
        scope.spawn(move || {
            let stream = Stream::connect(listen).unwrap();
            let other = Stream::connect(listen).unwrap();
            (&stream).write_all(main).unwrap();
            (&other).write_all(channel).unwrap();
            drop((stream, other));
            tell.send(()).unwrap();
        });
        let (destination, wish) = (&mut destination, cancel.clone());
        let taken = scope.spawn(move || {
            let Whole { incoming, channels } = accept(destination, 1);
            is_done.recv().unwrap();
            thread::sleep(A_WHILE / 4);
            wish.cancel();
            // The channel is full until then, and main is held.
            thread::sleep(A_WHILE);
            let mut pages = channels[0].hello.to_bytes().to_vec();
            let _ = (&channels[0].stream).read_to_end(&mut pages);
            let mut got = incoming.main_start.clone();
            let _ = (&*incoming.main).read_to_end(&mut got);
            (got, pages)
        });
        let incoming = relay.accept(&Cancel::new()).unwrap();
        let outcome = pass_on(incoming, relay.config(), &cancel, &mut |_| {});
        let (got, pages) = taken.join().unwrap();
        let report = outcome.unwrap_or_else(|failure| panic!("{}", failure.explain()));
        assert_eq!(report.confirmed, None);
        assert!(got == *main && pages == *channel);
    });
}
