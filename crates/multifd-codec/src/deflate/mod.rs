//! Deflate made for pages: a fast encoder, a fast decoder, and a judge of both.

mod format;
mod inflate;
pub mod oracle;
mod stream;
mod table;

pub use inflate::{InflateError, PageInflater};
pub use stream::StreamInflater;
