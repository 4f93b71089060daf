//! A strict judge of deflate pieces: would hardware that knows nothing but this piece read it?
//!
//! Intel's IAA decompresses a piece with a window of 4 KiB and no history from before the piece.
//! [`Oracle`] decodes a piece token by token, as simply as possible and sharing no code with the
//! fast decoder, and refuses whatever such a device, or any strict decoder of RFC 1951, would
//! refuse. It is meant for tests and diagnosis, not for speed.

use crate::rfc1951::{
    DISTANCE_BASE, DISTANCE_EXTRA, DISTANCE_SYMBOLS, DYNAMIC, END_OF_BLOCK, FIXED,
    FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS, LENGTH_BASE, LENGTH_EXTRA, LITLEN_SYMBOLS,
    MAX_CODE_BITS, MAX_PRECODE_BITS, MAX_WINDOW, PRECODE_ORDER, PRECODE_SYMBOLS, STORED,
};

/// The rules a piece is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oracle {
    window_bytes: usize,
    ending: Ending,
}

/// How a piece must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its only block marked as final, in the last byte: a complete raw deflate stream.
    FinalBlock,
    /// With an empty stored block, on a byte boundary, and no final block before it: what
    /// `Z_SYNC_FLUSH` leaves.
    SyncFlush,
}

/// A piece that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What the piece decompresses to.
    pub output: Vec<u8>,
    /// What it is made of.
    pub tokens: Tokens,
}

/// What a piece is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Bytes that are coded as themselves, not counting stored blocks.
    pub literals: usize,
    /// Copies of earlier bytes.
    pub matches: usize,
    /// Bytes that come from those copies.
    pub matched_bytes: usize,
    /// The longest distance of any copy, in bytes; 0 without copies.
    pub farthest_bytes: usize,
    /// Blocks of uncompressed bytes.
    pub stored_blocks: usize,
    /// Blocks under the format's fixed code.
    pub fixed_blocks: usize,
    /// Blocks that bring their own code.
    pub dynamic_blocks: usize,
}

/// Why a piece is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The input ends inside a block, or before the ending that is asked for.
    #[error("the piece ends early, after {found_bytes} bytes of output")]
    Truncated {
        /// Output so far.
        found_bytes: usize,
    },
    /// Bytes follow the final block.
    #[error("{found_bytes} bytes follow the final block")]
    TrailingData {
        /// How many.
        found_bytes: usize,
    },
    /// A run that others continue holds a final block.
    #[error("a final block inside a run of blocks")]
    UnexpectedFinalBlock,
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
    /// More literal/length codes than the format has.
    #[error("{found} literal/length codes, at most 286 allowed")]
    TooManyLiteralCodes {
        /// How many are described.
        found: usize,
    },
    /// More distance codes than the format has.
    #[error("{found} distance codes, at most 30 allowed")]
    TooManyDistanceCodes {
        /// How many are described.
        found: usize,
    },
    /// A code description in which codes collide.
    #[error("oversubscribed {code} code")]
    Oversubscribed {
        /// Which code.
        code: Code,
    },
    /// A code description which leaves bit patterns without meaning.
    #[error("incomplete {code} code")]
    Incomplete {
        /// Which code.
        code: Code,
    },
    /// A description starts with "repeat the previous length".
    #[error("the first code length repeats a previous one")]
    RepeatWithoutPrevious,
    /// A repeat runs over the end of the description.
    #[error("a repeated code length overruns the description")]
    RepeatOverrun,
    /// A block that cannot end.
    #[error("no code for the end of the block")]
    NoEndOfBlock,
    /// A bit pattern or a symbol without meaning.
    #[error("invalid {code} symbol")]
    InvalidSymbol {
        /// Which code it should have been from.
        code: Code,
    },
    /// A copy reaches farther than the window.
    #[error("distance {found_bytes} exceeds the window of {window_bytes} bytes")]
    DistanceBeyondWindow {
        /// The distance.
        found_bytes: usize,
        /// The window.
        window_bytes: usize,
    },
    /// A copy reaches back to before the piece.
    #[error("distance {found_bytes} with only {produced_bytes} bytes of output before it")]
    DistanceBeforeStart {
        /// The distance.
        found_bytes: usize,
        /// What the piece had produced until then.
        produced_bytes: usize,
    },
    /// The piece decompresses to another size than it should.
    #[error("output of {found_bytes} bytes or more where {expected_bytes} are expected")]
    OutputSize {
        /// Output when the difference became clear.
        found_bytes: usize,
        /// What was asked for.
        expected_bytes: usize,
    },
}

/// The codes of a dynamic block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The code in which the lengths of the two others are written.
    Lengths,
    /// Literals, match lengths and the end of the block.
    LiteralLength,
    /// Match distances.
    Distance,
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Code::Lengths => "code length",
            Code::LiteralLength => "literal/length",
            Code::Distance => "distance",
        })
    }
}

impl Oracle {
    /// What IAA reads as one job: a complete stream within a window of 4 KiB.
    pub const IAA: Oracle = Oracle::new(4096, Ending::FinalBlock);

    /// Rules with a window of `window_bytes`, which the format limits to 32 KiB.
    pub const fn new(window_bytes: usize, ending: Ending) -> Self {
        let window_bytes = if window_bytes > MAX_WINDOW {
            MAX_WINDOW
        } else {
            window_bytes
        };
        Self {
            window_bytes,
            ending,
        }
    }

    /// Decodes `piece`, which must follow the rules and give exactly `output_bytes`.
    pub fn decode(&self, piece: &[u8], output_bytes: usize) -> Result<Decoded, Violation> {
        let mut judge = Judge::new(piece, self.window_bytes, output_bytes);
        match self.ending {
            Ending::FinalBlock => while !judge.block()?.is_final {},
            Ending::SyncFlush => judge.run()?,
        }
        judge.finish()
    }
}

struct Block {
    is_final: bool,
    is_empty_stored: bool,
}

/// The state of one decision.
struct Judge<'a> {
    input: &'a [u8],
    /// Position in bits.
    position: usize,
    window_bytes: usize,
    output_bytes: usize,
    output: Vec<u8>,
    tokens: Tokens,
}

impl<'a> Judge<'a> {
    fn new(input: &'a [u8], window_bytes: usize, output_bytes: usize) -> Self {
        Self {
            input,
            position: 0,
            window_bytes,
            output_bytes,
            output: Vec::new(),
            tokens: Tokens::default(),
        }
    }

    fn run(&mut self) -> Result<(), Violation> {
        loop {
            let block = self.block()?;
            if block.is_final {
                return Err(Violation::UnexpectedFinalBlock);
            }
            if block.is_empty_stored && self.position == self.input.len() * 8 {
                return Ok(());
            }
        }
    }

    fn finish(self) -> Result<Decoded, Violation> {
        let trailing = self.input.len() - self.position.div_ceil(8);
        if trailing > 0 {
            return Err(Violation::TrailingData {
                found_bytes: trailing,
            });
        }
        if self.output.len() != self.output_bytes {
            return Err(self.wrong_size());
        }
        Ok(Decoded {
            output: self.output,
            tokens: self.tokens,
        })
    }

    fn block(&mut self) -> Result<Block, Violation> {
        let is_final = self.bits(1)? == 1;
        let mut is_empty_stored = false;
        match self.bits(2)? {
            STORED => {
                self.tokens.stored_blocks += 1;
                is_empty_stored = self.stored()? == 0;
            }
            FIXED => {
                self.tokens.fixed_blocks += 1;
                let literals = Canonical::new(&FIXED_LITLEN_LENGTHS, Code::LiteralLength)?;
                let distances = Canonical::new(&FIXED_DISTANCE_LENGTHS, Code::Distance)?;
                self.compressed(&literals, &distances)?;
            }
            DYNAMIC => {
                self.tokens.dynamic_blocks += 1;
                let (literals, distances) = self.description()?;
                self.compressed(&literals, &distances)?;
            }
            _ => return Err(Violation::ReservedBlockType),
        }
        Ok(Block {
            is_final,
            is_empty_stored,
        })
    }

    /// Returns the block's length.
    fn stored(&mut self) -> Result<usize, Violation> {
        self.position = self.position.next_multiple_of(8);
        let len = self.bits(16)? as u16;
        let complement = self.bits(16)? as u16;
        if len != !complement {
            return Err(Violation::StoredLength { len, complement });
        }
        for _ in 0..len {
            let byte = self.bits(8)? as u8;
            self.emit(byte)?;
        }
        Ok(usize::from(len))
    }

    fn description(&mut self) -> Result<(Canonical, Canonical), Violation> {
        let literals = self.bits(5)? as usize + 257;
        let distances = self.bits(5)? as usize + 1;
        let described = self.bits(4)? as usize + 4;
        if literals > LITLEN_SYMBOLS {
            return Err(Violation::TooManyLiteralCodes { found: literals });
        }
        if distances > DISTANCE_SYMBOLS {
            return Err(Violation::TooManyDistanceCodes { found: distances });
        }
        let mut lengths = [0; PRECODE_SYMBOLS];
        for &symbol in PRECODE_ORDER.iter().take(described) {
            lengths[usize::from(symbol)] = self.bits(3)? as u8;
        }
        debug_assert!(
            lengths
                .iter()
                .all(|&length| usize::from(length) <= MAX_PRECODE_BITS)
        );
        let precode = Canonical::new(&lengths, Code::Lengths)?;

        let mut lengths: Vec<u8> = Vec::with_capacity(literals + distances);
        while lengths.len() < literals + distances {
            let (value, count) = match self.symbol(&precode)? {
                16 => {
                    let &previous = lengths.last().ok_or(Violation::RepeatWithoutPrevious)?;
                    (previous, 3 + self.bits(2)?)
                }
                17 => (0, 3 + self.bits(3)?),
                18 => (0, 11 + self.bits(7)?),
                length => (length as u8, 1),
            };
            lengths.extend(std::iter::repeat_n(value, count as usize));
        }
        if lengths.len() > literals + distances {
            return Err(Violation::RepeatOverrun);
        }
        let (literal_lengths, distance_lengths) = lengths.split_at(literals);
        if literal_lengths[END_OF_BLOCK] == 0 {
            return Err(Violation::NoEndOfBlock);
        }
        Ok((
            Canonical::new(literal_lengths, Code::LiteralLength)?,
            Canonical::new(distance_lengths, Code::Distance)?,
        ))
    }

    fn compressed(&mut self, literals: &Canonical, distances: &Canonical) -> Result<(), Violation> {
        loop {
            let symbol = self.symbol(literals)?;
            if symbol == END_OF_BLOCK {
                return Ok(());
            }
            if let Ok(byte) = u8::try_from(symbol) {
                self.tokens.literals += 1;
                self.emit(byte)?;
                continue;
            }
            let index = symbol - END_OF_BLOCK - 1;
            let (Some(&base), Some(&extra)) = (LENGTH_BASE.get(index), LENGTH_EXTRA.get(index))
            else {
                return Err(Violation::InvalidSymbol {
                    code: Code::LiteralLength,
                });
            };
            let length = usize::from(base) + self.bits(extra)? as usize;

            let index = self.symbol(distances)?;
            let (Some(&base), Some(&extra)) = (DISTANCE_BASE.get(index), DISTANCE_EXTRA.get(index))
            else {
                return Err(Violation::InvalidSymbol {
                    code: Code::Distance,
                });
            };
            let distance = usize::from(base) + self.bits(extra)? as usize;
            self.copy(length, distance)?;
        }
    }

    fn copy(&mut self, length: usize, distance: usize) -> Result<(), Violation> {
        if distance > self.window_bytes {
            return Err(Violation::DistanceBeyondWindow {
                found_bytes: distance,
                window_bytes: self.window_bytes,
            });
        }
        let Some(start) = self.output.len().checked_sub(distance) else {
            return Err(Violation::DistanceBeforeStart {
                found_bytes: distance,
                produced_bytes: self.output.len(),
            });
        };
        self.tokens.matches += 1;
        self.tokens.matched_bytes += length;
        self.tokens.farthest_bytes = self.tokens.farthest_bytes.max(distance);
        for source in start..start + length {
            self.emit(self.output[source])?;
        }
        Ok(())
    }

    fn emit(&mut self, byte: u8) -> Result<(), Violation> {
        self.output.push(byte);
        if self.output.len() > self.output_bytes {
            return Err(self.wrong_size());
        }
        Ok(())
    }

    fn wrong_size(&self) -> Violation {
        Violation::OutputSize {
            found_bytes: self.output.len(),
            expected_bytes: self.output_bytes,
        }
    }

    fn symbol(&mut self, code: &Canonical) -> Result<usize, Violation> {
        let (mut value, mut first, mut index) = (0, 0, 0);
        for &count in &code.counts[1..] {
            value |= self.bits(1)? as usize;
            if value < first + count {
                return Ok(usize::from(code.symbols[index + value - first]));
            }
            index += count;
            first = (first + count) << 1;
            value <<= 1;
        }
        Err(Violation::InvalidSymbol { code: code.name })
    }

    /// The next `count` bits, at most 16, the first of them lowest.
    fn bits(&mut self, count: u8) -> Result<u32, Violation> {
        let mut value = 0;
        for bit in 0..count {
            let Some(&byte) = self.input.get(self.position / 8) else {
                return Err(Violation::Truncated {
                    found_bytes: self.output.len(),
                });
            };
            value |= u32::from(byte >> (self.position % 8) & 1) << bit;
            self.position += 1;
        }
        Ok(value)
    }
}

/// A canonical prefix code: how many symbols each length has, and the symbols in the order of their
/// codes.
struct Canonical {
    counts: [usize; MAX_CODE_BITS + 1],
    symbols: Vec<u16>,
    name: Code,
}

impl Canonical {
    fn new(lengths: &[u8], name: Code) -> Result<Self, Violation> {
        let mut counts = [0; MAX_CODE_BITS + 1];
        for &length in lengths {
            counts[usize::from(length)] += 1;
        }
        counts[0] = 0;
        let mut free = 1_usize;
        for &count in &counts[1..] {
            free = (free * 2)
                .checked_sub(count)
                .ok_or(Violation::Oversubscribed { code: name })?;
        }
        let used: usize = counts.iter().sum();
        // RFC 1951 section 3.2.7: a block may do without distances, or have one, coded in one bit.
        let lone_distance = name == Code::Distance && (used == 0 || (used == 1 && counts[1] == 1));
        if free > 0 && !lone_distance {
            return Err(Violation::Incomplete { code: name });
        }
        let mut symbols: Vec<u16> = (0_u16..)
            .zip(lengths)
            .filter(|&(_, &l)| l > 0)
            .map(|(symbol, _)| symbol)
            .collect();
        symbols.sort_by_key(|&symbol| lengths[usize::from(symbol)]);
        Ok(Self {
            counts,
            symbols,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `03 00`: one final empty fixed block.
    #[test]
    fn empty_final_block() {
        let decoded = Oracle::IAA.decode(&[0x03, 0x00], 0).unwrap();
        assert!(decoded.output.is_empty());
        assert_eq!(
            decoded.tokens,
            Tokens {
                fixed_blocks: 1,
                ..Tokens::default()
            }
        );
        assert_eq!(
            Oracle::IAA.decode(&[0x03, 0x00, 0x00], 0),
            Err(Violation::TrailingData { found_bytes: 1 })
        );
        assert_eq!(
            Oracle::IAA.decode(&[0x03], 0),
            Err(Violation::Truncated { found_bytes: 0 })
        );
        assert_eq!(
            Oracle::IAA.decode(&[], 0),
            Err(Violation::Truncated { found_bytes: 0 })
        );
    }

    #[test]
    fn sync_flush_is_the_other_ending() {
        let run = Oracle::new(4096, Ending::SyncFlush);
        let flushed = [
            0x00, 0x01, 0x00, 0xfe, 0xff, b'x', 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        assert_eq!(run.decode(&flushed, 1).unwrap().output, b"x");
        assert_eq!(
            run.decode(&flushed[..6], 1),
            Err(Violation::Truncated { found_bytes: 1 })
        );
        assert_eq!(
            run.decode(&[0x03, 0x00], 0),
            Err(Violation::UnexpectedFinalBlock)
        );
        assert_eq!(
            Oracle::IAA.decode(&flushed, 1),
            Err(Violation::Truncated { found_bytes: 1 })
        );
    }

    #[test]
    fn output_size_is_exact() {
        let stored = [0x01, 0x02, 0x00, 0xfd, 0xff, b'x', b'y'];
        assert_eq!(Oracle::IAA.decode(&stored, 2).unwrap().output, b"xy");
        let wrong = |found_bytes, expected_bytes| {
            Err(Violation::OutputSize {
                found_bytes,
                expected_bytes,
            })
        };
        assert_eq!(Oracle::IAA.decode(&stored, 1), wrong(2, 1));
        assert_eq!(Oracle::IAA.decode(&stored, 3), wrong(2, 3));
    }

    #[test]
    fn block_headers() {
        assert_eq!(
            Oracle::IAA.decode(&[0x07], 0),
            Err(Violation::ReservedBlockType)
        );
        assert_eq!(
            Oracle::IAA.decode(&[0x01, 0x01, 0x00, 0xff, 0xff], 0),
            Err(Violation::StoredLength {
                len: 1,
                complement: 0xffff
            })
        );
    }

    /// A fixed block: literal 'a' and a match of three bytes at the given distance symbol and extra
    /// bits.
    fn one_match(distance_symbol: u32, extra: u64, extra_bits: u32) -> Vec<u8> {
        let mut bits = 0_u64;
        let mut count = 0;
        let mut put = |value: u64, len: u32| {
            bits |= value << count;
            count += len;
        };
        put(0b011, 3);
        put(u64::from((0x30 + u32::from(b'a')).reverse_bits() >> 24), 8);
        put(u64::from(1_u32.reverse_bits() >> 25), 7);
        put(u64::from(distance_symbol.reverse_bits() >> 27), 5);
        put(extra, extra_bits);
        put(0, 7);
        bits.to_le_bytes()[..count.div_ceil(8) as usize].to_vec()
    }

    #[test]
    fn distances_stay_inside_the_piece_and_the_window() {
        let decoded = Oracle::IAA.decode(&one_match(0, 0, 0), 4).unwrap();
        assert_eq!(decoded.output, b"aaaa");
        assert_eq!(decoded.tokens.farthest_bytes, 1);
        assert_eq!(
            Oracle::IAA.decode(&one_match(1, 0, 0), 4),
            Err(Violation::DistanceBeforeStart {
                found_bytes: 2,
                produced_bytes: 1
            })
        );
        assert_eq!(
            Oracle::IAA.decode(&one_match(24, 0, 11), 4),
            Err(Violation::DistanceBeyondWindow {
                found_bytes: 4097,
                window_bytes: 4096
            })
        );
        assert_eq!(
            Oracle::IAA.decode(&one_match(30, 0, 0), 4),
            Err(Violation::InvalidSymbol {
                code: Code::Distance
            })
        );
    }

    #[test]
    fn codes_are_exactly_full() {
        let code = |lengths: &[u8], name| Canonical::new(lengths, name).err();
        assert_eq!(code(&[1, 1], Code::LiteralLength), None);
        assert_eq!(code(&[1, 2, 2], Code::LiteralLength), None);
        let incomplete = |code| Some(Violation::Incomplete { code });
        assert_eq!(
            code(&[1, 2], Code::LiteralLength),
            incomplete(Code::LiteralLength)
        );
        assert_eq!(
            code(&[1], Code::LiteralLength),
            incomplete(Code::LiteralLength)
        );
        assert_eq!(code(&[], Code::Lengths), incomplete(Code::Lengths));
        assert_eq!(
            code(&[1, 1, 1], Code::Lengths),
            Some(Violation::Oversubscribed {
                code: Code::Lengths
            })
        );
        assert_eq!(code(&[], Code::Distance), None);
        assert_eq!(code(&[0, 1], Code::Distance), None);
        assert_eq!(code(&[2], Code::Distance), incomplete(Code::Distance));
    }
}
