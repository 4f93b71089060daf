//! Method `qpl` (QEMU 9.1 and later): every page by itself, a complete raw deflate stream with a window of 4 KiB.
//!
//! A payload is a table of lengths and then the pages ([`multifd_wire::lengths`]). A page that does not get shorter is
//! sent as it is, which its length tells. A stock receiver takes any deflate, so the Huffman code is the sender's choice.
//!
//! Nothing on the wire checks a page, so a decoder has to be strict about what it takes for one: a stream has to be
//! complete, to fill its page exactly, and to end in its last byte. The device's own record says all of that. libqpl's
//! software path does not: it takes a stream that is cut off for a whole one, and does not tell where a stream has
//! ended. To be sure of its result one would have to decode again by other means, and whoever does that has the page.
//! So pages are decompressed by the device or by [`PageInflater`], which also has the last word on what the device refuses.

use std::ops::Range;

use multifd_wire::lengths::{self, PageData};
use multifd_wire::{Method, PageSize};
use qpl_sys::Library;

use super::compressor::{Compressor, Piece};
use super::hardware::{Batch, Hardware, Landed};
use super::job::Work;
use crate::channel::{ReadPayload, WritePayload};
use crate::deflate::PageInflater;
use crate::{Backend, DecodeError, EncodeError, Engine, Pages, PathCounts};

/// The sending direction.
pub(crate) struct WritePages {
    compressor: Compressor,
    pieces: Vec<Range<usize>>,
}

impl WritePages {
    pub(crate) const fn new(compressor: Compressor) -> Self {
        Self {
            compressor,
            pieces: Vec::new(),
        }
    }
}

impl WritePayload for WritePages {
    const METHOD: Method = Method::Qpl;

    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        self.pieces.clear();
        self.pieces
            .extend((0..pages.len()).map(|page| page..page + 1));
        // The table comes first on the wire and last here.
        out.resize(pages.len() * LENGTH_BYTES, 0);
        let mut entry = 0;
        let counts = self.compressor.run(pages, &self.pieces, |piece| {
            let (bytes, is_shorter) = match piece {
                Piece::Deflated { stream, .. } if !stream.is_empty() => (stream, true),
                // Never seen, and would be read as a fault.
                Piece::Deflated { content, .. } => (content, false),
                Piece::Raw(content) => (content, true),
            };
            // At most a page.
            let length = (bytes.len() as u32).to_be_bytes();
            if let Some(place) = out.get_mut(entry..entry + LENGTH_BYTES) {
                place.copy_from_slice(&length);
            }
            entry += LENGTH_BYTES;
            out.extend_from_slice(bytes);
            is_shorter
        });
        debug_assert!(lengths::parse(out, pages.len(), pages.page_size()).is_ok());
        Ok(counts)
    }

    fn backend(&self) -> Option<Backend> {
        self.compressor.backend()
    }
}

/// The receiving direction.
pub(crate) struct ReadPages {
    hardware: Option<Hardware>,
    inflater: PageInflater,
    /// Where the packet's pages lie in its payload.
    places: Vec<Range<usize>>,
}

impl ReadPages {
    /// On the hardware, which [`hardware`](super::hardware) has found.
    pub(crate) fn on_hardware(library: &'static Library) -> Self {
        Self {
            hardware: Some(Hardware::new(library)),
            ..Self::in_software()
        }
    }

    /// Without libqpl.
    pub(crate) fn in_software() -> Self {
        Self {
            hardware: None,
            inflater: PageInflater::new(),
            places: Vec::new(),
        }
    }
}

impl ReadPayload for ReadPages {
    const METHOD: Method = Method::Qpl;

    fn read_payload(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<PathCounts, DecodeError> {
        let page_bytes = page_size.bytes();
        let count = pages.len() / page_bytes;
        let table = lengths::parse(payload, count, page_size).map_err(DecodeError::Lengths)?;
        self.places.clear();
        let mut end = count * LENGTH_BYTES;
        self.places.extend(table.map(|page: PageData<'_>| {
            let start = end;
            end += page.bytes().len();
            start..end
        }));
        let mut packet = Packet {
            payload,
            places: &self.places,
            pages,
            page_bytes,
            inflater: &mut self.inflater,
            counts: PathCounts::default(),
        };
        match &mut self.hardware {
            Some(hardware) => hardware.run(&mut packet)?,
            None => (0..count).try_for_each(|page| packet.take(page, Landed::NotDone))?,
        }
        Ok(packet.counts)
    }

    fn backend(&self) -> Option<Backend> {
        let reason = self.hardware.as_ref()?.refused()?;
        Some(Backend::because(Engine::Software, reason))
    }
}

struct Packet<'a> {
    payload: &'a [u8],
    places: &'a [Range<usize>],
    pages: &'a mut [u8],
    page_bytes: usize,
    inflater: &'a mut PageInflater,
    counts: PathCounts,
}

impl Packet<'_> {
    fn data(&self, page: usize) -> &[u8] {
        let place = self.places.get(page).cloned();
        place
            .and_then(|place| self.payload.get(place))
            .unwrap_or_default()
    }
}

impl Batch for Packet<'_> {
    type Error = DecodeError;

    fn len(&self) -> usize {
        self.places.len()
    }

    fn fill(&self, page: usize, input: &mut Vec<u8>) -> Option<(Work, usize)> {
        let data = self.data(page);
        if data.len() == self.page_bytes {
            return None;
        }
        // Once for all pages that this job will see.
        input.reserve(self.page_bytes);
        input.extend_from_slice(data);
        Some((Work::Decompress, self.page_bytes))
    }

    fn take(&mut self, page: usize, landed: Landed<'_>) -> Result<(), DecodeError> {
        let place = self.places.get(page).cloned().unwrap_or_default();
        let data = self.payload.get(place).unwrap_or_default();
        let start = page * self.page_bytes;
        let target = self
            .pages
            .get_mut(start..start + self.page_bytes)
            .unwrap_or_default();
        self.counts += match landed {
            _ if data.len() == target.len() => {
                target.copy_from_slice(data);
                PathCounts::raw(1)
            }
            Landed::Done(product)
                if product.output.len() == target.len() && product.used == data.len() =>
            {
                target.copy_from_slice(product.output);
                PathCounts::hardware(1)
            }
            // Refused by the device, or not beyond doubt.
            _ => {
                let inflated = self.inflater.inflate(data, target);
                inflated.map_err(|source| DecodeError::Page { page, source })?;
                PathCounts::software(1)
            }
        };
        Ok(())
    }
}

/// Bytes of one length in the table.
const LENGTH_BYTES: usize = size_of::<u32>();
