//! Makes frames.

use super::digest::Digest;
use super::frame::{HEADER_LEN, Head, Kind, MAX_BODY_LEN, MAX_NOTE_LEN};
use super::frame_memory::FREE_BODY_LEN;
use super::piece::{self, Piece};
use super::zstd::Compressor;
use super::{Compression, FailureNotice, NoCompression, WriterMisuse};

/// Makes the frames of one direction of one connection. It does no IO.
///
/// Every header and every frame that it gives must be written, in that order: it has been counted.
#[derive(Debug)]
pub struct FrameWriter {
    digest: Digest,
    compressor: Option<Compressor>,
    /// Of the next frame.
    number: u64,
    ended: bool,
}

impl FrameWriter {
    /// A writer at the beginning of its direction. With zstd it holds libzstd's context for level 1
    /// without buffers.
    ///
    /// # Errors
    /// When this build or this machine has no such compression.
    pub fn new(digest: Digest, compression: Compression) -> Result<Self, NoCompression> {
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd => Some(Compressor::new()?),
        };
        Ok(Self {
            digest,
            compressor,
            number: 0,
            ended: false,
        })
    }

    /// The header of a data frame; the caller writes it, then the parts. They are not copied.
    ///
    /// # Errors
    /// [`WriterMisuse`], also when the parts have no byte or more than [`MAX_BODY_LEN`]:
    /// [`FrameWriter::append`] cuts.
    pub fn data(&mut self, parts: &[&[u8]]) -> Result<[u8; HEADER_LEN], WriterMisuse> {
        let found = parts
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        if found == 0 || found > MAX_BODY_LEN {
            let allowed = MAX_BODY_LEN;
            return Err(WriterMisuse::Length { found, allowed });
        }
        self.header(Kind::Data, found, parts)
    }

    /// Appends `bytes` to `out` in as many data frames as they need: none for no bytes. No frame
    /// has more than [`FREE_BODY_LEN`] bytes.
    ///
    /// # Errors
    /// [`WriterMisuse::Ended`].
    pub fn append(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), WriterMisuse> {
        for piece in bytes.chunks(FREE_BODY_LEN) {
            let header = self.data(&[piece])?;
            out.extend_from_slice(&header);
            out.extend_from_slice(piece);
        }
        Ok(())
    }

    /// Appends `bytes` to `out` in compressed frames, as many as they need, when this is smaller
    /// than data frames; answers whether it was. If it was not, or no compression was chosen,
    /// nothing has changed.
    ///
    /// # Errors
    /// [`WriterMisuse::Ended`] and [`WriterMisuse::Compressor`]; nothing is changed then.
    pub fn compressed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<bool, WriterMisuse> {
        let (start, number) = (out.len(), self.number);
        let outcome = self.compress(bytes, out);
        if !matches!(outcome, Ok(true)) {
            out.truncate(start);
            self.number = number;
        }
        outcome
    }

    /// The frame of a piece of the stream: a compressed one, or else a data frame. Both parts are
    /// to be written.
    ///
    /// # Errors
    /// As [`data`](Self::data), and when its compression has failed.
    pub(crate) fn frame_of<'p>(
        &mut self,
        piece: &'p mut Piece,
    ) -> Result<[&'p [u8]; 2], WriterMisuse> {
        if piece.failed {
            return Err(WriterMisuse::Compressor);
        }
        if piece.compressed.is_empty() {
            let header = self.data(&[&piece.plain])?;
            piece.compressed.extend_from_slice(&header);
            return Ok([&piece.compressed, &piece.plain]);
        }
        self.seal(&mut piece.compressed)?;
        Ok([&piece.compressed, &[]])
    }

    /// A whole frame: this direction ends cleanly.
    ///
    /// # Errors
    /// [`WriterMisuse::Ended`].
    pub fn end(&mut self) -> Result<[u8; HEADER_LEN], WriterMisuse> {
        let header = self.header(Kind::End, 0, &[])?;
        self.ended = true;
        Ok(header)
    }

    /// Appends a frame that ends the migration. This direction ends with it.
    ///
    /// # Errors
    /// [`WriterMisuse::Ended`].
    pub fn failure(
        &mut self,
        failure: &FailureNotice,
        out: &mut Vec<u8>,
    ) -> Result<(), WriterMisuse> {
        let body = failure.to_body();
        let header = self.header(Kind::Failure, body.len(), &[&body])?;
        out.extend_from_slice(&header);
        out.extend_from_slice(&body);
        self.ended = true;
        Ok(())
    }

    /// Appends a frame with a note. Both ends have agreed on notes.
    ///
    /// # Errors
    /// [`WriterMisuse`], also for a note without a byte or with more than [`MAX_NOTE_LEN`].
    pub fn note(&mut self, note: &[u8], out: &mut Vec<u8>) -> Result<(), WriterMisuse> {
        let (found, allowed) = (note.len(), MAX_NOTE_LEN);
        if found == 0 || found > allowed {
            return Err(WriterMisuse::Length { found, allowed });
        }
        let header = self.header(Kind::Note, found, &[note])?;
        out.extend_from_slice(&header);
        out.extend_from_slice(note);
        Ok(())
    }

    /// A whole frame that says nothing, so that a connection does not seem dead.
    ///
    /// # Errors
    /// [`WriterMisuse::Ended`].
    pub fn alive(&mut self) -> Result<[u8; HEADER_LEN], WriterMisuse> {
        self.header(Kind::Alive, 0, &[])
    }

    /// A whole frame: the destination behind the server loads the guest now.
    ///
    /// # Errors
    /// [`WriterMisuse::Ended`].
    pub fn begun(&mut self) -> Result<[u8; HEADER_LEN], WriterMisuse> {
        self.header(Kind::Begun, 0, &[])
    }

    /// Whether this direction has been ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The number of frames so far.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.number
    }

    /// Counts a frame. `len` is at most [`MAX_BODY_LEN`], and what the parts have.
    fn header(
        &mut self,
        kind: Kind,
        len: usize,
        parts: &[&[u8]],
    ) -> Result<[u8; HEADER_LEN], WriterMisuse> {
        let number = self.next()?;
        let len = len as u32;
        let head = Head { kind, len };
        let digest = self.digest.of_parts(number, head.to_bytes(), parts);
        Ok(head.with_digest(digest))
    }

    fn next(&mut self) -> Result<u64, WriterMisuse> {
        if self.ended {
            return Err(WriterMisuse::Ended);
        }
        let number = self.number;
        self.number = number.wrapping_add(1);
        Ok(number)
    }

    fn compress(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<bool, WriterMisuse> {
        if self.ended {
            return Err(WriterMisuse::Ended);
        }
        let start = out.len();
        let mut plain = 0_usize;
        for piece in bytes.chunks(FREE_BODY_LEN) {
            plain = plain.saturating_add(HEADER_LEN.saturating_add(piece.len()));
            if !self.compress_piece(piece, out)? {
                self.append(piece, out)?;
            }
        }
        Ok(out.len().saturating_sub(start) < plain)
    }

    fn compress_piece(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<bool, WriterMisuse> {
        let Some(compressor) = &mut self.compressor else {
            return Ok(false);
        };
        let start = out.len();
        if !piece::compress(piece, compressor, out)? {
            return Ok(false);
        }
        self.seal(out.get_mut(start..).unwrap_or_default())?;
        Ok(true)
    }

    /// Counts a frame of a compressed body, which stands after room for its header.
    fn seal(&mut self, frame: &mut [u8]) -> Result<(), WriterMisuse> {
        let number = self.next()?;
        let head = Head {
            kind: Kind::Compressed,
            // At most `MAX_BODY_LEN`.
            len: frame.len().saturating_sub(HEADER_LEN) as u32,
        };
        // The head stands directly before the body while the digest is computed over both.
        put(frame, HEADER_LEN - 8, &head.to_bytes());
        let covered = frame.get(HEADER_LEN - 8..).unwrap_or_default();
        let digest = self.digest.of(number, covered);
        put(frame, 0, &head.with_digest(digest));
        Ok(())
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    let to = out.get_mut(at..).unwrap_or_default();
    to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}

const _: () = assert!(MAX_BODY_LEN <= u32::MAX as usize);
