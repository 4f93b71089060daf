//! Addresses as a user types them: `unix:PATH` and `tcp:HOST:PORT`.

use std::ffi::OsStr;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::escape::printable_path;

/// An address to listen on or to dial, in QEMU's notation.
///
/// ```
/// use multifd_transport::Address;
///
/// let address: Address = "tcp:[::1]:4444".parse()?;
/// assert_eq!(address.to_string(), "tcp:[::1]:4444");
/// # Ok::<(), multifd_transport::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A unix stream socket.
    Unix(PathBuf),
    /// A TCP host and port, resolved when it is used. An IPv6 address stands in brackets, with its
    /// interface if it needs one. Without a host it is every address of this host for a listener,
    /// and this host for a caller.
    Tcp(String),
}

/// Why a text is not an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct AddressError(#[from] Malformed);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Malformed {
    /// It starts with neither `unix:` nor `tcp:`.
    #[error("`{found}` is no address: write unix:PATH or tcp:HOST:PORT")]
    Scheme {
        /// The text of the address.
        found: String,
    },
    /// `unix:` without a path.
    #[error("unix: needs a path, as in unix:/run/migration.sock")]
    NoPath,
    /// `tcp:` without a port of 0 to 65535.
    #[error(
        "`tcp:{found}` needs a host and a port, as in tcp:192.0.2.1:4444, tcp:[::1]:4444 or, for all addresses, tcp::4444"
    )]
    NoPort {
        /// The text after `tcp:`.
        found: String,
    },
    /// A colon in a host which stands in no brackets: it may be an IPv6 address.
    #[error("`tcp:{found}`: an IPv6 address stands in brackets, as in tcp:[::1]:4444")]
    NoBrackets {
        /// The text after `tcp:`.
        found: String,
    },
    /// Brackets around what is no IPv6 address.
    #[error(
        "`{found}` is no IPv6 address; names and IPv4 addresses stand without brackets, as in tcp:192.0.2.1:4444"
    )]
    NoIpv6 {
        /// The text in the brackets.
        found: String,
    },
    /// An IPv6 address which each interface has its own hosts for.
    #[error("`{found}` needs the interface that it is reached by, as in tcp:[{found}%eth0]:4444")]
    NoInterface {
        /// The text in the brackets.
        found: String,
    },
}

/// The host of a TCP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host<'a> {
    /// None was given.
    Any,
    /// A name, or an IPv4 address.
    Named(&'a str),
    /// An IPv6 address, with the name or number of its interface.
    V6(Ipv6Addr, Option<&'a str>),
}

impl Address {
    /// The socket file, for a `unix:` address.
    pub fn unix_path(&self) -> Option<&Path> {
        match self {
            Address::Unix(path) => Some(path),
            Address::Tcp(_) => None,
        }
    }

    /// Reads an address in which the path of a unix socket need not be UTF-8.
    ///
    /// # Errors
    /// When it is no address.
    pub fn from_os_str(text: &OsStr) -> Result<Address, AddressError> {
        match (text.to_str(), text.as_bytes().strip_prefix(b"unix:")) {
            (Some(text), _) => text.parse(),
            (None, Some(path)) => Ok(Address::Unix(PathBuf::from(OsStr::from_bytes(path)))),
            (None, None) => {
                let found = crate::escape::printable_bytes(text.as_bytes());
                Err(Malformed::Scheme { found }.into())
            }
        }
    }
}

/// Takes `HOST:PORT` apart.
pub(crate) fn host_and_port(text: &str) -> Result<(Host<'_>, u16), AddressError> {
    let found = || text.to_owned();
    let no_port = || AddressError(Malformed::NoPort { found: found() });
    let (host, port) = text.rsplit_once(':').ok_or_else(no_port)?;
    // A sign would be read as a part of the number.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(no_port());
    }
    let port = port.parse().map_err(|_| no_port())?;
    if host.is_empty() {
        return Ok((Host::Any, port));
    }
    let Some(inside) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    else {
        return if host.contains(':') {
            Err(Malformed::NoBrackets { found: found() }.into())
        } else {
            Ok((Host::Named(host), port))
        };
    };
    let (number, interface) = match inside.split_once('%') {
        Some((number, interface)) => (number, Some(interface)),
        None => (inside, None),
    };
    let found = || inside.to_owned();
    let Ok(number) = number.parse::<Ipv6Addr>() else {
        return Err(Malformed::NoIpv6 { found: found() }.into());
    };
    match interface {
        Some("") => Err(Malformed::NoIpv6 { found: found() }.into()),
        None if number.is_unicast_link_local() => {
            Err(Malformed::NoInterface { found: found() }.into())
        }
        _ => Ok((Host::V6(number, interface), port)),
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(Malformed::NoPath.into());
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            let found = text.to_owned();
            return Err(Malformed::Scheme { found }.into());
        };
        host_and_port(rest)?;
        Ok(Address::Tcp(rest.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", printable_path(path)),
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
            "tcp::4444",
            "tcp:[::1]:0",
            "tcp:[fe80::1%eth0]:4444",
            "tcp:[fe80::1%2]:4444",
            "tcp:192.0.2.7:65535",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_path_need_not_be_utf8_and_is_the_same_file() {
        let text = OsStr::from_bytes(b"unix:/run/\xff.sock");
        let address = Address::from_os_str(text).unwrap();
        assert_eq!(
            address.unix_path().unwrap().as_os_str().as_bytes(),
            b"/run/\xff.sock"
        );
        assert_eq!(address.to_string(), "unix:/run/\\xff.sock");
        let error = Address::from_os_str(OsStr::from_bytes(b"tcp:\xff:1")).unwrap_err();
        assert!(matches!(error.0, Malformed::Scheme { .. }));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let scheme = |found: &str| Malformed::Scheme {
            found: found.into(),
        };
        let port = |found: &str| Malformed::NoPort {
            found: found.into(),
        };
        let no_ipv6 = |found: &str| Malformed::NoIpv6 {
            found: found.into(),
        };
        let no_brackets = |found: &str| Malformed::NoBrackets {
            found: found.into(),
        };
        let no_interface = |found: &str| Malformed::NoInterface {
            found: found.into(),
        };
        let cases = [
            ("", scheme("")),
            ("/run/a.sock", scheme("/run/a.sock")),
            ("unix:", Malformed::NoPath),
            ("tcp:", port("")),
            ("tcp:host", port("host")),
            ("tcp:host:+1", port("host:+1")),
            ("tcp:host:", port("host:")),
            ("tcp:host:65536", port("host:65536")),
            ("tcp:::1:4444", no_brackets("::1:4444")),
            ("tcp:[host]:4444", no_ipv6("host")),
            ("tcp:[192.0.2.1]:4444", no_ipv6("192.0.2.1")),
            ("tcp:[fe80::1%]:4444", no_ipv6("fe80::1%")),
            ("tcp:[fe80::1]:4444", no_interface("fe80::1")),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Address>(), Err(AddressError(error)), "{text}");
        }
    }
}
