//! The envelope of a preface or an answer: a magic number, a length, a body, a checksum.

use super::{Answer, HandshakeFault, Preface};

/// The longest body of a preface or an answer, in bytes, for ever: four times the longest refusal.
pub const MAX_HANDSHAKE_BODY_LEN: usize = 4096;

/// Reads the preface that begins a connection. It does no IO.
#[derive(Debug, Default)]
pub struct PrefaceReceiver(Envelope);

impl PrefaceReceiver {
    /// Bytes which complete the next step. Reading no more than that leaves in the socket what
    /// follows the preface.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.0.wanted(PREFACE_MAGIC)
    }

    /// Takes what it can use from the front of `input`. `None`: all of `input` is used and more is
    /// needed. After the preface it takes nothing and answers `None`; after an error it stays at
    /// it.
    ///
    /// # Errors
    /// [`HandshakeFault`]; [`Refusal::from`](super::Refusal) makes an answer of it.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Preface>, HandshakeFault> {
        self.0.push(PREFACE_MAGIC, input, Preface::parse)
    }

    /// The fault when the connection ends before the preface is whole.
    #[must_use]
    pub fn truncated(&self) -> HandshakeFault {
        let missing = self.wanted();
        HandshakeFault::Truncated { missing }
    }
}

/// Reads the server's answer. It does no IO.
#[derive(Debug, Default)]
pub struct AnswerReceiver(Envelope);

impl AnswerReceiver {
    /// Bytes which complete the next step. Reading no more than that leaves in the socket what
    /// follows the answer.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.0.wanted(ANSWER_MAGIC)
    }

    /// Takes what it can use from the front of `input`. `None`: all of `input` is used and more is
    /// needed. After the answer it takes nothing and answers `None`; after an error it stays at it.
    ///
    /// # Errors
    /// [`HandshakeFault`].
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Answer>, HandshakeFault> {
        self.0.push(ANSWER_MAGIC, input, Answer::parse)
    }

    /// The fault when the connection ends before the answer is whole.
    #[must_use]
    pub fn truncated(&self) -> HandshakeFault {
        let missing = self.wanted();
        HandshakeFault::Truncated { missing }
    }
}

#[derive(Debug, Default)]
struct Envelope {
    /// At most [`HEAD_LEN`], [`MAX_HANDSHAKE_BODY_LEN`] and [`CHECKSUM_LEN`] bytes.
    gathered: Vec<u8>,
    given: bool,
}

impl Envelope {
    fn wanted(&self, magic: [u8; 4]) -> usize {
        let len = match self.body_len(magic) {
            Ok(Some(body)) => HEAD_LEN.saturating_add(body).saturating_add(CHECKSUM_LEN),
            Ok(None) => HEAD_LEN,
            Err(_) => 0,
        };
        len.saturating_sub(self.gathered.len())
    }

    /// The result of `parse` on the body, as soon as the body is whole and its checksum is right.
    fn push<T>(
        &mut self,
        magic: [u8; 4],
        input: &mut &[u8],
        parse: impl Fn(&[u8]) -> Result<T, HandshakeFault>,
    ) -> Result<Option<T>, HandshakeFault> {
        if self.given {
            return Ok(None);
        }
        // First the head, then the rest, whose length the head states.
        for _ in 0..2 {
            let wanted = self.wanted(magic);
            let (taken, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
            self.gathered.extend_from_slice(taken);
            *input = rest;
            self.body_len(magic)?;
        }
        if self.wanted(magic) != 0 {
            return Ok(None);
        }
        let parsed = parse(self.checked_body()?)?;
        self.given = true;
        Ok(Some(parsed))
    }

    /// The body, once all is there.
    fn checked_body(&self) -> Result<&[u8], HandshakeFault> {
        let (covered, end) = self.gathered.split_last_chunk().unwrap_or((&[], &[0; 4]));
        let (found, computed) = (u32::from_be_bytes(*end), crc32fast::hash(covered));
        match found == computed {
            true => Ok(covered.get(HEAD_LEN..).unwrap_or_default()),
            false => Err(HandshakeFault::Checksum { found, computed }),
        }
    }

    /// The length that the head states, once the head is there.
    fn body_len(&self, magic: [u8; 4]) -> Result<Option<usize>, HandshakeFault> {
        let Some(&[m0, m1, m2, m3, high, low]) = self.gathered.first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let found = [m0, m1, m2, m3];
        if found != magic {
            let allowed = magic;
            return Err(HandshakeFault::Magic { found, allowed });
        }
        let len = usize::from(u16::from_be_bytes([high, low]));
        check_len(len)?;
        Ok(Some(len))
    }
}

/// The magic number, the length, the body and the checksum.
pub(super) fn seal(magic: [u8; 4], body: &[u8]) -> Result<Vec<u8>, HandshakeFault> {
    check_len(body.len())?;
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut sealed = [magic.as_slice(), &len.to_be_bytes(), body].concat();
    let checksum = crc32fast::hash(&sealed);
    sealed.extend_from_slice(&checksum.to_be_bytes());
    Ok(sealed)
}

fn check_len(found: usize) -> Result<(), HandshakeFault> {
    let allowed = MAX_HANDSHAKE_BODY_LEN;
    match found <= allowed {
        true => Ok(()),
        false => Err(HandshakeFault::Length { found, allowed }),
    }
}

pub(crate) const PREFACE_MAGIC: [u8; 4] = *b"MFDT";
pub(super) const ANSWER_MAGIC: [u8; 4] = *b"MFDA";

/// The magic number and the length.
const HEAD_LEN: usize = 6;

/// A CRC-32 of everything before it. A name with a changed letter is another guest's.
const CHECKSUM_LEN: usize = 4;
