//! Deflate for pages of memory: faster than zlib's first level, about as small, read by every zlib.
//!
//! Pages of memory repeat words of eight bytes, and they are often compressed while a program
//! waits. This crate writes and reads deflate (RFC 1951) for that case. It is pure Rust, and it
//! selects AVX2 or AVX-512 at run time.
//!
//! | to write | to read | use |
//! | --- | --- | --- |
//! | [`Deflater::compress`] | [`StreamInflater`] | one zlib stream without end, in runs of pages that follow each other |
//! | [`Deflater::compress_alone`] | [`RunInflater`] | runs that can be written and read in parallel, and are still one stream for zlib |
//! | [`store`] | any | a run as it is, where speed is all |
//! | [`PageDeflater`] | [`PageInflater`] | a complete deflate stream for each page, which Intel's IAA can read |
//! | [`PageDeflater::body`], [`SharedCode`] | [`SharedInflater`] | pages without a code of their own, under a code that both ends know |
//!
//! # Example
//!
//! ```
//! use page_deflate::{Deflater, Effort, StreamInflater, WindowSize};
//!
//! let pages = b"memory repeats ".repeat(1000);
//! let window = WindowSize::ThirtyTwoKiB;
//!
//! // A zlib stream begins with its header, once.
//! let mut stream = window.zlib_header().to_vec();
//! let mut deflater = Deflater::new(window, Effort::Balanced);
//! deflater.compress(&pages, &mut stream);
//! assert!(stream.len() < 300);
//!
//! let mut arrived = vec![0; pages.len()];
//! StreamInflater::new().inflate(&stream, &mut arrived)?;
//! assert_eq!(arrived, pages);
//! # Ok::<(), page_deflate::InflateError>(())
//! ```
//!
//! Independent pieces are read fastest by the decoders' `inflate_all`, which decodes two at a time.
//!
//! # Sizes
//!
//! Input is cut into units of 4 KiB, and whole pages of 4 KiB are the best input. Any length is
//! allowed. Pages of noise become stored blocks, which add five bytes per 65,535 bytes, and the end
//! of a run takes five bytes. The caller provides a decoder's output buffer; no number in the
//! compressed data sizes any other buffer.
//!
//! | | holds |
//! | --- | --- |
//! | [`Deflater`] of [`Effort::Fast`], `Balanced`, `Dense` | 1.2 MiB, 1.0 MiB, 0.5 MiB |
//! | [`PageDeflater`] | 0.1 MiB |
//! | [`StreamInflater`] | 54 KiB |
//! | [`RunInflater`], [`PageInflater`] | 44 KiB |
//! | [`SharedInflater`] | 22 KiB |
//!
//! All of it is allocated at construction or with the first page.
//!
//! # Errors
//!
//! Encoders do not fail. A decoder succeeds only if the data produces exactly the requested output;
//! otherwise it returns an [`InflateError`] with the reason. After an error the content of the
//! output buffer is meaningless, and a stream cannot go on.
//!
//! # Panics
//!
//! No compressed data makes a decoder panic.

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![deny(unsafe_code)]
#![warn(
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod bits;
mod choice;
mod coder;
mod counts;
mod effort;
mod encode;
mod format;
mod header;
mod huffman;
mod inflate;
mod item;
mod lane;
mod lengths;
mod machine;
mod page;
mod parse;
mod search;
mod several;
mod shared;
mod stream;
mod table;
mod wide;
mod window;

pub use choice::Habit;
pub use effort::{Effort, ParseChoiceError, WindowSize};
pub use encode::{Deflater, store};
pub use format::SYNC_MARK;
pub use header::HeaderError;
pub use inflate::{InflateError, PageInflater};
pub use page::PageDeflater;
pub use shared::{CodeLengths, Histogram, SharedCode, SharedInflater};
pub use stream::{RunInflater, StreamInflater};

/// These types hold tables and buffers, which are useless in a message.
macro_rules! opaque {
    ($($name:ident)*) => {
        $(impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        })*
    };
}

opaque! {
    Deflater Histogram PageDeflater PageInflater RunInflater SharedCode SharedInflater StreamInflater
}

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
