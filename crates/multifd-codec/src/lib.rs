//! QEMU multifd migration: packets of pages to payloads and back.
#![deny(unsafe_code)]
#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used))]

#[allow(
    clippy::indexing_slicing,
    reason = "its tables are indexed by symbols and positions it has bounded itself"
)]
pub mod deflate;

mod channel;
mod error;
mod none;
mod page;
mod settings;
mod zero;
mod zlib;
mod zstd;

pub use channel::MAX_PAYLOAD_BYTES;
pub use error::{DecodeError, EncodeError, Unsupported};
pub use page::{GuestPage, Pages, PagesError};
pub use settings::{Level, LevelError, Settings, ZlibLevel, ZstdLevel};
pub use zero::is_zero;

use multifd_wire::{Method, PageSize};

use crate::channel::Channel;

/// Turns packets of pages into payloads: the sending direction of one channel.
pub trait Encoder: Send {
    /// The method whose payloads this makes.
    fn method(&self) -> Method;

    /// Makes the payload of the channel's next packet with normal pages.
    ///
    /// `out` is emptied first and then holds the payload, which is never longer than [`MAX_PAYLOAD_BYTES`]. Packets
    /// have to be encoded in the order in which the channel sends them. Without pages the payload is empty and
    /// the stream stays as it is.
    ///
    /// # Errors
    ///
    /// See [`EncodeError`]. After any error the encoder only ever answers [`EncodeError::Poisoned`].
    fn encode(&mut self, pages: &Pages<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// Turns payloads into packets of pages: the receiving direction of one channel.
pub trait Decoder: Send {
    /// The method whose payloads this reads.
    fn method(&self) -> Method;

    /// Reads the payload of the channel's next packet with normal pages into `pages`.
    ///
    /// `pages` has the length of all of the packet's pages; they come to lie back to back in the order of their offsets.
    /// Exactly that much has to come out of the payload.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`]. After any error the decoder only ever answers [`DecodeError::Poisoned`], and what `pages`
    /// holds means nothing.
    fn decode(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<(), DecodeError>;
}

/// An encoder for one channel.
///
/// # Errors
///
/// [`Unsupported`] when nothing here writes the method.
pub fn encoder(method: Method, settings: &Settings) -> Result<Box<dyn Encoder>, Unsupported> {
    Ok(match method {
        Method::None => Box::new(Channel::new(none::Raw)),
        Method::Zlib => Box::new(Channel::new(zlib::Deflate::new(settings.zlib_level))),
        Method::Zstd => Box::new(Channel::new(zstd::Compress::new(settings.zstd_level)?)),
        _ => return Err(Unsupported::Method { method }),
    })
}

/// A decoder for one channel.
///
/// # Errors
///
/// [`Unsupported`] when nothing here reads the method.
pub fn decoder(method: Method) -> Result<Box<dyn Decoder>, Unsupported> {
    Ok(match method {
        Method::None => Box::new(Channel::new(none::Raw)),
        Method::Zlib => Box::new(Channel::new(zlib::Inflate::new())),
        Method::Zstd => Box::new(Channel::new(zstd::Decompress::new()?)),
        _ => return Err(Unsupported::Method { method }),
    })
}
