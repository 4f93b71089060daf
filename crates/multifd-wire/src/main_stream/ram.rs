//! The body of the RAM section: a list of records which says its own end.

use alloc::vec::Vec;

use super::Block;
use crate::fault::Fault;
use crate::idstr::{BlockName, IdStr};
use crate::limits::Limits;
use crate::page_size::PageSize;
use crate::reader::{Reader, Stop};

/// What the records of the RAM section refer to.
#[derive(Debug, Default)]
pub(super) struct Ram {
    blocks: Vec<Block>,
    /// The block of the record before, which a record may mean without naming it. It outlives the
    /// section's parts.
    current: Option<usize>,
}

/// What an entry of the list of blocks has beside its name and length.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryLayout {
    /// The block's address in the guest: with `x-ignore-shared`.
    pub(super) has_address: bool,
    /// The page size of some blocks, one of these bits: with postcopy and huge pages.
    pub(super) page_sizes: Option<u64>,
}

/// One record: a word whose low bits say what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// The list of blocks follows; all of them have `total` bytes together.
    Blocks { total: u64 },
    /// A page of zeros.
    Zero { block: usize, offset: u64 },
    /// A page, whose contents follow.
    Page { block: usize, offset: u64 },
    /// `MULTIFD_FLUSH`.
    Flush,
    /// The end of this body.
    EndOfSection,
}

impl Ram {
    /// The blocks listed so far.
    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Reads one record. The list of blocks is allowed once, in the `first` body. All pages are
    /// multiples of `grain` and lie inside their block with at least that much.
    pub(super) fn record(
        &mut self,
        reader: &mut Reader<'_>,
        first: bool,
        grain: PageSize,
    ) -> Result<Record, Stop> {
        let word = reader.be64()?;
        let (flags, address) = (word & FLAGS, word & !FLAGS);
        match flags & !CONTINUE {
            MEM_SIZE if flags == MEM_SIZE && first && self.blocks.is_empty() => {
                Ok(Record::Blocks { total: address })
            }
            ZERO => {
                let block = self.block(reader, flags)?;
                let offset = self.offset(block, address, grain)?;
                let found = reader.u8()?;
                if found != 0 {
                    return Err(Fault::ZeroFill { found }.into());
                }
                self.current = Some(block);
                Ok(Record::Zero { block, offset })
            }
            PAGE => {
                let block = self.block(reader, flags)?;
                let offset = self.offset(block, address, grain)?;
                self.current = Some(block);
                Ok(Record::Page { block, offset })
            }
            _ if word == END_OF_SECTION => Ok(Record::EndOfSection),
            _ if word == MULTIFD_FLUSH => Ok(Record::Flush),
            _ => Err(Fault::Record { found: word }.into()),
        }
    }

    /// Reads one entry of the list of blocks, of which `remaining` bytes of memory are still to be
    /// listed; answers how many are left then.
    pub(super) fn list_block(
        &mut self,
        reader: &mut Reader<'_>,
        remaining: u64,
        layout: EntryLayout,
        limits: &Limits,
    ) -> Result<u64, Stop> {
        let name = IdStr::take_counted(reader)?;
        let found = reader.be64()?;
        if let Some(page_sizes) = layout.page_sizes
            && states_page_size(reader, page_sizes, found == remaining)?
        {
            let _page_size = reader.be64()?;
        }
        if layout.has_address {
            let _guest_physical = reader.be64()?;
        }
        let allowed = limits.block_bytes.min(remaining);
        let too_long = Fault::BlockLength { found, allowed };
        let left = remaining.checked_sub(found).ok_or(too_long)?;
        if found > allowed {
            return Err(too_long.into());
        }
        if self.blocks.len() >= limits.blocks {
            return Err(Fault::Blocks {
                allowed: limits.blocks,
            }
            .into());
        }
        if self.find(&name).is_some() {
            let index = self.blocks.len();
            return Err(Fault::BlockRepeated { index }.into());
        }
        self.blocks.push(Block {
            name,
            used_length: found,
        });
        Ok(left)
    }

    fn block(&self, reader: &mut Reader<'_>, flags: u64) -> Result<usize, Stop> {
        let block = if flags & CONTINUE != 0 {
            self.current
        } else {
            self.find(&IdStr::take_counted(reader)?)
        };
        Ok(block.ok_or(Fault::UnknownBlock)?)
    }

    fn find(&self, name: &BlockName) -> Option<usize> {
        self.blocks.iter().position(|block| block.name == *name)
    }

    fn offset(&self, block: usize, found: u64, grain: PageSize) -> Result<u64, Fault> {
        let bytes = grain.bytes() as u64;
        if !found.is_multiple_of(bytes) {
            return Err(Fault::OffsetUnaligned {
                found,
                page_size: grain,
            });
        }
        let length = self.blocks.get(block).map_or(0, |block| block.used_length);
        match length.checked_sub(bytes) {
            Some(last) if found <= last => Ok(found),
            last => Err(Fault::OffsetOutside {
                found,
                allowed: last.unwrap_or(0),
            }),
        }
    }
}

/// Whether the next number is the page size of the block before it. Else it is the next block's
/// name, whose length is not zero, or behind the `last` block a record, whose low bits are not
/// zero.
fn states_page_size(reader: &Reader<'_>, page_sizes: u64, last: bool) -> Result<bool, Stop> {
    let mut ahead = reader.ahead();
    if !last && ahead.ahead().u8()? != 0 {
        return Ok(false);
    }
    let next = ahead.be64()?;
    Ok(next.is_power_of_two() && next & FLAGS == 0 && next & page_sizes != 0)
}

/// The low bits of a word, below the smallest page.
const FLAGS: u64 = 0x3ff;
const ZERO: u64 = 0x02;
const MEM_SIZE: u64 = 0x04;
const PAGE: u64 = 0x08;
const END_OF_SECTION: u64 = 0x10;
/// The record means the same block as the one before.
const CONTINUE: u64 = 0x20;
/// QEMU 8.1 and later.
const MULTIFD_FLUSH: u64 = 0x200;
