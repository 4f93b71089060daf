//! Compression of byte streams: one zstd frame for each frame of the trunk.

#[cfg(feature = "zstd")]
pub(crate) use built::{Compressor, Decompressor};
#[cfg(not(feature = "zstd"))]
pub(crate) use missing::{Compressor, Decompressor};

use super::frame::MAX_BODY_LEN;

/// The largest window, as a power of two: the least one that holds the longest content.
pub(super) const MAX_WINDOW_LOG: u32 = 21;
const _: () = assert!(1 << MAX_WINDOW_LOG >= MAX_BODY_LEN);
const _: () = assert!(1 << (MAX_WINDOW_LOG - 1) < MAX_BODY_LEN);

/// A fault of a compressed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "zstd"),
    expect(dead_code, reason = "nothing is decompressed without zstd")
)]
pub(super) enum Wrong {
    Window,
    Content,
}

#[cfg(feature = "zstd")]
mod built {
    use std::fmt;
    use std::io::Cursor;

    use zstd_safe::{CCtx, CParameter, DCtx};

    use super::super::{NoCompression, WriterMisuse};
    use super::{MAX_WINDOW_LOG, Wrong};

    /// The fastest of libzstd's own levels: the trunk compresses beside a running guest.
    const LEVEL: i32 = 1;

    pub(crate) struct Compressor(CCtx<'static>);

    impl Compressor {
        pub(crate) fn new() -> Result<Self, NoCompression> {
            let mut context = CCtx::try_create().ok_or(NoCompression::NoMemory)?;
            context
                .set_parameter(CParameter::CompressionLevel(LEVEL))
                .map_err(|_| NoCompression::NoMemory)?;
            Ok(Self(context))
        }

        /// Appends one zstd frame with all of `bytes`.
        ///
        /// libzstd reads and writes in place here. So its context has no buffers, and the frame
        /// states the length of its content, which is its window too.
        pub(in super::super) fn compress(
            &mut self,
            bytes: &[u8],
            out: &mut Vec<u8>,
        ) -> Result<(), WriterMisuse> {
            out.reserve(zstd_safe::compress_bound(bytes.len()));
            let filled = out.len() as u64;
            let mut output = Cursor::new(out);
            output.set_position(filled);
            match self.0.compress2(&mut output, bytes) {
                Ok(_) => Ok(()),
                Err(_) => Err(WriterMisuse::Compressor),
            }
        }
    }

    impl fmt::Debug for Compressor {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Compressor")
        }
    }

    pub(crate) struct Decompressor(DCtx<'static>);

    impl Decompressor {
        pub(crate) fn new() -> Result<Self, NoCompression> {
            let context = DCtx::try_create().ok_or(NoCompression::NoMemory)?;
            Ok(Self(context))
        }

        /// Decompresses the one zstd frame that `frame` must be. Its content must fill `raw`.
        pub(in super::super) fn decompress(
            &mut self,
            frame: &[u8],
            raw: &mut [u8],
        ) -> Result<(), Wrong> {
            match window_bytes(frame) {
                Some(window) if window <= 1 << MAX_WINDOW_LOG => {}
                _ => return Err(Wrong::Window),
            }
            if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
                return Err(Wrong::Content);
            }
            // It decompresses in place, so it has no window of its own.
            match self.0.decompress(raw, frame) {
                Ok(len) if len == raw.len() => Ok(()),
                _ => Err(Wrong::Content),
            }
        }
    }

    impl fmt::Debug for Decompressor {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Decompressor")
        }
    }

    /// The window that a frame's header asks for, as RFC 8878, sections 3.1.1.1.1 and 3.1.1.1.2,
    /// has it.
    fn window_bytes(frame: &[u8]) -> Option<u64> {
        const MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
        const SINGLE_SEGMENT: u8 = 1 << 5;
        let (&[m0, m1, m2, m3, descriptor], rest) = frame.split_first_chunk()?;
        if [m0, m1, m2, m3] != MAGIC {
            return None;
        }
        if descriptor & SINGLE_SEGMENT != 0 {
            // All of the content.
            return zstd_safe::get_frame_content_size(frame).ok()?;
        }
        let window = *rest.first()?;
        let base = 1_u64 << (10 + u32::from(window >> 3));
        Some(base.saturating_add((base >> 3).saturating_mul(u64::from(window & 7))))
    }
}

#[cfg(not(feature = "zstd"))]
mod missing {
    use super::super::{NoCompression, WriterMisuse};
    use super::Wrong;

    /// There is none.
    #[derive(Debug)]
    pub(crate) enum Compressor {}

    impl Compressor {
        pub(crate) fn new() -> Result<Self, NoCompression> {
            Err(NoCompression::NotBuilt)
        }

        pub(in super::super) fn compress(
            &mut self,
            _: &[u8],
            _: &mut Vec<u8>,
        ) -> Result<(), WriterMisuse> {
            match *self {}
        }
    }

    /// There is none.
    #[derive(Debug)]
    pub(crate) enum Decompressor {}

    impl Decompressor {
        pub(crate) fn new() -> Result<Self, NoCompression> {
            Err(NoCompression::NotBuilt)
        }

        pub(in super::super) fn decompress(&mut self, _: &[u8], _: &mut [u8]) -> Result<(), Wrong> {
            match *self {}
        }
    }
}
