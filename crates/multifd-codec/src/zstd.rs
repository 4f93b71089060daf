//! Method `zstd` (QEMU 5.0 and later): one zstd frame per channel for the whole migration, or
//! frames of whole pages.
//!
//! The first payload opens the frame, with neither content size nor checksum, and the frame never
//! ends; each payload ends at a block's end (a flush). A stock receiver works page by page and
//! stops a page where a frame ends. So it also accepts frames that end at a page's end, and fails
//! at a frame that ends inside a page or has no page, whether empty or skippable. It ignores
//! everything after the frame end that completes the last page.
//!
//! Several streams in a channel use this: each packet's pages are split into runs, and each run is
//! a frame that states its content's length.

use std::error::Error;
use std::fmt;

use multifd_wire::{Method, PageSize};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer};

use crate::channel::{Arrived, ReadPayload, check_payload_len};
use crate::encoder::WritePayload;
use crate::error::{DecodeFault, EncodeFault, UnsupportedFault};
use crate::runs::{BeginRuns, WriteRuns};
use crate::streams::{Piece, Pieces, Readers};
use crate::window_memory::{MAX_WINDOW_BYTES, Share, window_of};
use crate::{Accel, DecodeError, EncodeError, Pages, PathCounts, Streams, Unsupported, ZstdLevel};

/// The sending direction, one frame for the whole channel.
pub(crate) struct Compress {
    stream: CCtx<'static>,
    copy: Vec<u8>,
}

impl Compress {
    pub(crate) fn new(level: ZstdLevel) -> Result<Self, Unsupported> {
        Ok(Self {
            stream: compressor(level)?,
            copy: Vec::new(),
        })
    }
}

impl WritePayload for Compress {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        let bytes = pages.gather(&mut self.copy);
        compress(
            &mut self.stream,
            bytes,
            ZSTD_EndDirective::ZSTD_e_flush,
            out,
        )?;
        Ok(PathCounts::software(pages.len()))
    }
}

/// The sending direction, a frame for each packet, at a level that may be another one for each.
///
/// A frame for each packet takes at levels 1 and below as many bytes as one for the channel, and
/// less time.
pub(crate) struct CompressSteps {
    stream: CCtx<'static>,
    step: usize,
    /// The level that the stream has, once one was needed.
    level: Option<i32>,
    copy: Vec<u8>,
}

/// The levels of [`Step`](crate::auto::Step)s after the first, which writes raw blocks.
const LEVELS: [i32; 4] = [-1, 1, 3, 6];

impl CompressSteps {
    pub(crate) fn new() -> Result<Self, Unsupported> {
        let stream = CCtx::try_create().ok_or_else(no_memory)?;
        Ok(Self {
            stream,
            step: 0,
            level: None,
            copy: Vec::new(),
        })
    }
}

impl WritePayload for CompressSteps {
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        let bytes = pages.gather(&mut self.copy);
        let index = self.step.checked_sub(1);
        let Some(&level) = index.and_then(|index| LEVELS.get(index)) else {
            store(bytes, out)?;
            return Ok(PathCounts::raw(pages.len()));
        };
        if self.level != Some(level) {
            // Between two frames any parameter can be set.
            self.stream
                .set_parameter(CParameter::CompressionLevel(level))
                .map_err(failed)?;
            self.level = Some(level);
        }
        let directive = ZSTD_EndDirective::ZSTD_e_end;
        compress(&mut self.stream, bytes, directive, out)?;
        Ok(PathCounts::software(pages.len()))
    }

    fn set_step(&mut self, step: usize) {
        self.step = step;
    }
}

/// Appends a frame of raw blocks (RFC 8878, section 3.1.1): its header states the length of its
/// content, at most [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES).
fn store(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    /// A frame without a window and with four bytes for its length.
    const SINGLE_SEGMENT: u8 = 0b1010_0000;
    /// The format's limit for a block.
    const BLOCK: usize = 128 << 10;
    check_payload_len(bytes.len())?;
    out.reserve(bytes.len() + bytes.len() / BLOCK * 3 + 16);
    out.extend_from_slice(&zstd_safe::MAGICNUMBER.to_le_bytes());
    out.push(SINGLE_SEGMENT);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    let mut blocks = bytes.chunks(BLOCK).peekable();
    while let Some(block) = blocks.next() {
        let is_last = u32::from(blocks.peek().is_none());
        let header = (block.len() as u32) << 3 | is_last;
        let [header @ .., _] = header.to_le_bytes();
        out.extend_from_slice(&header);
        out.extend_from_slice(block);
    }
    Ok(())
}

/// The sending direction, a frame for each run of pages.
pub(crate) struct CompressRuns;

impl CompressRuns {
    pub(crate) fn on(level: ZstdLevel, streams: Streams) -> Result<WriteRuns<Self>, Unsupported> {
        WriteRuns::new(Self, streams, || compressor(level), compress_run)
    }
}

impl BeginRuns for CompressRuns {
    type Tools = CCtx<'static>;
    type Context = ();

    fn begin(&mut self, _: &[u8], _: &mut Vec<u8>) {}
}

fn compress_run(
    stream: &mut CCtx<'static>,
    (): &(),
    run: &[u8],
    payload: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    compress(stream, run, ZSTD_EndDirective::ZSTD_e_end, payload)
}

fn compressor(level: ZstdLevel) -> Result<CCtx<'static>, Unsupported> {
    let mut stream = CCtx::try_create().ok_or_else(no_memory)?;
    stream
        .set_parameter(CParameter::CompressionLevel(level.value().into()))
        .map_err(refused)?;
    Ok(stream)
}

/// Appends `bytes`, compressed, to `out`, and then executes `directive`.
fn compress(
    stream: &mut CCtx<'static>,
    bytes: &[u8],
    directive: ZSTD_EndDirective,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut input = InBuffer::around(bytes);
    out.reserve(zstd_safe::compress_bound(bytes.len()));
    loop {
        let filled = out.len();
        let mut output = OutBuffer::around_pos(out, filled);
        let pending = stream
            .compress_stream2(&mut output, &mut input, directive)
            .map_err(failed)?;
        if pending == 0 {
            return Ok(());
        }
        check_payload_len(out.len() + pending)?;
        out.reserve(pending);
    }
}

fn failed(code: usize) -> EncodeError {
    EncodeError(EncodeFault::Library {
        method: Method::Zstd,
        source: Box::new(ZstdError(code)),
    })
}

/// The receiving direction.
pub(crate) struct Decompress {
    stream: DCtx<'static>,
    in_frame: bool,
    /// Its share of the process's memory for windows.
    share: Share,
    /// For payloads of several frames, if they are to be read in parallel.
    readers: Option<Readers<DCtx<'static>, (), ()>>,
}

impl Decompress {
    pub(crate) fn new(accel: Accel) -> Result<Self, Unsupported> {
        let readers = || Readers::new(decompressor, read_frames, 1);
        Ok(Self {
            stream: decompressor()?,
            in_frame: false,
            share: Share::default(),
            readers: (accel != Accel::None).then(readers).transpose()?,
        })
    }

    /// Reads a payload of several frames in parallel, each with its content's length in its header.
    /// Returns false if it is none, or cannot be read; reading it in order then gives the error.
    fn read_frames(&mut self, packet: &mut Arrived, page_size: PageSize) -> bool {
        let Some(readers) = self.readers.as_mut().filter(|_| !self.in_frame) else {
            return false;
        };
        let list = |payload: &[u8], frames: &mut Pieces<'_>| list(payload, page_size, frames);
        matches!(readers.read(packet, (), list), Ok(Some(())))
    }

    /// Reserves memory for the window of the frame that begins here. This payload must contain its
    /// complete header, or it is an error.
    fn begin_frame(&mut self, input: &InBuffer<'_>) -> Result<(), DecodeError> {
        self.share
            .admit(input.src.get(input.pos()..).unwrap_or_default())
    }

    /// Decompresses once; returns `true` if a frame ended.
    fn step(
        &mut self,
        input: &mut InBuffer<'_>,
        output: &mut OutBuffer<'_, [u8]>,
        found: usize,
    ) -> Result<bool, DecodeError> {
        self.stream
            .decompress_stream(output, input)
            .map(|hint| hint == 0)
            .map_err(|code| {
                DecodeError(DecodeFault::Library {
                    method: Method::Zstd,
                    found,
                    source: Box::new(ZstdError(code)),
                })
            })
    }

    /// Reads the rest after the last page, which may end the frame or be empty blocks or frames,
    /// but must not produce output. Returns whether a frame is open then.
    fn read_tail(
        &mut self,
        input: &mut InBuffer<'_>,
        expected: usize,
        mut in_frame: bool,
    ) -> Result<bool, DecodeError> {
        let payload_len = input.src.len();
        let mut belongs_to = input.pos();
        // In an open frame the decoder may hold output back, so it is called even without remaining
        // input.
        while in_frame || input.pos() < payload_len {
            let before = input.pos();
            let mut beyond = [0];
            let mut output = OutBuffer::around(&mut beyond[..]);
            let ended = self.step(input, &mut output, expected)?;
            if output.pos() > 0 {
                return Err(DecodeError(DecodeFault::TooLong { expected }));
            }
            in_frame &= !ended;
            if ended {
                self.begin_frame(input)?;
            }
            if ended || in_frame {
                belongs_to = input.pos();
            }
            if !ended && input.pos() == before {
                break;
            }
        }
        if belongs_to < payload_len {
            return Err(DecodeError(DecodeFault::Trailing {
                found: payload_len - belongs_to,
            }));
        }
        Ok(in_frame)
    }
}

impl ReadPayload for Decompress {
    const METHOD: Method = Method::Zstd;

    fn read_payload(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError> {
        let expected = packet.pages.as_ref().len();
        let counts = PathCounts::software(expected / page_size.bytes());
        if self.read_frames(packet, page_size) {
            return Ok(counts);
        }
        let mut input = InBuffer::around(packet.payload.as_slice());
        let mut output = OutBuffer::around(packet.pages.as_mut());
        if !self.in_frame {
            self.begin_frame(&input)?;
        }
        let mut last_frame_end = 0;
        let mut ended = false;
        while output.pos() < expected {
            let before = (input.pos(), output.pos());
            ended = self.step(&mut input, &mut output, before.1)?;
            let found = output.pos();
            if ended {
                if found == last_frame_end || !found.is_multiple_of(page_size.bytes()) {
                    return Err(DecodeError(DecodeFault::FrameEnd { found }));
                }
                last_frame_end = found;
                self.begin_frame(&input)?;
            } else if (input.pos(), found) == before {
                return Err(DecodeError(DecodeFault::TooShort { found, expected }));
            }
        }
        self.in_frame = self.read_tail(&mut input, expected, !ended)?;
        Ok(counts)
    }
}

fn decompressor() -> Result<DCtx<'static>, Unsupported> {
    let mut stream = DCtx::try_create().ok_or_else(no_memory)?;
    stream
        .set_parameter(DParameter::WindowLogMax(WINDOW_BITS))
        .map_err(refused)?;
    Ok(stream)
}

/// Lists the frames of a payload, each with the length of its pages, if there is more than one and
/// they are exactly the packet's pages.
fn list(payload: &[u8], page_size: PageSize, frames: &mut Pieces<'_>) -> Option<()> {
    let mut start = 0;
    while let Some(rest) = payload.get(start..).filter(|rest| !rest.is_empty()) {
        let len = zstd_safe::find_frame_compressed_size(rest).ok()?;
        let frame = rest.get(..len)?;
        let content = zstd_safe::get_frame_content_size(frame).ok()??;
        // Reading them in parallel needs no window, but reading them in order does.
        if window_of(frame)? > MAX_WINDOW_BYTES {
            return None;
        }
        let content = usize::try_from(content).ok()?;
        if content == 0 || !content.is_multiple_of(page_size.bytes()) {
            return None;
        }
        frames.push(start..start + len, content)?;
        start += len;
    }
    (frames.len() > 1 && frames.are_all()).then_some(())
}

fn read_frames(
    stream: &mut DCtx<'static>,
    (): &(),
    frames: &mut dyn Iterator<Item = Piece<'_>>,
) -> Result<(), ()> {
    for (frame, run) in frames {
        let expected = run.len();
        match stream.decompress(run, frame) {
            Ok(found) if found == expected => {}
            _ => return Err(()),
        }
    }
    Ok(())
}

fn no_memory() -> Unsupported {
    Unsupported(UnsupportedFault::Library {
        method: Method::Zstd,
        source: "no memory for it".into(),
    })
}

fn refused(code: usize) -> Unsupported {
    Unsupported(UnsupportedFault::Library {
        method: Method::Zstd,
        source: Box::new(ZstdError(code)),
    })
}

/// libzstd's error code, displayed as libzstd's message.
#[derive(Debug)]
struct ZstdError(usize);

impl fmt::Display for ZstdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(zstd_safe::get_error_name(self.0))
    }
}

impl Error for ZstdError {}

/// The limit as a power of two. Larger windows are refused before libzstd sees them; this one holds
/// for any default of the linked libzstd.
const WINDOW_BITS: u32 = MAX_WINDOW_BYTES.ilog2();
