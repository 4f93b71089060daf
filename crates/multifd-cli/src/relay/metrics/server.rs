//! HTTP for the counters: `/metrics` and `/healthz`.
//!
//! One thread serves all clients. It reads one request from each connection, answers it, and closes
//! the connection within [`TIME_LIMIT`]. It has at most [`MOST_CLIENTS`] connections: a further one
//! replaces the oldest.

use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::builder::{OsStringValueParser, TypedValueParser};
use multifd_transport::failure::NoThread;
use multifd_transport::{Address, Cancel, Listener, Stop, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Counters;
use crate::say;

/// The most connections at a time. A monitoring system needs one.
const MOST_CLIENTS: usize = 8;

/// The time limit of a connection.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// The time limit of a write. An answer fits into the buffer of any socket.
const WRITE_LIMIT: Duration = Duration::from_millis(200);

/// The most bytes of a request line with its headers.
const MOST_REQUEST_BYTES: usize = 4096;

/// The most bytes behind a request that are read and dropped: a close with unread bytes could
/// discard the answer on its way.
const MOST_DROPPED_BYTES: usize = 64 << 10;

/// The pause after a failed accept, usually for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Parses an address that no other host can reach.
///
/// # Errors
///
/// If other hosts can reach it. The message has an example of an allowed address.
pub(crate) fn address() -> impl TypedValueParser<Value = Address> {
    OsStringValueParser::new().try_map(|text| {
        let address = Address::from_os_str(&text).map_err(|error| error.to_string())?;
        match is_local(&address) {
            true => Ok(address),
            false => Err(format!(
                "metrics are for this host: {address} is refused, only loopback or unix is allowed, \
                 as in tcp:127.0.0.1:9190"
            )),
        }
    })
}

fn is_local(address: &Address) -> bool {
    let Address::Tcp(text) = address else {
        return true;
    };
    let host = text.rsplit_once(':').map_or("", |(host, _)| host);
    let is_number = |host: &str| host.parse().is_ok_and(|host: Ipv4Addr| host.is_loopback());
    host == "localhost" || host == "[::1]" || is_number(host)
}

/// The thread that serves metrics. It ends, and its socket is removed, when this is dropped.
pub(crate) struct Server {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    address: Address,
}

impl Server {
    /// Starts to serve at `address`. `/healthz` answers "draining" once `draining` is cancelled.
    ///
    /// # Errors
    ///
    /// If the system refuses the address or a thread.
    pub(in crate::relay) fn start(
        address: &Address,
        mode: u32,
        counters: Arc<Counters>,
        draining: Cancel,
    ) -> Result<Self, String> {
        let listener = say::listener(address, mode)?;
        let failed = |error: io::Error| format!("cannot serve metrics: {}", say::chain(&error));
        let stop = Stop::new().map_err(failed)?;
        let address = listener.address().clone();
        let service = Service {
            listener,
            stop: stop.clone(),
            counters,
            draining,
            clients: Vec::new(),
            paused: None,
        };
        let thread = thread::Builder::new().name("metrics".to_owned());
        let thread = thread.spawn(move || service.run());
        let thread = thread.map_err(|error| failed(NoThread::io(error)))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            address,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metrics are at {}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed, and needs no more work.
            let _ = thread.join();
        }
    }
}

struct Service {
    listener: Listener,
    stop: Stop,
    counters: Arc<Counters>,
    draining: Cancel,
    /// The oldest first.
    clients: Vec<Client>,
    /// No connection is accepted before this time.
    paused: Option<Instant>,
}

struct Client {
    stream: Stream,
    deadline: Instant,
    request: Vec<u8>,
    /// After the answer: the number of further bytes that are read and dropped.
    dropped: Option<usize>,
}

impl Service {
    fn run(mut self) {
        while !self.stop.is_requested() {
            let Ok((is_called, ready)) = self.wait() else {
                // The descriptors are few and valid, so the system lacks memory.
                thread::sleep(WRITE_LIMIT);
                continue;
            };
            let now = Instant::now();
            let mut ready = ready.into_iter();
            let (counters, draining) = (&self.counters, &self.draining);
            let answer = |request: &[u8]| answer(request, counters, draining.is_cancelled());
            self.clients.retain_mut(|client| {
                let is_ready = ready.next().unwrap_or(false);
                now < client.deadline && (!is_ready || client.goes_on(&answer))
            });
            if is_called {
                self.accept(now);
            }
        }
    }

    /// Waits for connections, requests and deadlines. Returns whether a connection waits, and which
    /// clients can be read.
    fn wait(&mut self) -> io::Result<(bool, Vec<bool>)> {
        let now = Instant::now();
        self.paused = self.paused.filter(|until| now < *until);
        let ends = self.clients.iter().map(|client| client.deadline);
        let next = ends.chain(self.paused).min();
        let timeout = next.map(|next| next.saturating_duration_since(now));
        // A wait that is rounded down would end before the deadline and be repeated.
        let timeout = timeout.map(|timeout| timeout + Duration::from_millis(1));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let readable = |flags: PollFlags| !flags.is_empty();
        let mut polled = vec![PollFd::new(&self.stop, PollFlags::IN)];
        let clients = self.clients.iter();
        polled.extend(clients.map(|client| PollFd::new(&client.stream, PollFlags::IN)));
        if self.paused.is_none() {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut flags = polled
            .iter()
            .skip(1)
            .map(|polled| readable(polled.revents()));
        let ready = flags.by_ref().take(self.clients.len()).collect();
        Ok((flags.next().unwrap_or(false), ready))
    }

    fn accept(&mut self, now: Instant) {
        match self.listener.try_accept() {
            Ok(Some(stream)) => {
                if self.clients.len() >= MOST_CLIENTS {
                    self.clients.remove(0);
                }
                // If the connection has ended already, its first read fails.
                let _ = stream.set_timeouts(Some(WRITE_LIMIT));
                self.clients.push(Client {
                    stream,
                    deadline: now + TIME_LIMIT,
                    request: Vec::new(),
                    dropped: None,
                });
            }
            Ok(None) => {}
            Err(_) => self.paused = Some(now + ACCEPT_PAUSE),
        }
    }
}

impl Client {
    /// Reads the available bytes. Returns whether the connection stays open.
    fn goes_on(&mut self, answer: &dyn Fn(&[u8]) -> String) -> bool {
        let mut buffer = [0; MOST_REQUEST_BYTES];
        let count = match self.stream.read_now(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        if let Some(dropped) = &mut self.dropped {
            let left = dropped.checked_sub(count);
            *dropped = left.unwrap_or_default();
            return left.is_some();
        }
        self.request.extend(buffer.iter().take(count));
        let is_too_long =
            head_of(&self.request).is_none() && self.request.len() >= MOST_REQUEST_BYTES;
        if head_of(&self.request).is_none() && !is_too_long {
            return true;
        }
        let answer = answer(&self.request);
        let is_sent = (&self.stream).write_all(answer.as_bytes()).is_ok();
        self.dropped = Some(MOST_DROPPED_BYTES);
        self.request = Vec::new();
        is_sent && self.stream.shutdown(Shutdown::Write).is_ok()
    }
}

/// The target of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Metrics,
    Health,
    Other,
}

/// The fault of a wrong request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum RequestFault {
    /// The headers are too long.
    #[error("the request line and headers have more than {MOST_REQUEST_BYTES} bytes")]
    TooLong,
    /// The first line is not that of HTTP/1.0 or 1.1.
    #[error("the first line is not that of an HTTP/1.0 or HTTP/1.1 request")]
    Malformed,
}

/// The answer to a request, with its headers.
fn answer(request: &[u8], counters: &Counters, is_draining: bool) -> String {
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match parse(request) {
        Ok(Target::Metrics) => (
            "200 OK",
            "text/plain; version=0.0.4; charset=utf-8",
            counters.to_string(),
        ),
        Ok(Target::Health) if is_draining => {
            ("503 Service Unavailable", plain, "draining\n".to_owned())
        }
        Ok(Target::Health) => ("200 OK", plain, "ok\n".to_owned()),
        Ok(Target::Other) => ("404 Not Found", plain, String::new()),
        Err(fault @ RequestFault::TooLong) => (
            "431 Request Header Fields Too Large",
            plain,
            format!("{fault}\n"),
        ),
        Err(fault @ RequestFault::Malformed) => ("400 Bad Request", plain, format!("{fault}\n")),
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Parses the first line of a request: `GET /metrics HTTP/1.1` (RFC 9112, section 3). It ignores
/// the headers.
fn parse(request: &[u8]) -> Result<Target, RequestFault> {
    let head = head_of(request).ok_or(RequestFault::TooLong)?;
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.0" | b"HTTP/1.1"] = words.as_slice() else {
        return Err(RequestFault::Malformed);
    };
    let is_method = !method.is_empty() && method.iter().all(u8::is_ascii_alphabetic);
    let is_target = !target.is_empty() && target.iter().all(u8::is_ascii_graphic);
    if !is_method || !is_target {
        return Err(RequestFault::Malformed);
    }
    let path = target.split(|byte| *byte == b'?').next();
    Ok(match (*method, path.unwrap_or_default()) {
        (b"GET", b"/metrics") => Target::Metrics,
        (b"GET", b"/healthz") => Target::Health,
        _ => Target::Other,
    })
}

/// The request line and headers, if they are complete and not too long.
fn head_of(request: &[u8]) -> Option<&[u8]> {
    let request = request.get(..MOST_REQUEST_BYTES).unwrap_or(request);
    let is_end = |at: &usize| {
        let rest = request.get(*at..).unwrap_or_default();
        rest.starts_with(b"\n\r\n") || rest.starts_with(b"\n\n")
    };
    let end = (0..request.len()).find(is_end)?;
    request.get(..=end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_host_are_accepted() {
        for (text, is_ours) in [
            ("unix:/run/metrics", true),
            ("tcp:127.0.0.1:1", true),
            ("tcp:127.1.2.3:1", true),
            ("tcp:localhost:1", true),
            ("tcp:[::1]:1", true),
            ("tcp::1", false),
            ("tcp:0.0.0.0:1", false),
            ("tcp:[::]:1", false),
            ("tcp:192.0.2.1:1", false),
            ("tcp:127.0.0.1.example.org:1", false),
        ] {
            assert_eq!(is_local(&text.parse().unwrap()), is_ours, "{text}");
        }
    }

    #[test]
    fn a_request_is_read_by_its_first_line() {
        for (request, wish) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                Ok(Target::Metrics),
            ),
            ("GET /metrics HTTP/1.0\n\n", Ok(Target::Metrics)),
            ("GET /metrics?name=x HTTP/1.1\r\n\r\n", Ok(Target::Metrics)),
            ("GET /healthz HTTP/1.1\r\n\r\nbody", Ok(Target::Health)),
            ("GET / HTTP/1.1\r\n\r\n", Ok(Target::Other)),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Ok(Target::Other)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Ok(Target::Other)),
            (
                "GET /metrics HTTP/2.0\r\n\r\n",
                Err(RequestFault::Malformed),
            ),
            ("GET /metrics\r\n\r\n", Err(RequestFault::Malformed)),
            (
                "GET  /metrics HTTP/1.1\r\n\r\n",
                Err(RequestFault::Malformed),
            ),
            (
                "GET /metrics HTTP/1.1 \r\n\r\n",
                Err(RequestFault::Malformed),
            ),
            ("\r\n\r\n", Err(RequestFault::Malformed)),
            ("GET /metrics HTTP/1.1\r\n", Err(RequestFault::TooLong)),
            ("", Err(RequestFault::TooLong)),
        ] {
            assert_eq!(parse(request.as_bytes()), wish, "{request:?}");
        }
        for byte in 0..=u8::MAX {
            let request = [b"GET /", [byte].as_slice(), b" HTTP/1.1\n\n"].concat();
            assert_ne!(parse(&request), Ok(Target::Metrics));
        }
    }

    #[test]
    fn headers_have_a_limit() {
        let of = |len: usize| {
            let line = "GET /metrics HTTP/1.1\r\nX: ";
            let rest = len - line.len() - 4;
            format!("{line}{}\r\n\r\n", "x".repeat(rest))
        };
        assert_eq!(
            parse(of(MOST_REQUEST_BYTES).as_bytes()),
            Ok(Target::Metrics)
        );
        let longer = of(MOST_REQUEST_BYTES + 1);
        assert_eq!(parse(longer.as_bytes()), Err(RequestFault::TooLong));
    }
}
