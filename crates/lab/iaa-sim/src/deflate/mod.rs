//! Deflate (RFC 1951) as implemented by the device, with a window of 4096 bytes.

mod decode;
mod encode;
mod tokens;

pub(crate) use decode::{
    CodeLengths, End, EndRules, FIXED_DISTANCES, FIXED_LITERAL_LENGTHS, Start, decode,
};
pub(crate) use encode::{Codes, encode};
pub(crate) use tokens::{Histogram, tokenize};

use tokens::Token;

/// The longest distance of a match.
const WINDOW: usize = 4096;

/// Literals, end of block, match lengths.
const LITERAL_LENGTHS: usize = 286;
/// Distances. In a window of 4096 the device needs the first 24.
const DISTANCES: usize = 30;
/// The symbol that ends a block.
const END_OF_BLOCK: usize = 256;
/// The longest match.
const MAX_MATCH: usize = 258;

/// An error of a stream or a table, with the error byte of the completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Error {
    /// An undefined code-length code.
    UndefinedCodeLengthCode = 2,
    /// The repetition of a length before the first literal/length code.
    FirstLiteralLengthRepeats = 3,
    /// The repetition of a length before the first distance code.
    FirstDistanceRepeats = 4,
    /// No literal/length code.
    NoLiteralLengthCode = 5,
    /// More literal/length codes than announced.
    WrongNumberOfLiteralLengths = 6,
    /// More distance codes than announced.
    WrongNumberOfDistances = 7,
    /// Over-subscribed code-length codes.
    BadCodeLengthCodes = 8,
    /// Over-subscribed literal/length codes.
    BadLiteralLengthCodes = 9,
    /// Over-subscribed distance codes.
    BadDistanceCodes = 10,
    /// An undefined literal/length code.
    BadLiteralLength = 11,
    /// An undefined distance code.
    BadDistanceCode = 12,
    /// A block of type 3.
    BlockType = 13,
    /// A stored block whose length and complement disagree.
    StoredLength = 14,
    /// The input does not end where required.
    EndOfInput = 15,
    /// A distance beyond the window.
    BadDistance = 17,
    /// A distance that reaches before the start of the output.
    BeforeStart = 18,
    /// The AECS is invalid.
    Aecs = 22,
    /// The output of a compression does not fit.
    OutputOverflow = 25,
    /// A symbol without a code in the table.
    InvalidHuffmanCode = 30,
    /// More than 286 literal/length codes.
    TooManyLiteralLengths = 35,
    /// More than 30 distance codes.
    TooManyDistances = 36,
}

/// Smallest value and number of extra bits of each length symbol from 257 on (RFC 1951, 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// Smallest value and number of extra bits of each distance symbol (RFC 1951, 3.2.5).
const DISTANCE_RANGES: [(u16, u8); DISTANCES] = {
    let mut ranges = [(0, 0); DISTANCES];
    let mut symbol = 0;
    let mut start = 1_u16;
    while symbol < DISTANCES {
        let extra = if symbol < 4 { 0 } else { symbol / 2 - 1 };
        ranges[symbol] = (start, extra as u8);
        start = start.wrapping_add(1 << extra);
        symbol += 1;
    }
    ranges
};

/// The symbol within `ranges` for `value`.
fn symbol_of(ranges: &[(u16, u8)], value: u16) -> usize {
    ranges.partition_point(|(start, _)| *start <= value) - 1
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::Compression;
    use flate2::read::{DeflateDecoder, DeflateEncoder};

    use super::*;

    /// Words that repeat within the window and at all its distances.
    fn sample() -> Vec<u8> {
        let words = (0..900_u32).map(|n| n * n % 211);
        words
            .flat_map(|n| format!("key{n}=").into_bytes())
            .take(4096)
            .collect()
    }

    fn read(packed: &[u8]) -> Result<Vec<u8>, Error> {
        let rules = EndRules {
            stop: true,
            check: true,
            only_final: true,
        };
        decode(packed, 0, Start::Header, rules, usize::MAX).map(|decoded| decoded.output)
    }

    #[test]
    fn what_zlib_writes_is_read() {
        let sample = sample();
        for level in [0, 1, 6, 9] {
            let mut packed = Vec::new();
            let mut encoder = DeflateEncoder::new(&*sample, Compression::new(level));
            encoder.read_to_end(&mut packed).unwrap();
            assert_eq!(read(&packed).as_ref(), Ok(&sample), "level {level}");
            assert_eq!(
                read(&packed[..packed.len() - 1]),
                Err(Error::EndOfInput),
                "level {level}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_by_zlib() {
        // The fixed codes (RFC 1951, 3.2.6) in the form of the AECS.
        let code = |length: u32, code: u32| length << 15 | code;
        let literal_lengths = (0..288).map(|symbol| match symbol {
            0..144 => code(8, 0x30 + symbol),
            144..256 => code(9, 0x190 + symbol - 144),
            256..280 => code(7, symbol - 256),
            _ => code(8, 0xc0 + symbol - 280),
        });
        let words = literal_lengths.chain((0..32).map(|symbol| code(5, symbol)));
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let codes = Codes::from_bytes(bytes.first_chunk().unwrap());

        let tokens = tokenize(&sample(), false);
        assert!(tokens.len() < sample().len() / 2);
        let packed = encode(&[0b011], 3, &codes, &tokens, true).unwrap();
        let mut unpacked = Vec::new();
        DeflateDecoder::new(&*packed.bytes)
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, sample());
        assert_eq!(read(&packed.bytes), Ok(sample()));
    }

    #[test]
    fn ranges_are_those_of_the_rfc() {
        assert_eq!(DISTANCE_RANGES[23], (3073, 10));
        assert_eq!(DISTANCE_RANGES[29], (24577, 13));
        assert_eq!(symbol_of(&LENGTHS, 3), 0);
        assert_eq!(symbol_of(&LENGTHS, 257), 27);
        assert_eq!(symbol_of(&LENGTHS, 258), 28);
        assert_eq!(symbol_of(&DISTANCE_RANGES, 1), 0);
        assert_eq!(symbol_of(&DISTANCE_RANGES, 4096), 23);
    }
}
