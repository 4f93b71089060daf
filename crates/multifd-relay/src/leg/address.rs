//! Addresses of legs, each with its protocol: QEMU's own, or the trunk.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use multifd_transport::{Address, AddressError};

use crate::trunk::Name;

/// The placeholder for the migration's name in an address.
const PLACEHOLDER: &str = "{name}";

/// The protocol of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// QEMU's own. The peer is a QEMU, or a relay in its place.
    Qemu,
    /// The trunk. The peer is another relay.
    Trunk,
}

/// The address that a leg listens on or dials, and its protocol.
///
/// ```
/// use multifd_relay::leg::{LegAddress, Protocol};
///
/// let leg: LegAddress = "trunk+tcp:127.0.0.1:4444".parse()?;
/// assert_eq!(leg.protocol, Protocol::Trunk);
/// assert_eq!(leg.address.to_string(), "tcp:127.0.0.1:4444");
/// # Ok::<(), multifd_relay::leg::LegAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LegAddress {
    /// The protocol.
    pub protocol: Protocol,
    /// Whether it runs over TLS.
    pub tls: bool,
    /// The socket's address.
    pub address: Address,
}

/// Why a text is no address of a leg, or a migration without a name has none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct LegAddressError(#[from] AddressFault);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum AddressFault {
    /// The text begins with no known word.
    #[error(
        "`{found}` is no address: write unix:PATH, tcp:HOST:PORT or tls:HOST:PORT for a QEMU, \
         trunk:HOST:PORT for another relay, or trunk+tcp: and trunk+unix: without encryption"
    )]
    Scheme {
        /// The text.
        found: String,
    },
    /// The text after the word is wrong.
    #[error("{}", in_words_of(error, word))]
    Address {
        /// The word, with its colon.
        word: &'static str,
        /// The fault.
        error: AddressError,
    },
    /// The address has a placeholder, and the migration has no name.
    #[error(
        "{address} needs a name, and this migration has none: give the source's relay --name NAME"
    )]
    NoName {
        /// The address.
        address: String,
    },
}

impl LegAddress {
    /// An address with QEMU's own protocol, unencrypted.
    pub fn qemu(address: Address) -> Self {
        let (protocol, tls) = (Protocol::Qemu, false);
        Self {
            protocol,
            tls,
            address,
        }
    }

    /// Reads an address in which the path of a unix socket need not be UTF-8.
    ///
    /// # Errors
    /// If the text is no address.
    pub fn from_os_str(text: &OsStr) -> Result<Self, LegAddressError> {
        // The word, the socket's scheme, the protocol, and whether TLS is used.
        const FORMS: [(&str, &str, Protocol, bool); 6] = [
            ("trunk+unix:", "unix:", Protocol::Trunk, false),
            ("trunk+tcp:", "tcp:", Protocol::Trunk, false),
            ("trunk:", "tcp:", Protocol::Trunk, true),
            ("tls:", "tcp:", Protocol::Qemu, true),
            ("unix:", "unix:", Protocol::Qemu, false),
            ("tcp:", "tcp:", Protocol::Qemu, false),
        ];
        let bytes = text.as_bytes();
        let form = FORMS.iter().find_map(|(word, scheme, protocol, tls)| {
            let rest = bytes.strip_prefix(word.as_bytes())?;
            Some((rest, *word, *scheme, *protocol, *tls))
        });
        let Some((rest, word, scheme, protocol, tls)) = form else {
            let found = multifd_transport::printable_bytes(bytes);
            return Err(AddressFault::Scheme { found }.into());
        };
        let plain = [scheme.as_bytes(), rest].concat();
        let address = Address::from_os_str(OsStr::from_bytes(&plain))
            .map_err(|error| AddressFault::Address { word, error })?;
        Ok(Self {
            protocol,
            tls,
            address,
        })
    }

    /// Whether the address has a placeholder for a name.
    pub fn needs_name(&self) -> bool {
        match &self.address {
            Address::Unix(path) => {
                let mut windows = path.as_os_str().as_bytes().windows(PLACEHOLDER.len());
                windows.any(|window| window == PLACEHOLDER.as_bytes())
            }
            Address::Tcp(text) => text.contains(PLACEHOLDER),
            _ => false,
        }
    }

    /// The address for the migration of this name.
    ///
    /// # Errors
    /// If the address needs a name and there is none.
    pub fn of(&self, name: Option<&Name>) -> Result<Self, LegAddressError> {
        if !self.needs_name() {
            return Ok(self.clone());
        }
        let address = self.to_string();
        let name = name.ok_or(AddressFault::NoName { address })?.as_str();
        let address = match &self.address {
            Address::Unix(path) => {
                let path = replaced(path.as_os_str().as_bytes(), name.as_bytes());
                Address::Unix(PathBuf::from(std::ffi::OsString::from_vec(path)))
            }
            Address::Tcp(text) => Address::Tcp(text.replace(PLACEHOLDER, name)),
            other => other.clone(),
        };
        Ok(Self {
            address,
            ..self.clone()
        })
    }

    /// Whether guest memory would cross a network unencrypted: a trunk without TLS to another host.
    pub fn is_exposed(&self) -> bool {
        let Address::Tcp(text) = &self.address else {
            return false;
        };
        let host = text.rsplit_once(':').map_or("", |(host, _)| host);
        let is_local = host == "localhost" || host == "[::1]" || host.starts_with("127.");
        self.protocol == Protocol::Trunk && !self.tls && !is_local
    }
}

/// An error of a socket's address, in terms of the leg's address.
fn in_words_of(error: &AddressError, word: &str) -> String {
    error.to_string().replace("tcp:", word)
}

/// Replaces each placeholder in `bytes` with `name`.
fn replaced(bytes: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().saturating_add(name.len()));
    let mut rest = bytes;
    while let Some((first, behind)) = rest.split_first() {
        match rest.strip_prefix(PLACEHOLDER.as_bytes()) {
            Some(behind) => {
                out.extend_from_slice(name);
                rest = behind;
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

impl FromStr for LegAddress {
    type Err = LegAddressError;

    fn from_str(text: &str) -> Result<Self, LegAddressError> {
        Self::from_os_str(OsStr::new(text))
    }
}

impl fmt::Display for LegAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.address.to_string();
        let rest = plain.strip_prefix("tcp:").unwrap_or(&plain);
        match (self.protocol, self.tls) {
            (Protocol::Qemu, false) => f.write_str(&plain),
            (Protocol::Qemu, true) => write!(f, "tls:{rest}"),
            (Protocol::Trunk, false) => write!(f, "trunk+{plain}"),
            (Protocol::Trunk, true) => write!(f, "trunk:{rest}"),
        }
    }
}

impl From<&Address> for LegAddress {
    fn from(address: &Address) -> Self {
        Self::qemu(address.clone())
    }
}

impl From<Address> for LegAddress {
    fn from(address: Address) -> Self {
        Self::qemu(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_what_is_shown() {
        for text in [
            "unix:/run/a b.sock",
            "tcp:localhost:4444",
            "tls:[::1]:4444",
            "trunk:dst:4444",
            "trunk+tcp::4444",
            "trunk+unix:/run/{name}.sock",
        ] {
            assert_eq!(text.parse::<LegAddress>().unwrap().to_string(), text);
        }
        for text in ["", "trunk", "http:a:1", "trunk:host", "trunk+unix:"] {
            assert!(text.parse::<LegAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_takes_its_place() {
        let leg: LegAddress = "unix:/run/{name}/{name}.sock".parse().unwrap();
        let name = Name::new("vm1").unwrap();
        let address = leg.of(Some(&name)).unwrap().to_string();
        assert_eq!(address, "unix:/run/vm1/vm1.sock");
        assert!(matches!(
            leg.of(None),
            Err(LegAddressError(AddressFault::NoName { .. }))
        ));
        let plain: LegAddress = "tcp:host:1".parse().unwrap();
        assert_eq!(plain.of(None).unwrap(), plain);
    }

    #[test]
    fn a_clear_trunk_over_a_network_is_exposed() {
        for (text, is_exposed) in [
            ("trunk+tcp:192.0.2.1:1", true),
            ("trunk+tcp::1", true),
            ("trunk+tcp:127.0.0.1:1", false),
            ("trunk+tcp:[::1]:1", false),
            ("trunk+unix:/run/a", false),
            ("trunk:192.0.2.1:1", false),
            ("tcp:192.0.2.1:1", false),
        ] {
            let leg: LegAddress = text.parse().unwrap();
            assert_eq!(leg.is_exposed(), is_exposed, "{text}");
        }
    }
}
