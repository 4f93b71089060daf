//! The sending direction of one channel.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use multifd_wire::{Method, PageSize, RamPacket};

use super::Bases;
use super::directory::DirectoryWriter;
use super::foot::Foot;
use super::sent::{Counts, Sent, Slots, key, lock};
use super::shard::{Decision, Miss, Shard};
use crate::auto::Step;
use crate::channel::check_payload_len;
use crate::encoder::Failed;
use crate::{Backend, PageBuffer, PathCounts};

/// Encodes packets of pages: the sending direction of one channel, over an
/// [`Encoder`](crate::Encoder) of any method.
///
/// With [`Sent`] pages its payloads have differences; without them they are the method's.
///
/// `T` is the caller's tag for a packet: the packet's header, or a type that has it.
pub struct Encoder<T = RamPacket> {
    inner: crate::Encoder<T>,
    layer: Option<Layer>,
}

/// The layer of differences.
struct Layer {
    sent: Arc<Sent>,
    method: Method,
    directory: DirectoryWriter,
    area: Vec<u8>,
    /// The ends of the packets in work, the oldest first.
    ends: VecDeque<End>,
    /// Memory for further ends.
    spare: Vec<Vec<u8>>,
    price: Price,
    /// The number of pages in a row that differed too much.
    too_different: u32,
}

/// The end of a payload in work, and the content of the method's part before it.
struct End {
    /// Directory and foot.
    bytes: Vec<u8>,
    /// Pages that go whole.
    whole_pages: usize,
    /// Bytes that fill the area up to whole pages.
    filling: usize,
    /// Pages of the method's payload: whole pages and the area.
    pages: usize,
    page_size: PageSize,
}

/// The method's bytes of payload for a byte of a whole page, in this channel.
struct Price {
    per_byte: f64,
}

impl<T: Borrow<RamPacket>> Encoder<T> {
    /// An encoder of packets with differences to pages in `sent`, or without differences.
    #[must_use]
    pub fn new(inner: crate::Encoder<T>, sent: Option<Arc<Sent>>) -> Self {
        let layer = sent.map(|sent| Layer {
            directory: DirectoryWriter::new(sent.bases()),
            sent,
            method: inner.method(),
            area: Vec::new(),
            ends: VecDeque::new(),
            spare: Vec::new(),
            price: Price { per_byte: f64::MAX },
            too_different: 0,
        });
        Self { inner, layer }
    }

    /// This encoder with differences to pages in `sent`. No packet may have been pushed.
    #[must_use]
    pub fn with_differences(self, sent: Arc<Sent>) -> Self {
        Self::new(self.inner, Some(sent))
    }

    /// Whether packets have differences.
    #[must_use]
    pub const fn has_differences(&self) -> bool {
        self.layer.is_some()
    }

    /// Whether every normal page of the channel has to be [pushed](Self::push), and none may go in
    /// another way: the receiver finds the bases in place.
    #[must_use]
    pub fn needs_all_pages(&self) -> bool {
        let bases = self.layer.as_ref().map(|layer| layer.sent.bases());
        bases == Some(Bases::InPlace)
    }

    /// The method of the payloads.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.inner.method()
    }

    /// The method that a packet's header has to state. A packet with differences breaks most
    /// methods' rules for the length of a packet. So it states `zlib` or `zstd`, whose only rule is
    /// the limit, and [`payload_method`](super::payload_method) reads the method from the payload.
    #[must_use]
    pub const fn packet_method(&self) -> Method {
        match (self.inner.method(), &self.layer) {
            (Method::Zlib, Some(_)) => Method::Zlib,
            (_, Some(_)) => Method::Zstd,
            (method, None) => method,
        }
    }

    /// The encoder of the method.
    #[must_use]
    pub const fn inner(&self) -> &crate::Encoder<T> {
        &self.inner
    }

    /// See [`crate::Encoder::set_step`].
    pub fn set_step(&mut self, step: Step) {
        self.inner.set_step(step);
    }

    /// See [`crate::Encoder::room`].
    #[must_use]
    pub fn room(&self) -> usize {
        self.inner.room()
    }

    /// See [`crate::Encoder::backend`].
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.inner.backend()
    }

    /// See [`crate::Encoder::counts`]. They count the pages of the area instead of the pages that
    /// go as differences.
    #[must_use]
    pub const fn counts(&self) -> PathCounts {
        self.inner.counts()
    }

    /// Takes the packet of `tag`, with its normal pages in the order of their offsets. There must
    /// be [room](Self::room). See [`crate::Encoder::push`].
    ///
    /// `epoch` is the number of the channel's SYNCs before the packet. From now on packets of other
    /// channels may refer to this one. So it must be popped and sent, before any later packet of
    /// the channel.
    pub fn push(&mut self, mut pages: PageBuffer, epoch: u64, tag: T) {
        let packet = tag.borrow();
        // Only a packet without pages has no page size.
        let page_size = packet.page_size().unwrap_or(PageSize::K4);
        if let Some(layer) = &mut self.layer {
            layer.forget(packet);
            let end = layer.split(&mut pages, packet, page_size, epoch);
            layer.ends.push_back(end);
        }
        self.inner.push(pages, page_size, tag);
    }

    /// Frees the slots of the zero pages of a packet that has no payload, and so is not pushed.
    /// This call saves memory. It is necessary if the receiver finds the bases in place.
    pub fn forget_zero_pages(&mut self, packet: &RamPacket) {
        if let Some(layer) = &mut self.layer {
            layer.forget(packet);
        }
    }

    /// Makes the payload of the oldest packet: see [`crate::Encoder::pop`]. The caller can use the
    /// returned buffer for further packets; its content is meaningless.
    ///
    /// # Errors
    ///
    /// Why this packet cannot be encoded.
    pub fn pop(&mut self, payload: &mut Vec<u8>) -> Result<Option<(PageBuffer, T)>, Failed<T>> {
        let popped = self.inner.pop(payload)?;
        let Some(layer) = &mut self.layer else {
            return Ok(popped);
        };
        let Some((pages, tag)) = popped else {
            return Ok(None);
        };
        if let Some(end) = layer.ends.pop_front() {
            if layer.method == Method::None {
                payload.truncate(payload.len() - end.filling.min(payload.len()));
            }
            layer.price.learn(payload.len(), &end);
            payload.extend_from_slice(&end.bytes);
            layer.spare.push(end.bytes);
        }
        match check_payload_len(payload.len()) {
            Ok(()) => Ok(Some((pages, tag))),
            Err(error) => Err(Failed { tag, error }),
        }
    }
}

impl Layer {
    /// Frees the slots of a packet's zero pages.
    fn forget(&self, packet: &RamPacket) {
        let zero = packet.zero();
        let (false, Some(page_size)) = (zero.is_empty(), packet.page_size()) else {
            return;
        };
        let slots = self.sent.slots(page_size);
        let Some((slots, block)) = slots.zip(self.sent.block(packet.block())) else {
            return;
        };
        for offset in zero {
            let key = key(block, offset / page_size.bytes() as u64);
            if let Some((key, shard)) = key.and_then(|key| Some((key, slots.shard(key)?))) {
                lock(shard).forget(key);
            }
        }
    }

    /// Decides the operation of each page. Leaves the method's pages in `pages`, and returns the
    /// end of the payload.
    fn split(
        &mut self,
        pages: &mut PageBuffer,
        packet: &RamPacket,
        page_size: PageSize,
        epoch: u64,
    ) -> End {
        let page_bytes = page_size.bytes();
        let count = pages.as_ref().len() / page_bytes;
        let mut end = End::new(self.spare.pop().unwrap_or_default(), page_size);
        // A packet without pages has no payload. The method refuses one with a part of a page.
        if count == 0 || count * page_bytes != pages.as_ref().len() {
            return end;
        }
        self.area.clear();
        let sent = Arc::clone(&self.sent);
        let mut slots = PacketSlots::new(&sent, packet, page_size);
        let limit = self.price.limit(page_bytes);
        let is_in_place = sent.bases() == Bases::InPlace;
        let mut counts = Counts::default();
        let mut digest = 0;
        let numbers = packet.normal().iter();
        let numbers = numbers.map(|offset| Some(offset / page_bytes as u64));
        let numbers = numbers.chain(std::iter::repeat(None)).take(count);
        for (index, number) in numbers.enumerate() {
            let place = index * page_bytes..(index + 1) * page_bytes;
            let page = pages.as_ref().get(place.clone()).unwrap_or_default();
            let decision = match slots.find(number) {
                None => Decision::pass(Miss::Foreign),
                Some(_) if self.skips(index) && !is_in_place => Decision::pass(Miss::Skipped),
                Some((shard, key)) => {
                    let shard = slots.lock(shard);
                    let decision = match self.skips(index) {
                        true => Decision::pass(Miss::Skipped),
                        false => shard.send(key, page, epoch, limit, &mut self.area),
                    };
                    if is_in_place {
                        shard.passed(key, decision);
                    }
                    decision
                }
            };
            self.learn(decision.miss);
            counts.count(decision, page_bytes);
            let number = number.unwrap_or_default();
            self.directory.push(number, decision.entry, &mut end.bytes);
            if decision.entry.is_whole() {
                if end.whole_pages != index {
                    let to = end.whole_pages * page_bytes;
                    pages.as_mut().copy_within(place, to);
                }
                end.whole_pages += 1;
            } else {
                digest = super::fold(digest, page);
            }
        }
        drop(slots);
        self.directory.finish(&mut end.bytes);
        counts.area_bytes = self.area.len() as u64;
        sent.add(&counts);
        self.append_area(pages, &mut end);
        self.append_foot(digest, &mut end);
        end
    }

    /// Whether the page with this index is not compared, as too many before it differed too much.
    const fn skips(&self, index: usize) -> bool {
        self.too_different >= MOST_TOO_DIFFERENT && !index.is_multiple_of(SELDOM)
    }

    /// Learns whether another page in a row differs too much.
    const fn learn(&mut self, miss: Option<Miss>) {
        match miss {
            None => self.too_different = 0,
            Some(Miss::Changed) => self.too_different = self.too_different.saturating_add(1),
            Some(_) => {}
        }
    }

    /// Puts the area behind the whole pages, filled up to pages.
    fn append_area(&self, pages: &mut PageBuffer, end: &mut End) {
        let page_bytes = end.page_size.bytes();
        end.pages = end.whole_pages + self.area.len().div_ceil(page_bytes);
        // A difference has at most half a page, so the area fits into the freed pages.
        let area = pages.space(end.pages * page_bytes);
        let area = area.get_mut(end.whole_pages * page_bytes..);
        let area = area.unwrap_or_default();
        if let Some((differences, filling)) = area.split_at_mut_checked(self.area.len()) {
            differences.copy_from_slice(&self.area);
            filling.fill(0);
            end.filling = filling.len();
        }
    }

    /// Puts the foot behind the directory.
    fn append_foot(&self, digest: u64, end: &mut End) {
        let foot = Foot {
            digest,
            area_bytes: u32::try_from(self.area.len()).unwrap_or(u32::MAX),
            pages: u16::try_from(end.pages).unwrap_or(u16::MAX),
            directory_bytes: u16::try_from(end.bytes.len()).unwrap_or(u16::MAX),
            method: self.method,
            bases: self.sent.bases(),
        };
        foot.append_to(&mut end.bytes);
    }
}

impl End {
    /// An end without content, in the memory of an earlier one.
    fn new(mut bytes: Vec<u8>, page_size: PageSize) -> Self {
        bytes.clear();
        Self {
            bytes,
            whole_pages: 0,
            filling: 0,
            pages: 0,
            page_size,
        }
    }
}

/// The slots of one packet's pages.
struct PacketSlots<'a> {
    /// The slots and the number of the block, if its pages can have slots.
    known: Option<(&'a Slots, u8)>,
    /// Pages in sequence have the same shard, so its lock is kept. Only one lock is held at a time.
    held: Option<(&'a Mutex<Shard>, MutexGuard<'a, Shard>)>,
}

impl<'a> PacketSlots<'a> {
    fn new(sent: &'a Sent, packet: &RamPacket, page_size: PageSize) -> Self {
        let slots = sent.slots(page_size);
        Self {
            known: slots.zip(sent.block(packet.block())),
            held: None,
        }
    }

    /// The shard and the key of a page, if it can have a slot.
    fn find(&self, number: Option<u64>) -> Option<(&'a Mutex<Shard>, u64)> {
        let (slots, block) = self.known?;
        let key = key(block, number?)?;
        Some((slots.shard(key)?, key))
    }

    fn lock(&mut self, shard: &'a Mutex<Shard>) -> &mut Shard {
        let is_held = matches!(&self.held, Some((other, _)) if std::ptr::eq(*other, shard));
        if !is_held {
            self.held = None;
        }
        let (_, guard) = self.held.get_or_insert_with(|| (shard, lock(shard)));
        guard
    }
}

impl Price {
    /// The length from which on a difference is no better than the whole page.
    fn limit(&self, page_bytes: usize) -> usize {
        let most = page_bytes / 2;
        // The method may not compress the bytes of a difference.
        ((self.per_byte * page_bytes as f64) as usize).clamp(LEAST_LIMIT.min(most), most)
    }

    /// Learns from a packet, in proportion to its whole pages.
    fn learn(&mut self, payload_bytes: usize, packet: &End) {
        if packet.whole_pages == 0 {
            return;
        }
        let bytes = packet.pages * packet.page_size.bytes();
        let found = payload_bytes as f64 / bytes as f64;
        // The initial value.
        if self.per_byte > 2.0 {
            self.per_byte = found;
            return;
        }
        let weight = packet.whole_pages as f64 / (packet.whole_pages as f64 + MEMORY_PAGES);
        self.per_byte += (found - self.per_byte) * weight;
    }
}

/// After this many pages in a row that differed too much, only one page in [`SELDOM`] is compared
/// and kept, until one differs little. So differences do not slow down a channel of such pages.
const MOST_TOO_DIFFERENT: u32 = 256;
const SELDOM: usize = 32;
/// A difference of this length is always better than a whole page.
const LEAST_LIMIT: usize = 24;
/// The last pages that make up half of the price.
const MEMORY_PAGES: f64 = 64.0;
