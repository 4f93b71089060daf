//! A part of the sender's slots: which page is in which, and for which page one is emptied.

use super::difference::{self, Difference};
use super::directory::{Entry, MAX_VERSION, Operation};
use super::places::Places;
use super::sketch::Sketch;

/// Slots with consecutive numbers, under one lock.
#[derive(Debug)]
pub(crate) struct Shard {
    /// The number of its first slot.
    first: u32,
    capacity: usize,
    page_bytes: usize,
    /// Slots that were used so far.
    slots: Vec<Slot>,
    /// The pages of these slots.
    chunks: Vec<Box<[u8]>>,
    places: Places,
    /// The last slot that was emptied; its link is the one before.
    free: Option<u32>,
    free_count: usize,
    /// Where the search for a slot goes on.
    hand: usize,
    /// How often pages were sent that are in slots, and that are in none.
    sketch: Sketch,
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
    /// There are no slots for such a page, or its slot has had all its versions.
    Foreign,
}

impl Shard {
    pub(crate) fn new(first: u32, capacity: usize, page_bytes: usize) -> Self {
        Self {
            first,
            capacity,
            page_bytes,
            // Nothing grows afterwards; untouched memory costs nothing.
            slots: Vec::with_capacity(capacity),
            chunks: Vec::with_capacity(capacity.div_ceil(chunk_slots(page_bytes))),
            places: Places::new(capacity),
            free: None,
            free_count: 0,
            hand: 0,
            sketch: Sketch::new(capacity),
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
        number: u32,
        page: &[u8],
        epoch: u64,
        limit: usize,
        area: &mut Vec<u8>,
    ) -> Decision {
        let place = number as usize;
        let (chunk, at) = self.place(place);
        let kept = self.chunks.get_mut(chunk);
        let kept = kept.and_then(|pages| pages.get_mut(at..at + page.len()));
        let (Some(slot), Some(kept)) = (self.slots.get_mut(place), kept) else {
            return raw(Miss::Foreign);
        };
        if slot.epoch > epoch {
            return raw(Miss::Overtaken);
        }
        if slot.version > MAX_VERSION {
            return raw(Miss::Foreign);
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
        let entry = slot.next(self.first + number, operation, epoch);
        Decision { entry, miss }
    }

    fn send_unknown(&mut self, key: u64, count: u64, page: &[u8], epoch: u64) -> Decision {
        let miss = if count > 1 { Miss::Lost } else { Miss::New };
        let found = self.empty_slot(epoch);
        let Some(number) = found.or_else(|| self.displace(count, epoch)) else {
            return raw(miss);
        };
        let (chunk, at) = self.place(number as usize);
        self.grow_to(chunk);
        let kept = self.chunks.get_mut(chunk);
        let kept = kept.and_then(|pages| pages.get_mut(at..at + page.len()));
        let (Some(slot), Some(kept)) = (self.slots.get_mut(number as usize), kept) else {
            return raw(miss);
        };
        kept.copy_from_slice(page);
        slot.key = key;
        let entry = slot.next(self.first + number, Operation::Keep, epoch);
        self.places.insert(key, number);
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
            return None;
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

    /// Empties a slot whose page was sent less often than one that was sent `count` times.
    ///
    /// Most pages of a round were sent once more than those that the round has not come to yet. So
    /// one time more is no reason: otherwise a round that is larger than all slots would displace
    /// every page shortly before it comes.
    fn displace(&mut self, count: u64, epoch: u64) -> Option<u32> {
        for _ in 0..MOST_STEPS.min(self.slots.len()) {
            let number = self.hand;
            self.hand = (number + 1) % self.slots.len();
            let slot = self.slots.get(number)?;
            let may_be_used = slot.key != FREE && slot.may_be_used(epoch);
            if may_be_used && self.sketch.count(slot.key) + MARGIN <= count {
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

    /// The chunk of a slot, and its page's place in there.
    const fn place(&self, slot: usize) -> (usize, usize) {
        let each = chunk_slots(self.page_bytes);
        (slot / each, slot % each * self.page_bytes)
    }

    /// Slots are first used in order, so chunks are too.
    fn grow_to(&mut self, chunk: usize) {
        while self.chunks.len() <= chunk {
            let each = chunk_slots(self.page_bytes);
            let left = self.capacity.saturating_sub(self.chunks.len() * each);
            let bytes = each.min(left) * self.page_bytes;
            self.chunks.push(vec![0; bytes].into());
        }
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

const fn raw(miss: Miss) -> Decision {
    Decision {
        entry: Entry::Raw,
        miss: Some(miss),
    }
}

fn key_of(slots: &[Slot], slot: u32) -> u64 {
    slots.get(slot as usize).map_or(FREE, |slot| slot.key)
}

/// The number of slots in a piece of memory of 1 MiB.
pub(crate) const fn chunk_slots(page_bytes: usize) -> usize {
    (1 << 20) / page_bytes
}

/// No page has this key: it would be the last of a block of 2^64 bytes and more.
const FREE: u64 = u64::MAX;
/// So many times more.
const MARGIN: u64 = 2;
/// The search for a slot passes at most so many, which costs less than copying a page.
const MOST_STEPS: usize = 8;
