//! The specification of a guest before it starts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::guests::PAGE_BYTES;

/// A guest to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its content and its work.
    pub kind: Kind,
    /// The size of its memory: whole pages, at least 1 MiB.
    pub bytes: u64,
    /// The seed of its content and writes: the same seed gives the same guest.
    pub seed: u64,
    /// Actions per second: for `redis` operations on records, otherwise writes to single pages.
    /// With 0 the guest writes nothing. The processors may limit the rate.
    pub rate: u64,
    /// The number of threads for its actions.
    pub threads: u16,
}

/// The content and the work of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A booted, idle Linux.
    Idle,
    /// A Redis with YCSB's records under workload B: 95 % reads, 5 % updates.
    Redis,
    /// Memory from a file, for example from `multifd receive --dump`.
    Image(PathBuf),
}

/// Why a spec is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct SpecError(#[from] Invalid);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Invalid {
    /// The name of the kind is unknown.
    #[error("unknown guest `{found}`: write idle, redis or image:FILE")]
    Kind {
        /// The name.
        found: String,
    },
    /// The memory is too small, or not whole pages.
    #[error("a guest's memory has whole pages of {PAGE_BYTES} bytes and at least {min} bytes, and not {found} bytes", min = Spec::MIN_BYTES)]
    Size {
        /// The requested size in bytes.
        found: u64,
    },
    /// The number of threads is 0 or too large.
    #[error("a guest has 1 to {max} threads, and not {found}", max = Spec::MAX_THREADS)]
    Threads {
        /// The requested number.
        found: u16,
    },
}

impl Spec {
    /// The smallest memory of a guest, in bytes: some records of each kind have to fit.
    pub(crate) const MIN_BYTES: u64 = 1 << 20;

    /// The largest number of threads.
    pub(crate) const MAX_THREADS: u16 = 64;

    /// A guest of `bytes` with the usual rate of its kind, in one thread.
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

    /// Checks the spec.
    ///
    /// # Errors
    ///
    /// [`SpecError`] if it is invalid.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.bytes < Self::MIN_BYTES || !self.bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(Invalid::Size { found: self.bytes }.into());
        }
        if self.threads == 0 || self.threads > Self::MAX_THREADS {
            let found = self.threads;
            return Err(Invalid::Threads { found }.into());
        }
        Ok(())
    }
}

impl Kind {
    /// The default rate of such a guest.
    #[must_use]
    pub(crate) const fn usual_rate(&self) -> u64 {
        match self {
            // Timers, counters and an occasional log line.
            Kind::Idle => 100,
            // One Redis serves this much to a client on the network, without pipelining.
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
            _ => {
                let found = text.to_owned();
                Err(Invalid::Kind { found }.into())
            }
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
            assert_eq!(text.parse::<Kind>(), Err(Invalid::Kind { found }.into()));
        }
    }

    #[test]
    fn sizes_and_threads_have_bounds() {
        let of = |bytes| Spec::new(Kind::Idle, bytes);
        assert_eq!(of(1 << 20).check(), Ok(()));
        for found in [0, (1 << 20) - 4096, (1 << 20) + 1] {
            assert_eq!(of(found).check(), Err(Invalid::Size { found }.into()));
        }
        for found in [0, 65] {
            let threads = Spec {
                threads: found,
                ..of(1 << 20)
            };
            assert_eq!(threads.check(), Err(Invalid::Threads { found }.into()));
        }
    }
}
