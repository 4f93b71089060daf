//! Encodes tokens to bits, with given codes.

use super::{DISTANCES, END_OF_BLOCK, Error, LITERAL_LENGTHS, Token};

/// The Huffman codes of a block, in the form of the AECS.
pub(crate) struct Codes {
    literal_lengths: [Code; LITERAL_LENGTHS],
    distances: [Code; DISTANCES],
}

#[derive(Clone, Copy)]
struct Code {
    /// Least significant bit first, as in the stream.
    bits: u32,
    /// 0 for a symbol without a code.
    len: u8,
}

impl Codes {
    /// Reads 1280 bytes laid out like a histogram. Bits 0 to 14 of each word are the code, most
    /// significant bit first, bits 15 to 18 its length.
    pub(crate) fn from_bytes(bytes: &[u8; 1280]) -> Codes {
        let code = |index: usize| {
            let word = std::array::from_fn(|byte| bytes[4 * index + byte]);
            let word = u32::from_le_bytes(word);
            let len = (word >> 15) & 0xf;
            Code {
                bits: ((word & 0x7fff).reverse_bits() >> 1) >> (31 - len),
                len: len as u8,
            }
        };
        Codes {
            literal_lengths: std::array::from_fn(code),
            distances: std::array::from_fn(|symbol| code(LITERAL_LENGTHS + 2 + symbol)),
        }
    }
}

/// The stream, complete or partial.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Whole bytes, the last one filled with zeros.
    pub(crate) bytes: Vec<u8>,
    /// Bits used in the last byte, 0 for all.
    pub(crate) last_bits: u8,
}

/// Writes `head_bits` bits of `head`, the tokens, and an end of block if required.
///
/// # Errors
///
/// [`Error::InvalidHuffmanCode`] for a symbol without a code.
pub(crate) fn encode(
    head: &[u8],
    head_bits: usize,
    codes: &Codes,
    tokens: &[Token],
    end_of_block: bool,
) -> Result<Encoded, Error> {
    let mut writer = Writer::new(head, head_bits);
    for token in tokens {
        let (symbol, extra, extra_bits) = token.literal_length();
        writer.code(codes.literal_lengths[symbol])?;
        writer.bits(u32::from(extra), extra_bits);
        if let Some((symbol, extra, extra_bits)) = token.distance() {
            writer.code(codes.distances[symbol])?;
            writer.bits(u32::from(extra), extra_bits);
        }
    }
    if end_of_block {
        writer.code(codes.literal_lengths[END_OF_BLOCK])?;
    }
    Ok(writer.finish())
}

struct Writer {
    bytes: Vec<u8>,
    /// Bits that do not fill a byte yet, least significant first.
    rest: u64,
    rest_bits: u8,
}

impl Writer {
    fn new(head: &[u8], head_bits: usize) -> Writer {
        let mut writer = Writer {
            bytes: Vec::new(),
            rest: 0,
            rest_bits: 0,
        };
        for (index, byte) in head.iter().enumerate() {
            let bits = head_bits.saturating_sub(8 * index).min(8) as u8;
            writer.bits(u32::from(*byte) & ((1 << bits) - 1), bits);
        }
        writer
    }

    fn code(&mut self, code: Code) -> Result<(), Error> {
        if code.len == 0 {
            return Err(Error::InvalidHuffmanCode);
        }
        self.bits(code.bits, code.len);
        Ok(())
    }

    fn bits(&mut self, bits: u32, count: u8) {
        self.rest |= u64::from(bits) << self.rest_bits;
        self.rest_bits += count;
        while self.rest_bits >= 8 {
            self.bytes.push(self.rest as u8);
            self.rest >>= 8;
            self.rest_bits -= 8;
        }
    }

    fn finish(mut self) -> Encoded {
        let last_bits = self.rest_bits;
        if last_bits > 0 {
            self.bytes.push(self.rest as u8);
        }
        Encoded {
            bytes: self.bytes,
            last_bits,
        }
    }
}
