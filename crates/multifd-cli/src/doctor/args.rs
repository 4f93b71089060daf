//! The options of `multifd doctor`.

use std::path::PathBuf;

use clap::Args;
use multifd_relay::leg::{LegAddress, Name, Protocol};

use crate::args::CodecArgs;

/// Find out whether a migration would work and be fast here, and what is slow.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Needs no QEMU, and changes nothing. It looks at this host and sends a made guest through two relays in this process;
every page is checked. With --tls-dir it looks at the certificates, and with --to it asks the relay there what it
understands: no migration begins. It takes some seconds. Exit status: 0 ok or warnings, 1 something would fail, 2 usage.

Example:
  multifd doctor --tls-dir pki --to trunk:dst:4444 --link 10gbit")]
pub(crate) struct DoctorArgs {
    /// Ask the relay that listens at trunk:HOST:PORT, as a source's relay would call it.
    ///
    /// The address must be a relay's: a QEMU that waits there would take the call for its
    /// migration's.
    #[arg(long, value_name = "LEG", value_parser = trunk)]
    pub(crate) to: Option<LegAddress>,
    /// Folder with certificates and keys for TLS, as `multifd relay` has it.
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Name to expect in the server's certificate, if it is not the host in --to.
    #[arg(long, value_name = "HOST", requires = "to", hide_short_help = true)]
    pub(crate) tls_hostname: Option<String>,
    /// The guest's name: a far relay may allow some only.
    #[arg(long, value_name = "NAME", value_parser = crate::args::name, requires = "to")]
    #[arg(hide_short_help = true)]
    pub(crate) name: Option<Name>,
    /// What the link to the other host can carry: 1gbit, 2.5gbit, 800mbit, or 100M bytes a second.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) link: Option<f64>,
    /// The source's multifd-channels.
    #[arg(long, value_name = "N", default_value = "2")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=255))]
    pub(crate) channels: u8,
    #[command(flatten)]
    pub(crate) codec: CodecArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

fn trunk(text: &str) -> Result<LegAddress, String> {
    let leg: LegAddress = text.parse().map_err(|error| format!("{error}"))?;
    match leg.protocol {
        Protocol::Trunk if !leg.needs_name() => Ok(leg),
        Protocol::Trunk => Err("write the address without {name}".to_owned()),
        // A QEMU would take the first call for its migration's.
        _ => Err("only a relay can be asked: write trunk:HOST:PORT, or trunk+tcp: or trunk+unix: for a trunk in clear".to_owned()),
    }
}

/// Reads a rate. Returns bits a second.
fn rate(text: &str) -> Result<f64, String> {
    let end = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let bits = match unit.to_ascii_lowercase().as_str() {
        "mbit" => 1e6,
        "gbit" => 1e9,
        "m" => 8e6,
        "g" => 8e9,
        _ => {
            return Err(
                "write bits a second, such as 1gbit or 500mbit, or bytes a second, such as 100M"
                    .to_owned(),
            );
        }
    };
    let number: Option<f64> = number.parse().ok();
    let rate = number.map(|number| number * bits);
    rate.filter(|rate| (1e6..=1e13).contains(rate))
        .ok_or_else(|| "rates are 1mbit to 10000gbit".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        for (text, bits) in [
            ("1gbit", 1e9),
            ("2.5Gbit", 2.5e9),
            ("500mbit", 5e8),
            ("100M", 8e8),
        ] {
            assert_eq!(rate(text), Ok(bits), "{text}");
        }
        for text in [
            "", "1", "gbit", "0.1mbit", "-1gbit", "1kbit", "1 gbit", "infgbit", "nangbit",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_relay_is_asked() {
        for text in ["trunk:dst:1", "trunk+tcp:dst:1", "trunk+unix:/run/t"] {
            assert!(trunk(text).is_ok(), "{text}");
        }
        for text in [
            "tcp:dst:1",
            "tls:dst:1",
            "unix:/run/t",
            "trunk+unix:/run/{name}",
            "dst",
        ] {
            assert!(trunk(text).is_err(), "{text}");
        }
    }
}
