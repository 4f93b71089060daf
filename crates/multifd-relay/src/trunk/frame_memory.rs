//! Memory for long frames: one bound for all readers of this process.
//!
//! A frame is given out once all of it has come and its digest fits, so a reader holds one frame.
//! Each reader may hold a body of [`FREE_BODY_LEN`] bytes, and [`FrameWriter::append`] and our
//! relays write no longer ones. What a reader needs beyond that for the frames of another writer,
//! up to [`MAX_BODY_LEN`](super::MAX_BODY_LEN), counts towards the total of the process
//! ([`limit`]). A reader takes its share as the bytes come. If the total is exhausted, the frame is
//! refused ([`FrameFault::Memory`](super::FrameFault::Memory)). A reader never waits for a share,
//! because the readers that hold the rest may wait for this one: a destination takes nothing from a
//! channel whose round is over until all other channels have ended theirs.
//!
//! [`FrameWriter::append`]: super::FrameWriter::append

use std::sync::atomic::{AtomicU64, Ordering};

/// The longest body, and content, that every reader has room for, in bytes. A migration with 256
/// channels holds 32 MiB then. A frame of this length is still long enough that the calls of the
/// system for it cost little.
pub const FREE_BODY_LEN: usize = 128 << 10;

/// The limit for all readers of a process until [`set_limit`] changes it: 256 MiB.
///
/// It is enough for 25 migrations of 16 channels, whose frames hold a packet of 128 plain pages
/// each.
pub const DEFAULT_LIMIT: u64 = 256 << 20;

static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);
static HELD: AtomicU64 = AtomicU64::new(0);

/// The number of bytes that all readers of this process may hold for long frames.
#[must_use]
pub fn limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Sets the number of bytes that all readers of this process may hold for long frames. It applies
/// to frames that grow from now on.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// The number of bytes that all readers of this process hold for long frames now.
#[must_use]
pub fn held() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// Whether a reader should return what its present frame does not need.
pub(super) fn is_short() -> bool {
    held() > limit() / 2
}

/// One reader's share.
#[derive(Debug, Default)]
pub(super) struct Share {
    bytes: u64,
}

/// The total is exhausted.
pub(super) struct Exhausted {
    pub(super) left: u64,
    pub(super) allowed: u64,
}

impl Share {
    /// Makes the share at least this large.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let more = (bytes as u64).saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let allowed = limit();
        let taken = HELD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|&held| held <= allowed)
        });
        match taken {
            Ok(_) => {
                self.bytes = self.bytes.saturating_add(more);
                Ok(())
            }
            Err(held) => Err(Exhausted {
                left: allowed.saturating_sub(held),
                allowed,
            }),
        }
    }

    /// Returns all of it.
    pub(super) fn release(&mut self) {
        HELD.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}
