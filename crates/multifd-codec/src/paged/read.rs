//! Reads pages from a list, on an IAA or in software.
//!
//! The wire format has no checksum for a page, so a decoder has to be strict: a stream has to be
//! complete, fill its page exactly, and end in its last byte. The device's completion record
//! confirms all of this. libqpl's software path does not: it accepts a truncated stream as
//! complete, and does not report where a stream ended. Verifying its result requires decoding again
//! by other means, which already gives the page. So pages are decompressed by the device or by
//! [`PageInflater`] and [`SharedInflater`], which also decide about pages that the device refuses.

use std::convert::Infallible;
use std::sync::Arc;

use multifd_wire::PageSize;
use multifd_wire::lengths::{self, PageData};
use page_deflate::{CodeLengths, InflateError, PageInflater, SharedInflater};
#[cfg(feature = "qpl")]
use qpl_sys::Library;

#[cfg(feature = "qpl")]
use super::device::{OnDevice, StreamHead};
use super::write::LENGTH_BYTES;
use crate::channel::Arrived;
use crate::error::DecodeFault;
use crate::streams::{Piece, Readers};
use crate::{Backend, DecodeError, PathCounts};

/// Reads lists of pages.
pub(crate) struct PageReader(Reader);

enum Reader {
    #[cfg(feature = "qpl")]
    Device(Box<OnDevice>),
    Here(Box<Here>),
}

/// [`PageInflater::inflate_all`] decodes two pages at once.
const TOGETHER: usize = 2;

type Here = Readers<PageInflater, Option<Arc<BodyCode>>, InflateError>;

/// The decoder's form of a code for bodies of blocks.
pub(crate) struct BodyCode {
    inflater: SharedInflater,
    #[cfg(feature = "qpl")]
    pub(super) head: StreamHead,
}

impl PageReader {
    /// A reader on the hardware found by [`crate::qpl::hardware`].
    #[cfg(feature = "qpl")]
    pub(crate) fn on_hardware(library: &'static Library) -> Self {
        Self(Reader::Device(Box::new(OnDevice::new(library))))
    }

    /// A reader without libqpl, on several processors.
    pub(crate) fn in_software() -> Self {
        let inflater = || Ok::<_, Infallible>(PageInflater::new());
        let Ok(readers) = Readers::new(inflater, read_pages, TOGETHER);
        Self(Reader::Here(Box::new(readers)))
    }

    /// The backend, unless it is only the chosen hardware.
    pub(crate) fn backend(&self) -> Option<Backend> {
        match &self.0 {
            #[cfg(feature = "qpl")]
            Reader::Device(device) => device.backend(),
            Reader::Here(_) => None,
        }
    }

    /// Reads a payload that is a list of streams of whole pages.
    pub(crate) fn read_streams(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        self.read(packet, 0, page_size, None)
    }

    /// Reads a payload that is a list of bodies after a head of `head_len` bytes.
    pub(crate) fn read_bodies(
        &mut self,
        packet: &mut Arrived,
        head_len: usize,
        page_size: PageSize,
        code: &Arc<BodyCode>,
    ) -> Result<PathCounts, DecodeError> {
        self.read(packet, head_len, page_size, Some(code))
    }

    fn read(
        &mut self,
        packet: &mut Arrived,
        head_len: usize,
        page_size: PageSize,
        code: Option<&Arc<BodyCode>>,
    ) -> Result<PathCounts, DecodeError> {
        match &mut self.0 {
            #[cfg(feature = "qpl")]
            Reader::Device(device) => {
                let pages = packet.pages.as_mut();
                let list = packet.payload.get(head_len..).unwrap_or_default();
                let count = pages.len() / page_size.bytes();
                let table = lengths::parse(list, count, page_size).map_err(DecodeFault::Lengths)?;
                device.read(
                    list,
                    table,
                    page_size.bytes(),
                    pages,
                    code.map(|code| &**code),
                )
            }
            Reader::Here(readers) => read_here(readers, packet, head_len, page_size, code),
        }
    }
}

fn read_here(
    readers: &mut Here,
    packet: &mut Arrived,
    head_len: usize,
    page_size: PageSize,
    code: Option<&Arc<BodyCode>>,
) -> Result<PathCounts, DecodeError> {
    let expected = packet.pages.as_ref().len();
    let count = expected / page_size.bytes();
    let mut counts = Ok(PathCounts::default());
    let outcome = readers.read(packet, code.cloned(), |payload, pieces| {
        let list = payload.get(head_len..).unwrap_or_default();
        let table = lengths::parse(list, count, page_size)
            .map_err(|fault| counts = Err(DecodeError(DecodeFault::Lengths(fault))))
            .ok()?;
        let mut start = head_len + count * LENGTH_BYTES;
        let mut ways = PathCounts::default();
        for page in table {
            ways += match page {
                PageData::Raw(_) => PathCounts::raw(1),
                PageData::Compressed(_) => PathCounts::software(1),
            };
            let end = start + page.bytes().len();
            pieces.push(start..end, page_size.bytes())?;
            start = end;
        }
        counts = Ok(ways);
        Some(())
    });
    let are_read =
        outcome.map_err(|(page, source)| DecodeError(DecodeFault::Page { page, source }))?;
    let counts = counts?;
    // The list has exactly the packet's pages.
    let found = 0;
    are_read.ok_or(DecodeError(DecodeFault::TooShort { found, expected }))?;
    Ok(counts)
}

fn read_pages<'d>(
    inflater: &mut PageInflater,
    code: &Option<Arc<BodyCode>>,
    pages: &mut dyn Iterator<Item = Piece<'d>>,
) -> Result<(), InflateError> {
    let compressed = pages.filter_map(|(data, page)| {
        if data.len() == page.len() {
            page.copy_from_slice(data);
            return None;
        }
        Some((data, page))
    });
    match code.as_deref() {
        Some(code) => code.inflater.inflate_all(compressed),
        None => inflater.inflate_all(compressed),
    }
}

#[cfg(feature = "qpl")]
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
