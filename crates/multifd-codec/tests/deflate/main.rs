//! The page deflate codec against the C zlib, in both directions, and against its own judge.

mod oracle;
mod pages;
mod zlib;
