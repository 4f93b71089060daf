//! Pages out of a list, by an IAA or here.
//!
//! Nothing on the wire checks a page, so a decoder has to be strict about what it takes for one: a stream has to be
//! complete, to fill its page exactly, and to end in its last byte. The device's own record says all of that. libqpl's
//! software path does not: it takes a stream that is cut off for a whole one, and does not tell where a stream has
//! ended. To be sure of its result one would have to decode again by other means, and whoever does that has the page.
//! So pages are decompressed by the device or by [`PageInflater`] and [`SharedInflater`], which also have the last word on
//! what the device refuses.

use std::convert::Infallible;

use multifd_wire::PageSize;
use multifd_wire::lengths::{self, PageData};
use page_deflate::{CodeLengths, InflateError, PageInflater, SharedInflater};
#[cfg(feature = "qpl")]
use qpl_sys::Library;

#[cfg(feature = "qpl")]
use super::device::{OnDevice, StreamHead};
use crate::streams::Crew;
use crate::{Backend, DecodeError, PathCounts};

/// Reads lists of pages.
pub(crate) struct PageReader(Reader);

enum Reader {
    #[cfg(feature = "qpl")]
    Device(Box<OnDevice>),
    Here(Crew<PageInflater>),
}

/// What bodies of blocks are read with.
pub(crate) struct BodyCode {
    inflater: SharedInflater,
    #[cfg(feature = "qpl")]
    pub(super) head: StreamHead,
}

impl PageReader {
    /// On the hardware, which [`crate::qpl::hardware`] has found.
    #[cfg(feature = "qpl")]
    pub(crate) fn on_hardware(library: &'static Library) -> Self {
        Self(Reader::Device(Box::new(OnDevice::new(library))))
    }

    /// Without libqpl, on several processors.
    pub(crate) fn in_software() -> Self {
        let Ok(crew) = Crew::of_readers(|| Ok::<_, Infallible>(PageInflater::new()));
        Self(Reader::Here(crew))
    }

    /// What does the work, if it is not the hardware alone that was chosen.
    pub(crate) fn backend(&self) -> Option<Backend> {
        match &self.0 {
            #[cfg(feature = "qpl")]
            Reader::Device(device) => device.backend(),
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
            #[cfg(feature = "qpl")]
            Reader::Device(device) => device.read(list, table, page_size.bytes(), pages, code),
            Reader::Here(crew) => read_here(crew, table, page_size.bytes(), pages, code),
        }
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

pub(super) fn inflate(
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
        Self {
            inflater: SharedInflater::new(lengths),
            #[cfg(feature = "qpl")]
            head: StreamHead::new(lengths),
        }
    }
}
