//! Deflate made for pages: a fast encoder, a fast decoder, and a judge of both.

mod format;
pub mod oracle;
