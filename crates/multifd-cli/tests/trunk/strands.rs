//! `--trunk-channels`: several connections of the trunk that carry one of a QEMU's.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use multifd_relay::trunk::{
    Accepted, Answer, Connection, Extension, Frame, FrameReader, Preface, PrefaceReceiver,
    RefusalCode, StrandTerms, Versions,
};
use multifd_transport::{Address, Stream};
use multifd_wire::Method;
use rustix::net::sockopt::set_socket_linger;
use serde_json::Value;

use super::super::support::made::{BLOCK, Channel, Main, PAGE_BYTES, Shape};
use super::super::support::peers::{Destination, Role, Source, dial, write};
use super::super::support::{DEADLINE, Migration};
use super::super::{answer, arrives, asking, main, preface, relay, report, says, trunk_of};

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % end
    }
}

/// Pages that no method makes smaller.
fn noise(seed: u64, pages: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..pages * PAGE_BYTES)
        .map(|_| random.below(256) as u8)
        .collect()
}

/// A guest without multifd: its pages are on main.
fn one_stream() -> Migration {
    let mut records = Vec::new();
    for (index, page) in noise(1, 300).chunks(PAGE_BYTES).enumerate() {
        let offset = (index % 6 * PAGE_BYTES) as u64;
        records.extend_from_slice(&(offset | 0x08).to_be_bytes());
        records.extend_from_slice(b"\x06pc.ram");
        records.extend_from_slice(page);
    }
    let main = Main {
        machine: "pc-q35-7.2",
        return_path: true,
        bodies: &[&[], &records, &[]],
    };
    Migration {
        main: main.bytes(),
        channels: Vec::new(),
        return_path: true,
        closed: None,
    }
}

/// A guest with two channels.
fn two_channels() -> Migration {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let offsets: Vec<u64> = (0..6).map(|page| page * PAGE_BYTES as u64).collect();
    let channel = |id: u8| {
        let mut channel = Channel::new(id, Method::None).sync();
        for pages in noise(id.into(), 240).chunks(6 * PAGE_BYTES) {
            channel = channel.packet(BLOCK, &offsets, &[], pages);
        }
        channel.sync().bytes()
    };
    Migration {
        main: shape.bytes(1),
        channels: vec![channel(0), channel(1)],
        return_path: true,
        closed: None,
    }
}

/// What happens to one of a network's connections, after this many bytes.
#[derive(Clone, Copy)]
struct Reset {
    connection: usize,
    after: usize,
}

/// A network in front of `address`: each connection's bytes come in pieces, after delays of their
/// own. Also says how many connections there were.
fn delaying(address: &Address, reset: Option<Reset>) -> (Address, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own = format!("tcp:{}", listener.local_addr().expect("a port"));
    let there = address.to_string();
    let there = there.trim_start_matches("tcp:").to_owned();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for from in listener.incoming() {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let from = from.expect("a connection");
            let to = TcpStream::connect(&there).expect("the relay");
            let (back, forth) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let after = reset.filter(|reset| reset.connection == number);
            let after = after.map(|reset| reset.after);
            thread::spawn(move || pass(from, to, number as u64, after));
            thread::spawn(move || pass(forth, back, 100 + number as u64, None));
        }
    });
    (own.parse().expect("an address"), count)
}

fn pass(mut from: TcpStream, mut to: TcpStream, seed: u64, reset_after: Option<usize>) {
    let (mut random, mut buffer) = (Random(seed), vec![0; 80_000]);
    let mut passed = 0;
    loop {
        let most = 1 + random.below(buffer.len());
        let count = from.read(&mut buffer[..most]).unwrap_or(0);
        thread::sleep(Duration::from_micros(random.below(1500) as u64));
        passed += count;
        if reset_after.is_some_and(|after| passed > after) {
            for socket in [&from, &to] {
                let _ = set_socket_linger(socket, Some(Duration::ZERO));
                let _ = socket.shutdown(Shutdown::Both);
            }
            return;
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Writes all connections at the same time, as a QEMU does; a relay that has failed reads no more.
fn send(address: &Address, migration: &Migration) -> Source {
    let source = Source::dial(address, migration.channels.len());
    thread::scope(|scope| {
        let all = source.channels.iter().chain([&source.main]);
        let bytes = migration.channels.iter().chain([&migration.main]);
        for (stream, bytes) in all.zip(bytes) {
            scope.spawn(move || (&mut &*stream).write_all(bytes));
        }
    });
    source
}

#[test]
fn bytes_arrive_in_order_whichever_connection_is_late() {
    for (migration, connections) in [(one_stream(), 3), (two_channels(), 1 + 2 * 3)] {
        let folder = tempfile::tempdir().expect("a folder");
        let channels = migration.channels.len();
        let destination = Destination::new(folder.path(), channels);
        let to = destination.address.to_string();
        let mut far = relay("trunk+tcp:127.0.0.1:0", &to, &["--once"]);
        let (between, count) = delaying(&trunk_of(&mut far), None);
        let more = ["--once", "--verify", "--trunk-channels", "3"];
        let mut near = relay("tcp:127.0.0.1:0", &format!("trunk+{between}"), &more);
        let source = send(&near.address(), &migration);
        arrives(&destination, &source, &migration);
        assert_eq!(count.load(Ordering::SeqCst), connections);
        let seen = destination.seen();
        assert!(seen.main().bytes == migration.main);
        for (id, bytes) in (0..).zip(&migration.channels) {
            let came = seen.of(Role::Channel(id)).expect("a channel");
            assert!(came.bytes == *bytes, "channel {id}");
        }
        for ended in [near.end(), far.end()] {
            assert!(ended.status.success(), "{ended:?}");
            let report = report(&ended);
            assert_eq!(report["confirmed"], true, "{ended:?}");
            assert_eq!(report["remarks"], Value::Array(Vec::new()), "{ended:?}");
        }
    }
}

/// One of them breaks: the migration ends at both relays, and the guest is at its source.
#[test]
fn a_connection_that_breaks_ends_the_migration() {
    for (migration, connection) in [(one_stream(), 0), (one_stream(), 2), (two_channels(), 5)] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), migration.channels.len());
        let to = destination.address.to_string();
        let mut far = relay("trunk+tcp:127.0.0.1:0", &to, &["--once"]);
        let after = 150_000;
        let reset = Some(Reset { connection, after });
        let (between, _) = delaying(&trunk_of(&mut far), reset);
        let more = ["--once", "--trunk-channels", "3"];
        let mut near = relay("tcp:127.0.0.1:0", &format!("trunk+{between}"), &more);
        let source = send(&near.address(), &migration);
        source.wait_for_end();
        for ended in [near.end(), far.end()] {
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            assert!(!ended.stderr.contains("defect"), "{ended:?}");
        }
        assert!(!destination.seen().has_all(&migration));
    }
}

/// What a server reads first.
fn heard(stream: &TcpStream) -> Preface {
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let mut receiver = PrefaceReceiver::default();
    loop {
        let mut bytes = vec![0; receiver.wanted()];
        (&*stream).read_exact(&mut bytes).expect("a preface");
        let preface = receiver.push(&mut bytes.as_slice()).expect("a preface");
        if let Some(preface) = preface {
            return preface;
        }
    }
}

fn accepted(extensions: Vec<Extension>) -> Vec<u8> {
    let accepted = Accepted {
        version: Versions::OURS.newest,
        method: 0,
        digest: 1,
        compression: 0,
        extensions,
    };
    Answer::Accepted(accepted).encode().expect("an answer")
}

/// A relay that does not know of strands gets everything on one connection.
#[test]
fn an_older_relay_gets_one_connection() {
    let migration = one_stream();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let connect = format!("trunk+tcp:{}", listener.local_addr().expect("a port"));
    let more = ["--once", "--compression", "none", "--trunk-channels", "4"];
    let mut near = relay("tcp:127.0.0.1:0", &connect, &more);
    let source = Source::dial(&near.address(), 0);
    write(&source.main, &migration.main[..4096]);
    let (mut far, _) = listener.accept().expect("a call");
    let said = heard(&far);
    let asked = StrandTerms::among(&said.extensions).expect("terms");
    assert_eq!(asked.map(|asked| asked.count), Some(4));
    far.write_all(&accepted(Vec::new())).expect("a reader");
    let digest = multifd_relay::trunk::Digest::Xxh3;
    let compression = multifd_relay::trunk::Compression::None;
    let mut reader = FrameReader::new(digest, compression).expect("a reader");
    let mut came = Vec::new();
    while came.len() < 64 {
        let count = far.read(reader.space()).expect("frames");
        assert!(count > 0);
        if let Ok(Some(Frame::Data(bytes))) = reader.filled(count) {
            came.extend_from_slice(bytes);
        }
    }
    assert!(migration.main.starts_with(&came));
    listener.set_nonblocking(true).expect("a socket");
    assert!(listener.accept().is_err(), "a second connection");
}

/// A relay that takes more than it was asked for is none.
#[test]
fn an_answer_with_other_strands_is_refused() {
    for (count, group) in [(3, 0), (2, 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let connect = format!("trunk+tcp:{}", listener.local_addr().expect("a port"));
        let more = ["--once", "--compression", "none", "--trunk-channels", "2"];
        let mut near = relay("tcp:127.0.0.1:0", &connect, &more);
        let source = Source::dial(&near.address(), 0);
        write(&source.main, &one_stream().main[..4096]);
        let (mut far, _) = listener.accept().expect("a call");
        let asked = StrandTerms::among(&heard(&far).extensions).expect("terms");
        assert_eq!(asked, Some(StrandTerms { count: 2, group: 0 }));
        let lie = StrandTerms { count, group }.extension();
        far.write_all(&accepted(vec![lie])).expect("a reader");
        source.wait_for_end();
        says(
            &near.end(),
            "more connections for one than it was asked for",
        );
    }
}

/// Whatever a client says of strands, the relay refuses it or waits for the rest, and no
/// destination is called.
#[test]
fn lies_of_a_client_reach_no_destination() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 0);
    let to = destination.address.to_string();
    let mut far = relay("trunk+tcp:127.0.0.1:0", &to, &[]);
    let port = trunk_of(&mut far);
    let say = |connection: Connection, extensions: &[Extension]| -> (Stream, Answer) {
        let stream = dial(&port);
        let preface = Preface {
            extensions: extensions.to_vec(),
            ..asking(connection)
        };
        write(&stream, &preface.encode().expect("a preface"));
        let answer = answer(&stream);
        (stream, answer)
    };
    let refused = |answer: Answer| match answer {
        Answer::Refused(refusal) => refusal.code,
        Answer::Accepted(accepted) => panic!("{accepted:?}"),
    };
    let strand = |group, number| say(Connection::Strand { group, number }, &[]).1;
    assert_eq!(refused(strand(0, 1)), RefusalCode::UNKNOWN_MIGRATION);
    for bytes in [&[][..], &[1, 0, 0], &[17, 0, 0], &[2, 0], &[2, 0, 0, 0]] {
        let (id, bytes) = (StrandTerms::ID, bytes.to_vec());
        let (_, answer) = say(main(false), &[Extension { id, bytes }]);
        assert_eq!(refused(answer), RefusalCode::MALFORMED);
    }
    let (count, group) = (3, 5);
    let (first, answer) = say(main(false), &[StrandTerms { count, group }.extension()]);
    let Answer::Accepted(accepted) = answer else {
        panic!("{answer:?}");
    };
    let granted = StrandTerms::among(&accepted.extensions);
    assert_eq!(granted, Ok(Some(StrandTerms { count, group })));
    assert_eq!(refused(strand(4, 1)), RefusalCode::UNKNOWN_MIGRATION);
    for number in [0, 3, 255] {
        assert_eq!(refused(strand(5, number)), RefusalCode::MALFORMED);
    }
    let (second, answer) = say(Connection::Strand { group, number: 2 }, &[]);
    assert!(matches!(answer, Answer::Accepted(_)), "{answer:?}");
    assert_eq!(refused(strand(5, 2)), RefusalCode::MALFORMED);
    // Another main channel of the same migration, while this one waits.
    let again = dial(&port);
    write(&again, &preface([7; 16], main(false)));
    assert_eq!(refused(super::super::answer(&again)), RefusalCode::ITSELF);
    assert!(destination.seen().connections.is_empty());
    drop((first, second));
}
