//! Both ends of a handshake.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_relay::tls::{
    ClientOptions, Encrypted, Handshake, ServerOptions, TlsClient, TlsServer,
};
use multifd_transport::{DialError, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned, SupportedProtocolVersion,
};

use crate::made::{Ca, Folder, Pair};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn unix() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

pub fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

/// A server's and a client's folder of one CA.
pub fn folders() -> (Ca, Folder, Folder) {
    let ca = Ca::new("our CA");
    let server = Folder::server(&ca, &ca.server());
    let client = Folder::client(&ca, &ca.client());
    (ca, server, client)
}

pub fn server(folder: &Folder) -> TlsServer {
    TlsServer::open(folder.path(), ServerOptions::default()).unwrap()
}

pub fn client(folder: &Folder) -> TlsClient {
    TlsClient::open(folder.path(), ClientOptions::default()).unwrap()
}

/// Drives a handshake as a poll loop does.
pub fn accept(server: &TlsServer, stream: Stream) -> io::Result<Encrypted> {
    drive(server.begin(stream))
}

pub fn drive(mut handshake: Handshake) -> io::Result<Encrypted> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(accepted) = handshake.go_on()? {
            return Ok(accepted);
        }
        assert!(Instant::now() < until, "the handshake stands still");
        let events = if handshake.wants_write() {
            PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let socket = handshake.socket().unwrap();
        let wait = Timespec::try_from(Duration::from_secs(1)).unwrap();
        poll(&mut [PollFd::from_borrowed_fd(socket, events)], Some(&wait)).unwrap();
    }
}

pub fn connect(client: &TlsClient, stream: Stream, name: &str) -> Result<Stream, DialError> {
    client.connect(stream, name, PATIENCE, &|| false)
}

/// What both ends came to.
pub fn shake(
    server: &TlsServer,
    client: &TlsClient,
    name: &str,
) -> (io::Result<Encrypted>, Result<Stream, DialError>) {
    let (near, far) = tcp();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| accept(server, far.into()));
        let connected = connect(client, near.into(), name);
        (accepted.join().unwrap(), connected)
    })
}

/// A pair of encrypted connections: the client's, and the server's.
pub fn pair() -> (Stream, Stream) {
    let (_ca, server_folder, client_folder) = folders();
    let (accepted, connected) = shake(
        &server(&server_folder),
        &client(&client_folder),
        "dst.example",
    );
    (connected.unwrap(), accepted.unwrap().stream)
}

/// The words of a client that is refused, within the handshake or after it.
pub fn words(connected: Result<Stream, DialError>) -> String {
    match connected {
        Err(error) => error.to_string(),
        Ok(stream) => {
            stream.set_timeouts(Some(PATIENCE)).unwrap();
            stream.read_some(&mut [0; 16]).unwrap_err().to_string()
        }
    }
}

pub type RawClient<S> = StreamOwned<ClientConnection, S>;
pub type RawServer<S> = StreamOwned<ServerConnection, S>;

/// A client of rustls alone, which checks nothing.
pub fn raw_client<S: Read + Write>(
    stream: S,
    own: Option<&Pair>,
    versions: &[&'static SupportedProtocolVersion],
) -> RawClient<S> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NoCheck));
    let config = match own {
        Some(own) => config
            .with_client_auth_cert(own.chain(), own.secret())
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    let name = ServerName::try_from("dst.example").unwrap();
    StreamOwned::new(
        ClientConnection::new(Arc::new(config), name).unwrap(),
        stream,
    )
}

/// A server of rustls alone, which asks for no certificate.
pub fn raw_server<S: Read + Write>(
    stream: S,
    own: &Pair,
    versions: &[&'static SupportedProtocolVersion],
    change: impl FnOnce(&mut ServerConfig),
) -> RawServer<S> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(own.chain(), own.secret())
        .unwrap();
    change(&mut config);
    StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream)
}

/// Does a raw peer's handshake, and returns what it reads first.
pub fn hear(peer: &mut impl Read) -> io::Result<usize> {
    peer.read(&mut [0; 16])
}

#[derive(Debug)]
struct NoCheck;

impl ServerCertVerifier for NoCheck {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether an error of TLS is of this kind, by the name that its `Debug` shows.
pub fn is(error: &dyn std::fmt::Debug, kind: &str) -> bool {
    let shown = format!("{error:?}");
    shown
        .split(|c: char| !c.is_alphanumeric())
        .any(|word| word == kind)
}
