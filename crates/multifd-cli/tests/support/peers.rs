//! Both ends of a migration, made here over real sockets: what they read is kept to be looked at,
//! and they do what a test says and nothing else.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream};

use super::{DEADLINE, Migration};

/// What the made main channels ask on the return path, and what a destination answers.
const PING: &[u8] = b"\x08\0\x02\0\x04\0\0\0\x01";
pub const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
pub const SHUT_WELL: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
pub const SHUT_FAILED: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 1];

/// What a destination says to itself.
const FENCE: &[u8] = b"fence";

/// What a connection shows itself to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Main,
    Channel(u8),
    /// No mark of a migration, or less than one so far.
    Other,
}

/// How a connection ended at its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Broken(io::ErrorKind),
}

/// One connection of a destination.
pub struct Connection {
    /// All that was read.
    pub bytes: Vec<u8>,
    answered: bool,
    pub end: Option<End>,
    pub stream: Arc<Stream>,
}

impl Connection {
    pub fn role(&self) -> Role {
        let id = || self.bytes.get(24).copied();
        match self.bytes.first_chunk::<4>() {
            Some(b"QEVM") => Role::Main,
            Some(b"\x11\x22\x33\x44") => id().map_or(Role::Other, Role::Channel),
            _ => Role::Other,
        }
    }
}

/// A destination of any number of migrations.
pub struct Destination {
    pub address: Address,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// What a destination has read so far.
#[derive(Default)]
pub struct Seen {
    /// In the order in which they were opened.
    pub connections: Vec<Connection>,
    limits: Limits,
    /// It answers a ping once it has this many channels; never, without a number.
    channels: Option<usize>,
    over: bool,
}

/// The most bytes to read of each connection.
#[derive(Clone, Copy)]
pub struct Limits {
    pub main: usize,
    pub channel: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let (main, channel) = (usize::MAX, usize::MAX);
        Self { main, channel }
    }
}

impl Seen {
    /// The first connection of that kind.
    pub fn of(&self, role: Role) -> Option<&Connection> {
        self.connections
            .iter()
            .find(|connection| connection.role() == role)
    }

    pub fn main(&self) -> &Connection {
        self.of(Role::Main).expect("a main channel")
    }

    /// Whether all of `migration` was read.
    pub fn has_all(&self, migration: &Migration) -> bool {
        let has = |role, bytes: &[u8]| {
            self.of(role)
                .is_some_and(|connection| connection.bytes.len() >= bytes.len())
        };
        let channels = migration.channels.iter().zip(0..);
        has(Role::Main, &migration.main) && { channels }
            .all(|(bytes, id)| has(Role::Channel(id), bytes))
    }

    /// Answers pings, if all the channels are there.
    fn answer(&mut self) {
        let channels = self.connections.iter();
        let channels = channels.filter(|connection| matches!(connection.role(), Role::Channel(_)));
        let has_all = self
            .channels
            .is_some_and(|wanted| channels.count() >= wanted);
        for connection in &mut self.connections {
            let is_asked = connection.role() == Role::Main
                && connection
                    .bytes
                    .windows(PING.len())
                    .any(|bytes| bytes == PING);
            if has_all && is_asked && !connection.answered {
                connection.answered = true;
                // A peer that has gone is what the next read tells.
                let _ = (&*connection.stream).write_all(&PONG);
            }
        }
    }

    /// Whether every connection that was opened has ended.
    pub fn is_over(&self) -> bool {
        self.connections
            .iter()
            .all(|connection| connection.end.is_some())
    }
}

impl Destination {
    /// Listens in `folder`. It reads everything at once, and loads once it has this many channels.
    pub fn new(folder: &Path, channels: usize) -> Self {
        let address = Address::Unix(folder.join("destination"));
        Self::at(&address, channels, Limits::default())
    }

    /// The same, and reads no more of each connection than `limits` say.
    pub fn at(address: &Address, channels: usize, limits: Limits) -> Self {
        let shared = Arc::new(Shared::default());
        shared.lock().limits = limits;
        shared.lock().channels = Some(channels);
        let serve = |shared: &Arc<Shared>, stream: Stream| {
            let shared = Arc::clone(shared);
            // Here, so that connections are listed as they were opened.
            let (stream, index) = shared.admit(stream);
            thread::spawn(move || shared.serve(&stream, index));
        };
        let there = Arc::clone(&shared);
        let address = match address.unix_path() {
            Some(path) => {
                let listener = UnixListener::bind(path).expect("a socket");
                thread::spawn(move || {
                    for stream in listener.incoming() {
                        serve(&there, Stream::from(stream.expect("a connection")));
                    }
                });
                address.clone()
            }
            None => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                let address = format!("tcp:{}", listener.local_addr().expect("a port"));
                thread::spawn(move || {
                    for stream in listener.incoming() {
                        serve(&there, Stream::from(stream.expect("a connection")));
                    }
                });
                address.parse().expect("an address")
            }
        };
        Self { address, shared }
    }

    /// Does not answer pings from now on.
    pub fn silent(self) -> Self {
        self.shared.lock().channels = None;
        self
    }

    /// Reads more, or less, from now on.
    pub fn limit(&self, limits: Limits) {
        self.shared.lock().limits = limits;
        self.shared.changed.notify_all();
    }

    /// Waits until something has come.
    pub fn wait(&self, what: &str, has_come: impl Fn(&Seen) -> bool) -> MutexGuard<'_, Seen> {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = self.shared.lock();
        while !has_come(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            let connections = seen.connections.iter();
            let state: Vec<_> = connections
                .map(|connection| (connection.role(), connection.bytes.len(), connection.end))
                .collect();
            assert!(!left.is_zero(), "{what} does not come: {state:?}");
            seen = self
                .shared
                .changed
                .wait_timeout(seen, left)
                .expect("no panic")
                .0;
        }
        seen
    }

    /// What was read so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.lock()
    }

    /// Says something on a connection.
    pub fn say(&self, role: Role, bytes: &[u8]) {
        let stream = self.stream(role);
        (&*stream).write_all(bytes).expect("a reader");
    }

    /// Says something on each connection of a kind.
    pub fn say_all(&self, role: Role, bytes: &[u8]) {
        for connection in &self.seen().connections {
            if connection.role() == role {
                (&*connection.stream).write_all(bytes).expect("a reader");
            }
        }
    }

    /// Closes a connection.
    pub fn close(&self, role: Role) {
        // It may be closed already.
        let _ = self.stream(role).shutdown(Shutdown::Both);
    }

    /// Keeps nothing of what has come so far. All of it has to be over.
    pub fn forget(&self) {
        // Connections are accepted in their order: after this one there are none.
        let fence = dial(&self.address);
        write(&fence, FENCE);
        drop(self.wait("the last connection", |seen| {
            let mut connections = seen.connections.iter();
            connections.any(|connection| connection.bytes == FENCE)
        }));
        drop(fence);
        self.close_all();
        let mut seen = self.wait("the end of all", Seen::is_over);
        seen.connections.clear();
    }

    /// Closes all connections.
    pub fn close_all(&self) {
        for connection in &self.shared.lock().connections {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes what comes of a migration whose channels are recompressed, gives it the last word if
    /// it wants one, and closes.
    pub fn take_packets(&self, migration: &Migration) {
        drop(self.wait("main", |seen| {
            seen.of(Role::Main)
                .is_some_and(|main| main.bytes.len() >= migration.main.len())
        }));
        if migration.return_path {
            self.say(Role::Main, &SHUT_WELL);
        }
        let connections = 1 + migration.channels.len();
        drop(self.wait("the end of all", |seen| {
            seen.connections.len() >= connections && seen.is_over()
        }));
        self.close_all();
    }

    /// Takes all of a migration as a QEMU does, gives it the last word if it wants one, and closes.
    pub fn take(&self, migration: &Migration) {
        drop(self.wait("a whole migration", |seen| seen.has_all(migration)));
        if migration.return_path {
            self.say(Role::Main, &SHUT_WELL);
        }
        drop(self.wait("the end of main", |seen| seen.main().end.is_some()));
        self.close_all();
    }

    /// The first connection of a kind, once it is there.
    pub fn stream(&self, role: Role) -> Arc<Stream> {
        let seen = self.wait("a connection", |seen| seen.of(role).is_some());
        Arc::clone(&seen.of(role).expect("it was there").stream)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn admit(&self, stream: Stream) -> (Arc<Stream>, usize) {
        let stream = Arc::new(stream);
        let mut seen = self.lock();
        seen.connections.push(Connection {
            bytes: Vec::new(),
            answered: false,
            end: None,
            stream: Arc::clone(&stream),
        });
        self.changed.notify_all();
        (stream, seen.connections.len() - 1)
    }

    fn serve(&self, stream: &Stream, index: usize) {
        let mut buffer = vec![0; 64 << 10];
        let end = loop {
            let Some(most) = self.room(index) else {
                return;
            };
            match stream.read_some(&mut buffer[..most]) {
                Ok(0) => break End::Closed,
                Ok(count) => {
                    let mut seen = self.lock();
                    seen.connections[index]
                        .bytes
                        .extend_from_slice(&buffer[..count]);
                    self.changed.notify_all();
                    seen.answer();
                }
                Err(error) => break End::Broken(error.kind()),
            }
        };
        self.lock().connections[index].end = Some(end);
        self.changed.notify_all();
    }

    /// How much more may be read of a connection, waiting until it is something; none when the test
    /// is over.
    fn room(&self, index: usize) -> Option<usize> {
        let mut seen = self.lock();
        loop {
            if seen.over {
                return None;
            }
            let connection = &seen.connections[index];
            let least = seen.limits.main.min(seen.limits.channel);
            let limit = match connection.role() {
                Role::Main => seen.limits.main,
                Role::Channel(_) => seen.limits.channel,
                // Until it has said what it is; a hello tells its id at its byte 24.
                Role::Other => least.max(25).min(seen.limits.main.max(seen.limits.channel)),
            };
            let room = limit.saturating_sub(connection.bytes.len()).min(64 << 10);
            if room > 0 {
                return Some(room);
            }
            seen = self.changed.wait(seen).expect("no panic");
        }
    }
}

/// The connections of a source.
pub struct Source {
    pub main: Stream,
    pub channels: Vec<Stream>,
}

impl Source {
    /// Opens main first, and then this many channels.
    pub fn dial(address: &Address, channels: usize) -> Self {
        Self {
            main: dial(address),
            channels: (0..channels).map(|_| dial(address)).collect(),
        }
    }

    /// Opens all connections of a migration and writes all that fits into sockets; closes nothing.
    pub fn begin(address: &Address, migration: &Migration) -> Self {
        let source = Self::dial(address, migration.channels.len());
        source.write(migration);
        source
    }

    /// Writes the channels, and then main.
    pub fn write(&self, migration: &Migration) {
        for (channel, bytes) in self.channels.iter().zip(&migration.channels) {
            write(channel, bytes);
        }
        write(&self.main, &migration.main);
    }

    /// Closes the writing halves of all connections, as a source without a return path ends.
    pub fn finish(&self) {
        for stream in self.channels.iter().chain([&self.main]) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Reads main up to `end` of what is said there, or to its end.
    pub fn hears(&self, end: &[u8]) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut byte = [0];
        while !heard.ends_with(end) {
            match (&self.main).read(&mut byte) {
                Ok(1) => heard.push(byte[0]),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("nothing is said behind {heard:?}: {error}"),
            }
        }
        heard
    }

    /// Waits until main is closed at the other end, whatever is said before.
    pub fn wait_for_end(&self) {
        loop {
            match self.main.read_some(&mut [0; 64]) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("main stays open: {error}"),
            }
        }
    }
}

/// A connection whose reads end in time.
pub fn dial(address: &Address) -> Stream {
    let stream = Stream::connect(address).expect("a listener");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

/// A TCP connection that comes from another host than others: every number of 127/8 is one.
pub fn dial_from(host: [u8; 4], address: &Address) -> Stream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
    let text = address.to_string();
    let to: SocketAddr = text
        .strip_prefix("tcp:")
        .expect("tcp")
        .parse()
        .expect("a number");
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::from(host), 0)).expect("a host of this host");
    connect(&socket, &to).expect("a listener");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    Stream::from(stream)
}

/// Writes what a peer may have no wish to read.
pub fn write(mut stream: &Stream, bytes: &[u8]) {
    // What became of it is what the other end says.
    let _ = stream.write_all(bytes);
}

/// Waits until the other end has closed, and answers how.
pub fn end_of(stream: &Stream) -> End {
    loop {
        match stream.read_some(&mut [0; 4096]) {
            Ok(0) => return End::Closed,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("it stays open"),
            Err(error) => return End::Broken(error.kind()),
        }
    }
}

/// Long enough for what would come too early to have come.
pub fn a_while() {
    thread::sleep(Duration::from_millis(150));
}
