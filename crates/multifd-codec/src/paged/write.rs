//! The sending direction: what a method puts before its pages, a table of lengths and then the
//! pages ([`multifd_wire::lengths`]).

use std::sync::Arc;

use page_deflate::CodeLengths;

#[cfg(feature = "qpl")]
use crate::encoder::WritePayload;
#[cfg(feature = "qpl")]
use crate::{Backend, PathCounts};
use crate::{EncodeError, Pages};

/// The sending direction of a method, with a compressor that has one packet in work.
#[cfg(feature = "qpl")]
pub(crate) struct WritePages<C, H> {
    compressor: C,
    heads: H,
}

#[cfg(feature = "qpl")]
impl<C: CompressPages, H: Heads<C::Code>> WritePages<C, H> {
    pub(crate) const fn new(compressor: C, heads: H) -> Self {
        Self { compressor, heads }
    }
}

#[cfg(feature = "qpl")]
impl<C: CompressPages, H: Heads<C::Code>> WritePayload for WritePages<C, H> {
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

    fn backend(&self) -> Option<Backend> {
        self.compressor.backend()
    }
}

/// What a method puts before the list of a packet's pages.
pub(crate) trait Heads<Code>: Send {
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

/// Compresses the pages of a packet, each by itself and as long as it gets shorter.
#[cfg(feature = "qpl")]
pub(crate) trait CompressPages: Send {
    /// What pages are written in.
    type Code: Send + Sync;

    /// The body of a block of these codes of each page, without the block's header.
    ///
    /// # Errors
    ///
    /// Those of a library.
    fn body(&self, lengths: &CodeLengths) -> Result<Self::Code, EncodeError>;

    /// Puts the pages on the list, in their order. All of a channel's pages are written either as
    /// streams or as bodies.
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

    /// See [`Encoder::backend`](crate::Encoder::backend), if it is not as it was chosen.
    fn backend(&self) -> Option<Backend>;
}

/// The pages of a payload that is being written. The table of their lengths comes first on the wire
/// and is known last.
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
