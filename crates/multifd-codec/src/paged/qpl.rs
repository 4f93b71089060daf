//! Method `qpl` (QEMU 9.1 and later): every page by itself, a complete raw deflate stream with a window of 4 KiB.
//!
//! A payload is a table of lengths and then the pages ([`multifd_wire::lengths`]). A page that does not get shorter is
//! sent as it is, which its length tells. A stock receiver takes any deflate, so the Huffman code is the sender's choice.

use multifd_wire::{Method, PageSize};

use super::{CompressPages, PageList, PageReader};
use crate::channel::{ReadPayload, WritePayload};
use crate::{Backend, DecodeError, EncodeError, Huffman, Pages, PathCounts};

/// The sending direction.
pub(crate) struct WritePages<C: CompressPages> {
    compressor: C,
    code: C::Code,
}

impl<C: CompressPages> WritePages<C> {
    pub(crate) fn new(compressor: C, huffman: Huffman) -> Self {
        Self {
            compressor,
            code: C::stream(huffman),
        }
    }
}

impl<C: CompressPages> WritePayload for WritePages<C> {
    const METHOD: Method = Method::Qpl;

    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        let list = PageList::begin(pages.len(), out);
        Ok(self.compressor.compress(&self.code, pages, list))
    }

    fn backend(&self) -> Option<Backend> {
        self.compressor.backend()
    }
}

/// The receiving direction.
pub(crate) struct ReadPages(PageReader);

impl ReadPages {
    pub(crate) const fn new(reader: PageReader) -> Self {
        Self(reader)
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
        self.0.read_streams(payload, page_size, pages)
    }

    fn backend(&self) -> Option<Backend> {
        self.0.backend()
    }
}
