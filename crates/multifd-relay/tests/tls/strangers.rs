//! Peers that speak no TLS, or nothing.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::tls::starts_like_tls;
use multifd_transport::Stream;

use crate::ends::{accept, client, connect, drive, folders, is, server, tcp, unix};

#[test]
fn plain_bytes_on_a_tls_port_are_refused_at_once() {
    let (_, server_folder, _) = folders();
    let server = server(&server_folder);
    for plain in [
        &b"QEVM"[..],
        &[0x11, 0x22, 0x33, 0x44],
        b"GET / HTTP/1.0\r\n\r\n",
        b"Q",
        &[0x16, 1],
    ] {
        let (mut near, far) = tcp();
        near.write_all(plain).unwrap();
        let error = accept(&server, far.into()).map(|_| ()).unwrap_err();
        assert!(is(&error, "NotTls"), "{error:?}");
        assert_eq!(
            error.to_string(),
            "the peer speaks no TLS: is it a plain trunk+tcp: or tcp: leg?"
        );
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).unwrap();
        assert!(
            starts_like_tls(&answer) && !answer.is_empty(),
            "the peer can tell from it"
        );
    }
}

#[test]
fn a_plain_server_is_told_from_a_tls_one() {
    let (_, _, client_folder) = folders();
    let client = client(&client_folder);
    // It answers in plain.
    let (near, mut far) = unix();
    far.write_all(b"QEVM\0\0\0\x03").unwrap();
    let error = connect(&client, near.into(), "dst.example").unwrap_err();
    assert!(is(&error, "NotTls"), "{error:?}");
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert!(starts_like_tls(&heard), "what a plain reader sees is TLS");
    assert_eq!(&heard[..2], [0x16, 3]);
    // It hangs up.
    let (near, mut far) = unix();
    let plain = thread::spawn(move || {
        far.read_exact(&mut [0; 8]).unwrap();
    });
    let error = connect(&client, near.into(), "dst.example").unwrap_err();
    plain.join().unwrap();
    assert!(is(&error, "ClosedInHandshake"), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("does it speak TLS at this address?"),
        "{error}"
    );
}

#[test]
fn a_handshake_that_stalls_ends_with_its_time() {
    let (_, server_folder, client_folder) = folders();
    let client = client(&client_folder);
    let (near, _far) = unix();
    let limit = Duration::from_millis(300);
    let start = Instant::now();
    let error = client
        .connect(near.into(), "dst.example", limit, &|| false)
        .unwrap_err();
    assert!(is(&error, "TimedOut"), "{error:?}");
    assert!(error.to_string().contains("within 0.3 s"), "{error}");
    assert!(start.elapsed() >= limit && start.elapsed() < limit * 10);

    let (near, _far) = unix();
    let error = client
        .connect(near.into(), "dst.example", Duration::MAX, &|| {
            start.elapsed() > limit * 2
        })
        .unwrap_err();
    assert!(is(&error, "GivenUp"), "{error:?}");

    // A server's handshake waits for nothing, and costs a call each time that it is asked.
    let server = server(&server_folder);
    let (mut near, far) = unix();
    let mut handshake = server.begin(far.into());
    for byte in [0x16, 3, 1, 0x3f, 0xff, 1, 0] {
        assert!(handshake.go_on().unwrap().is_none());
        assert!(!handshake.wants_write());
        near.write_all(&[byte]).unwrap();
    }
    assert!(handshake.go_on().unwrap().is_none());
    drop(handshake);
    let mut rest = Vec::new();
    let _ = near.read_to_end(&mut rest);
    assert_eq!(rest, []);
}

#[test]
fn a_million_bytes_of_garbage_end_a_handshake_early() {
    let (_, server_folder, _) = folders();
    let server = server(&server_folder);
    // Plain garbage, records of garbage, and a message that says to be as long as can be.
    let mut state = 7_u32;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    let noise: Vec<u8> = (0..1_000_000).map(|_| random()).collect();
    let records = |kind: u8, start: &[u8]| {
        let mut all = Vec::new();
        for part in noise.chunks(16_000) {
            let part = [start, part].concat();
            all.extend([kind, 3, 1]);
            all.extend((part.len() as u16).to_be_bytes());
            all.extend(part);
        }
        all
    };
    let tiny = [0x16, 3, 1, 0, 1, 0].repeat(170_000);
    let long = {
        let mut all = vec![0x16, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
        all.extend([0x16, 3, 1, 0, 1, 0].repeat(170_000));
        all
    };
    let all = [
        noise.clone(),
        records(0x16, &[1, 0, 0xff, 0xff]),
        records(0x16, &[1, 0xff, 0xff, 0xff]),
        records(0x17, &[]),
        records(0x15, &[1, 0]),
        tiny,
        long,
    ];
    for (number, garbage) in all.iter().enumerate() {
        let (mut near, far) = unix();
        thread::scope(|scope| {
            scope.spawn(move || {
                // The other end hangs up in the middle.
                let _ = near.write_all(garbage);
                let _ = near.shutdown(Shutdown::Write);
            });
            let error = drive(server.begin(far.into())).map(|_| ()).unwrap_err();
            assert!(
                is(&error, "NotTls") || is(&error, "Broken"),
                "{number}: {error:?}"
            );
            assert!(!error.to_string().is_empty());
        });
    }
}

#[test]
fn flipped_bits_end_a_handshake_with_words_and_never_with_a_guest() {
    let (_, server_folder, client_folder) = folders();
    let (server, client) = (server(&server_folder), client(&client_folder));
    for place in (0..2200_usize).step_by(97) {
        let (near, mut middle_near) = unix();
        let (mut middle_far, far) = unix();
        thread::scope(|scope| {
            let accepted =
                scope.spawn(|| accept(&server, far.into()).map(|accepted| accepted.stream));
            let (mut back_from, mut back_to) = (
                middle_far.try_clone().unwrap(),
                middle_near.try_clone().unwrap(),
            );
            scope.spawn(move || {
                let mut seen = 0;
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = middle_near.read(&mut bytes) {
                    if let Some(byte) = place
                        .checked_sub(seen)
                        .and_then(|at: usize| bytes[..count].get_mut(at))
                    {
                        *byte ^= 4;
                    }
                    seen += count;
                    if middle_far.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = middle_far.shutdown(Shutdown::Write);
            });
            scope.spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(Shutdown::Write);
            });
            let connected = client.connect(
                near.into(),
                "dst.example",
                Duration::from_millis(300),
                &|| false,
            );
            let said = |stream: Stream| {
                // The flip hits no handshake any more, or the other end has seen it.
                stream.shutdown(Shutdown::Both).unwrap();
            };
            if let Ok(stream) = connected {
                let _ = stream.write_all_of_two(b"guest", &[]);
                said(stream);
            }
            if let Ok(stream) = accepted.join().unwrap() {
                let mut bytes = [0; 16];
                match stream.read_some(&mut bytes) {
                    Ok(count) => assert_eq!(&bytes[..count], b"guest", "flipped at {place}"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        });
    }
}
