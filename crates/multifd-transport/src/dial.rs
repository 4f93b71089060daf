//! Calling a destination.
//!
//! Every call has a limit and ends when its caller gives up. All connections of one migration go to
//! the host that answered the first one, however many hosts have the name.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};

use crate::escape::printable_path;
use crate::failure::NoThread;
use crate::resolve::{ASK_EVERY, Purpose, ResolveError, resolve};
use crate::{Address, Stream};

/// Default time limit for a call.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for one attempt. The kernel asks twice in this time, and would wait longer and longer
/// before it asked again: where a fifth of all packets is lost, a new attempt is sooner there.
const ATTEMPT: Duration = Duration::from_millis(2500);

/// Pause before a call to a unix socket with a full queue is repeated: no event reports room in it.
const UNIX_PAUSE: Duration = Duration::from_millis(10);

/// The longest path that fits the address of a unix socket, which ends with a NUL.
pub(crate) const UNIX_PATH_BYTES: usize = 107;

/// An address whose name was looked up once.
///
/// Clones share what they learn: where several hosts have the name, all go on to call the one that
/// has answered.
#[derive(Clone, Debug)]
pub struct Target {
    address: Address,
    hosts: Vec<SocketAddr>,
    answered: Arc<OnceLock<SocketAddr>>,
}

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The call was refused, or could not be made. The text names the host that refused, and what
    /// to do.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No host answered.
    #[error(
        "no answer within {} s from {tried}; see that the destination accepts connections and that no firewall is in between",
        seconds(*within)
    )]
    TimedOut {
        /// The time limit.
        within: Duration,
        /// The address that was called.
        tried: String,
    },
    /// The caller gave up.
    #[error("the source gave up before the destination answered")]
    GivenUp,
}

/// Tenths are exact enough for people.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Io(error) => error,
            DialError::TimedOut { .. } => io::Error::new(io::ErrorKind::TimedOut, error),
            DialError::GivenUp => io::Error::new(io::ErrorKind::ConnectionAborted, error),
        }
    }
}

impl From<ResolveError> for DialError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::GivenUp => DialError::GivenUp,
            ResolveError::Io(error) => DialError::Io(error),
            error => DialError::Io(io::Error::new(error.kind(), error)),
        }
    }
}

/// An error of the system with the host that was called and what to do: the [`io::Error::get_ref`]
/// of a failed call.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {advice}")]
struct Refused {
    tried: String,
    advice: &'static str,
    source: io::Error,
}

/// Whether an error is this host's own and none of a peer's: it has no descriptors, no memory or no
/// threads left.
pub fn is_ours(error: &io::Error) -> bool {
    if error.get_ref().is_some_and(|inner| inner.is::<NoThread>()) {
        return true;
    }
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    match error.raw_os_error() {
        Some(code) => ours.iter().any(|ours| ours.raw_os_error() == code),
        None => {
            let mut cause = std::error::Error::source(error);
            while let Some(inner) = cause {
                if let Some(inner) = inner.downcast_ref::<io::Error>() {
                    return is_ours(inner);
                }
                cause = inner.source();
            }
            false
        }
    }
}

/// The outcome of one attempt.
enum Attempt {
    Answered(Stream),
    Silent,
    Refused(io::Error),
    GivenUp,
}

impl Target {
    /// Looks the name up, once for a whole migration, within [`DIAL_TIMEOUT`]. Asks `given_up` at
    /// least every 50 ms and stops when it answers true.
    ///
    /// # Errors
    /// When there is no such host, or the caller gives up.
    pub fn resolve(address: &Address, given_up: &dyn Fn() -> bool) -> Result<Target, DialError> {
        Self::resolve_within(address, DIAL_TIMEOUT, given_up)
    }

    /// Looks the name up within a time, as long as `given_up` does not answer true.
    ///
    /// # Errors
    /// When there is no such host, or no answer in time.
    pub fn resolve_within(
        address: &Address,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Target, DialError> {
        let hosts = match address {
            Address::Unix(_) => Vec::new(),
            Address::Tcp(text) => resolve(text, Purpose::Dial, within, given_up)?,
        };
        Ok(Target {
            address: address.clone(),
            hosts,
            answered: Arc::default(),
        })
    }

    /// The numbers that the name stands for; none for a unix socket.
    pub fn hosts(&self) -> &[SocketAddr] {
        &self.hosts
    }

    /// The address that was looked up.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Calls, trying all addresses of the host, at most as long as `within`. Asks `given_up` at
    /// least every 50 ms and stops when it answers true.
    ///
    /// # Errors
    /// When the call failed.
    pub fn dial(&self, within: Duration, given_up: &dyn Fn() -> bool) -> Result<Stream, DialError> {
        match &self.address {
            Address::Unix(path) => dial_unix(path, within, given_up),
            Address::Tcp(_) => self.dial_tcp(within, given_up),
        }
    }

    fn dial_tcp(&self, within: Duration, given_up: &dyn Fn() -> bool) -> Result<Stream, DialError> {
        let start = Instant::now();
        loop {
            let answered = self.answered.get();
            let hosts = answered.map_or(self.hosts.as_slice(), std::slice::from_ref);
            // Each has its turn within the limit.
            let turns = u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
            let patience = ATTEMPT.min(within / turns);
            let mut refused = None;
            let mut silent = Vec::new();
            for &host in hosts {
                let patience = patience.min(within.saturating_sub(start.elapsed()));
                match attempt(host, patience, given_up) {
                    Attempt::Answered(stream) => {
                        if *self.answered.get_or_init(|| host) == host {
                            return Ok(stream);
                        }
                        // Another thread's call was answered first, by another host.
                        silent.push(host);
                    }
                    Attempt::Silent => silent.push(host),
                    Attempt::Refused(error) => drop(refused.get_or_insert(error)),
                    Attempt::GivenUp => return Err(DialError::GivenUp),
                }
            }
            if silent.is_empty() {
                let none = || io::Error::from(io::ErrorKind::AddrNotAvailable);
                return Err(refused.unwrap_or_else(none).into());
            }
            if start.elapsed() >= within {
                let names: Vec<_> = silent.iter().map(ToString::to_string).collect();
                let tried = names.join(", ");
                return Err(DialError::TimedOut { within, tried });
            }
        }
    }
}

/// Calls one address and waits for its answer. What has not been answered then is closed, so that a
/// peer never has two connections of one call.
fn attempt(host: SocketAddr, patience: Duration, given_up: &dyn Fn() -> bool) -> Attempt {
    match try_attempt(host, patience, given_up) {
        Ok(attempt) => attempt,
        Err(Errno::TIMEDOUT) => Attempt::Silent,
        Err(errno) => Attempt::Refused(refusal(host, advice(host, errno), errno)),
    }
}

fn try_attempt(
    host: SocketAddr,
    patience: Duration,
    given_up: &dyn Fn() -> bool,
) -> Result<Attempt, Errno> {
    let start = Instant::now();
    let family = match host {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = open(family)?;
    match connect(&socket, &host) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    loop {
        if given_up() {
            return Ok(Attempt::GivenUp);
        }
        let left = patience.saturating_sub(start.elapsed());
        if wait_writable(&socket, left.min(ASK_EVERY))? {
            break;
        }
        if left.is_zero() {
            return Ok(Attempt::Silent);
        }
    }
    sockopt::socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    // A port without a listener can be the very one that the system chose for the caller, which
    // then calls itself.
    let itself = matches!((stream.local_addr(), stream.peer_addr()), (Ok(a), Ok(b)) if a == b);
    if itself {
        return Err(Errno::CONNREFUSED);
    }
    let ready = stream.set_nonblocking(false);
    Ok(match ready.and_then(|()| Stream::from_tcp(stream)) {
        Ok(stream) => Attempt::Answered(stream),
        Err(error) => Attempt::Refused(error),
    })
}

fn dial_unix(
    path: &Path,
    within: Duration,
    given_up: &dyn Fn() -> bool,
) -> Result<Stream, DialError> {
    let start = Instant::now();
    let tried = printable_path(path);
    let refused = |errno| {
        DialError::Io(refusal(
            &tried,
            unix_advice(path, errno, Purpose::Dial),
            errno,
        ))
    };
    let address = SocketAddrUnix::new(path).map_err(refused)?;
    let socket = open(AddressFamily::UNIX).map_err(refused)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            // Its queue is full.
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(refused(errno)),
        }
        if given_up() {
            return Err(DialError::GivenUp);
        }
        if start.elapsed() >= within {
            return Err(DialError::TimedOut { within, tried });
        }
        sleep(UNIX_PAUSE);
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(Stream::from(stream))
}

/// A stream socket that does not block.
pub(crate) fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, None)
}

fn wait_writable(socket: impl AsFd, timeout: Duration) -> Result<bool, Errno> {
    let timeout = Timespec::try_from(timeout).ok();
    match poll(
        &mut [PollFd::new(&socket, PollFlags::OUT)],
        timeout.as_ref(),
    ) {
        Err(Errno::INTR) => Ok(false),
        other => Ok(other? > 0),
    }
}

fn refusal(tried: impl fmt::Display, advice: &'static str, errno: Errno) -> io::Error {
    let source = io::Error::from(errno);
    io::Error::new(
        source.kind(),
        Refused {
            tried: tried.to_string(),
            advice,
            source,
        },
    )
}

const NO_DESCRIPTORS: &str =
    "this host has no descriptors left; raise the limit (ulimit -n, or LimitNOFILE= of its unit)";
const NO_IPV6: &str = "IPv6 does not get there from this host; write an IPv4 address";

fn advice(host: SocketAddr, errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE | Errno::NFILE => NO_DESCRIPTORS,
        Errno::CONNREFUSED => {
            "nobody listens there; start the destination first, or check the address"
        }
        Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::NETUNREACH if host.is_ipv6() => NO_IPV6,
        Errno::ADDRNOTAVAIL => "no local port is free",
        Errno::HOSTUNREACH | Errno::NETUNREACH => {
            "this host cannot reach it; see its routes and firewall (`ip route get`)"
        }
        Errno::ACCESS | Errno::PERM => "this host's firewall does not allow it",
        _ => "the call failed",
    }
}

/// Advice for a unix socket that cannot be called, or listened on.
pub(crate) fn unix_advice(path: &Path, errno: Errno, purpose: Purpose) -> &'static str {
    let found = std::fs::metadata(path).ok().map(|file| file.file_type());
    match (errno, purpose) {
        (Errno::MFILE | Errno::NFILE, _) => NO_DESCRIPTORS,
        (Errno::NAMETOOLONG, _) => {
            "the path is longer than the 107 bytes that a socket's can have; choose a shorter one"
        }
        _ if found.is_some_and(|found| found.is_dir()) => {
            "it is a folder and no socket; name a file in it"
        }
        _ if found.is_some_and(|found| !found.is_socket()) => {
            "it is a file and no socket; choose another path"
        }
        (Errno::NOENT | Errno::CONNREFUSED, Purpose::Dial) => {
            "nobody listens there; start the destination first, or check the address"
        }
        (Errno::NOENT | Errno::NOTDIR, _) => "its folder is not there; make it first",
        (Errno::ACCESS | Errno::PERM, Purpose::Dial) => {
            "this user may not connect to it; run as its owner, or let the destination make it for others"
        }
        (Errno::ACCESS | Errno::PERM | Errno::ROFS, Purpose::Listen) => {
            "this user may make no file there; choose another folder"
        }
        (Errno::PROTOTYPE, Purpose::Dial) => {
            "it is a socket of another kind than migrations have; see who made it"
        }
        _ => "the call failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Listener;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(200);

    fn never() -> bool {
        false
    }

    fn target(address: &str) -> Target {
        Target::resolve(&address.parse().unwrap(), &never).unwrap()
    }

    /// A port without a listener, which no other process gets.
    fn bound() -> (TcpListener, SocketAddr) {
        let socket = open(AddressFamily::INET).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        rustix::net::bind(&socket, &any).unwrap();
        let bound = TcpListener::from(socket);
        let address = bound.local_addr().unwrap();
        (bound, address)
    }

    /// A listener whose queue is full: it answers no further call.
    fn full() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
        let (listener, address) = bound();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, SHORT) {
            waiting.push(stream);
        }
        (listener, waiting, address)
    }

    #[test]
    fn who_does_not_answer_is_given_up_and_named() {
        let (_listener, _waiting, address) = full();
        let target = target(&format!("tcp:{address}"));
        match target.dial(SHORT, &never).unwrap_err() {
            DialError::TimedOut { within, tried } => {
                assert_eq!((within, tried), (SHORT, address.to_string()));
            }
            other => panic!("{other}"),
        }
        let error: io::Error = target.dial(SHORT, &never).unwrap_err().into();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Without end otherwise.
        let asked = AtomicUsize::new(0);
        let given_up = || asked.fetch_add(1, Ordering::Relaxed) > 3;
        let error = target.dial(LONG * 60, &given_up).unwrap_err();
        assert!(matches!(error, DialError::GivenUp), "{error}");
    }

    #[test]
    fn a_new_attempt_is_made_while_there_is_time() {
        let (listener, waiting, address) = full();
        let target = target(&format!("tcp:{address}"));
        std::thread::scope(|scope| {
            let call = scope.spawn(|| target.dial(LONG, &never));
            drop(waiting);
            // All that waited, and the one that there is room for then.
            listener.set_nonblocking(true).unwrap();
            while !call.is_finished() {
                let _ = listener.accept();
                std::thread::yield_now();
            }
            call.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_unix_socket_with_a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = open(AddressFamily::UNIX).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = UnixListener::from(socket);
        let target = Target::resolve(&Address::Unix(path), &never).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match target.dial(SHORT, &never) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, DialError::TimedOut { .. }), "{error}");
        let error = target.dial(LONG, &|| true).unwrap_err();
        assert!(matches!(error, DialError::GivenUp), "{error}");
        std::thread::scope(|scope| {
            let call = scope.spawn(|| target.dial(LONG, &never));
            listener.set_nonblocking(true).unwrap();
            while !call.is_finished() {
                let _ = listener.accept();
            }
            call.join().unwrap().unwrap();
        });
    }

    #[test]
    fn who_refuses_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let says = |path: &Path, says: &str| {
            let target = Target::resolve(&Address::Unix(path.to_owned()), &never).unwrap();
            let error = target.dial(LONG, &never).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        };
        says(&path, "start the destination first");
        drop(UnixListener::bind(&path).unwrap());
        says(&path, "start the destination first");
        says(folder.path(), "a folder and no socket");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        says(&file, "a file and no socket");
        says(&folder.path().join("x".repeat(200)), "107 bytes");

        let (_bound, bound) = bound();
        let error = target(&format!("tcp:{bound}")).dial(LONG, &never);
        let error: io::Error = error.unwrap_err().into();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&bound.to_string()), "{error}");
        assert!(!is_ours(&error));
    }

    #[test]
    fn a_lack_of_descriptors_is_this_hosts() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS] {
            assert!(is_ours(&errno.into()));
            let wrapped = refusal("somebody", "something", errno);
            assert!(is_ours(&wrapped), "{wrapped}");
            assert!(is_ours(&DialError::Io(wrapped).into()));
        }
        assert!(!is_ours(&Errno::CONNREFUSED.into()));
        assert!(!is_ours(&io::ErrorKind::UnexpectedEof.into()));
    }

    /// A target of several hosts, as a name has them.
    fn of(hosts: Vec<SocketAddr>) -> Target {
        Target {
            address: "tcp:several:1".parse().unwrap(),
            hosts,
            answered: Arc::default(),
        }
    }

    #[test]
    fn all_addresses_are_tried_and_the_first_that_answers_is_kept_to() {
        let (_full, _waiting, silent) = full();
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = (listen(), listen());
        let [first_address, second_address] =
            [&first, &second].map(|listener| listener.local_addr().unwrap());
        let (_bound, gone) = bound();
        let target = of(vec![gone, silent, first_address, second_address]);
        for _ in 0..3 {
            target.clone().dial(LONG, &never).unwrap();
            first.accept().unwrap();
        }
        second.set_nonblocking(true).unwrap();
        assert!(second.accept().is_err(), "the other was not called");
        // All connections of one migration go to one host: the next one in the list does not stand
        // in for it.
        drop(first);
        let error = target.dial(LONG, &never).unwrap_err();
        assert!(matches!(error, DialError::Io(_)), "{error}");
        assert!(second.accept().is_err(), "the other was not called");
    }

    #[test]
    fn both_families_of_this_host_are_called() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let text = listener.address().to_string();
        let (_, port) = text.rsplit_once(':').unwrap();
        for host in ["", "localhost"] {
            Stream::connect(&format!("tcp:{host}:{port}").parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn an_answered_call_blocks_as_sockets_do() {
        use std::io::{Read, Write};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = target(&format!("tcp:{}", listener.local_addr().unwrap()));
        let stream = target.dial(LONG, &never).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        std::thread::scope(|scope| {
            let read = scope.spawn(|| {
                let mut byte = [0];
                (&stream).read(&mut byte).map(|count| (count, byte))
            });
            std::thread::sleep(Duration::from_millis(20));
            far.write_all(b"x").unwrap();
            assert_eq!(read.join().unwrap().unwrap(), (1, *b"x"));
        });
    }
}
