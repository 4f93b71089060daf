//! The encoder's private copy of its latest input, which is all it ever reads.
//!
//! Memory that is shared may change while it is compressed. A byte that was one thing when a match
//! was found and another when it was written would corrupt everything that refers to it later, so
//! input is copied once and then left alone.

use super::format::MAX_WINDOW;

/// Positions in the window fit in 16 bits.
pub(super) const SPAN: usize = 1 << 16;
/// Bytes behind the last position which may be read, though what they hold has no meaning: the
/// longest match, and the widest load behind its end.
pub(super) const SLACK: usize = 320;
/// Input is taken in units of at most so many bytes. Matches do not cross the end of a unit.
pub(super) const UNIT: usize = 4096;

/// All that a window holds.
pub(super) type WindowBytes = [u8; SPAN + SLACK];

/// A sliding window over the input.
pub(super) struct Window {
    bytes: Box<WindowBytes>,
    /// Where the input ends.
    end: usize,
    /// The first byte a match may refer to.
    start: usize,
}

/// What a unit is, among the positions of the window.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    /// The first byte a match may refer to.
    pub(super) history: usize,
    /// The unit's first byte.
    pub(super) start: usize,
    /// The end of the unit.
    pub(super) end: usize,
}

impl Window {
    /// Nothing is ever at position 0: that is what tables say of what they do not know.
    const FIRST: usize = 1;

    pub(super) fn new() -> Self {
        Self {
            bytes: Box::new([0; SPAN + SLACK]),
            end: Self::FIRST,
            start: Self::FIRST,
        }
    }

    /// Matches no longer refer to what came before.
    pub(super) fn forget(&mut self) {
        self.start = self.end;
    }

    /// The first byte a match may refer to.
    pub(super) fn history(&self) -> usize {
        self.start
    }

    /// Where the input ends.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Makes room for a unit of `len` bytes; returns by how much this moves all positions down.
    pub(super) fn make_room(&mut self, len: usize) -> usize {
        if self.end + len <= SPAN {
            return 0;
        }
        let kept = (self.end - self.start).min(MAX_WINDOW);
        let shift = self.end - kept - Self::FIRST;
        self.bytes.copy_within(shift..self.end, 0);
        self.end -= shift;
        self.start = self.end - kept;
        shift
    }

    /// Takes a unit of at most [`UNIT`] bytes, for which there is room.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Unit {
        let unit = Unit {
            history: self.start,
            start: self.end,
            end: self.end + bytes.len(),
        };
        self.bytes[unit.start..unit.end].copy_from_slice(bytes);
        // Hashes of the last bytes reach over the end. What is there must not depend on what was
        // there before.
        self.bytes[unit.end..unit.end + 8].fill(0);
        self.end = unit.end;
        unit
    }

    pub(super) fn bytes(&self) -> &WindowBytes {
        &self.bytes
    }
}
