//! From the host and port of an address to the socket addresses that they stand for.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::AddressError;
use crate::address::{Host, host_and_port};
use crate::dial::seconds;
use crate::escape::printable;
use crate::failure::NoThread;

/// Poll interval for cancellation.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(50);

/// The most look-ups that may hang at once. Each holds a thread, which the system cannot be asked
/// to end.
const MOST_LOOKUPS: usize = 32;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// Why a host could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// It is no valid address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The system does not know the name.
    #[error(
        "the name `{host}` cannot be looked up; write the host's number, or add the name to /etc/hosts or the DNS"
    )]
    Name {
        /// The name.
        host: String,
        /// The system's error.
        source: io::Error,
    },
    /// The look-up takes too long.
    #[error(
        "looking up the name `{host}` took longer than {} s; write the host's number, or see why the DNS does not answer",
        seconds(*within)
    )]
    Slow {
        /// The name.
        host: String,
        /// Its time limit.
        within: Duration,
    },
    /// Earlier look-ups hang.
    #[error(
        "{MOST_LOOKUPS} look-ups of names hang; write the host's number, or see why the DNS does not answer"
    )]
    Busy,
    /// There is no such interface.
    #[error("this host has no network interface `{name}`; `ip link` lists those that it has")]
    Interface {
        /// The interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The caller no longer waits for the answer.
    #[error("the source gave up while a name was looked up")]
    GivenUp,
    /// This host cannot start a look-up.
    #[error("cannot look up a name")]
    Io(#[from] io::Error),
}

impl ResolveError {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            ResolveError::Address(_) => io::ErrorKind::InvalidInput,
            ResolveError::Name { source, .. }
            | ResolveError::Interface { source, .. }
            | ResolveError::Io(source) => source.kind(),
            ResolveError::Slow { .. } => io::ErrorKind::TimedOut,
            ResolveError::Busy => io::ErrorKind::ResourceBusy,
            ResolveError::GivenUp => io::ErrorKind::ConnectionAborted,
        }
    }
}

/// The meaning of an empty host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// All addresses of this host.
    Listen,
    /// This host.
    Dial,
}

/// All socket addresses of `HOST:PORT`, each once, in the system's order.
pub(crate) fn resolve(
    text: &str,
    purpose: Purpose,
    within: Duration,
    given_up: &dyn Fn() -> bool,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let (host, port) = host_and_port(text)?;
    match host {
        Host::Any => {
            let (v6, v4) = match purpose {
                Purpose::Listen => (Ipv6Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
                Purpose::Dial => (Ipv6Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
            };
            Ok(vec![(v6, port).into(), (v4, port).into()])
        }
        Host::V6(number, interface) => {
            let scope = interface.map(interface_number).transpose()?;
            let address = SocketAddrV6::new(number, port, 0, scope.unwrap_or_default());
            Ok(vec![address.into()])
        }
        Host::Named(host) => match host.parse::<Ipv4Addr>() {
            Ok(number) => Ok(vec![(number, port).into()]),
            Err(_) => look_up(&LOOKUPS, host, within, given_up, move |host| {
                (host, port).to_socket_addrs().map(Iterator::collect)
            }),
        },
    }
}

fn interface_number(name: &str) -> Result<u32, ResolveError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let any = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    name_to_index(any.map_err(io::Error::from)?, name).map_err(|source| ResolveError::Interface {
        name: printable(name),
        source: source.into(),
    })
}

/// Asks the system for a name. It has no time limit of its own that could be relied on, so a thread
/// asks, which is left behind when it takes too long.
fn look_up(
    running: &'static AtomicUsize,
    host: &str,
    within: Duration,
    given_up: &dyn Fn() -> bool,
    ask: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let turn = Turn::take(running).ok_or(ResolveError::Busy)?;
    let (tell, answer) = mpsc::sync_channel(1);
    let name = host.to_owned();
    thread::Builder::new()
        .name("look-up".to_owned())
        .spawn(move || {
            let _turn = turn;
            // After the limit the answer is not wanted.
            let _ = tell.send(ask(&name));
        })
        .map_err(NoThread::io)?;
    let start = Instant::now();
    loop {
        let left = within.saturating_sub(start.elapsed());
        match answer.recv_timeout(left.min(ASK_EVERY)) {
            Ok(Ok(found)) => {
                let mut addresses: Vec<SocketAddr> = Vec::new();
                for address in found {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                return Ok(addresses);
            }
            Ok(Err(source)) => {
                let host = printable(host);
                return Err(ResolveError::Name { host, source });
            }
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                let host = printable(host);
                return Err(ResolveError::Slow { host, within });
            }
            Err(RecvTimeoutError::Timeout) if given_up() => return Err(ResolveError::GivenUp),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the look-up ended without an answer").into());
            }
        }
    }
}

/// One of the look-ups that may run at once.
struct Turn(&'static AtomicUsize);

impl Turn {
    fn take(running: &'static AtomicUsize) -> Option<Turn> {
        let before = running.fetch_add(1, Ordering::AcqRel);
        let turn = Turn(running);
        (before < MOST_LOOKUPS).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn found(text: &str, purpose: Purpose) -> Result<Vec<String>, ResolveError> {
        let addresses = resolve(text, purpose, LONG, &|| false)?;
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_host_is_all_of_its_addresses() {
        let cases = [
            (":1", Purpose::Listen, &["[::]:1", "0.0.0.0:1"][..]),
            (":1", Purpose::Dial, &["[::1]:1", "127.0.0.1:1"]),
            ("192.0.2.1:1", Purpose::Dial, &["192.0.2.1:1"]),
            ("[::1]:1", Purpose::Dial, &["[::1]:1"]),
            ("[fe80::1%7]:1", Purpose::Dial, &["[fe80::1%7]:1"]),
            // The one interface that every network namespace has, and has as its first.
            ("[fe80::1%lo]:1", Purpose::Dial, &["[fe80::1%1]:1"]),
        ];
        for (text, purpose, addresses) in cases {
            assert_eq!(found(text, purpose).unwrap(), addresses, "{text}");
        }
        let localhost = found("localhost:1", Purpose::Dial).unwrap();
        assert!(localhost.iter().any(|address| address == "127.0.0.1:1"));
    }

    #[test]
    fn what_is_not_found_is_named() {
        let error = found("[fe80::1%nosuch0]:1", Purpose::Dial).unwrap_err();
        assert!(error.to_string().contains("`nosuch0`"), "{error}");
        // RFC 6761: no host has such a name.
        let error = found("no.such.invalid:1", Purpose::Dial).unwrap_err();
        assert!(error.to_string().contains("no.such.invalid"), "{error}");
    }

    #[test]
    fn a_lookup_that_hangs_is_left_behind_and_there_are_few_of_them() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let (release, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let hang = |within: Duration, given_up: &dyn Fn() -> bool| {
            let wait = wait.clone();
            look_up(&RUNNING, "slow", within, given_up, move |_| {
                let _ = wait.lock().unwrap().recv();
                Ok(Vec::new())
            })
        };
        let error = hang(LONG, &|| true).unwrap_err();
        assert!(matches!(error, ResolveError::GivenUp), "{error}");
        let mut hanging = 1;
        let busy = loop {
            match hang(Duration::ZERO, &|| false).unwrap_err() {
                ResolveError::Slow { .. } => hanging += 1,
                other => break other,
            }
            assert!(hanging <= MOST_LOOKUPS);
        };
        assert!(matches!(busy, ResolveError::Busy), "{busy}");
        drop(release);
        while RUNNING.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
    }
}
