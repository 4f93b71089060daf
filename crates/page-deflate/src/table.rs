//! Decoding tables: one look-up gives a symbol with all its properties.

use super::format::{
    DISTANCE_BASE, DISTANCE_EXTRA, END_OF_BLOCK, FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS,
    LENGTH_BASE, LENGTH_EXTRA, MAX_CODE_BITS, MAX_PRECODE_BITS, MIN_MATCH, PRECODE_SYMBOLS,
};
use std::hint::select_unpredictable;
use std::sync::OnceLock;

/// Bits of the first look-up for a literal or length. Our own encoder's codes are no longer.
pub(super) const LITLEN_BITS: usize = 12;
/// Bits of the first look-up for a distance. Our own encoder's codes are no longer.
pub(super) const DISTANCE_BITS: usize = 9;

/// Room for the first level and every second-level table. A second-level table which resolves `k`
/// more bits has 2^k entries and, its code being complete, at least k + 1 symbols: at most 2
/// entries a symbol for the 3 more bits of a literal or length, at most 64/7 for the 6 more bits of
/// a distance.
const LITLEN_ENTRIES: usize = (1 << LITLEN_BITS) + 2 * FIXED_LITLEN_LENGTHS.len();
const DISTANCE_ENTRIES: usize = (1 << DISTANCE_BITS) + 10 * FIXED_DISTANCE_LENGTHS.len();

/// One entry of a table.
///
/// | bits | one or two literals | length | end of block | distance | link to a second level |
/// | --- | --- | --- | --- | --- | --- |
/// | 0-7 | 0-5: bits to drop | 0 | 0 | bits to drop, with the extra bits | 0 |
/// | 6-7 | how many | | | | |
/// | 8-15 | first literal | bits to drop, with the extra bits | bits to drop | 8-13: bits of the code alone | 8-20: index of the second level |
/// | 16-23 | second literal | 16-21: bits of the code alone | | | 21-24: bits that it takes |
/// | 14-28 | | 22-29: length less 3 | | smallest distance | |
///
/// [`LITERAL`] and [`SPECIAL`], or [`NO_DISTANCE`], tell them apart. The lowest byte of any entry
/// but literals is 0, so that taking an entry's literals, and dropping their bits, changes nothing
/// if it has none.
pub(super) type Entry = u32;

pub(super) const LITERAL: Entry = 1 << 31;
/// In a table of literals and lengths: the end of the block, a link, or a code without a meaning.
pub(super) const SPECIAL: Entry = 1 << 30;
/// In a distance table: a link, or a code without a meaning.
pub(super) const NO_DISTANCE: Entry = 1 << 31;
/// Among these special entries: a link to a second level.
pub(super) const LINK: Entry = 1 << 29;
/// Among these special entries: the end of the block.
pub(super) const END: Entry = 1 << 28;

/// Bits to drop for an entry's literals.
#[inline(always)]
pub(super) fn literal_bits(entry: Entry) -> u32 {
    entry & 63
}

/// The number of an entry's literals.
#[inline(always)]
pub(super) fn literals(entry: Entry) -> usize {
    (entry >> 6 & 3) as usize
}

/// A symbol with extra bits: in bits 0-7 the bits to drop, in 8-13 those of the code alone, from 14
/// on the least value.
#[derive(Clone, Copy)]
pub(super) struct Extended(pub(super) u32);

impl Extended {
    /// The symbol of an entry of a length.
    #[inline(always)]
    pub(super) fn length(entry: Entry) -> Self {
        Self(entry >> 8)
    }

    /// The symbol of an entry of a distance.
    #[inline(always)]
    pub(super) fn distance(entry: Entry) -> Self {
        Self(entry)
    }

    /// Bits to drop.
    pub(super) fn bits(self) -> u32 {
        self.0 & 0xff
    }

    /// The value with the extra bits. `low_bits` are the bits to drop.
    #[inline(always)]
    pub(super) fn value(self, low_bits: u64) -> usize {
        (self.0 >> 14) as usize + (low_bits >> (self.0 >> 8 & 63)) as usize
    }

    /// The lowest bits of `bits`, those to drop.
    #[inline(always)]
    pub(super) fn low_bits(self, bits: u64) -> u64 {
        bits & ((1 << (self.0 & 63)) - 1)
    }
}

/// Why a description of a code is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadCode;

/// A table's first level and its second levels.
struct Levels<const ENTRIES: usize> {
    entries: [Entry; ENTRIES],
    /// Bits of the first look-up.
    bits: u32,
    /// These bits, set. Always less than `ENTRIES`.
    mask: u64,
}

impl<const ENTRIES: usize> Levels<ENTRIES> {
    const fn new(nothing: Entry) -> Self {
        Self {
            entries: [nothing; ENTRIES],
            bits: 0,
            mask: 0,
        }
    }

    /// Sets the size of the first level.
    fn resize(&mut self, bits: usize) {
        let bits = bits.min(ENTRIES.ilog2() as usize);
        self.bits = bits as u32;
        self.mask = (1 << bits) - 1;
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "a check would be a part of every look-up")]
    fn first(&self, bits: u64) -> Entry {
        let index = (bits & self.mask) as usize;
        debug_assert!(index < ENTRIES);
        // SAFETY: `mask` is less than the number of entries: `resize` alone sets it.
        unsafe { *self.entries.get_unchecked(index) }
    }

    /// The entry in the second level for a link and the bits from the code's first on.
    #[inline(always)]
    fn second(&self, link: Entry, bits: u64) -> Entry {
        let mask = (1_u64 << (link >> 21 & 15)) - 1;
        let index = (link >> 8 & 0x1fff) as usize + (bits >> (self.bits & 63) & mask) as usize;
        self.entries[index]
    }
}

/// The two tables of a block.
pub(super) struct Tables {
    litlen: Levels<LITLEN_ENTRIES>,
    distance: Levels<DISTANCE_ENTRIES>,
    /// Most bits of a match.
    match_bits: u32,
}

/// The use of a table, which decides the work to spend on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It serves many pages: a large first level, with pairs of literals.
    Pages,
    /// It serves a page or so: a small first level.
    Page,
}

impl Use {
    /// Bits of the first levels.
    const fn bits(self) -> (usize, usize) {
        match self {
            Self::Pages => (LITLEN_BITS, DISTANCE_BITS),
            Self::Page => (11, 9),
        }
    }
}

impl Tables {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            litlen: Levels::new(SPECIAL),
            distance: Levels::new(NO_DISTANCE),
            match_bits: 0,
        })
    }

    /// The tables of the format's fixed code.
    pub(super) fn fixed() -> &'static Tables {
        static FIXED: OnceLock<Box<Tables>> = OnceLock::new();
        FIXED.get_or_init(|| {
            let mut tables = Tables::new();
            // Two literals take 16 bits or more, so there are no pairs.
            let built = tables.build(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS, Use::Page);
            debug_assert_eq!(built, Ok(()));
            tables
        })
    }

    /// The entry of a literal or length for the next bits.
    #[inline(always)]
    pub(super) fn litlen_entry(&self, bits: u64) -> Entry {
        self.litlen.first(bits)
    }

    /// The entry behind a link.
    #[inline(always)]
    pub(super) fn litlen_second(&self, link: Entry, bits: u64) -> Entry {
        self.litlen.second(link, bits)
    }

    /// The entry of a distance for the next bits.
    #[inline(always)]
    pub(super) fn distance_entry(&self, bits: u64) -> Entry {
        self.distance.first(bits)
    }

    /// The entry behind a link.
    #[inline(always)]
    pub(super) fn distance_second(&self, link: Entry, bits: u64) -> Entry {
        self.distance.second(link, bits)
    }

    /// Whether a match fits into the 56 bits of a refill after a look-up in the first level.
    #[inline(always)]
    pub(super) fn fits_after_one(&self) -> bool {
        self.match_bits + LITLEN_BITS as u32 <= 56
    }

    /// Replaces both tables; after an error their content is meaningless.
    pub(super) fn build(
        &mut self,
        litlen: &[u8],
        distance: &[u8],
        usage: Use,
    ) -> Result<(), BadCode> {
        if litlen.get(END_OF_BLOCK).is_none_or(|&length| length == 0) {
            return Err(BadCode);
        }
        let (litlen_bits, distance_bits) = usage.bits();
        fill(
            litlen,
            litlen_bits,
            &mut self.litlen,
            SPECIAL | LINK,
            &LITLEN_SYMBOL_ENTRIES,
            usage,
        )?;
        if is_lone_distance(distance) {
            self.distance.resize(1);
            let lone = distance.iter().position(|&length| length == 1);
            let entry = lone.map_or(NO_DISTANCE, |symbol| {
                entry(&DISTANCE_SYMBOL_ENTRIES, symbol, 1)
            });
            self.distance.entries[..2].copy_from_slice(&[entry, NO_DISTANCE]);
        } else {
            fill(
                distance,
                distance_bits,
                &mut self.distance,
                NO_DISTANCE | LINK,
                &DISTANCE_SYMBOL_ENTRIES,
                usage,
            )?;
        }
        let most = |lengths: &[u8]| lengths.iter().copied().fold(0, u8::max);
        self.match_bits = u32::from(most(litlen) + 5 + most(distance) + 13);
        Ok(())
    }
}

/// RFC 1951 section 3.2.7: a block may have no distance, or a single one, coded in one bit.
fn is_lone_distance(lengths: &[u8]) -> bool {
    let mut used = lengths.iter().filter(|&&length| length > 0);
    matches!((used.next(), used.next()), (None | Some(1), None))
}

/// A symbol's entry in parts: what is the same for every code, and a factor for the bits of the
/// code.
type SymbolEntry = (Entry, Entry);

/// The entry of a symbol whose code has `code_bits`.
#[inline(always)]
fn entry<const SYMBOLS: usize>(
    symbols: &[SymbolEntry; SYMBOLS],
    symbol: usize,
    code_bits: usize,
) -> Entry {
    let (fixed, factor) = symbols[symbol];
    fixed + factor * code_bits as Entry
}

/// In an [`Extended`], a code's bits count twice: to be dropped, and before extra bits.
const CODE_BITS: u32 = 1 << 8 | 1;

static LITLEN_SYMBOL_ENTRIES: [SymbolEntry; FIXED_LITLEN_LENGTHS.len()] = {
    let mut entries = [(SPECIAL, 0); FIXED_LITLEN_LENGTHS.len()];
    let mut symbol = 0;
    while symbol < END_OF_BLOCK {
        entries[symbol] = (LITERAL | (symbol as u32) << 8 | 1 << 6, 1);
        symbol += 1;
    }
    entries[END_OF_BLOCK] = (SPECIAL | END, 1 << 8);
    let mut index = 0;
    while index < LENGTH_BASE.len() {
        let least = LENGTH_BASE[index] as u32 - MIN_MATCH as u32;
        let fixed = least << 14 | LENGTH_EXTRA[index] as u32;
        entries[END_OF_BLOCK + 1 + index] = (fixed << 8, CODE_BITS << 8);
        index += 1;
    }
    entries
};

static DISTANCE_SYMBOL_ENTRIES: [SymbolEntry; FIXED_DISTANCE_LENGTHS.len()] = {
    let mut entries = [(NO_DISTANCE, 0); FIXED_DISTANCE_LENGTHS.len()];
    let mut symbol = 0;
    while symbol < DISTANCE_BASE.len() {
        let fixed = (DISTANCE_BASE[symbol] as u32) << 14 | DISTANCE_EXTRA[symbol] as u32;
        entries[symbol] = (fixed, CODE_BITS);
        symbol += 1;
    }
    entries
};

/// A table for the code of the code lengths.
pub(super) struct Precode(Levels<{ 1 << MAX_PRECODE_BITS }>);

/// The meaning of a symbol of the code of the code lengths.
pub(super) struct Said {
    /// Bits to drop from the input.
    pub(super) bits: u32,
    pub(super) length: u8,
    /// Whether the length is the one before instead.
    pub(super) is_previous: bool,
    /// The number of symbols of this length, at most [`Precode::MOST`].
    pub(super) count: usize,
}

/// | bits | |
/// | --- | --- |
/// | 0-7 | bits to drop, with the extra bits |
/// | 8-11 | bits of the code alone |
/// | 14-17 | the least count |
/// | 20-23 | the length |
/// | 31 | whether the length is the one before |
static PRECODE_SYMBOL_ENTRIES: [SymbolEntry; PRECODE_SYMBOLS] = {
    let mut entries = [(0, 0); PRECODE_SYMBOLS];
    let mut length = 0;
    while length <= MAX_CODE_BITS {
        entries[length] = (1 << 14 | (length as u32) << 20, CODE_BITS);
        length += 1;
    }
    entries[16] = (PREVIOUS | 3 << 14 | 2, CODE_BITS);
    entries[17] = (3 << 14 | 3, CODE_BITS);
    entries[18] = (11 << 14 | 7, CODE_BITS);
    entries
};
const PREVIOUS: Entry = 1 << 31;

impl Precode {
    /// Most symbols that one symbol gives a length.
    pub(super) const MOST: usize = 138;
    /// Most bits of a symbol, with its extra bits.
    pub(super) const MOST_BITS: u32 = MAX_PRECODE_BITS as u32 + 7;

    pub(super) fn new(lengths: &[u8; PRECODE_SYMBOLS]) -> Result<Self, BadCode> {
        let mut table = Levels::new(0);
        fill(
            lengths,
            MAX_PRECODE_BITS,
            &mut table,
            0,
            &PRECODE_SYMBOL_ENTRIES,
            Use::Page,
        )?;
        Ok(Self(table))
    }

    /// Looks up the next symbol.
    #[inline(always)]
    pub(super) fn next(&self, bits: u64) -> Said {
        let entry = self.0.first(bits);
        let repetition = Extended(entry & 0x3_ffff);
        Said {
            bits: repetition.bits(),
            length: (entry >> 20 & 15) as u8,
            is_previous: entry & PREVIOUS != 0,
            count: repetition.value(repetition.low_bits(bits)),
        }
    }
}

/// Fills a table with a first level of at most `first_bits`, or of all of them where it serves many
/// pages. The code must be complete.
fn fill<const ENTRIES: usize, const SYMBOLS: usize>(
    lengths: &[u8],
    first_bits: usize,
    levels: &mut Levels<ENTRIES>,
    link_flags: Entry,
    symbols: &[SymbolEntry; SYMBOLS],
    usage: Use,
) -> Result<(), BadCode> {
    // Separate counters, as counting the same length twice in a row is slow.
    let mut several = [[0_u16; 16]; 4];
    let (fours, rest) = lengths.as_chunks::<4>();
    for four in fours {
        for (counts, &length) in several.iter_mut().zip(four) {
            counts[usize::from(length & 15)] += 1;
        }
    }
    for &length in rest {
        several[0][usize::from(length & 15)] += 1;
    }
    let [a, b, c, d] = several;
    let counts: [usize; MAX_CODE_BITS + 1] =
        std::array::from_fn(|bits| usize::from(a[bits] + b[bits] + c[bits] + d[bits]));
    // Symbols without a code come first.
    let mut starts = [0; MAX_CODE_BITS + 2];
    starts[1] = counts[0];
    let mut free = 1_usize;
    let mut longest = 1;
    for bits in 1..=MAX_CODE_BITS {
        starts[bits + 1] = starts[bits] + counts[bits];
        free = (free * 2).checked_sub(counts[bits]).ok_or(BadCode)?;
        if counts[bits] > 0 {
            longest = bits;
        }
    }
    if free > 0 {
        return Err(BadCode);
    }
    let first_bits = match usage {
        Use::Pages => first_bits,
        Use::Page => first_bits.min(longest),
    };
    levels.resize(first_bits);
    let table = &mut levels.entries;
    let mut sorted = [0_u16; SYMBOLS];
    let mut next = starts;
    for (symbol, &length) in (0..).zip(lengths) {
        let place = &mut next[usize::from(length & 15)];
        sorted[*place] = symbol;
        *place += 1;
    }

    // Codes in ascending order, bit-reversed since the first bit of a code is the lowest of the
    // input.
    let mut code = 0_u16;
    for bits in 1..=first_bits {
        table.copy_within(0..1 << (bits - 1), 1 << (bits - 1));
        code <<= 1;
        for &symbol in &sorted[starts[bits]..starts[bits + 1]] {
            table[reversed(code, bits)] = entry(symbols, usize::from(symbol), bits);
            code += 1;
        }
    }

    // Longer codes belong to the second level of their first bits. They are taken from the last
    // on, all ones: the last code with the same first bits is the longest and determines the number
    // of bits of the second level.
    let mut free_entry = 1 << first_bits;
    let mut link_of = usize::MAX;
    let mut link = (0, 0);
    let mut end = 1_u16 << longest;
    for bits in (first_bits + 1..=longest).rev() {
        for &symbol in sorted[starts[bits]..starts[bits + 1]].iter().rev() {
            end -= 1;
            let code = reversed(end, bits);
            let prefix = code & ((1 << first_bits) - 1);
            if prefix != link_of {
                link_of = prefix;
                link = (free_entry, bits - first_bits);
                free_entry += 1 << link.1;
                table[prefix] = link_flags | (link.0 << 8 | link.1 << 21) as u32;
            }
            let entry = entry(symbols, usize::from(symbol), bits);
            let places = &mut table[link.0..link.0 + (1 << link.1)];
            let mut behind = code >> first_bits;
            while let Some(place) = places.get_mut(behind) {
                *place = entry;
                behind += 1 << (bits - first_bits);
            }
        }
        end >>= 1;
    }
    if usage == Use::Pages && ENTRIES == LITLEN_ENTRIES {
        pair_literals(table, &sorted, &starts);
    }
    Ok(())
}

/// Extends entries of one literal by the next literal if the look-up covers its whole code.
fn pair_literals(table: &mut [Entry], sorted: &[u16], starts: &[usize; MAX_CODE_BITS + 2]) {
    // The entries for the bits after a code.
    let mut singles = [0; 1 << (LITLEN_BITS - 1)];
    singles.copy_from_slice(&table[..1 << (LITLEN_BITS - 1)]);
    let mut code = 0_u16;
    for bits in 1..LITLEN_BITS {
        code <<= 1;
        for &symbol in &sorted[starts[bits]..starts[bits + 1]] {
            let place = reversed(code, bits);
            code += 1;
            if usize::from(symbol) >= END_OF_BLOCK {
                continue;
            }
            let first = entry(&LITLEN_SYMBOL_ENTRIES, usize::from(symbol), bits);
            let both = LITERAL | 2 << 6 | first & 0xff3f;
            let most = (LITLEN_BITS - bits) as u32;
            let places = table[place..1 << LITLEN_BITS].iter_mut().step_by(1 << bits);
            for (&second, place) in singles.iter().zip(places) {
                let pair = both + ((second & 0xff00) << 8 | literal_bits(second));
                let is_pair = (second & LITERAL != 0) & (literal_bits(second) <= most);
                *place = select_unpredictable(is_pair, pair, first);
            }
        }
    }
}

/// The lowest `bits` of a code in reverse.
#[inline(always)]
fn reversed(code: u16, bits: usize) -> usize {
    let [low, high] = code.to_le_bytes();
    let all =
        usize::from(REVERSED[usize::from(low)]) << 8 | usize::from(REVERSED[usize::from(high)]);
    all >> (16 - bits)
}

static REVERSED: [u8; 256] = {
    let mut reversed = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        reversed[byte] = (byte as u8).reverse_bits();
        byte += 1;
    }
    reversed
};
