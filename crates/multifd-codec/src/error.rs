//! What can go wrong between pages and payload.
//!
//! Channel, direction and block are not known here: who calls adds them.

use std::error::Error;
use std::sync::Arc;

use multifd_wire::Method;

use crate::Accel;

/// An encoder could not turn pages into a payload. It stays refused from then on: its stream has a
/// hole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// An earlier packet failed, and the stream ended there.
    #[error("the {method} stream ended at an earlier error")]
    Poisoned {
        /// The encoder's method.
        method: Method,
    },
    /// What was given is not a packet's worth of whole pages.
    #[error("cannot encode this")]
    Buffer(#[source] crate::PagesError),
    /// More packets were pushed than the encoder had room for. That is a fault of the caller.
    #[error("the {method} encoder has no room for another packet")]
    NoRoom {
        /// The encoder's method.
        method: Method,
    },
    /// The payload would not fit into a stock receiver's buffer.
    #[error("a payload of {found} bytes or more, but a stock receiver takes {allowed}")]
    TooLarge {
        /// Bytes made so far.
        found: usize,
        /// [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES).
        allowed: usize,
    },
    /// A part of the packet was not compressed and nobody has said why: a fault of this crate,
    /// which must not become a wrong payload.
    #[error("a part of the packet was not compressed")]
    Incomplete,
    /// The compression library refused.
    #[error("{method} compression failed")]
    Library {
        /// The encoder's method.
        method: Method,
        /// The library's own words.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A decoder could not turn a payload into pages. It stays refused from then on: what follows in
/// the stream depends on what could not be read. What the page buffer holds after an error means
/// nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// An earlier payload failed, and the stream ended there.
    #[error("the {method} stream ended at an earlier error")]
    Poisoned {
        /// The decoder's method.
        method: Method,
    },
    /// The caller's buffer is not a packet's worth of whole pages.
    #[error("cannot decode into this buffer")]
    Buffer(#[source] crate::PagesError),
    /// The payload of a method without compression is not as long as its pages.
    #[error("a payload of {found} bytes for {allowed} bytes of pages")]
    Length {
        /// Length of the payload.
        found: usize,
        /// Length of the pages.
        allowed: usize,
    },
    /// The table of page lengths and the pages behind it do not fit together.
    #[error("the table of page lengths is wrong")]
    Lengths(#[source] multifd_wire::Fault),
    /// What comes before the pages of a `canned` payload is wrong.
    #[error("the head of the payload is wrong")]
    Canned(#[source] crate::CannedFault),
    /// The compressed form of a page is not one of a page.
    #[error("page {page} of the packet cannot be decompressed")]
    Page {
        /// Which of the packet's normal pages, from 0.
        page: usize,
        /// What is wrong with it.
        source: page_deflate::InflateError,
    },
    /// The payload ended before the last page was full.
    #[error("the payload holds {found} bytes of pages instead of {expected}")]
    TooShort {
        /// Bytes of pages that came out.
        found: usize,
        /// Bytes of pages there should be.
        expected: usize,
    },
    /// The last page is full, and there is more.
    #[error("the payload holds more than the {expected} bytes of its pages")]
    TooLong {
        /// Bytes of pages there should be.
        expected: usize,
    },
    /// A stream that runs for the whole migration was ended.
    #[error("the {method} stream ends after {found} bytes of pages, but must never end")]
    StreamEnd {
        /// The decoder's method.
        method: Method,
        /// Bytes of pages of this packet before the end.
        found: usize,
    },
    /// A zstd frame ended elsewhere than where a page ends, or held no page. A skippable frame is
    /// one without a page.
    #[error("a zstd frame without a page, or with an end inside one, after {found} bytes of pages")]
    FrameEnd {
        /// Bytes of pages of this packet before the end.
        found: usize,
    },
    /// A zstd frame asks for a larger window than any level of QEMU's has.
    #[error("a zstd frame asks for a window of {found} bytes, but at most {allowed} are taken")]
    Window {
        /// The window asked for, in bytes.
        found: u64,
        /// `window_memory::MAX_WINDOW_BYTES`.
        allowed: u64,
    },
    /// There is no room for a zstd frame's window beside those of the process's other channels.
    #[error(
        "a zstd frame asks for a window of {window} bytes, \
         but {left} are left of the {allowed} for all channels of this process"
    )]
    WindowMemory {
        /// The window asked for, in bytes. What it takes is a little more.
        window: u64,
        /// Bytes that all other decoders have left.
        left: u64,
        /// `window_memory::limit`.
        allowed: u64,
    },
    /// All pages are there, and something is left that belongs to no page.
    #[error("{found} extra bytes are behind the payload's last page")]
    Trailing {
        /// Bytes left.
        found: usize,
    },
    /// The compression library refused.
    #[error("{method} decompression failed after {found} bytes of pages")]
    Library {
        /// The decoder's method.
        method: Method,
        /// Bytes of pages of this packet that came out before, as far as the library tells.
        found: usize,
        /// The library's own words.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// There is no such codec here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Nothing in this crate speaks the method.
    #[error("no codec for the {method} method")]
    Method {
        /// The method asked for.
        method: Method,
    },
    /// This crate speaks the method, but was built without the feature that brings it.
    #[error(
        "this build cannot use the {method} method: it was made without the feature `{feature}`"
    )]
    NotBuilt {
        /// The method asked for.
        method: Method,
        /// The Cargo feature of this crate.
        feature: &'static str,
    },
    /// The method is spoken here, but not with the accelerator asked for.
    #[error("accelerator {accel} is not available for the {method} method: {reason}")]
    Accel {
        /// The method asked for.
        method: Method,
        /// Who was to compute.
        accel: Accel,
        /// Why that is not to be had.
        reason: Arc<str>,
    },
    /// The compression library would not be set up.
    #[error("the {method} library refuses its settings")]
    Library {
        /// The method asked for.
        method: Method,
        /// The library's own words.
        source: Box<dyn Error + Send + Sync>,
    },
}
