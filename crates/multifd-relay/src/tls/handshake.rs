//! Handshakes: [`TlsServer`] answers them without waiting, [`TlsClient`] waits for one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use multifd_transport::{DialError, Stream};
use rustix::event::PollFlags;
use rustix::net::{SendFlags, send};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::engine::{Engine, Incoming, Stop};
use super::error::{FileFault, FolderError, Place, TlsError};
use super::folder::{self, Folder, Role};
use super::stream::{TlsStream, wait_for};
use super::verify::{ClientGate, PeerIdentity, Seen, ServerGate};

/// Bytes to read at once. Most handshakes fit, and it is all that an idle one takes.
const READ_BYTES: usize = 4 << 10;

/// The most that is kept of one handshake: one message of the longest kind and its records.
const KEPT_BYTES: usize = 72 << 10;

/// The most that a peer may send within a handshake.
const HANDSHAKE_BYTES: usize = 256 << 10;

/// Poll interval for cancellation in a waiting client.
const TICK: Duration = Duration::from_millis(100);

/// Bytes of a refused peer that are read before the socket is closed. Closing a socket with unread
/// bytes may discard the alert that gives the reason.
const LEFT_BYTES: usize = 64 << 10;

/// A fatal alert `decode_error` in clear, for a peer that speaks no TLS: some ends know it when
/// they see it.
const NOT_TLS: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 50];

/// The versions of TLS that an end takes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum TlsVersions {
    /// 1.3 alone: between two ends of this project.
    #[default]
    Tls13,
    /// 1.2 and 1.3: for QEMU, whose GnuTLS may be old.
    Tls12And13,
}

impl TlsVersions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static TRUNK: [&SupportedProtocolVersion; 1] = [&TLS13];
        static QEMU: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls13 => &TRUNK,
            Self::Tls12And13 => &QEMU,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Tls13 => "TLS 1.3",
            Self::Tls12And13 => "TLS 1.2 and 1.3",
        }
    }
}

/// How a [`TlsServer`] treats its clients. The default is that of a trunk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The versions that it takes.
    pub versions: TlsVersions,
    /// Whether a client must have a certificate. Without, any host may connect: QEMU's
    /// `verify-peer=no`.
    pub verify_peer: bool,
    /// Patterns of which one must match a client's common name or one of its alternative DNS names;
    /// `*` stands for any characters. Without patterns all clients are allowed that the CA has
    /// signed.
    pub allowed_clients: Vec<String>,
    /// Whether a connection that ends without close_notify counts as ended, as QEMUs before 10.0
    /// end theirs. A cut connection then looks like an ended one.
    pub lenient_end: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            versions: TlsVersions::Tls13,
            verify_peer: true,
            allowed_clients: Vec::new(),
            lenient_end: false,
        }
    }
}

/// How a [`TlsClient`] treats its servers. The default is that of a trunk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// The versions that it takes.
    pub versions: TlsVersions,
    /// Whether the folder must have a client's certificate. A QEMU with `verify-peer=no` asks for
    /// none.
    pub needs_certificate: bool,
    /// Same as [`ServerOptions::lenient_end`].
    pub lenient_end: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            versions: TlsVersions::Tls13,
            needs_certificate: true,
            lenient_end: false,
        }
    }
}

/// The server's side of TLS, with the certificates of one folder.
#[derive(Debug)]
pub struct TlsServer {
    path: PathBuf,
    options: ServerOptions,
    allowed: Arc<[String]>,
    provider: Arc<CryptoProvider>,
    folder: RwLock<Arc<Folder>>,
}

impl TlsServer {
    /// Reads `ca-cert.pem`, `ca-crl.pem` where there is one, `server-cert.pem` and `server-key.pem`
    /// in `folder`.
    ///
    /// # Errors
    /// When a file is missing, broken, out of date or not of this set, with what to do.
    pub fn open(folder: &Path, options: ServerOptions) -> Result<Self, FolderError> {
        let provider = folder::provider();
        let read = folder::read(folder, Role::Server, &provider)?;
        let server = Self {
            path: folder.to_owned(),
            allowed: options.allowed_clients.clone().into(),
            options,
            provider,
            folder: RwLock::new(Arc::new(read)),
        };
        server.config(&server.folder(), &Arc::default())?;
        Ok(server)
    }

    /// Reads the files anew. Handshakes that begin later use them; connections and handshakes that
    /// there are go on.
    ///
    /// # Errors
    /// Same as [`open`](Self::open). After an error the previous files stay in use.
    pub fn reload(&self) -> Result<(), FolderError> {
        let read = Arc::new(folder::read(&self.path, Role::Server, &self.provider)?);
        self.config(&read, &Arc::default())?;
        *self.folder.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// Warnings about the files: keys that others may read, certificates that expire soon.
    pub fn warnings(&self) -> Vec<String> {
        self.folder().warnings.clone()
    }

    /// Begins a handshake with a client on `stream`. [`Handshake::go_on`] does the work.
    pub fn begin(&self, stream: Stream) -> Handshake {
        let folder = self.folder();
        let seen = Arc::new(Seen::default());
        let place = Place {
            folder: self.path.display().to_string().into(),
            is_client: false,
            own: folder.names.clone(),
            takes: self.options.versions.words(),
            peer: None,
            called: None,
        };
        let engine = self
            .config(&folder, &seen)
            .map_err(|error| TlsError::Local(error.to_string()));
        let engine = engine.and_then(|config| {
            Engine::server(Arc::new(config)).map_err(|error| TlsError::from_rustls(error, &place))
        });
        let lenient_end = self.options.lenient_end;
        Handshake(
            engine
                .map(|engine| Shaking::new(stream, engine, place, seen, lenient_end))
                .into(),
        )
    }

    fn folder(&self) -> Arc<Folder> {
        Arc::clone(&self.folder.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The configuration of one handshake: `seen` hears of its client.
    fn config(&self, folder: &Folder, seen: &Arc<Seen>) -> Result<ServerConfig, FolderError> {
        let wrong = |file: &str, fault: String| {
            folder::error(&self.path.join(file), FileFault::Unusable(fault))
        };
        let clients = if self.options.verify_peer {
            let roots = Arc::clone(&folder.roots);
            let provider = Arc::clone(&self.provider);
            WebPkiClientVerifier::builder_with_provider(roots, provider)
                .with_crls(folder.revoked.iter().cloned())
                .enforce_revocation_expiration()
                .build()
                .map_err(|error| wrong("ca-crl.pem", format!("cannot be used: {error}")))?
        } else {
            WebPkiClientVerifier::no_client_auth()
        };
        let gate = ClientGate {
            inner: clients,
            allowed: Arc::clone(&self.allowed),
            seen: Arc::clone(seen),
        };
        let own = folder.own.clone();
        let own = own.ok_or_else(|| wrong("server-cert.pem", "is missing".to_owned()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(self.options.versions.list())
            .map_err(|error| wrong("server-cert.pem", format!("cannot be used: {error}")))?
            .with_client_cert_verifier(Arc::new(gate))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        // A resumed session would pass by certificates that were revoked or replaced since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        // GnuTLS asks for AES-256 first, which costs a tenth more.
        config.ignore_client_order = true;
        Ok(config)
    }
}

/// The client's side of TLS, with the certificates of one folder.
#[derive(Debug)]
pub struct TlsClient {
    path: PathBuf,
    options: ClientOptions,
    provider: Arc<CryptoProvider>,
    folder: RwLock<Arc<Folder>>,
}

impl TlsClient {
    /// Reads `ca-cert.pem`, `ca-crl.pem` where there is one, `client-cert.pem` and `client-key.pem`
    /// in `folder`.
    ///
    /// # Errors
    /// Same as [`TlsServer::open`].
    pub fn open(folder: &Path, options: ClientOptions) -> Result<Self, FolderError> {
        let provider = folder::provider();
        let read = folder::read(folder, Self::role(&options), &provider)?;
        let client = Self {
            path: folder.to_owned(),
            options,
            provider,
            folder: RwLock::new(Arc::new(read)),
        };
        client.config(&client.folder(), &Arc::default())?;
        Ok(client)
    }

    /// Reads the files anew, as [`TlsServer::reload`] does.
    ///
    /// # Errors
    /// Same as [`open`](Self::open). After an error the previous files stay in use.
    pub fn reload(&self) -> Result<(), FolderError> {
        let read = folder::read(&self.path, Self::role(&self.options), &self.provider)?;
        self.config(&read, &Arc::default())?;
        *self.folder.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        Ok(())
    }

    /// Same as [`TlsServer::warnings`].
    pub fn warnings(&self) -> Vec<String> {
        self.folder().warnings.clone()
    }

    /// Does the handshake with the server on `stream`, whose certificate must be for `server_name`:
    /// a host name or an IP address. It takes at most as long as `timeout`, and ends soon after
    /// `given_up` says so.
    ///
    /// In TLS 1.3 a server judges the client's certificate after this end's part is over. So its
    /// refusal comes as an error of the first reading, or of a later writing, with the same words.
    ///
    /// # Errors
    /// When the peer or this end refuses, and when time is over.
    pub fn connect(
        &self,
        stream: Stream,
        server_name: &str,
        timeout: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Stream, DialError> {
        let shaken = self.shake(stream, server_name, timeout, given_up);
        shaken.map_err(|error| match error {
            TlsError::GivenUp => DialError::GivenUp,
            error => io::Error::new(io::ErrorKind::ConnectionAborted, error).into(),
        })
    }

    fn shake(
        &self,
        stream: Stream,
        server_name: &str,
        timeout: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Stream, TlsError> {
        let until = Instant::now().checked_add(timeout);
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| TlsError::NoName(server_name.to_owned()))?;
        let folder = self.folder();
        let seen = Arc::new(Seen::default());
        let place = Place {
            folder: self.path.display().to_string().into(),
            is_client: true,
            own: folder.names.clone(),
            takes: self.options.versions.words(),
            peer: None,
            called: Some(server_name.into()),
        };
        let config = self.config(&folder, &seen);
        let config = config.map_err(|error| TlsError::Local(error.to_string()))?;
        let engine = Engine::client(Arc::new(config), name)
            .map_err(|error| TlsError::from_rustls(error, &place))?;
        let mut shaking = Shaking::new(stream, engine, place, seen, self.options.lenient_end);
        loop {
            if shaking.go_on()? {
                return Ok(shaking.finish().stream);
            }
            if given_up() {
                return Err(TlsError::GivenUp);
            }
            let left = until.map_or(TICK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Err(TlsError::TimedOut(timeout));
            }
            wait_for(&shaking.stream, shaking.waits_for(), left.min(TICK))?;
        }
    }

    fn role(options: &ClientOptions) -> Role {
        Role::Client {
            needs_certificate: options.needs_certificate,
        }
    }

    fn folder(&self) -> Arc<Folder> {
        Arc::clone(&self.folder.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn config(&self, folder: &Folder, seen: &Arc<Seen>) -> Result<ClientConfig, FolderError> {
        let wrong = |file: &str, fault: String| {
            folder::error(&self.path.join(file), FileFault::Unusable(fault))
        };
        let roots = Arc::clone(&folder.roots);
        let provider = Arc::clone(&self.provider);
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .with_crls(folder.revoked.iter().cloned())
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| wrong("ca-crl.pem", format!("cannot be used: {error}")))?;
        let gate = ServerGate {
            inner: servers,
            seen: Arc::clone(seen),
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(self.options.versions.list())
            .map_err(|error| wrong("client-cert.pem", format!("cannot be used: {error}")))?
            // It adds to the usual checks and leaves none out.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(gate));
        let mut config = match &folder.own {
            Some(own) => {
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(own))))
            }
            None => config.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A client that has passed its handshake.
#[derive(Debug)]
#[non_exhaustive]
pub struct Encrypted {
    /// The encrypted connection.
    pub stream: Stream,
    /// The names in its certificate.
    pub peer: PeerIdentity,
    /// The version and the cipher suite, for people.
    pub protocol: String,
}

/// A server's handshake that goes on when its socket is ready.
///
/// It takes no thread, and 4 KiB beside what rustls needs until its client has said more. A client
/// in the middle of a long message takes 72 KiB at most. Time limits are the caller's: a client may
/// say nothing for ever.
#[derive(Debug)]
pub struct Handshake(State);

#[derive(Debug)]
enum State {
    Going(Box<Shaking>),
    Failed(TlsError),
    Over,
}

impl From<Result<Shaking, TlsError>> for State {
    fn from(result: Result<Shaking, TlsError>) -> Self {
        match result {
            Ok(shaking) => Self::Going(Box::new(shaking)),
            Err(error) => Self::Failed(error),
        }
    }
}

impl Handshake {
    /// Does what can be done without waiting. `None`: it waits for the socket, to be readable, or
    /// to be writable where [`wants_write`](Self::wants_write) says so.
    ///
    /// After its end, good or bad, it holds no socket any more.
    ///
    /// # Errors
    /// When this end refuses the client, which gets the reason, or the client refuses.
    pub fn go_on(&mut self) -> io::Result<Option<Encrypted>> {
        self.step().map_err(|error| error.to_io())
    }

    fn step(&mut self) -> Result<Option<Encrypted>, TlsError> {
        match std::mem::replace(&mut self.0, State::Over) {
            State::Going(mut shaking) => {
                if shaking.go_on()? {
                    return Ok(Some(shaking.finish()));
                }
                self.0 = State::Going(shaking);
                Ok(None)
            }
            State::Failed(error) => Err(error),
            State::Over => Err(TlsError::Local("the handshake is over already".to_owned())),
        }
    }

    /// Whether it waits for room in the socket. Otherwise it waits for bytes.
    pub fn wants_write(&self) -> bool {
        match &self.0 {
            State::Going(shaking) => shaking.waits_for() == PollFlags::OUT,
            State::Failed(_) | State::Over => false,
        }
    }

    /// The socket to poll; `None` where a call of [`go_on`](Self::go_on) would end it.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Going(shaking) => Some(shaking.stream.as_fd()),
            State::Failed(_) | State::Over => None,
        }
    }

    /// The connection, for its addresses. Its bytes are the handshake's.
    pub fn stream(&self) -> Option<&Stream> {
        match &self.0 {
            State::Going(shaking) => Some(&shaking.stream),
            State::Failed(_) | State::Over => None,
        }
    }
}

/// A handshake of either side.
struct Shaking {
    stream: Stream,
    engine: Engine,
    place: Place,
    seen: Arc<Seen>,
    lenient_end: bool,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Data that has come with the handshake's last bytes: one record at most.
    early: Vec<u8>,
    received: usize,
    /// The first bytes were those of TLS.
    is_tls: bool,
}

impl fmt::Debug for Shaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shaking")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Shaking {
    fn new(
        stream: Stream,
        engine: Engine,
        place: Place,
        seen: Arc<Seen>,
        lenient_end: bool,
    ) -> Self {
        Self {
            stream,
            engine,
            place,
            seen,
            lenient_end,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            early: Vec::new(),
            received: 0,
            is_tls: false,
        }
    }

    fn waits_for(&self) -> PollFlags {
        if self.outgoing.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::OUT
        }
    }

    /// Goes on without waiting, and returns whether the handshake is over.
    fn go_on(&mut self) -> Result<bool, TlsError> {
        if !self.stream.is_bare() {
            return Err(TlsError::Local(
                "TLS runs over a socket, not over another layer".to_owned(),
            ));
        }
        loop {
            self.think()?;
            if !self.send()? {
                return Ok(false);
            }
            if self.engine.is_established() {
                return Ok(true);
            }
            match self.fetch() {
                Ok(0) => return Err(TlsError::ClosedInHandshake),
                Ok(_) => self.look()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if multifd_transport::hung_up(&error) => {
                    return Err(TlsError::ClosedInHandshake);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes what has come.
    fn think(&mut self) -> Result<(), TlsError> {
        let early = &mut self.early;
        let mut keep = |bytes: &[u8]| early.extend_from_slice(bytes);
        let (taken, result) = self
            .engine
            .take(&mut self.incoming, &mut self.outgoing, &mut keep);
        self.incoming.drain(..taken.min(self.incoming.len()));
        self.place.peer = self.seen.names();
        match result {
            Ok(Stop::NeedsMore) => Ok(()),
            // The client's first data, or its end, has come with its last word.
            Ok(_) if self.engine.is_established() => Ok(()),
            Ok(_) => Err(TlsError::ClosedInHandshake),
            Err(error) => {
                let error = TlsError::from_rustls(error, &self.place);
                self.refuse();
                Err(error)
            }
        }
    }

    /// Sends what waits, and returns whether all of it has gone.
    fn send(&mut self) -> Result<bool, TlsError> {
        while !self.outgoing.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.stream, &self.outgoing, flags) {
                Ok(count) => drop(self.outgoing.drain(..count.min(self.outgoing.len()))),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => {
                    let error = io::Error::from(error);
                    if !multifd_transport::hung_up(&error) {
                        return Err(error.into());
                    }
                    // The peer's last words may have come before it went.
                    while matches!(self.fetch(), Ok(1..)) {
                        self.look()?;
                        self.outgoing.clear();
                        self.think()?;
                    }
                    return Err(TlsError::ClosedInHandshake);
                }
            }
        }
        Ok(true)
    }

    fn fetch(&mut self) -> io::Result<usize> {
        let before = self.incoming.len();
        self.incoming.resize(before.saturating_add(READ_BYTES), 0);
        let free = self.incoming.get_mut(before..).unwrap_or_default();
        let result = self.stream.read_now(free);
        let count = *result.as_ref().unwrap_or(&0);
        self.incoming.truncate(before.saturating_add(count));
        self.received = self.received.saturating_add(count);
        result
    }

    /// Checks what has come before rustls sees it.
    fn look(&mut self) -> Result<(), TlsError> {
        if !self.is_tls {
            if !super::starts_like_tls(&self.incoming) {
                self.outgoing = NOT_TLS.to_vec();
                self.refuse();
                return Err(TlsError::NotTls);
            }
            self.is_tls = self.incoming.len() >= 3;
        }
        if self.incoming.len() > KEPT_BYTES || self.received > HANDSHAKE_BYTES {
            return Err(TlsError::Broken(
                "a handshake of more bytes than any has".to_owned(),
            ));
        }
        Ok(())
    }

    /// Tells the peer, as far as its socket takes it at once.
    fn refuse(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // A peer that is gone hears nothing.
        let _ = send(&self.stream, &self.outgoing, flags);
        self.incoming.clear();
        let mut left = 0_usize;
        while left < LEFT_BYTES
            && let Ok(count @ 1..) = self.fetch()
        {
            left = left.saturating_add(count);
            self.incoming.clear();
        }
    }

    fn finish(self) -> Encrypted {
        let peer = PeerIdentity(self.seen.names().unwrap_or_default());
        let stream = TlsStream::new(
            self.stream,
            self.engine,
            Incoming {
                held: self.incoming,
                plain: self.early,
            },
            self.place,
            self.lenient_end,
        );
        let protocol = stream.describe();
        Encrypted {
            stream: Stream::layered(stream),
            peer,
            protocol,
        }
    }
}
