//! A dirty log loses no write.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use multifd_codec::{GuestPage, Pages};
use multifd_engine::dirty::{DirtyBitmap, DirtyLog, PagemapLog};
use multifd_engine::memory::GuestMemory;
use multifd_wire::PageSize;

use crate::pages::Random;

/// The length of a page here, in bytes.
pub const PAGE: usize = 4096;

/// What a writer did: which page, and how many fetches had begun before it and after it.
struct Written {
    page: u32,
    before: u32,
    after: u32,
}

/// Threads that write: few of them are more than there are processors.
const WRITERS: u32 = 4;

/// Several threads write and keep a log, while the kernel's log is read `fetches` times. Every
/// write has to be in a fetch that it can be in, and a copy which is made only of what the log says
/// has to be equal in the end.
pub fn no_write_is_lost(memory: &dyn GuestMemory, fetches: u32, read_before: bool) {
    let range = memory.blocks()[0].range;
    let pages = (range.len_bytes() / PAGE) as u32;
    let mut log = PagemapLog::of_memory(memory).unwrap();
    let mut copy = vec![0; pages as usize * PAGE];
    log.start().unwrap();
    // The writers' first bytes are to be zero, which the copy is too; the rest is copied here.
    if read_before {
        copy_pages(memory, 0..pages, &mut copy);
    }
    let begun = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    let mut fetched: Vec<DirtyBitmap> = Vec::new();
    let mut fetch = |copy: &mut [u8]| {
        let mut dirty = [DirtyBitmap::new(pages as usize * PAGE, PageSize::K4)];
        begun.fetch_add(1, Ordering::SeqCst);
        log.fetch(&mut dirty).unwrap();
        let [dirty] = dirty;
        let written = (0..pages).filter(|&page| dirty.contains(page as usize));
        copy_pages(memory, written, copy);
        fetched.push(dirty);
    };
    let logs: Vec<Vec<Written>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|thread| {
                let (begun, done) = (&begun, &done);
                scope.spawn(move || {
                    let mut random = Random::new(u64::from(thread) + 1);
                    let mut log = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        for _ in 0..64 {
                            // No two threads write the same page, so that none hides what another
                            // one lost.
                            let own = random.below((pages / WRITERS) as usize) as u32;
                            let page = own * WRITERS + thread;
                            let at = u64::from(page) * PAGE as u64 + random.below(512) as u64 * 8;
                            let before = begun.load(Ordering::SeqCst);
                            range.write(at, &random.next().to_ne_bytes()).unwrap();
                            let after = begun.load(Ordering::SeqCst);
                            log.push(Written {
                                page,
                                before,
                                after,
                            });
                        }
                        thread::sleep(Duration::from_micros(10));
                    }
                    log
                })
            })
            .collect();
        (0..fetches).for_each(|_| fetch(&mut copy));
        done.store(true, Ordering::Relaxed);
        let logs = writers.into_iter().map(|writer| writer.join().unwrap());
        logs.collect()
    });
    fetch(&mut copy);
    fetch(&mut copy);
    assert_eq!(fetched.last().unwrap().count(), 0, "nobody writes any more");
    for written in logs.iter().flatten() {
        // Fetch number n makes `begun` n; it stands in `fetched` at n - 1. A write that came while
        // n was under way is in it or in the next.
        let possible = written.before.max(1)..=written.after + 1;
        let seen = possible.clone().any(|number| {
            let dirty = fetched.get(number as usize - 1);
            dirty.is_some_and(|dirty| dirty.contains(written.page as usize))
        });
        assert!(seen, "page {} in none of {possible:?}", written.page);
    }
    let mut now = vec![0; copy.len()];
    copy_pages(memory, 0..pages, &mut now);
    assert!(now == copy);
    let writes = logs.iter().flatten().count();
    println!("{writes} writes, {} fetches", fetched.len());
}

fn copy_pages(memory: &dyn GuestMemory, pages: impl Iterator<Item = u32>, copy: &mut [u8]) {
    let range = memory.blocks()[0].range;
    let mut bytes = Vec::new();
    for page in pages {
        let at = page as usize * PAGE;
        let handle: [GuestPage<'_>; 1] = [range.page(at as u64, PageSize::K4).unwrap()];
        bytes.clear();
        Pages::guest(&handle, PageSize::K4)
            .unwrap()
            .append_to(&mut bytes);
        copy[at..at + PAGE].copy_from_slice(&bytes);
    }
}
