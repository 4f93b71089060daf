//! Stock QEMUs' streams and receivers: the C zlib and libzstd, driven as by a stock QEMU, against
//! the codecs here.

mod steps;
mod zlib;
mod zstd;

/// Numbers of streams in a channel.
const STREAMS: [u8; 7] = [1, 2, 4, 8, 16, 32, 128];
