//! Method `zlib`, made by libqpl: independent pieces in one endless zlib stream which a stock QEMU
//! reads as its own.
//!
//! Inflate takes any sequence of deflate blocks. So a packet's pages are cut into pieces, all
//! pieces are compressed at once, each as a complete stream within a window of 4 KiB, and then
//! joined: the final block's mark is taken out, and an empty stored block behind a piece
//! (`00 00 ff ff`, as of a sync flush) brings the next to a byte's beginning. A piece that does not
//! get smaller goes out as stored blocks. The channel's first two bytes are the zlib header with
//! the window's size; neither a final block nor a checksum ever follows.
//!
//! Joining needs to know at which bit a piece ends. The device tells; the software path does not,
//! so there the piece is decompressed to its end, and what comes out is compared while it is at
//! hand.

use std::ops::Range;

use multifd_wire::PageSize;
use page_deflate::{PageInflater, SYNC_MARK};

use super::compressor::{Compressor, Piece};
use super::job::Work;
use crate::encoder::WritePayload;
use crate::{Backend, EncodeError, Huffman, Pages, PathCounts, Streams, WindowSize};

/// The sending direction.
pub(crate) struct Deflate {
    compressor: Compressor,
    huffman: Huffman,
    streams: Streams,
    started: bool,
    pieces: Vec<Range<usize>>,
    check: Check,
}

impl Deflate {
    pub(crate) fn new(compressor: Compressor, huffman: Huffman, streams: Streams) -> Self {
        Self {
            compressor,
            huffman,
            streams,
            started: false,
            pieces: Vec::new(),
            check: Check {
                inflater: PageInflater::new(),
                content: Vec::new(),
            },
        }
    }
}

impl WritePayload for Deflate {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        if !self.started {
            out.extend_from_slice(&WindowSize::FourKiB.zlib_header());
            self.started = true;
        }
        self.pieces.clear();
        cut(pages, self.streams, &mut self.pieces);
        let (check, huffman) = (&mut self.check, self.huffman);
        let work = Work::Compress(huffman);
        let counts = self.compressor.run(&work, pages, &self.pieces, |piece| {
            let (content, joined) = match piece {
                Piece::Raw(content) => (content, true),
                Piece::Deflated {
                    stream,
                    content,
                    spare_bits,
                } => {
                    let spare_bits = spare_bits
                        .filter(|spare_bits| ends_at(stream, *spare_bits, huffman))
                        .or_else(|| check.spare_bits(stream, content));
                    match spare_bits {
                        Some(spare_bits) => {
                            join(stream, spare_bits, out);
                            return true;
                        }
                        // Not the stream it should be.
                        None => (content, false),
                    }
                }
            };
            store(content, out);
            joined
        });
        if !out.ends_with(&SYNC_MARK) {
            out.push(0);
            out.extend_from_slice(&SYNC_MARK);
        }
        Ok(counts)
    }

    fn backend(&self) -> Option<Backend> {
        self.compressor.backend()
    }
}

/// Cuts a packet's pages into pieces: the runs of its streams, and these into parts that libqpl
/// makes one block of.
fn cut(pages: &Pages<'_>, streams: Streams, pieces: &mut Vec<Range<usize>>) {
    let most = pages_per_piece(pages.page_size());
    let mut start = 0;
    for run in streams.runs(pages.len()) {
        let parts = run.div_ceil(most);
        for part in 0..parts {
            let length = run / parts + usize::from(part < run % parts);
            pieces.push(start..start + length);
            start += length;
        }
    }
}

const fn pages_per_piece(page_size: PageSize) -> usize {
    let most = MAX_PIECE_BYTES / page_size.bytes();
    if most == 0 { 1 } else { most }
}

/// Whether a stream can end at this bit: what follows is zero and, in the fixed code, what precedes
/// is the end of block.
fn ends_at(stream: &[u8], spare_bits: u32, huffman: Huffman) -> bool {
    let Some([before, last]) = stream.last_chunk() else {
        return false;
    };
    let tail = u16::from_le_bytes([*before, *last]);
    let zeros = match huffman {
        Huffman::Fixed => spare_bits + END_OF_BLOCK_BITS,
        Huffman::Dynamic => spare_bits,
    };
    spare_bits < 8 && tail.leading_zeros() >= zeros
}

/// Appends a complete stream of one block so that others can follow.
fn join(stream: &[u8], spare_bits: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(stream);
    if let Some(first) = out.get_mut(start) {
        *first &= !FINAL_BLOCK;
    }
    // The empty block's three bits of header are zero, as is what is spare.
    if spare_bits < STORED_HEADER_BITS {
        out.push(0);
    }
    out.extend_from_slice(&SYNC_MARK);
}

/// Appends bytes as they are.
fn store(content: &[u8], out: &mut Vec<u8>) {
    for block in content.chunks(MAX_STORED_BYTES) {
        // At most `MAX_STORED_BYTES`.
        let length = block.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
}

/// Finds the end of a stream by reading it.
struct Check {
    inflater: PageInflater,
    content: Vec<u8>,
}

impl Check {
    /// `None` unless it is a stream of one block, of exactly this content.
    fn spare_bits(&mut self, stream: &[u8], content: &[u8]) -> Option<u32> {
        self.content.resize(content.len(), 0);
        let spare_bits = self.inflater.inflate_block(stream, &mut self.content);
        spare_bits.ok().filter(|_| self.content == content)
    }
}

const FINAL_BLOCK: u8 = 1;
const STORED_HEADER_BITS: u32 = 3;
const MAX_STORED_BYTES: usize = u16::MAX as usize;

/// In the fixed code: seven zeros.
const END_OF_BLOCK_BITS: u32 = 7;

/// libqpl makes one block of up to so much, on either path and with either code.
const MAX_PIECE_BYTES: usize = 64 << 10;
