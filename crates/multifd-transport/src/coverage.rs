//! Which pages of a guest have come.
//!
//! A source sends every page of every block that it lists at least once, with contents or as zero. So a receiver that has
//! seen each of them has seen all channels, however many there were.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use multifd_wire::main_stream::Block;
use multifd_wire::{BlockName, PageSize};

/// Pages in one piece of a bitmap: 4 KiB of bits, for 128 MiB of pages of 4 KiB. Pieces are made as pages come, so that the
/// length which a source states takes no memory.
const PIECE_PAGES: u64 = 1 << 15;
const PIECE_WORDS: usize = (PIECE_PAGES / 64) as usize;

/// Pages that do not fit to the list of blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoverageFault {
    /// The source sends pages of a block which it did not announce.
    #[error("the source did not announce a block of that name")]
    UnknownBlock,
    /// A page that is not in its block.
    #[error("a page at {offset:#x} is not in the block, which has {block_bytes:#x} bytes")]
    Outside {
        /// Where in the block the page starts, in bytes.
        offset: u64,
        /// The length of the block, in bytes.
        block_bytes: u64,
    },
    /// The channels do not agree about the size of the guest's pages.
    #[error("pages of {found} bytes, in a guest whose pages have {allowed} bytes")]
    PageSize {
        /// The size of this page.
        found: PageSize,
        /// That of those before.
        allowed: PageSize,
    },
    /// Not every page has come.
    #[error(
        "{missing} of {pages} pages of block {block} never came, the first of them at {first:#x}: a channel is missing, or a \
         device leaves pages out (virtio-mem, free-page-hint: switch it off for this)"
    )]
    Missing {
        /// The block.
        block: Box<BlockName>,
        /// How many pages have not come.
        missing: u64,
        /// How many pages it has.
        pages: u64,
        /// The offset of the first that has not come, in bytes.
        first: u64,
    },
}

/// Which pages of each block have come. Many threads may note at once.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    blocks: OnceLock<Vec<Covered>>,
    page_size: OnceLock<PageSize>,
}

#[derive(Debug)]
struct Covered {
    block: Block,
    pieces: Mutex<Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    bits: BTreeMap<u64, Box<[u64; PIECE_WORDS]>>,
    /// How many bits are set.
    count: u64,
}

impl Coverage {
    /// The source has listed its blocks.
    pub(crate) fn list(&self, blocks: &[Block]) {
        self.blocks.get_or_init(|| {
            let covered = |block: &Block| Covered {
                block: block.clone(),
                pieces: Mutex::default(),
            };
            blocks.iter().map(covered).collect()
        });
    }

    /// Pages of the named block have come, with contents or as zero.
    ///
    /// # Errors
    /// When they cannot be this guest's. Those before the one at fault are noted.
    pub(crate) fn note(
        &self,
        block: &BlockName,
        page_size: PageSize,
        offsets: &[u64],
    ) -> Result<(), CoverageFault> {
        let covered = self.find(block)?;
        self.note_in(covered, page_size, offsets)
    }

    /// The same, for the block that is `index` in the list.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn note_nth(
        &self,
        index: usize,
        page_size: PageSize,
        offset: u64,
    ) -> Result<(), CoverageFault> {
        let blocks = self.blocks.get().map(Vec::as_slice).unwrap_or_default();
        let covered = blocks.get(index).ok_or(CoverageFault::UnknownBlock)?;
        self.note_in(covered, page_size, &[offset])
    }

    /// Whether the page has come.
    pub(crate) fn has(&self, block: &BlockName, page_size: PageSize, offset: u64) -> bool {
        let page = offset / page_size.bytes() as u64;
        self.find(block)
            .is_ok_and(|covered| covered.lock().has(page))
    }

    /// The first block of which pages have not come. With `x-ignore-shared`, blocks of which none has come are the shared
    /// ones.
    ///
    /// # Errors
    /// [`CoverageFault::Missing`].
    pub(crate) fn check(&self, ignores_shared: bool) -> Result<(), CoverageFault> {
        let page_size = self.page_size.get().copied().unwrap_or(PageSize::K4);
        let blocks = self.blocks.get().map(Vec::as_slice).unwrap_or_default();
        for covered in blocks {
            let pages = covered.pages(page_size);
            let pieces = covered.lock();
            if pieces.count == pages || pieces.count == 0 && ignores_shared {
                continue;
            }
            let first = pieces
                .first_missing()
                .saturating_mul(page_size.bytes() as u64);
            return Err(CoverageFault::Missing {
                block: Box::new(covered.block.name.clone()),
                missing: pages.saturating_sub(pieces.count),
                pages,
                first,
            });
        }
        Ok(())
    }

    /// The blocks of which no page has come.
    pub(crate) fn untouched(&self) -> Vec<BlockName> {
        let blocks = self.blocks.get().map(Vec::as_slice).unwrap_or_default();
        let untouched = blocks.iter().filter(|covered| {
            let pages = covered.block.used_length;
            pages > 0 && covered.lock().count == 0
        });
        untouched
            .map(|covered| covered.block.name.clone())
            .collect()
    }

    fn find(&self, block: &BlockName) -> Result<&Covered, CoverageFault> {
        let blocks = self.blocks.get().map(Vec::as_slice).unwrap_or_default();
        let mut named = blocks.iter().filter(|covered| covered.block.name == *block);
        named.next().ok_or(CoverageFault::UnknownBlock)
    }

    fn note_in(
        &self,
        covered: &Covered,
        page_size: PageSize,
        offsets: &[u64],
    ) -> Result<(), CoverageFault> {
        let allowed = *self.page_size.get_or_init(|| page_size);
        if page_size != allowed {
            let found = page_size;
            return Err(CoverageFault::PageSize { found, allowed });
        }
        let bytes = page_size.bytes() as u64;
        let block_bytes = covered.block.used_length;
        let mut pieces = covered.lock();
        for &offset in offsets {
            if offset
                .checked_add(bytes)
                .is_none_or(|end| end > block_bytes)
            {
                return Err(CoverageFault::Outside {
                    offset,
                    block_bytes,
                });
            }
            pieces.set(offset / bytes);
        }
        Ok(())
    }
}

impl Covered {
    fn pages(&self, page_size: PageSize) -> u64 {
        self.block.used_length / page_size.bytes() as u64
    }

    /// A thread that panicked has left a bit unset at worst, and the page counts as missing.
    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pieces {
    fn set(&mut self, page: u64) {
        let (piece, word, bit) = place(page);
        let bits = self
            .bits
            .entry(piece)
            .or_insert_with(|| Box::new([0; PIECE_WORDS]));
        if let Some(word) = bits.get_mut(word) {
            self.count += u64::from(*word & bit == 0);
            *word |= bit;
        }
    }

    fn has(&self, page: u64) -> bool {
        let (piece, word, bit) = place(page);
        let word = self.bits.get(&piece).and_then(|bits| bits.get(word));
        word.is_some_and(|word| word & bit != 0)
    }

    fn first_missing(&self) -> u64 {
        let mut expected = 0;
        for (&piece, bits) in &self.bits {
            if piece != expected {
                break;
            }
            if let Some(word) = bits.iter().position(|&word| word != u64::MAX) {
                let bit = bits.get(word).map_or(0, |word| word.trailing_ones());
                return piece * PIECE_PAGES + word as u64 * 64 + u64::from(bit);
            }
            expected += 1;
        }
        expected * PIECE_PAGES
    }
}

/// A page's piece, its word there, and its bit.
const fn place(page: u64) -> (u64, usize, u64) {
    let within = page % PIECE_PAGES;
    (
        page / PIECE_PAGES,
        (within / 64) as usize,
        1 << (within % 64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coverage(used_length: u64) -> (Coverage, BlockName) {
        let name = BlockName::new(b"ram").unwrap();
        let block = Block {
            name: name.clone(),
            used_length,
        };
        let coverage = Coverage::default();
        coverage.list(&[block]);
        (coverage, name)
    }

    #[test]
    fn every_page_has_to_come_once() {
        let pages = 2 * PIECE_PAGES + 3;
        let (coverage, ram) = coverage(pages * 4096);
        let all: Vec<u64> = (0..pages).map(|page| page * 4096).collect();
        for skipped in [0, 5, PIECE_PAGES, pages - 1] {
            let (coverage, ram) = self::coverage(pages * 4096);
            let offsets: Vec<u64> = all
                .iter()
                .copied()
                .filter(|&offset| offset != skipped * 4096)
                .collect();
            coverage.note(&ram, PageSize::K4, &offsets).unwrap();
            let first = skipped * 4096;
            let fault = coverage.check(false).unwrap_err();
            let found = matches!(fault, CoverageFault::Missing { missing: 1, first: at, .. } if at == first);
            assert!(found, "{fault}");
            assert!(
                coverage.check(true).is_err(),
                "a block that came in part is not a shared one"
            );
        }
        coverage.note(&ram, PageSize::K4, &all).unwrap();
        coverage.note(&ram, PageSize::K4, &all).unwrap();
        assert_eq!(coverage.check(false), Ok(()));
    }

    #[test]
    fn shared_blocks_are_named_and_no_others_are_let_pass() {
        let (coverage, ram) = coverage(8192);
        assert!(coverage.check(false).is_err());
        assert_eq!(coverage.check(true), Ok(()));
        assert_eq!(coverage.untouched(), [ram]);
    }

    #[test]
    fn a_length_that_is_only_stated_takes_no_memory() {
        let (coverage, ram) = coverage(1 << 60);
        let last = (1 << 60) - 4096;
        coverage.note(&ram, PageSize::K4, &[last]).unwrap();
        assert!(coverage.has(&ram, PageSize::K4, last) && !coverage.has(&ram, PageSize::K4, 0));
        let outside = coverage.note(&ram, PageSize::K4, &[1 << 60]);
        assert!(matches!(outside, Err(CoverageFault::Outside { .. })));
        let larger = PageSize::new(64 << 10).unwrap();
        let other = coverage.note(&ram, larger, &[0]);
        assert!(matches!(other, Err(CoverageFault::PageSize { .. })));
    }
}
