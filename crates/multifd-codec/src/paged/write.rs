//! A table of lengths and then the pages ([`multifd_wire::lengths`]).

use crate::deflate::CodeLengths;
use crate::{Backend, EncodeError, Huffman, Pages, PathCounts};

/// Who compresses the pages of a packet, each by itself and as long as it gets shorter.
pub(crate) trait CompressPages: Send {
    /// What pages are written in.
    type Code: Send;

    /// A complete deflate stream of each page.
    fn stream(huffman: Huffman) -> Self::Code;

    /// The body of a block of these codes of each page, without the block's header.
    ///
    /// # Errors
    ///
    /// What a library has said.
    fn body(&self, lengths: &CodeLengths) -> Result<Self::Code, EncodeError>;

    /// Puts the pages on the list, in their order. All of a channel's pages are written either as streams or as bodies.
    fn compress(&mut self, code: &Self::Code, pages: &Pages<'_>, list: PageList<'_>) -> PathCounts;

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

    /// Appends a page, compressed or not.
    pub(crate) fn push(&mut self, page: &[u8]) {
        self.out.extend_from_slice(page);
        self.note(page.len());
    }

    /// Appends a page that is so many bits of these bytes.
    pub(crate) fn push_bits(&mut self, bytes: &[u8], bits: usize) {
        push_bits(bytes, bits, self.out);
        self.note(bits.div_ceil(8));
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

/// Appends the first `bits` bits of `bytes`, which has as many, and zeros to the end of the byte.
pub(crate) fn push_bits(bytes: &[u8], bits: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(bytes.get(..bits.div_ceil(8)).unwrap_or(bytes));
    if let Some(last) = out.last_mut().filter(|_| !bits.is_multiple_of(8)) {
        *last &= (1 << (bits % 8)) - 1;
    }
}

/// Bytes of one length in the table.
pub(super) const LENGTH_BYTES: usize = size_of::<u32>();
