//! The sender's slots.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use multifd_wire::{BlockName, PageSize};

use super::Bases;
use super::directory::{Entry, Operation};
use super::memory::Share;
use super::shard::{Decision, Miss, Pool, Shard};

/// The pages that one end of a migration has sent: shared by the [encoders](super::Encoder) of all
/// its channels.
///
/// A slot's memory is allocated at its first use, and all slots never exceed the share.
#[derive(Debug)]
pub struct Sent {
    bases: Bases,
    share: Share,
    /// Made at the first packet, for its page size.
    slots: OnceLock<Slots>,
    /// A block's number is its index.
    blocks: RwLock<Vec<BlockName>>,
    totals: Totals,
}

#[derive(Debug)]
pub(crate) struct Slots {
    page_size: PageSize,
    shards: Box<[Mutex<Shard>]>,
}

/// Numbers of pages and bytes sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Pages that went whole, and are kept.
    pub kept: u64,
    /// Pages that went whole, and are not kept.
    pub passed: u64,
    /// Pages that went as a difference, or unchanged.
    pub differences: u64,
    /// Pages among these that were unchanged.
    pub same: u64,
    /// Bytes of these pages.
    pub difference_page_bytes: u64,
    /// Bytes of their differences, before they were compressed.
    pub area_bytes: u64,
    /// Slots with a page.
    pub slots_in_use: u64,
    /// All slots; 0 before the first page.
    pub slots: u64,
    /// Why pages went whole.
    pub misses: Misses,
}

/// Numbers of pages that went whole, by reason. Each such page has one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Misses {
    /// They were sent for the first time.
    pub new: u64,
    /// They were sent before, and were in no slot.
    pub lost: u64,
    /// They differed too much.
    pub changed: u64,
    /// A packet of a later epoch had used their slot.
    pub overtaken: u64,
    /// They were not compared, because many pages before them in the channel had differed too much.
    pub skipped: u64,
    /// They cannot have a slot: the migration has no memory for slots, their size is not that of
    /// the first page, or there are too many blocks.
    pub foreign: u64,
}

impl Sent {
    /// Slots for the pages of a migration. Both ends must have agreed on the share's bytes.
    #[must_use]
    pub fn new(share: Share) -> Self {
        Self::with(Bases::Slots, share)
    }

    /// Slots for a receiver that has no slots, and finds every page in place: see
    /// [`Decoder::in_place`](super::Decoder::in_place). All pages have one size. No page
    /// may be sent again before the receiver has confirmed the first time, except by the same
    /// channel.
    #[must_use]
    pub fn in_place(share: Share) -> Self {
        Self::with(Bases::InPlace, share)
    }

    fn with(bases: Bases, share: Share) -> Self {
        Self {
            bases,
            share,
            slots: OnceLock::new(),
            blocks: RwLock::default(),
            totals: Totals::default(),
        }
    }

    /// The place of the receiver's bases.
    pub(crate) const fn bases(&self) -> Bases {
        self.bases
    }

    /// The numbers of pages and bytes sent so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = self.totals.read();
        if let Some(slots) = self.slots.get() {
            let shards = slots.shards.iter();
            let in_use = shards.map(|shard| lock(shard).in_use() as u64);
            counts.slots_in_use = in_use.sum();
            counts.slots = super::slots(self.share.bytes(), slots.page_size).into();
        }
        counts
    }

    /// The slots for pages of this size.
    pub(crate) fn slots(&self, page_size: PageSize) -> Option<&Slots> {
        let make = || Slots::new(super::slots(self.share.bytes(), page_size), page_size);
        let slots = self.slots.get_or_init(make);
        (slots.page_size == page_size && !slots.shards.is_empty()).then_some(slots)
    }

    /// The number of a block, unless there are too many blocks.
    pub(crate) fn block(&self, name: &BlockName) -> Option<u8> {
        let number = |blocks: &[BlockName]| {
            let number = blocks.iter().position(|block| block == name);
            number.and_then(|number| u8::try_from(number).ok())
        };
        let known = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = number(&known) {
            return Some(number);
        }
        drop(known);
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        if number(&blocks).is_none() && blocks.len() < MAX_BLOCKS {
            blocks.push(name.clone());
        }
        number(&blocks)
    }

    pub(crate) fn add(&self, more: &Counts) {
        self.totals.add(more);
    }
}

impl Slots {
    fn new(count: u32, page_size: PageSize) -> Self {
        let shards = count.div_ceil(LEAST_OF_SHARD).min(MAX_SHARDS);
        let pool = Arc::new(Pool::new(count));
        let shard = |_| {
            let share = count.div_ceil(shards) as usize;
            Mutex::new(Shard::new(pool.clone(), share, page_size.bytes()))
        };
        Self {
            page_size,
            shards: (0..shards).map(shard).collect(),
        }
    }

    /// The shard of a page. Pages in sequence share one, so that they get slots in sequence. Shards
    /// take turns, so that all fill up evenly.
    pub(crate) fn shard(&self, key: u64) -> Option<&Mutex<Shard>> {
        let turn = (key >> SEQUENCE_BITS) % self.shards.len().max(1) as u64;
        self.shards.get(turn as usize)
    }
}

impl Counts {
    /// Counts a page.
    pub(crate) fn count(&mut self, decision: Decision, page_bytes: usize) {
        match decision.entry {
            Entry::Pass => self.passed += 1,
            Entry::Slot { operation, .. } => match operation {
                Operation::Keep => self.kept += 1,
                Operation::Same | Operation::Difference => {
                    self.same += u64::from(operation == Operation::Same);
                    self.differences += 1;
                    self.difference_page_bytes += page_bytes as u64;
                }
            },
        }
        match decision.miss {
            None => {}
            Some(Miss::New) => self.misses.new += 1,
            Some(Miss::Lost) => self.misses.lost += 1,
            Some(Miss::Changed) => self.misses.changed += 1,
            Some(Miss::Overtaken) => self.misses.overtaken += 1,
            Some(Miss::Skipped) => self.misses.skipped += 1,
            Some(Miss::Foreign) => self.misses.foreign += 1,
        }
    }
}

/// [`Counts`] that several channels add to.
#[derive(Debug, Default)]
struct Totals {
    kept: AtomicU64,
    passed: AtomicU64,
    differences: AtomicU64,
    same: AtomicU64,
    difference_page_bytes: AtomicU64,
    area_bytes: AtomicU64,
    new: AtomicU64,
    lost: AtomicU64,
    changed: AtomicU64,
    overtaken: AtomicU64,
    skipped: AtomicU64,
    foreign: AtomicU64,
}

impl Totals {
    fn add(&self, more: &Counts) {
        let add = |total: &AtomicU64, more| total.fetch_add(more, Ordering::Relaxed);
        add(&self.kept, more.kept);
        add(&self.passed, more.passed);
        add(&self.differences, more.differences);
        add(&self.same, more.same);
        add(&self.difference_page_bytes, more.difference_page_bytes);
        add(&self.area_bytes, more.area_bytes);
        add(&self.new, more.misses.new);
        add(&self.lost, more.misses.lost);
        add(&self.changed, more.misses.changed);
        add(&self.overtaken, more.misses.overtaken);
        add(&self.skipped, more.misses.skipped);
        add(&self.foreign, more.misses.foreign);
    }

    fn read(&self) -> Counts {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Counts {
            kept: read(&self.kept),
            passed: read(&self.passed),
            differences: read(&self.differences),
            same: read(&self.same),
            difference_page_bytes: read(&self.difference_page_bytes),
            area_bytes: read(&self.area_bytes),
            misses: Misses {
                new: read(&self.new),
                lost: read(&self.lost),
                changed: read(&self.changed),
                overtaken: read(&self.overtaken),
                skipped: read(&self.skipped),
                foreign: read(&self.foreign),
            },
            ..Counts::default()
        }
    }
}

/// The key of a page. `None` if the page is beyond any block of 2^56 pages.
pub(crate) fn key(block: u8, page_number: u64) -> Option<u64> {
    let is_possible = page_number < 1 << BLOCK_SHIFT;
    is_possible.then_some(u64::from(block) << BLOCK_SHIFT | page_number)
}

pub(crate) fn lock<L>(lock: &Mutex<L>) -> std::sync::MutexGuard<'_, L> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

const BLOCK_SHIFT: u32 = 56;
/// The most blocks with slots. A machine has a few, and one more for each memory module and option
/// ROM. The number 255 stays unused, because its keys would include the one of a free slot.
const MAX_BLOCKS: usize = 255;
/// A sequence has 2^7 pages, as many as a packet: channels with consecutive packets use different
/// shards.
const SEQUENCE_BITS: u32 = 7;
/// Enough shards that 16 channels rarely wait for one another.
const MAX_SHARDS: u32 = 64;
/// The least slots of a shard: with fewer, all pages share one shard.
const LEAST_OF_SHARD: u32 = 256;
