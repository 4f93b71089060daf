//! QEMU multifd migration: packets of pages to payloads and back.
//!
//! A multifd channel carries packets, and a packet with normal pages is followed by a payload: the
//! content of these pages, written by the migration's compression method. This crate makes payloads
//! and reads them. It knows
//!
//! - what a packet's worth of pages is, private or in the memory of a running guest ([`Pages`],
//!   [`GuestPage`]),
//! - what each method puts on the wire, and what a stock QEMU reads of it ([`encoder`],
//!   [`decoder`]),
//! - whether a page is zero, so that it needs no payload ([`is_zero`]).
//!
//! It never sees a socket or a packet's header, never makes a Rust slice of live guest memory,
//! never lets a peer's number size a buffer, and never goes on after an error: a stream with a hole
//! in it gives no more pages.
//!
//! There is one [`Encoder`] or [`Decoder`] per channel and direction. It sees the channel's packets
//! in their order, because `zlib` and `zstd` are one stream from a channel's first packet to its
//! last.
//!
//! # Example
//!
//! ```
//! use multifd_codec::{Pages, Settings, decoder, encoder};
//! use multifd_wire::{Method, PageSize};
//!
//! // What a sender keeps for a channel, ...
//! let mut encoder = encoder(Method::Zlib, &Settings::default())?;
//! let mut payload = Vec::new();
//! // ... and what its receiver keeps.
//! let mut decoder = decoder(Method::Zlib, &Settings::default())?;
//!
//! for content in [1, 2, 3] {
//!     let sent = vec![content; 16 * PageSize::K4.bytes()];
//!     encoder.encode(&Pages::private(&sent, PageSize::K4)?, &mut payload)?;
//!
//!     // The packet's header says how many pages come, and how long the payload is.
//!     let mut arrived = vec![0; sent.len()];
//!     decoder.decode(&payload, PageSize::K4, &mut arrived)?;
//!     assert_eq!(arrived, sent);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Payloads
//!
//! | method | since | a payload is | a channel is |
//! | --- | --- | --- | --- |
//! | `none` | QEMU 4.0 | the pages, back to back in the order of their offsets | nothing more |
//! | `zlib` | QEMU 5.0 | a piece of a zlib stream, ended by a sync flush (`00 00 ff ff`) | one zlib stream (RFC 1950), which begins with `78 xx` in the first payload and never ends |
//! | `zstd` | QEMU 5.0 | a piece of a zstd frame, ended by a flush | one zstd frame (RFC 8878) without content size and checksum, which never ends |
//! | `qpl` | QEMU 9.1 | a table of lengths and then each page by itself, a raw deflate stream or as it is ([`multifd_wire::lengths`]) | nothing more |
//! | `canned` | never: our own, between two of our own ends | what code the pages are in, a new code at times, a table of lengths and then each page by itself, the body of a deflate block in that code or as it is | one code after another |
//!
//! `paged/canned/mod.rs` describes `canned` to the bit. The others were learned from the streams of
//! running QEMUs 7.2 and 10.0, and from what they take and refuse when fed with variations: a
//! decoder takes whatever a stock receiver takes, such as a flush or, with zstd, a frame of its own
//! for every page. It is stricter where a stock receiver overlooks something and loses its place in
//! the stream, namely at output beyond the packet's last page.
//!
//! A packet without normal pages has no payload in any method; zero pages are only named in its
//! header.
//!
//! # Several processors
//!
//! With more than one stream ([`Streams`]) other processors help with a channel's packets, which
//! are cut into runs that know nothing of each other, or into pages. [`Encoder::encode`] shares one
//! packet among them; with [`Encoder::push`] and [`Encoder::pop`] a few are in work at once, so
//! that nobody waits for the last run of each (libqpl has jobs instead). Both make the same
//! payloads. Helpers borrow nothing: they share what the codec owns. So [`Decoder::decode_owned`]
//! takes buffers instead of slices.
//!
//! # Accelerators
//!
//! Who computes is a choice of its own ([`Accel`]) and shows on the wire only to who looks closely.
//!
//! [`Accel::Software`] writes and reads `zlib` with [`page_deflate`], in a choice of [`Effort`] and
//! [`WindowSize`]. A payload that its decoder does not understand is read by the ordinary library,
//! so that nothing is refused which a stock receiver takes.
//!
//! libqpl is opened at run time if it is there, with an Intel IAA if libqpl finds one that works.
//!
//! | method | encoder with libqpl | decoder with libqpl |
//! | --- | --- | --- |
//! | `qpl`, `canned` | every page by itself, on hardware or libqpl's software path | on hardware; without it `page-deflate`'s inflate, because libqpl's software path does not notice a page that is cut off |
//! | `zlib` | runs of pages ([`Streams`]) compressed at once, each with a window of 4 KiB, joined to one stream that a stock QEMU reads | as without: the window of a stock stream is too large for the hardware |
//! | `none`, `zstd` | there is none | as without |
//!
//! A page which the device does not do, for whatever reason, is done in software; a device which
//! fails too often, or never answers, is not asked again; what it still has in hand keeps its
//! memory for ever. [`Encoder::counts`] and [`Encoder::backend`] tell all of that.
//!
//! # Features
//!
//! Both are on by default, and each only adds. Without them no C is compiled.
//!
//! | feature | brings | without it |
//! | --- | --- | --- |
//! | `zstd` | the method `zstd`, by libzstd, whose C source is built | [`Unsupported::NotBuilt`] for that method |
//! | `qpl` | libqpl, opened at run time, and the reasons why there is no IAA | an accelerator of libqpl is [`Unsupported::Accel`]; [`Accel::Auto`] is software |
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![deny(unsafe_code)]
#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
#![cfg_attr(
    test,
    allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)
)]

#[cfg(feature = "zstd")]
pub mod window_memory;

mod accel;
mod channel;
mod choose;
mod encoder;
mod error;
mod helpers;
mod none;
mod page;
mod paged;
mod pipeline;
#[cfg(feature = "qpl")]
mod qpl;
mod runs;
mod settings;
mod software;
mod streams;
mod zero;
mod zlib;
#[cfg(feature = "zstd")]
mod zstd;

pub use accel::{Accel, Backend, BackendKind, Huffman, PathCounts, UnknownWord};
pub use channel::MAX_PAYLOAD_BYTES;
pub use choose::{decoder, encoder};
pub use encoder::{Encoder, Failed};
pub use error::{DecodeError, EncodeError, Unsupported};
pub use page::{GuestPage, PageBuffer, Pages, PagesError};
pub use page_deflate::{Effort, WindowSize};
pub use paged::canned::CannedFault;
pub use settings::{Level, LevelError, Settings, Streams, StreamsError, ZlibLevel, ZstdLevel};
pub use zero::is_zero;

use multifd_wire::{Method, PageSize};

/// Turns payloads into packets of pages: the receiving direction of one channel.
///
/// [`decoder`] makes one. No other crate can: a method may come to it later.
pub trait Decoder: sealed::Sealed + Send {
    /// The method whose payloads this reads.
    fn method(&self) -> Method;

    /// Reads the payload of the channel's next packet with normal pages into `pages`, over copies
    /// of both. [`Self::decode_owned`] needs no copies.
    ///
    /// `pages` has the length of all of the packet's pages; they come to lie back to back in the
    /// order of their offsets. Exactly that much has to come out of the payload.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`]. After any error the decoder only ever answers
    /// [`DecodeError::Poisoned`], and what `pages` holds means nothing.
    fn decode(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<(), DecodeError>;

    /// As [`Self::decode`], with buffers that the decoder and its helpers have meanwhile. They are
    /// there again when it returns; only a panic keeps them.
    ///
    /// # Errors
    ///
    /// As [`Self::decode`].
    fn decode_owned(
        &mut self,
        payload: &mut Vec<u8>,
        page_size: PageSize,
        pages: &mut PageBuffer,
    ) -> Result<(), DecodeError>;

    /// As [`Encoder::backend`].
    fn backend(&self) -> Backend {
        Backend::new(BackendKind::Plain)
    }

    /// As [`Encoder::counts`].
    fn counts(&self) -> PathCounts;
}

mod sealed {
    /// Keeps [`Decoder`](super::Decoder) for this crate.
    pub trait Sealed {}

    impl<S: crate::channel::ReadPayload> Sealed for crate::channel::Channel<S> {}
}
