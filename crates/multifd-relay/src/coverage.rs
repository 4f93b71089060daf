//! The pages of a guest that have come.
//!
//! A source sends every page of every block that it lists at least once, with contents or as zero.
//! So a receiver that has seen each of them has seen all channels, however many there were.
//!
//! Of each page the round is known in which it came last. A channel that comes late has pages of
//! rounds that have ended, and what came in a later round is newer.

use std::collections::BTreeMap;
use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use multifd_wire::main_stream::Block;
use multifd_wire::{BlockName, PageSize};

/// Pages in one piece of what is known: two bytes each, and 64 KiB for 128 MiB of pages of 4 KiB.
/// Pieces are made as pages come, so that the length which a source states takes no memory.
const PIECE_PAGES: u64 = 1 << 15;

/// The last round that is told apart from later ones. No migration has as many.
const LAST_ROUND: u64 = u16::MAX as u64 - 1;

/// Pages that do not fit the list of blocks, or never came.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct CoverageFault(#[from] Gap);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Gap {
    /// The source sends pages of a block which it did not announce.
    #[error("the source did not announce a block of that name")]
    UnknownBlock,
    /// A page that is not in its block.
    #[error("a page at {offset:#x} is not in the block, which has {block_bytes:#x} bytes")]
    Outside {
        /// The page's offset in the block, in bytes.
        offset: u64,
        /// The length of the block, in bytes.
        block_bytes: u64,
    },
    /// The channels do not agree about the size of the guest's pages.
    #[error("pages of {found} bytes, in a guest whose pages have {allowed} bytes")]
    PageSize {
        /// The size of this page.
        found: PageSize,
        /// The size of the earlier ones.
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
        /// The number of missing pages.
        missing: u64,
        /// The block's number of pages.
        pages: u64,
        /// The offset of the first that has not come, in bytes.
        first: u64,
    },
    /// Not every packet has come, as the source has numbered them.
    #[error(
        "only {found} of {packets} packets came, as the source has numbered them: a channel is missing"
    )]
    Packets {
        /// The number that came.
        found: u64,
        /// The least number that the source sent.
        packets: u64,
    },
}

/// The pages of each block that have come. Many threads may note at once.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    blocks: OnceLock<Vec<Covered>>,
    page_size: OnceLock<PageSize>,
    /// Held while a page is made and noted: by one alone where it depends on what has been noted.
    order: RwLock<()>,
}

#[derive(Debug)]
struct Covered {
    block: Block,
    pieces: Mutex<Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    /// Of each page one more than the round in which it came last, or 0.
    rounds: BTreeMap<u64, Box<[u16]>>,
    /// The number of pages that have come.
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
        round: u64,
    ) -> Result<(), Gap> {
        let covered = self.find(block)?;
        self.note_in(covered, page_size, offsets, round)
    }

    /// Held while a channel that is in the current round writes and notes pages.
    /// [`behind`](Self::behind) excludes it, so that a late channel sees whether newer contents
    /// exist.
    pub(crate) fn in_time(&self) -> RwLockReadGuard<'_, ()> {
        self.order.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a late channel writes pages of a round that has ended, from before it looks
    /// whether newer contents exist.
    pub(crate) fn behind(&self) -> RwLockWriteGuard<'_, ()> {
        self.order.write().unwrap_or_else(PoisonError::into_inner)
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
        round: u64,
    ) -> Result<(), Gap> {
        let blocks = self.blocks.get().map(Vec::as_slice).unwrap_or_default();
        let covered = blocks.get(index).ok_or(Gap::UnknownBlock)?;
        self.note_in(covered, page_size, &[offset], round)
    }

    /// The name of the block at `index` in the list.
    pub(crate) fn nth(&self, index: usize) -> Option<&BlockName> {
        let covered = self.blocks.get()?.get(index)?;
        Some(&covered.block.name)
    }

    /// Whether the page has come in a later round than this one.
    pub(crate) fn is_newer(
        &self,
        block: &BlockName,
        page_size: PageSize,
        offset: u64,
        round: u64,
    ) -> bool {
        let page = offset / page_size.bytes() as u64;
        let covered = self.find(block).ok();
        let last = covered.and_then(|covered| covered.lock().last(page));
        last.is_some_and(|last| last > round.min(LAST_ROUND))
    }

    /// The first block of which pages have not come. With `x-ignore-shared`, blocks of which none
    /// has come are the shared ones.
    ///
    /// # Errors
    /// [`Gap::Missing`].
    pub(crate) fn check(&self, ignores_shared: bool) -> Result<(), Gap> {
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
            return Err(Gap::Missing {
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

    fn find(&self, block: &BlockName) -> Result<&Covered, Gap> {
        let blocks = self.blocks.get().map(Vec::as_slice).unwrap_or_default();
        let mut named = blocks.iter().filter(|covered| covered.block.name == *block);
        named.next().ok_or(Gap::UnknownBlock)
    }

    fn note_in(
        &self,
        covered: &Covered,
        page_size: PageSize,
        offsets: &[u64],
        round: u64,
    ) -> Result<(), Gap> {
        let allowed = *self.page_size.get_or_init(|| page_size);
        if page_size != allowed {
            let found = page_size;
            return Err(Gap::PageSize { found, allowed });
        }
        let bytes = page_size.bytes() as u64;
        let block_bytes = covered.block.used_length;
        let mut pieces = covered.lock();
        for &offset in offsets {
            if offset
                .checked_add(bytes)
                .is_none_or(|end| end > block_bytes)
            {
                return Err(Gap::Outside {
                    offset,
                    block_bytes,
                });
            }
            pieces.set(offset / bytes, round);
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
    fn set(&mut self, page: u64, round: u64) {
        let (piece, index) = place(page);
        let rounds = self.rounds.entry(piece);
        let rounds = rounds.or_insert_with(|| vec![0; PIECE_PAGES as usize].into());
        if let Some(last) = rounds.get_mut(index) {
            self.count += u64::from(*last == 0);
            // It fits, as it is at most the last round.
            *last = (*last).max(round.min(LAST_ROUND) as u16 + 1);
        }
    }

    fn last(&self, page: u64) -> Option<u64> {
        let (piece, index) = place(page);
        let last = *self.rounds.get(&piece)?.get(index)?;
        u64::from(last).checked_sub(1)
    }

    fn first_missing(&self) -> u64 {
        let mut expected = 0;
        for (&piece, rounds) in &self.rounds {
            if piece != expected {
                break;
            }
            if let Some(index) = rounds.iter().position(|&last| last == 0) {
                return piece * PIECE_PAGES + index as u64;
            }
            expected += 1;
        }
        expected * PIECE_PAGES
    }
}

/// A page's piece, and its place there.
const fn place(page: u64) -> (u64, usize) {
    (page / PIECE_PAGES, (page % PIECE_PAGES) as usize)
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
            coverage.note(&ram, PageSize::K4, &offsets, 0).unwrap();
            let first = skipped * 4096;
            let fault = coverage.check(false).unwrap_err();
            let found = matches!(fault, Gap::Missing { missing: 1, first: at, .. } if at == first);
            assert!(found, "{fault}");
            assert!(
                coverage.check(true).is_err(),
                "a block that came in part is not a shared one"
            );
        }
        coverage.note(&ram, PageSize::K4, &all, 0).unwrap();
        coverage.note(&ram, PageSize::K4, &all, 0).unwrap();
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
        coverage.note(&ram, PageSize::K4, &[last], 0).unwrap();
        assert!(matches!(
            coverage.check(false),
            Err(Gap::Missing { first: 0, .. })
        ));
        let outside = coverage.note(&ram, PageSize::K4, &[1 << 60], 0);
        assert!(matches!(outside, Err(Gap::Outside { .. })));
        let other = coverage.note(&ram, PageSize::MAX, &[0], 0);
        assert!(matches!(other, Err(Gap::PageSize { .. })));
    }

    #[test]
    fn what_came_in_a_later_round_is_newer() {
        let (coverage, ram) = coverage(8192);
        let is_newer = |round| coverage.is_newer(&ram, PageSize::K4, 4096, round);
        assert!(!is_newer(0));
        coverage.note(&ram, PageSize::K4, &[4096], 2).unwrap();
        assert!(is_newer(1) && !is_newer(2) && !is_newer(3));
        coverage.note(&ram, PageSize::K4, &[4096], 1).unwrap();
        assert!(is_newer(1), "what is old makes nothing older");
        coverage
            .note(&ram, PageSize::K4, &[4096], u64::MAX)
            .unwrap();
        assert!(is_newer(2) && !is_newer(u64::MAX));
    }
}
