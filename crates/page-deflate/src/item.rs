//! What the parser makes of a unit and the coder writes: a list of items.
//!
//! An item is a match, two literals, or the last literal of an odd run. Every item becomes bits in
//! the same way, without a branch: two table look-ups and some shifts. That is what its layout is
//! for.
//!
//! | bits | |
//! | --- | --- |
//! | 0-9 | index of the first code: a literal or a length |
//! | 10-18 | index of the second code: a literal or a distance symbol, or none |
//! | 19-31 | extra bits of the distance |

use super::format::MIN_MATCH;

/// An item; see the module.
pub(super) type Item = u32;

/// Indexes of first codes: literals, and from here on lengths from 3 on.
pub(super) const FIRST_CODES: usize = 1024;
pub(super) const LENGTHS: usize = 256;
/// The first code of the item that is nothing.
pub(super) const NOTHING: usize = 1023;
/// Indexes of second codes: literals, and from here on distance symbols.
pub(super) const SECOND_CODES: usize = 512;
pub(super) const DISTANCES: usize = 256;
/// The second code of an item that has none.
pub(super) const NONE: usize = 511;

const SECOND_SHIFT: u32 = 10;
const EXTRA_SHIFT: u32 = 19;

/// An item without bits.
pub(super) const EMPTY: Item = (NONE << SECOND_SHIFT | NOTHING) as u32;

/// Most items a unit of `bytes` can become: a literal before every match of three bytes is two
/// items for four bytes.
pub(super) const fn most_items(bytes: usize) -> usize {
    bytes / 2 + 1
}

#[inline(always)]
pub(super) fn literal(byte: u8) -> Item {
    (NONE << SECOND_SHIFT) as u32 | u32::from(byte)
}

#[inline(always)]
pub(super) fn two_literals(first: u8, second: u8) -> Item {
    u32::from(second) << SECOND_SHIFT | u32::from(first)
}

/// A match of 3 to 258 bytes at a distance of 1 to 32768.
#[inline(always)]
pub(super) fn copy(length: usize, distance: usize) -> Item {
    // From 5 on, each power of two is cut into two distance symbols; up to 4, each distance is one.
    let below = distance as u32 - 1;
    let extra_bits = 30 - (below | 3).leading_zeros();
    let symbol = 2 * extra_bits + (below >> extra_bits);
    let extra = below & ((1 << extra_bits) - 1);
    (LENGTHS - MIN_MATCH + length) as u32
        + (DISTANCES << SECOND_SHIFT) as u32
        + (symbol << SECOND_SHIFT)
        + (extra << EXTRA_SHIFT)
}

/// The index of an item's first code.
#[inline(always)]
pub(super) fn first(item: Item) -> usize {
    item as usize % FIRST_CODES
}

/// The index of an item's second code.
#[inline(always)]
pub(super) fn second(item: Item) -> usize {
    (item >> SECOND_SHIFT) as usize % SECOND_CODES
}

/// An item's extra bits.
#[inline(always)]
pub(super) fn extra(item: Item) -> u32 {
    item >> EXTRA_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{DISTANCE_BASE, DISTANCE_EXTRA};

    #[test]
    fn distances_become_symbols_and_extra_bits() {
        for distance in 1..=32 * 1024 {
            let item = copy(258, distance);
            let symbol = second(item) - DISTANCES;
            assert_eq!(
                usize::from(DISTANCE_BASE[symbol]) + extra(item) as usize,
                distance
            );
            assert!(extra(item) < 1 << DISTANCE_EXTRA[symbol]);
            assert_eq!(first(item), LENGTHS + 255);
        }
    }

    #[test]
    fn lengths_and_literals_keep_apart() {
        const { assert!(LENGTHS + 258 - 3 < NOTHING && DISTANCES + 30 < NONE) };
        assert_eq!(first(copy(3, 1)), LENGTHS);
        for byte in 0..=255 {
            assert_eq!(
                (first(literal(byte)), second(literal(byte))),
                (byte.into(), NONE)
            );
            let pair = two_literals(byte, !byte);
            assert_eq!(
                (first(pair), second(pair)),
                (byte.into(), usize::from(!byte))
            );
        }
    }
}
