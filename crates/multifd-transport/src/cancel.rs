//! The caller's request that a migration ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends a migration from another thread. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    asked: Arc<AtomicBool>,
}

impl Cancel {
    /// A new flag: not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the end. At a source that has given the guest away already, it comes too late and
    /// does nothing.
    pub fn cancel(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
