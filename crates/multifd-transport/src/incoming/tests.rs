//! The acceptor over real sockets of both kinds.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use multifd_wire::Hello;

use super::*;

/// A main channel up to the end of its RAM section's set-up, of one block and with a multifd flush
/// mark.
const MAIN: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\
    \x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\x01\0\0\x04\x06pc.ram\0\0\0\0\x01\0\0\0\
    \0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

/// A ping: a main channel may have any number of them in its set-up.
const PING: &[u8] = b"\x08\0\x02\0\x04\0\0\0\x01";

/// Time limit for something that has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is not to come does not come within this time.
const A_WHILE: Duration = Duration::from_millis(100);

/// An acceptor for each kind of address.
fn acceptors(bounds: Bounds) -> (tempfile::TempDir, [Acceptor; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let addresses = [
        Address::Unix(folder.path().join("s")),
        "tcp:127.0.0.1:0".parse().unwrap(),
    ];
    let acceptors = addresses
        .map(|address| Acceptor::within(Listener::bind(&address).unwrap(), bounds).unwrap());
    (folder, acceptors)
}

/// Dials and says `bytes`.
fn dial(address: &Address, bytes: &[u8]) -> Stream {
    let stream = Stream::connect(address).unwrap();
    (&stream).write_all(bytes).unwrap();
    stream
}

fn hello(channel: u8, uuid: u8) -> [u8; Hello::LEN] {
    Hello::new([uuid; 16], channel).to_bytes()
}

/// `MAIN` of a source with `validate-uuid`.
fn main_stating(uuid: u8) -> Vec<u8> {
    let (head, ram) = MAIN.split_at(17);
    let name = b"\x05\x12configuration/uuid\0\0\0\x01";
    [head, name, &[uuid; 16], ram].concat()
}

/// `MAIN` of a source that may switch to postcopy.
fn main_of_postcopy() -> Vec<u8> {
    let (head, ram) = MAIN.split_at(17);
    [head, b"\x08\0\x03\0\0", ram].concat()
}

fn accept(acceptor: &mut Acceptor) -> Incoming {
    acceptor.accept(&Cancel::new()).unwrap()
}

/// The next channel: its UUID's first byte, and its id.
fn next_channel(incoming: &Incoming) -> (u8, u8) {
    match incoming.channels.next_within(PATIENCE) {
        Some(Arrival::Channel(channel)) => (channel.hello.uuid[0], channel.hello.channel),
        other => panic!("{other:?} instead of a channel"),
    }
}

/// The reports, as text.
fn notes(acceptor: &Acceptor) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    acceptor.on_note(move |note| {
        // A test that has seen enough hears no more.
        let _ = tell.send(note.to_string());
    });
    told
}

/// Waits until the other end has closed.
fn wait_for_close(stream: &Stream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match (&mut &*stream).read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?} instead of the end"),
    }
}

#[test]
fn channels_come_in_any_order_and_at_any_time() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let _two = dial(&address, &hello(2, 7));
        let (first, rest) = MAIN.split_at(MAIN.len() - 10);
        let main = dial(&address, first);
        let _zero = dial(&address, &hello(0, 7));
        (&main).write_all(rest).unwrap();
        let incoming = accept(&mut acceptor);
        assert_eq!(incoming.main_start, MAIN);
        assert!(incoming.has_channels && !incoming.may_be_postcopy && !incoming.is_recovery);
        let found = [(); 2].map(|()| next_channel(&incoming));
        assert_eq!(BTreeSet::from(found), BTreeSet::from([(7, 0), (7, 2)]));
        // It says what it is in two pieces, and late.
        assert!(incoming.channels.next_within(A_WHILE).is_none());
        let one = dial(&address, &hello(1, 7)[..30]);
        assert!(incoming.channels.next_within(A_WHILE).is_none());
        (&one).write_all(&hello(1, 7)[30..]).unwrap();
        assert_eq!(next_channel(&incoming), (7, 1));
    }
}

#[test]
fn a_source_that_gives_up_in_its_set_up_leaves_nothing_behind() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let told = notes(&acceptor);
        drop((dial(&address, &MAIN[..20]), dial(&address, &hello(0, 1))));
        let said = told.recv_timeout(PATIENCE).unwrap();
        assert!(
            said.contains("the source closed it in its set-up"),
            "{said}"
        );
        let _next = (dial(&address, MAIN), dial(&address, &hello(0, 2)));
        let incoming = accept(&mut acceptor);
        assert_eq!(next_channel(&incoming), (2, 0));
    }
}

#[test]
fn migrations_at_once_are_kept_apart_by_what_they_state() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let early = dial(&address, &hello(0, 2));
        let mains = [1, 2].map(|uuid| dial(&address, &main_stating(uuid)));
        let late = [(0, 1), (1, 1), (1, 2)].map(|(id, uuid)| dial(&address, &hello(id, uuid)));
        for _ in &mains {
            let incoming = accept(&mut acceptor);
            let found = [(); 2].map(|()| next_channel(&incoming));
            let (uuid, _) = found[0];
            assert_eq!(
                BTreeSet::from(found),
                BTreeSet::from([(uuid, 0), (uuid, 1)])
            );
        }
        drop((early, late));
    }
}

#[test]
fn two_that_cannot_be_told_apart_are_both_refused() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let _mains = [(); 2].map(|()| dial(&address, MAIN));
        let incoming = [(); 2].map(|()| accept(&mut acceptor));
        let channel = dial(&address, &hello(0, 0));
        for incoming in &incoming {
            let arrival = incoming.channels.next_within(PATIENCE);
            let refused = Some(SetupFault::Alike { uuid: [0; 16] });
            let found = match arrival {
                Some(Arrival::Refused(fault)) => Some(fault),
                _ => None,
            };
            assert_eq!(found, refused);
        }
        wait_for_close(&channel);
    }
}

#[test]
fn a_place_is_free_when_its_migration_is_over() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let _first = (dial(&address, MAIN), dial(&address, &hello(0, 0)));
        let incoming = accept(&mut acceptor);
        assert_eq!(next_channel(&incoming), (0, 0));
        drop(incoming);
        let _second = (dial(&address, MAIN), dial(&address, &hello(0, 0)));
        let incoming = accept(&mut acceptor);
        assert_eq!(next_channel(&incoming), (0, 0));
        // And without the end of the one before, once that has all its channels.
        incoming.ticket.settle();
        let _third = (dial(&address, MAIN), dial(&address, &hello(0, 0)));
        let third = accept(&mut acceptor);
        assert_eq!(next_channel(&third), (0, 0));
        assert!(incoming.channels.next_within(A_WHILE).is_none());
    }
}

#[test]
fn strangers_of_all_kinds_are_told_of_and_spoil_nothing() {
    let mut not_a_hello = hello(0, 0);
    not_a_hello[7] = 9;
    let strangers: &[(&[u8], &str)] = &[
        (b"GET / HTTP/1.0\r\n\r\n", "it begins with 0x47455420"),
        (b"\x16\x03\x01\x02", "TLS"),
        (&not_a_hello, "its hello is malformed"),
        (b"QEVM\0\0\0\x07", "a migration that had not begun"),
        (b"\x08\0", "it did not say what it is within"),
        (b"", "it did not say what it is within"),
    ];
    let bounds = Bounds {
        hello: Duration::from_millis(500),
        ..Bounds::default()
    };
    let (_folder, acceptors) = acceptors(bounds);
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let told = notes(&acceptor);
        let mut open = Vec::new();
        let mut stranger = |when: usize| {
            let (bytes, _) = strangers[when % strangers.len()];
            open.push(dial(&address, bytes));
            drop(dial(&address, b"hi"));
            drop(dial(&address, b""));
        };
        // Before, among and behind the connections of a migration.
        (0..2).for_each(&mut stranger);
        let main = dial(&address, &MAIN[..20]);
        (2..4).for_each(&mut stranger);
        let _channels = [0, 1].map(|id| {
            stranger(4 + usize::from(id));
            dial(&address, &hello(id, 0))
        });
        (&main).write_all(&MAIN[20..]).unwrap();
        let incoming = accept(&mut acceptor);
        let found = [(); 2].map(|()| next_channel(&incoming));
        assert_eq!(BTreeSet::from(found), BTreeSet::from([(0, 0), (0, 1)]));
        open.iter().for_each(wait_for_close);
        assert!(
            !main.peer_has_closed(),
            "the migration has its main channel"
        );
        drop((incoming, acceptor));
        let told: Vec<String> = told.iter().collect();
        for (_, words) in strangers {
            assert!(
                told.iter().any(|note| note.contains(words)),
                "{words}: {told:#?}"
            );
        }
        assert_eq!(told.len(), strangers.len(), "{told:#?}");
    }
}

#[test]
fn more_silent_ones_than_there_is_room_for_cost_the_oldest_its_place() {
    let bounds = Bounds {
        waiting: 20,
        ..Bounds::default()
    };
    let (_folder, acceptors) = acceptors(bounds);
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let silent: Vec<_> = (0..60).map(|_| dial(&address, b"")).collect();
        silent[..40].iter().for_each(wait_for_close);
        let _next = (dial(&address, MAIN), dial(&address, &hello(0, 1)));
        let incoming = accept(&mut acceptor);
        assert_eq!(next_channel(&incoming), (1, 0));
        // Channels that have no main channel are bounded too.
        let orphans: Vec<_> = (0..60).map(|id| dial(&address, &hello(id, 9))).collect();
        orphans[..40].iter().for_each(wait_for_close);
        let _late = dial(&address, &hello(1, 1));
        assert_eq!(next_channel(&incoming), (1, 1));
    }
}

#[test]
fn a_set_up_that_stalls_or_never_ends_is_given_up_and_holds_nobody_up() {
    let bounds = Bounds {
        setup_silence: Duration::from_millis(300),
        setup: Duration::from_millis(900),
        setups: 20,
        ..Bounds::default()
    };
    let (_folder, acceptors) = acceptors(bounds);
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let told = notes(&acceptor);
        let stalled = dial(&address, &MAIN[..20]);
        let _next = (dial(&address, MAIN), dial(&address, &hello(0, 1)));
        let incoming = accept(&mut acceptor);
        assert_eq!(next_channel(&incoming), (1, 0));
        wait_for_close(&stalled);
        let said = told.recv_timeout(PATIENCE).unwrap();
        assert!(said.contains("nothing came for"), "{said}");

        let slow = dial(&address, &MAIN[..17]);
        while (&slow).write_all(PING).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
        let said = told.recv_timeout(PATIENCE).unwrap();
        assert!(said.contains("its set-up took more than"), "{said}");

        let many: Vec<_> = (0..60).map(|_| dial(&address, &MAIN[..20])).collect();
        many[..40].iter().for_each(wait_for_close);
    }
}

/// The longest set-up is to blame, however it is cut, and not the one that says its next byte.
#[test]
fn set_ups_take_no_more_memory_than_is_allowed() {
    let bounds = Bounds {
        setup_bytes: 1 << 20,
        ..Bounds::default()
    };
    let (_folder, acceptors) = acceptors(bounds);
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let told = notes(&acceptor);
        let honest = dial(&address, &MAIN[..17]);
        let endless = dial(&address, &MAIN[..17]);
        let pings = PING.repeat(64 << 10);
        let mut sent = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                while (&endless).write_all(&pings).is_ok() {
                    sent += pings.len();
                }
            });
            while told.try_recv().is_err() {
                (&honest).write_all(PING).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(sent < 64 << 20, "{sent} bytes were taken");
        (&honest).write_all(&MAIN[17..]).unwrap();
        assert!(accept(&mut acceptor).main_start.ends_with(&MAIN[17..]));
    }
}

#[test]
fn a_few_notes_are_told_in_a_second_and_the_others_counted() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for acceptor in acceptors {
        let told = notes(&acceptor);
        let count = 100;
        for _ in 0..count {
            wait_for_close(&dial(acceptor.address(), b"HELO"));
        }
        let (mut single, mut further) = (0, 0);
        while single + further < count {
            let note = told.recv_timeout(PATIENCE).unwrap();
            match note.strip_suffix(" more connections") {
                Some(more) => {
                    let more = more.rsplit(' ').next().unwrap();
                    further += more.parse::<usize>().unwrap();
                }
                None => single += 1,
            }
        }
        assert_eq!(single + further, count);
        assert!(further > 0, "all were told of");
    }
}

#[test]
fn postcopys_own_connection_goes_to_its_migration() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        // What it says first is no mark.
        for said in [b"".as_slice(), b"\0\0\0\0\0\x30\0\x08"] {
            let _main = dial(&address, &main_of_postcopy());
            let incoming = accept(&mut acceptor);
            assert!(incoming.may_be_postcopy);
            let _preempt = dial(&address, said);
            let arrival = incoming.channels.next_within(PATIENCE);
            assert!(matches!(arrival, Some(Arrival::Preempt(_))), "{arrival:?}");
            // There is one of them only.
            let stranger = dial(&address, b"HELO");
            wait_for_close(&stranger);
        }
    }
}

/// It has no channels: those of a migration that begins at the same time are not taken for its own.
#[test]
fn a_postcopy_migration_that_goes_on_is_told_of_and_takes_no_channels() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let _broken = dial(&address, b"\x08\0\x01\0\0");
        let recovery = accept(&mut acceptor);
        assert!(recovery.is_recovery && recovery.main_start.is_empty());
        // Of an old machine type, whose set-up does not tell that there are channels.
        let old: Vec<u8> = {
            let flush = b"\0\0\0\0\0\0\x02\0";
            let place = MAIN.windows(8).position(|part| part == flush).unwrap();
            [&MAIN[..place], &MAIN[place + 8..]].concat()
        };
        let _next = (dial(&address, &old), dial(&address, &hello(0, 0)));
        let incoming = accept(&mut acceptor);
        assert!(!incoming.has_channels);
        assert_eq!(next_channel(&incoming), (0, 0));
        assert!(recovery.channels.next_within(A_WHILE).is_none());
    }
}

#[test]
fn no_migration_begins_once_new_ones_are_refused() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let _main = dial(&address, MAIN);
        let incoming = accept(&mut acceptor);
        let waiting = dial(&address, MAIN);
        assert_eq!(acceptor.peer(&Cancel::new()).unwrap(), Peer::Qemu);
        let in_setup = dial(&address, &MAIN[..30]);
        // It is in its set-up once a connection behind it was heard.
        wait_for_close(&dial(&address, b"HELO"));
        acceptor.refuse_new();
        wait_for_close(&waiting);
        wait_for_close(&in_setup);
        wait_for_close(&dial(&address, MAIN));
        let engine = [&ENGINE_MAGIC.to_be_bytes()[..], &[0, 1, 0, 1]].concat();
        wait_for_close(&dial(&address, &engine));
        let _late = dial(&address, &hello(0, 0));
        assert_eq!(next_channel(&incoming), (0, 0), "the one under way goes on");
    }
}

#[test]
fn a_dropped_acceptor_gives_back_its_socket_and_closes_what_waits() {
    let (_folder, acceptors) = acceptors(Bounds::default());
    for mut acceptor in acceptors {
        let address = acceptor.address().clone();
        let said: [&[u8]; 4] = [b"", MAIN, &MAIN[..20], &hello(0, 9)];
        let waiting = said.map(|said| dial(&address, said));
        assert_eq!(acceptor.peer(&Cancel::new()).unwrap(), Peer::Qemu);
        drop(acceptor);
        waiting.iter().for_each(wait_for_close);
        let mut next = Acceptor::bind(&address).unwrap();
        let _main = dial(&address, MAIN);
        accept(&mut next);
    }
}

/// Waiting for channels ends with the thread that brings them.
#[test]
fn an_engine_waits_for_no_dead_desk() {
    let (_folder, [acceptor, _]) = acceptors(Bounds::default());
    acceptor.on_note(|_| panic!("the listener of notes panics"));
    wait_for_close(&dial(acceptor.address(), b"HELO"));
    let (inbox, ticket) = acceptor.expect_channels([1; 16]);
    assert!(ticket.is_none() && inbox.next_within(Duration::ZERO).is_none());
}

#[test]
fn a_main_channel_that_was_brought_says_its_set_up_first() {
    let bounds = Bounds {
        setup_silence: Duration::from_millis(300),
        setups: 3,
        ..Bounds::default()
    };
    let (_folder, [_, mut acceptor]) = acceptors(bounds);
    let (door, told) = (acceptor.door(), notes(&acceptor));
    let over = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let inbox = Inbox::default();
    let bring = |is_recovery: bool| {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let (near, far) = (Stream::from(near), Stream::from(far));
        let over = Arc::clone(&over);
        let count = move || {
            over.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        };
        let ticket = Ticket::new(|| {}, count);
        let peer = "a relay".to_owned();
        let mut incoming = Incoming::new(Arc::new(far), inbox.clone(), peer, ticket);
        incoming.is_recovery = is_recovery;
        door.set_up(incoming);
        near
    };
    let ended = || over.load(std::sync::atomic::Ordering::SeqCst);
    // Silent ones and what is no main channel are given up.
    let silent = [bring(false), bring(true)];
    let other = bring(false);
    (&other).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    wait_for_close(&other);
    let said = told.recv_timeout(PATIENCE).unwrap();
    assert!(said.contains("magic"), "{said}");
    silent.iter().for_each(wait_for_close);
    let said = told.recv_timeout(PATIENCE).unwrap();
    assert!(said.contains("nothing came for"), "{said}");
    while ended() < 3 {
        thread::sleep(Duration::from_millis(1));
    }
    // A crowd gives way.
    let crowd = [bring(false), bring(false), bring(false)];
    let good = bring(false);
    wait_for_close(&crowd[0]);
    // The stream says more than its bringer did, and channels wait for it.
    let (_far, near) = std::os::unix::net::UnixStream::pair().unwrap();
    let (hello, stream) = (Hello::new([1; 16], 5), Stream::from(near));
    inbox.put(Arrival::Channel(IncomingChannel { hello, stream }));
    (&good).write_all(&main_of_postcopy()).unwrap();
    let incoming = accept(&mut acceptor);
    assert_eq!(incoming.main_start, main_of_postcopy());
    assert!(incoming.has_channels && incoming.may_be_postcopy);
    assert_eq!(next_channel(&incoming), (1, 5));
    // What goes on after a break begins with its first bytes.
    let again = bring(true);
    (&again).write_all(PING).unwrap();
    let incoming = accept(&mut acceptor);
    assert!(incoming.is_recovery);
    assert_eq!(incoming.main_start, PING);
    // And none begins when none is to.
    acceptor.refuse_new();
    wait_for_close(&bring(false));
    // One that waits keeps nothing alive.
    let waiting = bring(false);
    drop((acceptor, door));
    wait_for_close(&waiting);
}
