//! What stock QEMUs send and take: the C zlib and libzstd driven as a stock QEMU drives them, against the codecs here.

#[path = "../deflate/zlib.rs"]
#[allow(dead_code, reason = "shared with the deflate tests")]
mod c_zlib;
#[path = "../deflate/pages.rs"]
mod pages;
mod zlib;
mod zstd;

/// Streams in a channel.
const STREAMS: [u8; 7] = [1, 2, 4, 8, 16, 32, 128];
