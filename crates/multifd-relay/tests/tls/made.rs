//! Certificates for tests, and folders of them.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

/// A day, in seconds.
pub const DAY: i64 = 86_400;

/// From yesterday to tomorrow.
pub const NOW: Range<i64> = -DAY..DAY;

/// Sets the times of a certificate, in seconds from now.
macro_rules! set_times {
    ($params:expr, $times:expr) => {
        $params.not_before = at!($times.start);
        $params.not_after = at!($times.end);
    };
}

macro_rules! at {
    ($seconds:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + since_epoch($seconds)
    };
}

fn since_epoch(seconds: i64) -> Duration {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Duration::from_secs(now.as_secs().checked_add_signed(seconds).unwrap())
}

pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM form.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    serial: u64,
}

/// What a certificate says.
pub struct Spec {
    pub common_name: &'static str,
    pub names: &'static [&'static str],
    pub times: Range<i64>,
    pub usages: &'static [ExtendedKeyUsagePurpose],
}

pub const BOTH: &[ExtendedKeyUsagePurpose] = &[
    ExtendedKeyUsagePurpose::ServerAuth,
    ExtendedKeyUsagePurpose::ClientAuth,
];

impl Ca {
    pub fn new(name: &str) -> Self {
        Self::within(name, -2 * DAY..2 * DAY)
    }

    pub fn within(name: &str, times: Range<i64>) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        set_times!(params, times);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, spec: &Spec) -> Pair {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let names: Vec<String> = spec.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, spec.common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = spec.usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        set_times!(params, spec.times);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    pub fn server(&self) -> Pair {
        self.issue(&Spec {
            common_name: "the server",
            names: &["dst.example", "127.0.0.1"],
            times: NOW,
            usages: BOTH,
        })
    }

    pub fn client(&self) -> Pair {
        self.issue(&Spec {
            common_name: "src1",
            names: &["src1.example"],
            times: NOW,
            usages: BOTH,
        })
    }

    /// A list of revoked certificates, to be renewed this many seconds from now.
    pub fn revoking(&self, pairs: &[&Pair], next: i64) -> String {
        let params = CertificateRevocationListParams {
            this_update: at!(-DAY),
            next_update: at!(next),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: pairs
                .iter()
                .map(|pair| RevokedCertParams {
                    serial_number: SerialNumber::from(pair.serial),
                    revocation_time: at!(-60),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

impl Pair {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()]
    }

    pub fn secret(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// A folder with QEMU's file names.
pub struct Folder(TempDir);

impl Folder {
    pub fn new(ca: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.put("ca-cert.pem", ca);
        folder
    }

    pub fn server(ca: &Ca, pair: &Pair) -> Self {
        Self::new(&ca.pem()).with("server", pair)
    }

    pub fn client(ca: &Ca, pair: &Pair) -> Self {
        Self::new(&ca.pem()).with("client", pair)
    }

    pub fn with(self, role: &str, pair: &Pair) -> Self {
        self.put(&format!("{role}-cert.pem"), &pair.certificate);
        self.put(&format!("{role}-key.pem"), &pair.key);
        self
    }

    pub fn put(&self, file: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
