//! How a relay ends, and the migrations that it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use multifd_transport::Cancel;

/// How a relay ends, step by step.
#[derive(Clone, Default)]
pub(super) struct Ends {
    /// No more migrations are accepted.
    pub(super) accepting: Cancel,
    /// Running migrations are ended.
    pub(super) migrations: Cancel,
    /// Nothing is left, and the addresses are given back.
    pub(super) over: Cancel,
    /// The migrations that were accepted, and whose end has not been told.
    pub(super) running: Count,
}

/// A number of migrations.
#[derive(Clone, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

/// One migration of a [`Count`]. Dropping it counts down, after a panic too.
pub(super) struct Counted(Count);

impl Count {
    /// Counts one more. Returns how many there were before.
    pub(super) fn one(&self) -> (Counted, usize) {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        (Counted(self.clone()), before)
    }

    /// Whether there is none. Adding nothing is ordered with the addition of one; a mere load is
    /// not.
    pub(super) fn is_none(&self) -> bool {
        self.0.fetch_add(0, Ordering::SeqCst) == 0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_panic_counts_down_too() {
        let count = Count::default();
        let (first, before) = count.one();
        assert_eq!(before, 0);
        let (second, before) = count.one();
        assert_eq!(before, 1);
        let work = move || {
            let _second = second;
            panic!("a defect");
        };
        assert!(thread::spawn(work).join().is_err());
        assert!(!count.is_none());
        drop(first);
        assert!(count.is_none());
    }
}
