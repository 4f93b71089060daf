//! One code for many pages, agreed on once: a page needs no header of its own.

use super::coder::Coder;
use super::counts::{Counts, Tally};
use super::format::{DISTANCE_SYMBOLS, END_OF_BLOCK, LITLEN_SYMBOLS, MAX_CODE_BITS};
use super::huffman::codes;
use super::inflate::{InflateError, inflate_body};
use super::lengths::Lengths;
use super::several;
use super::table::{Tables, Use};

/// The count of each symbol in some pages ([`PageDeflater::count`](super::PageDeflater::count)).
#[derive(Clone)]
pub struct Histogram {
    pub(super) tally: Tally,
    pages: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tally: Tally::new(),
            pages: 0,
        }
    }

    pub(super) fn add_page(&mut self, items: &[super::item::Item]) {
        self.tally.count(items);
        self.pages += 1;
    }

    /// Moves all counts of `other` into `self` and leaves `other` empty.
    pub fn append(&mut self, other: &mut Self) {
        if other.pages > 0 {
            self.tally.add(&other.tally);
            self.pages += other.pages;
            *other = Self::new();
        }
    }

    /// A code that suits pages like the counted ones, with code lengths up to 12 bits.
    #[must_use]
    pub fn code_lengths(&self) -> CodeLengths {
        let mut counts = Counts::one_each();
        counts.add(&self.tally);
        counts.add_ends(self.pages);
        CodeLengths(Lengths::new(&counts))
    }

    /// The number of bits of the counted symbols under a code, without extra bits of lengths and
    /// distances, which are the same under every code.
    #[must_use]
    pub fn code_bits(&self, code: &CodeLengths) -> u64 {
        let mut counts = Counts::none();
        counts.add(&self.tally);
        counts.add_ends(self.pages);
        let sum = |counts: &[u32], lengths: &[u8]| -> u64 {
            let products = counts.iter().zip(lengths);
            products
                .map(|(&count, &length)| u64::from(count) * u64::from(length))
                .sum()
        };
        sum(&counts.litlen, &code.0.litlen) + sum(&counts.distance, &code.0.distance)
    }
}

/// A complete code for every symbol of the format, given by code lengths in bits: 286 for literals,
/// end of block and lengths, and 30 for distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeLengths(pub(super) Lengths);

/// Why numbers are no complete code for every symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(super) struct CodeLengthsError(#[from] Fault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    /// A symbol has no code, or a code length that the format does not allow.
    #[error("a code of {found} bits, but there are 1 to {MAX_CODE_BITS}")]
    Bits {
        /// The length.
        found: u8,
    },
    /// Codes collide, or bit patterns have no meaning.
    #[error("not a complete prefix code")]
    Incomplete,
}

impl CodeLengths {
    /// The number of symbols.
    pub const BYTES: usize = LITLEN_SYMBOLS + DISTANCE_SYMBOLS;

    /// Checks code lengths from outside: one byte for each symbol, in the format's order, distances
    /// last.
    ///
    /// # Errors
    ///
    /// [`CodeLengthsError`] unless every symbol has a code, and every bit pattern has a meaning.
    pub(super) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, CodeLengthsError> {
        let mut lengths = Lengths {
            litlen: [0; LITLEN_SYMBOLS],
            distance: [0; DISTANCE_SYMBOLS],
        };
        let (litlen, distance) = bytes.split_at(LITLEN_SYMBOLS);
        lengths.litlen.copy_from_slice(litlen);
        lengths.distance.copy_from_slice(distance);
        if let Some(&found) = bytes
            .iter()
            .find(|&&bits| bits == 0 || usize::from(bits) > MAX_CODE_BITS)
        {
            return Err(Fault::Bits { found }.into());
        }
        for lengths in [litlen, distance] {
            let taken: usize = lengths
                .iter()
                .map(|&bits| 1 << (MAX_CODE_BITS - usize::from(bits)))
                .sum();
            if taken != 1 << MAX_CODE_BITS {
                return Err(Fault::Incomplete.into());
            }
        }
        Ok(Self(lengths))
    }

    /// The lengths of literals, end of block and match lengths, in bits.
    #[must_use]
    pub const fn litlen(&self) -> &[u8; LITLEN_SYMBOLS] {
        &self.0.litlen
    }

    /// The lengths of distances, in bits.
    #[must_use]
    pub const fn distance(&self) -> &[u8; DISTANCE_SYMBOLS] {
        &self.0.distance
    }

    /// The code that ends a block, its first bit lowest, and its length in bits.
    #[must_use]
    pub fn end_of_block(&self) -> (u16, u8) {
        let mut litlen = [0; LITLEN_SYMBOLS];
        codes(&self.0.litlen, &mut litlen);
        (litlen[END_OF_BLOCK], self.0.litlen[END_OF_BLOCK])
    }
}

/// The encoder's form of a code, for [`PageDeflater::body`](super::PageDeflater::body).
pub struct SharedCode {
    pub(super) coder: Box<Coder>,
}

impl SharedCode {
    /// Makes the codes for these code lengths.
    #[must_use]
    pub fn new(lengths: &CodeLengths) -> Self {
        Self {
            coder: lengths.0.coder(),
        }
    }
}

/// Decodes the output of [`PageDeflater::body`](super::PageDeflater::body). One value serves all
/// pages, from any thread.
pub struct SharedInflater {
    tables: Box<Tables>,
}

impl SharedInflater {
    /// Makes the tables for these code lengths.
    #[must_use]
    pub fn new(lengths: &CodeLengths) -> Self {
        let mut tables = Tables::new();
        let built = tables.build(&lengths.0.litlen, &lengths.0.distance, Use::Pages);
        debug_assert_eq!(built, Ok(()));
        Self { tables }
    }

    /// Decodes one body, which must end in the last byte of `body` and fill `page`. Matches must
    /// stay within the page.
    ///
    /// After an error the content of `page` is meaningless.
    ///
    /// # Errors
    ///
    /// [`InflateError`], except the variants for headers and blocks.
    pub fn inflate(&self, body: &[u8], page: &mut [u8]) -> Result<(), InflateError> {
        inflate_body(&self.tables, body, page)
    }

    /// Decodes several bodies like [`SharedInflater::inflate`], which takes less time than one
    /// after the other. Each item is a body and its page.
    ///
    /// # Errors
    ///
    /// The error of a bad body, which is not always the first one. The content of all pages is
    /// meaningless then.
    pub fn inflate_all<'d>(
        &self,
        mut pages: impl Iterator<Item = (&'d [u8], &'d mut [u8])>,
    ) -> Result<(), InflateError> {
        several::inflate_bodies(&mut pages, &self.tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_for_everything_are_taken() {
        let lengths = Histogram::new().code_lengths();
        let mut good = [0; CodeLengths::BYTES];
        let (litlen, distance) = good.split_at_mut(LITLEN_SYMBOLS);
        litlen.copy_from_slice(lengths.litlen());
        distance.copy_from_slice(lengths.distance());
        assert_eq!(CodeLengths::from_bytes(&good), Ok(lengths));
        for (at, found) in [(0, 0), (285, 16), (286, 0), (315, 255)] {
            let mut bad = good;
            bad[at] = found;
            let refused = CodeLengths::from_bytes(&bad).unwrap_err();
            let expected = format!("a code of {found} bits, but there are 1 to 15");
            assert_eq!(refused.to_string(), expected);
        }
        for (at, change) in [(0, 1), (285, -1), (286, -1), (315, 1)] {
            let mut bad = good;
            bad[at] = bad[at].wrapping_add_signed(change);
            let refused = CodeLengths::from_bytes(&bad).unwrap_err();
            assert_eq!(refused.to_string(), "not a complete prefix code");
        }
    }
}
