//! Takes frames apart.

use super::digest::Digest;
use super::frame::{FailureNotice, Frame, HEADER_LEN, Head, Kind, MAX_BODY_LEN, RAW_LEN_LEN};
use super::frame_memory::{self, FREE_BODY_LEN, Share};
use super::piece::{Packed, decompress};
use super::zstd::Decompressor;
use super::{Compression, FrameFault, NoCompression};

/// Takes the frames of one direction of one connection apart. It does no IO.
///
/// There are two ways to drive it, which can be mixed:
///
/// * [`push`](Self::push) takes bytes in any cut.
/// * The caller reads from its socket into [`space`](Self::space), and [`filled`](Self::filled)
///   says how many bytes came. So they land where they stay.
///
/// It holds one frame. The frame's memory grows with the bytes that have come: a header alone
/// brings 64 KiB. It is kept for the next frame: at most [`HEADER_LEN`] + [`MAX_BODY_LEN`] bytes,
/// twice while it grows; with compression [`MAX_BODY_LEN`] more. What a body longer than
/// [`FREE_BODY_LEN`] needs is a share of a total of the process: [`frame_memory`].
///
/// After a [`FrameFault`] the reader stays at it.
#[derive(Debug)]
pub struct FrameReader {
    digest: Digest,
    decompressor: Option<Decompressor>,
    /// Of the frame that is due.
    number: u64,
    state: State,
    /// The header and the body. It stays as long as it once was, so that it is filled with zeros
    /// once only.
    buffer: Vec<u8>,
    /// Bytes of the present frame in `buffer`.
    held: usize,
    /// The content of the last compressed frame, at the front.
    raw: Vec<u8>,
    /// The bytes of `buffer` and `raw` beyond the share of each reader.
    share: Share,
    /// The length of the last frame's content, and whether it was compressed.
    content: (usize, bool),
    /// Compressed frames are given as they are, unless they are long.
    packed: bool,
}

/// An event of a reader that leaves compressed frames to its caller.
pub(crate) enum Arrived<'a> {
    Frame(Frame<'a>),
    Packed(Packed<'a>),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// All of the header is there; the number is its digest.
    Body(Head, u64),
    /// After the frame that ends the direction.
    Ended,
    Failed(FrameFault),
}

/// A whole frame. Its bytes are in the reader.
enum Whole {
    Data { len: usize },
    Raw { len: usize },
    Packed { len: usize, raw_len: usize },
    End,
    Failure(FailureNotice),
    Alive,
    Begun,
    Note { len: usize },
    Unknown,
}

impl FrameReader {
    /// A reader at the beginning of its direction.
    ///
    /// # Errors
    /// When this build or this machine has no such compression.
    pub fn new(digest: Digest, compression: Compression) -> Result<Self, NoCompression> {
        let decompressor = match compression {
            Compression::None => None,
            Compression::Zstd => Some(Decompressor::new()?),
        };
        Ok(Self {
            digest,
            decompressor,
            number: 0,
            state: State::Header,
            buffer: Vec::new(),
            held: 0,
            raw: Vec::new(),
            share: Share::default(),
            content: (0, false),
            packed: false,
        })
    }

    /// As [`filled`](Self::filled), but a compressed frame is given as it is, where its body and
    /// its content have at most [`FREE_BODY_LEN`] bytes each. Its bytes are those of the next data.
    pub(crate) fn filled_packed(&mut self, len: usize) -> Result<Option<Arrived<'_>>, FrameFault> {
        self.packed = true;
        let outcome = self.take(len);
        self.packed = false;
        match outcome {
            Ok(Some(Whole::Packed { len, raw_len })) => Ok(Some(Arrived::Packed(Packed {
                // It has been counted.
                number: self.number.wrapping_sub(1),
                raw_len,
                frame: self.body(len).get(RAW_LEN_LEN..).unwrap_or_default(),
            }))),
            Ok(whole) => Ok(whole.and_then(|whole| self.give(whole)).map(Arrived::Frame)),
            Err(fault) => Err(self.fail(fault)),
        }
    }

    /// Bytes which complete the present header or body; 0 after the end and after a fault.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.step_end().saturating_sub(self.held)
    }

    /// The place for the next bytes: at most [`wanted`](Self::wanted) bytes, at least one byte when
    /// that is not 0.
    pub fn space(&mut self) -> &mut [u8] {
        let end = self.space_end();
        if let Some(more) = end.checked_sub(self.buffer.len()) {
            // No more than is needed, where `resize` alone would double.
            self.buffer.reserve_exact(more);
            self.buffer.resize(end, 0);
        }
        self.buffer.get_mut(self.held..end).unwrap_or_default()
    }

    /// The caller has put `len` bytes at the front of [`space`](Self::space): gives the frame that
    /// they complete, if they do. Its bytes stay until the reader is used again.
    ///
    /// # Errors
    /// When a frame breaks a rule. [`FrameFault::Overfilled`] when there was no space for them.
    pub fn filled(&mut self, len: usize) -> Result<Option<Frame<'_>>, FrameFault> {
        match self.take(len) {
            Ok(whole) => Ok(whole.and_then(|whole| self.give(whole))),
            Err(fault) => Err(self.fail(fault)),
        }
    }

    /// Takes what it can use from the front of `input`, up to the end of the next frame. `None`:
    /// all of `input` is used and more is needed.
    ///
    /// # Errors
    /// When a frame breaks a rule, and for bytes after the last frame.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Frame<'_>>, FrameFault> {
        loop {
            if let State::Failed(fault) = self.state {
                return Err(fault);
            }
            if input.is_empty() {
                return Ok(None);
            }
            if matches!(self.state, State::Ended) {
                return Err(self.fail(FrameFault::AfterEnd));
            }
            let space = self.space();
            let (taken, rest) = input.split_at_checked(space.len()).unwrap_or((input, &[]));
            space
                .iter_mut()
                .zip(taken)
                .for_each(|(to, from)| *to = *from);
            *input = rest;
            match self.take(taken.len()) {
                Ok(None | Some(Whole::Unknown)) => {}
                Ok(Some(whole)) => return Ok(self.give(whole)),
                Err(fault) => return Err(self.fail(fault)),
            }
        }
    }

    /// The bytes of the data frame that has come last; none after another frame. They stay until
    /// more is put into the reader.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        match self.content {
            (len, true) => self.raw.get(..len).unwrap_or_default(),
            (len, false) => self.body(len),
        }
    }

    /// Says whether the connection may end here: after the frame that ends its direction.
    ///
    /// # Errors
    /// [`FrameFault::NoEnd`] anywhere else; the fault itself after one.
    pub fn finish(&self) -> Result<(), FrameFault> {
        match self.state {
            State::Ended => Ok(()),
            State::Failed(fault) => Err(fault),
            State::Header | State::Body(..) => Err(FrameFault::NoEnd),
        }
    }

    /// Whether the frame has come that ends this direction: [`Frame::End`] or [`Frame::Failure`].
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether a frame has begun to come, and is not whole.
    #[must_use]
    pub fn is_inside_a_frame(&self) -> bool {
        self.held > 0
    }

    /// The number of whole frames that have come, those of unknown kinds too.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.number
    }

    fn fail(&mut self, fault: FrameFault) -> FrameFault {
        self.state = State::Failed(fault);
        fault
    }

    /// The end of the present step in the buffer.
    fn step_end(&self) -> usize {
        match self.state {
            State::Header => HEADER_LEN,
            State::Body(head, _) => HEADER_LEN.saturating_add(head.len as usize),
            State::Ended | State::Failed(_) => 0,
        }
    }

    /// The end of the present space in the buffer, which grows with the bytes that have come.
    fn space_end(&self) -> usize {
        let growth = self.held.max(LEAST_GROWTH);
        let known = self.buffer.len().max(self.held.saturating_add(growth));
        self.step_end().min(known)
    }

    /// Takes a share of the total for a buffer and a content of these lengths.
    fn admit(&mut self, buffer: usize, raw: usize) -> Result<(), FrameFault> {
        let buffer = buffer.saturating_sub(FREE_LEN);
        let raw = raw.saturating_sub(FREE_BODY_LEN);
        let number = self.number;
        self.share
            .grow_to(buffer.saturating_add(raw))
            .map_err(|exhausted| FrameFault::Memory {
                number,
                left: exhausted.left,
                allowed: exhausted.allowed,
            })
    }

    /// Returns what is not needed for a short frame, the header of which is in the buffer.
    fn give_back(&mut self) {
        self.buffer.truncate(FREE_LEN);
        self.buffer.shrink_to_fit();
        self.raw.truncate(FREE_BODY_LEN);
        self.raw.shrink_to_fit();
        self.share.release();
    }

    /// Goes on with `len` more bytes in the buffer; answers the frame that they complete.
    fn take(&mut self, len: usize) -> Result<Option<Whole>, FrameFault> {
        if let State::Failed(fault) = self.state {
            return Err(fault);
        }
        let offered = self.buffer.len().saturating_sub(self.held);
        let allowed = self.wanted().min(offered);
        if len > allowed {
            let found = len;
            return Err(FrameFault::Overfilled { found, allowed });
        }
        self.held = self.held.saturating_add(len);
        if self.held < self.step_end() {
            self.admit(self.space_end(), self.raw.len())?;
            return Ok(None);
        }
        match self.state {
            State::Header => {
                self.begin()?;
                match self.state {
                    State::Body(head, stated) if head.len == 0 => {
                        self.complete(head, stated).map(Some)
                    }
                    _ => Ok(None),
                }
            }
            State::Body(head, stated) => self.complete(head, stated).map(Some),
            State::Ended | State::Failed(_) => Ok(None),
        }
    }

    /// All of a header has come.
    fn begin(&mut self) -> Result<(), FrameFault> {
        let number = self.number;
        let header = self.buffer.first_chunk().copied().unwrap_or_default();
        let (head, stated) = Head::parse(number, header)?;
        if head.kind == Kind::Compressed && self.decompressor.is_none() {
            return Err(FrameFault::NotChosen { number });
        }
        // The head moves after the digest, so that what the digest covers is in one piece.
        let to = self.buffer.iter_mut().skip(DIGEST_LEN);
        to.zip(head.to_bytes()).for_each(|(to, from)| *to = from);
        let is_short = head.len as usize <= FREE_BODY_LEN;
        if is_short && !self.share.is_empty() && frame_memory::is_short() {
            self.give_back();
        }
        self.state = State::Body(head, stated);
        Ok(())
    }

    /// All of a frame has come.
    fn complete(&mut self, head: Head, found: u64) -> Result<Whole, FrameFault> {
        let number = self.number;
        let len = head.len as usize;
        let covered = self.buffer.get(DIGEST_LEN..self.held).unwrap_or_default();
        let computed = self.digest.of(number, covered);
        if found != computed {
            return Err(FrameFault::Digest {
                number,
                found,
                computed,
            });
        }
        let whole = match head.kind {
            Kind::Data => Whole::Data { len },
            Kind::Compressed => self.compressed(len)?,
            Kind::End => Whole::End,
            Kind::Failure => {
                let failure = FailureNotice::parse(self.body(len));
                Whole::Failure(failure.map_err(|_| FrameFault::Failure { number })?)
            }
            Kind::Alive => Whole::Alive,
            Kind::Begun => Whole::Begun,
            Kind::Note => Whole::Note { len },
            Kind::Unknown(_) => Whole::Unknown,
        };
        self.content = match whole {
            Whole::Data { len } => (len, false),
            Whole::Raw { len } => (len, true),
            _ => (0, false),
        };
        self.state = match whole {
            Whole::End | Whole::Failure(_) => State::Ended,
            _ => State::Header,
        };
        self.number = number.wrapping_add(1);
        self.held = 0;
        Ok(whole)
    }

    fn compressed(&mut self, len: usize) -> Result<Whole, FrameFault> {
        let number = self.number;
        let raw_len = self.body(len).first_chunk().copied().unwrap_or_default();
        let found = u32::from_be_bytes(raw_len);
        let raw_len = found as usize;
        if raw_len == 0 || raw_len > MAX_BODY_LEN {
            return Err(FrameFault::RawLength {
                number,
                found,
                allowed: MAX_BODY_LEN as u32,
            });
        }
        if self.packed && len <= FREE_BODY_LEN && raw_len <= FREE_BODY_LEN {
            return Ok(Whole::Packed { len, raw_len });
        }
        self.admit(self.buffer.len(), self.raw.len().max(raw_len))?;
        if let Some(more) = raw_len.checked_sub(self.raw.len()) {
            self.raw.reserve_exact(more);
            self.raw.resize(raw_len, 0);
        }
        let Some(decompressor) = &mut self.decompressor else {
            return Err(FrameFault::NotChosen { number });
        };
        let body = self.buffer.get(HEADER_LEN..self.held).unwrap_or_default();
        let frame = body.get(RAW_LEN_LEN..).unwrap_or_default();
        let raw = self.raw.get_mut(..raw_len).unwrap_or_default();
        decompress(number, frame, decompressor, raw)?;
        Ok(Whole::Raw { len: raw_len })
    }

    /// Of a frame that has come.
    fn body(&self, len: usize) -> &[u8] {
        let body = self.buffer.get(HEADER_LEN..).unwrap_or_default();
        body.get(..len).unwrap_or_default()
    }

    fn give(&self, whole: Whole) -> Option<Frame<'_>> {
        Some(match whole {
            Whole::Data { .. } | Whole::Raw { .. } => Frame::Data(self.content()),
            Whole::End => Frame::End,
            Whole::Failure(failure) => Frame::Failure(failure),
            Whole::Alive => Frame::Alive,
            Whole::Begun => Frame::Begun,
            Whole::Note { len } => Frame::Note(self.body(len)),
            // `filled_packed` has given it.
            Whole::Packed { .. } | Whole::Unknown => return None,
        })
    }
}

/// Of a digest in a header, and of the head before it: each is half of the header.
const DIGEST_LEN: usize = HEADER_LEN / 2;

/// Of the buffer that each reader may have.
const FREE_LEN: usize = HEADER_LEN + FREE_BODY_LEN;

/// The least growth of the buffer, so that a frame is read in few pieces.
const LEAST_GROWTH: usize = 64 << 10;
