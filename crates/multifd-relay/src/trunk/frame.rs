//! The frames on a trunk connection, after its answer.

use std::fmt;

use super::body::{end, put, take, take_words};
use super::{FrameFault, HandshakeFault, Words};

/// Bytes before the body of every frame.
pub const HEADER_LEN: usize = 16;

/// The longest body of a frame, and the longest content of a compressed one, in bytes: a packet
/// with 1 MiB of payload, and its header.
pub const MAX_BODY_LEN: usize = (1 << 20) + (64 << 10);

/// The longest note, in bytes.
pub const MAX_NOTE_LEN: usize = 64 << 10;

/// A frame that has come, checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The next bytes of the connection that the trunk carries; never empty.
    Data(&'a [u8]),
    /// A clean end of this direction. Nothing follows.
    End,
    /// The migration ends at once. Nothing follows.
    Failure(FailureNotice),
    /// The peer lives, and has nothing to say.
    Alive,
    /// The destination behind the server loads the guest now.
    Begun,
    /// A note beside the bytes, if both ends have agreed on notes.
    Note(&'a [u8]),
}

/// Why a relay ends a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureNotice {
    /// The kind of reason, for programs.
    pub code: FailureCode,
    /// The reason, for people.
    pub words: Words,
}

/// The kind of reason of a [`FailureNotice`]. A code that an end does not know is shown as a
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FailureCode(pub u16);

impl FailureCode {
    /// Anything else.
    pub const OTHER: Self = Self(0);
    /// A connection of the QEMU behind the sender cannot be opened, or breaks.
    pub const CONNECTION: Self = Self(1);
    /// The sender of this got frames that break a rule of the trunk.
    pub const TRUNK: Self = Self(2);
    /// The bytes that the trunk carries break a rule of QEMU's formats.
    pub const STREAM: Self = Self(3);
    /// A time limit has passed.
    pub const TIME: Self = Self(4);
    /// An operator or a signal stops the relay.
    pub const STOPPED: Self = Self(5);

    /// Its meaning, if this crate knows it.
    #[must_use]
    pub const fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::OTHER => "failed",
            Self::CONNECTION => "broken connection",
            Self::TRUNK => "damaged trunk",
            Self::STREAM => "malformed stream",
            Self::TIME => "out of time",
            Self::STOPPED => "stopped",
            _ => return None,
        })
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => f.write_str(meaning),
            None => write!(f, "failure {}", self.0),
        }
    }
}

impl fmt::Display for FailureNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words.as_str() {
            "" => self.code.fmt(f),
            _ => write!(f, "{}: {}", self.code, self.words),
        }
    }
}

impl FailureNotice {
    pub(super) fn to_body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        // Writing to memory does not fail. An empty body would be refused as malformed.
        let _ = put(&(self.code.0, self.words.as_str()), &mut body);
        body
    }

    pub(super) fn parse(mut body: &[u8]) -> Result<Self, HandshakeFault> {
        let code = FailureCode(take(&mut body)?);
        let words = take_words(&mut body)?;
        end(body)?;
        Ok(Self { code, words })
    }
}

/// The kinds of frames that this version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Compressed,
    End,
    Failure,
    Alive,
    Begun,
    Note,
    /// One that a later relay sends, and this one need not understand.
    Unknown(u8),
}

impl Kind {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Compressed => 1,
            Self::End => 2,
            Self::Failure => 3,
            Self::Alive => 4,
            Self::Begun => 5,
            Self::Note => 6,
            Self::Unknown(code) => code,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Data,
            1 => Self::Compressed,
            2 => Self::End,
            3 => Self::Failure,
            4 => Self::Alive,
            5 => Self::Begun,
            6 => Self::Note,
            0x80.. => Self::Unknown(code),
            _ => return None,
        })
    }

    /// The shortest and the longest body.
    const fn lengths(self) -> (u32, u32) {
        const MOST: u32 = MAX_BODY_LEN as u32;
        match self {
            Self::Data => (1, MOST),
            Self::Compressed => (RAW_LEN_LEN as u32 + 1, MOST),
            Self::End | Self::Alive | Self::Begun => (0, 0),
            Self::Failure => (2, MAX_FAILURE_LEN),
            Self::Note => (1, MAX_NOTE_LEN as u32),
            Self::Unknown(_) => (0, MOST),
        }
    }
}

/// A header without its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Of the body.
    pub(super) len: u32,
}

impl Head {
    /// The first bytes of the header, which the digest covers.
    pub(super) const fn to_bytes(self) -> [u8; 8] {
        let [l0, l1, l2, l3] = self.len.to_be_bytes();
        [self.kind.code(), 0, 0, 0, l0, l1, l2, l3]
    }

    /// The whole header.
    pub(super) const fn with_digest(self, digest: u64) -> [u8; HEADER_LEN] {
        let [h0, h1, h2, h3, h4, h5, h6, h7] = self.to_bytes();
        let [d0, d1, d2, d3, d4, d5, d6, d7] = digest.to_be_bytes();
        [
            h0, h1, h2, h3, h4, h5, h6, h7, d0, d1, d2, d3, d4, d5, d6, d7,
        ]
    }

    /// Takes a header apart: itself and its digest.
    pub(super) fn parse(number: u64, header: [u8; HEADER_LEN]) -> Result<(Self, u64), FrameFault> {
        let [found, flags, r0, r1, l0, l1, l2, l3, digest @ ..] = header;
        let kind = Kind::from_code(found).ok_or(FrameFault::Kind { number, found })?;
        let reserved = u16::from_be_bytes([r0, r1]);
        if flags != 0 || reserved != 0 {
            return Err(FrameFault::Reserved {
                number,
                flags,
                reserved,
            });
        }
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        let (least, most) = kind.lengths();
        if !(least..=most).contains(&len) {
            return Err(FrameFault::Length {
                number,
                kind: found,
                found: len,
                least,
                most,
            });
        }
        Ok((Self { kind, len }, u64::from_be_bytes(digest)))
    }
}

/// Of the number in a compressed body that says how long the content is.
pub(super) const RAW_LEN_LEN: usize = 4;

/// A code, a length and words, the numbers in as many bytes as postcard lets them have.
const MAX_FAILURE_LEN: u32 = 3 + 10 + Words::MAX_LEN as u32;
