//! Sockets over unix and TCP, which a run can close all at once.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port of this machine.
    Tcp(SocketAddr),
}

impl Address {
    /// Parses an address as `multifd` prints it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = text.strip_prefix("trunk+").unwrap_or(text);
        if let Some(path) = plain.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        plain
            .strip_prefix("tcp:")
            .or_else(|| plain.strip_prefix("trunk:"))
            .and_then(|address| address.parse().ok())
            .map(Self::Tcp)
            .ok_or_else(|| format!("{text} is no address"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Socket {
    /// Path of a socket in the file system.
    Unix(UnixStream),
    /// Over the loopback.
    Tcp(TcpStream),
}

impl Socket {
    /// Dials. With small buffers a peer notices at once that nobody reads.
    pub fn connect(address: &Address, small: bool) -> io::Result<Self> {
        let socket = match address {
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, Duration::from_secs(20))?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        };
        if small {
            socket.make_small();
        }
        Ok(socket)
    }

    /// Asks for small buffers. They have to hold some packets' headers, because QEMU 7.2 writes one
    /// after a SYNC.
    pub fn make_small(&self) {
        /// A segment over the loopback has nearly 64 KiB. If not even one fits, the kernel sends
        /// only a probe now and then.
        const BYTES: usize = 64 << 10;
        // If the system refuses, the run is only less strict.
        let _ = sockopt::set_socket_send_buffer_size(self, BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(self, BYTES);
    }

    /// Closes one or both directions of this socket, for all its handles.
    pub fn shutdown(&self, how: Shutdown) {
        // It may be closed already.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }

    /// Breaks the connection: the peer of a TCP connection gets a reset. A unix socket has none, it
    /// closes.
    pub fn reset(&self) {
        if let Self::Tcp(stream) = self {
            // On Linux, connecting a socket to no address resets its connection.
            let _ = rustix::net::connect_unspec(stream);
        }
        self.shutdown(Shutdown::Both);
    }

    /// Writes all bytes.
    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => (&*stream).write_all(bytes),
            Self::Tcp(stream) => (&*stream).write_all(bytes),
        }
    }

    /// Reads the available bytes. Returns 0 at the end.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Unix(stream) => (&*stream).read(bytes),
                Self::Tcp(stream) => (&*stream).read(bytes),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Fills `bytes`. The error states the number of bytes before the end.
    pub fn read_exact(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read(&mut bytes[filled..])? {
                0 => {
                    let text = format!("the end after {filled} of {} bytes", bytes.len());
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                read => filled += read,
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// A listener. Dropping it removes its socket in the file system.
#[derive(Debug)]
pub enum Listener {
    /// At a path.
    Unix(UnixListener, PathBuf),
    /// At a port.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at a path.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // A part of another user may have to come in.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// Listens at a port of the system's choice.
    pub fn tcp() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    /// Its address.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Unix(_, path) => Address::Unix(path.clone()),
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?),
        })
    }

    /// The next connection, if one comes in time.
    pub fn accept(&self, wait: Duration) -> io::Result<Option<Socket>> {
        let deadline = Instant::now() + wait;
        loop {
            let accepted = match self {
                Self::Unix(listener, _) => listener.accept().map(|(s, _)| Socket::Unix(s)),
                Self::Tcp(listener) => listener.accept().map(|(s, _)| Socket::Tcp(s)),
            };
            match accepted {
                Ok(Socket::Unix(stream)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(Some(Socket::Unix(stream)));
                }
                Ok(Socket::Tcp(stream)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(Some(Socket::Tcp(stream)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let fd = match self {
                Self::Unix(listener, _) => listener.as_fd(),
                Self::Tcp(listener) => listener.as_fd(),
            };
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            // The next attempt shows the state, whatever this call returned.
            let _ = poll(
                &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
                Some(&left),
            );
        }
    }

    /// Accepts and closes the connections that an earlier run has left.
    pub fn drain(&self) {
        while let Ok(Some(socket)) = self.accept(Duration::ZERO) {
            socket.reset();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // The folder is removed, too.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Ends a run for all its threads: it closes every registered socket.
#[derive(Debug, Default)]
pub struct Stop {
    set: AtomicBool,
    sockets: Mutex<Vec<Weak<Socket>>>,
}

impl Stop {
    /// Registers a socket.
    pub fn keep(&self, socket: Socket) -> Arc<Socket> {
        let socket = Arc::new(socket);
        let mut sockets = crate::locked(&self.sockets);
        sockets.push(Arc::downgrade(&socket));
        if self.is_set() {
            socket.shutdown(Shutdown::Both);
        }
        socket
    }

    /// Ends the run.
    pub fn stop(&self) {
        let sockets = crate::locked(&self.sockets);
        self.set.store(true, Ordering::SeqCst);
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether the run has ended.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Sleeps, but not longer than the run lasts.
    pub fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_set() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

/// Fires when a number of bytes have passed.
#[derive(Debug)]
pub struct Trigger {
    at: u64,
    passed: AtomicU64,
    fired: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Trigger {
    /// Fires once `at` bytes have passed; 0 at the first byte.
    #[must_use]
    pub fn new(at: u64) -> Self {
        Self {
            at: at.max(1),
            passed: AtomicU64::new(0),
            fired: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    /// Counts bytes that have passed.
    pub fn add(&self, bytes: usize) {
        let passed = self.passed.fetch_add(bytes as u64, Ordering::SeqCst) + bytes as u64;
        if passed >= self.at {
            self.fire();
        }
    }

    /// Fires now.
    pub fn fire(&self) {
        crate::locked(&self.fired).get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Waits until it fires; false if the run ends before.
    pub fn wait(&self, stop: &Stop) -> bool {
        let mut fired = crate::locked(&self.fired);
        while fired.is_none() && !stop.is_set() {
            let wait = self.changed.wait_timeout(fired, Duration::from_millis(10));
            fired = wait.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        fired.is_some()
    }

    /// Whether it has fired.
    pub fn is_fired(&self) -> bool {
        crate::locked(&self.fired).is_some()
    }

    /// The time since it fired.
    pub fn fired_for(&self) -> Duration {
        crate::locked(&self.fired).map_or(Duration::ZERO, |fired| fired.elapsed())
    }
}
