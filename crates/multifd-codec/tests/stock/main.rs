//! What stock QEMUs send and take: the C zlib and libzstd driven as a stock QEMU drives them,
//! against the codecs here.

mod zlib;
mod zstd;

/// Streams in a channel.
const STREAMS: [u8; 7] = [1, 2, 4, 8, 16, 32, 128];
