//! Dirty logs lose no write.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use multifd_codec::{GuestPage, Pages};
use multifd_engine::dirty::{AtomicBitmapLog, DirtyBitmap, DirtyLog, DirtyLogError, PagemapLog};
use multifd_engine::memory::{GuestMemory, VmMemory};
use multifd_wire::PageSize;
use rustix::mm::{Advice, madvise};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::{MIB, Random, memory};

const PAGE: usize = 4096;

/// What a writer did: which page, and how many fetches had begun before it and after it.
struct Written {
    page: u32,
    before: u32,
    after: u32,
}

/// Threads that write: few of them are more than there are processors.
const WRITERS: u32 = 4;

/// Several threads write and keep a log, while the kernel's log is read `fetches` times. Every write has to be in a fetch
/// that it can be in, and a copy which is made only of what the log says has to be equal in the end.
fn no_write_is_lost(memory: &dyn GuestMemory, fetches: u32, read_before: bool) {
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
                            // No two threads write the same page, so that none hides what another one lost.
                            let own = random.below(u64::from(pages / WRITERS)) as u32;
                            let page = own * WRITERS + thread;
                            let at = u64::from(page) * PAGE as u64 + random.below(512) * 8;
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
        // Fetch number n makes `begun` n; it stands in `fetched` at n - 1. A write that came while n was under way is in
        // it or in the next.
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

#[test]
fn pagemap_scan_loses_no_write() {
    no_write_is_lost(&memory(&[("ram", 16 * MIB)]), 200, false);
}

#[test]
fn pagemap_scan_loses_no_first_write_to_a_page_that_was_read() {
    no_write_is_lost(&memory(&[("ram", 16 * MIB)]), 20, true);
}

#[test]
fn pagemap_scan_loses_no_write_to_huge_pages() {
    let ours: GuestMemoryMmap<()> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 32 * MIB)]).unwrap();
    let memory = VmMemory::new(&ours).unwrap();
    advise_huge_pages(&memory);
    no_write_is_lost(&memory, 100, true);
}

#[test]
fn pagemap_scan_loses_no_write_to_huge_pages_of_a_memfd() {
    let memory = memory(&[("ram", 32 * MIB)]);
    advise_huge_pages(&memory);
    no_write_is_lost(&memory, 100, true);
}

#[test]
#[ignore = "a minute long: run by hand"]
fn pagemap_scan_loses_none_of_many_writes() {
    no_write_is_lost(&memory(&[("ram", 256 * MIB)]), 2000, false);
}

/// Asks for huge pages, touches them all, and says what came of it.
fn advise_huge_pages(memory: &dyn GuestMemory) {
    let range = memory.blocks()[0].range;
    let addresses = range.addresses();
    let start = std::ptr::with_exposed_provenance_mut(addresses.start as usize);
    // SAFETY: advice about a mapping that is ours and stays; it changes nothing of what it holds.
    let advised = unsafe { madvise(start, range.len_bytes(), Advice::LinuxHugepage) };
    range.clear(0, range.len_bytes()).unwrap();
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let first = format!("{:x}-", addresses.start);
    let ours = smaps.lines().skip_while(|line| !line.starts_with(&first));
    let huge: Vec<_> = ours
        .take(30)
        .filter(|line| line.starts_with("AnonHugePages") || line.starts_with("ShmemPmdMapped"))
        .collect();
    println!("huge pages as this kernel gives them: {huge:?}, advice {advised:?}");
}

/// What a dirty log says of the first block.
fn fetched(log: &mut dyn DirtyLog, len_bytes: usize) -> BTreeSet<usize> {
    let mut dirty = [DirtyBitmap::new(len_bytes, PageSize::K4)];
    log.fetch(&mut dirty).unwrap();
    (0..dirty[0].pages())
        .filter(|&page| dirty[0].contains(page))
        .collect()
}

#[test]
fn what_the_kernel_writes_for_the_guest_is_seen() {
    let memory: GuestMemoryMmap<()> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 * PAGE)]).unwrap();
    let mut log = PagemapLog::of_memory(&VmMemory::new(&memory).unwrap()).unwrap();
    // Private, anonymous memory of which two pages are there.
    memory.write_slice(&[1; 2 * PAGE], GuestAddress(0)).unwrap();
    log.start().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[5; 2 * PAGE]).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    memory
        .read_exact_volatile_from(GuestAddress(PAGE as u64), &mut file, 2 * PAGE)
        .unwrap();
    memory
        .write_obj(5_u8, GuestAddress(10 * PAGE as u64))
        .unwrap();
    assert_eq!(fetched(&mut log, 16 * PAGE), BTreeSet::from([1, 2, 10]));
    assert!(fetched(&mut log, 16 * PAGE).is_empty());
}

#[test]
fn vm_memorys_bitmap_is_read_and_emptied() {
    let memory: GuestMemoryMmap<AtomicBitmap> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 100 * PAGE)]).unwrap();
    let mut log = AtomicBitmapLog::new(&memory);
    memory.write_obj(1_u8, GuestAddress(0)).unwrap();
    log.start().unwrap();
    for page in [3, 63, 64, 99] {
        memory
            .write_obj(1_u8, GuestAddress(page * PAGE as u64 + 7))
            .unwrap();
    }
    assert_eq!(
        fetched(&mut log, 100 * PAGE),
        BTreeSet::from([3, 63, 64, 99])
    );
    assert!(fetched(&mut log, 100 * PAGE).is_empty());
    let error = log.fetch(&mut []).unwrap_err();
    assert!(matches!(
        error,
        DirtyLogError::Blocks {
            found: 1,
            expected: 0
        }
    ));
}

#[test]
fn a_process_that_is_not_there_or_has_registered_nothing_is_an_error() {
    assert!(matches!(
        PagemapLog::of_process(u32::MAX, Vec::new()),
        Err(DirtyLogError::System { .. })
    ));
    let memory = memory(&[("ram", MIB)]);
    let range = memory.mappings()[0].1.range();
    let mut log = PagemapLog::of_process(std::process::id(), vec![range.addresses()]).unwrap();
    assert!(matches!(log.start(), Err(DirtyLogError::System { .. })));
}
