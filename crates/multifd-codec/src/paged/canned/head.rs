//! What comes before the pages.

use page_deflate::HeaderError;

/// The beginning of a payload, as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// Which code the pages are in.
    pub(super) generation: u8,
    /// The code, or nothing if it is the one at hand.
    pub(super) description: &'a [u8],
}

/// Why the beginning of a `canned` payload is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannedFault {
    /// The payload ends before the pages begin.
    #[error("{found} bytes instead of {needed}")]
    Truncated {
        /// Length of the payload.
        found: usize,
        /// Length of what comes before the pages.
        needed: usize,
    },
    /// Another version of the format.
    #[error("version {found} of the format instead of {allowed}")]
    Version {
        /// The version.
        found: u8,
        /// The one there is.
        allowed: u8,
    },
    /// A code is missing, or one comes that should have come before.
    #[error("generation {found} of the code instead of {expected}")]
    Generation {
        /// The generation.
        found: u8,
        /// That of the code at hand; or, if the payload brings a code, the next.
        expected: u8,
    },
    /// The channel's first payload brings no code.
    #[error("no code has come yet")]
    NoCode,
    /// The description of a code breaks the rules.
    #[error("the description of the code is wrong")]
    Code(#[source] HeaderError),
}

/// The generation of the code that comes after the one of generation `before`.
pub(super) fn next(before: Option<u8>) -> u8 {
    before.map_or(0, |generation| generation.wrapping_add(1))
}

/// Appends a head.
pub(super) fn write(generation: u8, description: &[u8], out: &mut Vec<u8>) {
    // At most 290.
    let len = description.len() as u16;
    out.extend_from_slice(&[VERSION, generation]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(description);
}

impl<'a> Head<'a> {
    /// Reads the head of a payload; with it comes what is behind.
    ///
    /// # Errors
    ///
    /// [`CannedFault::Truncated`] or [`CannedFault::Version`].
    pub(super) fn read(payload: &'a [u8]) -> Result<(Self, &'a [u8]), CannedFault> {
        let truncated = |needed| CannedFault::Truncated {
            found: payload.len(),
            needed,
        };
        let (&[version, generation, high, low], rest) = payload
            .split_first_chunk::<FIXED_BYTES>()
            .ok_or(truncated(FIXED_BYTES))?;
        if version != VERSION {
            return Err(CannedFault::Version {
                found: version,
                allowed: VERSION,
            });
        }
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (description, rest) = rest
            .split_at_checked(len)
            .ok_or(truncated(FIXED_BYTES + len))?;
        let head = Self {
            generation,
            description,
        };
        Ok((head, rest))
    }
}

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 4;
