//! Putting pages where they belong.

use std::sync::atomic::{AtomicU64, Ordering};

use multifd_wire::control::Block;
use multifd_wire::{BlockName, PageSize};

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
    /// For a block that was all zero: one bit for each page that is so no more.
    written: Option<Vec<AtomicU64>>,
}

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
            // Theirs have different names, and there are as many of ours: when each is found, ours are all of them.
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

    /// The size of all pages.
    pub(super) const fn page_size(&self) -> PageSize {
        self.page_size
    }
}

impl<'a> Place<'a> {
    fn new(block: &'a MemoryBlock<'a>, page_size: PageSize) -> Self {
        let pages = block.range.len_bytes().div_ceil(page_size.bytes());
        let words = pages.div_ceil(u64::BITS as usize);
        let none = || std::iter::repeat_with(|| AtomicU64::new(0)).take(words);
        Self {
            block,
            page_bytes: page_size.bytes(),
            written: block.is_fresh.then(|| none().collect()),
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
            self.note(offset);
        }
        Ok(())
    }

    /// Makes pages zero: those that are so already are left alone, and take no memory.
    pub(super) fn clear(&self, offsets: &[u64]) -> Result<(), Cause> {
        for &offset in offsets {
            let range = &self.block.range;
            let outcome = if self.may_hold_something(offset) {
                range.clear(offset, self.page_bytes)
            } else {
                range.check(offset, self.page_bytes)
            };
            outcome.map_err(EngineFault::from)?;
        }
        Ok(())
    }

    fn note(&self, offset: u64) {
        if let Some((word, bit)) = self.bit(offset) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn may_hold_something(&self, offset: u64) -> bool {
        match self.bit(offset) {
            Some((word, bit)) => word.load(Ordering::Relaxed) & bit != 0,
            None => true,
        }
    }

    fn bit(&self, offset: u64) -> Option<(&AtomicU64, u64)> {
        let page = offset / self.page_bytes as u64;
        let index = usize::try_from(page / u64::from(u64::BITS)).ok()?;
        let word = self.written.as_ref()?.get(index)?;
        Some((word, 1 << (page % u64::from(u64::BITS))))
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
    fn blocks_must_be_the_same() {
        let memory = memory();
        let blocks = memory.blocks();
        let fault = |theirs: &[Block]| {
            let failure = Places::new(&blocks, theirs, PageSize::K4).err().unwrap();
            match failure.cause {
                Cause::Engine(fault) => fault,
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
