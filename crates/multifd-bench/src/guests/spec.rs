//! What is known of a guest before it starts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::guests::PAGE_BYTES;

/// A guest to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What it holds and does.
    pub kind: Kind,
    /// How much memory it has: whole pages, at least [`MIN_BYTES`](Self::MIN_BYTES).
    pub bytes: u64,
    /// The same seed gives the same memory, and the same writes in the same order.
    pub seed: u64,
    /// How many things it does in a second: operations on records for `redis`, else writes, each to
    /// some page. 0 writes nothing at all; more than the processors can do is as much as they can.
    pub rate: u64,
    /// How many threads do them.
    pub threads: u16,
}

/// What a guest holds and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A Linux that has booted, and waits.
    Idle,
    /// A Redis that holds the records of YCSB and serves workload B: 95 % reads, 5 % updates.
    Redis,
    /// Memory from a file, such as `multifd receive --dump` writes.
    Image(PathBuf),
}

/// What no guest can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No name of a kind.
    #[error("`{found}` is no guest: write idle, redis or image:FILE")]
    Kind {
        /// What was written.
        found: String,
    },
    /// The memory is too small, or not whole pages.
    #[error("a guest has whole pages of {PAGE_BYTES} bytes, and at least {min} bytes; {found} are no such size", min = Spec::MIN_BYTES)]
    Size {
        /// What was asked for, in bytes.
        found: u64,
    },
    /// No threads, or too many.
    #[error("a guest has 1 to {max} threads, and {found} are asked for", max = Spec::MAX_THREADS)]
    Threads {
        /// What was asked for.
        found: u16,
    },
}

impl Spec {
    /// The least memory of a guest, in bytes: some records of each kind have to fit.
    pub const MIN_BYTES: u64 = 1 << 20;

    /// The most threads of a guest.
    pub const MAX_THREADS: u16 = 64;

    /// A guest of `bytes` which does what is usual for its kind, in one thread.
    #[must_use]
    pub const fn new(kind: Kind, bytes: u64) -> Self {
        let rate = kind.usual_rate();
        Self {
            kind,
            bytes,
            seed: 1,
            rate,
            threads: 1,
        }
    }

    /// Whether there can be such a guest.
    ///
    /// # Errors
    ///
    /// [`SpecError`] says why not.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.bytes < Self::MIN_BYTES || !self.bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(SpecError::Size { found: self.bytes });
        }
        if self.threads == 0 || self.threads > Self::MAX_THREADS {
            return Err(SpecError::Threads {
                found: self.threads,
            });
        }
        Ok(())
    }
}

impl Kind {
    /// How many things a second such a guest does when nobody says otherwise.
    #[must_use]
    pub const fn usual_rate(&self) -> u64 {
        match self {
            // Timers, counters and a log line now and then.
            Kind::Idle => 100,
            // What one Redis serves to a client on the network, without pipelining.
            Kind::Redis => 50_000,
            Kind::Image(_) => 0,
        }
    }
}

impl FromStr for Kind {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match (text, text.strip_prefix("image:")) {
            ("idle", _) => Ok(Kind::Idle),
            ("redis", _) => Ok(Kind::Redis),
            (_, Some(file)) if !file.is_empty() => Ok(Kind::Image(file.into())),
            _ => Err(SpecError::Kind {
                found: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Idle => f.write_str("idle"),
            Kind::Redis => f.write_str("redis"),
            Kind::Image(file) => write!(f, "image:{}", file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_printed() {
        for text in ["idle", "redis", "image:/a b/pc.ram.ram"] {
            assert_eq!(text.parse::<Kind>().unwrap().to_string(), text);
        }
        for text in ["", "image:", "real", "idle "] {
            let found = text.to_owned();
            assert_eq!(text.parse::<Kind>(), Err(SpecError::Kind { found }));
        }
    }

    #[test]
    fn sizes_and_threads_have_bounds() {
        let of = |bytes| Spec::new(Kind::Idle, bytes);
        assert_eq!(of(1 << 20).check(), Ok(()));
        for found in [0, (1 << 20) - 4096, (1 << 20) + 1] {
            assert_eq!(of(found).check(), Err(SpecError::Size { found }));
        }
        for found in [0, 65] {
            let threads = Spec {
                threads: found,
                ..of(1 << 20)
            };
            assert_eq!(threads.check(), Err(SpecError::Threads { found }));
        }
    }
}
