//! The zero-page test.

/// Whether all bytes are zero.
///
/// Most pages that are not zero show it in their first bytes, so this returns at the first block
/// which is not; a page that is zero is read at the speed of memory.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    blocks.iter().all(|block| or_of(block) == 0) && or_of(rest) == 0
}

/// The compiler turns this into a few wide ORs without a branch, which is why a block is tested as
/// a whole.
fn or_of(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |or, byte| or | byte)
}

/// Large enough that the loop's one branch per block costs nothing next to the loads, small enough
/// to leave early.
const BLOCK_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_of_any_length() {
        for len in (0..600).chain([4096, 65536]) {
            assert!(is_zero(&vec![0; len]), "{len}");
        }
    }

    #[test]
    fn one_bit_anywhere_is_seen() {
        for len in [1, 255, 256, 257, 1000, 4096] {
            let mut bytes = vec![0; len];
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
