//! The sending direction: what a method puts before its pages, a table of lengths and then the pages
//! ([`multifd_wire::lengths`]).

use std::sync::Arc;

use multifd_wire::{Method, PageSize};
use page_deflate::CodeLengths;

use crate::channel::{WritePayload, write_one_by_one};
use crate::{Backend, EncodeError, Flow, Huffman, Pages, PathCounts};

/// The sending direction of a method.
pub(crate) struct WritePages<C: CompressPages, H> {
    compressor: C,
    heads: H,
}

impl<C: CompressPages, H: Heads<C::Code>> WritePages<C, H> {
    pub(super) const fn with(compressor: C, heads: H) -> Self {
        Self { compressor, heads }
    }
}

impl<C: CompressPages, H: Heads<C::Code>> WritePayload for WritePages<C, H> {
    const METHOD: Method = H::METHOD;

    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        let body = |lengths: &CodeLengths| self.compressor.body(lengths);
        let code = self.heads.write_head(pages, &body, out)?;
        let list = PageList::begin(pages.len(), out);
        self.compressor.compress(&code, pages, list)
    }

    fn write_flow(
        &mut self,
        flow: &mut dyn Flow,
        page_size: PageSize,
        counts: &mut PathCounts,
        payload: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let heads = &mut self.heads;
        match self
            .compressor
            .compress_flow(heads, flow, page_size, counts)
        {
            Some(outcome) => outcome,
            None => write_one_by_one(self, flow, page_size, counts, payload),
        }
    }

    fn backend(&self) -> Option<Backend> {
        self.compressor.backend()
    }
}

/// What a method puts before the list of a packet's pages.
pub(crate) trait Heads<Code>: Send {
    const METHOD: Method;

    /// Appends it, and says what the pages are written in. `body` makes a code that is new.
    ///
    /// # Errors
    ///
    /// What `body` has said.
    fn write_head(
        &mut self,
        pages: &Pages<'_>,
        body: &dyn Fn(&CodeLengths) -> Result<Code, EncodeError>,
        out: &mut Vec<u8>,
    ) -> Result<Arc<Code>, EncodeError>;
}

/// Who compresses the pages of a packet, each by itself and as long as it gets shorter.
pub(crate) trait CompressPages: Send {
    /// What pages are written in.
    type Code: Send + Sync;

    /// A complete deflate stream of each page.
    fn stream(huffman: Huffman) -> Self::Code;

    /// The body of a block of these codes of each page, without the block's header.
    ///
    /// # Errors
    ///
    /// What a library has said.
    fn body(&self, lengths: &CodeLengths) -> Result<Self::Code, EncodeError>;

    /// Puts the pages on the list, in their order. All of a channel's pages are written either as streams or as bodies.
    ///
    /// # Errors
    ///
    /// When not all of them are on the list.
    fn compress(
        &mut self,
        code: &Self::Code,
        pages: &Pages<'_>,
        list: PageList<'_>,
    ) -> Result<PathCounts, EncodeError>;

    /// Does so with the packets of a flow, several at a time. Nothing if it does no more than one at a time.
    fn compress_flow<H: Heads<Self::Code>>(
        &mut self,
        _heads: &mut H,
        _flow: &mut dyn Flow,
        _page_size: PageSize,
        _counts: &mut PathCounts,
    ) -> Option<Result<(), EncodeError>> {
        None
    }

    /// See [`Encoder::backend`](crate::Encoder::backend), if it is not as it was chosen.
    fn backend(&self) -> Option<Backend> {
        None
    }
}

/// The pages of a payload that is being written. The table of their lengths comes first on the wire and is known last.
pub(crate) struct PageList<'o> {
    /// The payload, to which pages are appended.
    pub(crate) out: &'o mut Vec<u8>,
    /// Where the next page's length goes.
    entry: usize,
}

impl<'o> PageList<'o> {
    /// A list behind what `out` holds.
    pub(crate) fn begin(pages: usize, out: &'o mut Vec<u8>) -> Self {
        let entry = out.len();
        out.resize(entry + pages * LENGTH_BYTES, 0);
        Self { out, entry }
    }

    /// The list that [`Self::begin`] has made with the first of its lengths at `entry`.
    pub(crate) fn at(entry: usize, out: &'o mut Vec<u8>) -> Self {
        Self { out, entry }
    }

    /// Where the next page's length goes.
    pub(crate) const fn entry(&self) -> usize {
        self.entry
    }

    /// Notes the length of a page that is in `out` already.
    pub(crate) fn note(&mut self, length: usize) {
        // At most a page.
        let length = (length as u32).to_be_bytes();
        let end = self.entry + LENGTH_BYTES;
        if let Some(place) = self.out.get_mut(self.entry..end) {
            place.copy_from_slice(&length);
        }
        self.entry = end;
    }
}

/// Bytes of one length in the table.
pub(super) const LENGTH_BYTES: usize = size_of::<u32>();
