//! The encoder's options.

use std::fmt;
use std::str::FromStr;

/// The time spent on size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effort {
    /// As fast as possible.
    Fast,
    /// About the size of zlib's first level, much faster.
    #[default]
    Balanced,
    /// The size of zlib's first level or less.
    Dense,
}

impl Effort {
    /// All efforts.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Balanced, Self::Dense];

    /// The name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Balanced => "balanced",
            Self::Dense => "dense",
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Effort {
    type Err = ParseChoiceError;

    fn from_str(word: &str) -> Result<Self, ParseChoiceError> {
        let found = Self::ALL.into_iter().find(|effort| effort.as_str() == word);
        found.ok_or_else(|| ParseChoiceError {
            found: word.to_owned(),
            allowed: "fast, balanced or dense",
        })
    }
}

/// The reach of a stream's matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "deflate and the IAA know no other windows of use"
)]
pub enum WindowSize {
    /// 4 KiB: readable by Intel's IAA.
    FourKiB,
    /// 32 KiB: the maximum of deflate.
    #[default]
    ThirtyTwoKiB,
}

impl WindowSize {
    /// All sizes.
    pub const ALL: [Self; 2] = [Self::FourKiB, Self::ThirtyTwoKiB];

    /// The name on a command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FourKiB => "4k",
            Self::ThirtyTwoKiB => "32k",
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::FourKiB => 4 * 1024,
            Self::ThirtyTwoKiB => 32 * 1024,
        }
    }

    /// The first two bytes of a zlib stream with this window, lowest compression level and no
    /// dictionary (RFC 1950 section 2.2).
    #[must_use]
    pub const fn zlib_header(self) -> [u8; 2] {
        match self {
            Self::FourKiB => [0x48, 0x0d],
            Self::ThirtyTwoKiB => [0x78, 0x01],
        }
    }
}

impl fmt::Display for WindowSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for WindowSize {
    type Err = ParseChoiceError;

    fn from_str(word: &str) -> Result<Self, ParseChoiceError> {
        let found = Self::ALL.into_iter().find(|size| size.as_str() == word);
        found.ok_or_else(|| ParseChoiceError {
            found: word.to_owned(),
            allowed: "4k or 32k",
        })
    }
}

/// A word that names no [`Effort`], or no [`WindowSize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {allowed}")]
#[non_exhaustive]
pub struct ParseChoiceError {
    found: String,
    allowed: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_printed() {
        for effort in Effort::ALL {
            assert_eq!(effort.to_string().parse(), Ok(effort));
        }
        for size in WindowSize::ALL {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert!("8k".parse::<WindowSize>().is_err());
        assert!("".parse::<Effort>().is_err());
    }

    #[test]
    fn headers_say_the_window() {
        for size in WindowSize::ALL {
            let [method, flags] = size.zlib_header();
            assert_eq!(256 << (method >> 4), size.bytes());
            assert_eq!(method & 15, 8);
            assert_eq!(u16::from_be_bytes([method, flags]) % 31, 0);
        }
    }
}
