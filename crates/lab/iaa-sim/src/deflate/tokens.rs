//! Parses bytes to tokens, and counts symbols.

use super::{
    DISTANCE_RANGES, DISTANCES, END_OF_BLOCK, LENGTHS, LITERAL_LENGTHS, MAX_MATCH, WINDOW,
    symbol_of,
};

/// One step of the compressed stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A byte.
    Literal(u8),
    /// A copy of earlier bytes.
    Match {
        /// 3..=258.
        len: u16,
        /// 1..=4096.
        distance: u16,
    },
}

impl Token {
    /// The literal/length symbol, and for a match the value and width of its extra bits.
    pub(crate) fn literal_length(self) -> (usize, u16, u8) {
        match self {
            Token::Literal(byte) => (usize::from(byte), 0, 0),
            Token::Match { len, .. } => {
                let symbol = symbol_of(&LENGTHS, len);
                let (start, extra) = LENGTHS[symbol];
                (END_OF_BLOCK + 1 + symbol, len - start, extra)
            }
        }
    }

    /// The distance symbol of a match, and the value and width of its extra bits.
    pub(crate) fn distance(self) -> Option<(usize, u16, u8)> {
        let Token::Match { distance, .. } = self else {
            return None;
        };
        let symbol = symbol_of(&DISTANCE_RANGES, distance);
        let (start, extra) = DISTANCE_RANGES[symbol];
        Some((symbol, distance - start, extra))
    }
}

/// Takes the longest match at the last similar place, or else a literal.
///
/// Both passes of a dynamic compression give the same tokens, so the second needs no symbol that
/// the first has not counted.
pub(crate) fn tokenize(input: &[u8], literals_only: bool) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut last_seen = vec![None; 1 << HASH_BITS];
    let mut position = 0;
    while let Some(rest) = input.get(position..).filter(|rest| !rest.is_empty()) {
        let found = match rest.first_chunk::<MIN_MATCH>() {
            Some(start) if !literals_only => {
                let before = last_seen[hash(*start)].replace(position);
                before.and_then(|before| match_at(input, before, position))
            }
            _ => None,
        };
        let token = found.unwrap_or(Token::Literal(rest[0]));
        position += match token {
            Token::Literal(_) => 1,
            Token::Match { len, .. } => usize::from(len),
        };
        tokens.push(token);
    }
    tokens
}

fn match_at(input: &[u8], before: usize, position: usize) -> Option<Token> {
    let distance = position - before;
    if distance > WINDOW {
        return None;
    }
    let pairs = input[before..].iter().zip(&input[position..]);
    let len = pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count();
    (len >= MIN_MATCH).then_some(Token::Match {
        len: len as u16,
        distance: distance as u16,
    })
}

fn hash(bytes: [u8; MIN_MATCH]) -> usize {
    // Knuth's multiplicative hashing; the upper bits are well mixed.
    (u32::from_le_bytes(bytes).wrapping_mul(2_654_435_761) >> (32 - HASH_BITS)) as usize
}

/// Shorter matches cost about as much as they save.
const MIN_MATCH: usize = 4;
const HASH_BITS: u32 = 12;

/// The count of each symbol.
pub(crate) struct Histogram {
    literal_lengths: [u32; LITERAL_LENGTHS],
    distances: [u32; DISTANCES],
}

impl Histogram {
    /// Counts the tokens, and one end of block if one will follow.
    pub(crate) fn of(tokens: &[Token], end_of_block: bool) -> Histogram {
        let mut histogram = Histogram {
            literal_lengths: [0; LITERAL_LENGTHS],
            distances: [0; DISTANCES],
        };
        histogram.literal_lengths[END_OF_BLOCK] = u32::from(end_of_block);
        for token in tokens {
            histogram.literal_lengths[token.literal_length().0] += 1;
            if let Some((symbol, ..)) = token.distance() {
                histogram.distances[symbol] += 1;
            }
        }
        histogram
    }

    /// The device's format of 1280 bytes: each of the two counts is followed by two unused words.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let words = (self.literal_lengths.iter().chain(&[0; 2]))
            .chain(self.distances.iter().chain(&[0; 2]));
        words.flat_map(|word| word.to_le_bytes()).collect()
    }
}
