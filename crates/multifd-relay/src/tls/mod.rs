//! TLS over a connection, with certificates in a folder with QEMU's file names.
//!
//! [`TlsServer`] answers handshakes within a poll loop, [`TlsClient`] does one and waits for it.
//! Both give a [`Stream`](multifd_transport::Stream) that carries plaintext for its users, in both
//! directions at once.
//!
//! A folder has `ca-cert.pem`, `server-cert.pem` and `server-key.pem` for a server,
//! `client-cert.pem` and `client-key.pem` for a client, and `ca-crl.pem` where certificates were
//! revoked: the files of QEMU's `tls-creds-x509`. Both ends check each other. rustls does the work,
//! and ring computes.

mod engine;
mod error;
mod examine;
mod folder;
mod handshake;
mod stream;
mod verify;
mod x509;

pub use error::FolderError;
pub use examine::{Endpoint, Examined, examine};
pub use handshake::{
    ClientOptions, Encrypted, Handshake, ServerOptions, TlsClient, TlsServer, TlsVersions,
};
pub use stream::TlsStream;
pub use verify::PeerIdentity;

/// Whether a connection that starts with `bytes` may speak TLS: the first record of either end has
/// a known type and the version number of TLS. Few bytes are judged by what they show; none may be
/// anything.
pub fn starts_like_tls(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [kind] => (0x14..=0x17).contains(kind),
        [kind, major, ..] => (0x14..=0x17).contains(kind) && *major == 3,
    }
}
