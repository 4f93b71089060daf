//! An operator's settings of a codec.

use std::fmt;
use std::ops::Range;

use page_deflate::{Effort, WindowSize};

use crate::{Accel, Huffman};

/// The settings of a codec. A decoder only uses [`Settings::accel`]: the sender chooses everything
/// else.
///
/// ```
/// use multifd_codec::{Settings, ZlibLevel};
///
/// let mut settings = Settings::default();
/// settings.zlib_level = ZlibLevel::new(6)?;
/// # Ok::<(), multifd_codec::SettingError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// QEMU's `multifd-zlib-level`.
    pub zlib_level: ZlibLevel,
    /// QEMU's `multifd-zstd-level`.
    pub zstd_level: ZstdLevel,
    /// The choice of backend.
    pub accel: Accel,
    /// The Huffman code, if an accelerated deflate has the choice.
    pub huffman: Huffman,
    /// The effort of `page-deflate`.
    pub effort: Effort,
    /// The window of a zlib stream that `page-deflate` writes.
    pub window: WindowSize,
    /// Independent streams in the channel, for methods and engines that support them.
    pub streams: Streams,
}

/// The number of runs per packet, compressed independently and in parallel: 1..=128, by default 1.
/// With fewer pages than runs each page is one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Streams(u8);

impl Streams {
    /// The maximum: one for each 4 KiB page of a packet.
    pub const MAX: Self = Self(128);

    /// Checks a number of streams.
    ///
    /// # Errors
    ///
    /// If it is 0 or over [`Streams::MAX`].
    pub const fn new(streams: u8) -> Result<Self, SettingError> {
        if streams == 0 || streams > Self::MAX.0 {
            return Err(SettingError(Refused::Streams {
                found: streams,
                allowed: Self::MAX.0,
            }));
        }
        Ok(Self(streams))
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> usize {
        self.0 as usize
    }

    /// The lengths of the runs of a packet of `pages`, in order. The number of runs is the smaller
    /// of streams and pages; lengths differ by at most one page.
    pub fn runs(self, pages: usize) -> impl Iterator<Item = usize> {
        let runs = self.value().min(pages);
        (0..runs).map(move |index| run(index, runs, pages).len())
    }
}

/// The run with index `index` of `runs` runs of `pages` pages.
pub(crate) fn run(index: usize, runs: usize, pages: usize) -> Range<usize> {
    let (length, longer) = (pages / runs, pages % runs);
    let start = |index: usize| index * length + index.min(longer);
    start(index)..start(index + 1)
}

impl Default for Streams {
    fn default() -> Self {
        Self(1)
    }
}

impl fmt::Display for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 0..=9, by default 1. Level 0 stores, 9 is the smallest and slowest.
pub type ZlibLevel = Level<9>;

/// 0..=20, by default 1. Level 0 is libzstd's own default, which is its level 3.
///
/// An encoder holds memory by its level, for each channel (and for each processor that helps, with
/// several [`Streams`]): 2 MiB at level 1, 4 MiB at level 3, 16 MiB at level 9, 60 MiB at level 18
/// and 200 MiB at level 20. A decoder holds the window, which is 512 KiB at level 1, 8 MiB at level
/// 18 and 32 MiB at level 20; see `window_memory`.
pub type ZstdLevel = Level<20>;

/// A compression level from 0 to `MAX`, by default 1: the ranges and the default of QEMU's
/// parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level<const MAX: u8>(u8);

impl<const MAX: u8> Level<MAX> {
    /// The highest level.
    pub const MAX: Self = Self(MAX);

    /// Checks a level.
    ///
    /// # Errors
    ///
    /// If it is over `MAX`.
    pub const fn new(level: u8) -> Result<Self, SettingError> {
        if level > MAX {
            return Err(SettingError(Refused::Level {
                found: level,
                allowed: MAX,
            }));
        }
        Ok(Self(level))
    }

    /// The level as a number.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

impl<const MAX: u8> Default for Level<MAX> {
    fn default() -> Self {
        Self(1)
    }
}

impl<const MAX: u8> fmt::Display for Level<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A word or a number that a setting does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct SettingError(#[from] Refused);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("{found:?} is not {allowed}")]
    Word {
        found: String,
        allowed: &'static str,
    },
    #[error("compression level {found}, but the highest is {allowed}")]
    Level { found: u8, allowed: u8 },
    #[error("{found} streams in a channel, but there are 1 to {allowed}")]
    Streams { found: u8, allowed: u8 },
}

impl SettingError {
    pub(crate) fn word(found: &str, allowed: &'static str) -> Self {
        let found = found.to_owned();
        Self(Refused::Word { found, allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_as_even_as_can_be() {
        let runs = |streams, pages| {
            let runs = Streams::new(streams).unwrap().runs(pages);
            runs.collect::<Vec<_>>()
        };
        assert_eq!(runs(1, 128), [128]);
        assert_eq!(runs(3, 8), [3, 3, 2]);
        assert_eq!(runs(16, 3), [1, 1, 1]);
        assert!(runs(16, 0).is_empty());
        for streams in 1..=Streams::MAX.0 {
            for pages in 1..=128 {
                assert_eq!(runs(streams, pages).iter().sum::<usize>(), pages);
            }
        }
        assert!(Streams::new(0).is_err());
        assert!(Streams::new(129).is_err());
    }

    #[test]
    fn levels_are_qemus() {
        assert_eq!(Settings::default().zlib_level.value(), 1);
        assert_eq!(Settings::default().zstd_level.value(), 1);
        assert_eq!(ZlibLevel::new(9), Ok(ZlibLevel::MAX));
        assert_eq!(ZstdLevel::new(20), Ok(ZstdLevel::MAX));
        let refused = |found, allowed| SettingError(Refused::Level { found, allowed });
        assert_eq!(ZlibLevel::new(10), Err(refused(10, 9)));
        assert_eq!(ZstdLevel::new(21), Err(refused(21, 20)));
    }
}
