//! TLS on the legs of a relay.

use std::path::PathBuf;
#[cfg(feature = "tls")]
use std::sync::Arc;
#[cfg(feature = "tls")]
use std::time::Duration;

#[cfg(feature = "tls")]
use multifd_transport::DialError;
#[cfg(feature = "tls")]
use multifd_transport::{Address, Stream};

use super::LegAddress;
#[cfg(feature = "tls")]
use super::Protocol;
#[cfg(feature = "tls")]
use crate::tls::{
    ClientOptions, FolderError, PeerIdentity, ServerOptions, TlsClient, TlsServer, TlsVersions,
};
#[cfg(feature = "tls")]
use crate::trunk::Name;

/// The options for TLS.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct EncryptionOptions {
    /// The folder with certificates and keys, under QEMU's names.
    pub folder: Option<PathBuf>,
    /// The name in the destination's certificate, if it differs from the dialled host.
    pub hostname: Option<String>,
    /// Allowed clients of the listening leg, and the names that each may use. Without a rule, every
    /// client with a certificate of the CA is allowed.
    pub rules: Vec<Rule>,
}

/// Allows clients to use names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A pattern of the names in its certificate; `*` stands for any characters.
    client: String,
    /// A pattern of the names of migrations.
    name: String,
}

impl Rule {
    /// Reads `CLIENT` or `CLIENT=NAME`.
    pub fn parse(text: &str) -> Self {
        let (client, name) = text.split_once('=').unwrap_or((text, "*"));
        Self {
            client: client.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// Why the legs cannot be encrypted.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EncryptionError(#[from] Unencrypted);

#[derive(Debug, thiserror::Error)]
enum Unencrypted {
    /// The program was built without TLS.
    #[cfg(not(feature = "tls"))]
    #[error("{0}: this program was built without TLS (feature `tls`)")]
    NotBuilt(Box<LegAddress>),
    /// No certificates were given.
    #[cfg(feature = "tls")]
    #[error("{0} needs certificates: say --tls-dir DIR; `multifd tls init` makes some for a try")]
    NoFolder(Box<LegAddress>),
    /// The certificates cannot be used.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// TLS on the legs of a relay. Each leg may have it or not.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Encryption {
    #[cfg(feature = "tls")]
    server: Option<Arc<TlsServer>>,
    #[cfg(feature = "tls")]
    client: Option<Arc<TlsClient>>,
    #[cfg(feature = "tls")]
    hostname: Option<String>,
    #[cfg(feature = "tls")]
    rules: Vec<Rule>,
}

#[cfg(feature = "tls")]
impl Encryption {
    /// Reads the files that the two legs need.
    ///
    /// # Errors
    /// If certificates are missing or cannot be used.
    pub fn open(
        listen: &LegAddress,
        connect: &LegAddress,
        options: &EncryptionOptions,
    ) -> Result<Self, EncryptionError> {
        let folder = |leg: &LegAddress| {
            let missing = || Unencrypted::NoFolder(Box::new(leg.clone()));
            options.folder.as_deref().ok_or_else(missing)
        };
        let versions = |leg: &LegAddress| match leg.protocol {
            Protocol::Trunk => TlsVersions::Tls13,
            Protocol::Qemu => TlsVersions::Tls12And13,
        };
        let mut encryption = Self {
            hostname: options.hostname.clone(),
            rules: options.rules.clone(),
            ..Self::default()
        };
        if listen.tls {
            let rules = options.rules.iter();
            let server = ServerOptions {
                versions: versions(listen),
                allowed_clients: rules.map(|rule| rule.client.clone()).collect(),
                // QEMU before 10.0 closes without close_notify. The stream itself shows whether it
                // is complete.
                lenient_end: listen.protocol == Protocol::Qemu,
                ..ServerOptions::default()
            };
            let server = TlsServer::open(folder(listen)?, server);
            encryption.server = Some(Arc::new(server.map_err(Unencrypted::Folder)?));
        }
        if connect.tls {
            let client = ClientOptions {
                versions: versions(connect),
                lenient_end: connect.protocol == Protocol::Qemu,
                ..ClientOptions::default()
            };
            let client = TlsClient::open(folder(connect)?, client);
            encryption.client = Some(Arc::new(client.map_err(Unencrypted::Folder)?));
        }
        Ok(encryption)
    }

    /// Reads the files again, for later connections.
    ///
    /// # Errors
    /// If they cannot be used. The former ones then stay in use.
    pub fn reload(&self) -> Result<(), EncryptionError> {
        if let Some(server) = &self.server {
            server.reload().map_err(Unencrypted::Folder)?;
        }
        if let Some(client) = &self.client {
            client.reload().map_err(Unencrypted::Folder)?;
        }
        Ok(())
    }

    /// Problems of the files that prevent nothing.
    pub fn warnings(&self) -> Vec<String> {
        let server = self.server.iter().flat_map(|server| server.warnings());
        let client = self.client.iter().flat_map(|client| client.warnings());
        let mut all: Vec<String> = server.chain(client).collect();
        all.sort();
        all.dedup();
        all
    }

    pub(super) fn server(&self) -> Option<&TlsServer> {
        self.server.as_deref()
    }

    /// Whether a client may use this name.
    pub(super) fn allows(&self, peer: &PeerIdentity, name: &Name) -> bool {
        let mut rules = self.rules.iter();
        self.rules.is_empty()
            || rules.any(|rule| {
                let client = std::slice::from_ref(&rule.client);
                name.matches(&rule.name) && peer.matches(client)
            })
    }

    /// Starts TLS on a dialled connection, if the leg is encrypted.
    pub(super) fn secure(
        &self,
        stream: Stream,
        address: &Address,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Stream, DialError> {
        let Some(client) = &self.client else {
            return Ok(stream);
        };
        let host = host_of(address);
        let name = self.hostname.as_deref().unwrap_or(&host);
        client.connect(stream, name, within, given_up)
    }
}

#[cfg(not(feature = "tls"))]
impl Encryption {
    /// Refuses encrypted legs: this build has no TLS.
    ///
    /// # Errors
    /// If a leg is to be encrypted.
    pub fn open(
        listen: &LegAddress,
        connect: &LegAddress,
        _: &EncryptionOptions,
    ) -> Result<Self, EncryptionError> {
        match [listen, connect].into_iter().find(|leg| leg.tls) {
            Some(leg) => Err(Unencrypted::NotBuilt(Box::new(leg.clone())).into()),
            None => Ok(Self::default()),
        }
    }

    /// Does nothing.
    ///
    /// # Errors
    /// None.
    pub fn reload(&self) -> Result<(), EncryptionError> {
        Ok(())
    }

    /// There are none.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The host in an address, as a certificate names it.
#[cfg(feature = "tls")]
fn host_of(address: &Address) -> String {
    let text = address.to_string();
    let rest = text.strip_prefix("tcp:").unwrap_or("localhost:0");
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let bare = bare.split_once('%').map_or(bare, |(bare, _)| bare);
    match bare {
        "" => "localhost".to_owned(),
        bare => bare.to_owned(),
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_the_host_alone() {
        for (address, host) in [
            ("tcp:dst.example:4444", "dst.example"),
            ("tcp:192.0.2.1:1", "192.0.2.1"),
            ("tcp:[fe80::1%eth0]:1", "fe80::1"),
            ("tcp::1", "localhost"),
            ("unix:/run/a", "localhost"),
        ] {
            assert_eq!(host_of(&address.parse().unwrap()), host);
        }
    }

    #[test]
    fn a_rule_is_a_client_and_its_names() {
        let rule = |client: &str, name: &str| Rule {
            client: client.to_owned(),
            name: name.to_owned(),
        };
        assert_eq!(Rule::parse("src*"), rule("src*", "*"));
        assert_eq!(Rule::parse("src1=web-*"), rule("src1", "web-*"));
    }
}
