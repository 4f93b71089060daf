//! Checks of a peer's certificate: those of rustls, and the list of allowed clients. Keeps the
//! peer's name.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::x509::{self, Names};

/// Checks of signatures, which a gate leaves to the verifier inside.
macro_rules! signatures_as_inner {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.inner.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.inner.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.inner.supported_verify_schemes()
        }
    };
}

/// The claimed names of a handshake's peer. The names of a refused peer are for messages only.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Option<Arc<Names>>>);

impl Seen {
    pub(super) fn names(&self) -> Option<Arc<Names>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn see(&self, certificate: &CertificateDer<'_>) -> Arc<Names> {
        let names = x509::read(certificate).unwrap_or_default().names;
        let names = Arc::new(names);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&names));
        names
    }
}

/// For a server: a client's certificate must be good, and one of its names allowed.
#[derive(Debug)]
pub(super) struct ClientGate {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) allowed: Arc<[String]>,
    pub(super) seen: Arc<Seen>,
}

impl ClientCertVerifier for ClientGate {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let names = self.seen.see(end_entity);
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        if are_allowed(&names, &self.allowed) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    signatures_as_inner!();
}

/// For a client: a server's certificate must be good and have the name that was called.
#[derive(Debug)]
pub(super) struct ServerGate {
    pub(super) inner: Arc<dyn ServerCertVerifier>,
    pub(super) seen: Arc<Seen>,
}

impl ServerCertVerifier for ServerGate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.seen.see(end_entity);
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    signatures_as_inner!();
}

/// The identity of a peer: the names in its certificate. A peer that was not asked for one has no
/// names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerIdentity(pub(super) Arc<Names>);

impl PeerIdentity {
    /// The subject's common name and the alternative DNS names, in this order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.common.iter().chain(&self.0.dns).map(String::as_str)
    }

    /// Whether one of [`names`](Self::names) matches one of `patterns`. In a pattern `*` stands for
    /// any characters, and case does not matter.
    pub fn matches(&self, patterns: &[String]) -> bool {
        self.names()
            .any(|name| patterns.iter().any(|pattern| matches(pattern, name)))
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == Names::default() {
            f.write_str("no certificate")
        } else {
            self.0.fmt(f)
        }
    }
}

/// Without patterns all are allowed that the CA has signed.
fn are_allowed(names: &Arc<Names>, patterns: &[String]) -> bool {
    patterns.is_empty() || PeerIdentity(Arc::clone(names)).matches(patterns)
}

/// Compares a name with a pattern. Takes time by the product of their lengths at most.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = strip_prefix(name, first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        // The first place is as good as any: what follows has the most left to match.
        let found = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
        let found = found
            .filter_map(|at| strip_prefix(rest.get(at..)?, part))
            .next();
        match found {
            Some(after) => rest = after,
            None => return false,
        }
    }
    let at = rest.len().checked_sub(last.len());
    at.and_then(|at| rest.get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(last))
}

fn strip_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("src1.example", "src1.example", true),
            ("SRC1.example", "src1.EXAMPLE", true),
            ("src1.example", "src11.example", false),
            ("src1.example", "src1.example.org", false),
            ("*", "", true),
            ("*", "anything", true),
            ("*.example", "a.b.example", true),
            ("*.example", ".example", true),
            ("*.example", "example", false),
            ("src*", "src", true),
            ("src*", "xsrc", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*b*b", "ab", false),
            ("ab*ba", "aba", false),
            ("", "", true),
            ("", "a", false),
            ("*ö*", "Größe", true),
            ("G*", "é", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
