//! The decoder proper: blocks to bytes, with the output's size known beforehand.

use super::format::{
    DISTANCE_SYMBOLS, DYNAMIC, FIXED, LITLEN_SYMBOLS, PRECODE_ORDER, PRECODE_SYMBOLS, STORED,
};
use super::table::{
    BadCode, DISTANCE_BITS, END, Entry, LINK, LITERAL, LITLEN_BITS, NO_DISTANCE, Pairs, Precode,
    SPECIAL, Tables, drop_bits, second_level,
};

/// Why deflate data is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InflateError {
    /// The input ends inside a block, or before the ending that is asked for.
    #[error("the compressed data ends early, after {found_bytes} of {expected_bytes} bytes")]
    Truncated {
        /// Output so far.
        found_bytes: usize,
        /// Output asked for.
        expected_bytes: usize,
    },
    /// The input ends well, but gives less than it should.
    #[error("the compressed data gives {found_bytes} bytes instead of {expected_bytes}")]
    TooShort {
        /// The output's size.
        found_bytes: usize,
        /// Output asked for.
        expected_bytes: usize,
    },
    /// The input gives more than it should.
    #[error("the compressed data gives more than {expected_bytes} bytes")]
    TooLong {
        /// Output asked for.
        expected_bytes: usize,
    },
    /// Bytes follow the end of the compressed data.
    #[error("{found_bytes} bytes follow the end of the compressed data")]
    TrailingData {
        /// How many.
        found_bytes: usize,
    },
    /// A final block in a stream that has no end.
    #[error("a final block in a stream without end")]
    UnexpectedFinalBlock,
    /// A stream that does not start with a zlib header this decoder knows.
    #[error("bytes {found:02x?} are not a zlib header")]
    BadHeader {
        /// The first two bytes.
        found: [u8; 2],
    },
    /// Block type 3.
    #[error("reserved block type 3")]
    ReservedBlockType,
    /// A stored block's length and its complement disagree.
    #[error("stored block length {len:#06x} with complement {complement:#06x}")]
    StoredLength {
        /// The length.
        len: u16,
        /// What should be its complement.
        complement: u16,
    },
    /// A block describes codes which are no prefix codes, or leave bit patterns without meaning.
    #[error("invalid code description")]
    InvalidCode,
    /// A code without meaning.
    #[error("invalid symbol")]
    InvalidSymbol,
    /// A copy reaches back to before the data, or before what is kept of it.
    #[error("distance {found_bytes} where {available_bytes} bytes of history are at hand")]
    DistanceTooFar {
        /// The distance.
        found_bytes: usize,
        /// What it could have been.
        available_bytes: usize,
    },
}

impl From<BadCode> for InflateError {
    fn from(BadCode: BadCode) -> Self {
        InflateError::InvalidCode
    }
}

/// Input as bits, the first of a byte lowest.
struct Bits<'a> {
    input: &'a [u8],
    /// The next byte that is not counted in `count`.
    next: usize,
    /// The next bits. Those above `count` are either 0 or what the bytes at `next` say.
    bits: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(input: &'a [u8]) -> Self {
        Self {
            input,
            next: 0,
            bits: 0,
            count: 0,
        }
    }

    /// Makes at least 56 bits available, or all there are.
    #[inline]
    fn refill(&mut self) {
        while self.count < 56 {
            let Some(&byte) = self.input.get(self.next) else {
                break;
            };
            self.bits |= u64::from(byte) << self.count;
            self.next += 1;
            self.count += 8;
        }
    }

    /// Drops bits that were looked at; false if there are not so many.
    #[must_use]
    fn drop(&mut self, count: u32) -> bool {
        if count > self.count {
            return false;
        }
        self.bits >>= count;
        self.count -= count;
        true
    }

    /// The next `count` bits, at most 16.
    fn take(&mut self, count: u32) -> Option<u32> {
        if self.count < count {
            self.refill();
        }
        let value = self.bits & ((1 << count) - 1);
        self.drop(count).then_some(value as u32)
    }

    /// Bytes not touched yet, once the rest of the current one is skipped.
    fn align(&mut self) -> &'a [u8] {
        self.next -= (self.count / 8) as usize;
        self.bits = 0;
        self.count = 0;
        self.input.get(self.next..).unwrap_or_default()
    }
}

/// What ended.
pub(super) struct Block {
    pub(super) is_final: bool,
    pub(super) is_empty_stored: bool,
}

/// One run of the decoder, over one input and one output.
pub(super) struct Run<'a> {
    input: Bits<'a>,
    output: &'a mut [u8],
    produced: usize,
    /// What came before the output, the nearest last.
    history: &'a [u8],
}

impl<'a> Run<'a> {
    pub(super) fn new(input: &'a [u8], output: &'a mut [u8], history: &'a [u8]) -> Self {
        Self {
            input: Bits::new(input),
            output,
            produced: 0,
            history,
        }
    }

    /// Bytes of the input after the one that holds the last bit used.
    pub(super) fn unused(&mut self) -> usize {
        self.input.align().len()
    }

    /// Ends well only with the whole output produced.
    pub(super) fn finish(self) -> Result<(), InflateError> {
        if self.produced < self.output.len() {
            return Err(InflateError::TooShort {
                found_bytes: self.produced,
                expected_bytes: self.output.len(),
            });
        }
        Ok(())
    }

    /// Decodes one block; `tables` are for a block that brings its own.
    pub(super) fn block(
        &mut self,
        tables: &mut Tables,
        pairs: Pairs,
    ) -> Result<Block, InflateError> {
        let header = self.take(3)?;
        let mut is_empty_stored = false;
        match header >> 1 {
            STORED => is_empty_stored = self.stored()? == 0,
            FIXED => self.compressed(Tables::fixed())?,
            DYNAMIC => {
                self.description(tables, pairs)?;
                self.compressed(tables)?;
            }
            _ => return Err(InflateError::ReservedBlockType),
        }
        Ok(Block {
            is_final: header & 1 == 1,
            is_empty_stored,
        })
    }

    /// Decodes the tokens of a block whose codes are known, to its end.
    pub(super) fn compressed(&mut self, tables: &Tables) -> Result<(), InflateError> {
        if self.fast(tables)? {
            return Ok(());
        }
        while !self.token(tables)? {}
        Ok(())
    }

    /// Returns the block's length.
    fn stored(&mut self) -> Result<usize, InflateError> {
        let bytes = self.input.align();
        let Some((&[a, b, c, d], bytes)) = bytes.split_first_chunk() else {
            return Err(self.truncated());
        };
        let (len, complement) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if len != !complement {
            return Err(InflateError::StoredLength { len, complement });
        }
        let len = usize::from(len);
        let Some(source) = bytes.get(..len) else {
            return Err(self.truncated());
        };
        let Some(target) = self.output.get_mut(self.produced..self.produced + len) else {
            return Err(self.too_long());
        };
        target.copy_from_slice(source);
        self.produced += len;
        self.input.next += 4 + len;
        Ok(len)
    }

    fn description(&mut self, tables: &mut Tables, pairs: Pairs) -> Result<(), InflateError> {
        let mut lengths = [0; LITLEN_SYMBOLS + DISTANCE_SYMBOLS];
        let (litlen, distance) = self.lengths(&mut lengths)?;
        Ok(tables.build(litlen, distance, pairs)?)
    }

    /// Reads the lengths that a block describes its codes by: those of literals and lengths, and
    /// those of distances.
    fn lengths<'l>(
        &mut self,
        all: &'l mut [u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS],
    ) -> Result<(&'l [u8], &'l [u8]), InflateError> {
        let litlens = self.take(5)? as usize + 257;
        let distances = self.take(5)? as usize + 1;
        let described = self.take(4)? as usize + 4;
        if litlens > LITLEN_SYMBOLS || distances > DISTANCE_SYMBOLS {
            return Err(InflateError::InvalidCode);
        }
        let mut lengths = [0; PRECODE_SYMBOLS];
        for &symbol in PRECODE_ORDER.iter().take(described) {
            lengths[usize::from(symbol)] = self.take(3)? as u8;
        }
        let precode = Precode::new(&lengths)?;

        let lengths = &mut all[..litlens + distances];
        let mut done = 0;
        while done < lengths.len() {
            self.input.refill();
            let entry = precode.0[(self.input.bits & (precode.0.len() as u64 - 1)) as usize];
            if !self.input.drop(entry & 7) {
                return Err(self.truncated());
            }
            let (value, count) = match entry >> 3 {
                16 => {
                    let previous = done.checked_sub(1).ok_or(InflateError::InvalidCode)?;
                    (lengths[previous], 3 + self.take(2)?)
                }
                17 => (0, 3 + self.take(3)?),
                18 => (0, 11 + self.take(7)?),
                length => (length as u8, 1),
            };
            let end = done + count as usize;
            lengths
                .get_mut(done..end)
                .ok_or(InflateError::InvalidCode)?
                .fill(value);
            done = end;
        }
        Ok(lengths.split_at(litlens))
    }

    /// Decodes one token near an end of the input or the output; true at the end of the block.
    fn token(&mut self, tables: &Tables) -> Result<bool, InflateError> {
        self.input.refill();
        let first = (self.input.bits & ((1 << LITLEN_BITS) - 1)) as usize;
        let mut entry = tables.litlen[first];
        if entry & (LITERAL | SPECIAL | LINK) == SPECIAL | LINK {
            entry = tables.litlen[second_level(entry, self.input.bits >> LITLEN_BITS)];
        }
        let bits = self.input.bits;
        // A block goes on after a literal, so input that ends within a pair of them would end too
        // early anyway; and so with the output.
        if !self.input.drop(drop_bits(entry)) {
            return Err(self.truncated());
        }
        if entry & LITERAL != 0 {
            let count = (entry >> 24 & 3) as usize;
            let literals = [(entry >> 8) as u8, (entry >> 16) as u8];
            let Some(target) = self.output.get_mut(self.produced..self.produced + count) else {
                return Err(self.too_long());
            };
            target.copy_from_slice(&literals[..count]);
            self.produced += count;
            return Ok(false);
        }
        if entry & SPECIAL != 0 {
            return if entry & END != 0 {
                Ok(true)
            } else {
                Err(InflateError::InvalidSymbol)
            };
        }
        let length = value(entry, bits);

        self.input.refill();
        let first = (self.input.bits & ((1 << DISTANCE_BITS) - 1)) as usize;
        let mut entry = tables.distance[first];
        if entry & (NO_DISTANCE | LINK) == NO_DISTANCE | LINK {
            entry = tables.distance[second_level(entry, self.input.bits >> DISTANCE_BITS)];
        }
        let bits = self.input.bits;
        if entry & NO_DISTANCE != 0 {
            return Err(InflateError::InvalidSymbol);
        }
        if !self.input.drop(drop_bits(entry)) {
            return Err(self.truncated());
        }
        self.copy(length, value(entry, bits))?;
        Ok(false)
    }

    /// Copies a match, byte by byte where it overlaps itself.
    fn copy(&mut self, length: usize, distance: usize) -> Result<(), InflateError> {
        if length > self.output.len() - self.produced {
            return Err(self.too_long());
        }
        let mut length = length;
        if let Some(before) = distance
            .checked_sub(self.produced)
            .filter(|&before| before > 0)
        {
            let Some(start) = self.history.len().checked_sub(before) else {
                return Err(InflateError::DistanceTooFar {
                    found_bytes: distance,
                    available_bytes: self.history.len() + self.produced,
                });
            };
            let count = before.min(length);
            self.output[self.produced..self.produced + count]
                .copy_from_slice(&self.history[start..start + count]);
            self.produced += count;
            length -= count;
        }
        while length > 0 {
            let count = length.min(distance);
            let start = self.produced - distance;
            self.output.copy_within(start..start + count, self.produced);
            self.produced += count;
            length -= count;
        }
        Ok(())
    }

    fn take(&mut self, count: u32) -> Result<u32, InflateError> {
        self.input.take(count).ok_or_else(|| self.truncated())
    }

    #[cold]
    fn truncated(&self) -> InflateError {
        InflateError::Truncated {
            found_bytes: self.produced,
            expected_bytes: self.output.len(),
        }
    }

    #[cold]
    fn too_long(&self) -> InflateError {
        InflateError::TooLong {
            expected_bytes: self.output.len(),
        }
    }

    /// Decodes tokens as long as neither end is near; true at the end of the block.
    fn fast(&mut self, tables: &Tables) -> Result<bool, InflateError> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("bmi2") {
            #[allow(unsafe_code, reason = "a function for machines with BMI2")]
            // SAFETY: this is one.
            return unsafe { self.fast_by_bmi2(tables) };
        }
        self.fast_anywhere(tables)
    }

    /// Every step shifts by a number that has just been read, which takes one instruction instead
    /// of three here.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi2")]
    fn fast_by_bmi2(&mut self, tables: &Tables) -> Result<bool, InflateError> {
        self.fast_anywhere(tables)
    }

    #[inline(always)]
    #[allow(
        unsafe_code,
        reason = "bounds checks in this loop cost a seventh of the decoder's time"
    )]
    fn fast_anywhere(&mut self, tables: &Tables) -> Result<bool, InflateError> {
        let input = self.input.input;
        // Held here while the loop runs, since what is written could be anything, even where the
        // output is.
        let mut output = std::mem::take(&mut self.output);
        let Bits {
            mut next,
            mut bits,
            mut count,
            ..
        } = self.input;
        let mut at = self.produced;
        let outcome = loop {
            // Two refills take at most 7 bytes each out of 8, and four look-ups give at most two
            // literals each. Before a copy, its room is looked at.
            if next + 16 > input.len() || at + 8 > output.len() {
                break Ok(false);
            }
            // SAFETY: that is so here, and in all that follows without checks.
            unsafe { refill(input, &mut next, &mut bits, &mut count) };
            let mut entry = tables.litlen[(bits & ((1 << LITLEN_BITS) - 1)) as usize];
            if entry & LITERAL != 0 {
                // SAFETY: see above.
                unsafe { put_literals(output, &mut at, entry) };
                bits >>= entry & 63;
                count = count.wrapping_sub(entry);
                entry = tables.litlen[(bits & ((1 << LITLEN_BITS) - 1)) as usize];
                if entry & LITERAL != 0 {
                    // SAFETY: see above.
                    unsafe { put_literals(output, &mut at, entry) };
                    bits >>= entry & 63;
                    count = count.wrapping_sub(entry);
                    entry = tables.litlen[(bits & ((1 << LITLEN_BITS) - 1)) as usize];
                    if entry & LITERAL != 0 {
                        // SAFETY: see above.
                        unsafe { put_literals(output, &mut at, entry) };
                        bits >>= entry & 63;
                        count = count.wrapping_sub(entry);
                        entry = tables.litlen[(bits & ((1 << LITLEN_BITS) - 1)) as usize];
                        if entry & LITERAL != 0 {
                            // SAFETY: see above.
                            unsafe { put_literals(output, &mut at, entry) };
                            bits >>= entry & 63;
                            count = count.wrapping_sub(entry);
                            continue;
                        }
                    }
                }
            }
            if entry & SPECIAL != 0 {
                if entry & LINK != 0 {
                    entry = tables.litlen[second_level(entry, bits >> LITLEN_BITS)];
                }
                if entry & LITERAL != 0 {
                    // SAFETY: see above.
                    unsafe { put_literals(output, &mut at, entry) };
                    bits >>= entry & 63;
                    count = count.wrapping_sub(entry);
                    continue;
                }
                if entry & SPECIAL != 0 {
                    if entry & END != 0 {
                        bits >>= entry & 63;
                        count = count.wrapping_sub(entry);
                        break Ok(true);
                    }
                    break Err(InflateError::InvalidSymbol);
                }
            }
            let length = value(entry, bits);
            bits >>= entry & 63;
            count = count.wrapping_sub(entry);

            // SAFETY: see above.
            unsafe { refill(input, &mut next, &mut bits, &mut count) };
            let mut entry = tables.distance[(bits & ((1 << DISTANCE_BITS) - 1)) as usize];
            if entry & NO_DISTANCE != 0 {
                if entry & LINK != 0 {
                    entry = tables.distance[second_level(entry, bits >> DISTANCE_BITS)];
                }
                if entry & NO_DISTANCE != 0 {
                    break Err(InflateError::InvalidSymbol);
                }
            }
            let distance = value(entry, bits);
            bits >>= entry & 63;
            count = count.wrapping_sub(entry);

            if distance > at || at + length + COPY_SLACK > output.len() {
                self.output = output;
                self.produced = at;
                let copied = self.copy(length, distance);
                output = std::mem::take(&mut self.output);
                at = self.produced;
                if let Err(error) = copied {
                    break Err(error);
                }
                continue;
            }
            // SAFETY: the distance does not reach before the output, and the output goes on for
            // COPY_SLACK bytes behind the copy.
            unsafe { copy_fast(output, at, length, distance) };
            at += length;
        };
        self.input.next = next;
        self.input.bits = bits;
        self.input.count = count & 0xff;
        self.output = output;
        self.produced = at;
        outcome
    }
}

/// A fast copy writes so many bytes behind its end at most.
const COPY_SLACK: usize = 32;

/// Makes at least 56 bits available.
///
/// # Safety
///
/// Eight bytes are there from `next` on.
#[allow(unsafe_code, reason = "see `fast_anywhere`")]
#[inline(always)]
unsafe fn refill(input: &[u8], next: &mut usize, bits: &mut u64, count: &mut u32) {
    // SAFETY: as the caller says.
    let word = u64::from_le_bytes(unsafe { get(input, *next) });
    *bits |= word << (*count & 63);
    *next += (7 - (*count >> 3 & 7)) as usize;
    *count |= 56;
}

/// # Safety
///
/// `N` bytes are there from `at` on.
#[allow(unsafe_code, reason = "see `fast_anywhere`")]
#[inline(always)]
unsafe fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    debug_assert!(at + N <= bytes.len());
    // SAFETY: as the caller says.
    let first = unsafe { bytes.as_ptr().add(at) };
    // SAFETY: so they can be read; arrays of bytes have no alignment.
    unsafe { first.cast::<[u8; N]>().read() }
}

/// # Safety
///
/// As [`get`].
#[allow(unsafe_code, reason = "see `fast_anywhere`")]
#[inline(always)]
unsafe fn put<const N: usize>(bytes: &mut [u8], at: usize, chunk: [u8; N]) {
    debug_assert!(at + N <= bytes.len());
    // SAFETY: as the caller says.
    let first = unsafe { bytes.as_mut_ptr().add(at) };
    // SAFETY: so they can be written; arrays of bytes have no alignment.
    unsafe { first.cast::<[u8; N]>().write(chunk) };
}

/// # Safety
///
/// Two bytes are there from `at` on.
#[allow(unsafe_code, reason = "see `fast_anywhere`")]
#[inline(always)]
unsafe fn put_literals(output: &mut [u8], at: &mut usize, entry: Entry) {
    // SAFETY: as the caller says.
    unsafe { put(output, *at, ((entry >> 8) as u16).to_le_bytes()) };
    *at += (entry >> 24 & 3) as usize;
}

/// Copies whole words, and so up to `COPY_SLACK` bytes more than `length`.
///
/// # Safety
///
/// `distance` is 1 to `at`, and the output has `at + length + COPY_SLACK` bytes.
#[allow(unsafe_code, reason = "see `fast_anywhere`")]
#[inline(always)]
unsafe fn copy_fast(output: &mut [u8], at: usize, length: usize, distance: usize) {
    let end = at + length;
    let mut target = at;
    let mut source = at - distance;
    // Each step begins before the end and writes at most COPY_SLACK bytes; it reads in front of
    // what it writes.
    if distance >= 16 {
        loop {
            // SAFETY: see above; the first half is written before the second is read, which it may
            // be a part of.
            let first: [u8; 16] = unsafe { get(output, source) };
            // SAFETY: see above.
            unsafe { put(output, target, first) };
            // SAFETY: see above.
            let second: [u8; 16] = unsafe { get(output, source + 16) };
            // SAFETY: see above.
            unsafe { put(output, target + 16, second) };
            target += 32;
            source += 32;
            if target >= end {
                break;
            }
        }
    } else if distance >= 8 {
        while target < end {
            // SAFETY: see above.
            let word: [u8; 8] = unsafe { get(output, source) };
            // SAFETY: see above.
            unsafe { put(output, target, word) };
            target += 8;
            source += 8;
        }
    } else {
        // SAFETY: see above; what lies behind the pattern is cut off.
        let pattern = u64::from_le_bytes(unsafe { get(output, source) });
        let (spread, step) = SHORT[distance & 7];
        let mask = (1_u64 << ((8 * distance) & 63)) - 1;
        let pattern = (pattern & mask).wrapping_mul(spread).to_le_bytes();
        while target < end {
            // SAFETY: see above.
            unsafe { put(output, target, pattern) };
            target += step;
        }
    }
}

/// For a distance below 8: what repeats so many bytes through a word, and how many bytes of it are
/// whole periods.
const SHORT: [(u64, usize); 8] = {
    let mut short = [(0, 8); 8];
    let mut distance = 1;
    while distance < 8 {
        let mut shift = 0;
        while shift < 8 {
            short[distance].0 |= 1 << (8 * shift);
            shift += distance;
        }
        short[distance].1 = 8 - 8 % distance;
        distance += 1;
    }
    short
};

/// The number an entry for a length or distance stands for, with its extra bits behind its code.
#[inline(always)]
fn value(entry: Entry, bits: u64) -> usize {
    let extra = (bits & ((1 << (entry & 63)) - 1)) >> (entry >> 8 & 15);
    (entry >> 16 & 0x7fff) as usize + extra as usize
}

/// Decodes the body of a block whose tables are known, which must end in the last byte of `body`
/// and fill `page`.
pub(super) fn inflate_body(
    tables: &Tables,
    body: &[u8],
    page: &mut [u8],
) -> Result<(), InflateError> {
    let mut run = Run::new(body, page, &[]);
    run.compressed(tables)?;
    match run.unused() {
        0 => run.finish(),
        found_bytes => Err(InflateError::TrailingData { found_bytes }),
    }
}

/// What the header of a final dynamic block holds.
pub(super) struct Header<'l> {
    pub(super) litlen: &'l [u8],
    pub(super) distance: &'l [u8],
    /// Bytes behind the one with the header's last bit.
    pub(super) unused: usize,
    /// Whether this byte's other bits are 0.
    pub(super) ends_in_zeros: bool,
}

/// Reads the header of a final dynamic block that begins with the first bit of `input`; nothing if
/// another block begins there.
pub(super) fn read_header<'l>(
    input: &[u8],
    lengths: &'l mut [u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS],
) -> Result<Option<Header<'l>>, InflateError> {
    let mut run = Run::new(input, &mut [], &[]);
    if run.take(3)? != 1 | DYNAMIC << 1 {
        return Ok(None);
    }
    let (litlen, distance) = run.lengths(lengths)?;
    let spare_bits = run.input.count % 8;
    let ends_in_zeros = run.input.take(spare_bits) == Some(0);
    Ok(Some(Header {
        litlen,
        distance,
        unused: run.unused(),
        ends_in_zeros,
    }))
}

/// Decodes complete deflate streams, page by page.
pub struct PageInflater {
    tables: Box<Tables>,
}

impl Default for PageInflater {
    fn default() -> Self {
        Self::new()
    }
}

impl PageInflater {
    /// A decoder with room for one block's tables.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tables: Tables::new(),
        }
    }

    /// Decodes a complete raw deflate stream of a single block as [`PageInflater::inflate`] does,
    /// and says how many bits of its last byte do not belong to it, 0 to 7.
    ///
    /// # Errors
    ///
    /// [`InflateError`]. A stream of several blocks is [`InflateError::Truncated`].
    pub fn inflate_block(&mut self, stream: &[u8], page: &mut [u8]) -> Result<u32, InflateError> {
        let mut run = Run::new(stream, page, &[]);
        if !run.block(&mut self.tables, Pairs::Skip)?.is_final {
            return Err(run.truncated());
        }
        let spare_bits = run.input.count % 8;
        match run.unused() {
            0 => run.finish().map(|()| spare_bits),
            found_bytes => Err(InflateError::TrailingData { found_bytes }),
        }
    }

    /// Decodes one complete raw deflate stream, which must end in the last byte of `stream` and
    /// fill `page`.
    ///
    /// After an error the content of `page` is of no use, and the decoder can go on with another
    /// stream.
    ///
    /// # Errors
    ///
    /// [`InflateError`] unless exactly `page` comes out of exactly `stream`.
    pub fn inflate(&mut self, stream: &[u8], page: &mut [u8]) -> Result<(), InflateError> {
        let mut run = Run::new(stream, page, &[]);
        while !run.block(&mut self.tables, Pairs::Skip)?.is_final {}
        match run.unused() {
            0 => run.finish(),
            found_bytes => Err(InflateError::TrailingData { found_bytes }),
        }
    }
}
