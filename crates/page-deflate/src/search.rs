//! Finds earlier occurrences of bytes: tables of hashes.

#![allow(
    unsafe_code,
    reason = "bounds checks in the parser's loops cost a tenth of the encoder's time"
)]

use super::window::{SLACK, SPAN, WindowBytes};

/// The bytes of a window, with unchecked reads.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a WindowBytes);

impl<'a> Bytes<'a> {
    /// # Safety
    ///
    /// `at` is at most `SPAN + SLACK - N`.
    #[inline(always)]
    pub(super) unsafe fn array<const N: usize>(self, at: usize) -> &'a [u8; N] {
        debug_assert!(at <= SPAN + SLACK - N);
        // SAFETY: the caller keeps the N bytes inside.
        let first = unsafe { self.0.as_ptr().add(at) };
        // SAFETY: these bytes live as long as the window, and byte arrays have no alignment.
        unsafe { &*first.cast() }
    }

    /// # Safety
    ///
    /// `at` is at most `SPAN + SLACK - 8`.
    #[inline(always)]
    pub(super) unsafe fn word(self, at: usize) -> u64 {
        // SAFETY: the caller ensures it.
        u64::from_le_bytes(*unsafe { self.array(at) })
    }

    /// The eight bytes at a position from a table.
    #[inline(always)]
    fn word_at(self, position: u16) -> u64 {
        // SAFETY: a 16-bit number is below `SPAN`.
        unsafe { self.word(position.into()) }
    }
}

/// A candidate: an earlier place that may have the bytes of the current position.
#[derive(Clone, Copy)]
pub(super) struct Find {
    /// Its position.
    pub(super) place: usize,
    /// The exclusive or of the next eight bytes here and there.
    pub(super) different: u64,
}

/// A mask of the first three of eight bytes.
const THREE: u32 = 0xff_ffff;

/// Returns whether the first three bytes are equal.
#[inline(always)]
pub(super) fn three_equal(different: u64) -> bool {
    different as u32 & THREE == 0
}

/// A way to find earlier places.
pub(super) trait Search {
    /// Whether to search for a longer match even if one of the two last distances already matches.
    const LONGEST: bool;
    /// Whether eight equal bytes elsewhere win over a shorter match at one of the two last
    /// distances.
    const WORDS: bool;
    /// After this many consecutive literals, every second position is skipped; after twice as many,
    /// two of three, and so on. The positions that the parser tests one by one are never skipped.
    /// The count is checked before each comparison of many bytes.
    const PATIENCE: usize;

    /// An empty memory.
    fn new() -> Self;

    /// Moves all positions down.
    fn slide(&mut self, by: usize);

    /// Looks the next bytes up and remembers their position. The result may lie before `lowest`,
    /// where matches must not reach.
    fn look(&mut self, bytes: Bytes<'_>, position: usize, word: u64, lowest: usize) -> Find;

    /// Only remembers the position of the next bytes.
    fn enter(&mut self, position: usize, word: u64);

    /// A mask of the first bytes that have to be equal in a match.
    const KEY: u32;
}

/// Skips no positions.
pub(super) const ALWAYS: usize = usize::MAX;

/// A table from the hash of some bytes to their latest position. `ENTRIES` is 2^BITS.
struct Table<const BITS: u32, const ENTRIES: usize> {
    positions: [u16; ENTRIES],
}

impl<const BITS: u32, const ENTRIES: usize> Table<BITS, ENTRIES> {
    const fn new() -> Self {
        assert!(ENTRIES == 1 << BITS);
        Self {
            positions: [0; ENTRIES],
        }
    }

    /// Positions below the new start become the lowest one: one more candidate that fails.
    fn slide(&mut self, by: usize) {
        let by = by.min(usize::from(u16::MAX)) as u16;
        for position in &mut self.positions {
            *position = position.saturating_sub(by);
        }
    }

    /// The entry of the first `BYTES` bytes of a word.
    #[inline(always)]
    fn entry<const BYTES: u32>(&mut self, word: u64) -> &mut u16 {
        // The shifted factor removes the excess bytes from the product.
        const FACTOR: u64 = 0x9e37_79b1_85eb_ca87;
        let hash = word.wrapping_mul(FACTOR << (64 - 8 * BYTES)) >> (64 - BITS);
        &mut self.positions[hash as usize % ENTRIES]
    }
}

/// One table of the places of the next `BYTES` bytes. Four bytes make a match.
///
/// 4096 entries fit in the first-level cache with the data. With the far window 8192 are worth it:
/// 1 % of size for 3 % of time.
pub(super) struct One<
    const BYTES: u32,
    const BITS: u32,
    const ENTRIES: usize,
    const PATIENCE: usize,
    const WORDS: bool,
> {
    table: Table<BITS, ENTRIES>,
}

impl<
    const BYTES: u32,
    const BITS: u32,
    const ENTRIES: usize,
    const PATIENCE: usize,
    const WORDS: bool,
> Search for One<BYTES, BITS, ENTRIES, PATIENCE, WORDS>
{
    const KEY: u32 = 0xffff_ffff;
    const LONGEST: bool = false;
    const WORDS: bool = WORDS;
    const PATIENCE: usize = PATIENCE;

    fn new() -> Self {
        Self {
            table: Table::new(),
        }
    }

    fn slide(&mut self, by: usize) {
        self.table.slide(by);
    }

    #[inline(always)]
    fn look(&mut self, bytes: Bytes<'_>, position: usize, word: u64, _: usize) -> Find {
        let seen = std::mem::replace(self.table.entry::<BYTES>(word), position as u16);
        Find {
            place: seen.into(),
            different: word ^ bytes.word_at(seen),
        }
    }

    #[inline(always)]
    fn enter(&mut self, position: usize, word: u64) {
        *self.table.entry::<BYTES>(word) = position as u16;
    }
}

/// Two tables: places of the next eight bytes, and near places of the next three.
pub(super) struct Two {
    long: Table<12, 4096>,
    near: Table<12, 4096>,
}

impl Two {
    /// At a greater distance, a three-byte match costs more than literals.
    const NEAR: usize = 4096;
}

impl Search for Two {
    const KEY: u32 = THREE;
    const LONGEST: bool = true;
    const WORDS: bool = false;
    const PATIENCE: usize = ALWAYS;

    fn new() -> Self {
        Self {
            long: Table::new(),
            near: Table::new(),
        }
    }

    fn slide(&mut self, by: usize) {
        self.long.slide(by);
        self.near.slide(by);
    }

    #[inline(always)]
    fn look(&mut self, bytes: Bytes<'_>, position: usize, word: u64, lowest: usize) -> Find {
        let find = |seen: u16| Find {
            place: seen.into(),
            different: word ^ bytes.word_at(seen),
        };
        let long = find(std::mem::replace(
            self.long.entry::<8>(word),
            position as u16,
        ));
        let near = find(std::mem::replace(
            self.near.entry::<3>(word),
            position as u16,
        ));
        if long.different == 0 && long.place >= lowest {
            long
        } else if near.place + Self::NEAR >= position {
            near
        } else {
            Find {
                place: 0,
                different: !0,
            }
        }
    }

    #[inline(always)]
    fn enter(&mut self, position: usize, word: u64) {
        *self.long.entry::<8>(word) = position as u16;
        *self.near.entry::<3>(word) = position as u16;
    }
}
