//! A part of the sender's slots: which page is in which, and for which page one is emptied.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::difference::{self, Difference};
use super::directory::{Entry, MAX_VERSION, Operation};
use super::memory::Used;
use super::places::Places;
use super::sent::lock;
use super::sketch::Sketch;

/// Slots under one lock. A shard takes them from the pool as it needs them, a few consecutive ones
/// at a time, so that pages in sequence get slots in sequence.
#[derive(Debug)]
pub(crate) struct Shard {
    pool: Arc<Pool>,
    page_bytes: usize,
    /// All have [`EXTENT`] slots, but for the last one of the pool.
    extents: Vec<Extent>,
    /// The number of slots in the extents.
    capacity: usize,
    /// Slots that were used so far. A slot's place is its index.
    slots: Vec<Slot>,
    places: Places,
    /// The last slot that was emptied; its link is the one before.
    free: Option<u32>,
    free_count: usize,
    /// Where the search for a slot goes on.
    hand: usize,
    /// How often pages were sent that are in slots, and that are in none.
    sketch: Sketch,
}

/// Consecutive slots.
#[derive(Debug)]
struct Extent {
    /// The number of the first slot.
    first: u32,
    pages: Vec<u8>,
}

/// The slots that no shard has taken.
#[derive(Debug)]
pub(crate) struct Pool {
    next: AtomicU32,
    count: u32,
    used: Used,
    /// When the process had too little memory for more of them.
    refused: Mutex<Option<Instant>>,
}

/// How long no memory is asked for where there was too little: each look reads files.
const PAUSE: Duration = Duration::from_millis(250);

impl Pool {
    pub(crate) fn new(count: u32) -> Self {
        Self {
            next: AtomicU32::new(0),
            count,
            used: Used::default(),
            refused: Mutex::default(),
        }
    }

    /// The first of the next slots, and how many there are: none at the end, or while the process
    /// has too little memory.
    fn take(&self, page_bytes: usize) -> Option<(u32, u32)> {
        let part = |first: u32| self.count.saturating_sub(first).min(EXTENT);
        let next = u64::from(part(self.next.load(Ordering::Relaxed)));
        let mut refused = lock(&self.refused);
        if next == 0 || refused.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        *refused = None;
        if !self.used.grow(next * page_bytes as u64) {
            *refused = Some(Instant::now());
            return None;
        }
        drop(refused);
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |first| {
                (part(first) > 0).then(|| first + part(first))
            });
        taken.ok().map(|first| (first, part(first)))
    }
}

#[derive(Debug)]
struct Slot {
    key: u64,
    /// The highest epoch of an operation on it.
    epoch: u64,
    /// 0 while it is empty.
    version: u32,
    /// While it is free: the next free slot plus 1.
    link: u32,
}

/// What was decided for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) entry: Entry,
    pub(crate) miss: Option<Miss>,
}

/// Why a page goes whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// It was not sent before.
    New,
    /// It was sent before, and is in no slot.
    Lost,
    /// It differs too much.
    Changed,
    /// A packet of a later epoch has used its slot.
    Overtaken,
    /// Many pages before it differed too much, and it was not compared.
    Skipped,
    /// There are no slots for such a page, or its slot has had all its versions.
    Foreign,
}

impl Shard {
    /// A shard that will have about `share` slots.
    pub(crate) fn new(pool: Arc<Pool>, share: usize, page_bytes: usize) -> Self {
        Self {
            pool,
            page_bytes,
            extents: Vec::new(),
            capacity: 0,
            slots: Vec::new(),
            places: Places::default(),
            free: None,
            free_count: 0,
            hand: 0,
            sketch: Sketch::new(share),
        }
    }

    /// The number of slots with a page.
    pub(crate) fn in_use(&self) -> usize {
        self.slots.len() - self.free_count
    }

    /// Decides how a page goes, and appends its difference, if that is the way, to `area`.
    pub(crate) fn send(
        &mut self,
        key: u64,
        page: &[u8],
        epoch: u64,
        limit: usize,
        area: &mut Vec<u8>,
    ) -> Decision {
        let count = self.sketch.add(key);
        match self.find(key) {
            Some(slot) => self.send_again(slot, page, epoch, limit, area),
            None => self.send_unknown(key, count, page, epoch),
        }
    }

    /// Forgets a page, which has become a zero page.
    pub(crate) fn forget(&mut self, key: u64) {
        if let Some(slot) = self.find(key) {
            self.unlink(slot);
            let link = self.free.map_or(0, |free| free + 1);
            if let Some(slot) = self.slot_mut(slot) {
                slot.key = FREE;
                slot.link = link;
            }
            self.free = Some(slot);
            self.free_count += 1;
        }
    }

    fn send_again(
        &mut self,
        place: u32,
        page: &[u8],
        epoch: u64,
        limit: usize,
        area: &mut Vec<u8>,
    ) -> Decision {
        let place = place as usize;
        let extent = self.extents.get_mut(place / EXTENT as usize);
        let kept = extent.and_then(|extent| extent.page(place, page.len()));
        let (Some(slot), Some((number, kept))) = (self.slots.get_mut(place), kept) else {
            return pass(Miss::Foreign);
        };
        if slot.epoch > epoch {
            return pass(Miss::Overtaken);
        }
        if slot.version > MAX_VERSION {
            return pass(Miss::Foreign);
        }
        let (operation, miss) = match difference::update(kept, page, limit, area) {
            Difference::None => (Operation::Same, None),
            Difference::Written => (Operation::Difference, None),
            Difference::TooMuch => {
                kept.copy_from_slice(page);
                (Operation::Keep, Some(Miss::Changed))
            }
        };
        if miss.is_some() {
            self.sketch.halve(slot.key);
        }
        let entry = slot.next(number, operation, epoch);
        Decision { entry, miss }
    }

    fn send_unknown(&mut self, key: u64, count: u64, page: &[u8], epoch: u64) -> Decision {
        let miss = if count > 1 { Miss::Lost } else { Miss::New };
        let found = self.empty_slot(epoch);
        let Some(index) = found.or_else(|| self.displace(count, epoch)) else {
            return pass(miss);
        };
        let place = index as usize;
        let extent = self.extents.get_mut(place / EXTENT as usize);
        let kept = extent.and_then(|extent| extent.page(place, page.len()));
        let (Some(slot), Some((number, kept))) = (self.slots.get_mut(place), kept) else {
            return pass(miss);
        };
        kept.copy_from_slice(page);
        slot.key = key;
        let entry = slot.next(number, Operation::Keep, epoch);
        self.places.insert(key, index);
        Decision {
            entry,
            miss: Some(miss),
        }
    }

    /// Takes a slot without a page.
    fn empty_slot(&mut self, epoch: u64) -> Option<u32> {
        if let Some(number) = self.free {
            let slot = self.slots.get(number as usize)?;
            if slot.may_be_used(epoch) {
                self.free = slot.link.checked_sub(1);
                self.free_count -= 1;
                return Some(number);
            }
        }
        if self.slots.len() == self.capacity {
            self.grow()?;
        }
        let number = u32::try_from(self.slots.len()).ok()?;
        self.slots.push(Slot {
            key: FREE,
            epoch: 0,
            version: 0,
            link: 0,
        });
        Some(number)
    }

    /// Empties one of the next slots, if its page was sent less often than one that was sent
    /// `count` times.
    ///
    /// In a round, every page was sent once more than those that the round has not come to yet. So
    /// once more is a reason only if a whole round has passed without the slot's page. Otherwise a
    /// round that is larger than all slots would displace every page shortly before it comes.
    fn displace(&mut self, count: u64, epoch: u64) -> Option<u32> {
        for _ in 0..MOST_STEPS.min(self.slots.len()) {
            let number = self.hand;
            self.hand = (number + 1) % self.slots.len();
            let slot = self.slots.get(number)?;
            let may_be_used = slot.key != FREE && slot.may_be_used(epoch);
            let is_idle = slot.epoch.saturating_add(1) < epoch;
            let margin = if is_idle { 1 } else { 2 };
            if may_be_used && self.sketch.count(slot.key) + margin <= count {
                let number = u32::try_from(number).ok()?;
                self.unlink(number);
                return Some(number);
            }
        }
        None
    }

    fn find(&self, key: u64) -> Option<u32> {
        self.places.find(key, |slot| key_of(&self.slots, slot))
    }

    fn unlink(&mut self, slot: u32) {
        let (slots, key) = (&self.slots, key_of(&self.slots, slot));
        self.places.remove(key, slot, |slot| key_of(slots, slot));
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    /// Takes more slots, if there are more, and memory for them.
    fn grow(&mut self) -> Option<()> {
        let (first, count) = self.pool.take(self.page_bytes)?;
        let count = count as usize;
        let mut pages = Vec::new();
        pages.try_reserve_exact(count * self.page_bytes).ok()?;
        pages.resize(count * self.page_bytes, 0);
        self.extents.push(Extent { first, pages });
        self.capacity += count;
        if self.slots.capacity() < self.capacity {
            // A vector that doubled would exceed the bytes for each slot.
            let more = count.max(self.slots.len() / 8);
            self.slots.reserve_exact(more);
        }
        let slots = &self.slots;
        let used = 0..u32::try_from(slots.len()).unwrap_or(0);
        let used = used.filter(|slot| key_of(slots, *slot) != FREE);
        self.places
            .make_room(self.capacity, used, |slot| key_of(slots, slot));
        Some(())
    }
}

impl Extent {
    /// The number of the slot with this index in the shard, and its page.
    fn page(&mut self, place: usize, page_bytes: usize) -> Option<(u32, &mut [u8])> {
        let index = place % EXTENT as usize;
        let number = self.first + index as u32;
        let start = index * page_bytes;
        let page = self.pages.get_mut(start..start + page_bytes)?;
        Some((number, page))
    }
}

impl Slot {
    const fn may_be_used(&self, epoch: u64) -> bool {
        self.epoch <= epoch && self.version <= MAX_VERSION
    }

    /// The directory's entry for the next operation.
    fn next(&mut self, number: u32, operation: Operation, epoch: u64) -> Entry {
        let version = self.version;
        self.version += 1;
        self.epoch = epoch;
        Entry::Slot {
            operation,
            slot: number,
            version,
        }
    }
}

const fn pass(miss: Miss) -> Decision {
    Decision {
        entry: Entry::Pass,
        miss: Some(miss),
    }
}

fn key_of(slots: &[Slot], slot: u32) -> u64 {
    slots.get(slot as usize).map_or(FREE, |slot| slot.key)
}

/// So many slots are taken at a time: enough for sequences, and few enough that little is left over
/// in each shard.
const EXTENT: u32 = 16;
/// No page has this key: it would be the last of a block of 2^64 bytes and more.
const FREE: u64 = u64::MAX;
/// The search for a slot passes at most so many, which costs less than copying a page.
const MOST_STEPS: usize = 8;
