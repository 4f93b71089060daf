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

/// A sliding window over the input. It moves through a larger buffer, so that its content is seldom
/// copied back to the start.
pub(super) struct Window {
    buffer: Box<[u8]>,
    /// The way that the window can move in its buffer.
    way: usize,
    /// The place of position 0 in the buffer.
    base: usize,
    /// The end of the input.
    end: usize,
    /// The lowest position that a match may refer to.
    start: usize,
}

/// The way of a stream's window. Window and buffer stay in the second-level cache.
const WAY: usize = 1 << 17;
/// Room to place the window's first byte where it is fast.
const SHIM: usize = 4096;

/// Input tends to begin at a multiple of 4096. A processor compares only the low 12 bits of the
/// addresses of loads and earlier stores at first, so a window that is a few bytes ahead of its
/// input, by these bits, makes every load of the copy wait: up to 15 % of all time. So the window
/// begins half a page away from a multiple.
fn first_base(buffer: &[u8]) -> usize {
    (SHIM / 2).wrapping_sub(buffer.as_ptr().addr()) % SHIM
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

    /// A window for streams.
    pub(super) fn new() -> Self {
        Self::with_way(WAY)
    }

    /// A window for pages without a history: nothing has to be copied back.
    pub(super) fn for_pages() -> Self {
        Self::with_way(0)
    }

    fn with_way(way: usize) -> Self {
        let buffer = vec![0; SHIM + way + SPAN + SLACK].into_boxed_slice();
        Self {
            base: first_base(&buffer),
            buffer,
            way,
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
        let from = self.base + shift;
        if from < SHIM + self.way {
            self.base = from;
        } else {
            self.base = first_base(&self.buffer);
            let content = from..from + self.end - shift;
            self.buffer.copy_within(content, self.base);
        }
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
        let own = &mut self.buffer[self.base..];
        own[unit.start..unit.end].copy_from_slice(bytes);
        // Hashes of the last bytes read past the end. Clear this part, so that they do not depend
        // on earlier content.
        own[unit.end..unit.end + 8].fill(0);
        self.end = unit.end;
        unit
    }

    pub(super) fn bytes(&self) -> &WindowBytes {
        let window = &self.buffer[self.base..];
        // The base is below SHIM + `way`, so that a window fits after it.
        #[expect(clippy::expect_used, reason = "the base depends on no input")]
        window.first_chunk().expect("room for a window")
    }
}
