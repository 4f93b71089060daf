//! Turns items into bits.

use super::bits::{BitWriter, Burst};
use super::format::{
    DISTANCE_EXTRA, END_OF_BLOCK, FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS, LENGTH_BASE,
    LENGTH_EXTRA, MAX_MATCH, MIN_MATCH,
};
use super::huffman::codes;
use super::item::{self, Item};

/// Tables from items to bits.
///
/// | bits | |
/// | --- | --- |
/// | 0-4 | total number of bits, including those from the item |
/// | 5-8 | number of code bits, where extra bits come from the item |
/// | 9-31 | the bits |
pub(super) struct Coder {
    first: [u32; item::FIRST_CODES],
    second: [u32; item::SECOND_CODES],
    end_of_block: (u32, u32),
}

const COUNT_MASK: u32 = 31;
const CODE_BITS_SHIFT: u32 = 5;
const CODE_BITS_MASK: u32 = 15;
const BITS_SHIFT: u32 = 9;

impl Coder {
    /// Makes a coder for these code lengths.
    pub(super) fn new(litlen: &[u8], distance: &[u8]) -> Box<Self> {
        let mut coder = Box::new(Self {
            first: [0; item::FIRST_CODES],
            second: [0; item::SECOND_CODES],
            end_of_block: (0, 0),
        });
        coder.set(litlen, distance);
        coder
    }

    /// Changes to other codes. Symbols that the format reserves may be included; they get no code.
    pub(super) fn set(&mut self, litlen_bits: &[u8], distance_bits: &[u8]) {
        let entry = |bits: u32, code_bits: u8, count: u8| {
            bits << BITS_SHIFT | u32::from(code_bits) << CODE_BITS_SHIFT | u32::from(count)
        };
        let mut litlen = [0; FIXED_LITLEN_LENGTHS.len()];
        codes(litlen_bits, &mut litlen);
        let literals = litlen[..END_OF_BLOCK].iter().zip(litlen_bits);
        for (place, (&code, &length)) in self.first.iter_mut().zip(literals) {
            *place = entry(code.into(), length, length);
        }
        self.second[..END_OF_BLOCK].copy_from_slice(&self.first[..END_OF_BLOCK]);
        self.end_of_block = (
            litlen[END_OF_BLOCK].into(),
            litlen_bits[END_OF_BLOCK].into(),
        );
        let lengths = &mut self.first[item::LENGTHS..=item::LENGTHS + MAX_MATCH - MIN_MATCH];
        for (index, &base) in LENGTH_BASE.iter().enumerate() {
            let symbol = END_OF_BLOCK + 1 + index;
            let code_bits = litlen_bits[symbol];
            let first = entry(litlen[symbol].into(), 0, code_bits + LENGTH_EXTRA[index]);
            // The longest match belongs to its own symbol, not to the range of the one before.
            let end = LENGTH_BASE
                .get(index + 1)
                .map_or(MAX_MATCH + 1, |&next| next.into());
            let places = &mut lengths[usize::from(base) - MIN_MATCH..end - MIN_MATCH];
            for (extra, place) in (0_u32..).zip(places) {
                *place = first + (extra << code_bits << BITS_SHIFT);
            }
        }
        let mut distance = [0; FIXED_DISTANCE_LENGTHS.len()];
        codes(distance_bits, &mut distance);
        for (symbol, &extra_bits) in DISTANCE_EXTRA.iter().enumerate() {
            let length = distance_bits[symbol];
            self.second[item::DISTANCES + symbol] =
                entry(distance[symbol].into(), length, length + extra_bits);
        }
    }
}

/// Items per coding stage: enough to hide the latency of each item.
const CHUNK: usize = 128;
/// Most bytes of a coded chunk, at 48 bits an item.
const CHUNK_BYTES: usize = CHUNK * 6;
const _: () = assert!(CHUNK_BYTES < Burst::MOST_BYTES);

/// The coded size of some items.
pub(super) struct Measure {
    pub(super) bits: usize,
    pub(super) matches: usize,
    pub(super) literals: usize,
}

impl Coder {
    /// Measures these items under these codes.
    pub(super) fn measure(&self, items: &[Item]) -> Measure {
        let mut measure = Measure {
            bits: 0,
            matches: 0,
            literals: 0,
        };
        for &item in items {
            let (first, second) = (item::first(item), item::second(item));
            measure.bits += (self.first[first] & COUNT_MASK) as usize;
            measure.bits += (self.second[second] & COUNT_MASK) as usize;
            if first >= item::LENGTHS {
                measure.matches += 1;
            } else {
                measure.literals += if second == item::NONE { 1 } else { 2 };
            }
        }
        measure
    }

    /// Writes items and the end of the block.
    ///
    /// The stages are separate loops, so that each can be vectorised independently.
    #[inline(always)]
    pub(super) fn write(&self, items: &[Item], writer: &mut BitWriter<'_>) {
        let mut first = [0; CHUNK];
        let mut second = [0; CHUNK];
        let mut behind = [0; CHUNK];
        let mut bits_of_two = [0; CHUNK / 2];
        let mut count_of_two = [0; CHUNK / 2];
        let mut bytes = Burst::buffer();
        let mut burst = writer.begin();
        let mut chunks = items.chunks_exact(CHUNK);
        let mut last = [item::EMPTY; CHUNK];
        last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        let mut is_last = false;
        while !is_last {
            let items: &[Item; CHUNK] = match chunks.next().and_then(|chunk| chunk.try_into().ok())
            {
                Some(chunk) => chunk,
                None => {
                    is_last = true;
                    &last
                }
            };
            for i in 0..CHUNK {
                first[i] = self.first[item::first(items[i])];
                second[i] = self.second[item::second(items[i])];
            }
            for i in 0..CHUNK {
                let code_bits = second[i] >> CODE_BITS_SHIFT & CODE_BITS_MASK;
                behind[i] = second[i] >> BITS_SHIFT | item::extra(items[i]) << code_bits;
            }
            for i in 0..CHUNK / 2 {
                let (bits_a, count_a) = join(first[2 * i], second[2 * i], behind[2 * i]);
                let (bits_b, count_b) =
                    join(first[2 * i + 1], second[2 * i + 1], behind[2 * i + 1]);
                bits_of_two[i] = bits_a | bits_b << (count_a & 63);
                count_of_two[i] = count_a + count_b;
            }
            // Hardly any chunk has such long items side by side. One test for the chunk is cheaper
            // than one for every pair.
            if count_of_two.iter().copied().fold(0, u32::max) <= Burst::MOST_BITS {
                for (&bits, &count) in bits_of_two.iter().zip(&count_of_two) {
                    burst = burst.put(bits, count, &mut bytes);
                }
            } else {
                for i in 0..CHUNK {
                    let (bits, count) = join(first[i], second[i], behind[i]);
                    burst = burst.put(bits, count, &mut bytes);
                }
            }
            if burst.len() > Burst::MOST_BYTES - CHUNK_BYTES || is_last {
                burst = writer.take(burst, &bytes);
            }
        }
        writer.put(self.end_of_block.0, self.end_of_block.1);
    }
}

/// The bits of an item and their number, at most 48.
#[inline(always)]
fn join(first: u32, second: u32, behind: u32) -> (u64, u32) {
    let count = first & COUNT_MASK;
    (
        u64::from(first >> BITS_SHIFT) | u64::from(behind) << count,
        count + (second & COUNT_MASK),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{Counts, Tally};
    use crate::format::{DISTANCE_BASE, MAX_WINDOW};
    use crate::inflate::inflate_body;
    use crate::lane::{Lane, Words, one};
    use crate::lengths::Lengths;
    use crate::table::{Tables, Use};

    /// Every pair of literals, and every length at the first and last distance of each symbol; only
    /// some of them under Miri.
    fn every_item() -> (Vec<Item>, Vec<u8>) {
        let step = if cfg!(miri) { 509 } else { 1 };
        let (mut items, mut bytes) = (Vec::new(), Vec::new());
        for pair in (0..=u16::MAX).step_by(step) {
            let [a, b] = pair.to_le_bytes();
            items.push(item::two_literals(a, b));
            bytes.extend([a, b]);
            if pair % 7 == 0 {
                items.push(item::literal(b));
                bytes.push(b);
            }
        }
        for length in (MIN_MATCH..=MAX_MATCH).step_by(step) {
            let ends = DISTANCE_BASE[1..].iter().map(|&base| usize::from(base));
            for (&base, end) in DISTANCE_BASE.iter().zip(ends.chain([MAX_WINDOW + 1])) {
                for distance in [base.into(), end - 1] {
                    if distance > bytes.len() {
                        continue;
                    }
                    items.push(item::copy(length, distance));
                    let start = bytes.len() - distance;
                    (start..start + length).for_each(|at| bytes.push(bytes[at]));
                }
            }
        }
        (items, bytes)
    }

    /// Writes the items and decodes them again.
    fn check(items: &[Item], bytes: &[u8], litlen: &[u8], distance: &[u8]) {
        let coder = Coder::new(litlen, distance);
        let mut body = Vec::new();
        let mut writer = BitWriter::new(&mut body);
        coder.write(items, &mut writer);
        writer.align();
        for usage in [Use::Pages, Use::Page] {
            let mut tables = Tables::new();
            tables.build(litlen, distance, usage).unwrap();
            let mut decoded = vec![0; bytes.len()];
            inflate_body(&tables, &body, &mut decoded).unwrap();
            assert!(decoded == bytes);
            // The loop for any machine, which this one may not use otherwise.
            decoded.fill(0);
            let mut lane = Lane::new(&body, &mut decoded);
            loop {
                let stop = one(Words, &mut lane, &tables);
                if lane.settle(stop, &tables, &[]).unwrap() {
                    break;
                }
            }
            assert!(decoded == bytes);
        }
    }

    #[test]
    fn every_item_is_read_as_it_was_written() {
        let (items, bytes) = every_item();
        check(
            &items,
            &bytes,
            &FIXED_LITLEN_LENGTHS,
            &FIXED_DISTANCE_LENGTHS,
        );

        let mut counts = Counts::one_each();
        let mut tally = Tally::new();
        tally.count(&items);
        counts.add(&tally);
        let lengths = Lengths::new(&counts);
        check(&items, &bytes, &lengths.litlen, &lengths.distance);

        // The longest possible code for all but some literals and the nearest distances.
        let mut litlen = [15; 286];
        let mut distance = [15; 30];
        for (bits, symbol) in (1..).zip(0..6) {
            litlen[symbol] = bits;
        }
        litlen[6..6 + 232].fill(14);
        complete(&mut litlen, 15);
        for (bits, symbol) in (1..).zip(0..10) {
            distance[symbol] = bits;
        }
        complete(&mut distance, 15);
        check(&items, &bytes, &litlen, &distance);
    }

    /// Shortens the first of the longest codes until every bit pattern is used.
    fn complete(lengths: &mut [u8], most: u8) {
        let free = |lengths: &[u8]| {
            (1_usize << most)
                - lengths
                    .iter()
                    .map(|&bits| 1 << (most - bits))
                    .sum::<usize>()
        };
        for at in 0..lengths.len() {
            while free(lengths) >= 1 << (most - lengths[at]) {
                lengths[at] -= 1;
            }
        }
        assert_eq!(free(lengths), 0);
    }
}
