//! What a folder of certificates holds, for people.

use std::path::Path;

use super::error::FolderError;
use super::folder::{self, Role};
use super::x509;

/// The end of a connection that certificates are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// It is called: the destination's.
    Server,
    /// It calls: the source's.
    Client,
}

impl Endpoint {
    /// The file of its certificate.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Server => "server-cert.pem",
            Self::Client => "client-cert.pem",
        }
    }
}

/// Usable certificates of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Examined {
    /// The common name, if there is one, then the alternative names and addresses.
    pub names: Vec<String>,
    /// The names and addresses by which a server may be called: those of the alternative names.
    pub hosts: Vec<String>,
    /// The end of the certificate's validity, or that of the CA that is the first to expire, if
    /// that is sooner. In seconds since 1970.
    pub not_after: Option<u64>,
    /// Certificates of CAs.
    pub authorities: usize,
    /// A list of revoked certificates is there.
    pub has_revoked: bool,
    /// Problems that prevent nothing.
    pub warnings: Vec<String>,
}

/// Reads and checks the files of one end, as a relay does at its start.
///
/// # Errors
/// If a file is missing or unusable. The error says which, and what to do.
pub fn examine(path: &Path, endpoint: Endpoint) -> Result<Examined, FolderError> {
    let role = match endpoint {
        Endpoint::Server => Role::Server,
        Endpoint::Client => Role::Client {
            needs_certificate: true,
        },
    };
    let folder = folder::read(path, role, &folder::provider())?;
    let ca = path.join("ca-cert.pem");
    let text = folder::content(&ca).map_err(|fault| folder::error(&ca, fault))?;
    let authorities = folder::certificates(&ca, &text)?;
    let own = folder.own.iter().flat_map(|own| own.cert.first());
    let ends = authorities.iter().chain(own);
    let ends = ends.filter_map(|certificate| x509::read(certificate)?.not_after);
    let names = folder.names.as_deref().cloned().unwrap_or_default();
    let hosts: Vec<String> = names.dns.into_iter().chain(names.ip).collect();
    Ok(Examined {
        names: names
            .common
            .into_iter()
            .chain(hosts.iter().cloned())
            .collect(),
        hosts,
        not_after: ends.min(),
        authorities: authorities.len(),
        has_revoked: !folder.revoked.is_empty(),
        warnings: folder.warnings,
    })
}
