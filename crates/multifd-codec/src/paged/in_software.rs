//! Compresses pages in software.

use std::convert::Infallible;
use std::sync::Arc;

use multifd_wire::PageSize;
use page_deflate::{CodeLengths, Effort, PageDeflater, SharedCode};

use super::write::{Heads, LENGTH_BYTES, PageList};
use crate::encoder::WriteTogether;
use crate::error::EncodeFault;
use crate::pipeline::{Packet, Pipeline, Whole};
use crate::{EncodeError, Huffman, PageBuffer, Pages, PathCounts, Streams};

/// The sending direction of a method, on as many processors as there are streams. Packets are cut
/// into pages.
pub(crate) struct OwnPages<H> {
    heads: H,
    pipeline: Pipeline<PageDeflater, Option<Head>>,
}

/// The code of pages.
pub(crate) enum Code {
    Fixed,
    Dynamic,
    Body(Box<SharedCode>),
}

/// The context of a packet with pages.
struct Head {
    code: Arc<Code>,
    /// The position of its table of lengths.
    entry: usize,
}

impl<H: Heads<Code>> OwnPages<H> {
    pub(crate) fn new(effort: Effort, streams: Streams, heads: H) -> Self {
        let deflater = || Ok::<_, Infallible>(PageDeflater::new(effort));
        let Ok(pipeline) = Pipeline::new(streams, deflater, write_page);
        Self { heads, pipeline }
    }
}

impl<H: Heads<Code>> WriteTogether for OwnPages<H> {
    fn room(&self) -> usize {
        self.pipeline.room()
    }

    fn has_place(&self) -> bool {
        self.pipeline.has_place()
    }

    fn push(&mut self, bytes: PageBuffer, page_size: PageSize) -> Result<(), EncodeError> {
        let payload = self.pipeline.next_payload();
        let pages = Pages::private(bytes.as_ref(), page_size).map_err(EncodeFault::Buffer)?;
        let runs = pages.len();
        let context = if pages.is_empty() {
            None
        } else {
            let code = self.heads.write_head(&pages, &body, payload)?;
            let entry = PageList::begin(runs, payload).entry();
            Some(Head { code, entry })
        };
        self.pipeline.push(Packet {
            pages: bytes,
            part_bytes: page_size.bytes(),
            runs,
            context,
        });
        Ok(())
    }

    fn pop(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<(PageBuffer, PathCounts)>, EncodeError> {
        let Some(Whole { packet, ends }) = self.pipeline.pop(payload)? else {
            return Ok(None);
        };
        let counts = match &packet.context {
            Some(head) => note_lengths(head.entry, ends, packet.part_bytes, payload),
            None => PathCounts::default(),
        };
        Ok(Some((packet.pages, counts)))
    }
}

#[expect(clippy::unnecessary_wraps, reason = "libqpl's bodies can fail")]
fn body(lengths: &CodeLengths) -> Result<Code, EncodeError> {
    Ok(Code::Body(Box::new(SharedCode::new(lengths))))
}

#[expect(clippy::unnecessary_wraps, reason = "pieces of other methods can fail")]
fn write_page(
    deflater: &mut PageDeflater,
    head: &Option<Head>,
    page: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    if let Some(head) = head {
        head.code.write(deflater, page, out);
    }
    Ok(())
}

impl Code {
    /// A complete deflate stream for each page.
    pub(crate) const fn stream(huffman: Huffman) -> Self {
        match huffman {
            Huffman::Fixed => Self::Fixed,
            Huffman::Dynamic => Self::Dynamic,
        }
    }

    /// Appends a page, uncompressed if compression does not make it shorter.
    fn write(&self, deflater: &mut PageDeflater, page: &[u8], out: &mut Vec<u8>) {
        let is_shorter = match self {
            Self::Fixed => deflater.fixed_page(page, out),
            Self::Dynamic => deflater.dynamic_page(page, out),
            Self::Body(code) => deflater.body(page, code, out),
        };
        if !is_shorter {
            out.extend_from_slice(page);
        }
    }
}

/// Fills the table of lengths at `entry` for the pages after it, which end at `ends`.
fn note_lengths(entry: usize, ends: &[usize], page_bytes: usize, out: &mut Vec<u8>) -> PathCounts {
    let mut counts = PathCounts::default();
    let mut start = entry + ends.len() * LENGTH_BYTES;
    let mut list = PageList::at(entry, out);
    for &end in ends {
        let length = end - start;
        counts += if length == page_bytes {
            PathCounts::raw(1)
        } else {
            PathCounts::software(1)
        };
        list.note(length);
        start = end;
    }
    counts
}
