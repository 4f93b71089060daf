//! Listening sockets: one type over unix and TCP, over both families of it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::epoll;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

use crate::address::host_and_port;
use crate::circle::{Listing, Place};
use crate::cleanup::Temporary;
use crate::dial::{DIAL_TIMEOUT, UNIX_PATH_BYTES, open, unix_advice};
use crate::escape::printable_path;
use crate::resolve::{Purpose, ResolveError, resolve};
use crate::{Address, Stream};

/// The number of connections that may wait to be accepted: a migration has up to 257, and others
/// may come at the same time. The system has a limit of its own below (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// The number of attempts to find a port that is free in both families.
const PORT_TRIES: usize = 16;

/// How an address is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenOptions {
    /// The mode of a unix socket's file, regardless of the umask. The default is 0600: only the
    /// owner may connect.
    pub mode: u32,
    /// An empty file stands where the unix socket is to be, and asks for it. The socket takes its
    /// place at once, and listens already when it does. The file of a socket that is not served any
    /// more asks for it too.
    pub over_request: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            mode: 0o600,
            over_request: false,
        }
    }
}

/// Why an address cannot be listened on: the inner error of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
enum ListenError {
    /// Another process listens there.
    #[error("another process listens there; end it (`ss -lp` shows it), or choose another address")]
    InUse,
    /// A file or folder is in the socket's place. It is left alone.
    #[error(
        "{} is a {found} and no socket; choose another path, or remove it",
        printable_path(path)
    )]
    NoSocket {
        /// The intended place of the socket.
        path: PathBuf,
        /// The kind of the file there.
        found: &'static str,
    },
    /// The path does not fit a socket's address.
    #[error(
        "the path has {found} bytes, and a socket's can have {UNIX_PATH_BYTES}; choose a shorter one"
    )]
    PathTooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// The socket's file cannot be made.
    #[error("cannot make the socket {}: {advice}", printable_path(path))]
    Unix {
        /// The intended address.
        path: PathBuf,
        /// Advice.
        advice: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// This host has no IPv6.
    #[error(
        "IPv6 is switched off on this host; write an IPv4 address, as in tcp:0.0.0.0:{port} for all of them"
    )]
    NoIpv6 {
        /// The port that was asked for.
        port: u16,
    },
    /// It is no address of this host.
    #[error("{} is no address of this host; tcp::{} is all of them", address.ip(), address.port())]
    Elsewhere {
        /// The address.
        address: SocketAddr,
    },
    /// Low ports are for the system's services.
    #[error("this user may not listen on port {port}; choose one of 1024 or more")]
    Privileged {
        /// The port.
        port: u16,
    },
    /// The host is unknown.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The system refuses.
    #[error("cannot make a listening socket")]
    Io(#[from] io::Error),
}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> Self {
        let kind = match &error {
            ListenError::InUse => io::ErrorKind::AddrInUse,
            ListenError::NoSocket { .. } => io::ErrorKind::AlreadyExists,
            ListenError::PathTooLong { .. } => io::ErrorKind::InvalidFilename,
            ListenError::Unix { source, .. } => source.kind(),
            ListenError::NoIpv6 { .. } => io::ErrorKind::Unsupported,
            ListenError::Elsewhere { .. } => io::ErrorKind::AddrNotAvailable,
            ListenError::Privileged { .. } => io::ErrorKind::PermissionDenied,
            ListenError::Resolve(error) => error.kind(),
            ListenError::Io(source) => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

/// An address that is listened on, by one socket or several: a name can stand for addresses of both
/// families. Dropping it removes the file of a unix socket.
///
/// Its descriptor is readable when a connection is waiting, at whichever of its sockets.
#[derive(Debug)]
pub struct Listener {
    sockets: Sockets,
    /// The next listener to ask, so that a crowd at one socket keeps no other from being served.
    turn: AtomicUsize,
    address: Address,
    listing: Listing,
    _file: Option<Temporary>,
}

#[derive(Debug)]
enum Sockets {
    One(ListeningSocket),
    /// With a descriptor that stands for all of them.
    Several(Vec<ListeningSocket>, OwnedFd),
}

#[derive(Debug)]
enum ListeningSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on `address`, for connections of the same user only if it is a unix socket.
    ///
    /// A unix socket that is not served any more is replaced; one that is served, or a file of
    /// another kind, is an error.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(address: &Address) -> io::Result<Listener> {
        Self::bind_with(address, &ListenOptions::default())
    }

    /// Listens on `address`.
    ///
    /// # Errors
    /// Same as [`Listener::bind`].
    pub fn bind_with(address: &Address, options: &ListenOptions) -> io::Result<Listener> {
        Ok(Self::listen(address, options)?)
    }

    fn listen(address: &Address, options: &ListenOptions) -> Result<Listener, ListenError> {
        match address {
            Address::Unix(path) => {
                let (socket, file) = match options.over_request {
                    true => bind_over(path, options.mode)?,
                    false => bind_unix(path, options.mode)?,
                };
                let listing = Listing::new(address, vec![Place::Unix(file.identity())]);
                Ok(Listener {
                    sockets: Sockets::One(ListeningSocket::Unix(socket)),
                    turn: AtomicUsize::new(0),
                    address: address.clone(),
                    listing,
                    _file: Some(file),
                })
            }
            Address::Tcp(text) => {
                let (sockets, port) = bind_tcp(text)?;
                let host = text.rsplit_once(':').map_or("", |(host, _)| host);
                let address = Address::Tcp(format!("{host}:{port}"));
                let places = sockets
                    .iter()
                    .map(|socket| Ok(Place::Tcp(socket.local_addr()?)));
                let listing = Listing::new(&address, places.collect::<io::Result<_>>()?);
                Ok(Listener {
                    sockets: Sockets::of(sockets).map_err(io::Error::from)?,
                    turn: AtomicUsize::new(0),
                    address,
                    listing,
                    _file: None,
                })
            }
        }
    }

    /// The address in use: for `tcp:HOST:0` with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its connections will be passed on to `connect`.
    pub fn leads_to(&self, connect: &Address) {
        self.listing.leads_to(connect);
    }

    /// Takes a connection that is waiting, or `None`. A connection that has gone before it could be
    /// taken is passed over.
    ///
    /// # Errors
    /// When no connection can be taken; about the host, and not about one connection (see
    /// [`crate::dial::is_ours`]). It may pass, as descriptors do.
    pub fn try_accept(&self) -> io::Result<Option<Stream>> {
        let sockets = self.sockets.as_slice();
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % sockets.len().max(1);
        let (before, from) = sockets.split_at(first);
        for socket in from.iter().chain(before) {
            match socket.accept() {
                Ok(stream) => return Ok(Some(stream)),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl Sockets {
    fn of(mut sockets: Vec<TcpListener>) -> Result<Sockets, Errno> {
        if sockets.len() == 1
            && let Some(only) = sockets.pop()
        {
            return Ok(Sockets::One(ListeningSocket::Tcp(only)));
        }
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for socket in &sockets {
            let nothing = epoll::EventData::new_u64(0);
            epoll::add(&all, socket, nothing, epoll::EventFlags::IN)?;
        }
        let sockets = sockets.into_iter().map(ListeningSocket::Tcp).collect();
        Ok(Sockets::Several(sockets, all))
    }

    fn as_slice(&self) -> &[ListeningSocket] {
        match self {
            Sockets::One(socket) => std::slice::from_ref(socket),
            Sockets::Several(sockets, _) => sockets,
        }
    }
}

impl ListeningSocket {
    fn accept(&self) -> io::Result<Stream> {
        match self {
            ListeningSocket::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Stream::from(stream))
            }
            ListeningSocket::Tcp(socket) => {
                let (stream, _) = socket.accept()?;
                let ready = stream.set_nonblocking(false);
                // Options are refused only for a connection that is over.
                ready
                    .and_then(|()| Stream::from_tcp(stream))
                    .map_err(|_| io::ErrorKind::ConnectionAborted.into())
            }
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ListeningSocket::Unix(socket) => socket.as_fd(),
            ListeningSocket::Tcp(socket) => socket.as_fd(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.sockets {
            Sockets::One(socket) => socket.as_fd(),
            Sockets::Several(_, all) => all.as_fd(),
        }
    }
}

/// Errors of `accept` that concern one connection, not the listener: nothing is waiting, or what
/// waited has gone. Linux gives what has happened to a waiting connection as an error of `accept`
/// (accept(2), "Error handling").
fn is_transient(error: &io::Error) -> bool {
    let transient = [
        Errno::AGAIN,
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::INTR,
        Errno::NETDOWN,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
        Errno::TIMEDOUT,
        Errno::PERM,
    ];
    match error.raw_os_error() {
        Some(code) => transient.iter().any(|errno| errno.raw_os_error() == code),
        None => error.kind() == io::ErrorKind::ConnectionAborted,
    }
}

/// A socket at `path` with this mode. No client can connect before it has it.
fn bind_unix(path: &Path, mode: u32) -> Result<(UnixListener, Temporary), ListenError> {
    let failed = |errno| match errno {
        Errno::ADDRINUSE => ListenError::InUse,
        errno => ListenError::Unix {
            path: path.to_owned(),
            advice: unix_advice(path, errno, Purpose::Listen),
            source: errno.into(),
        },
    };
    let found = path.as_os_str().len();
    if found > UNIX_PATH_BYTES {
        return Err(ListenError::PathTooLong { found });
    }
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    remove_abandoned_socket(path, &address)?;
    let socket = open(AddressFamily::UNIX).map_err(failed)?;
    // The file gets this mode, less the umask. Where the system does not let a socket have one, the
    // file's is changed below; in both cases before connections are accepted.
    let _ = fchmod(&socket, Mode::from_raw_mode(mode));
    let bound = Temporary::make(path, || Ok(bind(&socket, &address)?));
    let ((), file) = bound.map_err(|error| match Errno::from_io_error(&error) {
        Some(errno) => failed(errno),
        None => error.into(),
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok((socket.into(), file))
}

/// A socket in the place of the file that asks for it.
fn bind_over(path: &Path, mode: u32) -> Result<(UnixListener, Temporary), ListenError> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let found = path.as_os_str().len();
    if found > UNIX_PATH_BYTES {
        return Err(ListenError::PathTooLong { found });
    }
    if !asks_for_socket(path)? {
        return Err(ListenError::InUse);
    }
    // No guest's name begins with a point, and no other thread or process has the same numbers.
    let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let (socket, mut file) = bind_unix(&path.with_file_name(format!(".{process}-{number}")), mode)?;
    file.rename(path)?;
    Ok((socket, file))
}

/// Whether a file asks for a socket in its place: it is an empty file, or the file of a socket that
/// is not served any more.
///
/// # Errors
/// When the system does not tell.
pub fn asks_for_socket(path: &Path) -> io::Result<bool> {
    let file = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if file.file_type().is_socket() {
        let address = SocketAddrUnix::new(path)?;
        return is_abandoned(&address);
    }
    Ok(file.is_file() && file.len() == 0)
}

/// Makes way for a new socket.
fn remove_abandoned_socket(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let Ok(found) = path.symlink_metadata().map(|file| file.file_type()) else {
        return Ok(());
    };
    if !found.is_socket() {
        return Err(ListenError::NoSocket {
            path: path.to_owned(),
            found: match found {
                kind if kind.is_dir() => "folder",
                kind if kind.is_symlink() => "symbolic link",
                kind if kind.is_file() => "file",
                _ => "device",
            },
        });
    }
    match is_abandoned(address)? {
        true => Ok(std::fs::remove_file(path)?),
        // A process serves it, or we may not know: `bind` says that the address is in use.
        false => Ok(()),
    }
}

/// Whether a socket's file is not served any more.
///
/// A listener is not found by connecting to it: it may be a QEMU that takes its first connection
/// for its migration. A datagram socket asks as well: it is told that it is of the wrong kind where
/// there is a socket, and that the connection is refused where there is only the file of one.
fn is_abandoned(address: &SocketAddrUnix) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let asking = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    Ok(connect(&asking, address) == Err(Errno::CONNREFUSED))
}

/// Sockets at all addresses of a host, and the port that they have in common.
fn bind_tcp(text: &str) -> Result<(Vec<TcpListener>, u16), ListenError> {
    let addresses = resolve(text, Purpose::Listen, DIAL_TIMEOUT, &|| false)?;
    let (_, port) = host_and_port(text).map_err(ResolveError::from)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match bind_all(&addresses, port) {
            // The port that is free in one family is taken in the other.
            Err(ListenError::InUse) if port == 0 && tries < PORT_TRIES => {}
            other => return other,
        }
    }
}

fn bind_all(
    addresses: &[SocketAddr],
    mut port: u16,
) -> Result<(Vec<TcpListener>, u16), ListenError> {
    let mut sockets = Vec::new();
    let mut first_error = None;
    for &address in addresses {
        let mut address = address;
        address.set_port(port);
        match bind_one(address, addresses.len() > 1) {
            Ok(socket) => {
                port = socket.local_addr()?.port();
                sockets.push(socket);
            }
            // A host of one family only still has names for both.
            Err(error @ (ListenError::NoIpv6 { .. } | ListenError::Elsewhere { .. })) => {
                first_error.get_or_insert(error);
            }
            // One address that is another's is enough: a source must not find two destinations
            // under one name.
            Err(error) => return Err(error),
        }
    }
    match first_error {
        Some(error) if sockets.is_empty() => Err(error),
        _ if sockets.is_empty() => Err(io::Error::from(io::ErrorKind::AddrNotAvailable).into()),
        _ => Ok((sockets, port)),
    }
}

/// A socket at one address. Where it is one of `several`, it leaves IPv4 to the others.
fn bind_one(address: SocketAddr, several: bool) -> Result<TcpListener, ListenError> {
    let port = address.port();
    let failed = |errno| match errno {
        Errno::ADDRINUSE => ListenError::InUse,
        Errno::AFNOSUPPORT => ListenError::NoIpv6 { port },
        Errno::ADDRNOTAVAIL if address.ip().is_loopback() && address.is_ipv6() => {
            ListenError::NoIpv6 { port }
        }
        Errno::ADDRNOTAVAIL => ListenError::Elsewhere { address },
        Errno::ACCESS => ListenError::Privileged { port },
        errno => ListenError::Io(errno.into()),
    };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = open(family).map_err(failed)?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, several).map_err(failed)?;
    }
    bind(&socket, &address).map_err(failed)?;
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::fs;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn refusal(address: &Address) -> ListenError {
        Listener::listen(address, &ListenOptions::default()).unwrap_err()
    }

    fn in_folder(name: &str) -> (tempfile::TempDir, PathBuf, Address) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        (folder, path.clone(), Address::Unix(path))
    }

    /// Waits for a connection as the users of a listener do.
    fn accept(listener: &Listener) -> Stream {
        let minute = rustix::event::Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        loop {
            let mut waiting = [PollFd::new(listener, PollFlags::IN)];
            assert_ne!(poll(&mut waiting, Some(&minute)), Ok(0), "nobody called");
            if let Some(stream) = listener.try_accept().unwrap() {
                return stream;
            }
        }
    }

    #[test]
    fn a_served_socket_is_not_taken_over_and_an_abandoned_one_is() {
        let (_folder, path, address) = in_folder("s");
        let first = Listener::bind(&address).unwrap();
        let error = refusal(&address);
        assert!(matches!(error, ListenError::InUse), "{error}");
        assert!(
            first.try_accept().unwrap().is_none(),
            "the listener has noticed nothing"
        );
        drop(first);
        assert!(!path.exists(), "dropping removes the file");

        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&address).unwrap();

        let _datagrams = UnixDatagram::bind(&path).unwrap();
        let error = refusal(&address);
        assert!(matches!(error, ListenError::InUse), "{error}");
    }

    #[test]
    fn a_socket_of_another_that_has_taken_its_place_stays() {
        let (_folder, path, address) = in_folder("s");
        let first = Listener::bind(&address).unwrap();
        fs::remove_file(&path).unwrap();
        // As long as the first one is open no other file has its number.
        let second = Listener::bind(&address).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_takes_the_place_of_the_file_that_asks_for_it() {
        let (folder, path, address) = in_folder("s");
        let options = ListenOptions {
            over_request: true,
            ..ListenOptions::default()
        };
        let bind = || Listener::bind_with(&address, &options);
        // Nobody asks.
        assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        fs::write(&path, "mine").unwrap();
        assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::write(&path, "").unwrap();
        let listener = bind().unwrap();
        UnixStream::connect(&path).unwrap();
        accept(&listener);
        // Somebody serves it.
        assert!(!asks_for_socket(&path).unwrap());
        assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(UnixListener::bind(&path).unwrap());
        assert!(asks_for_socket(&path).unwrap());
        drop(bind().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_in_a_sockets_place_is_named_and_left_alone() {
        let (folder, path, address) = in_folder("s");
        fs::write(&path, "mine").unwrap();
        let error = refusal(&address);
        assert!(
            matches!(error, ListenError::NoSocket { found: "file", .. }),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        let of = |path: &Path| refusal(&Address::Unix(path.to_owned()));
        let error = of(folder.path());
        assert!(
            matches!(
                error,
                ListenError::NoSocket {
                    found: "folder",
                    ..
                }
            ),
            "{error}"
        );
        let error = of(&folder.path().join("no/such"));
        assert!(
            error.to_string().contains("its folder is not there"),
            "{error}"
        );
        let error = of(&folder.path().join("x".repeat(200)));
        assert!(matches!(error, ListenError::PathTooLong { .. }), "{error}");
    }

    #[test]
    fn the_longest_path_can_be_listened_on_and_called() {
        let folder = tempfile::tempdir().unwrap();
        let short = folder.path().as_os_str().len() + 1;
        for (len, fits) in [(UNIX_PATH_BYTES, true), (UNIX_PATH_BYTES + 1, false)] {
            let address = Address::Unix(folder.path().join("x".repeat(len - short)));
            let listener = Listener::bind(&address);
            assert_eq!(listener.is_ok(), fits);
            assert_eq!(Stream::connect(&address).is_ok(), fits);
        }
    }

    #[test]
    fn a_socket_is_its_owners_unless_asked_otherwise() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let (_folder, path, address) = in_folder("s");
        let listener = Listener::bind(&address).unwrap();
        assert_eq!(mode(&path), 0o600);
        drop(listener);
        for wanted in [0o666, 0o660, 0o600] {
            let options = ListenOptions {
                mode: wanted,
                ..ListenOptions::default()
            };
            let _listener = Listener::bind_with(&address, &options).unwrap();
            assert_eq!(mode(&path), wanted);
            UnixStream::connect(&path).unwrap();
        }
    }

    #[test]
    fn a_port_of_zero_becomes_the_real_one() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let text = listener.address().to_string();
        assert!(text.starts_with("tcp:127.0.0.1:"), "{text}");
        assert!(!text.ends_with(":0"), "{text}");
        let _caller = Stream::connect(listener.address()).unwrap();
        accept(&listener);
        let error = refusal(listener.address());
        assert!(matches!(error, ListenError::InUse), "{error}");
    }

    #[test]
    fn all_addresses_of_a_host_are_listened_on() {
        for text in ["tcp::0", "tcp:localhost:0"] {
            let listener = Listener::bind(&text.parse().unwrap()).unwrap();
            let (_, port) = listener
                .address()
                .to_string()
                .rsplit_once(':')
                .map(|(host, port)| (host.to_owned(), port.to_owned()))
                .unwrap();
            let mut called = 0;
            for host in ["127.0.0.1", "[::1]"] {
                let address: Address = format!("tcp:{host}:{port}").parse().unwrap();
                // Each family that this host has.
                let has_family = Listener::bind(&format!("tcp:{host}:0").parse().unwrap()).is_ok();
                assert!(has_family || host == "[::1]");
                if !has_family {
                    continue;
                }
                if text == "tcp:localhost:0" && !localhost_is(host) {
                    continue;
                }
                let _caller = Stream::connect(&address).unwrap();
                accept(&listener);
                assert!(listener.try_accept().unwrap().is_none());
                called += 1;
            }
            assert_eq!(called, listener.sockets.as_slice().len());
        }
    }

    /// Whether this host's `localhost` is this address too.
    fn localhost_is(host: &str) -> bool {
        use std::net::ToSocketAddrs;
        let wanted: SocketAddr = format!("{host}:0").parse().unwrap();
        ("localhost", 0)
            .to_socket_addrs()
            .unwrap()
            .any(|address| address == wanted)
    }

    #[test]
    fn what_is_no_address_of_this_host_is_said() {
        // RFC 5737: addresses that are nobody's.
        let error = refusal(&"tcp:192.0.2.1:4444".parse().unwrap());
        assert!(matches!(error, ListenError::Elsewhere { .. }), "{error}");
        assert!(error.to_string().contains("tcp::4444"), "{error}");
    }
}
