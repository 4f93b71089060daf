//! Method `qpl` (QEMU 9.1 and later): every page by itself, a complete raw deflate stream with a
//! window of 4 KiB.
//!
//! A payload is a table of lengths and then the pages ([`multifd_wire::lengths`]). A page that
//! would not get shorter is sent uncompressed, which its length shows. A stock receiver reads any
//! deflate, so the sender chooses the Huffman code.

use std::sync::Arc;

use multifd_wire::{Method, PageSize};
use page_deflate::CodeLengths;

use super::PageReader;
use super::write::Heads;
use crate::channel::{Arrived, ReadPayload};
use crate::{Backend, DecodeError, EncodeError, Pages, PathCounts};

/// All pages have the same code, and their list has no head.
pub(crate) struct NoHead<Code>(Arc<Code>);

impl<Code> NoHead<Code> {
    pub(crate) fn new(code: Code) -> Self {
        Self(Arc::new(code))
    }
}

impl<Code: Send + Sync> Heads<Code> for NoHead<Code> {
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
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        self.0.read_streams(packet, page_size)
    }

    fn backend(&self) -> Option<Backend> {
        self.0.backend()
    }
}
