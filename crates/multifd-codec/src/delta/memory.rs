//! Memory for kept pages: one limit for all migrations of this process.
//!
//! An end takes a [`Share`] before it agrees with the other end on a number of bytes, and never
//! holds more than its share. A share returns its bytes when it is dropped.
//!
//! Each allocation also stays within the limits of the process, because other parts of the process
//! and of its control group need memory as well.

use std::sync::atomic::{AtomicU64, Ordering};

use super::room;
pub use super::room::left;

/// The limit for all migrations of a process until [`set_limit`] changes it.
const DEFAULT_LIMIT: u64 = 1 << 30;

static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);
static HELD: AtomicU64 = AtomicU64::new(0);
/// The bytes of all shares that are allocated.
static USED: AtomicU64 = AtomicU64::new(0);

/// The limit: the number of bytes that all shares of this process may have.
#[must_use]
pub fn limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Sets the number of bytes that all shares of this process may have, instead of 1 GiB. Existing
/// shares stay as they are.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// The number of bytes that all shares of this process have now.
#[must_use]
pub fn held() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// One end's part of the memory.
#[derive(Debug, Default)]
pub struct Share {
    bytes: u64,
}

impl Share {
    /// Takes `up_to` bytes, or as many as the limit and the limits of the process leave. The share
    /// may be empty.
    #[must_use]
    pub fn take(up_to: u64) -> Self {
        let allowed = match up_to {
            0 => 0,
            _ => limit().min(room::spare().map_or(u64::MAX, |spare| {
                spare.saturating_add(USED.load(Ordering::Relaxed))
            })),
        };
        let part = |held: u64| up_to.min(allowed.saturating_sub(held));
        let taken = HELD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(part(held))
        });
        Self {
            bytes: taken.map_or(0, part),
        }
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns all but `bytes`, for instance because the other end has less memory.
    pub fn shrink_to(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        HELD.fetch_sub(back, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// The bytes that the slots of one migration have allocated.
#[derive(Debug, Default)]
pub(super) struct Used(AtomicU64);

impl Used {
    /// Counts `bytes` that the caller is about to allocate. Returns false instead if the allocation
    /// would leave too little for the rest of the process.
    pub(super) fn try_grow(&self, bytes: u64) -> bool {
        if room::spare().is_some_and(|spare| spare < bytes) {
            return false;
        }
        self.0.fetch_add(bytes, Ordering::Relaxed);
        USED.fetch_add(bytes, Ordering::Relaxed);
        true
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        USED.fetch_sub(*self.0.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other test of this program takes more than a few MiB.
    #[test]
    fn shares_never_exceed_the_limit() {
        let before = held();
        let mut first = Share::take(limit() / 2);
        assert_eq!(first.bytes(), limit() / 2);
        let second = Share::take(limit());
        assert!(second.bytes() <= limit() - first.bytes());
        assert!(held() <= limit());
        assert_eq!(Share::take(1 << 40).bytes(), 0);
        first.shrink_to(1 << 20);
        first.shrink_to(1 << 30);
        assert_eq!(first.bytes(), 1 << 20);
        drop((first, second));
        // Other tests may hold some.
        assert!(held() < before + (64 << 20));
    }
}
