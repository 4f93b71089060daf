//! Deflate made for pages: a fast encoder, a fast decoder, and a judge of both.

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
pub use header::HeaderError;
pub use inflate::{InflateError, PageInflater};
pub use page::PageDeflater;
pub use shared::{CodeLengths, CodeLengthsError, Histogram, SharedCode, SharedInflater};
pub use stream::StreamInflater;

#[cfg(test)]
#[path = "../../tests/deflate/pages.rs"]
mod test_pages;
