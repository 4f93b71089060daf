//! A folder of certificates and keys with QEMU's file names.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};

use super::error::{FileFault, FolderError};
use super::x509::{self, Names, date};

/// The longest file that is read. A bundle of many CAs or a long list of revoked certificates fits.
const FILE_BYTES: u64 = 4 << 20;

/// The time before a certificate's end at which a warning is due.
const WARN_SECONDS: u64 = 14 * 86_400;

/// This end's own certificate among those of the folder.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Server,
    /// Whether it must have a certificate.
    Client {
        needs_certificate: bool,
    },
}

/// The checked contents of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    pub(super) own: Option<Arc<CertifiedKey>>,
    pub(super) names: Option<Arc<Names>>,
    pub(super) warnings: Vec<String>,
}

/// The crypto provider: ring, with the cipher first that is fastest here.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    let fastest = if has_aes() {
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256
    } else {
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256
    };
    provider
        .cipher_suites
        .sort_by_key(|suite| *suite != fastest);
    Arc::new(provider)
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_aes() -> bool {
    true
}

/// Reads and checks the files.
pub(super) fn read(
    path: &Path,
    role: Role,
    provider: &CryptoProvider,
) -> Result<Folder, FolderError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut warnings = Vec::new();
    let ca = path.join("ca-cert.pem");
    let roots = roots(&ca, now, &mut warnings)?;
    let crl = path.join("ca-crl.pem");
    let revoked = match content(&crl) {
        Err(FileFault::Missing) => Vec::new(),
        Err(fault) => return Err(error(&crl, fault)),
        Ok(text) => revoked(&crl, &text)?,
    };
    let (certificate, key) = match role {
        Role::Server => ("server-cert.pem", "server-key.pem"),
        Role::Client { .. } => ("client-cert.pem", "client-key.pem"),
    };
    let (certificate, key) = (path.join(certificate), path.join(key));
    let is_optional = role
        == Role::Client {
            needs_certificate: false,
        };
    let mut folder = Folder {
        roots: Arc::new(roots),
        revoked,
        own: None,
        names: None,
        warnings,
    };
    match content(&certificate) {
        Err(FileFault::Missing) if is_optional => return Ok(folder),
        Err(fault) => return Err(error(&certificate, fault)),
        Ok(text) => folder.own(role, (&certificate, &text), &key, now, provider)?,
    }
    Ok(folder)
}

impl Folder {
    /// Takes this end's own certificate and key.
    fn own(
        &mut self,
        role: Role,
        (path, text): (&Path, &[u8]),
        key: &Path,
        now: u64,
        provider: &CryptoProvider,
    ) -> Result<(), FolderError> {
        let chain = certificates(path, text)?;
        let wrong = |fault| error(path, fault);
        let first = chain.first().ok_or_else(|| wrong(FileFault::Missing))?;
        let read = x509::read(first)
            .ok_or_else(|| wrong(FileFault::Broken("no certificate of X.509".to_owned())))?;
        self.check(role, &chain, now, provider)
            .map_err(|fault| wrong(own_fault(fault)))?;
        self.warn_of_end(path, read.not_after, now);
        let secret = self.key(key)?;
        let own = CertifiedKey::from_der(chain, secret, provider).map_err(|fault| {
            error(
                key,
                match fault {
                    Error::InconsistentKeys(_) => FileFault::WrongKey,
                    other => FileFault::Broken(other.to_string()),
                },
            )
        })?;
        self.own = Some(Arc::new(own));
        self.names = Some(Arc::new(read.names));
        Ok(())
    }

    /// Whether a peer with this folder would take the certificate.
    fn check(
        &self,
        role: Role,
        chain: &[CertificateDer<'static>],
        now: u64,
        provider: &CryptoProvider,
    ) -> Result<(), Error> {
        let Some((first, others)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        let roots = &self.roots;
        match role {
            Role::Server => rustls::client::verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(first)?,
                roots,
                others,
                now,
                provider.signature_verification_algorithms.all,
            ),
            Role::Client { .. } => {
                let provider = Arc::new(provider.clone());
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider)
                    .build()
                    .map_err(|fault| Error::General(fault.to_string()))?
                    .verify_client_cert(first, others, now)
                    .map(|_| ())
            }
        }
    }

    fn key(&mut self, path: &Path) -> Result<PrivateKeyDer<'static>, FolderError> {
        let text = content(path).map_err(|fault| error(path, fault))?;
        let mode = std::fs::metadata(path).map_or(0, |data| data.permissions().mode() & 0o777);
        if mode & 0o077 != 0 {
            let path = multifd_transport::printable_path(path);
            self.warnings.push(format!(
                "others may read {path} (mode {mode:03o}): chmod 600 {path}"
            ));
        }
        let fault = match PrivateKeyDer::from_pem_slice(&text) {
            Ok(key) => return Ok(key),
            Err(pem::Error::NoItemsFound) if has(&text, "BEGIN ENCRYPTED PRIVATE KEY") => {
                FileFault::Unusable(
                    "is encrypted: `openssl pkey -in OLD -out NEW` takes the password off"
                        .to_owned(),
                )
            }
            Err(pem::Error::NoItemsFound) => wrong_kind("private key", &text),
            Err(other) => FileFault::Broken(other.to_string()),
        };
        Err(error(path, fault))
    }

    fn warn_of_end(&mut self, path: &Path, end: Option<u64>, now: u64) {
        self.warnings.extend(ends_soon(path, end, now));
    }
}

/// The words for a fault of this end's own certificate.
fn own_fault(fault: Error) -> FileFault {
    use CertificateError as Certificate;
    let Error::InvalidCertificate(fault) = fault else {
        return FileFault::Broken(fault.to_string());
    };
    match fault {
        Certificate::ExpiredContext { not_after, .. } => {
            FileFault::Expired(date(not_after.as_secs()))
        }
        Certificate::NotValidYetContext { not_before, .. } => {
            FileFault::NotYetValid(date(not_before.as_secs()))
        }
        Certificate::UnknownIssuer | Certificate::BadSignature => FileFault::Unusable(
            "is not signed by a CA in ca-cert.pem beside it: copy all files of one set".to_owned(),
        ),
        Certificate::InvalidPurpose | Certificate::InvalidPurposeContext { .. } => {
            FileFault::Unusable(
                "has an extended key usage that does not allow this end's role: make one that \
                 allows it (certtool: tls_www_server, tls_www_client)"
                    .to_owned(),
            )
        }
        other => FileFault::Unusable(format!("cannot be used ({other}): make a new one")),
    }
}

fn ends_soon(path: &Path, end: Option<u64>, now: u64) -> Option<String> {
    let end = end.filter(|end| *end < now.saturating_add(WARN_SECONDS))?;
    let path = multifd_transport::printable_path(path);
    Some(format!(
        "{path} expires on {}: make a new one in time",
        date(end)
    ))
}

fn roots(path: &Path, now: u64, warnings: &mut Vec<String>) -> Result<RootCertStore, FolderError> {
    let text = content(path).map_err(|fault| error(path, fault))?;
    let mut roots = RootCertStore::empty();
    let mut fault = None;
    for certificate in certificates(path, &text)? {
        let read = x509::read(&certificate).unwrap_or_default();
        // rustls does not look at the time of a CA.
        if let Some(end) = read.not_after.filter(|end| *end < now) {
            fault = Some(FileFault::Expired(date(end)));
        } else if let Some(start) = read.not_before.filter(|start| *start > now) {
            fault = Some(FileFault::NotYetValid(date(start)));
        } else if let Err(error) = roots.add(certificate) {
            fault = Some(FileFault::Broken(error.to_string()));
        } else {
            warnings.extend(ends_soon(path, read.not_after, now));
        }
    }
    match fault {
        Some(fault) if roots.is_empty() => Err(error(path, fault)),
        Some(fault) => {
            let passed_over = error(path, fault);
            warnings.push(format!(
                "{passed_over} (one CA of several; the others are used)"
            ));
            Ok(roots)
        }
        None => Ok(roots),
    }
}

pub(super) fn certificates(
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, FolderError> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if all.is_empty() => Err(error(path, wrong_kind("certificate", text))),
        Ok(all) => Ok(all),
        Err(fault) => Err(error(path, FileFault::Broken(fault.to_string()))),
    }
}

fn revoked(
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, FolderError> {
    let all = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if all.is_empty() => Err(error(
            path,
            wrong_kind("list of revoked certificates", text),
        )),
        Ok(all) => Ok(all),
        Err(fault) => Err(error(path, FileFault::Broken(fault.to_string()))),
    }
}

pub(super) fn content(path: &Path) -> Result<Vec<u8>, FileFault> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FileFault::Missing,
        _ => FileFault::Unreadable(error.to_string()),
    };
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(FileFault::Unreadable("it is no file".to_owned()));
    }
    let mut text = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(FileFault::Unreadable("it has more than 4 MiB".to_owned()));
    }
    Ok(text)
}

fn wrong_kind(wants: &'static str, text: &[u8]) -> FileFault {
    let found = if has(text, "PRIVATE KEY-----") {
        "a private key"
    } else if has(text, "BEGIN CERTIFICATE REQUEST") {
        "a request for a certificate"
    } else if has(text, "BEGIN CERTIFICATE") {
        "a certificate"
    } else if has(text, "BEGIN X509 CRL") {
        "a list of revoked certificates"
    } else {
        "something else"
    };
    FileFault::WrongKind { wants, found }
}

fn has(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|part| part == word.as_bytes())
}

pub(super) fn error(path: &Path, fault: FileFault) -> FolderError {
    FolderError {
        file: PathBuf::from(path).display().to_string(),
        fault,
    }
}
