//! What an operator chooses for an encoder.

use std::fmt;

/// What an encoder is made with. Decoders need none of it.
///
/// ```
/// use multifd_codec::{Settings, ZlibLevel};
///
/// let mut settings = Settings::default();
/// settings.zlib_level = ZlibLevel::new(6)?;
/// # Ok::<(), multifd_codec::LevelError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// QEMU's `multifd-zlib-level`.
    pub zlib_level: ZlibLevel,
    /// QEMU's `multifd-zstd-level`.
    pub zstd_level: ZstdLevel,
}

/// 0..=9, by default 1. Level 0 stores, 9 is the smallest and slowest.
pub type ZlibLevel = Level<9>;

/// 0..=20, by default 1. Level 0 is libzstd's own default, which is its level 3.
///
/// From level 19 on libzstd's window is over 8 MiB, at level 20 it is 32 MiB, and an encoder holds several times as
/// much.
pub type ZstdLevel = Level<20>;

/// A compression level from 0 to `MAX`, by default 1: the ranges and the default of QEMU's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level<const MAX: u8>(u8);

impl<const MAX: u8> Level<MAX> {
    /// The highest level.
    pub const MAX: Self = Self(MAX);

    /// Checks a level.
    ///
    /// # Errors
    ///
    /// [`LevelError`] when it is over `MAX`.
    pub const fn new(level: u8) -> Result<Self, LevelError> {
        if level > MAX {
            return Err(LevelError {
                found: level,
                allowed: MAX,
            });
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

/// A compression level that the method does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compression level {found}, but the highest is {allowed}")]
pub struct LevelError {
    /// The level asked for.
    pub found: u8,
    /// The highest level there is.
    pub allowed: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_qemus() {
        assert_eq!(Settings::default().zlib_level.value(), 1);
        assert_eq!(Settings::default().zstd_level.value(), 1);
        assert_eq!(ZlibLevel::new(9), Ok(ZlibLevel::MAX));
        assert_eq!(ZstdLevel::new(20), Ok(ZstdLevel::MAX));
        assert_eq!(
            ZlibLevel::new(10),
            Err(LevelError {
                found: 10,
                allowed: 9
            })
        );
        assert_eq!(
            ZstdLevel::new(21),
            Err(LevelError {
                found: 21,
                allowed: 20
            })
        );
    }
}
