use super::*;
use crate::Listener;

#[test]
fn two_parts_arrive_in_order() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let sender = Stream::connect(listener.address()).unwrap();
    let receiver = loop {
        if let Some(stream) = listener.try_accept().unwrap() {
            break stream;
        }
    };
    assert_eq!(
        receiver.peek(&mut [0; 4]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    sender.write_all_of_two(b"", b"").unwrap();
    sender.write_all_of_two(b"head", b"body").unwrap();
    assert!(!receiver.peer_has_closed());
    sender.shutdown(Shutdown::Write).unwrap();
    assert!(
        receiver.peer_has_closed(),
        "seen although bytes are waiting"
    );
    let mut all = String::new();
    (&receiver).read_to_string(&mut all).unwrap();
    assert_eq!(all, "headbody");
    assert_eq!(receiver.peek(&mut [0; 4]).unwrap(), 0);
}

/// Loopback is a link that is never busy, so only the peer holds bytes up.
#[test]
fn a_peer_that_does_not_read_is_told_from_a_link() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    for sender in [
        Stream::connect(listener.address()).unwrap(),
        Stream::from(near),
    ] {
        assert_eq!(sender.backlog(), Backlog::Nowhere);
        sender
            .set_timeouts(Some(Duration::from_millis(50)))
            .unwrap();
        while (&sender).write(&[1; 1 << 20]).is_ok() {}
        // The last bytes on the way may have to be sent again.
        let deadline = Instant::now() + Duration::from_secs(20);
        while sender.backlog() != Backlog::Peer {
            assert!(Instant::now() < deadline, "{:?}", sender.backlog());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    drop(far);
}

/// It may do both between two looks.
#[test]
fn a_peer_that_reads_all_and_closes_at_once_has_it() {
    for round in 0..2000 {
        let [ours, theirs] = <[UnixStream; 2]>::from(UnixStream::pair().unwrap());
        let ours = Stream::from(ours);
        (&ours).write_all(b"word").unwrap();
        let peer = std::thread::spawn(move || {
            (&theirs).read_exact(&mut [0; 4]).unwrap();
        });
        while !ours
            .is_acknowledged()
            .unwrap_or_else(|error| panic!("round {round}: {error}"))
        {
            std::hint::spin_loop();
        }
        peer.join().unwrap();
    }
}

/// What a peer has not taken, it has not heard.
#[test]
fn written_is_acknowledged_once_the_peer_has_it_and_never_behind_a_break() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let settles = |stream: &Stream| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match stream.is_acknowledged() {
                Ok(false) => assert!(Instant::now() < deadline, "no answer of the system"),
                other => break other,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let pair = |is_tcp: bool| match is_tcp {
        true => {
            let ours = Stream::connect(listener.address()).unwrap();
            let theirs = loop {
                if let Some(stream) = listener.try_accept().unwrap() {
                    break stream;
                }
            };
            [ours, theirs]
        }
        false => <[UnixStream; 2]>::from(UnixStream::pair().unwrap()).map(Stream::from),
    };
    for is_tcp in [true, false] {
        let [ours, theirs] = pair(is_tcp);
        (&ours).write_all(b"word").unwrap();
        if !is_tcp {
            assert!(!ours.is_acknowledged().unwrap(), "nobody has read it");
        }
        (&theirs).read_exact(&mut [0; 4]).unwrap();
        assert!(settles(&ours).unwrap());
        // The peer's end, with nothing unread.
        drop(theirs);
        assert!(settles(&ours).unwrap());
        // A peer that has closed for both directions before the word came.
        let [ours, theirs] = pair(is_tcp);
        if is_tcp {
            theirs.shutdown(Shutdown::Both).unwrap();
            (&ours).write_all(b"word").unwrap();
            settles(&ours).unwrap_err();
            // Whoever takes the error leaves the bytes.
            let _ = ours.read_some(&mut [0; 1]);
            settles(&ours).unwrap_err();
        } else {
            (&ours).write_all(b"word").unwrap();
            drop(theirs);
            settles(&ours).unwrap_err();
        }
    }
}

/// A reachable host answers in time, even where a fifth of all packets is lost each way.
#[test]
fn a_peer_is_asked_often_enough_for_a_lossy_link() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let stream = Stream::connect(listener.address()).unwrap();
    let Socket::Tcp(stream) = stream.socket() else {
        panic!("a TCP connection");
    };
    let asked = sockopt::tcp_keepcnt(stream).unwrap();
    let time =
        sockopt::tcp_keepidle(stream).unwrap() + sockopt::tcp_keepintvl(stream).unwrap() * asked;
    assert_eq!(time, DEAD_PEER);
    // For 256 channels of two relays which are quiet for an hour.
    let questions = 256 * 3 * 3600 / 10;
    let lost = (1.0 - 0.8_f64 * 0.8).powi(asked.try_into().unwrap());
    assert!(lost * f64::from(questions) < 0.001, "{asked}");
}
