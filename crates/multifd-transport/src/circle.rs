//! Detects that a relay's destination is the relay itself, under any name.
//!
//! A migration that comes back to where it came from never arrives: it goes round until something
//! is full, and a source without a return path may have given its guest away by then. So every
//! listener of this process is listed here by what tells it from all others, a port with its
//! addresses or a file's numbers, together with where it leads. Before the first byte of a
//! migration is passed on, the way from the host that answered the call is followed from listener
//! to listener; only a way that never leaves is refused, as relays of one process may well be
//! chained.
//!
//! A way back through a proxy, a translation of addresses or another relay's process is not found:
//! neither a stream nor a socket shows it.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::address::host_and_port;
use crate::cleanup::Identity;
use crate::resolve::{Purpose, resolve};
use crate::stream::Socket;
use crate::{Address, Stream};

/// Time limit for looking a name up before there is a migration. If it runs out, the first
/// migration checks.
const EARLY_LOOK_UP: Duration = Duration::from_secs(1);

/// Time limit for a datagram from this host to itself; nothing but a firewall keeps it.
const ECHO: Duration = Duration::from_millis(100);

static LISTENERS: Mutex<Listeners> = Mutex::new(Listeners {
    next: 0,
    listed: Vec::new(),
});

struct Listeners {
    next: u64,
    listed: Vec<Listed>,
}

#[derive(Clone)]
struct Listed {
    number: u64,
    address: Address,
    places: Vec<Place>,
    /// The address that its migrations are passed on to, if it is known.
    leads_to: Option<Address>,
}

/// The identity of a socket on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(Identity),
}

/// A relay whose destination is the relay itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{connect} leads back to this relay itself, which listens on {}; name the destination's own address instead",
    Names(listeners)
)]
pub struct Circle {
    /// The address that the migration was to go to.
    connect: Address,
    /// The listeners of this process on its way, in their order.
    listeners: Vec<Address>,
}

struct Names<'a>(&'a [Address]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let before = if index == 0 { "" } else { " and on " };
            write!(f, "{before}{name}")?;
        }
        Ok(())
    }
}

/// Keeps a listener listed, as long as it listens.
#[derive(Debug)]
pub(crate) struct Listing {
    number: u64,
}

impl Listing {
    /// Lists a listener by the places of its sockets.
    pub(crate) fn new(address: &Address, places: Vec<Place>) -> Self {
        let mut listeners = lock();
        let number = listeners.next;
        listeners.next = number.wrapping_add(1);
        listeners.listed.push(Listed {
            number,
            address: address.clone(),
            places,
            leads_to: None,
        });
        Self { number }
    }

    /// The listener's connections are passed on to `connect`.
    pub(crate) fn leads_to(&self, connect: &Address) {
        let mut listeners = lock();
        let mut listed = listeners.listed.iter_mut();
        if let Some(own) = listed.find(|listed| listed.number == self.number) {
            own.leads_to = Some(connect.clone());
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        lock().listed.retain(|listed| listed.number != self.number);
    }
}

/// Fails if a migration to `connect` would never leave this process. If only some addresses of its
/// name are this process's, this does not fail: the check waits for the call.
pub fn look_ahead(connect: &Address) -> Result<(), Circle> {
    let listed = lock().listed.clone();
    let look = Look {
        listed: &listed,
        within: EARLY_LOOK_UP,
        given_up: &|| false,
    };
    let places = look.places(connect);
    let all_are_ours = places.iter().all(|&place| look.own(place).is_some());
    match places.first() {
        Some(&first) if all_are_ours => look.follow(connect, first),
        _ => Ok(()),
    }
}

/// Fails where `stream`, which was dialled to get to `connect`, leads back to where its migration
/// came from. Names on the way are looked up within a time, as long as `given_up` does not answer
/// true.
pub fn look_behind(
    stream: &Stream,
    connect: &Address,
    within: Duration,
    given_up: &dyn Fn() -> bool,
) -> Result<(), Circle> {
    let place = match (stream.socket(), connect) {
        (Socket::Tcp(stream), _) => stream.peer_addr().ok().map(Place::Tcp),
        (Socket::Unix(_), Address::Unix(path)) => Place::of_file(path),
        (Socket::Unix(_), Address::Tcp(_)) => None,
    };
    let Some(place) = place else {
        return Ok(());
    };
    let listed = lock().listed.clone();
    let look = Look {
        listed: &listed,
        within,
        given_up,
    };
    look.follow(connect, place)
}

struct Look<'a> {
    listed: &'a [Listed],
    within: Duration,
    given_up: &'a dyn Fn() -> bool,
}

impl Look<'_> {
    /// Follows the way from `place`, which `connect` stands for, through listeners of this process.
    fn follow(&self, connect: &Address, place: Place) -> Result<(), Circle> {
        let mut ways = vec![connect];
        let mut passed: Vec<&Listed> = Vec::new();
        let mut next = self.own(place);
        while let Some(own) = next {
            let is_passed = passed.iter().any(|passed| passed.number == own.number);
            if !is_passed {
                passed.push(own);
            }
            let Some(way) = &own.leads_to else {
                return Ok(());
            };
            // A way under the name that it was taken by before needs no second look at where it
            // leads.
            if is_passed || ways.contains(&way) {
                let listeners = passed.iter().map(|own| own.address.clone()).collect();
                let connect = connect.clone();
                return Err(Circle { connect, listeners });
            }
            ways.push(way);
            // The address of a name that will answer is not known here, so that each of them
            // counts.
            let places = self.places(way);
            next = places.into_iter().find_map(|place| self.own(place));
        }
        Ok(())
    }

    /// The listener of this process at a place.
    fn own(&self, place: Place) -> Option<&Listed> {
        let is_at = |own: &Place| match (*own, place) {
            (Place::Unix(own), Place::Unix(file)) => own == file,
            (Place::Tcp(own), Place::Tcp(peer)) => is_served_by(own, peer),
            _ => false,
        };
        self.listed
            .iter()
            .find(|listed| listed.places.iter().any(is_at))
    }

    /// The places of an address. A port without a listener here gives none, and needs no look-up.
    fn places(&self, address: &Address) -> Vec<Place> {
        let text = match address {
            Address::Unix(path) => return Place::of_file(path).into_iter().collect(),
            Address::Tcp(text) => text,
        };
        let is_ours = |port| {
            let mut places = self.listed.iter().flat_map(|listed| &listed.places);
            places.any(|place| matches!(place, Place::Tcp(own) if own.port() == port))
        };
        match host_and_port(text) {
            Ok((_, port)) if is_ours(port) => {
                // If the look-up fails, the call is about to fail too.
                let found = resolve(text, Purpose::Dial, self.within, self.given_up);
                found.into_iter().flatten().map(Place::Tcp).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Place {
    /// The socket that calls to `path` come to, wherever links lead. As long as a socket is open no
    /// other file has its numbers.
    fn of_file(path: &Path) -> Option<Place> {
        let metadata = fs::metadata(path).ok()?;
        Some(Place::Unix(Identity::of(&metadata)))
    }
}

/// Whether calls to `peer` come to a socket that listens on `own`.
fn is_served_by(own: SocketAddr, peer: SocketAddr) -> bool {
    let (own_ip, peer_ip) = (own.ip().to_canonical(), peer.ip().to_canonical());
    let is_any = match own_ip {
        IpAddr::V4(own) => own.is_unspecified() && peer_ip.is_ipv4(),
        // It serves both families, alone or together with one for IPv4.
        IpAddr::V6(own) => own.is_unspecified(),
    };
    own.port() == peer.port() && (own_ip == peer_ip || is_any && is_here(peer_ip))
}

/// Whether an address is this host's, by a datagram that comes back. That it can be bound says
/// less: the system may be set to allow that for every address (net.ipv4.ip_nonlocal_bind).
fn is_here(ip: IpAddr) -> bool {
    let echoes = || {
        let socket = UdpSocket::bind((ip, 0))?;
        socket.connect(socket.local_addr()?)?;
        socket.set_read_timeout(Some(ECHO))?;
        socket.send(b"?")?;
        socket.recv(&mut [0])
    };
    ip.is_loopback() || echoes().is_ok()
}

fn lock() -> MutexGuard<'static, Listeners> {
    // The list is whole whenever the lock is released.
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Listener;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    /// A listener, and its address under another host's name.
    fn listening(text: &str) -> (Listener, impl Fn(&str) -> Address) {
        let listener = Listener::bind(&address(text)).unwrap();
        let text = listener.address().to_string();
        let port = text.rsplit_once(':').unwrap().1.to_owned();
        (listener, move |host: &str| {
            address(&format!("tcp:{host}:{port}"))
        })
    }

    fn refused(connect: &Address) -> Vec<Address> {
        let stream = Stream::connect(connect).unwrap();
        let behind = look_behind(&stream, connect, ECHO, &|| false);
        let circle = behind.unwrap_err();
        assert_eq!(circle.connect, *connect);
        circle.listeners
    }

    fn allowed(connect: &Address) {
        look_ahead(connect).unwrap();
        let stream = Stream::connect(connect).unwrap();
        look_behind(&stream, connect, ECHO, &|| false).unwrap();
    }

    #[test]
    fn every_name_of_a_listener_is_known() {
        let cases = [
            (
                "tcp:0.0.0.0:0",
                &["127.0.0.1", "127.0.0.9", "localhost"][..],
            ),
            ("tcp:127.0.0.1:0", &["127.0.0.1", "localhost"]),
            (
                "tcp:[::]:0",
                &["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", ""],
            ),
            ("tcp::0", &["127.0.0.1", "[::1]", "localhost", ""]),
        ];
        for (listen, names) in cases {
            let (listener, named) = listening(listen);
            for name in names {
                let connect = named(name);
                allowed(&connect);
                listener.leads_to(&connect);
                assert_eq!(refused(&connect), [listener.address().clone()], "{connect}");
                // A name is known before the call only if no other process can answer to it.
                if *name != "localhost" && (!name.is_empty() || listen != "tcp:127.0.0.1:0") {
                    look_ahead(&connect).unwrap_err();
                }
                listener.leads_to(&address("tcp:192.0.2.1:1"));
            }
        }
    }

    #[test]
    fn a_neighbour_at_the_same_port_is_another() {
        let (listener, named) = listening("tcp:127.0.0.1:0");
        let other = Listener::bind(&named("127.0.0.2")).unwrap();
        listener.leads_to(other.address());
        allowed(other.address());
        assert!(!is_here("192.0.2.77".parse().unwrap()));
        let any = "0.0.0.0:4444".parse().unwrap();
        assert!(!is_served_by(any, "192.0.2.77:4444".parse().unwrap()));
        assert!(!is_served_by(any, "127.0.0.1:4445".parse().unwrap()));
        assert!(!is_served_by(any, "[::1]:4444".parse().unwrap()));
    }

    #[test]
    fn links_to_a_socket_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [path, link] = ["s", "link"].map(|name| folder.path().join(name));
        let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let connect = Address::Unix(link);
        listener.leads_to(&connect);
        look_ahead(&connect).unwrap_err();
        assert_eq!(refused(&connect), [Address::Unix(path)]);
        drop(listener);
        look_ahead(&connect).unwrap();
    }

    #[test]
    fn a_chain_is_no_circle() {
        let (first, named_first) = listening("tcp:127.0.0.1:0");
        let (second, named_second) = listening("tcp:0.0.0.0:0");
        let (last, named_last) = listening("tcp:127.0.0.1:0");
        first.leads_to(&named_second("127.0.0.1"));
        second.leads_to(&named_last("127.0.0.1"));
        allowed(&named_second("127.0.0.1"));
        allowed(&named_first("127.0.0.1"));
        // Now the last listener leads to the second. A migration that only enters that circle is
        // refused too.
        last.leads_to(&named_second("127.0.0.5"));
        let all = [&first, &second, &last].map(|listener| listener.address().clone());
        assert_eq!(refused(&named_first("127.0.0.1")), all);
        let error = look_ahead(&named_first("127.0.0.1")).unwrap_err();
        assert_eq!(error.listeners, all);
        assert_eq!(
            refused(&named_last("127.0.0.1")),
            [&all[2], &all[1]].map(Clone::clone)
        );
        drop(second);
        look_ahead(&named_first("127.0.0.1")).unwrap();
    }
}
