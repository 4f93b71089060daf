//! The head of a payload, before the pages.

use page_deflate::HeaderError;

/// The head of a payload, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// The generation of the pages' code.
    pub(super) generation: u8,
    /// The code's description, or nothing if the code is the current one.
    pub(super) description: &'a [u8],
}

/// Why the head of a `canned` payload is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CannedFault(#[from] HeadFault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadFault {
    /// The payload ends before the pages begin.
    #[error("{found} bytes instead of {needed}")]
    Truncated {
        /// Length of the payload.
        found: usize,
        /// Length of the head.
        needed: usize,
    },
    /// Another version of the format.
    #[error("version {found} of the format instead of {allowed}")]
    Version {
        /// The version.
        found: u8,
        /// The only known version.
        allowed: u8,
    },
    /// A code is missing, or a past code comes again.
    #[error("generation {found} of the code instead of {expected}")]
    Generation {
        /// The generation.
        found: u8,
        /// The generation of the current code, or the next one if the payload brings a code.
        expected: u8,
    },
    /// The channel's first payload brings no code.
    #[error("no code has come yet")]
    NoCode,
    /// The description of a code breaks the rules.
    #[error("the description of the code is wrong")]
    Code(#[source] HeaderError),
}

/// The generation after `before`.
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
    /// Reads the head of a payload and returns it with the rest.
    ///
    /// # Errors
    ///
    /// [`HeadFault::Truncated`] or [`HeadFault::Version`].
    pub(super) fn read(payload: &'a [u8]) -> Result<(Self, &'a [u8]), HeadFault> {
        let truncated = |needed| HeadFault::Truncated {
            found: payload.len(),
            needed,
        };
        let (&[version, generation, high, low], rest) = payload
            .split_first_chunk::<FIXED_BYTES>()
            .ok_or(truncated(FIXED_BYTES))?;
        if version != VERSION {
            return Err(HeadFault::Version {
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
