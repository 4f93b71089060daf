//! Where bytes were seen before: tables of hashes.

#![allow(
    unsafe_code,
    reason = "bounds checks in the parser's loops cost a tenth of the encoder's time"
)]

use super::window::{SLACK, SPAN, WindowBytes};

/// The bytes of a window, read without checks.
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
        // SAFETY: so they are there as long as the window, and arrays of bytes have no alignment.
        unsafe { &*first.cast() }
    }

    /// # Safety
    ///
    /// `at` is at most `SPAN + SLACK - 8`.
    #[inline(always)]
    pub(super) unsafe fn word(self, at: usize) -> u64 {
        // SAFETY: as the caller says.
        u64::from_le_bytes(*unsafe { self.array(at) })
    }

    /// The eight bytes at a position out of a table.
    #[inline(always)]
    fn word_at(self, position: u16) -> u64 {
        // SAFETY: a number of 16 bits is below `SPAN`.
        unsafe { self.word(position.into()) }
    }
}

/// An earlier place where the bytes at the current position may have been.
#[derive(Clone, Copy)]
pub(super) struct Find {
    /// Where it is.
    pub(super) place: usize,
    /// The exclusive or of the next eight bytes here and there.
    pub(super) different: u64,
}

/// The first three of eight bytes.
const THREE: u32 = 0xff_ffff;

/// Whether three bytes are equal.
#[inline(always)]
pub(super) fn three_equal(different: u64) -> bool {
    different as u32 & THREE == 0
}

/// A way to find earlier places.
pub(super) trait Search {
    /// Whether it is asked for something longer even where a match at one of the two last distances
    /// is at hand.
    const LONGEST: bool;
    /// Once so many literals came in a row, every second position is left out, after twice as many
    /// two of three, and so on. The positions that the parser looks at one by one are never left
    /// out, and it counts before each comparison of many bytes.
    const PATIENCE: usize;

    /// Moves all positions down.
    fn slide(&mut self, by: usize);

    /// Looks the next bytes up and remembers them. What is returned may lie before `lowest`, where
    /// matches must not reach.
    fn look(&mut self, bytes: Bytes<'_>, position: usize, word: u64, lowest: usize) -> Find;

    /// Only remembers the next bytes.
    fn enter(&mut self, position: usize, word: u64);

    /// Those of the first bytes that have to be equal in a match.
    const KEY: u32;
}

/// No positions are left out.
pub(super) const ALWAYS: usize = usize::MAX;

/// A table from the hash of some bytes to the position where they were last; `ENTRIES` is 2^BITS.
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

    /// What falls off the lower end stays there: one more place that is looked at in vain.
    fn slide(&mut self, by: usize) {
        let by = by.min(usize::from(u16::MAX)) as u16;
        for position in &mut self.positions {
            *position = position.saturating_sub(by);
        }
    }

    /// The entry of the first `BYTES` bytes of a word.
    #[inline(always)]
    fn entry<const BYTES: u32>(&mut self, word: u64) -> &mut u16 {
        // Shifting the factor shifts the bytes that do not count out of the product.
        const FACTOR: u64 = 0x9e37_79b1_85eb_ca87;
        let hash = word.wrapping_mul(FACTOR << (64 - 8 * BYTES)) >> (64 - BITS);
        &mut self.positions[hash as usize % ENTRIES]
    }
}

/// One table of the places where the next `BYTES` bytes were. Four bytes make a match.
///
/// More than 4096 entries are slower for next to no gain: they no longer fit beside the data.
pub(super) struct One<
    const BYTES: u32,
    const BITS: u32,
    const ENTRIES: usize,
    const PATIENCE: usize,
> {
    table: Table<BITS, ENTRIES>,
}

impl<const BYTES: u32, const BITS: u32, const ENTRIES: usize, const PATIENCE: usize>
    One<BYTES, BITS, ENTRIES, PATIENCE>
{
    pub(super) const fn new() -> Self {
        Self {
            table: Table::new(),
        }
    }
}

impl<const BYTES: u32, const BITS: u32, const ENTRIES: usize, const PATIENCE: usize> Search
    for One<BYTES, BITS, ENTRIES, PATIENCE>
{
    const KEY: u32 = 0xffff_ffff;
    const LONGEST: bool = false;
    const PATIENCE: usize = PATIENCE;

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

/// Two tables: of the places where the next eight bytes were, and of near ones with the next three.
pub(super) struct Two {
    long: Table<12, 4096>,
    near: Table<12, 4096>,
}

impl Two {
    /// From farther away, three bytes cost more as a match than as literals.
    const NEAR: usize = 4096;

    pub(super) const fn new() -> Self {
        Self {
            long: Table::new(),
            near: Table::new(),
        }
    }
}

impl Search for Two {
    const KEY: u32 = THREE;
    const LONGEST: bool = true;
    const PATIENCE: usize = ALWAYS;

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
