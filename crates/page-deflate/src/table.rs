//! Decoding tables: one look-up gives a symbol with everything that belongs to it.

use super::format::{
    DISTANCE_BASE, DISTANCE_EXTRA, END_OF_BLOCK, FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS,
    LENGTH_BASE, LENGTH_EXTRA, MAX_CODE_BITS, MAX_PRECODE_BITS, PRECODE_SYMBOLS,
};
use std::hint::select_unpredictable;
use std::sync::OnceLock;

/// Bits a first look-up for a literal or length takes. Our own encoder writes no longer codes.
pub(super) const LITLEN_BITS: usize = 12;
/// Bits a first look-up for a distance takes. Our own encoder writes no longer codes.
pub(super) const DISTANCE_BITS: usize = 9;

/// Room for the first level and every second-level table. A second-level table which resolves `k`
/// more bits has 2^k entries and, its code being complete, at least k + 1 symbols: at most 2
/// entries a symbol for the 3 more bits of a literal or length, at most 64/7 for the 6 more bits of
/// a distance.
const LITLEN_ENTRIES: usize = (1 << LITLEN_BITS) + 2 * FIXED_LITLEN_LENGTHS.len();
const DISTANCE_ENTRIES: usize = (1 << DISTANCE_BITS) + 10 * FIXED_DISTANCE_LENGTHS.len();

/// One entry of a table.
///
/// | bits | one or two literals | length or distance | link to a second level |
/// | --- | --- | --- | --- |
/// | 0-7 | bits to drop | bits to drop, with the extra bits | |
/// | 8-11 | | bits of the code alone | bits the second level takes |
/// | 8-15 | first literal | | |
/// | 12-27 | 16-23: second literal | 16-30: smallest value | index of the second level |
/// | 24-25 | how many | | |
///
/// [`LITERAL`] and [`SPECIAL`], or [`NO_DISTANCE`], tell them apart.
pub(super) type Entry = u32;

pub(super) const LITERAL: Entry = 1 << 31;
/// In a table of literals and lengths: neither. The end of the block, a link, or a code without
/// meaning.
pub(super) const SPECIAL: Entry = 1 << 30;
/// In a distance table: no distance. A link, or a code without meaning.
pub(super) const NO_DISTANCE: Entry = 1 << 31;
/// Among the entries that are neither: a link to a second level.
pub(super) const LINK: Entry = 1 << 29;
/// Among the entries that are neither: the end of the block.
pub(super) const END: Entry = 1 << 28;

/// Bits to drop from the input.
pub(super) fn drop_bits(entry: Entry) -> u32 {
    entry & 0xff
}

/// The index that a link and the bits behind the first level give in the same table.
pub(super) fn second_level(entry: Entry, bits_behind: u64) -> usize {
    let mask = (1_u64 << (entry >> 8 & 15)) - 1;
    (entry >> 12 & 0xffff) as usize + (bits_behind & mask) as usize
}

/// Why a description of a code is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadCode;

/// The two tables of a block.
pub(super) struct Tables {
    pub(super) litlen: [Entry; LITLEN_ENTRIES],
    pub(super) distance: [Entry; DISTANCE_ENTRIES],
}

/// Whether it pays to build entries that hold two literals.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// For many pages under one table.
    Build,
    /// For a page or so.
    Skip,
}

impl Tables {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            litlen: [SPECIAL; LITLEN_ENTRIES],
            distance: [NO_DISTANCE; DISTANCE_ENTRIES],
        })
    }

    /// The tables of the format's fixed code.
    pub(super) fn fixed() -> &'static Tables {
        static FIXED: OnceLock<Box<Tables>> = OnceLock::new();
        FIXED.get_or_init(|| {
            let mut tables = Tables::new();
            let built = tables.build(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS, Pairs::Build);
            debug_assert_eq!(built, Ok(()));
            tables
        })
    }

    /// Replaces both tables; after an error their content is of no use.
    pub(super) fn build(
        &mut self,
        litlen: &[u8],
        distance: &[u8],
        pairs: Pairs,
    ) -> Result<(), BadCode> {
        if litlen.get(END_OF_BLOCK).is_none_or(|&length| length == 0) {
            return Err(BadCode);
        }
        fill(
            litlen,
            LITLEN_BITS,
            &mut self.litlen,
            SPECIAL | LINK,
            litlen_entry,
        )?;
        if is_lone_distance(distance) {
            self.distance.fill(NO_DISTANCE);
            if let Some(symbol) = distance.iter().position(|&length| length == 1) {
                let even = self.distance.iter_mut().take(1 << DISTANCE_BITS).step_by(2);
                even.for_each(|entry| *entry = distance_entry(symbol, 1));
            }
        } else {
            fill(
                distance,
                DISTANCE_BITS,
                &mut self.distance,
                NO_DISTANCE | LINK,
                distance_entry,
            )?;
        }
        if pairs == Pairs::Build {
            self.pair_literals();
        }
        Ok(())
    }

    /// Lets an entry of one literal take the next one too where the look-up has seen all of its
    /// code.
    fn pair_literals(&mut self) {
        let first_level = &mut self.litlen[..1 << LITLEN_BITS];
        // From the top, so that the entry of the bits behind a code, which is nearer to the start,
        // is still a single.
        for index in (0..1 << LITLEN_BITS).rev() {
            let first = first_level[index];
            let second = first_level[index >> (drop_bits(first) & 15)];
            let bits = drop_bits(first) + drop_bits(second);
            let pair = LITERAL | 2 << 24 | (second & 0xff00) << 8 | first & 0xff00 | bits;
            let is_pair = (first & second & LITERAL != 0) & (bits as usize <= LITLEN_BITS);
            first_level[index] = select_unpredictable(is_pair, pair, first);
        }
    }
}

/// RFC 1951 section 3.2.7: a block may do without distances, or have one, coded in one bit.
fn is_lone_distance(lengths: &[u8]) -> bool {
    let mut used = lengths.iter().filter(|&&length| length > 0);
    matches!((used.next(), used.next()), (None | Some(1), None))
}

fn litlen_entry(symbol: usize, code_bits: u32) -> Entry {
    if symbol < END_OF_BLOCK {
        return LITERAL | 1 << 24 | (symbol as u32) << 8 | code_bits;
    }
    if symbol == END_OF_BLOCK {
        return SPECIAL | END | code_bits;
    }
    let index = symbol - END_OF_BLOCK - 1;
    match (LENGTH_BASE.get(index), LENGTH_EXTRA.get(index)) {
        (Some(&base), Some(&extra)) => {
            u32::from(base) << 16 | code_bits << 8 | (code_bits + u32::from(extra))
        }
        _ => SPECIAL,
    }
}

fn distance_entry(symbol: usize, code_bits: u32) -> Entry {
    match (DISTANCE_BASE.get(symbol), DISTANCE_EXTRA.get(symbol)) {
        (Some(&base), Some(&extra)) => {
            u32::from(base) << 16 | code_bits << 8 | (code_bits + u32::from(extra))
        }
        _ => NO_DISTANCE,
    }
}

/// A table for the code in which code lengths are written: bits 0-2 how many bits to drop, from bit
/// 3 on the symbol.
pub(super) struct Precode(pub(super) [Entry; 1 << MAX_PRECODE_BITS]);

impl Precode {
    pub(super) fn new(lengths: &[u8; PRECODE_SYMBOLS]) -> Result<Self, BadCode> {
        let mut table = [0; 1 << MAX_PRECODE_BITS];
        fill(lengths, MAX_PRECODE_BITS, &mut table, 0, |symbol, bits| {
            (symbol as u32) << 3 | bits
        })?;
        Ok(Self(table))
    }
}

/// Fills a table whose first level takes `first_bits` of the input; the code must be complete.
fn fill(
    lengths: &[u8],
    first_bits: usize,
    table: &mut [Entry],
    link_flags: Entry,
    entry: impl Fn(usize, u32) -> Entry,
) -> Result<(), BadCode> {
    let mut counts = [0_usize; MAX_CODE_BITS + 1];
    for &length in lengths {
        counts[usize::from(length & 15)] += 1;
    }
    let mut starts = [0; MAX_CODE_BITS + 2];
    let mut free = 1_usize;
    for bits in 1..=MAX_CODE_BITS {
        starts[bits + 1] = starts[bits] + counts[bits];
        free = (free * 2).checked_sub(counts[bits]).ok_or(BadCode)?;
    }
    if free > 0 {
        return Err(BadCode);
    }
    let mut sorted = [0_u16; FIXED_LITLEN_LENGTHS.len()];
    let mut next = starts;
    for (symbol, &length) in (0..).zip(lengths) {
        if length > 0 {
            let place = &mut next[usize::from(length & 15)];
            sorted[*place] = symbol;
            *place += 1;
        }
    }

    // Codes in rising order, each bit-reversed since the first bit of a code is the lowest of the
    // input.
    let mut code = 0;
    for bits in 1..=first_bits {
        table.copy_within(0..1 << (bits - 1), 1 << (bits - 1));
        for &symbol in &sorted[starts[bits]..starts[bits + 1]] {
            table[code] = entry(usize::from(symbol), bits as u32);
            code = next_code(code, bits);
        }
    }

    // Longer codes hang below the entry of their first bits: first their numbers, then from the
    // last one back, since the last of those with the same first bits is the longest and says how
    // many more bits are to be looked at.
    let first_long = starts[first_bits + 1];
    let mut codes = [0_usize; FIXED_LITLEN_LENGTHS.len()];
    for bits in first_bits + 1..=MAX_CODE_BITS {
        for place in &mut codes[starts[bits]..starts[bits + 1]] {
            *place = code;
            code = next_code(code, bits);
        }
    }
    let mut free_entry = 1 << first_bits;
    let mut link_of = usize::MAX;
    let mut link = (0, 0);
    for index in (first_long..starts[MAX_CODE_BITS + 1]).rev() {
        let symbol = usize::from(sorted[index]);
        let bits = usize::from(lengths[symbol]);
        let prefix = codes[index] & ((1 << first_bits) - 1);
        if prefix != link_of {
            link_of = prefix;
            link = (free_entry, bits - first_bits);
            free_entry += 1 << link.1;
            table[prefix] = link_flags | (link.0 << 12 | link.1 << 8) as u32;
        }
        let behind = codes[index] >> first_bits;
        let entries = table[link.0..link.0 + (1 << link.1)].iter_mut();
        for place in entries.skip(behind).step_by(1 << (bits - first_bits)) {
            *place = entry(symbol, bits as u32);
        }
    }
    Ok(())
}

/// The bit-reversed code that follows `code` among those of `bits` bits; 0 after the last.
fn next_code(code: usize, bits: usize) -> usize {
    let zeros = !code & ((1 << bits) - 1);
    match zeros.checked_ilog2() {
        Some(highest) => code & ((1 << highest) - 1) | 1 << highest,
        None => 0,
    }
}
