//! An allocator that counts.
//!
//! A test program installs it for itself:
//!
//! ```
//! use testkit::allocations::{self, Counting};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//!
//! let before = allocations::on_this_thread();
//! drop(std::hint::black_box(vec![1, 2, 3]));
//! assert_eq!(allocations::on_this_thread(), before + 1);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with counters.
pub struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static NOW: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// How often the calling thread has allocated or reallocated so far.
#[must_use]
pub fn on_this_thread() -> usize {
    ALLOCATIONS.get()
}

/// How many bytes the process has allocated and not freed.
#[must_use]
pub fn live_bytes() -> usize {
    LIVE_BYTES.load(Ordering::Relaxed)
}

/// The most bytes that `run` has had allocated at a time in this thread, and its largest single
/// allocation.
pub fn measure(run: impl FnOnce()) -> (usize, usize) {
    let before = NOW.get();
    MOST.set(before);
    LARGEST.set(0);
    run();
    (MOST.get() - before, LARGEST.get())
}

/// Counts an allocation of this thread.
fn add(len: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    let now = NOW.get() + len;
    NOW.set(now);
    MOST.set(MOST.get().max(now));
    LARGEST.set(LARGEST.get().max(len));
}

/// Counts what this thread has freed. Another thread may have allocated it.
fn subtract(len: usize) {
    NOW.set(NOW.get().saturating_sub(len));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory
// of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        // Both blocks may exist at a time.
        add(len);
        subtract(layout.size());
        LIVE_BYTES.fetch_add(len, Ordering::Relaxed);
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `realloc`.
        unsafe { System.realloc(block, layout, len) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        subtract(layout.size());
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
