//! What several tests need: the built command, sources of migrations, captures.
#![allow(dead_code, reason = "each test uses its own part")]

pub mod captures;
pub mod made;
pub mod peers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream};
use multifd_wire::Hello;
use sha2::{Digest, Sha256};

/// No step of a test takes nearly as long; what does, hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The built command.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_multifd"))
}

/// A running `multifd`. Dropped, it is killed.
pub struct Multifd {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// What it says on one stream, line by line.
struct Lines {
    coming: Receiver<String>,
    said: String,
}

/// How a `multifd` ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Multifd {
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::spawn(Command::new(program()).args(args))
    }

    /// Starts a command that is made of [`program`].
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the built command");
        let stdout = Lines::of(child.stdout.take().expect("a pipe"));
        let stderr = Lines::of(child.stderr.take().expect("a pipe"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Waits until it listens, and says where.
    pub fn address(&mut self) -> Address {
        loop {
            let line = self.stderr.next().expect("it listens");
            if let Some(address) = line.strip_prefix("multifd: listening on ") {
                return address.parse().expect("an address");
            }
        }
    }

    /// Waits for the next line of its results.
    pub fn result(&mut self) -> String {
        self.stdout.next().expect("a result")
    }

    /// Waits for the next line that it says beside its results.
    pub fn complaint(&mut self) -> String {
        self.stderr.next().expect("a complaint")
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => break status,
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                None => panic!("it hangs, having said: {}", self.stderr.said),
            }
        };
        Ended {
            status,
            stdout: self.stdout.rest(),
            stderr: self.stderr.rest(),
        }
    }
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (tell, coming) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                // Nobody listens any more when the test has ended.
                let _ = tell.send(line.expect("text"));
            }
        });
        Self {
            coming,
            said: String::new(),
        }
    }

    /// The next line, or none if the stream has ended.
    fn next(&mut self) -> Option<String> {
        match self.coming.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.said.push_str(&line);
                self.said.push('\n');
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it hangs, having said: {}", self.said),
        }
    }

    /// Everything up to the end.
    fn rest(&mut self) -> String {
        while self.next().is_some() {}
        std::mem::take(&mut self.said)
    }
}

impl Drop for Multifd {
    fn drop(&mut self) {
        // It has ended already unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// What it printed, if it went well.
    pub fn well(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
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

/// Sends a migration as a QEMU does: all connections are open, and each channel has said hello, before main's first byte;
/// then each is written by itself.
/// Answers what came back on main.
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
    let mut back = Vec::new();
    thread::scope(|scope| {
        for (index, (stream, bytes)) in channels.iter().zip(&migration.channels).enumerate() {
            let rest = &bytes[hello_of(bytes)..];
            scope.spawn(move || write(stream, rest, migration.closed == Some(index)));
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
