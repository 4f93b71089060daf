//! The receiving direction of one channel.

use std::slice::ChunksExact;
use std::sync::Arc;

use multifd_wire::{Method, PageSize, RamPacket};

use super::directory::{DirectoryReader, Entry, Operation};
use super::foot::Foot;
use super::{Bases, DeltaError, Kept, difference};
use crate::PageBuffer;
use crate::delta::error::DeltaFault;

/// Decodes packets of pages: the receiving direction of one channel, over a
/// [`Decoder`](crate::Decoder) of any method.
///
/// With [`Kept`] pages, or [in place](Self::in_place), it reads payloads with differences.
/// Otherwise it reads payloads of the method.
pub struct Decoder {
    inner: Box<dyn crate::Decoder>,
    layer: Option<Layer>,
}

struct Layer {
    /// `None` if the caller has the bases in place.
    kept: Option<Arc<Kept>>,
    /// False after the first error.
    is_whole: bool,
    /// The pages that the method has decoded.
    coded: PageBuffer,
    directory: Vec<u8>,
}

impl Decoder {
    /// A decoder of packets with differences to pages in `kept`, or without differences.
    #[must_use]
    pub fn new(inner: Box<dyn crate::Decoder>, kept: Option<Arc<Kept>>) -> Self {
        let layer = kept.map(|kept| Layer::new(Some(kept)));
        Self { inner, layer }
    }

    /// A decoder of packets with differences to pages that the caller has: see
    /// [`decode_in_place`](Self::decode_in_place).
    #[must_use]
    pub fn in_place(inner: Box<dyn crate::Decoder>) -> Self {
        let layer = Some(Layer::new(None));
        Self { inner, layer }
    }

    /// The decoder of the method.
    #[must_use]
    pub fn inner(&self) -> &dyn crate::Decoder {
        &*self.inner
    }

    /// Reads the payload of the channel's next packet with normal pages into `pages`: see
    /// [`crate::Decoder::decode_owned`]. `pages` has the length of all its pages. The content of
    /// `payload` is meaningless afterwards.
    ///
    /// It waits for other channels while operations before the packet's own are missing. Meanwhile
    /// it calls `given_up` about every 50 ms, and ends the wait if that returns true.
    ///
    /// # Errors
    ///
    /// See [`DeltaError`]. After any error the decoder refuses every payload, and the content of
    /// `pages` is meaningless.
    pub fn decode(
        &mut self,
        payload: &mut Vec<u8>,
        packet: &RamPacket,
        pages: &mut PageBuffer,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(), DeltaError> {
        let caller = Caller {
            given_up,
            base: &|_, _| false,
        };
        self.decode_for(&caller, payload, packet, pages)
    }

    /// The same for a decoder [in place](Self::in_place). It never waits.
    ///
    /// `base` is called with the offset of a page in the packet's block. It has to read the content
    /// that the page got from the packets before, of all channels, as far as the receiver has
    /// confirmed them. It returns false if the page has not come yet.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn decode_in_place(
        &mut self,
        payload: &mut Vec<u8>,
        packet: &RamPacket,
        pages: &mut PageBuffer,
        base: &dyn Fn(u64, &mut [u8]) -> bool,
    ) -> Result<(), DeltaError> {
        let caller = Caller {
            given_up: &|| false,
            base,
        };
        self.decode_for(&caller, payload, packet, pages)
    }

    fn decode_for(
        &mut self,
        caller: &Caller<'_>,
        payload: &mut Vec<u8>,
        packet: &RamPacket,
        pages: &mut PageBuffer,
    ) -> Result<(), DeltaError> {
        // Only a packet without pages has no page size.
        let page_size = packet.page_size().unwrap_or(PageSize::K4);
        let Some(layer) = &mut self.layer else {
            return Ok(self.inner.decode_owned(payload, page_size, pages)?);
        };
        if !std::mem::replace(&mut layer.is_whole, false) {
            return Err(DeltaError(DeltaFault::Poisoned));
        }
        if !pages.as_ref().is_empty() {
            let (inner, packet) = (&mut *self.inner, Packet { packet, page_size });
            layer.decode(caller, inner, payload, &packet, pages)?;
        } else if !payload.is_empty() {
            let found = payload.len();
            return Err(crate::DecodeError(crate::error::DecodeFault::Trailing { found }).into());
        }
        layer.is_whole = true;
        Ok(())
    }
}

/// What a decoder asks its caller.
struct Caller<'a> {
    /// Whether to stop waiting.
    given_up: &'a dyn Fn() -> bool,
    /// For a base in place.
    base: &'a dyn Fn(u64, &mut [u8]) -> bool,
}

struct Packet<'a> {
    packet: &'a RamPacket,
    page_size: PageSize,
}

impl Layer {
    fn new(kept: Option<Arc<Kept>>) -> Self {
        Self {
            kept,
            is_whole: true,
            coded: PageBuffer::default(),
            directory: Vec::new(),
        }
    }

    const fn bases(&self) -> Bases {
        match self.kept {
            Some(_) => Bases::Slots,
            None => Bases::InPlace,
        }
    }

    fn decode(
        &mut self,
        caller: &Caller<'_>,
        inner: &mut dyn crate::Decoder,
        payload: &mut Vec<u8>,
        packet: &Packet<'_>,
        pages: &mut PageBuffer,
    ) -> Result<(), DeltaError> {
        let page_bytes = packet.page_size.bytes();
        let offsets = packet.packet.normal();
        let count = offsets.len();
        check("bytes of pages", pages.as_ref().len(), count * page_bytes)?;
        let foot = self.take_foot(payload)?;
        let bases = self.bases();
        let parts = Parts::new(&foot, count, packet.page_size)?;
        let coded = read_coded(inner, &foot, &parts, payload, &mut self.coded, pages)?;
        let mut parts = parts.of(coded);

        let mut directory = DirectoryReader::new(bases, &self.directory, count);
        let (mut digest, mut operations) = (0, 0);
        let pages = pages.as_mut().chunks_exact_mut(page_bytes);
        for (index, (page, offset)) in pages.zip(offsets).enumerate() {
            let entry = directory.next(offset / page_bytes as u64)?;
            if entry.is_whole() {
                parts.take_whole(index, page)?;
            }
            let Entry::Slot {
                operation,
                slot,
                version,
            } = entry
            else {
                continue;
            };
            let size = packet.page_size;
            operations += 1;
            let wrong = DeltaError(DeltaFault::Run { page: index });
            match &self.kept {
                Some(kept) => kept.operate(slot, version, size, caller.given_up, |kept| {
                    match operation {
                        Operation::Keep => kept.copy_from_slice(page),
                        Operation::Same => page.copy_from_slice(kept),
                        Operation::Difference => {
                            difference::apply(kept, &mut parts.area).ok_or(wrong)?;
                            page.copy_from_slice(kept);
                        }
                    }
                    Ok(())
                })?,
                None => {
                    if !(caller.base)(*offset, page) {
                        return Err(DeltaError(DeltaFault::NoBase { page: index }));
                    }
                    if operation == Operation::Difference {
                        difference::apply(page, &mut parts.area).ok_or(wrong)?;
                    }
                }
            }
            if !entry.is_whole() {
                digest = super::fold(digest, page);
            }
        }
        directory.finish()?;
        parts.finish()?;
        if digest != foot.digest {
            let wanted = foot.digest;
            return Err(DeltaError(DeltaFault::Digest {
                found: digest,
                wanted,
            }));
        }
        if let Some(kept) = &self.kept {
            kept.packet_decoded(operations);
        }
        Ok(())
    }

    /// Takes foot and directory from the end of the payload.
    fn take_foot(&mut self, payload: &mut Vec<u8>) -> Result<Foot, DeltaError> {
        let (foot, before) = Foot::of(payload, self.bases())?;
        let directory_bytes = usize::from(foot.directory_bytes);
        let start = before.checked_sub(directory_bytes).ok_or(part(
            "bytes of directory",
            directory_bytes,
            before,
        ))?;
        let directory = payload.get(start..before).unwrap_or_default();
        self.directory.clear();
        self.directory.extend_from_slice(directory);
        payload.truncate(start);
        Ok(foot)
    }
}

/// The lengths of the parts of a payload's pages: whole ones, and the area of differences.
struct Parts {
    page_size: PageSize,
    /// Pages of the packet.
    count: usize,
    whole_pages: usize,
    area_bytes: usize,
}

impl Parts {
    /// The parts that a foot states for a packet of `count` pages.
    fn new(foot: &Foot, count: usize, page_size: PageSize) -> Result<Self, DeltaError> {
        let coded_pages = usize::from(foot.pages);
        if coded_pages > count {
            return Err(part("pages", coded_pages, count));
        }
        let area_bytes = foot.area_bytes as usize;
        let area_pages = area_bytes.div_ceil(page_size.bytes());
        let whole_pages = coded_pages.checked_sub(area_pages).ok_or(part(
            "pages of differences",
            area_pages,
            coded_pages,
        ))?;
        Ok(Self {
            page_size,
            count,
            whole_pages,
            area_bytes,
        })
    }

    /// Whether the method's pages are those of the packet, in their order.
    const fn are_the_packet(&self) -> bool {
        self.area_bytes == 0 && self.whole_pages == self.count
    }

    /// Finds the parts in what the method has decoded: nothing, if that is in its place already.
    fn of(self, coded: &[u8]) -> Pieces<'_> {
        let page_bytes = self.page_size.bytes();
        let (whole, area) = coded
            .split_at_checked(self.whole_pages * page_bytes)
            .unwrap_or_default();
        Pieces {
            whole: whole.chunks_exact(page_bytes),
            left: self.whole_pages,
            area: area.get(..self.area_bytes).unwrap_or_default(),
            parts: self,
        }
    }
}

/// What the directory's operations take from, in order.
struct Pieces<'a> {
    parts: Parts,
    whole: ChunksExact<'a, u8>,
    /// Whole pages that were not taken.
    left: usize,
    area: &'a [u8],
}

impl Pieces<'_> {
    /// Takes the next whole page, the packet's page `index`.
    fn take_whole(&mut self, index: usize, page: &mut [u8]) -> Result<(), DeltaError> {
        let left = self.left.checked_sub(1);
        self.left = left.ok_or(part("whole pages", self.parts.whole_pages, index))?;
        if let Some(next) = self.whole.next() {
            page.copy_from_slice(next);
        }
        Ok(())
    }

    /// Checks that nothing is left.
    fn finish(&self) -> Result<(), DeltaError> {
        let Parts {
            whole_pages,
            area_bytes,
            ..
        } = self.parts;
        check("whole pages", whole_pages, whole_pages - self.left)?;
        check(
            "bytes of differences",
            area_bytes,
            area_bytes - self.area.len(),
        )
    }
}

/// Runs the method. Returns whole pages and area; nothing if the method has decoded into `pages`
/// itself, as it does without differences.
fn read_coded<'a>(
    inner: &mut dyn crate::Decoder,
    foot: &Foot,
    parts: &Parts,
    payload: &'a mut Vec<u8>,
    coded: &'a mut PageBuffer,
    pages: &mut PageBuffer,
) -> Result<&'a [u8], DeltaError> {
    let page_size = parts.page_size;
    if foot.method == Method::None {
        let expected = parts.whole_pages * page_size.bytes() + parts.area_bytes;
        check("bytes of stored pages", expected, payload.len())?;
        return Ok(payload);
    }
    if foot.method != inner.method() {
        return Err(DeltaError(DeltaFault::Method {
            found: foot.method,
            allowed: inner.method(),
        }));
    }
    if parts.are_the_packet() {
        inner.decode_owned(payload, page_size, pages)?;
        return Ok(&[]);
    }
    coded.space(usize::from(foot.pages) * page_size.bytes());
    inner.decode_owned(payload, page_size, coded)?;
    let coded: &'a PageBuffer = coded;
    Ok(coded.as_ref())
}

fn check(what: &'static str, found: usize, allowed: usize) -> Result<(), DeltaError> {
    if found == allowed {
        return Ok(());
    }
    Err(part(what, found, allowed))
}

const fn part(what: &'static str, found: usize, allowed: usize) -> DeltaError {
    DeltaError(DeltaFault::Part {
        what,
        found,
        allowed,
    })
}
