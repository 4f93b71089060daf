//! `multifd tls`: certificates for a try.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::process::Outcome;
use crate::say;

/// Clocks of two hosts may differ by as much without harm.
const BEFORE: Duration = Duration::from_secs(86_400);

/// Make certificates for encrypted legs.
#[derive(Args, Debug)]
pub(crate) struct TlsArgs {
    /// The subcommand.
    #[command(subcommand)]
    pub command: TlsCommand,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum TlsCommand {
    Init(InitArgs),
}

/// Make a CA, a server's and a client's certificate.
#[derive(Args, Debug)]
#[command(after_help = "\
For a try; where you have a CA, let it sign. The files have the names that QEMU's tls-creds-x509 and --tls-dir expect.
They are ca-cert.pem, ca-key.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem, and none is
overwritten. A destination is a server, a source is a client; a client calls a server by one of the names of --host.

Example:
  multifd tls init certs --host dst.example --host 192.0.2.2 --client src.example")]
pub(crate) struct InitArgs {
    /// The folder, created if missing.
    pub dir: PathBuf,
    /// Host name or IP address by which clients call the server; repeatable.
    #[arg(long = "host", value_name = "NAME", required = true, value_parser = host)]
    pub hosts: Vec<String>,
    /// The client's name, for lists of allowed clients.
    #[arg(long, value_name = "NAME", default_value = "multifd-client", value_parser = client)]
    pub client: String,
    /// Days until the certificates expire.
    #[arg(long, value_name = "N", default_value = "365")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=36_500))]
    pub days: u16,
}

fn host(name: &str) -> Result<String, String> {
    if name.parse::<IpAddr>().is_ok() || is_host_name(name) {
        Ok(name.to_owned())
    } else {
        Err("write a host name, such as dst.example, or an IP address without port".to_owned())
    }
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn client(name: &str) -> Result<String, String> {
    // The longest common name that X.520 allows.
    let fits = (1..=64).contains(&name.len()) && !name.contains(char::is_control);
    if fits && name.is_ascii() {
        Ok(name.to_owned())
    } else {
        Err("a client's name has 1 to 64 ASCII characters".to_owned())
    }
}

/// Makes certificates.
pub(crate) fn run(args: &TlsArgs) -> Outcome {
    match &args.command {
        TlsCommand::Init(args) => init(args),
    }
}

fn init(args: &InitArgs) -> Outcome {
    let files = make(args)?;
    write(&args.dir, &files)?;
    let dir = say::printable_path(&args.dir);
    for line in [
        format!("{dir}: a CA, and certificates for {} days", args.days),
        format!("server: {}", args.hosts.join(", ")),
        format!("client: {}", args.client),
        "copy to the destination: ca-cert.pem server-cert.pem server-key.pem".to_owned(),
        "copy to the source: ca-cert.pem client-cert.pem client-key.pem".to_owned(),
        "copy nowhere: ca-key.pem. It signs certificates that both take. Delete it if you need no more"
            .to_owned(),
        "QEMU takes such a folder with -object tls-creds-x509,id=tls0,dir=DIR,endpoint=server (or client)"
            .to_owned(),
    ] {
        say::result(line)?;
    }
    Ok(())
}

/// Makes certificates for a connection of this process to itself, for a day. Returns the name of
/// the server.
pub(crate) fn make_for_loopback(dir: &Path) -> Result<&'static str, String> {
    const HOST: &str = "localhost";
    let args = InitArgs {
        dir: dir.to_owned(),
        hosts: vec![HOST.to_owned()],
        client: "multifd-client".to_owned(),
        days: 1,
    };
    // The key of the CA signs nothing more.
    let files: Vec<_> = make(&args)
        .map_err(|error| say::chain(error.as_ref()))?
        .into_iter()
        .filter(|file| file.name != "ca-key.pem")
        .collect();
    write(dir, &files)?;
    Ok(HOST)
}

/// A file: its name, its content, and whether it is a secret.
struct Made {
    name: &'static str,
    text: String,
    is_secret: bool,
}

fn make(args: &InitArgs) -> Result<Vec<Made>, Box<dyn std::error::Error>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let until = now.saturating_add(Duration::from_secs(u64::from(args.days) * 86_400));
    let from = now.saturating_sub(BEFORE);
    let limit = |mut params: CertificateParams| {
        let start = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = start + Duration::from_secs(from.as_secs());
        params.not_after = start + Duration::from_secs(until.as_secs());
        params
    };
    let mut params = limit(CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Two CAs of this command differ in name, so that a mix-up is seen.
    let name = format!("multifd tls init {}", now.as_secs());
    params.distinguished_name.push(DnType::CommonName, name);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut files = vec![
        Made::open("ca-cert.pem", ca.pem()),
        Made::secret("ca-key.pem", ca.key().serialize_pem()),
    ];

    let common = args.hosts.iter().find(|host| host.len() <= 64);
    let names = args.hosts.clone();
    let purpose = ExtendedKeyUsagePurpose::ServerAuth;
    let server = limit(signed(
        common.map_or("server", String::as_str),
        names,
        purpose,
    )?);
    let key = KeyPair::generate()?;
    files.push(Made::open(
        "server-cert.pem",
        server.signed_by(&key, &ca)?.pem(),
    ));
    files.push(Made::secret("server-key.pem", key.serialize_pem()));

    let names = Some(args.client.clone()).filter(|name| is_host_name(name));
    let purpose = ExtendedKeyUsagePurpose::ClientAuth;
    let client = limit(signed(&args.client, names.into_iter().collect(), purpose)?);
    let key = KeyPair::generate()?;
    files.push(Made::open(
        "client-cert.pem",
        client.signed_by(&key, &ca)?.pem(),
    ));
    files.push(Made::secret("client-key.pem", key.serialize_pem()));
    Ok(files)
}

/// A certificate of an end.
fn signed(
    common_name: &str,
    names: Vec<String>,
    purpose: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // Older QEMUs want the second one whatever the key is.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

impl Made {
    fn open(name: &'static str, text: String) -> Self {
        Self {
            name,
            text,
            is_secret: false,
        }
    }

    fn secret(name: &'static str, text: String) -> Self {
        Self {
            is_secret: true,
            ..Self::open(name, text)
        }
    }
}

/// Writes all files or none.
fn write(dir: &Path, files: &[Made]) -> Result<(), String> {
    let shown = say::printable_path(dir);
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        other => other.map_err(|error| format!("cannot create {shown}: {error}"))?,
    }
    let mut written = Vec::new();
    for file in files {
        let path = dir.join(file.name);
        let result = put(&path, file);
        if let Err(error) = result {
            if error.kind() != io::ErrorKind::AlreadyExists {
                written.push(path);
            }
            for path in written {
                // It may not be there at all.
                let _ = fs::remove_file(path);
            }
            return Err(if error.kind() == io::ErrorKind::AlreadyExists {
                format!(
                    "{shown}/{} exists: choose another folder, or remove it",
                    file.name
                )
            } else {
                format!("cannot write {shown}/{}: {error}", file.name)
            });
        }
        written.push(path);
    }
    Ok(())
}

fn put(path: &Path, file: &Made) -> io::Result<()> {
    let mode = if file.is_secret { 0o600 } else { 0o644 };
    let mut options = OpenOptions::new();
    let mut out = options.write(true).create_new(true).mode(mode).open(path)?;
    out.write_all(file.text.as_bytes())?;
    out.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hosts() {
        for good in ["dst", "dst.example", "192.0.2.2", "2001:db8::1", "a-b_c.d"] {
            assert!(host(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "dst.example:4444",
            "[::1]",
            "a b",
            "-a",
            "a..b",
            "*.example",
            "tcp:x",
        ] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert!(client("Source 1").is_ok());
        assert!(client("").is_err() && client("a\nb").is_err() && client(&"x".repeat(65)).is_err());
    }
}
