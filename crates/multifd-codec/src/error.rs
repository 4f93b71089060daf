//! Errors between pages and payload.
//!
//! The caller adds the channel, the direction and the block.

use std::error::Error;
use std::sync::Arc;

use multifd_wire::Method;

use crate::Accel;

/// An encoder could not make a payload from pages. It refuses all later packets: its stream has a
/// hole. The text names what was found and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EncodeError(#[from] pub(crate) EncodeFault);

#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeFault {
    /// An earlier packet failed and ended the stream.
    #[error("the {method} stream ended at an earlier error")]
    Poisoned {
        /// The encoder's method.
        method: Method,
    },
    /// The input is not a packet of whole pages.
    #[error("cannot encode this")]
    Buffer(#[source] crate::PagesError),
    /// The caller pushed more packets than the encoder had room for: a bug of the caller.
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
    /// A part of the packet was not compressed, without a reported reason: a bug of this crate,
    /// which must not produce a wrong payload.
    #[error("a part of the packet was not compressed")]
    Incomplete,
    /// The compression library refused.
    #[error("{method} compression failed")]
    Library {
        /// The encoder's method.
        method: Method,
        /// The library's message.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A decoder could not read pages from a payload. It refuses all later packets: the rest of the
/// stream depends on the unreadable part. After an error the content of the page buffer is
/// meaningless.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DecodeError(#[from] pub(crate) DecodeFault);

#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeFault {
    /// An earlier payload failed and ended the stream.
    #[error("the {method} stream ended at an earlier error")]
    Poisoned {
        /// The decoder's method.
        method: Method,
    },
    /// The caller's buffer is not a packet of whole pages.
    #[error("cannot decode into this buffer")]
    Buffer(#[source] crate::PagesError),
    /// The payload of a method without compression differs in length from its pages.
    #[error("a payload of {found} bytes for {allowed} bytes of pages")]
    Length {
        /// Length of the payload.
        found: usize,
        /// Length of the pages.
        allowed: usize,
    },
    /// The table of page lengths does not match the pages after it.
    #[error("the table of page lengths is wrong")]
    Lengths(#[source] multifd_wire::Fault),
    /// The head of a `canned` payload is wrong.
    #[error("the head of the payload is wrong")]
    Canned(#[source] crate::paged::canned::CannedFault),
    /// The compressed form of a page is invalid.
    #[error("page {page} of the packet cannot be decompressed")]
    Page {
        /// The index among the packet's normal pages, from 0.
        page: usize,
        /// The problem.
        source: page_deflate::InflateError,
    },
    /// The payload ended before the last page was full.
    #[error("the payload holds {found} bytes of pages instead of {expected}")]
    TooShort {
        /// Bytes of pages decoded.
        found: usize,
        /// Bytes of pages expected.
        expected: usize,
    },
    /// Data remains after the last page is full.
    #[error("the payload holds more than the {expected} bytes of its pages")]
    TooLong {
        /// Bytes of pages expected.
        expected: usize,
    },
    /// A stream that must last for the whole migration ended.
    #[error("the {method} stream ends after {found} bytes of pages, but must never end")]
    StreamEnd {
        /// The decoder's method.
        method: Method,
        /// Bytes of pages of this packet before the end.
        found: usize,
    },
    /// A zstd frame did not end at the end of a page, or had no page. A skippable frame has no
    /// page.
    #[cfg(feature = "zstd")]
    #[error("a zstd frame without a page, or with an end inside one, after {found} bytes of pages")]
    FrameEnd {
        /// Bytes of pages of this packet before the end.
        found: usize,
    },
    /// A zstd frame requires a larger window than any of QEMU's levels.
    #[cfg(feature = "zstd")]
    #[error("a zstd frame asks for a window of {found} bytes, but at most {allowed} are taken")]
    Window {
        /// The required window in bytes.
        found: u64,
        /// `window_memory::MAX_WINDOW_BYTES`.
        allowed: u64,
    },
    /// The windows of the process's other channels leave no room for this zstd frame's window.
    #[cfg(feature = "zstd")]
    #[error(
        "a zstd frame asks for a window of {window} bytes, \
         but {left} are left of the {allowed} for all channels of this process"
    )]
    WindowMemory {
        /// The required window in bytes. It takes slightly more memory.
        window: u64,
        /// Bytes left by all other decoders.
        left: u64,
        /// `window_memory::limit`.
        allowed: u64,
    },
    /// All pages are complete, and some data remains that belongs to no page.
    #[error("{found} extra bytes after the payload's last page")]
    Trailing {
        /// Bytes left.
        found: usize,
    },
    /// The compression library refused.
    #[error("{method} decompression failed after {found} bytes of pages")]
    Library {
        /// The decoder's method.
        method: Method,
        /// Bytes of pages of this packet decoded before, as far as the library reports.
        found: usize,
        /// The library's message.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// The requested codec is not available.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unsupported(#[from] pub(crate) UnsupportedFault);

impl Unsupported {
    /// Whether this crate never has a codec for the method, whatever the build and the machine.
    #[must_use]
    pub fn is_method(&self) -> bool {
        matches!(self.0, UnsupportedFault::Method { .. })
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UnsupportedFault {
    /// This crate does not implement the method.
    #[error("no codec for the {method} method")]
    Method {
        /// The requested method.
        method: Method,
    },
    /// This crate implements the method, but was built without its feature.
    #[cfg(not(feature = "zstd"))]
    #[error(
        "this build cannot use the {method} method: it was made without the feature `{feature}`"
    )]
    NotBuilt {
        /// The requested method.
        method: Method,
        /// The Cargo feature of this crate.
        feature: &'static str,
    },
    /// This crate implements the method, but not with the requested accelerator.
    #[error("accelerator {accel} is not available for the {method} method: {reason}")]
    Accel {
        /// The requested method.
        method: Method,
        /// The requested accelerator.
        accel: Accel,
        /// Why it is not available.
        reason: Arc<str>,
    },
    /// The compression library could not be set up.
    #[cfg(any(feature = "qpl", feature = "zstd"))]
    #[error("the {method} library refuses its settings")]
    Library {
        /// The requested method.
        method: Method,
        /// The library's message.
        source: Box<dyn Error + Send + Sync>,
    },
}
