//! Pages that have been discarded since they were sent: they were not written, and read as zero
//! now.
//!
//! No dirty log need know of them, because no page table says "written" where memory was taken away
//! from a file. So the source remembers what it has sent with contents. Where nothing is mapped any
//! more it looks at the page: if that is zero now, it is to be sent again. Pages that were swapped
//! out are not mapped either, and hold what was sent; reading them tells the two apart, and brings
//! them back.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use multifd_codec::{Pages, is_zero};
use multifd_wire::PageSize;

use crate::dirty::{DirtyBitmap, DirtyLogError, ResidentPages};
use crate::engine_fault::EngineFault;
use crate::failure::Cause;
use crate::memory::MemoryBlock;

/// The units of a block that the destination holds: one bit for each. All channels set the bits of
/// the pages that they send.
pub(super) struct Contents {
    unit: PageSize,
    words: Vec<AtomicU64>,
}

impl Contents {
    /// Nothing has been sent of a block of `len_bytes`.
    pub(super) fn new(len_bytes: usize, page_size: PageSize) -> Self {
        // A part of a larger page can be discarded.
        let unit = page_size.min(PageSize::K4);
        let words = len_bytes.div_ceil(unit.bytes()).div_ceil(WORD_BITS);
        Self {
            unit,
            words: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        }
    }

    /// `copy` is what is sent of the block's bytes from `offset` on. Says whether all of it is
    /// zero.
    pub(super) fn note(&self, offset: u64, copy: &[u8]) -> bool {
        let mut all_zero = true;
        for (index, unit) in
            (offset / self.unit.bytes() as u64..).zip(copy.chunks(self.unit.bytes()))
        {
            let zero = is_zero(unit);
            all_zero &= zero;
            let Some((word, bit)) = self.bit(index) else {
                continue;
            };
            // Most pages stay what they are: then the word need not become this processor's.
            match (zero, word.load(Ordering::Relaxed) & bit != 0) {
                (true, true) => drop(word.fetch_and(!bit, Ordering::Relaxed)),
                (false, false) => drop(word.fetch_or(bit, Ordering::Relaxed)),
                _ => {}
            }
        }
        all_zero
    }

    fn has(&self, index: u64) -> bool {
        self.bit(index)
            .is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn bit(&self, index: u64) -> Option<(&AtomicU64, u64)> {
        let word = usize::try_from(index / WORD_BITS as u64).ok()?;
        Some((self.words.get(word)?, 1 << (index % WORD_BITS as u64)))
    }
}

/// Finds discarded pages in the page tables of this process.
pub(super) struct Discards {
    resident: ResidentPages,
    gaps: Vec<Range<u64>>,
    copy: Vec<u8>,
}

impl Discards {
    pub(super) fn new() -> Result<Self, DirtyLogError> {
        Ok(Self {
            resident: ResidentPages::open()?,
            gaps: Vec::new(),
            copy: Vec::new(),
        })
    }

    /// Adds the pages of `block` to `dirty` that hold something at the destination and nothing
    /// here.
    pub(super) fn find(
        &mut self,
        block: &MemoryBlock<'_>,
        sent: &Contents,
        dirty: &mut DirtyBitmap,
    ) -> Result<(), Cause> {
        let addresses = block.range.addresses();
        self.gaps.clear();
        let gaps = &mut self.gaps;
        self.resident
            .absent(addresses.clone(), |gap| gaps.push(gap))
            .map_err(EngineFault::from)?;
        let unit_bytes = sent.unit.bytes() as u64;
        for gap in &self.gaps {
            let start = gap.start.saturating_sub(addresses.start);
            let end = gap.end.saturating_sub(addresses.start);
            for index in start / unit_bytes..end.div_ceil(unit_bytes) {
                let offset = index.saturating_mul(unit_bytes);
                if !sent.has(index) || dirty.contains_byte(offset) {
                    continue;
                }
                let page = [block
                    .range
                    .page(offset, sent.unit)
                    .map_err(EngineFault::from)?];
                self.copy.clear();
                Pages::guest(&page, sent.unit)?.append_to(&mut self.copy);
                // The gap may be a part of a unit where the block does not begin with a page of
                // this machine.
                let is_whole = offset >= start && offset.saturating_add(unit_bytes) <= end;
                if !is_whole || is_zero(&self.copy) {
                    dirty.insert_bytes(offset..offset.saturating_add(unit_bytes));
                }
            }
        }
        Ok(())
    }
}

const WORD_BITS: usize = u64::BITS as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestMemory, MappedMemory, Mapping};
    use multifd_wire::BlockName;
    use rustix::fs::{FallocateFlags, fallocate};

    /// The discarded pages, of 64, that are found after `discard`. The engine reads them
    /// through a mapping of its own, with nothing mapped in it so far if `is_new`.
    fn found(page_size: PageSize, is_new: bool, discard: impl FnOnce(&Mapping)) -> Vec<usize> {
        let guests = Mapping::memfd("guest", 64 * 4096).unwrap();
        let ours = Mapping::shared(guests.file().try_clone().unwrap().into()).unwrap();
        let memory = MappedMemory::new(vec![(BlockName::new(b"ram").unwrap(), ours)]);
        let block = &memory.blocks()[0];
        let sent = Contents::new(64 * 4096, page_size);
        // The first half holds something.
        for page in 0..64 {
            let bytes = [if page < 32 { 7 } else { 0 }; 4096];
            guests.range().write(page * 4096, &bytes).unwrap();
            assert_eq!(sent.note(page * 4096, &bytes), page >= 32);
            if !is_new {
                block.range.write(page * 4096, &bytes).unwrap();
            }
        }
        discard(&guests);
        let mut dirty = DirtyBitmap::new(64 * 4096, page_size);
        let mut discards = Discards::new().unwrap();
        discards.find(block, &sent, &mut dirty).unwrap();
        (0..dirty.pages())
            .filter(|&page| dirty.contains(page))
            .collect()
    }

    fn punch(mapping: &Mapping, first: u64, pages: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(mapping.file(), flags, first * 4096, pages * 4096).unwrap();
    }

    #[test]
    fn what_was_sent_with_contents_and_is_gone_is_found() {
        let k4 = PageSize::K4;
        assert!(found(k4, false, |_| {}).is_empty());
        assert_eq!(found(k4, false, |ram| punch(ram, 3, 2)), [3, 4]);
        // A page that was zero before still is.
        assert_eq!(found(k4, false, |ram| punch(ram, 31, 10)), [31]);
        let k16 = PageSize::new(16 << 10).unwrap();
        assert_eq!(found(k16, false, |ram| punch(ram, 5, 1)), [1], "in part");
        let smallest = found(PageSize::MIN, false, |ram| punch(ram, 1, 1));
        assert_eq!(smallest, [4, 5, 6, 7]);
    }

    #[test]
    fn a_page_that_is_only_not_mapped_is_not_sent_again() {
        assert!(found(PageSize::K4, true, |_| {}).is_empty());
    }

    #[test]
    fn a_page_that_the_guest_reads_again_through_its_own_mapping_is_found() {
        let punch_and_read = |ram: &Mapping| {
            punch(ram, 9, 1);
            let mut copy = Vec::new();
            let page = [ram.range().page(9 * 4096, PageSize::K4).unwrap()];
            Pages::guest(&page, PageSize::K4)
                .unwrap()
                .append_to(&mut copy);
            assert!(is_zero(&copy));
        };
        assert_eq!(found(PageSize::K4, false, punch_and_read), [9]);
    }
}
