//! The decoder's place in one stream, and its loops without bounds checks.
//!
//! Two places in independent streams are moved in turn by one loop: a look-up waits for the one
//! before it in the same stream, and the processor works on the other stream meanwhile.

use super::format::MIN_MATCH;
use super::inflate::InflateError;
use super::table::{
    END, Entry, Extended, LINK, LITERAL, NO_DISTANCE, SPECIAL, Tables, literal_bits, literals,
};
use crate::inflate::InflateFault;

/// Input as bits; the first bit of a byte is the lowest.
pub(super) struct Bits<'i> {
    pub(super) input: &'i [u8],
    /// The next byte that `count` does not include.
    pub(super) next: usize,
    /// The next bits. Those above `count` are either 0 or equal to the bytes at `next`.
    pub(super) bits: u64,
    pub(super) count: u32,
}

impl<'i> Bits<'i> {
    pub(super) fn new(input: &'i [u8]) -> Self {
        Self {
            input,
            next: 0,
            bits: 0,
            count: 0,
        }
    }

    /// Makes at least 56 bits available, or all that remain.
    #[inline]
    pub(super) fn refill(&mut self) {
        if let Some(&word) = self.input.get(self.next..).and_then(<[u8]>::first_chunk) {
            self.refill_from(word);
            return;
        }
        while self.count < 56 {
            let Some(&byte) = self.input.get(self.next) else {
                break;
            };
            self.bits |= u64::from(byte) << self.count;
            self.next += 1;
            self.count += 8;
        }
    }

    /// Makes at least 56 bits available. `word` is the input from `next` on.
    #[inline(always)]
    fn refill_from(&mut self, word: [u8; 8]) {
        self.bits |= u64::from_le_bytes(word) << (self.count & 63);
        self.next += (7 - (self.count >> 3 & 7)) as usize;
        self.count = self.count & 7 | 56;
    }

    /// Drops bits that were examined; returns false if the input has fewer.
    #[must_use]
    #[inline]
    pub(super) fn drop(&mut self, count: u32) -> bool {
        if count > self.count {
            return false;
        }
        self.bits >>= count;
        self.count -= count;
        true
    }

    /// Takes the next `count` bits, at most 16.
    #[inline]
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        if self.count < count {
            self.refill();
        }
        let value = self.bits & ((1 << count) - 1);
        self.drop(count).then_some(value as u32)
    }

    /// Skips the rest of the current byte and returns the bytes after it.
    pub(super) fn align(&mut self) -> &'i [u8] {
        self.next -= (self.count / 8) as usize;
        self.bits = 0;
        self.count = 0;
        self.input.get(self.next..).unwrap_or_default()
    }
}

/// The decoder's place in one stream: bits to read, and bytes to write.
pub(super) struct Lane<'i, 'o> {
    pub(super) bits: Bits<'i>,
    pub(super) output: &'o mut [u8],
    /// Bytes of the output that are decoded.
    pub(super) at: usize,
}

/// Why a loop stopped.
#[derive(Clone, Copy)]
pub(super) enum Stop {
    /// The end of the input or of the output is near.
    Near,
    /// The block has ended.
    End,
    /// A match that the loop cannot copy.
    Match { length: usize, distance: usize },
    /// A code without a meaning.
    Invalid,
}

impl<'i, 'o> Lane<'i, 'o> {
    pub(super) fn new(input: &'i [u8], output: &'o mut [u8]) -> Self {
        Self {
            bits: Bits::new(input),
            output,
            at: 0,
        }
    }

    /// Leaves an empty lane. A loop works on a lane of its own, which the compiler can keep in
    /// registers.
    #[inline(always)]
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(&[], &mut []))
    }

    /// Decodes symbols while both ends are far away.
    pub(super) fn fast(&mut self, tables: &Tables) -> Stop {
        #[cfg(target_arch = "x86_64")]
        if let Some(shuffles) = Shuffles::detect() {
            return x86::one(shuffles, self, tables);
        }
        one(Words, self, tables)
    }
}

/// Decodes symbols of two streams in turn, while all ends are far away. At least one of them has
/// stopped afterwards.
pub(super) fn fast_two(lanes: [&mut Lane<'_, '_>; 2], tables: [&Tables; 2]) -> [Option<Stop>; 2] {
    #[cfg(target_arch = "x86_64")]
    if let Some(shuffles) = Shuffles::detect() {
        return x86::two(shuffles, lanes, tables);
    }
    two(Words, lanes, tables)
}

/// The loops, compiled for machines whose shifts and shuffles save a tenth to a fifth of the time.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "functions for machines with BMI2 and SSSE3")]
mod x86 {
    use super::{Lane, Shuffles, Stop, Tables};

    pub(super) fn one(shuffles: Shuffles, lane: &mut Lane<'_, '_>, tables: &Tables) -> Stop {
        #[target_feature(enable = "bmi2,ssse3")]
        fn one(shuffles: Shuffles, lane: &mut Lane<'_, '_>, tables: &Tables) -> Stop {
            super::one(shuffles, lane, tables)
        }
        // SAFETY: a value of `Shuffles` proves these features.
        unsafe { one(shuffles, lane, tables) }
    }

    pub(super) fn two(
        shuffles: Shuffles,
        lanes: [&mut Lane<'_, '_>; 2],
        tables: [&Tables; 2],
    ) -> [Option<Stop>; 2] {
        #[target_feature(enable = "bmi2,ssse3")]
        fn two(
            shuffles: Shuffles,
            lanes: [&mut Lane<'_, '_>; 2],
            tables: [&Tables; 2],
        ) -> [Option<Stop>; 2] {
            super::two(shuffles, lanes, tables)
        }
        // SAFETY: a value of `Shuffles` proves these features.
        unsafe { two(shuffles, lanes, tables) }
    }
}

#[inline(always)]
#[allow(
    unsafe_code,
    reason = "bounds checks in this loop cost a seventh of the decoder's time"
)]
pub(super) fn one(machine: impl Machine, place: &mut Lane<'_, '_>, tables: &Tables) -> Stop {
    let mut lane = place.take();
    let stop = loop {
        if !lane.has_room() {
            break Stop::Near;
        }
        // SAFETY: the test above.
        if let Some(stop) = unsafe { lane.step(machine, tables) } {
            break stop;
        }
    };
    lane.bits.count &= 63;
    *place = lane;
    stop
}

#[inline(always)]
#[allow(unsafe_code, reason = "see `one`")]
fn two(
    machine: impl Machine,
    [place_a, place_b]: [&mut Lane<'_, '_>; 2],
    [tables_a, tables_b]: [&Tables; 2],
) -> [Option<Stop>; 2] {
    let (mut a, mut b) = (place_a.take(), place_b.take());
    let stops = loop {
        if !a.has_room() {
            break [Some(Stop::Near), None];
        }
        if !b.has_room() {
            break [None, Some(Stop::Near)];
        }
        // SAFETY: the test above.
        let stop_a = unsafe { a.step(machine, tables_a) };
        // SAFETY: the test above; the other stream's step has not changed it.
        let stop_b = unsafe { b.step(machine, tables_b) };
        if stop_a.is_some() | stop_b.is_some() {
            break [stop_a, stop_b];
        }
    };
    a.bits.count &= 63;
    b.bits.count &= 63;
    *place_a = a;
    *place_b = b;
    stops
}

impl Lane<'_, '_> {
    /// Two refills read at most 7 of their 8 bytes each, and four look-ups write at most two
    /// literals each. A match tests its room separately.
    #[inline(always)]
    fn has_room(&self) -> bool {
        (self.bits.next + 16 <= self.bits.input.len()) & (self.at + 8 <= self.output.len())
    }

    /// Decodes up to four entries of literals, or up to three and a match.
    ///
    /// # Safety
    ///
    /// [`Lane::has_room`].
    #[allow(unsafe_code, reason = "see `one`")]
    #[inline(always)]
    unsafe fn step(&mut self, machine: impl Machine, tables: &Tables) -> Option<Stop> {
        // SAFETY: the caller ensures it, here and for all unchecked accesses below.
        unsafe { self.refill() };
        let entry = tables.litlen_entry(self.bits.bits);
        // SAFETY: see above.
        unsafe { self.put_literals(entry) };
        let mut entry = tables.litlen_entry(self.bits.bits);
        if entry & LITERAL != 0 {
            // SAFETY: see above.
            unsafe { self.put_literals(entry) };
            entry = tables.litlen_entry(self.bits.bits);
            if entry & LITERAL != 0 {
                // SAFETY: see above.
                unsafe { self.put_literals(entry) };
                entry = tables.litlen_entry(self.bits.bits);
                if entry & LITERAL != 0 {
                    // SAFETY: see above.
                    unsafe { self.put_literals(entry) };
                    return None;
                }
            }
            // SAFETY: see above.
            unsafe { self.refill() };
        } else if !tables.fits_after_one() {
            // SAFETY: see above.
            unsafe { self.refill() };
        }
        // Now there are at least 56 bits, and a match takes at most 48.
        if entry & SPECIAL != 0 {
            if entry & LINK != 0 {
                entry = tables.litlen_second(entry, self.bits.bits);
            }
            if entry & LITERAL != 0 {
                // SAFETY: see above.
                unsafe { self.put_literals(entry) };
                return None;
            }
            if entry & SPECIAL != 0 {
                if entry & END == 0 {
                    return Some(Stop::Invalid);
                }
                self.drop(entry >> 8);
                return Some(Stop::End);
            }
        }
        let symbol = Extended::length(entry);
        let length = MIN_MATCH + machine.value(symbol, self.bits.bits);
        self.drop(symbol.0);

        let mut entry = tables.distance_entry(self.bits.bits);
        if entry & NO_DISTANCE != 0 {
            if entry & LINK != 0 {
                entry = tables.distance_second(entry, self.bits.bits);
            }
            if entry & NO_DISTANCE != 0 {
                return Some(Stop::Invalid);
            }
        }
        let symbol = Extended::distance(entry);
        let distance = machine.value(symbol, self.bits.bits);
        self.drop(symbol.0);

        let at = self.at;
        if distance > at || at + length + COPY_SLACK > self.output.len() {
            return Some(Stop::Match { length, distance });
        }
        // SAFETY: the distance stays within the output, and the output has COPY_SLACK bytes after
        // the match.
        unsafe { machine.copy(self.output, at, length, distance) };
        self.at = at + length;
        None
    }

    /// Makes at least 56 bits available.
    ///
    /// # Safety
    ///
    /// At least eight bytes of input follow.
    #[allow(unsafe_code, reason = "see `one`")]
    #[inline(always)]
    unsafe fn refill(&mut self) {
        let Bits {
            input,
            next,
            bits,
            count,
        } = &mut self.bits;
        // SAFETY: the caller ensures it.
        let word = u64::from_le_bytes(unsafe { get(input, *next) });
        *bits |= word << (*count & 63);
        *next += (7 - (*count >> 3 & 7)) as usize;
        *count |= 56;
    }

    /// Drops bits, as many as the lowest six bits of `count` say. The count's upper bits become
    /// meaningless.
    #[inline(always)]
    fn drop(&mut self, count: u32) {
        self.bits.bits >>= count & 63;
        self.bits.count = self.bits.count.wrapping_sub(count);
    }

    /// Takes an entry's literals, if it has some.
    ///
    /// # Safety
    ///
    /// The output has at least two more bytes.
    #[allow(unsafe_code, reason = "see `one`")]
    #[inline(always)]
    unsafe fn put_literals(&mut self, entry: Entry) {
        // SAFETY: the caller ensures it. Bytes that are no literals are overwritten later.
        unsafe { put(self.output, self.at, ((entry >> 8) as u16).to_le_bytes()) };
        self.at += literals(entry);
        self.drop(entry);
    }

    /// Decodes symbols to the end of the block, with checks.
    fn tokens(&mut self, tables: &Tables, history: &[u8]) -> Result<(), InflateError> {
        while !self.token(tables, history)? {}
        Ok(())
    }

    /// Decodes a symbol, with checks; returns true at the end of the block.
    fn token(&mut self, tables: &Tables, history: &[u8]) -> Result<bool, InflateError> {
        self.bits.refill();
        let mut entry = tables.litlen_entry(self.bits.bits);
        if entry & (LITERAL | SPECIAL | LINK) == SPECIAL | LINK {
            entry = tables.litlen_second(entry, self.bits.bits);
        }
        let bits = self.bits.bits;
        // A block continues after a literal. Input that ends within a pair of literals would be
        // truncated anyway; the same holds for the output.
        let symbol = Extended::length(entry);
        let dropped = if entry & LITERAL != 0 {
            literal_bits(entry)
        } else if entry & (SPECIAL | END) == SPECIAL {
            return Err(InflateError(InflateFault::InvalidSymbol));
        } else {
            symbol.bits()
        };
        if !self.bits.drop(dropped) {
            return Err(self.truncated());
        }
        if entry & LITERAL != 0 {
            let count = literals(entry);
            let literals = [(entry >> 8) as u8, (entry >> 16) as u8];
            let Some(target) = self.output.get_mut(self.at..self.at + count) else {
                return Err(self.too_long());
            };
            target.copy_from_slice(&literals[..count]);
            self.at += count;
            return Ok(false);
        }
        if entry & SPECIAL != 0 {
            return Ok(true);
        }
        let length = MIN_MATCH + symbol.value(symbol.low_bits(bits));

        self.bits.refill();
        let mut entry = tables.distance_entry(self.bits.bits);
        if entry & (NO_DISTANCE | LINK) == NO_DISTANCE | LINK {
            entry = tables.distance_second(entry, self.bits.bits);
        }
        if entry & NO_DISTANCE != 0 {
            return Err(InflateError(InflateFault::InvalidSymbol));
        }
        let (symbol, bits) = (Extended::distance(entry), self.bits.bits);
        if !self.bits.drop(symbol.bits()) {
            return Err(self.truncated());
        }
        self.copy(length, symbol.value(symbol.low_bits(bits)), history)?;
        Ok(false)
    }

    /// Copies a match, with checks. `history` is the data before the output, the nearest last.
    pub(super) fn copy(
        &mut self,
        length: usize,
        distance: usize,
        history: &[u8],
    ) -> Result<(), InflateError> {
        if length > self.output.len() - self.at {
            return Err(self.too_long());
        }
        let end = self.at + length;
        if let Some(before) = distance.checked_sub(self.at).filter(|&before| before > 0) {
            let Some(start) = history.len().checked_sub(before) else {
                return Err(InflateError(InflateFault::DistanceTooFar {
                    found_bytes: distance,
                    available_bytes: history.len() + self.at,
                }));
            };
            let count = before.min(length);
            self.output[self.at..self.at + count].copy_from_slice(&history[start..start + count]);
            self.at += count;
        }
        if self.at < end {
            // The copied bytes repeat, so each step can copy twice as many.
            let start = self.at - distance;
            while self.at < end {
                let count = (end - self.at).min(self.at - start);
                self.output.copy_within(start..start + count, self.at);
                self.at += count;
            }
        }
        Ok(())
    }

    #[cold]
    pub(super) fn truncated(&self) -> InflateError {
        InflateError(InflateFault::Truncated {
            found_bytes: self.at,
            expected_bytes: self.output.len(),
        })
    }

    #[cold]
    pub(super) fn too_long(&self) -> InflateError {
        InflateError(InflateFault::TooLong {
            expected_bytes: self.output.len(),
        })
    }

    /// Decodes the symbols of a block to its end.
    pub(super) fn rest(&mut self, tables: &Tables, history: &[u8]) -> Result<(), InflateError> {
        loop {
            let stop = self.fast(tables);
            if self.settle(stop, tables, history)? {
                return Ok(());
            }
        }
    }

    /// Deals with the reason why a loop stopped. Returns true at the end of the block; otherwise
    /// the loop can go on.
    pub(super) fn settle(
        &mut self,
        stop: Stop,
        tables: &Tables,
        history: &[u8],
    ) -> Result<bool, InflateError> {
        match stop {
            Stop::End => Ok(true),
            Stop::Invalid => Err(InflateError(InflateFault::InvalidSymbol)),
            Stop::Match { length, distance } => {
                self.copy(length, distance, history)?;
                Ok(false)
            }
            Stop::Near => {
                if !self.last_bytes(tables, history) {
                    self.tokens(tables, history)?;
                }
                Ok(true)
            }
        }
    }

    /// Goes on over the last bytes of the input by the fast loop, as if zeros followed them.
    /// Returns true at the end of the block. If anything is wrong there, the lane stays where it
    /// was, and decoding symbol by symbol finds the error.
    pub(super) fn last_bytes(&mut self, tables: &Tables, history: &[u8]) -> bool {
        let Some(rest) = self.bits.input.get(self.bits.next..) else {
            return false;
        };
        if rest.len() >= TAIL {
            return false;
        }
        let mut padded = [0; 4 * TAIL];
        padded[..rest.len()].copy_from_slice(rest);
        let start = self.at;
        let mut lane = Lane {
            bits: Bits {
                input: &padded,
                next: 0,
                ..self.bits
            },
            output: std::mem::take(&mut self.output),
            at: start,
        };
        let ended = loop {
            match lane.fast(tables) {
                Stop::Near => break lane.tokens(tables, history).is_ok(),
                stop => match lane.settle(stop, tables, history) {
                    Ok(false) => {}
                    outcome => break outcome.is_ok(),
                },
            }
        };
        let Lane { bits, output, at } = lane;
        self.output = output;
        // Bits of the zeros that were loaded. They must not have been used.
        let surplus = 8 * bits.next.saturating_sub(rest.len()) as u32;
        let Some(count) = bits.count.checked_sub(surplus).filter(|_| ended) else {
            return false;
        };
        self.at = at;
        self.bits.next += bits.next.min(rest.len());
        self.bits.bits = bits.bits;
        self.bits.count = count;
        true
    }
}

/// The fast loop leaves fewer bytes of input than this.
const TAIL: usize = 16;
/// A fast copy writes at most this many bytes after its end.
const COPY_SLACK: usize = 32;

/// # Safety
///
/// At least `N` bytes follow from `at` on.
#[allow(unsafe_code, reason = "see `one`")]
#[inline(always)]
unsafe fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    debug_assert!(at + N <= bytes.len());
    // SAFETY: the caller ensures it.
    let first = unsafe { bytes.as_ptr().add(at) };
    // SAFETY: these bytes are readable, and byte arrays have no alignment.
    unsafe { first.cast::<[u8; N]>().read() }
}

/// # Safety
///
/// The same as for [`get`].
#[allow(unsafe_code, reason = "see `one`")]
#[inline(always)]
unsafe fn put<const N: usize>(bytes: &mut [u8], at: usize, chunk: [u8; N]) {
    debug_assert!(at + N <= bytes.len());
    // SAFETY: the caller ensures it.
    let first = unsafe { bytes.as_mut_ptr().add(at) };
    // SAFETY: these bytes are writable, and byte arrays have no alignment.
    unsafe { first.cast::<[u8; N]>().write(chunk) };
}

/// Operations for which some machines have better instructions. A value proves that the machine has
/// them.
pub(super) trait Machine: Copy {
    /// Copies whole words, and therefore up to `COPY_SLACK` bytes more than `length`.
    ///
    /// # Safety
    ///
    /// `distance` is 1 to `at`, and the output has `at + length + COPY_SLACK` bytes.
    #[allow(unsafe_code, reason = "see `one`")]
    unsafe fn copy(self, output: &mut [u8], at: usize, length: usize, distance: usize);

    /// The value of a symbol and the next bits.
    #[inline(always)]
    fn value(self, symbol: Extended, bits: u64) -> usize {
        symbol.value(symbol.low_bits(bits))
    }
}

/// Any machine. Matches are copied by words.
#[derive(Clone, Copy)]
pub(super) struct Words;

impl Machine for Words {
    #[allow(unsafe_code, reason = "see `one`")]
    #[inline(always)]
    unsafe fn copy(self, output: &mut [u8], at: usize, length: usize, distance: usize) {
        let end = at + length;
        let mut target = at;
        let mut source = at - distance;
        // Each step begins before the end and writes at most COPY_SLACK bytes. It reads before the
        // bytes that it writes.
        if distance >= 16 {
            // SAFETY: see above.
            unsafe { copy_far(output, target, source, end) };
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
            // SAFETY: see above. The bytes after the pattern are masked off.
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
}

/// Copies steps of 32 bytes from `source`, at least 16 bytes before `target`, until `end`.
///
/// # Safety
///
/// The output has `COPY_SLACK` bytes after `end`, and 32 after `target`.
#[allow(unsafe_code, reason = "see `one`")]
#[inline(always)]
unsafe fn copy_far(output: &mut [u8], mut target: usize, mut source: usize, end: usize) {
    loop {
        // SAFETY: the caller ensures it. The first half is written before the second is read, as
        // they may overlap.
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
}

/// For a distance below 8: the factor that repeats this many bytes through a word, and the bytes of
/// the word in whole periods.
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

#[cfg(target_arch = "x86_64")]
use shuffles::Shuffles;

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions which not every machine has"
)]
mod shuffles {
    use super::{Extended, Machine, copy_far, get, put};
    use std::arch::x86_64::{__m128i, _bzhi_u64, _mm_shuffle_epi8};

    /// An x86-64 with BMI2 and SSSE3. The first 16 bytes of a match take no branch, which would
    /// depend on the distance and be hard to predict.
    #[derive(Clone, Copy)]
    pub(super) struct Shuffles(());

    impl Shuffles {
        pub(super) fn detect() -> Option<Self> {
            let both = is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("ssse3");
            both.then_some(Self(()))
        }
    }

    impl Machine for Shuffles {
        #[inline(always)]
        unsafe fn copy(self, output: &mut [u8], at: usize, length: usize, distance: usize) {
            let source = at - distance;
            let class = distance.min(16);
            // SAFETY: the output has these bytes.
            let bytes = unsafe { get(output, source) };
            // SAFETY: `self` proves SSSE3.
            let first = unsafe { shuffle(bytes, REPEAT[class]) };
            // SAFETY: the output has COPY_SLACK bytes from here on.
            unsafe { put(output, at, first) };
            if length <= 16 {
                return;
            }
            let end = at + length;
            if distance >= 16 {
                // SAFETY: the output has 16 bytes after the match, and COPY_SLACK.
                unsafe { copy_far(output, at + 16, source + 16, end) };
                return;
            }
            let step = usize::from(PERIODS[class]);
            let mut target = at + step;
            while target < end {
                // SAFETY: it begins before the end and writes fewer than COPY_SLACK bytes.
                unsafe { put(output, target, first) };
                target += step;
            }
        }

        #[inline(always)]
        fn value(self, symbol: Extended, bits: u64) -> usize {
            // SAFETY: `self` proves BMI2. The instruction takes the number from the lowest byte.
            symbol.value(unsafe { _bzhi_u64(bits, symbol.0) })
        }
    }

    /// # Safety
    ///
    /// The machine has SSSE3.
    #[inline(always)]
    unsafe fn shuffle(bytes: [u8; 16], order: [u8; 16]) -> [u8; 16] {
        // SAFETY: arrays of 16 bytes are vectors, and any bytes are valid.
        let [bytes, order] =
            unsafe { std::mem::transmute::<[[u8; 16]; 2], [__m128i; 2]>([bytes, order]) };
        // SAFETY: the caller has SSSE3.
        let shuffled = unsafe { _mm_shuffle_epi8(bytes, order) };
        // SAFETY: as above.
        unsafe { std::mem::transmute::<__m128i, [u8; 16]>(shuffled) }
    }

    /// For a distance up to 15: where each of 16 bytes comes from. For 16 and more: itself.
    static REPEAT: [[u8; 16]; 17] = {
        let mut repeat = [[0; 16]; 17];
        let mut distance = 1;
        while distance <= 16 {
            let mut at = 0;
            while at < 16 {
                repeat[distance][at] = (at % distance) as u8;
                at += 1;
            }
            distance += 1;
        }
        repeat
    };

    /// The part of 16 bytes in whole periods.
    static PERIODS: [u8; 17] = {
        let mut periods = [16; 17];
        let mut distance = 1;
        while distance <= 16 {
            periods[distance] = (16 - 16 % distance) as u8;
            distance += 1;
        }
        periods
    };
}
