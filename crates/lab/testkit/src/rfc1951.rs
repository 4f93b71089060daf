//! Numbers of the deflate format (RFC 1951), for the judge. The encoders and decoders under test
//! have tables of their own, so that a mistake in one of them shows.

/// Symbols a literal/length code may describe; 286 and 287 exist in the fixed code but never mean
/// anything.
pub(super) const LITLEN_SYMBOLS: usize = 286;
/// Symbols a distance code may describe; 30 and 31 exist in the fixed code but never mean anything.
pub(super) const DISTANCE_SYMBOLS: usize = 30;
/// Symbols of the code that describes the other two codes.
pub(super) const PRECODE_SYMBOLS: usize = 19;
/// Longest code of a literal/length or distance symbol, in bits.
pub(super) const MAX_CODE_BITS: usize = 15;
/// Longest code of the code that describes the other two codes, in bits.
pub(super) const MAX_PRECODE_BITS: usize = 7;
/// The literal/length symbol that ends a block.
pub(super) const END_OF_BLOCK: usize = 256;
/// The farthest a match of any deflate stream may reach back.
pub(super) const MAX_WINDOW: usize = 32 * 1024;
/// Block types, the two bits after the final-block bit.
pub(super) const STORED: u32 = 0;
pub(super) const FIXED: u32 = 1;
pub(super) const DYNAMIC: u32 = 2;
/// Smallest match length of each length symbol, from 257 on.
pub(super) const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
/// Extra bits of each length symbol, from 257 on.
pub(super) const LENGTH_EXTRA: [u8; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];
/// Smallest distance of each distance symbol.
pub(super) const DISTANCE_BASE: [u16; DISTANCE_SYMBOLS] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
];
/// Extra bits of each distance symbol.
pub(super) const DISTANCE_EXTRA: [u8; DISTANCE_SYMBOLS] = [
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13,
    13,
];
/// The order in which a dynamic block's header lists the lengths of the describing code.
pub(super) const PRECODE_ORDER: [u8; PRECODE_SYMBOLS] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// Code lengths of the fixed literal/length code, with the two symbols that must not occur.
pub(super) const FIXED_LITLEN_LENGTHS: [u8; 288] = {
    let mut lengths = [8; 288];
    let mut symbol = 144;
    while symbol < 280 {
        lengths[symbol] = if symbol < 256 { 9 } else { 7 };
        symbol += 1;
    }
    lengths
};
/// Code lengths of the fixed distance code, with the two symbols that must not occur.
pub(super) const FIXED_DISTANCE_LENGTHS: [u8; 32] = [5; 32];
