//! [`TlsError`]: why there is no TLS connection, with what to do.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::x509::{Names, date};

/// Why a handshake was refused, or an established connection has ended without the peer's having
/// said so.
///
/// Each message names what was found and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// No CA that this end knows has signed the peer's certificate.
    #[error(
        "the {peer} is not signed by a CA in {folder}/ca-cert.pem: use certificates of one CA at \
         both ends, or add the peer's CA to that file"
    )]
    UnknownCa {
        /// The peer's certificate, by its names.
        peer: String,
        /// This end's folder.
        folder: String,
    },
    /// The peer's certificate is out of date.
    #[error("the {peer} has expired on {since}: make a new one, or set the clock of this host")]
    Expired {
        /// The peer's certificate, by its names.
        peer: String,
        /// The end of its time.
        since: String,
    },
    /// The peer's certificate is not valid yet.
    #[error("the {peer} is valid from {from} on: compare the clocks of both hosts")]
    NotYetValid {
        /// The peer's certificate, by its names.
        peer: String,
        /// The start of its time.
        from: String,
    },
    /// The peer's certificate was revoked.
    #[error("{folder}/ca-crl.pem revokes the {peer}: give that host a new certificate")]
    Revoked {
        /// The peer's certificate, by its names.
        peer: String,
        /// This end's folder.
        folder: String,
    },
    /// The list of revoked certificates cannot be used for the peer's certificate.
    #[error(
        "{folder}/ca-crl.pem {fault}: get a new list from the CA, and send SIGHUP or start anew"
    )]
    RevocationList {
        /// The fault.
        fault: String,
        /// This end's folder.
        folder: String,
    },
    /// The server's certificate is for other names.
    #[error(
        "the {peer} is not for `{expected}`: call the server by one of its names, or make a \
         certificate with `{expected}` among its alternative names"
    )]
    WrongName {
        /// The peer's certificate, by its names.
        peer: String,
        /// The name that was called.
        expected: String,
    },
    /// The client has no certificate.
    #[error(
        "the client has sent no certificate: put client-cert.pem and client-key.pem into its folder"
    )]
    NoClientCertificate,
    /// The client's certificate is good, but its names are not allowed.
    #[error("the {peer} is not allowed here: add one of its names to the allowed clients")]
    NameNotAllowed {
        /// The peer's certificate, by its names.
        peer: String,
    },
    /// The peer's certificate cannot be used for another reason.
    #[error("the {peer} cannot be used: {fault}")]
    BadCertificate {
        /// The peer's certificate, by its names.
        peer: String,
        /// The fault.
        fault: String,
    },
    /// The peer offers no version of TLS that this end takes.
    #[error("the peer offers no version of TLS that this end takes: this end takes {takes}")]
    VersionTooOld {
        /// The versions that this end takes.
        takes: &'static str,
    },
    /// The first bytes of the peer are no TLS.
    #[error("the peer speaks no TLS: is it a plain trunk+tcp: or tcp: leg?")]
    NotTls,
    /// The peer closed the connection within the handshake and said nothing.
    #[error(
        "the peer closed the connection within the TLS handshake: does it speak TLS at this \
         address? Its log may say more"
    )]
    ClosedInHandshake,
    /// The peer has refused, by an alert of TLS.
    #[error("the peer has refused ({alert}): {advice}")]
    PeerRefused {
        /// The alert's name in the standard.
        alert: String,
        /// The meaning, and advice.
        advice: String,
    },
    /// The peer breaks the rules of TLS.
    #[error("{0}: the peer's TLS is faulty, or its bytes were changed on their way")]
    Broken(String),
    /// The connection has ended without close_notify.
    #[error("the connection was cut: it has ended without close_notify{}", hint(*before_data))]
    Cut {
        /// It has ended right after the handshake.
        before_data: bool,
    },
    /// The handshake has taken too long.
    #[error(
        "no TLS handshake within {} s: does the peer speak TLS at this address?",
        .0.as_secs_f64()
    )]
    TimedOut(Duration),
    /// The caller has given up.
    #[error("given up within the TLS handshake")]
    GivenUp,
    /// The name of the server is neither a host name nor an IP address.
    #[error("`{0}` is neither a host name nor an IP address, so no certificate can be for it")]
    NoName(String),
    /// The socket has failed.
    #[error("the connection failed within TLS")]
    Io(#[source] Arc<io::Error>),
    /// This end cannot do TLS.
    #[error("TLS cannot be used here: {0}")]
    Local(String),
}

fn hint(before_data: bool) -> &'static str {
    if before_data {
        " right after the handshake. The peer may have refused the certificate of this end: see \
         its log"
    } else {
        ""
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// The parts of this end that messages name.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: Arc<str>,
    pub(super) is_client: bool,
    /// The names of this end's own certificate.
    pub(super) own: Option<Arc<Names>>,
    /// The versions that this end takes.
    pub(super) takes: &'static str,
    /// The names of the peer's certificate.
    pub(super) peer: Option<Arc<Names>>,
    /// The name that a client has called.
    pub(super) called: Option<Arc<str>>,
}

impl Place {
    fn peer(&self) -> String {
        let role = if self.is_client { "server" } else { "client" };
        match &self.peer {
            Some(names) => format!("{role}'s certificate ({names})"),
            None => format!("{role}'s certificate"),
        }
    }

    fn own_file(&self) -> String {
        let role = if self.is_client { "client" } else { "server" };
        let file = format!("{}/{role}-cert.pem", self.folder);
        match &self.own {
            Some(names) => format!("{file} ({names})"),
            None => file,
        }
    }
}

impl TlsError {
    /// The words for an error of rustls.
    pub(super) fn from_rustls(error: Error, place: &Place) -> Self {
        use CertificateError as Certificate;
        let peer = || place.peer();
        let folder = || place.folder.to_string();
        match error {
            Error::InvalidCertificate(fault) => match fault {
                Certificate::UnknownIssuer => Self::UnknownCa {
                    peer: peer(),
                    folder: folder(),
                },
                Certificate::ExpiredContext { not_after, .. } => Self::Expired {
                    peer: peer(),
                    since: day(not_after),
                },
                Certificate::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                    peer: peer(),
                    from: day(not_before),
                },
                Certificate::Revoked => Self::Revoked {
                    peer: peer(),
                    folder: folder(),
                },
                Certificate::UnknownRevocationStatus => Self::RevocationList {
                    fault: format!("does not cover the CA of the {}", peer()),
                    folder: folder(),
                },
                Certificate::ExpiredRevocationListContext { next_update, .. } => {
                    Self::RevocationList {
                        fault: format!("was to be renewed before {}", day(next_update)),
                        folder: folder(),
                    }
                }
                Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                    Self::WrongName {
                        peer: peer(),
                        expected: place.called.as_deref().unwrap_or_default().to_owned(),
                    }
                }
                // Only the list of allowed names says this.
                Certificate::ApplicationVerificationFailure => {
                    Self::NameNotAllowed { peer: peer() }
                }
                Certificate::InvalidPurposeContext { .. } | Certificate::InvalidPurpose => {
                    let role = if place.is_client { "server" } else { "client" };
                    Self::BadCertificate {
                        peer: peer(),
                        fault: format!("its extended key usage does not allow a TLS {role}"),
                    }
                }
                other => Self::BadCertificate {
                    peer: peer(),
                    fault: other.to_string(),
                },
            },
            Error::NoCertificatesPresented => Self::NoClientCertificate,
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::VersionTooOld { takes: place.takes },
            Error::AlertReceived(alert) => Self::PeerRefused {
                alert: name(alert),
                advice: advice(alert, place),
            },
            Error::General(fault) => Self::Local(fault),
            Error::FailedToGetCurrentTime | Error::FailedToGetRandomBytes => {
                Self::Local(error.to_string())
            }
            other => Self::Broken(other.to_string()),
        }
    }

    /// Converts it to an error of reading or writing.
    pub(super) fn to_io(&self) -> io::Error {
        let kind = match self {
            Self::Io(error) => error.kind(),
            Self::Cut { .. } | Self::PeerRefused { .. } | Self::ClosedInHandshake => {
                io::ErrorKind::ConnectionReset
            }
            Self::TimedOut(_) => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self.clone())
    }
}

/// An alert's name, as in RFC 8446.
fn name(alert: AlertDescription) -> String {
    let name = match alert {
        AlertDescription::CloseNotify => "close_notify",
        AlertDescription::UnexpectedMessage => "unexpected_message",
        AlertDescription::BadRecordMac => "bad_record_mac",
        AlertDescription::HandshakeFailure => "handshake_failure",
        AlertDescription::BadCertificate => "bad_certificate",
        AlertDescription::UnsupportedCertificate => "unsupported_certificate",
        AlertDescription::CertificateRevoked => "certificate_revoked",
        AlertDescription::CertificateExpired => "certificate_expired",
        AlertDescription::CertificateUnknown => "certificate_unknown",
        AlertDescription::UnknownCA => "unknown_ca",
        AlertDescription::AccessDenied => "access_denied",
        AlertDescription::DecodeError => "decode_error",
        AlertDescription::DecryptError => "decrypt_error",
        AlertDescription::ProtocolVersion => "protocol_version",
        AlertDescription::InternalError => "internal_error",
        AlertDescription::UserCanceled => "user_canceled",
        AlertDescription::CertificateRequired => "certificate_required",
        other => return format!("alert {}", u8::from(other)),
    };
    name.to_owned()
}

fn advice(alert: AlertDescription, place: &Place) -> String {
    let own = place.own_file();
    match alert {
        AlertDescription::UnknownCA => format!(
            "it does not know the CA of {own}, or its list of revoked certificates does not cover \
             that CA: use certificates of one CA at both ends"
        ),
        AlertDescription::CertificateExpired => format!(
            "{own} has expired or is not valid yet for the peer's clock: make a new one, or \
             compare the clocks of both hosts"
        ),
        AlertDescription::CertificateRevoked => {
            format!("its ca-crl.pem revokes {own}: make a new one")
        }
        AlertDescription::CertificateRequired => format!(
            "it wants a certificate of this end: put client-cert.pem and client-key.pem into {}",
            place.folder
        ),
        AlertDescription::AccessDenied => format!(
            "it does not allow the names of {own}: add one of them to the allowed clients there"
        ),
        AlertDescription::BadCertificate if place.is_client => {
            format!("it does not take {own}: see its log")
        }
        AlertDescription::BadCertificate => format!(
            "it does not take {own}: does the client call this host by one of these names? Its \
             log says more"
        ),
        AlertDescription::UnsupportedCertificate | AlertDescription::CertificateUnknown => {
            format!("it does not take {own}: see its log, and the key usage of that certificate")
        }
        AlertDescription::ProtocolVersion => format!(
            "it takes no version of TLS that this end offers: this end takes {}",
            place.takes
        ),
        AlertDescription::HandshakeFailure => format!(
            "it finds no way to agree: compare versions and ciphers of both ends, and whether it \
             wants {own}"
        ),
        AlertDescription::UnexpectedMessage
        | AlertDescription::DecodeError
        | AlertDescription::DecryptError
        | AlertDescription::BadRecordMac => {
            "the bytes of this end did not reach it as they were sent: see its log".to_owned()
        }
        _ => "see its log".to_owned(),
    }
}

fn day(time: UnixTime) -> String {
    date(time.as_secs())
}

/// The fault of a file of certificates or keys.
#[derive(Clone, Debug)]
pub struct FolderError {
    pub(super) file: String,
    pub(super) fault: FileFault,
}

/// The fault of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum FileFault {
    Missing,
    Unreadable(String),
    /// It holds nothing of the kind; what it holds, if that can be told.
    WrongKind {
        wants: &'static str,
        found: &'static str,
    },
    Broken(String),
    Expired(String),
    NotYetValid(String),
    Unusable(String),
    WrongKey,
}

impl std::error::Error for FolderError {}

impl fmt::Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = multifd_transport::printable(&self.file);
        match &self.fault {
            FileFault::Missing => write!(
                f,
                "{file} is missing: `multifd tls init DIR --host NAME` makes all files for a try, \
                 and QEMU's documentation shows how certtool makes them"
            ),
            FileFault::Unreadable(error) => write!(f, "cannot read {file}: {error}"),
            FileFault::WrongKind { wants, found } => write!(
                f,
                "{file} holds no {wants} in PEM form but {found}: put the right file there"
            ),
            FileFault::Broken(fault) => {
                write!(
                    f,
                    "{file} is broken ({fault}): copy it again, or make a new one"
                )
            }
            FileFault::Expired(since) => {
                write!(f, "{file} has expired on {since}: make a new one")
            }
            FileFault::NotYetValid(from) => {
                write!(
                    f,
                    "{file} is valid from {from} on: set the clock, or make a new one"
                )
            }
            FileFault::Unusable(fault) => write!(f, "{file} {fault}"),
            FileFault::WrongKey => write!(
                f,
                "{file} is not the key of the certificate beside it: copy both files of one pair"
            ),
        }
    }
}
