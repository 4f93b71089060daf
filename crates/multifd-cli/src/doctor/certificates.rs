//! The folder of certificates.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use multifd_relay::leg::{Endpoint, Examined, examine};

use super::check::Check;
use super::way::Certificates;

const DAY: u64 = 86_400;

/// The checks, and the certificates with which a trunk on loopback can be tried: both ends' are
/// needed for that.
pub(super) fn checks(folder: &Path) -> (Vec<Check>, Option<Certificates>) {
    let mut checks = Vec::new();
    let mut usable = Vec::new();
    let ends = [("server", Endpoint::Server), ("client", Endpoint::Client)];
    let is_there = |endpoint: Endpoint| folder.join(endpoint.file()).exists();
    for (name, endpoint) in ends {
        let other = match endpoint {
            Endpoint::Server => Endpoint::Client,
            _ => Endpoint::Server,
        };
        if !is_there(endpoint) && is_there(other) {
            let role = match endpoint {
                Endpoint::Server => "a source's, which only calls",
                _ => "a destination's, which is only called",
            };
            let file = endpoint.file();
            checks.push(Check::ok(name, format!("no {file}: the folder is {role}")));
            continue;
        }
        match examine(folder, endpoint) {
            Err(error) => {
                let (found, advice) = parted(&error.to_string());
                checks.push(Check::fail(name, found, advice));
            }
            Ok(found) => {
                checks.push(good(name, &found));
                let warnings = found.warnings.iter();
                checks.extend(warnings.map(|warning| {
                    let (found, advice) = parted(warning);
                    Check::warn(name, found, advice)
                }));
                usable.push((endpoint, found));
            }
        }
    }
    let server = usable
        .iter()
        .find(|(endpoint, _)| *endpoint == Endpoint::Server);
    let hostname = server.and_then(|(_, found)| found.hosts.first().cloned());
    if let (Some(_), None) = (server, &hostname) {
        checks.push(Check::fail(
            "server",
            "server-cert.pem names no host, so no client takes it (subjectAltName)",
            "make one for the name or address by which clients call: multifd tls init DIR --host HOST",
        ));
    }
    let certificates = hostname.filter(|_| usable.len() == ends.len());
    let certificates = certificates.map(|hostname| Certificates {
        folder: folder.to_owned(),
        // A pattern stands for any name.
        hostname: hostname.replace('*', "doctor"),
    });
    (checks, certificates)
}

fn good(name: &'static str, found: &Examined) -> Check {
    let names = match found.names.as_slice() {
        [] => "no name".to_owned(),
        names => {
            let mut names: Vec<_> = names.iter().map(multifd_transport::printable).collect();
            names.dedup();
            names.join(", ")
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |time| time.as_secs());
    let days = found.not_after.map(|end| end.saturating_sub(now) / DAY);
    let left = match days {
        Some(days) => format!("; {days} days left"),
        None => String::new(),
    };
    let revoked = match found.has_revoked {
        true => "; with ca-crl.pem",
        false => "",
    };
    let authorities = match found.authorities {
        1 => "signed by the CA in ca-cert.pem".to_owned(),
        many => format!("signed by one of {many} CAs in ca-cert.pem"),
    };
    Check::ok(name, format!("{names}: {authorities}{left}{revoked}"))
}

/// A message of what was found, and what to do.
fn parted(words: &str) -> (String, String) {
    match words.rsplit_once(": ") {
        Some((found, advice)) => (found.to_owned(), advice.to_owned()),
        None => (
            words.to_owned(),
            "multifd tls init DIR --host NAME".to_owned(),
        ),
    }
}
