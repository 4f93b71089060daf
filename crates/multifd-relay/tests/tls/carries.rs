//! What an established connection carries, and how it ends.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::tls::{ClientOptions, TlsClient, TlsVersions};
use multifd_transport::Stream;
use rustls::version::{TLS12, TLS13};

use crate::ends::{
    PATIENCE, accept, client, connect, folders, pair, raw_client, raw_server, server, tcp, unix,
};
use crate::made::{Ca, Folder};

/// Bytes that differ from place to place.
fn data(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn write_in_pieces(stream: &Stream, data: &[u8]) {
    let mut left = data;
    let mut size = 1;
    while !left.is_empty() {
        let (piece, rest) = left.split_at(left.len().min(size));
        let (head, body) = piece.split_at(piece.len() / 9);
        stream.write_all_of_two(head, body).unwrap();
        left = rest;
        size = (size * 3 + 1) % 700_001;
    }
}

fn read_in_pieces(stream: &Stream, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut size = 1;
    while all.len() < bytes {
        let mut piece = vec![0; size.min(bytes - all.len())];
        let count = stream.read_some(&mut piece).unwrap();
        assert!(count > 0, "an end after {}", all.len());
        all.extend_from_slice(&piece[..count]);
        size = (size * 5 + 3) % 300_007;
    }
    all
}

/// Both ends write and read at once, in two threads each, more than any buffer holds.
fn both_ways(near: &Stream, far: &Stream) {
    const BYTES: usize = 12 << 20;
    let (there, back) = (data(BYTES, 1), data(BYTES, 2));
    thread::scope(|scope| {
        scope.spawn(|| write_in_pieces(near, &there));
        scope.spawn(|| write_in_pieces(far, &back));
        let seen_there = scope.spawn(|| read_in_pieces(far, BYTES));
        let seen_back = scope.spawn(|| read_in_pieces(near, BYTES));
        assert!(seen_there.join().unwrap() == there);
        assert!(seen_back.join().unwrap() == back);
    });
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(far.read_some(&mut [0; 4]).unwrap(), 0, "a clean end");
    assert_eq!(far.peek(&mut [0; 4]).unwrap(), 0);
    far.write_all_of_two(b"still", b"here").unwrap();
    assert_eq!(read_in_pieces(near, 9), b"stillhere");
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(near.read_some(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn both_ends_carry_data_both_ways_at_once() {
    let (_, server_folder, client_folder) = folders();
    let (server, client) = (server(&server_folder), client(&client_folder));
    let ((near, far), (tcp_near, tcp_far)) = (unix(), tcp());
    for (near, far) in [
        (Stream::from(near), Stream::from(far)),
        (Stream::from(tcp_near), Stream::from(tcp_far)),
    ] {
        thread::scope(|scope| {
            let accepted = scope.spawn(|| accept(&server, far).unwrap());
            let near = connect(&client, near, "dst.example").unwrap();
            let accepted = accepted.join().unwrap();
            assert!(
                accepted.protocol.starts_with("TLSv1_3 "),
                "{}",
                accepted.protocol
            );
            both_ways(&near, &accepted.stream);
        });
    }
}

/// The reader waits for bytes that never come while the writer writes.
#[test]
fn a_reader_that_waits_holds_up_no_writer() {
    let (near, far) = pair();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| near.read_some(&mut [0; 1]));
        thread::sleep(Duration::from_millis(50));
        near.write_all_of_two(b"a", b"b").unwrap();
        assert_eq!(read_in_pieces(&far, 2), b"ab");
        // And a writer whose peer takes nothing holds up no reader.
        let writing = scope.spawn(|| far.write_all_of_two(&vec![0; 64 << 20], &[]));
        near.write_all_of_two(b"c", b"d").unwrap();
        assert_eq!(read_in_pieces(&far, 2), b"cd");
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
        near.reset(None);
        writing.join().unwrap().unwrap_err();
    });
}

#[test]
fn a_look_ahead_takes_nothing() {
    let (near, far) = pair();
    let kind = |result: io::Result<usize>| result.unwrap_err().kind();
    assert_eq!(kind(far.peek(&mut [0; 8])), ErrorKind::WouldBlock);
    assert_eq!(kind(far.read_now(&mut [0; 8])), ErrorKind::WouldBlock);
    assert!(!far.is_readable_within(Duration::from_millis(10)).unwrap());
    near.write_all_of_two(b"abc", b"").unwrap();
    assert!(far.is_readable_within(PATIENCE).unwrap());
    let mut bytes = [0; 8];
    assert_eq!(far.peek(&mut bytes[..2]).unwrap(), 2);
    assert_eq!(&bytes[..2], b"ab");
    near.write_all_of_two(b"", &data(100_000, 3)).unwrap();
    let mut ahead = vec![0; 60_000];
    let until = Instant::now() + PATIENCE;
    while far.peek(&mut ahead).unwrap() < ahead.len() {
        assert!(Instant::now() < until);
    }
    assert_eq!(&ahead[..3], b"abc");
    assert!(
        far.is_readable_within(Duration::ZERO).unwrap(),
        "nothing need come for it"
    );
    let mut one = [0; 1];
    assert_eq!(far.read_now(&mut one).unwrap(), 1);
    assert_eq!(&one, b"a");
    assert_eq!(read_in_pieces(&far, 100_002)[2..], data(100_000, 3));
    assert!(!far.is_readable_within(Duration::from_millis(10)).unwrap());
    near.write_all_of_two(b"z", b"").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert!(far.is_readable_within(PATIENCE).unwrap());
    assert_eq!(read_in_pieces(&far, 1), b"z");
    assert!(far.is_readable_within(PATIENCE).unwrap());
    assert_eq!(far.peek(&mut bytes).unwrap(), 0);
    assert_eq!(far.read_now(&mut bytes).unwrap(), 0);
}

#[test]
fn an_end_without_close_notify_is_a_broken_one() {
    let (near, far) = pair();
    near.write_all_of_two(b"abc", b"").unwrap();
    near.shutdown(Shutdown::Both).unwrap();
    assert_eq!(read_in_pieces(&far, 3), b"abc");
    for _ in 0..2 {
        let error = far.read_some(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            error.to_string(),
            "the connection was cut: it has ended without close_notify"
        );
        assert_eq!(
            far.peek(&mut [0; 4]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    }
    far.write_all_of_two(b"too late", b"").unwrap_err();

    // A reset one, too.
    let (near, far) = pair();
    near.reset(None);
    let error = far.read_some(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        error.to_string().contains("right after the handshake"),
        "{error}"
    );
}

#[test]
fn a_lenient_end_takes_a_cut_between_records_for_an_end() {
    let (ca, _, client_folder) = folders();
    let mut options = ClientOptions::default();
    options.versions = TlsVersions::Tls12And13;
    options.needs_certificate = true;
    options.lenient_end = true;
    let client = TlsClient::open(client_folder.path(), options).unwrap();
    for cut in [0, 3] {
        let (near, far) = unix();
        let pair = ca.server();
        let peer = thread::spawn(move || {
            let mut peer = raw_server(far, &pair, &[&TLS13], |_| {});
            peer.write_all(b"abc").unwrap();
            peer.flush().unwrap();
            // The start of a record.
            peer.sock.write_all(&[0x17, 3, 3][..cut]).unwrap();
        });
        let stream = connect(&client, near.into(), "dst.example").unwrap();
        assert_eq!(read_in_pieces(&stream, 3), b"abc");
        peer.join().unwrap();
        let ended = stream.read_some(&mut [0; 4]);
        if cut == 0 {
            assert_eq!(ended.unwrap(), 0);
        } else {
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn changed_bytes_are_noticed_and_the_peer_is_told() {
    let (_, server_folder, client_folder) = folders();
    let (server, client) = (server(&server_folder), client(&client_folder));
    let (near, far) = unix();
    let mut raw = far.try_clone().unwrap();
    let mut other = near.try_clone().unwrap();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(&server, far.into()).unwrap().stream);
        let near = connect(&client, near.into(), "dst.example").unwrap();
        let far = accepted.join().unwrap();
        // A record of nonsense from nowhere.
        other.write_all(&[0x17, 3, 3, 0, 20]).unwrap();
        other.write_all(&[7; 20]).unwrap();
        let error = far.read_some(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(
            error.to_string().contains("changed on their way"),
            "{error}"
        );
        let told = near.read_some(&mut [0; 4]).unwrap_err();
        assert!(
            told.to_string()
                .contains("the peer has refused (bad_record_mac)"),
            "{told}"
        );
        assert!(
            near.write_all_of_two(b"x", b"")
                .unwrap_err()
                .to_string()
                .contains("refused")
        );
        raw.flush().unwrap();
    });
}

#[test]
fn a_peer_may_change_its_keys_and_ask_us_to() {
    let (ca, server_folder, _) = folders();
    let server = server(&server_folder);
    let (near, far) = unix();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(&server, far.into()).unwrap().stream);
        let mut peer = raw_client(near, Some(&ca.client()), &[&TLS13]);
        peer.flush().unwrap();
        while peer.conn.is_handshaking() || peer.conn.wants_write() {
            peer.conn.complete_io(&mut peer.sock).unwrap();
        }
        let far = accepted.join().unwrap();
        for round in 0..20_u8 {
            peer.conn.refresh_traffic_keys().unwrap();
            peer.write_all(&[round; 50_000]).unwrap();
            peer.flush().unwrap();
            assert_eq!(read_in_pieces(&far, 50_000), [round; 50_000]);
            far.write_all_of_two(&[round], &[round; 40_000]).unwrap();
            let mut back = vec![0; 40_001];
            peer.read_exact(&mut back).unwrap();
            assert_eq!(back, [round; 40_001]);
        }
    });
}

/// A client may say all it has to say in one breath with its last word of the handshake.
#[test]
fn data_and_an_end_may_come_with_the_handshake_s_last_bytes() {
    let (ca, server_folder, _) = folders();
    let server = server(&server_folder);
    for bytes in [0, 1, 5_000, 40_000] {
        for whole in [false, true] {
            let (near, far) = unix();
            let said = data(bytes, 6);
            thread::scope(|scope| {
                let accepted = scope.spawn(|| accept(&server, far.into()).unwrap().stream);
                let mut peer = raw_client(near, Some(&ca.client()), &[&TLS13]);
                peer.conn.set_buffer_limit(None);
                peer.conn.writer().write_all(&said).unwrap();
                while peer.conn.is_handshaking() {
                    while peer.conn.wants_write() {
                        peer.conn.write_tls(&mut peer.sock).unwrap();
                    }
                    peer.conn.read_tls(&mut peer.sock).unwrap();
                    peer.conn.process_new_packets().unwrap();
                }
                if whole {
                    peer.conn.send_close_notify();
                }
                let mut breath = Vec::new();
                while peer.conn.wants_write() {
                    peer.conn.write_tls(&mut breath).unwrap();
                }
                peer.sock.write_all(&breath).unwrap();
                let stream = accepted.join().unwrap();
                if bytes > 0 {
                    assert!(stream.is_readable_within(Duration::ZERO).unwrap());
                }
                stream.write_all_of_two(b"an", b"swer").unwrap();
                assert!(read_in_pieces(&stream, bytes) == said);
                let mut answer = [0; 6];
                peer.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"answer");
                if whole {
                    assert_eq!(stream.read_some(&mut [0; 1]).unwrap(), 0);
                } else {
                    drop(peer);
                    stream.read_some(&mut [0; 1]).unwrap_err();
                }
            });
        }
    }
}

/// Messages of the handshake that follow it, in small parts, with our own records between them.
#[test]
fn tickets_in_parts_do_not_disturb_a_writer() {
    let (ca, _, client_folder) = folders();
    let client = client(&client_folder);
    let (near, far) = unix();
    let pair = ca.server();
    let (mut slow, peer_end) = UnixStream::pair().unwrap();
    let (mut back_from, mut back_to) = (far.try_clone().unwrap(), slow.try_clone().unwrap());
    let slowly = &AtomicBool::new(false);
    thread::scope(|scope| {
        let peer = scope.spawn(move || {
            let mut peer = raw_server(peer_end, &pair, &[&TLS13], |config| {
                config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
                config.send_tls13_tickets = 4;
                config.max_fragment_size = Some(64);
            });
            let mut all = vec![0; 4];
            peer.read_exact(&mut all).unwrap();
            peer.write_all(&[9; 1000]).unwrap();
            peer.conn.send_close_notify();
            peer.flush().unwrap();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        // What the server says after the client's last word of the handshake comes byte by byte.
        scope.spawn(move || {
            let mut bytes = [0; 1 << 16];
            let mut said = 0;
            while let Ok(count @ 1..) = back_from.read(&mut bytes) {
                said += 1;
                slowly.store(said > 1, Ordering::SeqCst);
                if back_to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = back_to.shutdown(Shutdown::Write);
        });
        scope.spawn(move || {
            let mut far = far;
            let mut bytes = [0; 1 << 16];
            while let Ok(count @ 1..) = slow.read(&mut bytes) {
                let step = if slowly.load(Ordering::SeqCst) {
                    1
                } else {
                    count
                };
                for part in bytes[..count].chunks(step) {
                    far.write_all(part).unwrap();
                    if step == 1 {
                        thread::sleep(Duration::from_micros(100));
                    }
                }
            }
            far.shutdown(Shutdown::Write).unwrap();
        });
        let stream = connect(&client, near.into(), "dst.example").unwrap();
        let mut sent = b"ping".to_vec();
        stream.write_all_of_two(&sent, &[]).unwrap();
        let mut seen = Vec::new();
        let mut piece = [0; 100];
        loop {
            match stream.read_now(&mut piece) {
                Ok(0) => break,
                Ok(count) => seen.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stream.write_all_of_two(b"more", b"!").unwrap();
                    sent.extend_from_slice(b"more!");
                    thread::sleep(Duration::from_micros(300));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(seen, [9; 1000]);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.join().unwrap(), sent);
    });
}

#[test]
fn a_write_that_runs_out_of_time_goes_on_with_the_same_bytes() {
    let (near, far) = pair();
    let data = data(30 << 20, 5);
    near.set_timeouts(Some(Duration::from_millis(5))).unwrap();
    let (late, is_late) = mpsc::channel();
    thread::scope(|scope| {
        let (near, data) = (&near, &data);
        scope.spawn(move || {
            while let Err(error) = near.write_all_of_two(&data[..999], &data[999..]) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let _ = late.send(());
            }
        });
        is_late
            .recv_timeout(PATIENCE)
            .expect("no buffer takes all of it");
        assert!(read_in_pieces(&far, data.len()) == *data);
    });
    assert_eq!(
        near.read_some(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    far.write_all_of_two(b"x", b"").unwrap();
    assert_eq!(read_in_pieces(&near, 1), b"x");
}

#[test]
fn version_1_2_carries_data_too() {
    let ca = Ca::new("our CA");
    let folder = Folder::client(&ca, &ca.client());
    let mut options = ClientOptions::default();
    options.versions = TlsVersions::Tls12And13;
    let client = TlsClient::open(folder.path(), options).unwrap();
    let pair = ca.server();
    let (near, far) = tcp();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = raw_server(far, &pair, &[&TLS12], |_| {});
            let mut all = vec![0; 1 << 20];
            peer.read_exact(&mut all).unwrap();
            peer.write_all(&all).unwrap();
            peer.conn.send_close_notify();
            peer.flush().unwrap();
        });
        let stream = connect(&client, near.into(), "dst.example").unwrap();
        let sent = data(1 << 20, 8);
        stream.write_all_of_two(&sent[..5], &sent[5..]).unwrap();
        assert!(read_in_pieces(&stream, sent.len()) == sent);
        assert_eq!(stream.read_some(&mut [0; 1]).unwrap(), 0);
    });
}
