//! Putting pages where they belong.

use std::sync::atomic::{AtomicU64, Ordering};

use multifd_wire::{BlockName, PageSize};

use crate::control::Block;
use crate::engine_fault::EngineFault;
use crate::failure::{Cause, Failure};
use crate::memory::MemoryBlock;

/// The guest's memory while it is filled. Any number of channels may write to it at once.
pub(super) struct Places<'a> {
    /// In the order of names.
    blocks: Vec<Place<'a>>,
    page_size: PageSize,
}

/// One RAM block while it is filled.
pub(super) struct Place<'a> {
    block: &'a MemoryBlock<'a>,
    page_bytes: usize,
    /// The pages that have come, as contents or as zero.
    came: PageBits,
    /// For a block that was all zero: the pages that are so no more.
    written: Option<PageBits>,
}

/// One bit for each page of a block. Any number of channels may change it at once.
struct PageBits(Vec<AtomicU64>);

impl<'a> Places<'a> {
    /// The places of `ours`, which must be what the source calls `theirs`.
    pub(super) fn new(
        ours: &'a [MemoryBlock<'a>],
        theirs: &[Block],
        page_size: PageSize,
    ) -> Result<Self, Failure> {
        let failed = |block: Option<&BlockName>, fault: EngineFault| Failure {
            block: block.cloned().map(Box::new),
            ..super::session::on_main(fault.into())
        };
        if ours.len() != theirs.len() {
            let fault = EngineFault::BlockCount {
                found: theirs.len(),
                expected: ours.len(),
            };
            return Err(failed(None, fault));
        }
        let mut blocks: Vec<_> = ours
            .iter()
            .map(|block| Place::new(block, page_size))
            .collect();
        blocks.sort_by(|a, b| a.name().cmp(b.name()));
        let places = Self { blocks, page_size };
        for block in theirs {
            // Theirs have different names, and there are as many of ours: when each is found, ours
            // are all of them.
            let place = places
                .of(&block.name)
                .map_err(|fault| failed(Some(&block.name), fault))?;
            let expected = place.block.range.len_bytes() as u64;
            if block.len_bytes != expected {
                let fault = EngineFault::BlockLength {
                    found: block.len_bytes,
                    expected,
                };
                return Err(failed(Some(&block.name), fault));
            }
        }
        Ok(places)
    }

    /// The place of a block.
    pub(super) fn of(&self, name: &BlockName) -> Result<&Place<'a>, EngineFault> {
        let found = self
            .blocks
            .binary_search_by(|place| place.name().cmp(name.as_bytes()));
        found
            .ok()
            .and_then(|index| self.blocks.get(index))
            .ok_or(EngineFault::UnknownBlock)
    }

    /// Whether every page of every block has come.
    pub(super) fn check_all_came(&self) -> Result<(), EngineFault> {
        self.blocks.iter().try_for_each(Place::check_all_came)
    }

    /// The size of all pages.
    pub(super) const fn page_size(&self) -> PageSize {
        self.page_size
    }
}

impl<'a> Place<'a> {
    fn new(block: &'a MemoryBlock<'a>, page_size: PageSize) -> Self {
        let pages = block.range.len_bytes().div_ceil(page_size.bytes());
        Self {
            block,
            page_bytes: page_size.bytes(),
            came: PageBits::new(pages),
            written: block.is_fresh.then(|| PageBits::new(pages)),
        }
    }

    fn name(&self) -> &[u8] {
        self.block.name.as_bytes()
    }

    /// Writes a packet's pages: `contents` holds as many as there are `offsets`, in their order.
    pub(super) fn write(&self, offsets: &[u64], contents: &[u8]) -> Result<(), Cause> {
        let pages = contents.chunks_exact(self.page_bytes);
        for (&offset, page) in offsets.iter().zip(pages) {
            let written = self.block.range.write(offset, page);
            written.map_err(EngineFault::from)?;
            self.came.insert(self.page_of(offset));
            if let Some(written) = &self.written {
                written.insert(self.page_of(offset));
            }
        }
        Ok(())
    }

    /// Reads a page that has come. Returns false if it has not: then its memory may hold anything,
    /// and is no business of the source's.
    pub(super) fn read(&self, offset: u64, page: &mut [u8]) -> bool {
        self.came.contains(self.page_of(offset)) && self.block.range.read(offset, page).is_ok()
    }

    /// Makes pages zero: those that are so already are left alone, and take no memory.
    pub(super) fn clear(&self, offsets: &[u64]) -> Result<(), Cause> {
        for &offset in offsets {
            let range = &self.block.range;
            let page = self.page_of(offset);
            let is_zero = (self.written.as_ref()).is_some_and(|written| !written.contains(page));
            let outcome = match is_zero {
                true => range.check(offset, self.page_bytes),
                false => range.clear(offset, self.page_bytes),
            };
            outcome.map_err(EngineFault::from)?;
            self.came.insert(page);
        }
        Ok(())
    }

    fn page_of(&self, offset: u64) -> u64 {
        offset / self.page_bytes as u64
    }

    fn check_all_came(&self) -> Result<(), EngineFault> {
        let pages = (self.block.range.len_bytes() / self.page_bytes) as u64;
        let missing = pages.saturating_sub(self.came.count());
        if missing == 0 {
            return Ok(());
        }
        let first = (0..pages).find(|&page| !self.came.contains(page));
        Err(EngineFault::PagesMissing {
            block: Box::new(self.block.name.clone()),
            missing,
            pages,
            first: first
                .unwrap_or(pages)
                .saturating_mul(self.page_bytes as u64),
        })
    }
}

impl PageBits {
    fn new(pages: usize) -> Self {
        let words = pages.div_ceil(u64::BITS as usize);
        Self(
            std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        )
    }

    /// A thread that sees the bit sees all earlier writes to the page.
    fn insert(&self, page: u64) {
        if let Some((word, bit)) = self.bit(page) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    fn contains(&self, page: u64) -> bool {
        let bit = self.bit(page);
        bit.is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    fn count(&self) -> u64 {
        let ones = self
            .0
            .iter()
            .map(|word| word.load(Ordering::Relaxed).count_ones());
        ones.map(u64::from).sum()
    }

    fn bit(&self, page: u64) -> Option<(&AtomicU64, u64)> {
        let index = usize::try_from(page / u64::from(u64::BITS)).ok()?;
        Some((self.0.get(index)?, 1 << (page % u64::from(u64::BITS))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestMemory, MappedMemory, Mapping};
    use std::os::unix::fs::MetadataExt;

    fn name(name: &str) -> BlockName {
        BlockName::new(name.as_bytes()).unwrap()
    }

    fn block(of: &str, len_bytes: u64) -> Block {
        Block {
            name: name(of),
            len_bytes,
        }
    }

    fn memory() -> MappedMemory {
        let blocks = ["b", "a"].map(|of| (name(of), Mapping::memfd(of, 4 * 4096).unwrap()));
        MappedMemory::new(blocks.into())
    }

    #[test]
    fn zero_over_nothing_takes_no_memory_and_zero_over_something_is_zero() {
        let memory = memory();
        let blocks = memory.blocks();
        let theirs = [block("a", 4 * 4096), block("b", 4 * 4096)];
        let places = Places::new(&blocks, &theirs, PageSize::K4).unwrap();
        let place = places.of(&name("b")).unwrap();
        place.clear(&[0, 8192]).unwrap();
        place.write(&[4096, 12288], &[5; 8192]).unwrap();
        place.clear(&[4096]).unwrap();
        let file = memory.mappings()[0].1.file();
        assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * 4096);
        let mut bytes = vec![1; 4 * 4096];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        assert!(bytes == [vec![0; 3 * 4096], vec![5; 4096]].concat());
        for outside in [4 * 4096, 63 * 4096, 64 * 4096, u64::MAX - 4095] {
            assert!(place.clear(&[outside]).is_err());
            assert!(place.write(&[outside], &[5; 4096]).is_err());
            assert!(place.clear(&[outside]).is_err());
        }
    }

    #[test]
    fn a_page_that_never_came_is_named() {
        let memory = memory();
        let blocks = memory.blocks();
        let theirs = [block("a", 4 * 4096), block("b", 4 * 4096)];
        let places = Places::new(&blocks, &theirs, PageSize::K4).unwrap();
        let (a, b) = (
            places.of(&name("a")).unwrap(),
            places.of(&name("b")).unwrap(),
        );
        a.write(&[0, 4096, 8192, 12288], &[5; 4 * 4096]).unwrap();
        b.clear(&[0, 12288]).unwrap();
        // One that is outside is none of the block.
        assert!(b.clear(&[16384]).is_err());
        b.write(&[4096], &[5; 4096]).unwrap();
        assert!(matches!(
            places.check_all_came(),
            Err(EngineFault::PagesMissing { block, missing: 1, pages: 4, first: 8192 })
                if *block == name("b")
        ));
        b.clear(&[8192]).unwrap();
        places.check_all_came().unwrap();
    }

    #[test]
    fn blocks_must_be_the_same() {
        let memory = memory();
        let blocks = memory.blocks();
        let fault = |theirs: &[Block]| {
            let failure = Places::new(&blocks, theirs, PageSize::K4).err().unwrap();
            match failure.cause {
                Cause::Engine(error) => error.0,
                other => panic!("{other}"),
            }
        };
        let (a, b) = (block("a", 4 * 4096), block("b", 4 * 4096));
        assert!(matches!(
            fault(std::slice::from_ref(&a)),
            EngineFault::BlockCount { found: 1, .. }
        ));
        assert!(matches!(
            fault(&[a.clone(), block("c", 4 * 4096)]),
            EngineFault::UnknownBlock
        ));
        assert!(matches!(
            fault(&[block("a", 4096), b]),
            EngineFault::BlockLength { found: 4096, .. }
        ));
    }
}
