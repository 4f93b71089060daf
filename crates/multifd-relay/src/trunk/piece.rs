//! Pieces of a byte stream, each of which is one frame. Other processors may compress and
//! decompress them.

use multifd_codec::ahead::Job;

use super::frame::{HEADER_LEN, RAW_LEN_LEN};
use super::frame_memory::FREE_BODY_LEN;
use super::zstd::{Compressor, Decompressor, MAX_WINDOW_LOG, Wrong};
use super::{FrameFault, WriterMisuse};

/// Fewer bytes than this are not compressed: a handshake or an answer gains nothing.
const LEAST_COMPRESSED: usize = 512;

/// The next bytes of a stream, at most [`FREE_BODY_LEN`], and their compressed form once it is
/// made.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(super) plain: Vec<u8>,
    /// Room for a header and a compressed body. Empty where it would not be shorter.
    pub(super) compressed: Vec<u8>,
    pub(super) failed: bool,
}

impl Piece {
    /// Takes as many bytes from the front as it has room for, and returns the others.
    pub(crate) fn take<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let room = FREE_BODY_LEN.saturating_sub(self.plain.len());
        let (taken, left) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        self.plain.extend_from_slice(taken);
        left
    }

    /// Whether it has no byte.
    pub(crate) fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// Whether it has room for no more.
    pub(crate) fn is_full(&self) -> bool {
        self.plain.len() >= FREE_BODY_LEN
    }

    /// Makes it as it was at first, but for its memory.
    pub(crate) fn clear(&mut self) {
        self.plain.clear();
        self.compressed.clear();
        self.failed = false;
    }
}

impl Job for Piece {
    type Tools = Compressor;

    fn work(&mut self, compressor: &mut Compressor) {
        if self.plain.len() >= LEAST_COMPRESSED {
            self.failed = compress(&self.plain, compressor, &mut self.compressed).is_err();
        }
    }
}

/// A compressed frame that has come, and whose digest fits.
pub(crate) struct Packed<'a> {
    pub(super) number: u64,
    /// Of its content, as it states.
    pub(super) raw_len: usize,
    /// The zstd frame.
    pub(super) frame: &'a [u8],
}

/// A piece of a stream that has come: compressed, and then as it was.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    number: u64,
    raw_len: usize,
    frame: Vec<u8>,
    raw: Vec<u8>,
    wrong: Option<FrameFault>,
}

impl Parcel {
    /// Takes a frame in place of what it had.
    pub(crate) fn fill(&mut self, packed: &Packed<'_>) {
        self.number = packed.number;
        self.raw_len = packed.raw_len;
        self.frame.clear();
        self.frame.extend_from_slice(packed.frame);
        self.wrong = None;
    }

    /// Its content, once its work is done.
    ///
    /// # Errors
    /// When that breaks a rule.
    pub(crate) fn content(&self) -> Result<&[u8], FrameFault> {
        match self.wrong {
            Some(fault) => Err(fault),
            None => Ok(self.raw.get(..self.raw_len).unwrap_or_default()),
        }
    }
}

impl Job for Parcel {
    type Tools = Decompressor;

    fn work(&mut self, decompressor: &mut Decompressor) {
        // It stays as long as it once was, so that it is filled with zeros once only.
        if self.raw.len() < self.raw_len {
            self.raw.resize(self.raw_len, 0);
        }
        let raw = self.raw.get_mut(..self.raw_len).unwrap_or_default();
        self.wrong = decompress(self.number, &self.frame, decompressor, raw).err();
    }
}

/// Decompresses the zstd frame of frame `number`, whose content must fill `raw`.
pub(super) fn decompress(
    number: u64,
    frame: &[u8],
    decompressor: &mut Decompressor,
    raw: &mut [u8],
) -> Result<(), FrameFault> {
    // The caller has compared it with its limit.
    let expected = raw.len() as u32;
    decompressor
        .decompress(frame, raw)
        .map_err(|wrong| match wrong {
            Wrong::Window => FrameFault::Window {
                number,
                allowed: MAX_WINDOW_LOG,
            },
            Wrong::Content => FrameFault::Compressed { number, expected },
        })
}

/// Appends room for a header and the compressed body of `piece` to `out`, if this is shorter. If it
/// is not, nothing has changed.
pub(super) fn compress(
    piece: &[u8],
    compressor: &mut Compressor,
    out: &mut Vec<u8>,
) -> Result<bool, WriterMisuse> {
    let start = out.len();
    // A piece is no longer than a body.
    let raw_len = piece.len() as u32;
    out.extend_from_slice(&[0; HEADER_LEN]);
    out.extend_from_slice(&raw_len.to_be_bytes());
    let compressed = compressor.compress(piece, out);
    let body_at = start.saturating_add(HEADER_LEN);
    let len = out.len().saturating_sub(body_at);
    if compressed.is_err() || len >= piece.len() {
        out.truncate(start);
        return compressed.map(|()| false);
    }
    Ok(true)
}

const _: () = assert!(RAW_LEN_LEN == size_of::<u32>());
