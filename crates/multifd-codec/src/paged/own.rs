//! Pages compressed here.

use std::convert::Infallible;

use super::write::{CompressPages, PageList};
use crate::deflate::{CodeLengths, Effort, PageDeflater, SharedCode};
use crate::pipeline::{One, Packet};
use crate::streams::Crew;
use crate::{EncodeError, Huffman, Pages, PathCounts, Streams};

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
        Ok(Code::Body(Box::new(SharedCode::new(lengths))))
    }

    fn compress(&mut self, code: &Code, pages: &Pages<'_>, mut list: PageList<'_>) -> PathCounts {
        let page_bytes = pages.page_size().bytes();
        let bytes = pages.gather(&mut self.copy);
        let packet = Packet {
            bytes,
            part_bytes: page_bytes,
            runs: pages.len(),
            context: (),
        };
        let compress = |deflater: &mut PageDeflater, (): &(), page: &[u8], out: &mut Vec<u8>| {
            let is_shorter = match code {
                Code::Fixed => deflater.fixed_page(page, out),
                Code::Dynamic => deflater.dynamic_page(page, out),
                Code::Body(code) => deflater.body(page, code, out),
            };
            if !is_shorter {
                out.extend_from_slice(page);
            }
            Ok::<_, Infallible>(())
        };
        let mut start = list.out.len();
        self.ends.clear();
        let note = |ends: &[usize]| self.ends.extend_from_slice(ends);
        let mut one = One::new(packet, list.out, note);
        let Ok(()) = self.crew.compress(&mut one, compress);
        let mut counts = PathCounts::default();
        for &end in &self.ends {
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
}
