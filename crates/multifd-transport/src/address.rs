//! Addresses as a user types them: `unix:PATH` and `tcp:HOST:PORT`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a migration is listened for or dialled, in QEMU's notation.
///
/// ```
/// use multifd_transport::Address;
///
/// let address: Address = "tcp:[::1]:4444".parse()?;
/// assert_eq!(address.to_string(), "tcp:[::1]:4444");
/// # Ok::<(), multifd_transport::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix stream socket.
    Unix(PathBuf),
    /// A TCP host and port, resolved when it is used. An IPv6 host stands in brackets.
    Tcp(String),
}

/// Why a text is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It starts with neither `unix:` nor `tcp:`.
    #[error("`{found}` is no address: write unix:PATH or tcp:HOST:PORT")]
    Scheme {
        /// What was typed.
        found: String,
    },
    /// `unix:` without a path.
    #[error("unix: needs a path, as in unix:/run/migration.sock")]
    NoPath,
    /// `tcp:` without a host and a port of 0 to 65535.
    #[error("`tcp:{found}` needs a host and a port, as in tcp:192.0.2.1:4444 or tcp:[::1]:4444")]
    NoPort {
        /// What followed `tcp:`.
        found: String,
    },
}

impl Address {
    /// The socket file, for a `unix:` address.
    pub fn unix_path(&self) -> Option<&Path> {
        match self {
            Address::Unix(path) => Some(path),
            Address::Tcp(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(AddressError::NoPath);
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return Err(AddressError::Scheme {
                found: text.to_owned(),
            });
        };
        let has_port = rest
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            return Err(AddressError::NoPort {
                found: rest.to_owned(),
            });
        }
        Ok(Address::Tcp(rest.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(host_and_port) => write!(f, "tcp:{host_and_port}"),
        }
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
            "tcp:[::1]:0",
            "tcp:192.0.2.7:65535",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let scheme = |found: &str| AddressError::Scheme {
            found: found.into(),
        };
        let port = |found: &str| AddressError::NoPort {
            found: found.into(),
        };
        let cases = [
            ("", scheme("")),
            ("/run/a.sock", scheme("/run/a.sock")),
            ("unix:", AddressError::NoPath),
            ("tcp:", port("")),
            ("tcp:host", port("host")),
            ("tcp::4444", port(":4444")),
            ("tcp:host:65536", port("host:65536")),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
    }
}
