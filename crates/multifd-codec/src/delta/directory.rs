//! The directory of a packet: the operations on its pages.

use super::error::ItemFault;
use super::{Bases, DeltaError, varint};
use crate::delta::error::DeltaFault;

/// A page's entry in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The page is sent whole, and has no slot.
    Pass,
    /// The page has a slot.
    Slot {
        operation: Operation,
        slot: u32,
        /// The version that the operation expects: at most [`MAX_VERSION`].
        version: u32,
    },
}

impl Entry {
    /// Whether the page goes through the method, and not as a difference.
    pub(crate) const fn is_whole(self) -> bool {
        match self {
            Entry::Pass => true,
            Entry::Slot { operation, .. } => matches!(operation, Operation::Keep),
        }
    }
}

/// An operation on a slot, which has a page afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// The page is sent whole, and the slot keeps it.
    Keep,
    /// The slot has the page already.
    Same,
    /// The area has the difference to the slot's page.
    Difference,
}

/// The highest version that an operation may expect, because it adds one to it.
pub(crate) const MAX_VERSION: u32 = u32::MAX - 1;

/// Writes the directories of packets, one after the other, in the same memory.
#[derive(Debug)]
pub(crate) struct DirectoryWriter {
    bases: Bases,
    item: Item,
    /// The item's versions, as varints.
    versions: Vec<u8>,
    before: Before,
}

/// The item that is not written yet.
#[derive(Debug, Default)]
struct Item {
    kind: u64,
    count: u64,
    /// The first page's slot less the predicted one.
    step: i64,
    /// The item has a version for each further page.
    each: bool,
}

/// The last page that had a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    place: Option<(u64, u32)>,
    version: u32,
}

impl Before {
    /// The slot that a page is expected in. Page numbers of a block cannot overflow here. A peer's
    /// slots may wrap, and the reader checks the result.
    fn predicted(&self, page_number: u64) -> i64 {
        self.place.map_or(0, |(number, slot)| {
            let step = page_number.wrapping_sub(number).cast_signed();
            step.wrapping_add(i64::from(slot))
        })
    }

    fn set(&mut self, page_number: u64, slot: u32, version: u32) {
        self.place = Some((page_number, slot));
        self.version = version;
    }
}

impl DirectoryWriter {
    pub(crate) fn new(bases: Bases) -> Self {
        Self {
            bases,
            item: Item::default(),
            versions: Vec::new(),
            before: Before::default(),
        }
    }

    /// Adds the packet's next page.
    pub(crate) fn push(&mut self, page_number: u64, entry: Entry, out: &mut Vec<u8>) {
        let (kind, step, more) = match (entry, self.bases) {
            (Entry::Pass, _) => (PASS, 0, 0),
            (Entry::Slot { operation, .. }, Bases::InPlace) => match operation {
                // The receiver keeps every page where it is.
                Operation::Keep => (PASS, 0, 0),
                _ => (kind_of(operation), 0, 0),
            },
            (
                Entry::Slot {
                    operation,
                    slot,
                    version,
                },
                Bases::Slots,
            ) => {
                let step = i64::from(slot).wrapping_sub(self.before.predicted(page_number));
                let more = i64::from(version) - i64::from(self.before.version);
                self.before.set(page_number, slot, version);
                (kind_of(operation), step, more)
            }
        };
        let item = &mut self.item;
        let goes_on = item.count > 0 && item.kind == kind && step == 0;
        // An item has a version for all further pages or for none, and the second page decides.
        if !goes_on || (more != 0 && !item.each && item.count > 1) {
            self.close(out);
            self.item = Item {
                kind,
                count: 1,
                step,
                each: false,
            };
        } else {
            item.count += 1;
            item.each |= more != 0;
            if !item.each {
                return;
            }
        }
        if kind != PASS && self.bases == Bases::Slots {
            varint::write_signed(more, &mut self.versions);
        }
    }

    /// Ends the packet's directory, and begins the next one.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.close(out);
        self.before = Before::default();
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let item = std::mem::take(&mut self.item);
        if item.count == 0 {
            return;
        }
        let each = if item.each { EACH } else { 0 };
        let has_step = if item.step == 0 { 0 } else { STEP };
        varint::write(item.count << COUNT_SHIFT | each | has_step | item.kind, out);
        if item.step != 0 {
            varint::write_signed(item.step, out);
        }
        out.append(&mut self.versions);
    }
}

/// Reads a directory.
#[derive(Debug)]
pub(crate) struct DirectoryReader<'a> {
    bases: Bases,
    rest: &'a [u8],
    /// Pages read.
    page: usize,
    /// Pages of the packet.
    pages: usize,
    operation: Option<Operation>,
    /// Pages left in the item.
    left: u64,
    each: bool,
    before: Before,
}

impl<'a> DirectoryReader<'a> {
    pub(crate) fn new(bases: Bases, directory: &'a [u8], pages: usize) -> Self {
        Self {
            bases,
            rest: directory,
            page: 0,
            pages,
            operation: None,
            left: 0,
            each: false,
            before: Before::default(),
        }
    }

    /// The operation on the packet's next page. Bases in place have no slots: all numbers are 0.
    pub(crate) fn next(&mut self, page_number: u64) -> Result<Entry, DeltaError> {
        let page = self.page;
        let entry = self.entry(page_number);
        self.page += 1;
        entry.map_err(|fault| refused(page, fault))
    }

    /// Checks that no bytes are left.
    pub(crate) fn finish(self) -> Result<(), DeltaError> {
        match self.rest.len() {
            0 => Ok(()),
            found => Err(refused(self.page, ItemFault::Trailing { found })),
        }
    }

    fn entry(&mut self, page_number: u64) -> Result<Entry, ItemFault> {
        let is_first = self.left == 0;
        let mut step = 0;
        if is_first {
            step = self.open()?;
        }
        self.left -= 1;
        let Some(operation) = self.operation else {
            return Ok(Entry::Pass);
        };
        if self.bases == Bases::InPlace {
            return Ok(Entry::Slot {
                operation,
                slot: 0,
                version: 0,
            });
        }
        let found = self.before.predicted(page_number).wrapping_add(step);
        let slot = u32::try_from(found).map_err(|_| ItemFault::Slot { found })?;
        let mut found = i64::from(self.before.version);
        if is_first || self.each {
            found += varint::read_signed(&mut self.rest).ok_or(ItemFault::Ends)?;
        }
        let version = u32::try_from(found)
            .ok()
            .filter(|&version| version <= MAX_VERSION)
            .filter(|&version| version > 0 || operation == Operation::Keep)
            .ok_or(ItemFault::Version { found })?;
        self.before.set(page_number, slot, version);
        Ok(Entry::Slot {
            operation,
            slot,
            version,
        })
    }

    /// Reads the next item's tag and step.
    fn open(&mut self) -> Result<i64, ItemFault> {
        let tag = varint::read(&mut self.rest).ok_or(ItemFault::Ends)?;
        let allowed = self.pages.saturating_sub(self.page);
        let count = tag >> COUNT_SHIFT;
        if count == 0 || count > allowed as u64 {
            let found = count;
            return Err(ItemFault::Count { found, allowed });
        }
        self.left = count;
        self.each = tag & EACH != 0;
        self.operation = match tag & KIND {
            PASS => None,
            KEEP => Some(Operation::Keep),
            SAME => Some(Operation::Same),
            _ => Some(Operation::Difference),
        };
        let has_numbers = tag & (EACH | STEP) != 0;
        let is_wrong = match self.bases {
            Bases::Slots => self.operation.is_none() && has_numbers,
            Bases::InPlace => self.operation == Some(Operation::Keep) || has_numbers,
        };
        if is_wrong {
            return Err(ItemFault::Tag { found: tag });
        }
        match tag & STEP {
            0 => Ok(0),
            _ => varint::read_signed(&mut self.rest).ok_or(ItemFault::Ends),
        }
    }
}

fn refused(page: usize, fault: ItemFault) -> DeltaError {
    let source = fault.into();
    DeltaError(DeltaFault::Directory { page, source })
}

const fn kind_of(operation: Operation) -> u64 {
    match operation {
        Operation::Keep => KEEP,
        Operation::Same => SAME,
        Operation::Difference => DIFFERENCE,
    }
}

const PASS: u64 = 0;
const KEEP: u64 = 1;
const SAME: u64 = 2;
const DIFFERENCE: u64 = 3;
const KIND: u64 = 3;
const STEP: u64 = 1 << 2;
const EACH: u64 = 1 << 3;
const COUNT_SHIFT: u32 = 4;

#[cfg(test)]
mod tests {
    use testkit::pages::Random;

    use super::*;

    fn written(entries: &[(u64, Entry)]) -> Vec<u8> {
        let mut writer = DirectoryWriter::new(Bases::Slots);
        let mut out = Vec::new();
        for &(number, entry) in entries {
            writer.push(number, entry, &mut out);
        }
        writer.finish(&mut out);
        let mut again = Vec::new();
        for &(number, entry) in entries {
            writer.push(number, entry, &mut again);
        }
        writer.finish(&mut again);
        assert_eq!(again, out, "a writer starts each packet afresh");
        let mut reader = DirectoryReader::new(Bases::Slots, &out, entries.len());
        for &(number, entry) in entries {
            assert_eq!(reader.next(number).unwrap(), entry);
        }
        reader.finish().unwrap();
        out
    }

    fn slot(operation: Operation, slot: u32, version: u32) -> Entry {
        Entry::Slot {
            operation,
            slot,
            version,
        }
    }

    #[test]
    fn pages_in_sequence_take_few_bytes() {
        let keeps: Vec<_> = (0..128)
            .map(|page| (page + 7000, slot(Operation::Keep, page as u32 + 5000, 0)))
            .collect();
        assert_eq!(written(&keeps).len(), 5);
        let passed: Vec<_> = (0..128).map(|page| (page, Entry::Pass)).collect();
        assert_eq!(written(&passed).len(), 2);
        let again: Vec<_> = (0..128_u32)
            .map(|page| {
                (
                    u64::from(page) * 3,
                    slot(Operation::Difference, page * 3, 9),
                )
            })
            .collect();
        assert_eq!(written(&again).len(), 3);
        let varied: Vec<_> = (0..128_u32)
            .map(|page| {
                let entry = slot(Operation::Difference, page * 3, 2 + page % 3);
                (u64::from(page) * 3, entry)
            })
            .collect();
        assert!(written(&varied).len() <= 131);
    }

    /// The example of `docs/trunk.md`.
    #[test]
    fn the_example_is_right() {
        let entries = [
            (16, slot(Operation::Difference, 3, 1)),
            (17, slot(Operation::Difference, 4, 1)),
            (18, slot(Operation::Keep, 5, 0)),
            (19, Entry::Pass),
        ];
        assert_eq!(written(&entries), b"\x27\x06\x02\x11\x01\x10");
    }

    #[test]
    fn any_entries_come_back() {
        let mut random = Random::new(5);
        for _ in 0..500 {
            let mut number = random.below(1 << 40) as u64;
            let mut place = random.below(1000) as u32;
            let entries: Vec<_> = (0..random.below(200))
                .map(|_| {
                    let step = 1 + random.below(2) as u32;
                    number += u64::from(step);
                    place = match random.below(10) {
                        0 => random.below(1 << 30) as u32,
                        _ => place + step,
                    };
                    let version = match random.below(20) {
                        0 => MAX_VERSION,
                        _ => 1 + random.below(2) as u32,
                    };
                    let entry = match random.below(20) {
                        0 => Entry::Pass,
                        1 => slot(Operation::Keep, place, 0),
                        2 => slot(Operation::Same, place, version),
                        3 => slot(Operation::Keep, place, version),
                        _ => slot(Operation::Difference, place, version),
                    };
                    (number, entry)
                })
                .collect();
            written(&entries);
        }
    }

    #[test]
    fn a_lie_is_found() {
        let fault = |directory: &[u8], pages: usize| {
            let mut reader = DirectoryReader::new(Bases::Slots, directory, pages);
            (0..pages as u64)
                .try_for_each(|number| reader.next(number).map(drop))
                .and_then(|()| reader.finish())
                .map_err(|error| match error {
                    DeltaError(DeltaFault::Directory { page, source }) => (page, source.0),
                    other => panic!("{other}"),
                })
        };
        use ItemFault::{Count, Ends, Slot, Tag, Trailing, Version};
        for (directory, pages, expected) in [
            (&b""[..], 1, (0, Ends)),
            (b"\x10", 2, (1, Ends)),
            (b"\x90", 1, (0, Ends)),
            (
                b"\x00",
                1,
                (
                    0,
                    Count {
                        found: 0,
                        allowed: 1,
                    },
                ),
            ),
            (
                b"\x20",
                1,
                (
                    0,
                    Count {
                        found: 2,
                        allowed: 1,
                    },
                ),
            ),
            (
                b"\x10\x20",
                2,
                (
                    1,
                    Count {
                        found: 2,
                        allowed: 1,
                    },
                ),
            ),
            (b"\x14", 1, (0, Tag { found: 0x14 })),
            (b"\x18", 1, (0, Tag { found: 0x18 })),
            (b"\x15\x01\x00", 1, (0, Slot { found: -1 })),
            (b"\x15", 1, (0, Ends)),
            (b"\x11", 1, (0, Ends)),
            (b"\x11\x01", 1, (0, Version { found: -1 })),
            (b"\x12\x00", 1, (0, Version { found: 0 })),
            (b"\x13\x00", 1, (0, Version { found: 0 })),
            (
                b"\x11\xfe\xff\xff\xff\x1f",
                1,
                (0, Version { found: 0xffff_ffff }),
            ),
            (b"\x29\x02", 2, (1, Ends)),
            (b"\x10\x10", 1, (1, Trailing { found: 1 })),
        ] {
            assert_eq!(fault(directory, pages), Err(expected), "{directory:x?}");
        }
        assert_eq!(fault(b"\x11\x00", 1), Ok(()));
        assert_eq!(fault(b"\x13\x02", 1), Ok(()));
    }

    #[test]
    fn bases_in_place_have_no_slots() {
        let mut writer = DirectoryWriter::new(Bases::InPlace);
        let pages = [
            Entry::Pass,
            slot(Operation::Keep, 70, 3),
            slot(Operation::Difference, 5, 9),
            slot(Operation::Difference, 99, 1),
            slot(Operation::Same, 4, 4),
        ];
        let mut out = Vec::new();
        for (number, entry) in (0..).zip(pages) {
            writer.push(number * 1000, entry, &mut out);
        }
        writer.finish(&mut out);
        assert_eq!(out, [2 << 4, 2 << 4 | 3, 1 << 4 | 2]);
        let mut reader = DirectoryReader::new(Bases::InPlace, &out, 5);
        let mut operations = Vec::new();
        for number in 0..5 {
            operations.push(match reader.next(number).unwrap() {
                Entry::Pass => None,
                Entry::Slot { operation, .. } => Some(operation),
            });
        }
        reader.finish().unwrap();
        let (difference, same) = (Some(Operation::Difference), Some(Operation::Same));
        assert_eq!(operations, [None, None, difference, difference, same]);
        for tag in [1 << 4 | KEEP, 1 << 4 | STEP | SAME, 1 << 4 | EACH | PASS] {
            let directory = [tag as u8, 0, 0];
            let mut reader = DirectoryReader::new(Bases::InPlace, &directory, 1);
            let wanted = refused(0, ItemFault::Tag { found: tag });
            assert_eq!(
                format!("{:?}", reader.next(0).unwrap_err()),
                format!("{wanted:?}")
            );
        }
    }
}
