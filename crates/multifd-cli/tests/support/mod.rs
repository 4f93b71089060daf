//! What several tests need: the built command, sources of migrations, captures.
#![allow(dead_code, reason = "each test uses its own part")]

pub mod captures;
pub mod made;
pub mod peers;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream};
use multifd_wire::Hello;
use sha2::{Digest, Sha256};
use testkit::process::Tested;
pub use testkit::process::{DEADLINE, Ended};

/// The built command.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_multifd"))
}

/// A running `multifd`. Dropped, it is killed.
#[derive(Debug)]
pub struct Multifd(Tested);

impl Multifd {
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::spawn(Command::new(program()).args(args))
    }

    /// Starts a command that is made of [`program`].
    pub fn spawn(command: &mut Command) -> Self {
        Self(Tested::spawn(command))
    }

    /// Waits until it listens. Returns where.
    pub fn address(&mut self) -> Address {
        self.0.address()
    }

    /// Waits for its end.
    pub fn end(self) -> Ended {
        self.0.end()
    }
}

impl Deref for Multifd {
    type Target = Tested;

    fn deref(&self) -> &Tested {
        &self.0
    }
}

impl DerefMut for Multifd {
    fn deref_mut(&mut self) -> &mut Tested {
        &mut self.0
    }
}

/// A `multifd receive --json` that listens beside the folder `images` and writes to it.
pub fn receive(images: &Path) -> Multifd {
    let listen = format!("unix:{}", images.with_extension("sock").display());
    Multifd::start([
        "receive".as_ref(),
        "--json".as_ref(),
        "--listen".as_ref(),
        listen.as_ref(),
        "--dump".as_ref(),
        images.as_os_str(),
    ])
}

/// A `multifd record` that listens beside the file `out` and writes it.
pub fn record(out: &Path) -> Multifd {
    let listen = format!("unix:{}", out.with_extension("sock").display());
    Multifd::start([
        "record".as_ref(),
        "--listen".as_ref(),
        listen.as_ref(),
        "--out".as_ref(),
        out.as_os_str(),
    ])
}

/// A `multifd replay` of `file`.
pub fn replay(file: &Path, connect: &Address) -> Multifd {
    let connect = connect.to_string();
    Multifd::start([
        "replay".as_ref(),
        file.as_os_str(),
        "--connect".as_ref(),
        connect.as_ref(),
    ])
}

/// What the source of a migration writes.
#[derive(Clone)]
pub struct Migration {
    pub main: Vec<u8>,
    pub channels: Vec<Vec<u8>>,
    /// The source keeps its connections open until it has an answer.
    pub return_path: bool,
    /// This channel is closed all the same.
    pub closed: Option<usize>,
}

/// Sends a migration as a QEMU does: all connections are open, and each channel has said hello,
/// before main's first byte; then each is written by itself. Answers what came back on main.
pub fn send(migration: &Migration, address: &Address) -> Vec<u8> {
    let dial = || {
        let stream = Stream::connect(address).expect("a listener");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        stream
    };
    let main = dial();
    let channels: Vec<_> = migration.channels.iter().map(|_| dial()).collect();
    let hello_of = |bytes: &[u8]| bytes.len().min(Hello::LEN);
    for (mut stream, bytes) in channels.iter().zip(&migration.channels) {
        let _ = stream.write_all(&bytes[..hello_of(bytes)]);
    }
    // A receiver that fails closes everything; what it says of that is what a test looks at.
    let write = |mut stream: &Stream, bytes: &[u8], closed| {
        let _ = stream.write_all(bytes);
        if closed || !migration.return_path {
            let _ = stream.shutdown(Shutdown::Write);
        }
    };
    // A channel that is closed before its main channel says its set-up belongs to no source with a
    // return path.
    let is_begun = || {
        let deadline = Instant::now() + DEADLINE;
        while main.unsent_bytes() > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(300));
    };
    let is_begun = &is_begun;
    let mut back = Vec::new();
    thread::scope(|scope| {
        for (index, (stream, bytes)) in channels.iter().zip(&migration.channels).enumerate() {
            let rest = &bytes[hello_of(bytes)..];
            scope.spawn(move || {
                let closed = migration.closed == Some(index);
                if closed && migration.return_path {
                    is_begun();
                }
                write(stream, rest, closed);
            });
        }
        scope.spawn(|| write(&main, &migration.main, false));
        read_answers(&main, migration.return_path, &mut back);
    });
    back
}

/// Reads main up to its SHUT, or to its end where nothing is to be said.
fn read_answers(mut main: &Stream, return_path: bool, back: &mut Vec<u8>) {
    let mut byte = [0];
    while let Ok(1) = main.read(&mut byte) {
        back.push(byte[0]);
        let shut = back.len() >= 8 && back[back.len() - 8..].starts_with(&[0, 1, 0, 4]);
        if return_path && shut {
            return;
        }
    }
}

pub fn sha256(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The files of a folder by name.
pub fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    names
}
