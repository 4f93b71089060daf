//! The sending direction: the method's head, a table of lengths and then the pages
//! ([`multifd_wire::lengths`]).

use std::sync::Arc;

use page_deflate::CodeLengths;

#[cfg(feature = "qpl")]
use crate::encoder::WritePayload;
#[cfg(feature = "qpl")]
use crate::{Backend, PathCounts};
use crate::{EncodeError, Pages};

/// The sending direction of a method, with a compressor for one packet at a time.
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

/// The head that a method writes before a packet's list of pages.
pub(crate) trait Heads<Code>: Send {
    /// Appends the head and returns the code of the pages. `body` makes a new code.
    ///
    /// # Errors
    ///
    /// The error of `body`.
    fn write_head(
        &mut self,
        pages: &Pages<'_>,
        body: &dyn Fn(&CodeLengths) -> Result<Code, EncodeError>,
        out: &mut Vec<u8>,
    ) -> Result<Arc<Code>, EncodeError>;
}

/// Compresses the pages of a packet one by one; pages that do not get shorter stay uncompressed.
#[cfg(feature = "qpl")]
pub(crate) trait CompressPages: Send {
    /// The code of pages.
    type Code: Send + Sync;

    /// Prepares a code for bodies: blocks of these codes without their header.
    ///
    /// # Errors
    ///
    /// Errors of a library.
    fn body(&self, lengths: &CodeLengths) -> Result<Self::Code, EncodeError>;

    /// Appends the pages to the list in order. A channel writes either streams or bodies for all
    /// its pages.
    ///
    /// # Errors
    ///
    /// If a page is missing from the list.
    fn compress(
        &mut self,
        code: &Self::Code,
        pages: &Pages<'_>,
        list: PageList<'_>,
    ) -> Result<PathCounts, EncodeError>;

    /// See [`Encoder::backend`](crate::Encoder::backend). `None` if it is the chosen one.
    fn backend(&self) -> Option<Backend>;
}

/// The pages of a payload under construction. The table of their lengths comes first on the wire
/// but is known last.
pub(crate) struct PageList<'o> {
    /// The payload; pages are appended to it.
    pub(crate) out: &'o mut Vec<u8>,
    /// The position of the next page's length.
    entry: usize,
}

impl<'o> PageList<'o> {
    /// Starts a list at the end of `out`.
    pub(crate) fn begin(pages: usize, out: &'o mut Vec<u8>) -> Self {
        let entry = out.len();
        out.resize(entry + pages * LENGTH_BYTES, 0);
        Self { out, entry }
    }

    /// The list started by [`Self::begin`], with the first of its lengths at `entry`.
    pub(crate) fn at(entry: usize, out: &'o mut Vec<u8>) -> Self {
        Self { out, entry }
    }

    /// The position of the next page's length.
    pub(crate) const fn entry(&self) -> usize {
        self.entry
    }

    /// Notes the length of a page that is already in `out`.
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
