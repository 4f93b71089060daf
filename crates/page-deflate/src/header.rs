//! The header of a dynamic block by itself (RFC 1951 section 3.2.7): the short way to write a code
//! for many pages down.

use super::bits::BitWriter;
use super::format::{DISTANCE_SYMBOLS, LITLEN_SYMBOLS};
use super::inflate::{InflateError, read_header};
use super::shared::{CodeLengths, CodeLengthsError};

/// Bytes that are no header of a block with a code for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Another block's header.
    #[error("not a final dynamic block")]
    Block,
    /// The header ends early, or describes no code.
    #[error("no description of a code")]
    Description(#[source] InflateError),
    /// A description of fewer symbols than there are.
    #[error(
        "codes for {literals} literals and lengths and {distances} distances instead of 286 and 30"
    )]
    Symbols {
        /// Literals, end of block, lengths.
        literals: usize,
        /// Distances.
        distances: usize,
    },
    /// A code that not everything can be written in, or not everything be read.
    #[error("a code that is not for everything")]
    Code(#[source] CodeLengthsError),
    /// Something follows the header.
    #[error("{found_bytes} bytes and some bits follow the header")]
    Trailing {
        /// Whole bytes.
        found_bytes: usize,
    },
}

impl CodeLengths {
    /// Appends the header of a block with these codes, which is the last of its stream. Bits of the
    /// last byte behind it are
    /// 0. Returns how many bits the header has.
    ///
    /// With the body of a page ([`PageDeflater::body`](super::PageDeflater::body)) right behind the
    /// last of these bits it is a complete deflate stream.
    pub fn write_header(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let mut bits = BitWriter::new(out);
        self.0.write_header(true, &mut bits);
        let spare_bits = (8 - bits.count as usize) % 8;
        bits.align();
        8 * (out.len() - start) - spare_bits
    }

    /// Reads what [`CodeLengths::write_header`] has written, or somebody else has: a code can be
    /// described in several ways.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] unless it is the header of a final dynamic block and nothing else, and every
    /// symbol has a code and every bit pattern a meaning.
    pub fn read_header(header: &[u8]) -> Result<Self, HeaderError> {
        let mut lengths = [0; LITLEN_SYMBOLS + DISTANCE_SYMBOLS];
        let found = read_header(header, &mut lengths).map_err(HeaderError::Description)?;
        let found = found.ok_or(HeaderError::Block)?;
        let (literals, distances) = (found.litlen.len(), found.distance.len());
        if literals != LITLEN_SYMBOLS || distances != DISTANCE_SYMBOLS {
            return Err(HeaderError::Symbols {
                literals,
                distances,
            });
        }
        if found.unused > 0 || !found.ends_in_zeros {
            return Err(HeaderError::Trailing {
                found_bytes: found.unused,
            });
        }
        Self::from_bytes(&lengths).map_err(HeaderError::Code)
    }
}
