//! Compresses the pages of a packet, each by itself.

use std::ops::Range;
use std::sync::Arc;

use page_deflate::CodeLengths;

use super::bits::push_bits;
use super::compressor::{Compressor, Piece};
use super::job::Work;
use super::table::Table;
use crate::error::EncodeFault;
use crate::paged::CompressPages;
use crate::paged::write::PageList;
use crate::{Backend, EncodeError, Pages, PathCounts};

/// Compresses pages by libqpl.
pub(crate) struct PageCompressor {
    compressor: Compressor,
    pieces: Vec<Range<usize>>,
}

impl PageCompressor {
    pub(crate) const fn new(compressor: Compressor) -> Self {
        Self {
            compressor,
            pieces: Vec::new(),
        }
    }
}

impl CompressPages for PageCompressor {
    type Code = Work;

    fn body(&self, lengths: &CodeLengths) -> Result<Work, EncodeError> {
        let table = Table::new(self.compressor.library(), lengths);
        let table = table.map_err(|status| {
            EncodeError(EncodeFault::Library {
                method: multifd_wire::Method::Canned,
                source: status.to_string().into(),
            })
        })?;
        Ok(Work::CompressBody(Arc::new(table)))
    }

    fn compress(
        &mut self,
        work: &Work,
        pages: &Pages<'_>,
        mut list: PageList<'_>,
    ) -> Result<PathCounts, EncodeError> {
        self.pieces.clear();
        self.pieces
            .extend((0..pages.len()).map(|page| page..page + 1));
        let counts = self.compressor.run(work, pages, &self.pieces, |piece| {
            let (content, is_as_given) = match piece {
                Piece::Raw(content) => (content, true),
                Piece::Deflated {
                    stream,
                    content,
                    spare_bits,
                } => {
                    let bits = match work {
                        Work::CompressBody(table) => table.body_bits(stream, spare_bits),
                        _ => Some(8 * stream.len()).filter(|&bits| bits > 0),
                    };
                    if let Some(bits) = bits {
                        push_bits(stream, bits, list.out);
                        list.note(bits.div_ceil(8));
                        return true;
                    }
                    // Never observed; a reader would refuse the page.
                    (content, false)
                }
            };
            list.out.extend_from_slice(content);
            list.note(content.len());
            is_as_given
        });
        Ok(counts)
    }

    fn backend(&self) -> Option<Backend> {
        self.compressor.backend()
    }
}
