//! Relays that compare the pages of each round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use multifd_relay::trunk::{Accepted, PrefaceReceiver};

use super::super::*;

#[test]
fn pages_are_compared_where_that_is_asked_for() {
    for (near, far) in [(true, false), (true, true), (false, false)] {
        for compression in ["none", "zstd"] {
            for migration in both(long) {
                let folder = tempfile::tempdir().expect("a folder");
                let destination = Destination::new(folder.path(), 2);
                let verify = |is: bool| if is { &["--verify"][..] } else { &[] };
                let connect = destination.address.to_string();
                let more = [&["--once"], verify(far)].concat();
                let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &more);
                let connect = format!("trunk+{}", trunk_of(&mut far));
                let more = [&["--once", "--compression", compression], verify(near)].concat();
                let mut near_relay = relay("tcp:127.0.0.1:0", &connect, &more);
                let source = Source::begin(&near_relay.address(), &migration);
                arrives(&destination, &source, &migration);
                let reports = [near_relay.end(), far.end()].map(|ended| report(&ended));
                let [sent, came] = &reports;
                assert_eq!(sent["verified"], came["verified"], "{reports:?}");
                assert_eq!(sent["verified"].is_object(), near, "{reports:?}");
                if near {
                    let count = |field: &str| sent[field].as_u64().expect("a count");
                    let all = count("pages") + count("zero_pages");
                    assert_eq!(sent["verified"]["pages"], all, "{reports:?}");
                    assert!(sent["verified"]["rounds"].as_u64() > Some(1), "{reports:?}");
                }
            }
        }
    }
}

/// Between two relays: it changes a byte of the first page of a channel, and the digest of its
/// frame with it. It answers where the near relay calls.
fn liar(far: Address) -> (Address, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp:{}", listener.local_addr().expect("a port"));
    let has_lied = Arc::new(AtomicBool::new(false));
    let lied = Arc::clone(&has_lied);
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.expect("a connection");
            let (far, lied) = (far.clone(), Arc::clone(&lied));
            thread::spawn(move || lie(near, &dial(&far), &lied));
        }
    });
    (address.parse().expect("an address"), has_lied)
}

fn lie(mut near: TcpStream, far: &Stream, has_lied: &AtomicBool) {
    let mut back = near.try_clone().expect("a socket");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut there = far;
            let _ = std::io::copy(&mut there, &mut back);
            let _ = back.shutdown(Shutdown::Both);
        });
        let mut receiver = PrefaceReceiver::default();
        let preface = loop {
            let mut bytes = vec![0; receiver.wanted()];
            if near.read_exact(&mut bytes).is_err() {
                return;
            }
            write(far, &bytes);
            if let Some(preface) = receiver.push(&mut &bytes[..]).expect("a preface") {
                break preface;
            }
        };
        if !matches!(preface.connection, Connection::Channel(_)) {
            let mut there = far;
            let _ = std::io::copy(&mut near, &mut there);
            let _ = far.shutdown(Shutdown::Write);
            return;
        }
        let mut frames = FrameReader::new(Digest::Xxh3, Compression::None).expect("frames");
        let mut again = FrameWriter::new(Digest::Xxh3, Compression::None).expect("frames");
        let mut bytes = vec![0; 1 << 20];
        while let Ok(count @ 1..) = near.read(&mut bytes) {
            let mut rest = &bytes[..count];
            let mut out = Vec::new();
            while let Some(frame) = frames.push(&mut rest).expect("a frame") {
                match frame {
                    Frame::Data(data) => {
                        let mut data = data.to_vec();
                        // Only packets with contents are as long.
                        if data.len() > 4096 && !has_lied.swap(true, Ordering::AcqRel) {
                            *data.last_mut().expect("a byte") ^= 1;
                        }
                        again.append(&data, &mut out).expect("a frame");
                    }
                    Frame::End => out.extend(again.end().expect("a frame")),
                    _ => {}
                }
            }
            write(far, &out);
        }
        let _ = far.shutdown(Shutdown::Write);
    });
}

/// A byte of a page is changed where no frame shows it, as by a memory or a codec. Without
/// comparing, the guest arrives with it. With it, the guest stays at its source: its destination
/// does not get the round's mark.
#[test]
fn a_changed_page_keeps_the_guest_at_its_source() {
    for verify in [false, true] {
        let migration = &both(long)[1];
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let connect = destination.address.to_string();
        let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &["--once"]);
        let (between, has_lied) = liar(trunk_of(&mut far));
        let plain = ["--once", "--compression", "none"];
        let more = [&plain[..], if verify { &["--verify"] } else { &[] }].concat();
        let mut near = relay("tcp:127.0.0.1:0", &format!("trunk+{between}"), &more);
        let source = Source::begin(&near.address(), migration);
        if !verify {
            drop(destination.wait("all of it", |seen| seen.has_all(migration)));
            assert!(has_lied.load(Ordering::Acquire));
            let seen = destination.seen();
            let differs = migration.channels.iter().zip(0..).any(|(bytes, id)| {
                let channel = seen.of(Role::Channel(id)).expect("a channel");
                channel.bytes != *bytes
            });
            assert!(differs);
            continue;
        }
        source.wait_for_end();
        assert!(has_lied.load(Ordering::Acquire));
        let seen = destination.seen();
        let main = seen.of(Role::Main).expect("a main channel").bytes.len();
        assert!(main < migration.main.len(), "{main} bytes of main");
        drop(seen);
        destination.close_all();
        for ended in [near.end(), far.end()] {
            says(&ended, "memory was changed on the way");
            assert_eq!(report(&ended)["confirmed"], false, "{ended:?}");
        }
    }
}

#[test]
fn relays_that_do_not_agree_on_it_say_so() {
    let migration = &both(short)[1];
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    // The far one asks for it, and the near one does not.
    let mut far = relay("trunk+tcp:127.0.0.1:0", &connect, &["--verify"]);
    let there = format!("trunk+{}", trunk_of(&mut far));
    let mut near = relay("tcp:127.0.0.1:0", &there, &["--once"]);
    let source = Source::begin(&near.address(), migration);
    source.wait_for_end();
    says(&near.end(), "takes migrations with --verify only");
    assert!(destination.seen().connections.is_empty());
    // The far one does not know it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let there = format!("trunk+tcp:{}", listener.local_addr().expect("a port"));
    let older = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut receiver = PrefaceReceiver::default();
        loop {
            let mut bytes = vec![0; receiver.wanted()];
            stream.read_exact(&mut bytes).expect("a preface");
            if receiver.push(&mut &bytes[..]).expect("a preface").is_some() {
                break;
            }
        }
        let accepted = Accepted {
            version: 1,
            // zstd, as it was offered.
            method: 2,
            digest: 1,
            compression: 0,
            extensions: Vec::new(),
        };
        let answer = Answer::Accepted(accepted).encode().expect("an answer");
        stream.write_all(&answer).expect("a connection");
        let _ = stream.read(&mut [0]);
    });
    let mut near = relay("tcp:127.0.0.1:0", &there, &["--once", "--verify"]);
    let source = Source::begin(&near.address(), migration);
    source.wait_for_end();
    says(&near.end(), "does not verify pages");
    older.join().expect("a peer");
    let args = [
        "relay",
        "--listen",
        "tcp:127.0.0.1:0",
        "--connect",
        "tcp:127.0.0.1:1",
    ];
    let ended = Multifd::start([&args[..], &["--verify"]].concat()).end();
    assert!(ended.stderr.contains("--verify has no effect"), "{ended:?}");
}
