//! An acceptor in a process without descriptors. A program of its own, as the limit is one of the
//! process.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use multifd_transport::incoming::{Acceptor, Note};
use multifd_transport::{Address, Cancel, Stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A main channel up to the end of its RAM section's set-up, without multifd.
const MAIN: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\
    \x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
    \0\0\0\0\x01\0\0\x04\x06pc.ram\0\0\0\0\x01\0\0\0\
    \0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

#[test]
fn connections_are_accepted_again_once_there_are_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let mut acceptor = Acceptor::bind(&Address::Unix(folder.path().join("s"))).unwrap();
    let (tell, told) = mpsc::channel();
    acceptor.on_note(move |note| {
        if matches!(note, Note::CannotAccept(_)) {
            tell.send(()).unwrap();
        }
    });
    let current = Some(64);
    let limit = Rlimit {
        current,
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    // One for the source, and none for us.
    taken.pop();
    let main = Stream::connect(acceptor.address()).unwrap();
    (&main).write_all(MAIN).unwrap();
    told.recv_timeout(Duration::from_secs(60)).unwrap();
    drop(taken);
    let incoming = acceptor.accept(&Cancel::new()).unwrap();
    assert_eq!(incoming.main_start, MAIN);
}
