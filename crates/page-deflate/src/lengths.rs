//! The code of a block, as the lengths of its codes: made from counts, and described in the block's
//! header.

use super::bits::{BitWriter, Burst};
use super::coder::Coder;
use super::counts::Counts;
use super::format::{
    DISTANCE_SYMBOLS, DYNAMIC, END_OF_BLOCK, LITLEN_SYMBOLS, MAX_PRECODE_BITS, PRECODE_ORDER,
    PRECODE_SYMBOLS,
};
use super::huffman::{code_lengths, codes};
use super::table::{DISTANCE_BITS, LITLEN_BITS};

/// Code lengths in bits, 0 for symbols without a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) litlen: [u8; LITLEN_SYMBOLS],
    pub(super) distance: [u8; DISTANCE_SYMBOLS],
}

impl Lengths {
    /// Nearly the best lengths for these counts within what the decoder looks up at once.
    ///
    /// Symbols that do not count get no code, except that there are at least two.
    pub(super) fn new(counts: &Counts) -> Self {
        let mut lengths = Self {
            litlen: [0; LITLEN_SYMBOLS],
            distance: [0; DISTANCE_SYMBOLS],
        };
        code_lengths(&counts.litlen, LITLEN_BITS, &mut lengths.litlen);
        code_lengths(&counts.distance, DISTANCE_BITS, &mut lengths.distance);
        lengths
    }

    /// What writes items in this code.
    pub(super) fn coder(&self) -> Box<Coder> {
        Coder::new(&self.litlen, &self.distance)
    }

    /// Writes the header of a block with these codes (RFC 1951 section 3.2.7).
    pub(super) fn write_header(&self, is_final: bool, bits: &mut BitWriter<'_>) {
        let used = |lengths: &[u8], least: usize| {
            lengths
                .iter()
                .rposition(|&length| length > 0)
                .map_or(least, |last| least.max(last + 1))
        };
        let litlens = used(&self.litlen, END_OF_BLOCK + 1);
        let distances = used(&self.distance, 1);
        // The two codes apart: a device refuses a repetition that crosses from one to the other.
        let mut description = Description::new();
        for lengths in [&self.litlen[..litlens], &self.distance[..distances]] {
            for run in lengths.chunk_by(|a, b| a == b) {
                description.run(run[0], run.len());
            }
        }
        let mut lengths = [0; PRECODE_SYMBOLS];
        code_lengths(&description.counts, MAX_PRECODE_BITS, &mut lengths);
        let mut precode = [0; PRECODE_SYMBOLS];
        codes(&lengths, &mut precode);

        let order = PRECODE_ORDER.map(|symbol| lengths[usize::from(symbol)]);
        let listed = used(&order, 4);
        let mut bytes = Burst::buffer();
        let mut burst = bits.begin();
        let mut put = |bits: u32, count: u32| burst = burst.put(bits.into(), count, &mut bytes);
        put(u32::from(is_final) | DYNAMIC << 1, 3);
        put(litlens as u32 - 257, 5);
        put(distances as u32 - 1, 5);
        put(listed as u32 - 4, 4);
        for &length in &order[..listed] {
            put(length.into(), 3);
        }
        for &(symbol, repeat) in &description.symbols[..description.count] {
            let symbol = usize::from(symbol);
            let length = u32::from(lengths[symbol]);
            put(
                u32::from(precode[symbol]) | u32::from(repeat) << length,
                length + REPEAT_BITS[symbol],
            );
        }
        const { assert!((3 + 14 + 3 * PRECODE_SYMBOLS + 14 * SYMBOLS).div_ceil(8) < Burst::MOST_BYTES) };
        bits.take(burst, &bytes);
    }
}

/// How many bits say how often a symbol of the precode repeats a length.
const REPEAT_BITS: [u32; PRECODE_SYMBOLS] =
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 7];
/// Symbols with a length to describe.
const SYMBOLS: usize = LITLEN_SYMBOLS + DISTANCE_SYMBOLS;

/// Code lengths as the format describes them: symbols, some of which repeat a length.
struct Description {
    /// The symbols, and the bits that say how often they repeat.
    symbols: [(u8, u8); SYMBOLS],
    count: usize,
    counts: [u32; PRECODE_SYMBOLS],
}

impl Description {
    fn new() -> Self {
        Self {
            symbols: [(0, 0); SYMBOLS],
            count: 0,
            counts: [0; PRECODE_SYMBOLS],
        }
    }

    /// Describes the same length `count` times.
    fn run(&mut self, length: u8, mut count: usize) {
        if length == 0 {
            while count >= 11 {
                let zeros = count.min(138);
                self.push(18, zeros - 11);
                count -= zeros;
            }
            if count >= 3 {
                self.push(17, count - 3);
                count = 0;
            }
        } else if count >= 4 {
            self.push(length, 0);
            count -= 1;
            while count >= 3 {
                // Seven and eight are better cut in two than cut short.
                let repeats = if matches!(count, 7 | 8) {
                    count - 3
                } else {
                    count.min(6)
                };
                self.push(16, repeats - 3);
                count -= repeats;
            }
        }
        for _ in 0..count {
            self.push(length, 0);
        }
    }

    fn push(&mut self, symbol: u8, repeat: usize) {
        self.symbols[self.count] = (symbol, repeat as u8);
        self.count += 1;
        self.counts[usize::from(symbol)] += 1;
    }
}
