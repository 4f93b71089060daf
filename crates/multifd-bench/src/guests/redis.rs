//! A Redis with YCSB's records, in jemalloc's memory layout.
//!
//! Each record is a hash of ten fields of 100 random printable bytes: a key, an object, a
//! dictionary with its table, and for each field an entry, a name and a value, all linked by
//! pointers. Every size has slabs of its own, and the slabs' pages are interleaved in the order of
//! their first touch. A read marks the object as used; an update writes a new value, points the
//! field's entry to it and frees the old one, which the next update reuses.

use std::io;
use std::time::Duration;

use crate::guests::PAGE_BYTES;
use crate::guests::content::Content;
use crate::guests::linux::Linux;
use crate::guests::pace::Worker;
use crate::guests::random::{Random, Zipfian, mix};
use crate::guests::serve::Ram;

/// The memory layout.
///
/// Memory begins with a Linux. Groups follow, each with the pages of [`SLOTS`] records; the rest is
/// zero.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    seed: u64,
    linux_pages: u64,
    groups: u64,
}

impl Layout {
    /// A third of `bytes` is used; a sixth of that is the Linux.
    pub(super) const fn new(seed: u64, bytes: u64) -> Self {
        let used = bytes / PAGE_BYTES as u64 / 3;
        let linux_pages = used / 6;
        Self {
            seed,
            linux_pages,
            groups: (used - linux_pages) / GROUP_PAGES,
        }
    }

    /// The number of records.
    const fn records(&self) -> u64 {
        self.groups * RECORDS
    }

    /// The memory offset of a place in a group's slabs.
    fn offset(&self, group: u64, place: u64) -> u64 {
        let (page, within) = (place / PAGE_BYTES as u64, place % PAGE_BYTES as u64);
        let at = self.linux_pages + group * GROUP_PAGES + page_in_group(page);
        at * PAGE_BYTES as u64 + within
    }

    /// Redis's address of a place in a group's slabs.
    const fn address(group: u64, place: u64) -> u64 {
        HEAP + group * GROUP_BYTES + place
    }

    /// The inverse of [`address`](Self::address), if the place exists.
    fn place(&self, address: u64) -> Option<(u64, u64)> {
        let from = address.checked_sub(HEAP)?;
        let (group, place) = (from / GROUP_BYTES, from % GROUP_BYTES);
        (group < self.groups).then_some((group, place))
    }

    fn append_group(&self, group: u64, out: &mut Vec<u8>) {
        let mut random = Random::new(self.seed, mix(group));
        let mut slabs = vec![0; GROUP_BYTES as usize];
        let mut put = |place: u64, bytes: &[u8]| {
            let to = slabs.get_mut(place as usize..).unwrap_or_default();
            to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        };
        for slot in 0..SLOTS {
            for field in 0..FIELDS {
                put(value_place(slot, field), &value(&mut random));
            }
            if slot >= RECORDS {
                continue;
            }
            let key = format!("user{:019}", mix(self.seed ^ mix(group * RECORDS + slot)));
            put(key_place(slot), &sds(key.as_bytes()));
            put(
                object_place(slot),
                &object(Self::address(group, dict_place(slot)), 0),
            );
            // The dictionary: its type, its table, the number of entries, and the table's size as a
            // power of two.
            let dict = [
                DICT_TYPE,
                Self::address(group, table_place(slot)),
                0,
                FIELDS,
                0,
                u64::MAX,
                4,
            ];
            put(dict_place(slot), &words(dict));
            let own =
                [key_place(slot), object_place(slot)].map(|place| Self::address(group, place));
            put(entry_place(slot, 0), &words([own[0], own[1], 0]));
            for field in 0..FIELDS {
                put(
                    name_place(slot, field),
                    &sds(format!("field{field}").as_bytes()),
                );
                let parts = [name_place(slot, field), value_place(slot, field)];
                let [name, value] = parts.map(|place| Self::address(group, place));
                let entry = entry_place(slot, 1 + field);
                put(entry, &words([name, value, 0]));
                // Sixteen buckets, each with at most one entry here.
                let bucket = (mix(group) ^ (field * 7)) % 16;
                put(
                    table_place(slot) + bucket * 8,
                    &words([Self::address(group, entry)]),
                );
            }
            // The table of all keys: an entry of any group.
            let (other, slot) = (random.below(self.groups), random.below(RECORDS));
            let bucket = KEYS + random.below(BUCKETS) * 8;
            put(bucket, &words([Self::address(other, entry_place(slot, 0))]));
        }
        for page in 0..GROUP_PAGES {
            // Inverts the permutation: writes the page that is located here.
            let slab = (0..GROUP_PAGES)
                .find(|slab| page_in_group(*slab) == page)
                .unwrap_or(0);
            let start = slab as usize * PAGE_BYTES;
            out.extend_from_slice(slabs.get(start..start + PAGE_BYTES).unwrap_or_default());
        }
    }
}

/// The initial memory.
#[derive(Debug)]
pub(super) struct Loaded {
    layout: Layout,
    linux: Linux,
}

impl Loaded {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            linux: Linux::new(layout.seed, LINUX_USED_PERCENT),
            layout,
        }
    }
}

impl Content for Loaded {
    fn pieces(&self) -> u64 {
        self.layout.groups + 1
    }

    fn make(&self, index: u64, piece: &mut Vec<u8>) -> io::Result<u64> {
        let Some(group) = index.checked_sub(1) else {
            (0..self.layout.linux_pages).for_each(|page| self.linux.append(page, piece));
            return Ok(0);
        };
        self.layout.append_group(group, piece);
        Ok((self.layout.linux_pages + group * GROUP_PAGES) * PAGE_BYTES as u64)
    }
}

/// One thread that serves requests for a part of the records.
pub(super) struct Server<'a> {
    ram: &'a dyn Ram,
    layout: Layout,
    zipfian: Zipfian,
    random: Random,
    /// This thread's index, and the number of threads.
    share: (u64, u64),
    /// Freed values, the latest on top.
    free: Vec<(u64, u64)>,
}

impl<'a> Server<'a> {
    pub(super) fn new(ram: &'a dyn Ram, layout: Layout, share: (u64, u64)) -> Self {
        let (index, threads) = share;
        let own = (index..layout.groups).step_by(threads.max(1) as usize);
        // One slot of each group has no record: its values were freed while loading.
        let spare = own
            .flat_map(|group| (0..FIELDS).map(move |field| (group, value_place(RECORDS, field))));
        Self {
            ram,
            zipfian: Zipfian::new((layout.records() / threads.max(1)).max(1)),
            random: Random::new(layout.seed, mix(index + 1)),
            share,
            free: spare.take(CACHED_VALUES).collect(),
            layout,
        }
    }

    fn update(&mut self, group: u64, slot: u64) -> io::Result<()> {
        let field = self.random.below(FIELDS);
        let pointer = self.layout.offset(group, entry_place(slot, 1 + field) + 8);
        let mut old = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(self.ram.file(), &mut old, pointer)?;
        let old = self.layout.place(u64::from_le_bytes(old));
        let (Some(old), Some((new_group, new_place))) = (old, self.free.pop()) else {
            return Err(io::Error::other(
                "the guest's memory has changed from outside",
            ));
        };
        // A value may span two pages that are not adjacent.
        let value = value(&mut self.random);
        for (place, piece) in split(new_place, &value) {
            self.ram
                .write(self.layout.offset(new_group, place), piece)?;
        }
        self.ram
            .write(pointer, &words([Layout::address(new_group, new_place)]))?;
        self.free.push(old);
        Ok(())
    }
}

impl Worker for Server<'_> {
    fn act(&mut self, running: Duration) -> io::Result<()> {
        let (index, threads) = self.share;
        let record = self.zipfian.next(&mut self.random) * threads + index;
        let (group, slot) = (record / RECORDS, record % RECORDS);
        if group >= self.layout.groups {
            return Ok(());
        }
        if self.random.below(100) < UPDATES_PERCENT {
            self.update(group, slot)?;
        }
        // Every access records its time in seconds.
        let dict = Layout::address(group, dict_place(slot));
        let object = object(dict, running.as_secs());
        self.ram
            .write(self.layout.offset(group, object_place(slot)), &object)?;
        // The answer goes through the client's buffer.
        let client = self.random.below(CLIENTS.min(self.layout.groups));
        let buffer = BUFFER + self.random.below(8) * 256;
        self.ram
            .write(self.layout.offset(client, buffer), &words([record; 16]))
    }
}

/// Printable bytes like YCSB's, with the overhead of Redis and the allocator.
fn value(random: &mut Random) -> [u8; VALUE_BYTES as usize] {
    let mut slot = [0; VALUE_BYTES as usize];
    let (header, text) = slot.split_at_mut(3);
    header.copy_from_slice(&[100, 100, 1]);
    let text = text.get_mut(..100).unwrap_or_default();
    random.fill(text);
    for byte in text {
        *byte = b' ' + ((u16::from(*byte) * 95) >> 8) as u8;
    }
    slot
}

/// A short string with its header: its length, its capacity, and the type for one-byte lengths.
fn sds(text: &[u8]) -> Vec<u8> {
    let len = text.len() as u8;
    [&[len, len, 1], text, &[0]].concat()
}

/// A hash in a table; 24 bits hold the time of its last use.
fn object(dict: u64, seconds: u64) -> Vec<u8> {
    const HASH_IN_A_TABLE: u64 = 0x24;
    const ONE_REFERENCE: u64 = 1 << 32;
    let used = (CLOCK + seconds) % (1 << 24);
    words([HASH_IN_A_TABLE | used << 8 | ONE_REFERENCE, dict])
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Splits `bytes` at `place` at the page boundaries.
fn split(place: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let left = PAGE_BYTES - place as usize % PAGE_BYTES;
    let (first, second) = bytes.split_at(left.min(bytes.len()));
    [(place, first), (place + first.len() as u64, second)]
        .into_iter()
        .filter(|(_, piece)| !piece.is_empty())
}

/// The location of a slab page: pages of all sizes are interleaved.
const fn page_in_group(slab_page: u64) -> u64 {
    slab_page * STRIDE % GROUP_PAGES
}

const fn value_place(slot: u64, field: u64) -> u64 {
    (slot * FIELDS + field) * SCATTER % (SLOTS * FIELDS) * VALUE_BYTES
}

/// An object precedes the names of its record's fields in the slabs of 16 bytes.
const fn object_place(slot: u64) -> u64 {
    SMALL + slot * (1 + FIELDS) * 16
}

const fn name_place(slot: u64, field: u64) -> u64 {
    object_place(slot) + (1 + field) * 16
}

/// Entry 0 is the record's own entry in the table of all keys.
const fn entry_place(slot: u64, entry: u64) -> u64 {
    ENTRIES + (slot * (1 + FIELDS) + entry) * 32
}

const fn dict_place(slot: u64) -> u64 {
    DICTS + slot * 64
}

const fn table_place(slot: u64) -> u64 {
    TABLES + slot * 128
}

const fn key_place(slot: u64) -> u64 {
    NAMES + slot * 32
}

/// The capacity of a group in records, and the records it has.
const SLOTS: u64 = 128;
const RECORDS: u64 = SLOTS - 1;
/// YCSB's number of fields.
const FIELDS: u64 = 10;
const UPDATES_PERCENT: u64 = 5;
/// 100 bytes, a header and an end; rounded up to jemalloc's next size.
const VALUE_BYTES: u64 = 112;

/// Loading frees and reuses much memory, so that neighbours in a record are not adjacent in memory.
/// Coprime to the number of values.
const SCATTER: u64 = 487;

// The offsets of a group's slabs in bytes, and their number of pages.
const SMALL: u64 = 35 * PAGE_BYTES as u64;
const ENTRIES: u64 = 41 * PAGE_BYTES as u64;
const DICTS: u64 = 52 * PAGE_BYTES as u64;
const TABLES: u64 = 54 * PAGE_BYTES as u64;
const NAMES: u64 = 58 * PAGE_BYTES as u64;
const KEYS: u64 = 59 * PAGE_BYTES as u64;
const BUCKETS: u64 = 256;
/// The other half of the last page is a client's buffer.
const BUFFER: u64 = KEYS + BUCKETS * 8;
const GROUP_PAGES: u64 = 60;
const GROUP_BYTES: u64 = GROUP_PAGES * PAGE_BYTES as u64;
/// Coprime to the number of pages, so that each page has its own place.
const STRIDE: u64 = 37;

const CLIENTS: u64 = 50;
/// jemalloc's thread cache for one size.
const CACHED_VALUES: usize = 64;
/// The address of Redis's heap, and of a table in its program.
const HEAP: u64 = 0x7f3a_5c00_0000;
const DICT_TYPE: u64 = 0x5581_2f6e_4a60;
/// An arbitrary start time in seconds.
const CLOCK: u64 = 0x5a_31c0;
const LINUX_USED_PERCENT: u64 = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::content::tests::{ratio, used_pages};

    #[test]
    fn a_third_is_in_use_and_compresses_as_a_real_redis_does() {
        let (used, all) = used_pages(&Loaded::new(Layout::new(1, 192 << 20)));
        let percent = used.len() / PAGE_BYTES * 100 / (all * 3).min(192 * 256);
        assert!((30..=34).contains(&percent), "{percent}");
        let ratio = ratio(&used);
        assert!((1.65..=1.8).contains(&ratio), "{ratio}");
    }
}
