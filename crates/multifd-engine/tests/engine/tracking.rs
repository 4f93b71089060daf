//! Dirty logs lose no write.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::Write;

use multifd_engine::dirty::{AtomicBitmapLog, DirtyBitmap, DirtyLog, PagemapLog};
use multifd_engine::memory::{GuestMemory, VmMemory};
use multifd_wire::PageSize;
use rustix::mm::{Advice, madvise};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use testkit::engine::{MIB, PAGE, memory, no_write_is_lost};

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
    let said = "the log is of 1 blocks, the guest has 0";
    assert_eq!(error.to_string(), said);
}

#[test]
fn a_process_that_is_not_there_or_has_registered_nothing_is_an_error() {
    let error = PagemapLog::of_process(u32::MAX, Vec::new()).unwrap_err();
    let said = "cannot open the page tables of the guest's process";
    assert_eq!(error.to_string(), said);
    let memory = memory(&[("ram", MIB)]);
    let range = memory.mappings()[0].1.range();
    let mut log = PagemapLog::of_process(std::process::id(), vec![range.addresses()]).unwrap();
    let error = log.start().unwrap_err();
    assert!(error.to_string().starts_with("cannot "), "{error}");
    assert!(error.source().is_some());
}
