//! Pages out of a list, by an IAA or here.
//!
//! Nothing on the wire checks a page, so a decoder has to be strict about what it takes for one: a stream has to be
//! complete, to fill its page exactly, and to end in its last byte. The device's own record says all of that. libqpl's
//! software path does not: it takes a stream that is cut off for a whole one, and does not tell where a stream has
//! ended. To be sure of its result one would have to decode again by other means, and whoever does that has the page.
//! So pages are decompressed by the device or by [`PageInflater`] and [`SharedInflater`], which also have the last word on
//! what the device refuses.
//!
//! The device gets a body as the stream that it is with its header in front. libqpl could leave the header out, with a
//! table that the device has made beforehand, for which libqpl waits without limit.

use std::convert::Infallible;
use std::ops::Range;

use multifd_wire::PageSize;
use multifd_wire::lengths::{self, PageData};
use qpl_sys::Library;

use super::write::LENGTH_BYTES;
use crate::deflate::{CodeLengths, InflateError, PageInflater, SharedInflater};
use crate::qpl::{Batch, Hardware, Landed, Work};
use crate::streams::Crew;
use crate::{Backend, DecodeError, Engine, PathCounts};

/// Reads lists of pages.
pub(crate) struct PageReader(Reader);

enum Reader {
    Device(Box<OnDevice>),
    Here(Crew<PageInflater>),
}

struct OnDevice {
    hardware: Hardware,
    inflater: PageInflater,
    /// Where the packet's pages lie in its payload.
    places: Vec<Range<usize>>,
}

/// What bodies of blocks are read with.
pub(crate) struct BodyCode {
    inflater: SharedInflater,
    header: Vec<u8>,
    /// Bits of the header in its last byte; 0 if they fill it.
    last_bits: usize,
}

impl PageReader {
    /// On the hardware, which [`crate::qpl::hardware`] has found.
    pub(crate) fn on_hardware(library: &'static Library) -> Self {
        Self(Reader::Device(Box::new(OnDevice {
            hardware: Hardware::new(library),
            inflater: PageInflater::new(),
            places: Vec::new(),
        })))
    }

    /// Without libqpl, on several processors.
    pub(crate) fn in_software() -> Self {
        let Ok(crew) = Crew::of_readers(|| Ok::<_, Infallible>(PageInflater::new()));
        Self(Reader::Here(crew))
    }

    /// What does the work, if it is not the hardware alone that was chosen.
    pub(crate) fn backend(&self) -> Option<Backend> {
        match &self.0 {
            Reader::Device(device) => device.hardware.backend(Engine::Software),
            Reader::Here(_) => None,
        }
    }

    /// Reads a list of streams, of whole pages.
    pub(crate) fn read_streams(
        &mut self,
        list: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<PathCounts, DecodeError> {
        self.read(list, page_size, pages, None)
    }

    /// Reads a list of bodies.
    pub(crate) fn read_bodies(
        &mut self,
        list: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
        code: &BodyCode,
    ) -> Result<PathCounts, DecodeError> {
        self.read(list, page_size, pages, Some(code))
    }

    fn read(
        &mut self,
        list: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
        code: Option<&BodyCode>,
    ) -> Result<PathCounts, DecodeError> {
        let count = pages.len() / page_size.bytes();
        let table = lengths::parse(list, count, page_size).map_err(DecodeError::Lengths)?;
        match &mut self.0 {
            Reader::Device(device) => device.read(list, table, page_size.bytes(), pages, code),
            Reader::Here(crew) => read_here(crew, table, page_size.bytes(), pages, code),
        }
    }
}

impl OnDevice {
    fn read<'a>(
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

fn read_here<'a>(
    crew: &mut Crew<PageInflater>,
    table: impl Iterator<Item = PageData<'a>>,
    page_bytes: usize,
    pages: &mut [u8],
    code: Option<&BodyCode>,
) -> Result<PathCounts, DecodeError> {
    let mut counts = PathCounts::default();
    let mut pieces = crew.no_places();
    for (page, place) in table.zip(pages.chunks_exact_mut(page_bytes)) {
        counts += match page {
            PageData::Raw(_) => PathCounts::raw(1),
            PageData::Compressed(_) => PathCounts::software(1),
        };
        pieces.push((page.bytes(), place));
    }
    let read = |inflater: &mut PageInflater, data: &[u8], page: &mut [u8]| {
        if data.len() == page.len() {
            page.copy_from_slice(data);
            return Ok(());
        }
        inflate(inflater, code, data, page)
    };
    let outcome = crew.decompress(pieces, read);
    outcome.map_err(|(page, source)| DecodeError::Page { page, source })?;
    Ok(counts)
}

fn inflate(
    inflater: &mut PageInflater,
    code: Option<&BodyCode>,
    data: &[u8],
    page: &mut [u8],
) -> Result<(), InflateError> {
    match code {
        Some(code) => code.inflater.inflate(data, page),
        None => inflater.inflate(data, page),
    }
}

impl BodyCode {
    pub(crate) fn new(lengths: &CodeLengths) -> Self {
        let mut header = Vec::new();
        let bits = lengths.write_header(&mut header);
        Self {
            inflater: SharedInflater::new(lengths),
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
        // The end of the body, or nothing but what filled its last byte.
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
        // Once for all pages that this job will see.
        let header_bytes = self.code.map_or(0, |code| code.header.len() + 1);
        input.reserve(self.page_bytes + header_bytes);
        match self.code {
            Some(code) => code.append_stream(data, input),
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
            // Refused by the device, or not beyond doubt.
            _ => {
                inflate(self.inflater, self.code, data, target)
                    .map_err(|source| DecodeError::Page { page, source })?;
                PathCounts::software(1)
            }
        };
        Ok(())
    }
}
