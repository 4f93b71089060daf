//! Decodes bits to bytes, and refuses everything that the device refuses.

use super::{
    DISTANCE_RANGES, DISTANCES, END_OF_BLOCK, Error, LENGTHS, LITERAL_LENGTHS, MAX_MATCH, WINDOW,
};

/// The start of the input.
pub(crate) enum Start {
    /// With the header of a block.
    Header,
    /// With the first token of a block that has these codes.
    Body(Box<CodeLengths>),
}

/// The rules for the end of the input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndRules {
    /// The work stops after a block.
    pub(crate) stop: bool,
    /// The input has to end with a block.
    pub(crate) check: bool,
    /// Both apply to the final block only.
    pub(crate) only_final: bool,
}

/// The output, and the input consumed.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// Not longer than the limit.
    pub(crate) output: Vec<u8>,
    /// Bytes of input consumed, the last one perhaps in part.
    pub(crate) bytes_used: usize,
    /// Why decoding ended.
    pub(crate) end: End,
}

/// Why decoding ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The block to stop after has ended, or the input has.
    Done,
    /// The input ended in a block with these codes.
    InBlock(Box<CodeLengths>),
    /// The output exceeds the limit.
    OutputFull,
}

/// The lengths of a block's codes, which define the codes (RFC 1951, 3.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CodeLengths {
    pub(crate) literal_lengths: [u8; FIXED_LITERAL_LENGTHS],
    pub(crate) distances: [u8; FIXED_DISTANCES],
}

/// The fixed literal/length code has two codes more than there are symbols.
pub(crate) const FIXED_LITERAL_LENGTHS: usize = 288;
/// The fixed distance code has two codes more than there are symbols.
pub(crate) const FIXED_DISTANCES: usize = 32;

/// Decodes `input` without its last `ignored_bits` bits.
///
/// # Errors
///
/// The [`Error`] with which the device refuses the stream.
pub(crate) fn decode(
    input: &[u8],
    ignored_bits: usize,
    start: Start,
    rules: EndRules,
    limit: usize,
) -> Result<Decoded, Error> {
    let mut decoder = Decoder {
        reader: Reader {
            input,
            position: 0,
            end: (8 * input.len()).saturating_sub(ignored_bits),
        },
        output: Vec::new(),
        limit,
    };
    let stop = decoder.run(start, rules);
    let end = match stop {
        Stop::Block => End::Done,
        Stop::OutputFull => End::OutputFull,
        Stop::InputEnd {
            at_demanded_end, ..
        } if rules.check && !at_demanded_end => {
            return Err(Error::EndOfInput);
        }
        Stop::InputEnd { codes, .. } => codes.map_or(End::Done, End::InBlock),
        Stop::Refused(error) => return Err(error),
    };
    Ok(Decoded {
        bytes_used: decoder.reader.position.div_ceil(8),
        output: decoder.output,
        end,
    })
}

struct Decoder<'a> {
    reader: Reader<'a>,
    output: Vec<u8>,
    limit: usize,
}

enum Stop {
    /// A block ended, and the rules say to stop.
    Block,
    /// The input ended.
    InputEnd {
        /// The last thing read was an end of block of the required kind.
        at_demanded_end: bool,
        /// The codes of the unfinished block.
        codes: Option<Box<CodeLengths>>,
    },
    OutputFull,
    Refused(Error),
}

/// Why a part of the stream could not be read.
enum Cut {
    /// The input ended within it.
    InputEnd,
    OutputFull,
    Refused(Error),
}

impl From<Error> for Cut {
    fn from(error: Error) -> Cut {
        Cut::Refused(error)
    }
}

enum Body {
    Stored,
    Coded(Box<CodeLengths>),
}

impl Decoder<'_> {
    fn run(&mut self, start: Start, rules: EndRules) -> Stop {
        let mut at_demanded_end = false;
        let mut given = match start {
            Start::Header => None,
            Start::Body(lengths) => Some((false, Body::Coded(lengths))),
        };
        loop {
            let header = match given.take() {
                Some(header) => Ok(header),
                None => self.header(),
            };
            let (is_final, body) = match header {
                Ok(header) => header,
                Err(Cut::InputEnd) => {
                    return Stop::InputEnd {
                        at_demanded_end,
                        codes: None,
                    };
                }
                Err(Cut::OutputFull) => return Stop::OutputFull,
                Err(Cut::Refused(error)) => return Stop::Refused(error),
            };
            let ended = match &body {
                Body::Stored => self.stored(),
                Body::Coded(lengths) => self.coded(lengths),
            };
            match ended {
                Ok(()) => {}
                Err(Cut::InputEnd) => {
                    return Stop::InputEnd {
                        at_demanded_end: false,
                        codes: match body {
                            Body::Stored => None,
                            Body::Coded(lengths) => Some(lengths),
                        },
                    };
                }
                Err(Cut::OutputFull) => return Stop::OutputFull,
                Err(Cut::Refused(error)) => return Stop::Refused(error),
            }
            let demanded = is_final || !rules.only_final;
            if rules.stop && demanded {
                return Stop::Block;
            }
            at_demanded_end = demanded;
        }
    }

    fn header(&mut self) -> Result<(bool, Body), Cut> {
        // The rest of the last byte may look like the start of a header.
        if self.reader.left() < 8 && self.reader.rest_is_zero() {
            self.reader.position = self.reader.end;
            return Err(Cut::InputEnd);
        }
        let is_final = self.reader.bits(1)? == 1;
        let body = match self.reader.bits(2)? {
            0 => Body::Stored,
            1 => Body::Coded(Box::new(CodeLengths::fixed())),
            2 => Body::Coded(Box::new(self.dynamic_header()?)),
            _ => return Err(Error::BlockType.into()),
        };
        Ok((is_final, body))
    }

    fn dynamic_header(&mut self) -> Result<CodeLengths, Cut> {
        let literal_lengths = 257 + self.reader.bits(5)? as usize;
        let distances = 1 + self.reader.bits(5)? as usize;
        let code_lengths = 4 + self.reader.bits(4)? as usize;
        if literal_lengths > LITERAL_LENGTHS {
            return Err(Error::TooManyLiteralLengths.into());
        }
        if distances > DISTANCES {
            return Err(Error::TooManyDistances.into());
        }
        let mut lengths = [0; CODE_LENGTH_ORDER.len()];
        for symbol in CODE_LENGTH_ORDER.iter().take(code_lengths) {
            lengths[*symbol] = self.reader.bits(3)? as u8;
        }
        let decoder = Prefix::new(&lengths).ok_or(Error::BadCodeLengthCodes)?;

        let mut all = Vec::with_capacity(literal_lengths + distances);
        while all.len() < literal_lengths + distances {
            let in_distances = all.len() >= literal_lengths;
            let symbol = decoder.symbol(&mut self.reader)?;
            let (value, count) = match symbol.ok_or(Error::UndefinedCodeLengthCode)? {
                16 => {
                    // The device keeps literal/lengths and distances apart: the first code of
                    // either has no previous one to repeat.
                    let first = all.len() == literal_lengths || all.is_empty();
                    let last = *all.last().filter(|_| !first).ok_or(if in_distances {
                        Error::FirstDistanceRepeats
                    } else {
                        Error::FirstLiteralLengthRepeats
                    })?;
                    (last, 3 + self.reader.bits(2)? as usize)
                }
                17 => (0, 3 + self.reader.bits(3)? as usize),
                18 => (0, 11 + self.reader.bits(7)? as usize),
                length => (length as u8, 1),
            };
            all.resize(all.len() + count, value);
            if !in_distances && all.len() > literal_lengths {
                return Err(Error::WrongNumberOfLiteralLengths.into());
            }
        }
        if all.len() > literal_lengths + distances {
            return Err(Error::WrongNumberOfDistances.into());
        }
        let mut lengths = CodeLengths {
            literal_lengths: [0; FIXED_LITERAL_LENGTHS],
            distances: [0; FIXED_DISTANCES],
        };
        let (first, second) = all.split_at(literal_lengths);
        lengths.literal_lengths[..first.len()].copy_from_slice(first);
        lengths.distances[..second.len()].copy_from_slice(second);
        if first.iter().all(|length| *length == 0) {
            return Err(Error::NoLiteralLengthCode.into());
        }
        lengths.prefixes()?;
        Ok(lengths)
    }

    fn stored(&mut self) -> Result<(), Cut> {
        self.reader.align();
        let len = self.reader.bits(16)?;
        let complement = self.reader.bits(16)?;
        if len ^ complement != 0xffff {
            return Err(Error::StoredLength.into());
        }
        for _ in 0..len {
            let byte = self.reader.bits(8)? as u8;
            self.push(byte)?;
        }
        Ok(())
    }

    fn coded(&mut self, lengths: &CodeLengths) -> Result<(), Cut> {
        let (literal_lengths, distances) = lengths.prefixes()?;
        loop {
            let symbol = literal_lengths
                .symbol(&mut self.reader)?
                .ok_or(Error::BadLiteralLength)?;
            match symbol {
                END_OF_BLOCK => return Ok(()),
                literal if literal < END_OF_BLOCK => self.push(literal as u8)?,
                _ => {
                    let range = LENGTHS.get(symbol - END_OF_BLOCK - 1);
                    let (start, extra) = *range.ok_or(Error::BadLiteralLength)?;
                    let len = usize::from(start) + self.reader.bits(extra)? as usize;
                    let symbol = distances
                        .symbol(&mut self.reader)?
                        .ok_or(Error::BadDistanceCode)?;
                    let range = DISTANCE_RANGES.get(symbol);
                    let (start, extra) = *range.ok_or(Error::BadDistanceCode)?;
                    let distance = usize::from(start) + self.reader.bits(extra)? as usize;
                    self.copy(len.min(MAX_MATCH), distance)?;
                }
            }
        }
    }

    fn copy(&mut self, len: usize, distance: usize) -> Result<(), Cut> {
        if distance > WINDOW {
            return Err(Error::BadDistance.into());
        }
        let from = self.output.len().checked_sub(distance);
        let from = from.ok_or(Error::BeforeStart)?;
        for index in from..from + len {
            self.push(self.output[index])?;
        }
        Ok(())
    }

    fn push(&mut self, byte: u8) -> Result<(), Cut> {
        if self.output.len() == self.limit {
            return Err(Cut::OutputFull);
        }
        self.output.push(byte);
        Ok(())
    }
}

struct Reader<'a> {
    input: &'a [u8],
    /// Position in bits.
    position: usize,
    /// End in bits.
    end: usize,
}

impl Reader<'_> {
    fn left(&self) -> usize {
        self.end - self.position
    }

    fn bits(&mut self, count: u8) -> Result<u32, Cut> {
        if self.left() < usize::from(count) {
            self.position = self.end;
            return Err(Cut::InputEnd);
        }
        let mut value = 0;
        for index in 0..count {
            value |= self.peek(usize::from(index)) << index;
        }
        self.position += usize::from(count);
        Ok(value)
    }

    fn rest_is_zero(&self) -> bool {
        (0..self.left()).all(|index| self.peek(index) == 0)
    }

    fn align(&mut self) {
        self.position = self.position.next_multiple_of(8).min(self.end);
    }

    fn peek(&self, ahead: usize) -> u32 {
        let position = self.position + ahead;
        u32::from(self.input[position / 8] >> (position % 8)) & 1
    }
}

/// A prefix code, read bit by bit: its length and its index among the codes of that length identify
/// a code.
struct Prefix {
    /// The number of codes of each length.
    counts: [usize; 16],
    /// Symbols by length, then by value.
    symbols: Vec<usize>,
}

impl Prefix {
    /// Returns `None` for over-subscribed lengths.
    fn new(lengths: &[u8]) -> Option<Prefix> {
        let mut counts = [0; 16];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        let mut free = 1_usize;
        for count in &counts[1..] {
            free = (2 * free).checked_sub(*count)?;
        }
        let mut symbols: Vec<usize> = (0..lengths.len())
            .filter(|symbol| lengths[*symbol] != 0)
            .collect();
        symbols.sort_by_key(|symbol| lengths[*symbol]);
        Some(Prefix { counts, symbols })
    }

    /// Returns `None` for an undefined code.
    fn symbol(&self, reader: &mut Reader<'_>) -> Result<Option<usize>, Cut> {
        let mut code = 0;
        let mut first = 0;
        let mut before = 0;
        for count in &self.counts[1..] {
            code |= reader.bits(1)? as usize;
            if code < first + count {
                return Ok(self.symbols.get(before + code - first).copied());
            }
            before += count;
            first = 2 * (first + count);
            code *= 2;
        }
        Ok(None)
    }
}

impl CodeLengths {
    /// The lengths of a block with fixed codes (RFC 1951, 3.2.6).
    fn fixed() -> CodeLengths {
        CodeLengths {
            literal_lengths: std::array::from_fn(|symbol| match symbol {
                144..256 => 9,
                256..280 => 7,
                _ => 8,
            }),
            distances: [5; FIXED_DISTANCES],
        }
    }

    fn prefixes(&self) -> Result<(Prefix, Prefix), Error> {
        let literal_lengths = Prefix::new(&self.literal_lengths);
        let distances = Prefix::new(&self.distances);
        Ok((
            literal_lengths.ok_or(Error::BadLiteralLengthCodes)?,
            distances.ok_or(Error::BadDistanceCodes)?,
        ))
    }
}

/// The order of the code-length codes' lengths in a dynamic header (RFC 1951, 3.2.7).
const CODE_LENGTH_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
