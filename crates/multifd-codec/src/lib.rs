//! QEMU multifd migration: encodes packets of pages as payloads, and decodes them.
//!
//! A multifd channel carries packets, and a packet with normal pages is followed by a payload: the
//! content of these pages, written by the migration's compression method. This crate encodes and
//! decodes payloads. It covers
//!
//! - a packet of pages, private or in the memory of a running guest ([`Pages`], [`GuestPage`]),
//! - each method's format on the wire, and what a stock QEMU reads of it ([`encoder`],
//!   [`decoder`]),
//! - the test for zero pages, which need no payload ([`is_zero`]).
//!
//! It never sees a socket or a packet's header, never makes a Rust slice of live guest memory,
//! never lets a peer's number size a buffer, and stops at the first error: a stream with a hole
//! gives no more pages.
//!
//! There is one [`Encoder`] or [`Decoder`] per channel and direction. It processes the channel's
//! packets in order, because `zlib` and `zstd` are one stream from a channel's first packet to its
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
//! | `qpl` | QEMU 9.1 | a table of lengths and then each page by itself, a raw deflate stream or uncompressed ([`multifd_wire::lengths`]) | nothing more |
//! | `canned` | never: our own, between two of our own ends | the code of the pages, sometimes a new code, a table of lengths and then each page by itself, the body of a deflate block in that code or uncompressed | one code after another |
//!
//! `docs/canned.md` specifies `canned` to the bit. The others were derived from the streams of
//! running QEMUs 7.2 and 10.0, and from their reactions to variations: a decoder accepts everything
//! that a stock receiver accepts, such as a flush or, with zstd, a separate frame for every page.
//! It is stricter in one case, where a stock receiver loses its place in the stream: output beyond
//! the packet's last page.
//!
//! A packet without normal pages has no payload in any method; its header names the zero pages.
//!
//! # Several processors
//!
//! With more than one stream ([`Streams`]) other processors help with a channel's packets, which
//! are cut into independent runs, or into pages. [`Encoder::encode`] shares one packet among them;
//! with [`Encoder::push`] and [`Encoder::pop`] a few packets are in work at once, so that no
//! processor waits for the last run of each (libqpl has jobs instead). Both make the same payloads.
//! Helpers borrow nothing: they share buffers that the codec owns. So [`Decoder::decode_owned`]
//! takes buffers instead of slices.
//!
//! # Accelerators
//!
//! The accelerator ([`Accel`]) is independent of the method; the wire format is the same.
//!
//! [`Accel::Software`] writes and reads `zlib` with [`page_deflate`], with a choice of [`Effort`]
//! and [`WindowSize`]. If its decoder does not understand a payload, the ordinary library reads it,
//! so that everything a stock receiver accepts is accepted.
//!
//! libqpl is opened at run time if present, with an Intel IAA if libqpl finds a working one.
//!
//! | method | encoder with libqpl | decoder with libqpl |
//! | --- | --- | --- |
//! | `qpl`, `canned` | every page by itself, on hardware or libqpl's software path | on hardware; without it `page-deflate`'s inflate, because libqpl's software path does not detect a truncated page |
//! | `zlib` | runs of pages ([`Streams`]) compressed in parallel, each with a window of 4 KiB, joined to one stream that a stock QEMU reads | the same as without: the window of a stock stream is too large for the hardware |
//! | `none`, `zstd` | there is none | the same as without |
//!
//! A page that the device does not do, for any reason, is done in software. A device that fails too
//! often, or never answers, is not used again; its unfinished jobs keep their memory for ever.
//! [`Encoder::counts`] and [`Encoder::backend`] report all of this.
//!
//! # Features
//!
//! Both are on by default and only add functionality. Without them no C is compiled.
//!
//! | feature | brings | without it |
//! | --- | --- | --- |
//! | `zstd` | the method `zstd`, by libzstd, which is built from C source | [`Unsupported`] for that method |
//! | `qpl` | libqpl, opened at run time, and the reasons why there is no IAA | an accelerator of libqpl is [`Unsupported`]; [`Accel::Auto`] is software |
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

pub mod ahead;
pub mod auto;
pub mod delta;
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

pub use accel::{Accel, Backend, BackendKind, Huffman, PathCounts};
pub use channel::MAX_PAYLOAD_BYTES;
pub use choose::{decoder, encoder};
pub use encoder::{Encoder, Failed};
pub use error::{DecodeError, EncodeError, Unsupported};
pub use page::{GuestPage, PageBuffer, Pages, PagesError};
pub use page_deflate::{Effort, WindowSize};
pub use settings::{Level, SettingError, Settings, Streams, ZlibLevel, ZstdLevel};
pub use zero::is_zero;

use multifd_wire::{Method, PageSize};

/// Decodes payloads to packets of pages: the receiving direction of one channel.
///
/// [`decoder`] makes one. Other crates cannot implement it, so that it can get more methods.
pub trait Decoder: sealed::Sealed + Send {
    /// The method of the payloads.
    fn method(&self) -> Method;

    /// Reads the payload of the channel's next packet with normal pages into `pages`. It works on
    /// copies of both. [`Self::decode_owned`] needs no copies.
    ///
    /// `pages` has the length of all of the packet's pages; they are stored back to back in the
    /// order of their offsets. The payload has to produce exactly this length.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`]. After any error the decoder refuses every payload, and the content of
    /// `pages` is meaningless.
    fn decode(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<(), DecodeError>;

    /// The same as [`Self::decode`], with buffers that the decoder and its helpers take meanwhile.
    /// They are back when it returns; only a panic loses them.
    ///
    /// # Errors
    ///
    /// The same as for [`Self::decode`].
    fn decode_owned(
        &mut self,
        payload: &mut Vec<u8>,
        page_size: PageSize,
        pages: &mut PageBuffer,
    ) -> Result<(), DecodeError>;

    /// See [`Encoder::backend`].
    fn backend(&self) -> Backend {
        Backend::new(BackendKind::Plain)
    }

    /// See [`Encoder::counts`].
    fn counts(&self) -> PathCounts;
}

mod sealed {
    /// Keeps [`Decoder`](super::Decoder) for this crate.
    pub trait Sealed {}

    impl<S: crate::channel::ReadPayload> Sealed for crate::channel::Channel<S> {}
}

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
