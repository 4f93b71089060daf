//! Deflate made for pages: a fast encoder, a fast decoder, and a judge of both.
//!
//! - [`Deflater`] writes the endless stream of a channel, packet by packet, and [`StreamInflater`] reads it, as it reads those of
//!   stock senders.
//! - [`PageDeflater`] makes a stream of each page, and [`PageInflater`] reads it.
//! - A [`Histogram`] of some pages gives [`CodeLengths`] that both ends can agree on. [`SharedCode`] and [`SharedInflater`] then do
//!   without a description of the code in each page.
//! - [`oracle`] says whether an IAA could read a piece.
//!
//! ```
//! use multifd_codec::deflate::{Deflater, Effort, StreamInflater, WindowSize};
//!
//! let pages = b"memory repeats ".repeat(1000);
//! let window = WindowSize::ThirtyTwoKiB;
//! let mut payload = window.zlib_header().to_vec();
//! Deflater::new(window, Effort::Balanced).compress(&pages, &mut payload);
//! assert!(payload.len() < 300);
//!
//! let mut arrived = vec![0; pages.len()];
//! StreamInflater::new().inflate(&payload, &mut arrived)?;
//! assert_eq!(arrived, pages);
//! # Ok::<(), multifd_codec::deflate::InflateError>(())
//! ```

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
mod lengths;
mod machine;
pub mod oracle;
mod page;
mod parse;
mod search;
mod shared;
mod stream;
mod table;
mod wide;
mod window;

pub(crate) use choice::Habit;
pub use effort::{Effort, WindowSize};
pub use encode::Deflater;
pub(crate) use format::SYNC_MARK;
pub use header::HeaderError;
pub use inflate::{InflateError, PageInflater};
pub use page::PageDeflater;
pub use shared::{CodeLengths, CodeLengthsError, Histogram, SharedCode, SharedInflater};
pub use stream::StreamInflater;

#[cfg(test)]
#[path = "../../tests/deflate/pages.rs"]
mod test_pages;
