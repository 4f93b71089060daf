//! Two relays with a trunk between them: what arrives, what is refused, and what both ends say.

mod support;

/// Cases of one kind each.
mod trunk {
    mod crowds;
    mod encrypted;
    mod limits;
    mod strands;
    mod verified;
    mod word;
}

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::leg::{LegAddress, Protocol};
use multifd_relay::trunk::{
    Answer, AnswerReceiver, Compression, Connection, Digest, Frame, FrameReader, FrameWriter,
    MAX_BODY_LEN, Name, Offers, Preface, RefusalCode, Versions,
};
use multifd_transport::{Address, Stream};
use multifd_wire::Hello;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use support::made::{Main, Shape, long, page_record, short};
use support::peers::{Destination, Role, SHUT_FAILED, SHUT_WELL, Source, a_while, dial, write};
use support::{Ended, Migration, Multifd};

/// A relay, with a trunk on one side.
fn relay(listen: &str, connect: &str, more: &[&str]) -> Multifd {
    let args = ["relay", "--json", "--listen", listen, "--connect", connect];
    Multifd::start([&args, more].concat())
}

/// Two relays, for one migration.
struct Pair {
    near: Multifd,
    far: Multifd,
    address: Address,
}

impl Pair {
    /// With the trunk at `trunk`, which is `unix` or `tcp`.
    fn new(folder: &Path, trunk: &str, destination: &Address, more: &[&str]) -> Self {
        let listen = match trunk {
            "unix" => format!("trunk+unix:{}", folder.join("trunk").display()),
            _ => "trunk+tcp:127.0.0.1:0".to_owned(),
        };
        let mut far = relay(&listen, &destination.to_string(), &["--once"]);
        let connect = format!("trunk+{}", trunk_of(&mut far));
        let mut near = relay("tcp:127.0.0.1:0", &connect, &[&["--once"], more].concat());
        let address = near.address();
        Self { near, far, address }
    }
}

/// Where a relay listens for a trunk.
fn trunk_of(relay: &mut Multifd) -> Address {
    let leg: LegAddress = (**relay).address();
    assert_eq!(leg.protocol, Protocol::Trunk);
    leg.address
}

fn report(ended: &Ended) -> Value {
    let text = ended.stdout.trim();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn says(ended: &Ended, words: &str) {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(words), "{words:?}: {ended:?}");
}

/// All of a migration arrives, and both ends close.
fn arrives(destination: &Destination, source: &Source, migration: &Migration) {
    drop(destination.wait("all of it", |seen| seen.has_all(migration)));
    if migration.return_path {
        destination.say(Role::Main, &SHUT_WELL);
        let heard = source.hears(&SHUT_WELL);
        assert!(heard.ends_with(&SHUT_WELL), "{heard:?}");
    }
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
}

fn both(make: fn(&Shape<'_>) -> Migration) -> [Migration; 2] {
    [false, true].map(|return_path| {
        make(&Shape {
            return_path,
            ..Shape::default()
        })
    })
}

#[test]
fn a_guest_passes_through_a_trunk() {
    for trunk in ["unix", "tcp"] {
        for make in [short, long] {
            for migration in both(make) {
                let folder = tempfile::tempdir().expect("a folder");
                let destination = Destination::new(folder.path(), 2);
                let pair = Pair::new(folder.path(), trunk, &destination.address, &[]);
                let source = Source::begin(&pair.address, &migration);
                arrives(&destination, &source, &migration);
                let confirmed = match migration.return_path {
                    true => Value::Bool(true),
                    false => Value::Null,
                };
                for ended in [pair.near.end(), pair.far.end()] {
                    assert!(ended.status.success(), "{ended:?}");
                    assert_eq!(report(&ended)["confirmed"], confirmed, "{ended:?}");
                }
            }
        }
    }
}

/// A guest without multifd has its pages on the main channel, which a trunk compresses.
#[test]
fn the_main_channel_is_compressed() {
    let pages = |fill| {
        (0..6)
            .flat_map(|page| page_record(page << 12, fill))
            .collect::<Vec<_>>()
    };
    let (first, last) = (pages(1), pages(2));
    let main = Main {
        machine: "pc-q35-7.2",
        return_path: true,
        bodies: &[&[], &first, &last],
    };
    let migration = Migration {
        main: main.bytes(),
        channels: Vec::new(),
        return_path: true,
        closed: None,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 0);
    let pair = Pair::new(folder.path(), "tcp", &destination.address, &[]);
    let source = Source::begin(&pair.address, &migration);
    arrives(&destination, &source, &migration);
    let sent = report(&pair.near.end());
    let out = sent["bytes_out"].as_u64().expect("a count");
    assert!(out < migration.main.len() as u64 / 4, "{sent}");
    pair.far.end().well();
}

/// The destination's refusal passes through as it is, and so does the end of a source that gives
/// up.
#[test]
fn a_destination_that_refuses_and_a_source_that_gives_up_are_heard() {
    let migration = &both(short)[1];
    for refuses in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let pair = Pair::new(folder.path(), "tcp", &destination.address, &[]);
        let source = Source::begin(&pair.address, migration);
        drop(destination.wait("all of it", |seen| seen.has_all(migration)));
        if refuses {
            destination.say(Role::Main, &SHUT_FAILED);
            let heard = source.hears(&SHUT_FAILED);
            assert!(heard.ends_with(&SHUT_FAILED), "{heard:?}");
        }
        drop(source);
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        destination.close_all();
        for ended in [pair.near.end(), pair.far.end()] {
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        }
    }
}

/// What fails at the destination's host is read at the source's.
#[test]
fn words_travel() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}.sock").display());
    let mut far = relay("trunk+tcp:127.0.0.1:0", &sockets, &[]);
    let connect = format!("trunk+{}", trunk_of(&mut far));
    let more = ["--once", "--name", "vm1"];
    let mut near = relay("tcp:127.0.0.1:0", &connect, &more);
    let source = Source::begin(&near.address(), migration);
    source.wait_for_end();
    let ended = near.end();
    says(&ended, "the other relay ended the migration: ");
    says(&ended, "vm1.sock");
    says(&ended, "No such file");
    // The far relay serves the next one, which has a destination.
    let address = Address::Unix(folder.path().join("vm2.sock"));
    let destination = Destination::at(&address, 2, support::peers::Limits::default());
    let mut near = relay("tcp:127.0.0.1:0", &connect, &["--once", "--name", "vm2"]);
    let source = Source::begin(&near.address(), migration);
    arrives(&destination, &source, migration);
    assert!(near.end().status.success());
}

/// Any number of guests at once, told apart by their names, with strangers among them.
#[test]
fn many_guests_pass_through_one_port() {
    const GUESTS: usize = 8;
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let mut far = relay("trunk+tcp:127.0.0.1:0", &sockets, &[]);
    let port = trunk_of(&mut far);
    let connect = format!("trunk+{port}");
    let strangers: Vec<_> = (0..40).map(|_| dial(&port)).collect();
    for (index, stranger) in strangers.iter().enumerate() {
        match index % 4 {
            0 => write(stranger, b"MFDT"),
            1 => write(stranger, b"MFDT\xff\xff"),
            2 => write(stranger, b"GET / HTTP/1.1\r\n\r\n"),
            _ => {}
        }
    }
    let migrations = both(long);
    thread::scope(|scope| {
        for guest in 0..GUESTS {
            let (connect, folder) = (&connect, folder.path());
            let migration = &migrations[guest % 2];
            scope.spawn(move || {
                let name = format!("vm{guest}");
                let address = Address::Unix(folder.join(&name));
                let destination = Destination::at(&address, 2, support::peers::Limits::default());
                let more = ["--once", "--name", &name];
                let mut near = relay("tcp:127.0.0.1:0", connect, &more);
                let source = Source::begin(&near.address(), migration);
                arrives(&destination, &source, migration);
                let ended = near.end();
                assert!(ended.status.success(), "{name}: {ended:?}");
            });
        }
    });
    drop(strangers);
}

/// A byte that changes on the way ends the migration with the guest at its source, and is never
/// passed on.
#[test]
fn a_changed_byte_is_never_passed_on() {
    let migration = &both(long)[1];
    for at in [200, 3000, 40_000] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut far = relay(
            "trunk+tcp:127.0.0.1:0",
            &destination.address.to_string(),
            &["--once"],
        );
        let between = changing(&trunk_of(&mut far), at);
        let mut near = relay("tcp:127.0.0.1:0", &format!("trunk+{between}"), &["--once"]);
        let source = Source::begin(&near.address(), migration);
        source.wait_for_end();
        let (near, far) = (near.end(), far.end());
        assert_eq!(near.status.code(), Some(1), "{near:?}");
        assert_eq!(far.status.code(), Some(1), "{far:?}");
        assert!(!destination.seen().has_all(migration), "byte {at}");
    }
}

/// Passes connections on to `address`, and changes the byte that is `at` in each.
fn changing(address: &Address, at: usize) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own = format!("tcp:{}", listener.local_addr().expect("a port"));
    let there = address.to_string();
    let there = there.trim_start_matches("tcp:").to_owned();
    thread::spawn(move || {
        for from in listener.incoming() {
            let from = from.expect("a connection");
            let to = TcpStream::connect(&there).expect("the relay");
            let (back, forth) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            thread::spawn(move || pass(from, to, Some(at)));
            thread::spawn(move || pass(forth, back, None));
        }
    });
    own.parse().expect("an address")
}

fn pass(mut from: TcpStream, mut to: TcpStream, at: Option<usize>) {
    let mut buffer = [0; 16 << 10];
    let mut passed = 0;
    while let Ok(count) = from.read(&mut buffer) {
        let piece = &mut buffer[..count];
        if let Some(at) = at.filter(|at| (passed..passed + count).contains(at)) {
            piece[at - passed] ^= 0x10;
        }
        passed += count;
        if count == 0 || to.write_all(piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Each kind of address says what it is for.
#[test]
fn the_wrong_protocol_is_refused_with_words() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let destination = destination.address.to_string();
    // A relay's trunk meets an address for QEMUs.
    let mut far = relay("tcp:127.0.0.1:0", &destination, &[]);
    let connect = format!("trunk+{}", far.address());
    let mut near = relay("tcp:127.0.0.1:0", &connect, &["--once"]);
    let source = Source::begin(&near.address(), migration);
    source.wait_for_end();
    says(&near.end(), "this address is a QEMU's: listen with trunk:");
    // A QEMU meets an address for trunks.
    let mut far = relay("trunk+tcp:127.0.0.1:0", &destination, &[]);
    let source = Source::begin(&trunk_of(&mut far), migration);
    source.wait_for_end();
    let line = far.complaint();
    assert!(line.contains("this address is a trunk's"), "{line}");
}

/// A trunk in clear to another host is asked for by name.
#[test]
fn guest_memory_crosses_no_network_in_clear_unasked() {
    let args = ["trunk+tcp:192.0.2.1:4444", "trunk+tcp:0.0.0.0:0"];
    for (listen, connect) in [("tcp:127.0.0.1:0", args[0]), (args[1], "tcp:127.0.0.1:1")] {
        let ended = relay(listen, connect, &[]).end();
        says(&ended, "in clear");
        says(&ended, "--insecure");
    }
    let mut allowed = relay("tcp:127.0.0.1:0", args[0], &["--insecure"]);
    allowed.address();
}

/// A channel whose main channel never came belongs to nobody.
#[test]
fn a_channel_of_no_migration_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let destination = destination.address.to_string();
    let mut far = relay("trunk+tcp:127.0.0.1:0", &destination, &[]);
    let stranger = dial(&trunk_of(&mut far));
    write(&stranger, &preface([7; 16], Connection::Preempt));
    let answer = answer(&stranger);
    let Answer::Refused(refusal) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(refusal.code, RefusalCode::UNKNOWN_MIGRATION);
}

/// What a relay says first, that asks for one of a migration's connections.
fn preface(migration: [u8; 16], connection: Connection) -> Vec<u8> {
    let preface = Preface {
        migration,
        ..asking(connection)
    };
    preface.encode().expect("a preface")
}

fn asking(connection: Connection) -> Preface {
    Preface {
        versions: Versions::OURS,
        migration: [7; 16],
        process: [8; 16],
        name: Name::new("vm").expect("a name"),
        connection,
        offers: Offers {
            methods: vec![0],
            digests: vec![1],
            compressions: vec![0],
        },
        extensions: Vec::new(),
    }
}

fn main(is_recovery: bool) -> Connection {
    Connection::Main {
        has_channels: false,
        may_be_postcopy: false,
        is_recovery,
    }
}

fn answer(mut stream: &Stream) -> Answer {
    let mut receiver = AnswerReceiver::default();
    loop {
        let mut bytes = vec![0; receiver.wanted()];
        stream.read_exact(&mut bytes).expect("an answer");
        let answer = receiver.push(&mut bytes.as_slice()).expect("an answer");
        if let Some(answer) = answer {
            return answer;
        }
    }
}

/// A relay that says nothing after its preface reaches no destination, and keeps nobody from it:
/// also not as many of them as there may be migrations.
#[test]
fn a_main_channel_without_its_set_up_reaches_nobody() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &[]);
    let port = trunk_of(&mut far);
    let silent: Vec<_> = (0..260_u16)
        .map(|number| {
            let stranger = dial(&port);
            let [high, low] = number.to_be_bytes();
            let mut id = [9; 16];
            (id[0], id[1]) = (high, low);
            write(&stranger, &preface(id, main(number % 2 == 1)));
            let answer = answer(&stranger);
            assert!(matches!(answer, Answer::Accepted(_)), "{answer:?}");
            stranger
        })
        .collect();
    a_while();
    assert!(destination.seen().connections.is_empty());
    let connect = format!("trunk+{port}");
    let mut near = relay("tcp:127.0.0.1:0", &connect, &["--once"]);
    let source = Source::begin(&near.address(), migration);
    arrives(&destination, &source, migration);
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    near.end().well();
    drop(silent);
}

/// Many connections at once are all answered, and silent strangers do not crowd them out.
#[test]
fn a_crowd_is_answered() {
    // Of the descriptors that a process has at first, there are too few.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("more descriptors");
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &[]);
    let port = trunk_of(&mut far);
    let crowd: Vec<_> = (0..1700_u16)
        .map(|number| {
            let caller = dial(&port);
            match number % 8 {
                0 => write(&caller, b"MFDT"),
                _ => write(&caller, &preface([7; 16], Connection::Preempt)),
            }
            (number, caller)
        })
        .collect();
    for (number, caller) in &crowd {
        if number % 8 != 0 {
            let answer = answer(caller);
            assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
        }
    }
}

/// What is no main channel is none after a preface either.
#[test]
fn a_main_channel_of_another_protocol_reaches_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &[]);
    let stranger = dial(&trunk_of(&mut far));
    write(&stranger, &preface([7; 16], main(false)));
    answer(&stranger);
    let mut frames = FrameWriter::new(Digest::Xxh3, Compression::None).expect("frames");
    let words = b"GET / HTTP/1.1\r\n\r\n";
    let header = frames.data(&[words]).expect("a frame");
    write(&stranger, &[&header[..], words].concat());
    let mut said = Vec::new();
    (&stranger).read_to_end(&mut said).expect("its end");
    let mut frames = FrameReader::new(Digest::Xxh3, Compression::None).expect("frames");
    let said = frames.push(&mut said.as_slice()).expect("a frame");
    assert!(matches!(said, Some(Frame::Failure(_))), "{said:?}");
    assert!(destination.seen().connections.is_empty());
}

/// The far relay dies: nobody calls that a success, and what cannot be known is said to be unknown.
#[test]
fn a_relay_that_dies_is_no_end() {
    for migration in both(short) {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let Pair {
            near, far, address, ..
        } = Pair::new(folder.path(), "tcp", &destination.address, &[]);
        let source = Source::begin(&address, &migration);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        // Dropped, it is killed.
        drop(far);
        let ended = near.end();
        says(&ended, "the other relay has gone");
        let confirmed = match migration.return_path {
            true => Value::Bool(false),
            false => Value::Null,
        };
        assert_eq!(report(&ended)["confirmed"], confirmed, "{ended:?}");
        drop(source);
    }
}

/// A destination takes one guest. A second one of its name is refused, and the first goes on.
#[test]
fn a_second_guest_of_a_name_is_refused() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let sockets = format!("unix:{}", folder.path().join("{name}").display());
    let mut far = relay("trunk+tcp:127.0.0.1:0", &sockets, &[]);
    let connect = format!("trunk+{}", trunk_of(&mut far));
    let address = Address::Unix(folder.path().join("vm"));
    let destination = Destination::at(&address, 2, support::peers::Limits::default());
    let near = || relay("tcp:127.0.0.1:0", &connect, &["--once"]);
    let mut first = near();
    let source = Source::begin(&first.address(), migration);
    drop(destination.wait("all of it", |seen| seen.has_all(migration)));
    let mut second = near();
    let other = Source::begin(&second.address(), migration);
    other.wait_for_end();
    says(&second.end(), "another migration to unix:");
    destination.say(Role::Main, &SHUT_WELL);
    source.hears(&SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    first.end().well();
}

/// COMMAND POSTCOPY_RESUME: a migration that goes on after a break.
const RESUME: &[u8] = b"\x08\0\x09\0\0";

/// It says that it is one, and passes in both directions.
#[test]
fn a_recovery_is_passed_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 0);
    let pair = Pair::new(folder.path(), "tcp", &destination.address, &[]);
    let source = Source::dial(&pair.address, 0);
    write(&source.main, RESUME);
    drop(destination.wait("it", |seen| {
        let first = seen.connections.first();
        first.is_some_and(|connection| connection.bytes == RESUME)
    }));
    let answer = b"\0\x06\0\x04\0\0\0\x01";
    destination.say(Role::Other, answer);
    assert_eq!(source.hears(b"\0\0\0\x01"), answer);
}
