//! Writes and reads payloads like a stock QEMU, with zlib and libzstd.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use multifd_wire::Method;
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, DCtx, InBuffer, OutBuffer};

/// One channel's writer: one stream for the whole migration.
pub enum Encoder {
    /// Pages as they are.
    None,
    /// A zlib stream.
    Zlib(Box<Compress>),
    /// A zstd frame.
    Zstd(CCtx<'static>),
}

impl Encoder {
    /// A writer at the beginning of its channel. For other methods it writes pages as they are.
    #[must_use]
    pub fn new(method: Method) -> Self {
        match method {
            Method::Zlib => Self::Zlib(Box::new(Compress::new(Compression::new(1), true))),
            Method::Zstd => {
                let mut stream = CCtx::create();
                stream.init(1).expect("level 1 exists");
                Self::Zstd(stream)
            }
            _ => Self::None,
        }
    }

    /// Appends the payload of these pages.
    pub fn encode(&mut self, pages: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::None => out.extend_from_slice(pages),
            Self::Zlib(stream) => {
                out.reserve(pages.len() + pages.len() / 100 + 1024);
                let status = stream.compress_vec(pages, out, FlushCompress::Sync);
                assert!(
                    status.is_ok() && out.len() < out.capacity(),
                    "room is enough"
                );
            }
            Self::Zstd(stream) => {
                out.reserve(zstd_safe::compress_bound(pages.len()));
                let mut input = InBuffer::around(pages);
                let filled = out.len();
                let mut output = OutBuffer::around_pos(out, filled);
                let flush = ZSTD_EndDirective::ZSTD_e_flush;
                let left = stream.compress_stream2(&mut output, &mut input, flush);
                assert_eq!(left, Ok(0), "room is enough");
            }
        }
    }
}

/// One channel's reader.
pub enum Decoder {
    /// Pages as they are.
    None,
    /// A zlib stream.
    Zlib(Box<Decompress>),
    /// Zstd frames.
    Zstd(DCtx<'static>),
}

impl Decoder {
    /// A reader at the beginning of its channel.
    #[must_use]
    pub fn new(method: Method) -> Self {
        match method {
            Method::Zlib => Self::Zlib(Box::new(Decompress::new(true))),
            Method::Zstd => {
                let mut stream = DCtx::create();
                stream.init().expect("a new reader");
                Self::Zstd(stream)
            }
            _ => Self::None,
        }
    }

    /// Returns `len` bytes of pages.
    pub fn decode(&mut self, payload: &[u8], len: usize) -> Result<Vec<u8>, String> {
        let mut pages = Vec::with_capacity(len + 1);
        match self {
            Self::None => pages.extend_from_slice(payload),
            Self::Zlib(stream) => {
                let status = stream.decompress_vec(payload, &mut pages, FlushDecompress::Sync);
                if !matches!(status, Ok(Status::Ok | Status::BufError)) {
                    return Err(format!("a zlib payload: {status:?}"));
                }
            }
            Self::Zstd(stream) => {
                let mut input = InBuffer::around(payload);
                while pages.len() < len {
                    let (filled, read) = (pages.len(), input.pos());
                    let mut output = OutBuffer::around_pos(&mut pages, filled);
                    stream
                        .decompress_stream(&mut output, &mut input)
                        .map_err(|code| {
                            format!("a zstd payload: {}", zstd_safe::get_error_name(code))
                        })?;
                    if pages.len() == filled && input.pos() == read {
                        break;
                    }
                }
            }
        }
        if pages.len() == len {
            Ok(pages)
        } else {
            Err(format!(
                "a payload of {} bytes of pages, not {len}",
                pages.len()
            ))
        }
    }
}
