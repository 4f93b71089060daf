//! Pages compressed here.

use std::convert::Infallible;
use std::sync::Arc;

use multifd_wire::PageSize;
use page_deflate::{CodeLengths, Effort, PageDeflater, SharedCode};

use super::write::{CompressPages, Heads, LENGTH_BYTES, PageList};
use crate::channel::give;
use crate::pipeline::{Ends, One, Packet};
use crate::streams::Crew;
use crate::{EncodeError, Flow, Huffman, PageBuffer, Pages, PathCounts, Streams};

/// On as many processors as there are streams.
pub(crate) struct Own {
    crew: Crew<PageDeflater>,
    copy: Vec<u8>,
    /// Where pages end in the payload.
    ends: Vec<usize>,
}

/// What pages are written in.
pub(crate) enum Code {
    Fixed,
    Dynamic,
    Body(Box<SharedCode>),
}

impl Own {
    pub(crate) fn new(effort: Effort, streams: Streams) -> Self {
        let deflater = || Ok::<_, Infallible>(PageDeflater::new(effort));
        let Ok(crew) = Crew::new(streams, deflater);
        Self {
            crew,
            copy: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl CompressPages for Own {
    type Code = Code;

    fn stream(huffman: Huffman) -> Code {
        match huffman {
            Huffman::Fixed => Code::Fixed,
            Huffman::Dynamic => Code::Dynamic,
        }
    }

    fn body(&self, lengths: &CodeLengths) -> Result<Code, EncodeError> {
        body(lengths)
    }

    fn compress(
        &mut self,
        code: &Code,
        pages: &Pages<'_>,
        list: PageList<'_>,
    ) -> Result<PathCounts, EncodeError> {
        let page_bytes = pages.page_size().bytes();
        let packet = Packet {
            bytes: pages.gather(&mut self.copy),
            part_bytes: page_bytes,
            runs: pages.len(),
            context: code,
        };
        let entry = list.entry();
        self.ends.clear();
        let note = |ends: &[usize]| self.ends.extend_from_slice(ends);
        let mut one = One::new(packet, &mut *list.out, note);
        self.crew.compress(&mut one, |deflater, code, page, out| {
            code.write(deflater, page, out);
            Ok::<_, EncodeError>(())
        })?;
        Ok(note_lengths(entry, &self.ends, page_bytes, list.out))
    }

    fn compress_flow<H: Heads<Code>>(
        &mut self,
        heads: &mut H,
        flow: &mut dyn Flow,
        page_size: PageSize,
        counts: &mut PathCounts,
    ) -> Option<Result<(), EncodeError>> {
        let mut ends = FlowEnds {
            heads,
            flow,
            page_size,
            counts,
        };
        let outcome = self.crew.compress(&mut ends, |deflater, head, page, out| {
            if let Some(head) = head {
                head.code.write(deflater, page, out);
            }
            Ok(())
        });
        Some(outcome)
    }
}

fn body(lengths: &CodeLengths) -> Result<Code, EncodeError> {
    Ok(Code::Body(Box::new(SharedCode::new(lengths))))
}

impl Code {
    /// Appends a page, as it is if it does not get shorter.
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

/// Fills the table of lengths at `entry`, behind which the pages are that end where `ends` says.
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

/// A flow's packets, cut into pages.
struct FlowEnds<'f, H> {
    heads: &'f mut H,
    flow: &'f mut dyn Flow,
    page_size: PageSize,
    counts: &'f mut PathCounts,
}

/// What is known of a packet with pages.
struct Head {
    code: Arc<Code>,
    /// Where its table of lengths is.
    entry: usize,
}

impl<H: Heads<Code>> Ends for FlowEnds<'_, H> {
    type Bytes = PageBuffer;
    type Context = Option<Head>;
    type Error = EncodeError;

    fn next(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<Packet<PageBuffer, Option<Head>>>, EncodeError> {
        let Some(bytes) = self.flow.next() else {
            return Ok(None);
        };
        let pages = Pages::private(bytes.as_ref(), self.page_size).map_err(EncodeError::Buffer)?;
        let runs = pages.len();
        // A packet without pages has no payload.
        let context = if pages.is_empty() {
            None
        } else {
            let code = self.heads.write_head(&pages, &body, payload)?;
            let entry = PageList::begin(runs, payload).entry();
            Some(Head { code, entry })
        };
        Ok(Some(Packet {
            bytes,
            part_bytes: self.page_size.bytes(),
            runs,
            context,
        }))
    }

    fn done(
        &mut self,
        packet: Packet<PageBuffer, Option<Head>>,
        payload: &mut Vec<u8>,
        ends: &[usize],
    ) -> Result<(), EncodeError> {
        let mut counts = PathCounts::default();
        if let Some(head) = packet.context {
            counts = note_lengths(head.entry, ends, packet.part_bytes, payload);
        }
        give(self.flow, H::METHOD, packet.bytes, payload)?;
        *self.counts += counts;
        Ok(())
    }
}
