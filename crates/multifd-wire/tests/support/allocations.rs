//! Counts what is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what each thread has allocated and remembers the most at a time and the largest piece.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory
// of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.get() + layout.size();
        NOW.set(now);
        MOST.set(MOST.get().max(now));
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.set(NOW.get().saturating_sub(layout.size()));
        // SAFETY: the caller keeps the rules of `dealloc`, and the pointer came from the same
        // allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `run` has allocated at most at a time, and its largest single allocation.
pub fn measure(run: impl FnOnce()) -> (usize, usize) {
    let before = NOW.get();
    MOST.set(before);
    LARGEST.set(0);
    run();
    (MOST.get() - before, LARGEST.get())
}
