//! A part of the sender's slots: finds a page's slot, and chooses the page that a new one replaces.

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
    /// Each has [`EXTENT`] slots; the last one of the pool may have fewer.
    extents: Vec<Extent>,
    /// The number of slots in the extents.
    capacity: usize,
    /// Slots that were used so far. The extents have their pages in the same order.
    slots: Vec<Slot>,
    places: Places,
    /// The slot that was freed last; its link leads to the one freed before.
    free: Option<u32>,
    free_count: usize,
    /// The index at which the search for a slot goes on.
    hand: usize,
    /// Counts how often each page was sent, whether or not it is in a slot.
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
    /// The time at which the process last had too little memory for more slots.
    refused: Mutex<Option<Instant>>,
}

/// The least time between two attempts while memory is short: each attempt reads files.
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

    /// Takes the next slots: returns the first one and their number. None if all are taken, or
    /// while the process has too little memory.
    fn take(&self, page_bytes: usize) -> Option<(u32, u32)> {
        let part = |first: u32| self.count.saturating_sub(first).min(EXTENT);
        let next = u64::from(part(self.next.load(Ordering::Relaxed)));
        let mut refused = lock(&self.refused);
        if next == 0 || refused.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        *refused = None;
        if !self.used.try_grow(next * page_bytes as u64) {
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
    /// The epoch of the last operation on it.
    epoch: u64,
    /// 0 while it is empty.
    version: u32,
    /// While it is free: the next free slot plus 1.
    link: u32,
}

/// The decision on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) entry: Entry,
    pub(crate) miss: Option<Miss>,
}

impl Decision {
    /// The page goes whole, and has no slot.
    pub(crate) const fn pass(miss: Miss) -> Self {
        Self {
            entry: Entry::Pass,
            miss: Some(miss),
        }
    }
}

/// Why a page goes whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// It was not sent before.
    New,
    /// It was sent before, but is in no slot.
    Lost,
    /// It differs too much.
    Changed,
    /// A packet of a later epoch has used its slot.
    Overtaken,
    /// It was not compared, because many pages before it differed too much.
    Skipped,
    /// Such pages have no slots, or its slot has no version left.
    Foreign,
}

impl Shard {
    /// A shard that is expected to take about `share` slots.
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

    /// Decides the operation of a page. Appends its difference, if it goes as one, to `area`.
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

    /// Frees the slot of a page that has passed it. The receiver's base is the page itself, so it
    /// is not the kept page any more.
    pub(crate) fn passed(&mut self, key: u64, decision: Decision) {
        match decision.miss {
            // These pages are in no slot, or in one that was updated.
            None | Some(Miss::New | Miss::Lost | Miss::Changed) => {}
            Some(Miss::Overtaken | Miss::Skipped | Miss::Foreign) => self.forget(key),
        }
    }

    /// Frees the slot of a page that has become a zero page.
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
            return Decision::pass(Miss::Foreign);
        };
        if slot.epoch > epoch {
            return Decision::pass(Miss::Overtaken);
        }
        if slot.version > MAX_VERSION {
            return Decision::pass(Miss::Foreign);
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
            return Decision::pass(miss);
        };
        let place = index as usize;
        let extent = self.extents.get_mut(place / EXTENT as usize);
        let kept = extent.and_then(|extent| extent.page(place, page.len()));
        let (Some(slot), Some((number, kept))) = (self.slots.get_mut(place), kept) else {
            return Decision::pass(miss);
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

    /// Empties a slot for a page that was sent `count` times: one of the next slots whose page was
    /// sent less often.
    ///
    /// During a round, pages that were sent in it have a count that is one higher than those that
    /// are still to come. So a difference of one counts only if the slot's page was not sent for a
    /// whole round. Otherwise a round with more pages than slots would displace each page shortly
    /// before it is sent again.
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

    /// Takes more slots from the pool, and allocates their memory. None if that is impossible.
    fn grow(&mut self) -> Option<()> {
        let (first, count) = self.pool.take(self.page_bytes)?;
        let count = count as usize;
        let mut pages = Vec::new();
        pages.try_reserve_exact(count * self.page_bytes).ok()?;
        pages.resize(count * self.page_bytes, 0);
        self.extents.push(Extent { first, pages });
        self.capacity += count;
        if self.slots.capacity() < self.capacity {
            // Doubling would exceed SLOT_BYTES for each slot.
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

    /// Does the next operation, and returns the directory's entry for it.
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

fn key_of(slots: &[Slot], slot: u32) -> u64 {
    slots.get(slot as usize).map_or(FREE, |slot| slot.key)
}

/// Slots that a shard takes at a time: enough for sequences, and few enough that little is left
/// unused in each shard.
const EXTENT: u32 = 16;
/// The key of a free slot. No page has it: blocks have no number 255.
const FREE: u64 = u64::MAX;
/// The most slots that a search looks at, which costs less than copying a page.
const MOST_STEPS: usize = 8;
