//! Connected sockets: one type over unix and TCP.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, connect_unspec, recv, sockopt};

use crate::dial::{DIAL_TIMEOUT, Target};
use crate::rate::Limited;
use crate::{Address, RateLimit};

/// Time limit for a peer's host to answer. Longer than what a network takes to find another way.
const DEAD_PEER: Duration = Duration::from_secs(30);

/// Silence after which the peer's host is asked whether it is there.
const QUIET: Duration = Duration::from_secs(10);

/// Time between two of these questions, in the rest of the time limit: the shortest that the system
/// can. Where a fifth of all packets is lost each way, more than a third of all questions stay
/// without answer. Of four in turn all do once in sixty times, which is far too often for a
/// migration of many channels; of twenty, once in a thousand million.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A connection: a socket, or what runs over one.
///
/// Reading and writing take `&Stream`, as with the standard library's sockets, so that two threads
/// can serve the two directions.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
    /// The limit of a bare socket's writes, if there is one.
    limited: Option<Arc<Limited>>,
}

#[derive(Debug)]
enum Kind {
    Unix(UnixStream),
    Tcp(TcpStream),
    Layered(Box<dyn Layer>),
}

/// The place where written bytes wait, as the system reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backlog {
    /// None wait.
    Nowhere,
    /// The link is busy: bytes wait, and others are on their way.
    Link,
    /// The peer's host takes none, because the peer does not read: bytes wait, and none are on
    /// their way.
    Peer,
}

/// A connection with a protocol of its own between a socket and what is carried: TLS, for one.
///
/// One thread reads and another one writes at the same time; neither holds up the other.
pub trait Layer: fmt::Debug + Send + Sync {
    /// The stream below.
    fn under(&self) -> &Stream;

    /// Calls `see` for every stream below. If there are several, `under` returns the one that
    /// brings the next bytes.
    fn each_under(&self, see: &mut dyn FnMut(&Stream)) {
        see(self.under());
    }

    /// Reads what is there. With `wait`, it waits for at least one byte. `Ok(0)` is the end that
    /// the peer has said.
    ///
    /// # Errors
    /// `WouldBlock` without `wait` when nothing is there yet. `ConnectionReset` where the
    /// connection has ended and the peer has not said so, and others.
    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<usize>;

    /// Looks at bytes that [`read`](Self::read) gives next, without waiting.
    ///
    /// # Errors
    /// Same as `read`.
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Whether a read would not wait although the socket may have nothing.
    fn has_more(&self) -> bool;

    /// Writes all of both parts.
    ///
    /// # Errors
    /// Errors of the socket.
    fn write_all_of_two(&self, head: &[u8], body: &[u8]) -> io::Result<()>;

    /// Takes bytes to be written after all others, and may keep them back to work on several at
    /// once: until [`flush`](Self::flush), or until anything else is written.
    ///
    /// # Errors
    /// Errors of the socket, of bytes before these too.
    fn write_ahead(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_of_two(bytes, &[])
    }

    /// Writes what was kept back.
    ///
    /// # Errors
    /// Errors of the socket.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Says that nothing more is written. The socket's direction is closed after that.
    ///
    /// # Errors
    /// Errors of the socket.
    fn end(&self) -> io::Result<()>;

    /// The bytes that the layer has read from the stream below, and written to it, if these are not
    /// the bytes that it has carried.
    fn bytes_below(&self) -> Option<[u64; 2]> {
        None
    }

    /// Says why the connection is about to be closed, if its protocol can and the socket takes it
    /// at once.
    fn explain(&self, _words: &str) {}

    /// Whether both ends have agreed on notes beside the bytes.
    fn has_notes(&self) -> bool {
        false
    }

    /// Says something beside the bytes, in the order of both, where there are notes.
    ///
    /// # Errors
    /// Those of the socket.
    fn tell(&self, _note: &[u8]) -> io::Result<()> {
        Ok(())
    }

    /// The peer's next note among those that stood before the bytes which were read.
    fn told(&self) -> Option<Vec<u8>> {
        None
    }
}

impl Stream {
    /// Calls `address`, waiting at most as long as [`DIAL_TIMEOUT`]. For several connections to one
    /// destination there is [`Target`].
    ///
    /// # Errors
    /// When the call fails.
    pub fn connect(address: &Address) -> io::Result<Stream> {
        Self::connect_within(address, DIAL_TIMEOUT)
    }

    /// Calls `address`, waiting at most as long as `timeout`.
    pub fn connect_within(address: &Address, timeout: Duration) -> io::Result<Stream> {
        let start = Instant::now();
        let target = Target::resolve_within(address, timeout, &|| false)?;
        Ok(target.dial(timeout.saturating_sub(start.elapsed()), &|| false)?)
    }

    const fn of(kind: Kind) -> Stream {
        let limited = None;
        Stream { kind, limited }
    }

    /// Packets are written whole, so waiting to fill a segment only delays the last one of a round.
    /// A host that is gone, or whose link is cut, says nothing by itself; with keep-alive a wait
    /// for it fails after half a minute.
    pub(crate) fn from_tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        let questions = (DEAD_PEER - QUIET).as_secs() / ASK_EVERY.as_secs();
        sockopt::set_tcp_keepidle(&stream, QUIET)?;
        sockopt::set_tcp_keepintvl(&stream, ASK_EVERY)?;
        sockopt::set_tcp_keepcnt(&stream, questions as u32)?;
        Ok(Stream::of(Kind::Tcp(stream)))
    }

    /// A connection that runs over another one.
    pub fn layered(connection: impl Layer + 'static) -> Stream {
        Stream::of(Kind::Layered(Box::new(connection)))
    }

    /// The same socket with a limit for what it writes. Bytes count, and wait only from
    /// [`hold_to_rate`](Self::hold_to_rate) on, so that nothing delays a handshake. Where something
    /// runs over a socket, the socket has to get the limit first.
    #[must_use]
    pub fn with_rate_limit(self, limit: Option<&RateLimit>) -> Stream {
        let limited = limit.filter(|_| self.is_bare()).map(Limited::new);
        Stream { limited, ..self }
    }

    /// Lets writes wait for their rate limit, if there is one. The wait ends at once when another
    /// thread closes the connection, or explains why it will.
    pub fn hold_to_rate(&self) {
        self.each_limited(&mut Limited::hold);
    }

    /// Lets writes wait for no rate limit any more. Returns whether they did.
    pub fn lift_rate_limit(&self) -> bool {
        let mut held = false;
        self.each_limited(&mut |limited| held |= limited.lift());
        held
    }

    /// How long writes have waited for a rate limit so far.
    pub fn held_by_rate(&self) -> Duration {
        let mut held = Duration::ZERO;
        self.each_limited(&mut |limited| held = held.saturating_add(limited.held()));
        held
    }

    /// Whether a write waits for a rate limit now.
    pub fn is_held_by_rate(&self) -> bool {
        let mut held = false;
        self.each_limited(&mut |limited| held |= limited.is_held());
        held
    }

    /// Bytes that were written under a rate limit.
    pub fn limited_bytes(&self) -> u64 {
        let mut bytes = 0_u64;
        self.each_limited(&mut |limited| bytes = bytes.saturating_add(limited.written()));
        bytes
    }

    /// Sees the limits of all sockets below.
    fn each_limited(&self, see: &mut dyn FnMut(&Limited)) {
        match &self.kind {
            Kind::Layered(connection) => {
                connection.each_under(&mut |stream| stream.each_limited(see));
            }
            Kind::Unix(_) | Kind::Tcp(_) => {
                if let Some(limited) = &self.limited {
                    see(limited);
                }
            }
        }
    }

    /// Writes up to `wanted` bytes by `write`, which gets the number that a rate limit allows.
    pub(crate) fn write_allowed<E>(
        &self,
        wanted: usize,
        write: impl FnOnce(usize) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let Some(limited) = &self.limited else {
            return write(wanted);
        };
        let allowed = limited.take(wanted);
        let outcome = write(allowed);
        let written = outcome.as_ref().map_or(0, |count| *count);
        limited.give_back(allowed.saturating_sub(written));
        outcome
    }

    /// The unix socket, if it is one and nothing runs over it.
    pub fn unix(&self) -> Option<&UnixStream> {
        match &self.kind {
            Kind::Unix(stream) => Some(stream),
            Kind::Tcp(_) | Kind::Layered(_) => None,
        }
    }

    /// Whether it is a socket over which nothing runs.
    pub fn is_bare(&self) -> bool {
        !matches!(self.kind, Kind::Layered(_))
    }

    /// The socket that everything runs over.
    pub(crate) fn socket(&self) -> Socket<'_> {
        match &self.kind {
            Kind::Unix(stream) => Socket::Unix(stream),
            Kind::Tcp(stream) => Socket::Tcp(stream),
            Kind::Layered(connection) => connection.under().socket(),
        }
    }

    /// Sees all sockets below, until one has an error.
    fn each_socket(&self, see: &mut dyn FnMut(Socket<'_>) -> io::Result<()>) -> io::Result<()> {
        match &self.kind {
            Kind::Unix(stream) => see(Socket::Unix(stream)),
            Kind::Tcp(stream) => see(Socket::Tcp(stream)),
            Kind::Layered(connection) => {
                let mut outcome = Ok(());
                connection.each_under(&mut |stream| {
                    if outcome.is_ok() {
                        outcome = stream.each_socket(see);
                    }
                });
                outcome
            }
        }
    }

    /// Closes one or both directions, for every handle of this socket. A socket that the peer has
    /// closed already counts as success.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match (&self.kind, how) {
            (Kind::Layered(connection), Shutdown::Write) => connection.end()?,
            // The thread that writes closes that direction itself, when it waits for nothing.
            (_, Shutdown::Write) => {}
            _ => drop(self.lift_rate_limit()),
        }
        let mut outcome = Ok(());
        // An error at one socket leaves no other one open.
        self.each_socket(&mut |socket| {
            let closed = match socket {
                Socket::Unix(stream) => stream.shutdown(how),
                Socket::Tcp(stream) => stream.shutdown(how),
            };
            match closed {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => outcome = Err(error),
                _ => {}
            }
            Ok(())
        })?;
        outcome
    }

    /// Says why the connection is about to be closed, to a peer that can hear it.
    pub fn explain(&self, words: &str) {
        if let Kind::Layered(connection) = &self.kind {
            connection.explain(words);
        }
    }

    /// Closes both directions, and takes back what is on its way to the peer as far as the system
    /// can: the peer sees a broken connection and no end. `words` say why, to a peer that can hear
    /// them.
    pub fn reset(&self, words: Option<&str>) {
        if let (Kind::Layered(_), Some(words)) = (&self.kind, words) {
            self.explain(words);
        } else {
            let _ = self.each_socket(&mut |socket| {
                if let Socket::Tcp(stream) = socket {
                    // A connection that is gone already needs no reset.
                    let _ = connect_unspec(stream);
                }
                Ok(())
            });
        }
        // A connection that cannot be shut down is closed already.
        let _ = self.shutdown(Shutdown::Both);
    }

    /// Looks at up to `buffer.len()` bytes without taking them and without waiting. `Ok(0)` is the
    /// end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there yet.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Kind::Layered(connection) = &self.kind {
            return connection.peek(buffer);
        }
        let (count, _) = recv(self, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        Ok(count)
    }

    /// Limits how long one read waits; `None` waits for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.each_socket(&mut |socket| match socket {
            Socket::Unix(stream) => stream.set_read_timeout(timeout),
            Socket::Tcp(stream) => stream.set_read_timeout(timeout),
        })
    }

    /// Limits how long one read or write waits; `None` waits for ever. Either may then fail with
    /// `WouldBlock`.
    pub fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)?;
        self.each_socket(&mut |socket| match socket {
            Socket::Unix(stream) => stream.set_write_timeout(timeout),
            Socket::Tcp(stream) => stream.set_write_timeout(timeout),
        })
    }

    /// Fails a TCP connection whose peer reads nothing for 30 s. For engines only: a QEMU that is
    /// stopped in a debugger may do that.
    pub fn notice_stalled_peer(&self) -> io::Result<()> {
        self.each_socket(&mut |socket| match socket {
            Socket::Unix(_) => Ok(()),
            Socket::Tcp(stream) => {
                let timeout = DEAD_PEER.as_millis() as u32;
                Ok(sockopt::set_tcp_user_timeout(stream, timeout)?)
            }
        })
    }

    /// Reads what is there, waiting for at least one byte; 0 is the end of the stream.
    pub fn read_some(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&mut &*self).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there yet.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Kind::Layered(connection) = &self.kind {
            return connection.read(buffer, false);
        }
        let (count, _) = recv(self, buffer, RecvFlags::DONTWAIT)?;
        Ok(count)
    }

    /// Reads to nowhere, until the peer closes or this socket is shut down.
    pub fn drain(&self) {
        // However it ends, nothing is lost by it.
        let _ = io::copy(&mut &*self, &mut io::sink());
    }

    /// Whether a read would not wait, as there are bytes, the end or an error. Takes none of them.
    pub(crate) fn is_readable(&self) -> bool {
        self.has_more() || !poll_now(self, PollFlags::IN).is_empty()
    }

    /// The same, waiting for it as long as `within`.
    pub fn is_readable_within(&self, within: Duration) -> io::Result<bool> {
        if self.has_more() {
            return Ok(true);
        }
        let mut source = [PollFd::new(self, PollFlags::IN)];
        // A few seconds at most, so they fit a timespec.
        let within = Timespec::try_from(within).ok();
        match poll(&mut source, within.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(self.is_readable()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether something waits that was taken from the socket already.
    fn has_more(&self) -> bool {
        match &self.kind {
            Kind::Layered(connection) => connection.has_more(),
            Kind::Unix(_) | Kind::Tcp(_) => false,
        }
    }

    /// Whether both ends have agreed on notes beside the bytes.
    pub fn has_notes(&self) -> bool {
        matches!(&self.kind, Kind::Layered(connection) if connection.has_notes())
    }

    /// Says something beside the bytes, in the order of both, where there are notes.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn tell(&self, note: &[u8]) -> io::Result<()> {
        match &self.kind {
            Kind::Layered(connection) => connection.tell(note),
            Kind::Unix(_) | Kind::Tcp(_) => Ok(()),
        }
    }

    /// The peer's next note among those that stood before the bytes which were read.
    pub fn told(&self) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Layered(connection) => connection.told(),
            Kind::Unix(_) | Kind::Tcp(_) => None,
        }
    }

    /// The bytes that a layer has read from the stream below, and written to it, if these are not
    /// the bytes that it has carried.
    pub fn bytes_below(&self) -> Option<[u64; 2]> {
        match &self.kind {
            Kind::Layered(connection) => connection.bytes_below(),
            Kind::Unix(_) | Kind::Tcp(_) => None,
        }
    }

    /// Bytes that were written and are still in this host: over TCP those that the peer's host has
    /// not acknowledged, over a unix socket those that the peer has not read. None, where the
    /// system does not report it.
    pub fn unsent_bytes(&self) -> u64 {
        self.sum(|socket| crate::unsent::unsent_bytes(socket))
    }

    /// Whether the peer's host has acknowledged everything that was written; over a unix socket,
    /// whether the peer has read it. `false`: not so far.
    ///
    /// # Errors
    /// If the connection has broken, so that the peer may not have all of it. Nothing is taken from
    /// the socket.
    pub fn is_acknowledged(&self) -> io::Result<bool> {
        let mut is_all = true;
        self.each_socket(&mut |socket| {
            let is_waiting = || crate::unsent::unsent_bytes(socket).unwrap_or(0) > 0;
            // A peer that closes with unread bytes discards them, so this look comes first.
            let was_waiting = is_waiting();
            let state = poll_now(socket, PollFlags::empty());
            // Another thread may have taken the error. A peer that has read all of it and closed
            // between the two looks leaves nothing; one that has not shows the error over a unix
            // socket, and leaves the bytes over TCP.
            let has_ended = was_waiting && state.contains(PollFlags::HUP) && is_waiting();
            if has_ended || state.contains(PollFlags::ERR) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            is_all &= !was_waiting;
            Ok(())
        })?;
        Ok(is_all)
    }

    /// Bytes that were written and wait to be passed on: while there always are some, the
    /// connection is busy. 0, where the system does not report it.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.sum(|socket| crate::unsent::waiting_bytes(socket))
    }

    /// The same, with those that a link would hold whose rate is the limit.
    pub(crate) fn queued_bytes(&self) -> u64 {
        let mut queued = self.waiting_bytes();
        self.each_limited(&mut |limited| queued = queued.saturating_add(limited.queued()));
        queued
    }

    /// The place where written bytes wait at the moment.
    pub fn backlog(&self) -> Backlog {
        match (self.waiting_bytes(), self.unsent_bytes()) {
            (0, _) => Backlog::Nowhere,
            // Only TCP reports the bytes on their way.
            (waiting, unsent) if unsent > waiting => Backlog::Link,
            _ => Backlog::Peer,
        }
    }

    /// The sum of a figure that the system reports, over all sockets below.
    fn sum(&self, of: impl Fn(Socket<'_>) -> io::Result<u64>) -> u64 {
        let mut sum = 0_u64;
        let _ = self.each_socket(&mut |socket| {
            sum = sum.saturating_add(of(socket).unwrap_or(0));
            Ok(())
        });
        sum
    }

    /// Whether the peer has closed its sending side, although bytes from before may still wait to
    /// be read.
    pub fn peer_has_closed(&self) -> bool {
        let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut is_closed = false;
        let _ = self.each_socket(&mut |socket| {
            is_closed |= poll_now(socket, PollFlags::RDHUP).intersects(closed);
            Ok(())
        });
        is_closed
    }

    /// Writes all of `bytes`, or takes them to be written with what comes next, where that is
    /// faster. Call `flush` when there is nothing more to write for now.
    ///
    /// # Errors
    /// Errors of the socket, of bytes before these too.
    pub fn write_ahead(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.kind {
            Kind::Layered(connection) => connection.write_ahead(bytes),
            Kind::Unix(_) | Kind::Tcp(_) => (&mut &*self).write_all(bytes),
        }
    }

    /// Writes `head` and then `body` with as few system calls as the socket allows.
    pub fn write_all_of_two(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        if let Kind::Layered(connection) = &self.kind {
            return connection.write_all_of_two(head, body);
        }
        let mut parts = [IoSlice::new(head), IoSlice::new(body)];
        let mut left = &mut parts[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match (&mut &*self).write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.kind {
            Kind::Unix(stream) => (&mut &*stream).read(buffer),
            Kind::Tcp(stream) => (&mut &*stream).read(buffer),
            Kind::Layered(connection) => connection.read(buffer, true),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Kind::Layered(connection) = &self.kind {
            connection.write_all_of_two(bytes, &[])?;
            return Ok(bytes.len());
        }
        self.write_allowed(bytes.len(), |allowed| {
            let bytes = bytes.get(..allowed).unwrap_or(bytes);
            match self.socket() {
                Socket::Unix(mut stream) => stream.write(bytes),
                Socket::Tcp(mut stream) => stream.write(bytes),
            }
        })
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if let (Kind::Layered(_), _) | (_, Some(_)) = (&self.kind, &self.limited) {
            let mut parts = parts.iter().filter(|part| !part.is_empty());
            return parts.next().map_or(Ok(0), |part| self.write(part));
        }
        match self.socket() {
            Socket::Unix(mut stream) => stream.write_vectored(parts),
            Socket::Tcp(mut stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &self.kind {
            Kind::Layered(connection) => connection.flush(),
            Kind::Unix(_) | Kind::Tcp(_) => Ok(()),
        }
    }
}

/// A socket that everything else runs over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Socket<'s> {
    Unix(&'s UnixStream),
    Tcp(&'s TcpStream),
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl AsFd for Stream {
    /// The socket's descriptor, to poll. What it carries may need [`Layer::read`] to be
    /// understood.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.socket() {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Stream::of(Kind::Unix(stream))
    }
}

/// The connection as it is: [`Stream::connect`] also asks a quiet peer whether it is there.
impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Stream::of(Kind::Tcp(stream))
    }
}

/// The present events among `events` and those that are always reported.
fn poll_now(socket: impl AsFd, events: PollFlags) -> PollFlags {
    let mut source = [PollFd::new(&socket, events)];
    let no_wait = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut source, Some(&no_wait)) {
        Ok(_) => source[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// Whether an error means that the peer has closed its end.
pub fn hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

#[cfg(test)]
mod tests;
