//! The path between source and destination.

use std::fmt;
use std::process::Command;
use std::str::FromStr;

use crate::links::{Link, LinkEnd};

/// The rate of a link, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate(u64);

impl Rate {
    /// The rate in bits per second.
    pub(crate) const fn bits_per_s(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000)];
        let parse = |(unit, bits): (&str, u64)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(bits).filter(|bits| *bits >= LEAST)
        };
        let found = units.into_iter().find_map(parse);
        found
            .map(Self)
            .ok_or_else(|| "rates are such as 10gbit or 250mbit".to_owned())
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_multiple_of(1_000_000_000) {
            true => write!(f, "{}gbit", self.0 / 1_000_000_000),
            false => write!(f, "{}mbit", self.0 / 1_000_000),
        }
    }
}

/// The path from source to destination.
pub(super) enum Path {
    /// The machine's loopback at full speed.
    Loopback,
    /// A link between two network namespaces.
    Shaped(Link, Rate),
    /// The loopback; the source limits its rate.
    Limited { rate: Rate, why: String },
}

impl Path {
    /// A link of `rate` if this process has the rights for it.
    pub(super) fn new(rate: Option<Rate>) -> Result<Self, String> {
        Ok(match rate {
            None => Self::Loopback,
            Some(rate) => match Link::new(&rate.to_string()) {
                Ok(link) => Self::Shaped(link, rate),
                Err(error) => Self::Limited {
                    rate,
                    why: error.to_string(),
                },
            },
        })
    }

    /// The host name for a destination to listen on.
    pub(super) fn host(&self) -> &str {
        self.ends().map_or("127.0.0.1", |[_, to]| to.address())
    }

    /// Runs the command at the source's end.
    pub(super) fn at_source(&self, command: Command) -> Command {
        match self.ends() {
            Some([from, _]) => from.command(&command),
            None => command,
        }
    }

    /// Runs the command at the destination's end.
    pub(super) fn at_destination(&self, command: Command) -> Command {
        match self.ends() {
            Some([_, to]) => to.command(&command),
            None => command,
        }
    }

    /// The source's limit in bytes per second.
    pub(super) const fn max_bandwidth(&self) -> Option<u64> {
        match self {
            Self::Limited { rate, .. } => Some(rate.0 / 8),
            _ => None,
        }
    }

    fn ends(&self) -> Option<&[LinkEnd; 2]> {
        match self {
            Self::Shaped(link, _) => Some(link.ends()),
            _ => None,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("tcp on the loopback"),
            Self::Shaped(_, rate) => write!(
                f,
                "a {rate} link between two network namespaces (veth, tbf)"
            ),
            Self::Limited { rate, why } => {
                write!(
                    f,
                    "tcp on the loopback with max-bandwidth of {rate}, because no link could be made ({why})"
                )
            }
        }
    }
}

/// Below this rate, a bucket would exceed one second of traffic.
const LEAST: u64 = 8_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_printed() {
        for text in ["10gbit", "1gbit", "250mbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["", "10", "0gbit", "1mbit", "99999999999gbit", "1.5gbit"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
