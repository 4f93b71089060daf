//! Packets of guest memory.
//!
//! The header is 320 bytes and a table of page offsets, which always has room for a full packet:
//! its length depends only on the guest's page size.

use alloc::vec::Vec;
use core::ops::Range;

use super::{COMMON_LEN, put_common};
use crate::bytes::{array, be32, be64, put};
use crate::fault::Fault;
use crate::flags::{Flags, Method, UnknownMethod};
use crate::idstr::{BlockName, FIELD_LEN, IdStr};
use crate::limits::{COMPRESSED_PAYLOAD_BYTES, Limits};
use crate::page_size::PageSize;

/// The header of a packet with pages of one RAM block, with a SYNC mark, with both (QEMU 8.2 and
/// earlier), or with neither (QEMU 8.2 and earlier, after a SYNC with pages).
///
/// All of the sender's bytes are kept, even meaningless ones: reserved bytes, and entries of the
/// table left over from an earlier packet. A packet from the wire is rewritten identically, except
/// for the changes by [`set_payload`](Self::set_payload).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamPacket {
    fixed: FixedPart,
    /// The whole table: normal pages, zero pages, left-over entries.
    offsets: Vec<u64>,
}

/// A RAM header up to its table, checked so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FixedPart {
    flags: Flags,
    /// The stated value: 0 in SYNC packets of QEMU 9.0 and later, otherwise the pages of a full
    /// packet.
    pages_alloc: u32,
    normal_pages: usize,
    zero_pages: usize,
    /// The stated value: without normal pages QEMU 8.2 and earlier leave the number of an earlier
    /// packet here.
    next_packet_size: u32,
    packet_num: u64,
    reserved: [u8; RESERVED_LEN],
    block: BlockName,
    /// Known if the packet has pages.
    page_size: Option<PageSize>,
    most_payload: MostPayload,
}

/// The longest compressed payload that the packet may be given. It is a setting of the handling
/// code, not of the packet, so packets that differ only in this are equal.
#[derive(Debug, Clone)]
struct MostPayload(u32);

impl MostPayload {
    /// Payloads that `limits` accepted may be forwarded. Payloads that a stock QEMU accepts may be
    /// written under any limits.
    fn under(limits: &Limits) -> Self {
        Self(
            limits
                .compressed_payload_bytes
                .max(COMPRESSED_PAYLOAD_BYTES),
        )
    }
}

impl PartialEq for MostPayload {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for MostPayload {}

impl RamPacket {
    /// Makes a packet of uncompressed pages of `block`: its payload is the normal pages in the
    /// order of their offsets. [`set_payload`](Self::set_payload) makes it a packet of compressed
    /// pages.
    ///
    /// # Errors
    /// If there are more pages than fit in a packet, pages but no block name, or an offset is not a
    /// multiple of the page size or occurs twice.
    pub fn new(
        page_size: PageSize,
        block: BlockName,
        normal: &[u64],
        zero: &[u64],
        packet_num: u64,
    ) -> Result<Self, Fault> {
        let entries = page_size.pages_per_packet();
        let count = |pages: &[u64]| u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let pages_alloc = u32::try_from(entries).unwrap_or(u32::MAX);
        check_page_counts(count(normal), count(zero), pages_alloc)?;
        let mut offsets = Vec::with_capacity(entries);
        offsets.extend_from_slice(normal);
        offsets.extend_from_slice(zero);
        check_offsets(&offsets, page_size, u64::MAX)?;
        if block.is_empty() && !offsets.is_empty() {
            return Err(Fault::EmptyName);
        }
        offsets.resize(entries, 0);
        let (normal_pages, zero_pages) = (normal.len(), zero.len());
        let fixed = FixedPart {
            flags: Flags::default(),
            pages_alloc,
            normal_pages,
            zero_pages,
            next_packet_size: *payload_bounds(Ok(Method::None), normal_pages, page_size, 0).start(),
            packet_num,
            reserved: [0; RESERVED_LEN],
            block,
            page_size: Some(page_size),
            most_payload: MostPayload(COMPRESSED_PAYLOAD_BYTES),
        };
        Ok(Self { fixed, offsets })
    }

    /// Makes a packet that only marks a synchronisation, like those of QEMU 9.0 and later.
    #[must_use]
    pub fn sync(page_size: PageSize, packet_num: u64) -> Self {
        let fixed = FixedPart {
            flags: Flags::SYNC,
            pages_alloc: 0,
            normal_pages: 0,
            zero_pages: 0,
            next_packet_size: 0,
            packet_num,
            reserved: [0; RESERVED_LEN],
            block: IdStr::EMPTY,
            page_size: Some(page_size),
            most_payload: MostPayload(COMPRESSED_PAYLOAD_BYTES),
        };
        Self {
            fixed,
            offsets: alloc::vec![0; page_size.pages_per_packet()],
        }
    }

    /// The packet's flag word.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.fixed.flags
    }

    /// Returns whether all channels synchronise here, after this packet's own pages.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        self.fixed.flags.is_sync()
    }

    /// The compression method of the normal pages. Meaningless in a packet without pages.
    ///
    /// # Errors
    /// If this crate does not know the method. The packet is valid anyway, and its payload's length
    /// is known.
    pub fn method(&self) -> Result<Method, UnknownMethod> {
        self.fixed.flags.method()
    }

    /// The sender's count of packets over all its channels. It may repeat or skip (QEMU 8.2 and
    /// earlier), so it cannot order packets.
    #[must_use]
    pub fn packet_num(&self) -> u64 {
        self.fixed.packet_num
    }

    /// The block of all pages. Without pages it may be empty, or left over from an earlier packet.
    #[must_use]
    pub fn block(&self) -> &BlockName {
        &self.fixed.block
    }

    /// The guest's page size. `None` only in a first packet that has no pages and does not reveal
    /// it: then its table is longer than the part that came with it, see
    /// [`Event::Padding`](crate::Event::Padding).
    #[must_use]
    pub fn page_size(&self) -> Option<PageSize> {
        self.fixed.page_size
    }

    /// Offsets in the block, in bytes, of the pages in the payload, in the payload's order. QEMU
    /// does not sort them.
    #[must_use]
    pub fn normal(&self) -> &[u64] {
        self.offsets
            .get(..self.fixed.normal_pages)
            .unwrap_or_default()
    }

    /// Offsets in the block, in bytes, of the pages that are all zero. QEMU 9.0 and later with
    /// `zero-page-detection=multifd`.
    #[must_use]
    pub fn zero(&self) -> &[u64] {
        let (_, rest) = self
            .offsets
            .split_at_checked(self.fixed.normal_pages)
            .unwrap_or_default();
        rest.get(..self.fixed.zero_pages).unwrap_or_default()
    }

    /// Bytes of payload after the header on the wire: 0 without normal pages, whatever the header
    /// states.
    #[must_use]
    pub fn payload_len(&self) -> u32 {
        self.fixed.payload_len()
    }

    /// Sets another payload for the same pages: `len` bytes in `method`.
    ///
    /// A relay makes only this change to a packet. The method is set only in packets with pages
    /// (including zero pages, like QEMU). A length without a payload, left over by QEMU 8.2 and
    /// earlier, becomes 0, because QEMU 9.0 and later abort on it.
    ///
    /// A compressed payload may be as long as the [`Limits`] with which the packet was received
    /// allow, and in any case as long as a stock QEMU accepts, which is 1 MiB.
    ///
    /// # Errors
    /// [`Fault::PayloadLength`] if the pages cannot have that length in that method; the packet is
    /// then unchanged.
    pub fn set_payload(&mut self, method: Method, len: u32) -> Result<(), Fault> {
        let fixed = &mut self.fixed;
        let MostPayload(most) = fixed.most_payload;
        fixed.check_payload_len(Ok(method), len, most)?;
        if fixed.has_pages() {
            fixed.flags = fixed.flags.with_method(method);
        }
        fixed.next_packet_size = len;
        Ok(())
    }

    /// Returns the memory of the table.
    pub(crate) fn into_table(self) -> Vec<u64> {
        self.offsets
    }

    /// The number of entries in this packet's part of the table of offsets.
    pub(crate) fn table_entries(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.fixed.encode(out);
        for offset in &self.offsets {
            out.extend_from_slice(&offset.to_be_bytes());
        }
    }
}

impl FixedPart {
    /// Bytes of a RAM header before its table.
    pub(crate) const LEN: usize = 320;

    /// Parses the fixed part. `known` is the page size, unless this packet is the first to reveal
    /// it.
    pub(crate) fn parse(
        flags: Flags,
        header: &[u8; Self::LEN],
        known: Option<PageSize>,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let pages_alloc = be32(header, PAGES_ALLOC_FIELD);
        let normal_pages = be32(header, NORMAL_PAGES_FIELD);
        let zero_pages = be32(header, ZERO_PAGES_FIELD);
        let page_size = check_pages_alloc(pages_alloc, known)?;
        check_page_counts(normal_pages, zero_pages, pages_alloc)?;
        let fixed = Self {
            flags,
            pages_alloc,
            // At most 512 each, as checked above.
            normal_pages: normal_pages as usize,
            zero_pages: zero_pages as usize,
            next_packet_size: be32(header, NEXT_PACKET_SIZE_FIELD),
            packet_num: be64(header, PACKET_NUM_FIELD),
            reserved: array(header, RESERVED_FIELD),
            block: IdStr::from_field(array(header, RAMBLOCK_FIELD)),
            page_size,
            most_payload: MostPayload::under(limits),
        };
        if fixed.has_pages() && fixed.block.is_empty() {
            return Err(Fault::EmptyName);
        }
        fixed.check_payload_len(
            flags.method(),
            fixed.payload_len(),
            limits.compressed_payload_bytes,
        )?;
        Ok(fixed)
    }

    /// Bytes of the following table; of the shortest table while the page size is unknown.
    pub(crate) fn table_len(&self) -> usize {
        let entries = self
            .page_size
            .map_or(MIN_TABLE_ENTRIES, PageSize::pages_per_packet);
        entries.saturating_mul(TABLE_ENTRY_LEN)
    }

    /// Completes the packet. `table` has [`table_len`](Self::table_len) bytes, and `offsets` is
    /// memory for its entries.
    pub(crate) fn with_table(
        self,
        mut offsets: Vec<u64>,
        table: &[u8],
        limits: &Limits,
    ) -> Result<RamPacket, Fault> {
        let (entries, _) = table.as_chunks();
        offsets.clear();
        offsets.extend(entries.iter().copied().map(u64::from_be_bytes));
        let fixed = self;
        let packet = RamPacket { fixed, offsets };
        if let Some(page_size) = packet.page_size() {
            let used = packet
                .fixed
                .normal_pages
                .saturating_add(packet.fixed.zero_pages);
            let used = packet.offsets.get(..used).unwrap_or_default();
            check_offsets(used, page_size, limits.block_bytes)?;
        }
        Ok(packet)
    }

    fn has_pages(&self) -> bool {
        self.normal_pages != 0 || self.zero_pages != 0
    }

    fn payload_len(&self) -> u32 {
        if self.normal_pages == 0 {
            0
        } else {
            self.next_packet_size
        }
    }

    fn check_payload_len(
        &self,
        method: Result<Method, UnknownMethod>,
        found: u32,
        limit: u32,
    ) -> Result<(), Fault> {
        let bounds = self.page_size.map_or(0..=0, |page_size| {
            payload_bounds(method, self.normal_pages, page_size, limit)
        });
        if bounds.contains(&found) {
            return Ok(());
        }
        let (least, most) = bounds.into_inner();
        Err(Fault::PayloadLength { found, least, most })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut header = [0; Self::LEN];
        put_common(&mut header, self.flags);
        // Both counts came from a 32-bit field or are at most 512.
        put(
            &mut header,
            PAGES_ALLOC_FIELD,
            &self.pages_alloc.to_be_bytes(),
        );
        put(
            &mut header,
            NORMAL_PAGES_FIELD,
            &(self.normal_pages as u32).to_be_bytes(),
        );
        put(
            &mut header,
            NEXT_PACKET_SIZE_FIELD,
            &self.next_packet_size.to_be_bytes(),
        );
        put(
            &mut header,
            PACKET_NUM_FIELD,
            &self.packet_num.to_be_bytes(),
        );
        put(
            &mut header,
            ZERO_PAGES_FIELD,
            &(self.zero_pages as u32).to_be_bytes(),
        );
        put(&mut header, RESERVED_FIELD, &self.reserved);
        put(&mut header, RAMBLOCK_FIELD, self.block.field());
        out.extend_from_slice(&header);
    }
}

/// Derives the page size from the stated room for pages. All known senders state the pages of a
/// full packet or, in SYNC packets of QEMU 9.0 and later, nothing.
fn check_pages_alloc(pages_alloc: u32, known: Option<PageSize>) -> Result<Option<PageSize>, Fault> {
    let found = pages_alloc as usize;
    match known {
        None if pages_alloc == 0 => Ok(None),
        None => PageSize::from_pages_per_packet(found)
            .map(Some)
            .ok_or(Fault::PagesPerPacket { found }),
        Some(page_size) if found <= page_size.pages_per_packet() => Ok(Some(page_size)),
        Some(page_size) => Err(Fault::PagesAllocated {
            found: pages_alloc,
            // At most 512.
            allowed: page_size.pages_per_packet() as u32,
        }),
    }
}

fn check_page_counts(normal: u32, zero: u32, pages_alloc: u32) -> Result<(), Fault> {
    let Some(left) = pages_alloc.checked_sub(normal) else {
        return Err(Fault::NormalPages {
            found: normal,
            allowed: pages_alloc,
        });
    };
    if zero > left {
        return Err(Fault::ZeroPages {
            found: zero,
            allowed: left,
        });
    }
    Ok(())
}

/// Checks that every page is a whole page inside the largest block and occurs once. QEMU itself
/// checks only that it is inside.
fn check_offsets(offsets: &[u64], page_size: PageSize, block_bytes: u64) -> Result<(), Fault> {
    let page_bytes = page_size.bytes() as u64;
    let last = block_bytes.checked_sub(page_bytes);
    for &found in offsets {
        if !found.is_multiple_of(page_bytes) {
            return Err(Fault::OffsetUnaligned { found, page_size });
        }
        if last.is_none_or(|last| found > last) {
            let allowed = last.unwrap_or(0);
            return Err(Fault::OffsetOutside { found, allowed });
        }
    }
    check_distinct(offsets)
}

fn check_distinct(offsets: &[u64]) -> Result<(), Fault> {
    // Most packets are in order and need no sorting.
    if offsets.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    let mut scratch = [0; MAX_TABLE_ENTRIES];
    let Some(sorted) = scratch.get_mut(..offsets.len()) else {
        return Ok(());
    };
    sorted.copy_from_slice(offsets);
    sorted.sort_unstable();
    match sorted.array_windows().find(|[a, b]| a == b) {
        Some(&[found, _]) => Err(Fault::OffsetRepeated { found }),
        None => Ok(()),
    }
}

/// The possible lengths of a payload of `normal_pages` pages; `limit` is for the methods in which
/// the pages do not bound it.
fn payload_bounds(
    method: Result<Method, UnknownMethod>,
    normal_pages: usize,
    page_size: PageSize,
    limit: u32,
) -> core::ops::RangeInclusive<u32> {
    // At most 512 pages and at most 512 KiB: neither product can be truncated.
    let raw = normal_pages.saturating_mul(page_size.bytes()) as u32;
    let lengths = normal_pages.saturating_mul(size_of::<u32>()) as u32;
    if normal_pages == 0 {
        return 0..=0;
    }
    match method {
        Ok(Method::None) => raw..=raw,
        Ok(Method::Qpl | Method::Uadk) => lengths..=lengths.saturating_add(raw),
        Ok(Method::Canned) => {
            lengths
                ..=lengths
                    .saturating_add(raw)
                    .saturating_add(MAX_CANNED_HEAD_LEN)
        }
        Ok(Method::Zlib | Method::Zstd | Method::Qatzip) | Err(_) => 1..=limit,
    }
}

/// The maximum head of a `canned` payload before its page lengths: a few numbers, and the code
/// lengths of a Huffman table, which take at most 290 bytes in the format of RFC 1951.
const MAX_CANNED_HEAD_LEN: u32 = 512;

/// Bytes of one page offset.
pub(crate) const TABLE_ENTRY_LEN: usize = size_of::<u64>();
/// Entries of the shortest table: 64 KiB pages.
pub(crate) const MIN_TABLE_ENTRIES: usize = PageSize::MAX.pages_per_packet();
/// Entries of the longest table: 1 KiB pages.
pub(crate) const MAX_TABLE_ENTRIES: usize = PageSize::MIN.pages_per_packet();

const RESERVED_LEN: usize = 28;

// The layout is the same in all QEMUs since 4.0, except `zero_pages`: reserved and zero before QEMU
// 9.0.
const PAGES_ALLOC_FIELD: Range<usize> = COMMON_LEN..COMMON_LEN + 4;
const NORMAL_PAGES_FIELD: Range<usize> = PAGES_ALLOC_FIELD.end..PAGES_ALLOC_FIELD.end + 4;
const NEXT_PACKET_SIZE_FIELD: Range<usize> = NORMAL_PAGES_FIELD.end..NORMAL_PAGES_FIELD.end + 4;
const PACKET_NUM_FIELD: Range<usize> = NEXT_PACKET_SIZE_FIELD.end..NEXT_PACKET_SIZE_FIELD.end + 8;
const ZERO_PAGES_FIELD: Range<usize> = PACKET_NUM_FIELD.end..PACKET_NUM_FIELD.end + 4;
const RESERVED_FIELD: Range<usize> = ZERO_PAGES_FIELD.end..ZERO_PAGES_FIELD.end + RESERVED_LEN;
const RAMBLOCK_FIELD: Range<usize> = RESERVED_FIELD.end..RESERVED_FIELD.end + FIELD_LEN;
const _: () = assert!(RAMBLOCK_FIELD.end == FixedPart::LEN);
