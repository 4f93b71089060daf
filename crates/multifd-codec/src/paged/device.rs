//! Reads the pages of a list on an IAA.
//!
//! The device gets a body as a stream with its header in front. libqpl could omit the header, but
//! only with a table made on the device beforehand, for which libqpl waits without a time limit.

use std::ops::Range;

use multifd_wire::lengths::PageData;
use page_deflate::{CodeLengths, PageInflater};
use qpl_sys::Library;

use super::read::{BodyCode, inflate};
use super::write::LENGTH_BYTES;
use crate::error::DecodeFault;
use crate::qpl::{Batch, Hardware, Landed, Work};
use crate::{Backend, BackendKind, DecodeError, PathCounts};

/// Reads pages on the device. Pages that the device refuses are read in software.
pub(super) struct OnDevice {
    hardware: Hardware,
    inflater: PageInflater,
    /// The locations of the packet's pages in its payload.
    places: Vec<Range<usize>>,
}

impl OnDevice {
    pub(super) fn new(library: &'static Library) -> Self {
        Self {
            hardware: Hardware::new(library),
            inflater: PageInflater::new(),
            places: Vec::new(),
        }
    }

    /// The backend, unless it is only the hardware.
    pub(super) fn backend(&self) -> Option<Backend> {
        self.hardware.backend(BackendKind::Software)
    }

    /// Reads a list of pages with the lengths in `table`.
    pub(super) fn read<'a>(
        &mut self,
        list: &[u8],
        table: impl ExactSizeIterator<Item = PageData<'a>>,
        page_bytes: usize,
        pages: &mut [u8],
        code: Option<&BodyCode>,
    ) -> Result<PathCounts, DecodeError> {
        self.places.clear();
        let mut end = table.len() * LENGTH_BYTES;
        self.places.extend(table.map(|page| {
            let start = end;
            end += page.bytes().len();
            start..end
        }));
        let mut packet = Packet {
            list,
            places: &self.places,
            pages,
            page_bytes,
            code,
            inflater: &mut self.inflater,
            counts: PathCounts::default(),
        };
        self.hardware.run(&mut packet)?;
        Ok(packet.counts)
    }
}

/// The header of a block, for bodies without it.
pub(super) struct StreamHead {
    header: Vec<u8>,
    /// Bits of the header in its last byte; 0 if they fill it.
    last_bits: usize,
}

impl StreamHead {
    pub(super) fn new(lengths: &CodeLengths) -> Self {
        let mut header = Vec::new();
        let bits = lengths.write_header(&mut header);
        Self {
            header,
            last_bits: bits % 8,
        }
    }

    /// Appends a body with its header in front.
    fn append_stream(&self, body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header);
        if self.last_bits == 0 {
            out.extend_from_slice(body);
            return;
        }
        let mut pending = u16::from(out.pop().unwrap_or_default());
        out.extend(body.iter().map(|&byte| {
            pending |= u16::from(byte) << self.last_bits;
            let whole = pending as u8;
            pending >>= 8;
            whole
        }));
        // The last bits of the body, or only padding.
        out.push(pending as u8);
    }
}

struct Packet<'a> {
    list: &'a [u8],
    places: &'a [Range<usize>],
    pages: &'a mut [u8],
    page_bytes: usize,
    code: Option<&'a BodyCode>,
    inflater: &'a mut PageInflater,
    counts: PathCounts,
}

impl Packet<'_> {
    fn data(&self, page: usize) -> &[u8] {
        let place = self.places.get(page).cloned();
        place
            .and_then(|place| self.list.get(place))
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
        // Reserve once for all pages of this job.
        let header_bytes = self.code.map_or(0, |code| code.head.header.len() + 1);
        input.reserve(self.page_bytes + header_bytes);
        match self.code {
            Some(code) => code.head.append_stream(data, input),
            None => input.extend_from_slice(data),
        }
        Some((Work::Decompress, self.page_bytes))
    }

    fn take(&mut self, page: usize, landed: Landed<'_>) -> Result<(), DecodeError> {
        let place = self.places.get(page).cloned().unwrap_or_default();
        let data = self.list.get(place).unwrap_or_default();
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
                if product.output.len() == target.len() && product.used == product.input.len() =>
            {
                target.copy_from_slice(product.output);
                PathCounts::hardware(1)
            }
            // Refused by the device, or with a doubtful result.
            _ => {
                inflate(self.inflater, self.code, data, target)
                    .map_err(|source| DecodeError(DecodeFault::Page { page, source }))?;
                PathCounts::software(1)
            }
        };
        Ok(())
    }
}
