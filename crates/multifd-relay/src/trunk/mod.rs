//! The trunk: the protocol that two relays speak between them. `docs/trunk.md` describes its bytes.
//!
//! A trunk connection carries one connection of a QEMU: main, a multifd channel, or postcopy's
//! preempt connection. No QEMU speaks this. This module does no IO: it makes bytes and takes bytes
//! apart.
//!
//! ```text
//! client (the source's relay)              server (the destination's relay)
//! Preface                              ->
//!                                      <-  Answer: Accepted, or Refused and nothing more
//! frames                              <->  frames
//! ```
//!
//! * The server reads a [`Preface`] with a [`PrefaceReceiver`], lets [`choose`] find what both ends
//!   understand, and sends an [`Answer`].
//! * The client reads it with an [`AnswerReceiver`]. [`Accepted::chosen`] compares it with the
//!   preface.
//! * Then each end has a [`FrameWriter`] and a [`FrameReader`], which both count frames. The
//!   frame's number is the seed of its digest, so a lost, repeated, swapped or changed frame is
//!   found before a byte of it is given out.
#![allow(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "the protocol between relays fixes the fields: docs/trunk.md"
)]

mod answer;
mod body;
mod choose;
mod delta;
mod digest;
mod envelope;
mod fault;
mod frame;
pub mod frame_memory;
mod name;
mod piece;
mod preface;
mod reader;
mod strand;
mod visit;
mod words;
mod writer;
mod zstd;

pub use self::answer::{Accepted, Answer, Refusal, RefusalCode};
pub use self::choose::{Abilities, Chosen, Compression, choose};
pub use self::delta::DeltaTerms;
pub use self::digest::Digest;
pub(crate) use self::envelope::PREFACE_MAGIC;
pub use self::envelope::{AnswerReceiver, MAX_HANDSHAKE_BODY_LEN, PrefaceReceiver};
pub use self::fault::{Choice, FrameFault, HandshakeFault, NoCompression, WriterMisuse};
pub use self::frame::{FailureCode, FailureNotice, Frame, HEADER_LEN, MAX_BODY_LEN, MAX_NOTE_LEN};
pub use self::name::{Name, NameFault};
pub(crate) use self::piece::{Packed, Parcel, Piece};
pub use self::preface::{Connection, Extension, MAX_CODES, MAX_EXTENSIONS, Offers, Preface};
pub(crate) use self::reader::Arrived;
pub use self::reader::FrameReader;
pub use self::strand::StrandTerms;
pub use self::visit::Visit;
pub use self::words::Words;
pub use self::writer::FrameWriter;
pub(crate) use self::zstd::{Compressor, Decompressor};

/// A range of versions of the trunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl Versions {
    /// The protocol versions of this crate.
    pub const OURS: Self = Self {
        oldest: 1,
        newest: 1,
    };

    /// The newest version that both have; `None` too when either range is upside down.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    /// Whether `version` is in the range.
    #[must_use]
    pub fn contains(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}
