//! Method `zlib` (QEMU 5.0 and later) by its ordinary library: one zlib stream per channel for the
//! whole migration.
//!
//! The two bytes of zlib header only precede the first payload. A payload ends with a sync flush,
//! whose mark `00 00 ff ff` makes everything before it available to the receiver; matches reach
//! back up to 32 KiB across pages and packets. The stream is never finished: it has no final block
//! and no checksum.
//!
//! A stock receiver inflates page by page, each call with room for exactly one page, and fails if a
//! page stays short or the stream ends. Inflate does not depend on where its output is cut, so here
//! the packet is one call (which is faster, as inflate slows down near the end of its room). Output
//! beyond the last page, which a stock receiver leaves to disturb the next packet, is an immediate
//! error here.

use std::convert::Infallible;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use multifd_wire::{Method, PageSize};

use crate::channel::{Arrived, ReadPayload, check_payload_len};
use crate::encoder::WritePayload;
use crate::error::{DecodeFault, EncodeFault};
use crate::runs::{BeginRuns, WriteRuns};
use crate::{DecodeError, EncodeError, Pages, PathCounts, Streams, WindowSize, ZlibLevel};

/// The sending direction, one stream for the whole channel.
pub(crate) struct Deflate {
    stream: Compress,
    copy: Vec<u8>,
}

impl Deflate {
    pub(crate) fn new(level: ZlibLevel) -> Self {
        Self {
            stream: Compress::new(Compression::new(level.value().into()), true),
            copy: Vec::new(),
        }
    }
}

impl WritePayload for Deflate {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        deflate(&mut self.stream, pages.gather(&mut self.copy), out)?;
        Ok(PathCounts::software(pages.len()))
    }
}

/// The sending direction, a piece of deflate for each run of pages: blocks without references to
/// data before the run, ended by a sync flush. Inflate reads them in sequence as one stream.
pub(crate) struct DeflateRuns {
    is_started: bool,
}

impl DeflateRuns {
    pub(crate) fn on(level: ZlibLevel, streams: Streams) -> WriteRuns<Self> {
        let stream = || {
            let level = Compression::new(level.value().into());
            Ok::<_, Infallible>(Compress::new(level, false))
        };
        let codec = Self { is_started: false };
        let Ok(runs) = WriteRuns::new(codec, streams, stream, deflate_run);
        runs
    }
}

impl BeginRuns for DeflateRuns {
    type Tools = Compress;
    type Context = ();

    fn begin(&mut self, _: &[u8], payload: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.is_started, true) {
            payload.extend_from_slice(&WindowSize::ThirtyTwoKiB.zlib_header());
        }
    }
}

fn deflate_run(
    stream: &mut Compress,
    (): &(),
    run: &[u8],
    payload: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    stream.reset();
    deflate(stream, run, payload)
}

/// Appends all of `input` to `out`, compressed and flushed.
fn deflate(stream: &mut Compress, input: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let mut input = input;
    out.reserve(expected_bound(input.len()));
    loop {
        let taken_before = stream.total_in();
        stream
            .compress_vec(input, out, FlushCompress::Sync)
            .map_err(|error| {
                EncodeError(EncodeFault::Library {
                    method: Method::Zlib,
                    source: error.into(),
                })
            })?;
        input = rest(input, stream.total_in() - taken_before);
        // Remaining room is deflate's sign that the flush is complete.
        if out.len() < out.capacity() {
            debug_assert!(input.is_empty());
            return Ok(());
        }
        check_payload_len(out.len())?;
        out.reserve(expected_bound(input.len()));
    }
}

/// The receiving direction.
pub(crate) struct Inflate {
    stream: Decompress,
}

impl Inflate {
    pub(crate) fn new() -> Self {
        Self {
            stream: Decompress::new(true),
        }
    }

    /// Continues a stream that was byte-aligned at the end of a packet; `history` is its last
    /// output, at most 32 KiB.
    pub(crate) fn after(history: &[u8]) -> Result<Self, DecodeError> {
        // As if the stream had begun with the history in a stored block (RFC 1951, section 3.2.4).
        let len = history.len() as u16;
        let mut begun = WindowSize::ThirtyTwoKiB.zlib_header().to_vec();
        begun.push(0);
        begun.extend_from_slice(&len.to_le_bytes());
        begun.extend_from_slice(&(!len).to_le_bytes());
        begun.extend_from_slice(history);
        let mut inflate = Self::new();
        let mut room = vec![0; history.len()];
        match inflate.step(&begun, &mut room, 0)? {
            (taken, made) if (taken, made) == (begun.len() as u64, history.len()) => Ok(inflate),
            (_, found) => Err(DecodeError(DecodeFault::TooShort {
                found,
                expected: history.len(),
            })),
        }
    }

    /// Inflates once and returns the input consumed and the output made. `found` is the output so
    /// far.
    fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        found: usize,
    ) -> Result<(u64, usize), DecodeError> {
        let (taken_before, made_before) = (self.stream.total_in(), self.stream.total_out());
        let outcome = self.stream.decompress(input, output, FlushDecompress::Sync);
        // It cannot exceed the output, so it fits.
        let made = (self.stream.total_out() - made_before) as usize;
        match outcome {
            Ok(Status::Ok | Status::BufError) => Ok((self.stream.total_in() - taken_before, made)),
            Ok(Status::StreamEnd) => Err(DecodeError(DecodeFault::StreamEnd {
                method: Method::Zlib,
                found: found + made,
            })),
            Err(error) => Err(DecodeError(DecodeFault::Library {
                method: Method::Zlib,
                found: found + made,
                source: error.into(),
            })),
        }
    }
}

impl ReadPayload for Inflate {
    const METHOD: Method = Method::Zlib;

    fn read_payload(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        let (payload, pages) = (&*packet.payload, packet.pages.as_mut());
        let expected = pages.len();
        let mut input = payload;
        let mut found = 0;
        while let Some(room) = pages.get_mut(found..).filter(|room| !room.is_empty()) {
            let (taken, made) = self.step(input, room, found)?;
            if (taken, made) == (0, 0) {
                return Err(DecodeError(DecodeFault::TooShort { found, expected }));
            }
            input = rest(input, taken);
            found += made;
        }
        // The marks after the last page have no output. Any output, from the remaining input or
        // from within inflate, is a byte too many.
        loop {
            let (taken, made) = self.step(input, &mut [0], found)?;
            if made > 0 {
                return Err(DecodeError(DecodeFault::TooLong { expected }));
            }
            if taken == 0 {
                break;
            }
            input = rest(input, taken);
        }
        if !input.is_empty() {
            return Err(DecodeError(DecodeFault::Trailing { found: input.len() }));
        }
        Ok(PathCounts::software(expected / page_size.bytes()))
    }
}

/// The rest of `input` after its first `taken` bytes.
fn rest(input: &[u8], taken: u64) -> &[u8] {
    usize::try_from(taken)
        .ok()
        .and_then(|taken| input.get(taken..))
        .unwrap_or_default()
}

/// Expected maximum size of a payload of `len_bytes`: the fixed Huffman code, which the fastest
/// levels use even where it does not pay, makes at most nine bits per byte, and block headers and
/// the flush need little.
const fn expected_bound(len_bytes: usize) -> usize {
    len_bytes + len_bytes / 8 + 1024
}
