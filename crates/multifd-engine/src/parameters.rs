//! An operator's parameters for a migration, under QEMU's names.

use std::fmt;
use std::num::{NonZeroU8, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use multifd_codec::Settings;
use multifd_wire::{Method, PageSize};

/// The parameters of a source. Defaults are QEMU's unless a field says otherwise.
///
/// ```
/// use multifd_engine::Parameters;
/// use multifd_wire::Method;
///
/// let mut parameters = Parameters::default();
/// parameters.multifd_compression = Method::Zstd;
/// parameters.downtime_limit = std::time::Duration::from_millis(50);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parameters {
    /// `multifd-channels`, by default 2. A destination may take fewer.
    pub multifd_channels: NonZeroU8,
    /// `multifd-compression`, by default none.
    pub multifd_compression: Method,
    /// `multifd-zlib-level`, `multifd-zstd-level`, `multifd-compression-accel` and what belongs to
    /// them.
    pub codec: Settings,
    /// The effort is found out during the migration, packet by packet, where the method and
    /// `codec` leave a [choice](multifd_codec::auto::Auto::new). By default off; QEMU has no such
    /// parameter.
    pub auto: bool,
    /// The most bytes of memory that hold pages which were sent, so that a page that is sent again
    /// goes as the difference to what the destination has. By default 0: pages always go whole. All
    /// migrations of a process share [a limit](multifd_codec::delta::memory). A destination that
    /// knows no differences gets none. QEMU has no such parameter.
    pub delta_memory: u64,
    /// The size of the guest's pages, by default 4 KiB.
    pub page_size: PageSize,
    /// `downtime-limit`: the guest is stopped once what is left is expected to take no longer than
    /// this. By default 300 ms.
    pub downtime_limit: Duration,
    /// `max-bandwidth`, in bytes per second over all connections, which also holds while the guest
    /// is stopped. By default, and unlike QEMU's 128 MiB/s, there is no limit.
    pub max_bandwidth: Option<NonZeroU64>,
    /// `zero-page-detection`, by default `multifd`.
    pub zero_page_detection: ZeroPageDetection,
    /// Time limit for the whole migration; after it the migration fails and the guest stays. By
    /// default 120 s, the limit of Intel's published measurements. QEMU has no such parameter.
    pub timeout: Duration,
    /// Compares a digest of all memory at the end. Both ends read all of it while the guest is
    /// stopped, which `downtime-limit` does not count. By default off; QEMU has no such parameter.
    pub digest: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            multifd_channels: NonZeroU8::MIN.saturating_add(1),
            multifd_compression: Method::None,
            codec: Settings::default(),
            auto: false,
            delta_memory: 0,
            page_size: PageSize::K4,
            downtime_limit: Duration::from_millis(300),
            max_bandwidth: None,
            zero_page_detection: ZeroPageDetection::default(),
            timeout: Duration::from_secs(120),
            digest: false,
        }
    }
}

/// The place of the zero page test: QEMU's `zero-page-detection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ZeroPageDetection {
    /// No test: every page is sent.
    None,
    /// One thread at a time, before pages are handed to the channels.
    Legacy,
    /// Every channel for the pages it sends, at the same time.
    #[default]
    Multifd,
}

impl ZeroPageDetection {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Legacy, Self::Multifd];

    /// QEMU's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Legacy => "legacy",
            Self::Multifd => "multifd",
        }
    }
}

impl fmt::Display for ZeroPageDetection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The word given is no kind of zero page detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such zero page detection: it must be one of none, legacy, multifd")]
#[non_exhaustive]
pub struct UnknownZeroPageDetection;

impl FromStr for ZeroPageDetection {
    type Err = UnknownZeroPageDetection;

    fn from_str(word: &str) -> Result<Self, UnknownZeroPageDetection> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.as_str() == word)
            .ok_or(UnknownZeroPageDetection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_printed() {
        for kind in ZeroPageDetection::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("all".parse::<ZeroPageDetection>().is_err());
    }
}
