//! One code for many pages, agreed on once, so that a page needs no header of its own.

use super::coder::Coder;
use super::counts::{Counts, Tally};
use super::format::{DISTANCE_SYMBOLS, END_OF_BLOCK, LITLEN_SYMBOLS, MAX_CODE_BITS};
use super::huffman::codes;
use super::inflate::{InflateError, inflate_body};
use super::lengths::Lengths;
use super::table::{Pairs, Tables};

/// How often each symbol occurs in some pages
/// ([`PageDeflater::count`](super::PageDeflater::count)).
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
    /// Of no pages.
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

    /// Moves all counts of `other` into `self`; `other` is of no pages then.
    pub fn append(&mut self, other: &mut Self) {
        if other.pages > 0 {
            self.tally.add(&other.tally);
            self.pages += other.pages;
            *other = Self::new();
        }
    }

    /// A code for pages that resemble those counted, with no code longer than 12 bits.
    #[must_use]
    pub fn code_lengths(&self) -> CodeLengths {
        let mut counts = Counts::one_each();
        counts.add(&self.tally);
        counts.add_ends(self.pages);
        CodeLengths(Lengths::new(&counts))
    }

    /// How many bits the pages' symbols come to under a code. The bits behind lengths and
    /// distances, which are the same in every code, are left out.
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

/// A complete code in which every symbol of the format has a place, as the number of bits of each:
/// 286 for literals, end of block and lengths, and 30 for distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeLengths(pub(super) Lengths);

/// Numbers that are no code for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeLengthsError {
    /// A symbol without a code, or with one that the format does not allow.
    #[error("a code of {found} bits, but there are 1 to {MAX_CODE_BITS}")]
    Bits {
        /// The length.
        found: u8,
    },
    /// Codes that collide, or bit patterns without meaning.
    #[error("not a complete prefix code")]
    Incomplete,
}

impl CodeLengths {
    /// Length in bytes of [`CodeLengths::to_bytes`].
    pub const BYTES: usize = LITLEN_SYMBOLS + DISTANCE_SYMBOLS;

    /// Checks lengths that come from elsewhere: one byte for each symbol, in the format's order,
    /// distances last.
    ///
    /// # Errors
    ///
    /// [`CodeLengthsError`] unless every symbol has a code, and every bit pattern a meaning.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, CodeLengthsError> {
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
            return Err(CodeLengthsError::Bits { found });
        }
        for lengths in [litlen, distance] {
            let taken: usize = lengths
                .iter()
                .map(|&bits| 1 << (MAX_CODE_BITS - usize::from(bits)))
                .sum();
            if taken != 1 << MAX_CODE_BITS {
                return Err(CodeLengthsError::Incomplete);
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

    /// One byte for each symbol.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let (litlen, distance) = bytes.split_at_mut(LITLEN_SYMBOLS);
        litlen.copy_from_slice(&self.0.litlen);
        distance.copy_from_slice(&self.0.distance);
        bytes
    }
}

/// What [`PageDeflater::body`](super::PageDeflater::body) writes pages with.
pub struct SharedCode {
    pub(super) coder: Box<Coder>,
}

impl SharedCode {
    /// The codes that belong to these lengths.
    #[must_use]
    pub fn new(lengths: &CodeLengths) -> Self {
        Self {
            coder: lengths.0.coder(),
        }
    }
}

/// Reads what [`PageDeflater::body`](super::PageDeflater::body) has written; one for all pages,
/// from any thread.
pub struct SharedInflater {
    tables: Box<Tables>,
}

impl SharedInflater {
    /// The tables that belong to these lengths.
    #[must_use]
    pub fn new(lengths: &CodeLengths) -> Self {
        let mut tables = Tables::new();
        let built = tables.build(&lengths.0.litlen, &lengths.0.distance, Pairs::Build);
        debug_assert_eq!(built, Ok(()));
        Self { tables }
    }

    /// Decodes one body, which must end in the last byte of `body` and fill `page`. It may only
    /// refer to the page itself.
    ///
    /// After an error the content of `page` is of no use.
    ///
    /// # Errors
    ///
    /// [`InflateError`], without the variants that speak of headers and blocks.
    pub fn inflate(&self, body: &[u8], page: &mut [u8]) -> Result<(), InflateError> {
        inflate_body(&self.tables, body, page)
    }
}
