//! Method `qpl` (QEMU 9.1 and later): every page by itself, a complete raw deflate stream with a window of 4 KiB.
//!
//! A payload is a table of lengths and then the pages ([`multifd_wire::lengths`]). A page that does not get shorter is
//! sent as it is, which its length tells. A stock receiver takes any deflate, so the Huffman code is the sender's choice.

use std::sync::Arc;

use multifd_wire::{Method, PageSize};
use page_deflate::CodeLengths;

use super::write::{Heads, WritePages};
use super::{CompressPages, PageReader};
use crate::channel::ReadPayload;
use crate::{Backend, DecodeError, EncodeError, Huffman, Pages, PathCounts};

/// The sending direction.
pub(crate) fn write_pages<C: CompressPages>(
    compressor: C,
    huffman: Huffman,
) -> WritePages<C, NoHead<C::Code>> {
    WritePages::with(compressor, NoHead(Arc::new(C::stream(huffman))))
}

/// Pages are all written in the same, and nothing is said of it.
pub(crate) struct NoHead<Code>(Arc<Code>);

impl<Code: Send + Sync> Heads<Code> for NoHead<Code> {
    const METHOD: Method = Method::Qpl;

    fn write_head(
        &mut self,
        _: &Pages<'_>,
        _: &dyn Fn(&CodeLengths) -> Result<Code, EncodeError>,
        _: &mut Vec<u8>,
    ) -> Result<Arc<Code>, EncodeError> {
        Ok(Arc::clone(&self.0))
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
