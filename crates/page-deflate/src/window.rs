//! The encoder's private copy of its latest input; it reads nothing else.
//!
//! Shared memory may change while it is compressed. A byte that changes between finding a match and
//! writing it would corrupt everything that refers to it later. So input is copied once, and the
//! copy stays constant.

use super::format::MAX_WINDOW;

/// Positions in the window fit in 16 bits.
pub(super) const SPAN: usize = 1 << 16;
/// Readable bytes after the last position, with meaningless content: the longest match, and the
/// widest load after its end.
pub(super) const SLACK: usize = 320;
/// The maximum size of a unit of input. Matches do not cross the end of a unit.
pub(super) const UNIT: usize = 4096;

/// The content of a window.
pub(super) type WindowBytes = [u8; SPAN + SLACK];

/// A sliding window over the input.
pub(super) struct Window {
    bytes: Box<WindowBytes>,
    /// The end of the input.
    end: usize,
    /// The lowest position that a match may refer to.
    start: usize,
}

/// A unit's positions in the window.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    /// The lowest position that a match may refer to.
    pub(super) history: usize,
    /// The unit's first byte.
    pub(super) start: usize,
    /// The end of the unit.
    pub(super) end: usize,
}

impl Window {
    /// Position 0 is unused; in tables it means unknown.
    const FIRST: usize = 1;

    pub(super) fn new() -> Self {
        Self {
            bytes: Box::new([0; SPAN + SLACK]),
            end: Self::FIRST,
            start: Self::FIRST,
        }
    }

    /// Excludes all earlier input from matches.
    pub(super) fn forget(&mut self) {
        self.start = self.end;
    }

    /// The lowest position that a match may refer to.
    pub(super) fn history(&self) -> usize {
        self.start
    }

    /// The end of the input.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Makes room for a unit of `len` bytes and returns the amount by which all positions move
    /// down.
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

    /// Copies a unit of at most [`UNIT`] bytes into the room made before.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Unit {
        let unit = Unit {
            history: self.start,
            start: self.end,
            end: self.end + bytes.len(),
        };
        self.bytes[unit.start..unit.end].copy_from_slice(bytes);
        // Hashes of the last bytes read past the end. Clear this part, so that they do not depend
        // on earlier content.
        self.bytes[unit.end..unit.end + 8].fill(0);
        self.end = unit.end;
        unit
    }

    pub(super) fn bytes(&self) -> &WindowBytes {
        &self.bytes
    }
}
