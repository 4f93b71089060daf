//! The header of a dynamic block by itself (RFC 1951 section 3.2.7): the compact form of a code for
//! many pages.

use super::bits::BitWriter;
use super::format::{DISTANCE_SYMBOLS, LITLEN_SYMBOLS};
use super::inflate::{DescribedLengths, InflateError, read_header};
use super::shared::{CodeLengths, CodeLengthsError};

/// Why bytes are not the header of a block with a code for every symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct HeaderError(#[from] Fault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    /// The header of another kind of block.
    #[error("not a final dynamic block")]
    Block,
    /// The header ends early, or describes no valid code.
    #[error("no description of a code")]
    Description(#[source] InflateError),
    /// The header describes fewer symbols than the format has.
    #[error(
        "codes for {literals} literals and lengths and {distances} distances instead of 286 and 30"
    )]
    Symbols {
        /// Described literals, end of block and lengths.
        literals: usize,
        /// Described distances.
        distances: usize,
    },
    /// The code leaves a symbol without a code or a bit pattern without a meaning.
    #[error("a code that is not for everything")]
    Code(#[source] CodeLengthsError),
    /// Data follows the header.
    #[error("{found_bytes} bytes and some bits follow the header")]
    Trailing {
        /// The number of whole bytes.
        found_bytes: usize,
    },
}

impl CodeLengths {
    /// Appends the header of a final block with these codes and returns its length in bits. The
    /// unused bits of the last byte are 0.
    ///
    /// The body of a page ([`PageDeflater::body`](super::PageDeflater::body)) directly after the
    /// last of these bits completes a deflate stream.
    pub fn write_header(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let mut bits = BitWriter::new(out);
        self.0.write_header(true, &mut bits);
        let spare_bits = (8 - bits.count as usize) % 8;
        bits.align();
        8 * (out.len() - start) - spare_bits
    }

    /// Reads the output of [`CodeLengths::write_header`] or of another writer. A code has several
    /// valid descriptions.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] unless `header` is exactly one header of a final dynamic block, every symbol
    /// has a code, and every bit pattern has a meaning.
    pub fn read_header(header: &[u8]) -> Result<Self, HeaderError> {
        let mut lengths = DescribedLengths::new();
        let found = read_header(header, &mut lengths).map_err(Fault::Description)?;
        let found = found.ok_or(Fault::Block)?;
        let (literals, distances) = (found.litlen.len(), found.distance.len());
        if literals != LITLEN_SYMBOLS || distances != DISTANCE_SYMBOLS {
            return Err(Fault::Symbols {
                literals,
                distances,
            }
            .into());
        }
        if found.unused > 0 || !found.ends_in_zeros {
            let found_bytes = found.unused;
            return Err(Fault::Trailing { found_bytes }.into());
        }
        let mut bytes = [0; Self::BYTES];
        let (litlen, distance) = bytes.split_at_mut(LITLEN_SYMBOLS);
        litlen.copy_from_slice(found.litlen);
        distance.copy_from_slice(found.distance);
        Ok(Self::from_bytes(&bytes).map_err(Fault::Code)?)
    }
}
