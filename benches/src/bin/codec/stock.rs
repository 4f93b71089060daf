//! A stock QEMU's codecs: the C libraries, driven like QEMU drives them.

use multifd_benches::PAGE_SIZE;
use multifd_codec::{Decoder, PageBuffer};
use testkit::zlib;
use zstd_safe::zstd_sys::ZSTD_EndDirective::{ZSTD_e_continue, ZSTD_e_flush};
use zstd_safe::{CCtx, CParameter, DCtx, InBuffer, OutBuffer};

use crate::Result;
use crate::contender::Peer;
use crate::pages::{Corpus, packets};

/// zlib: a stream for the channel, a call for each page, a sync flush with the last page of a
/// packet.
pub struct Zlib {
    deflate: zlib::Deflate,
    inflate: zlib::Inflate,
}

impl Zlib {
    pub fn new(level: i32) -> Self {
        Self {
            deflate: zlib::Deflate::new(level, 15),
            inflate: zlib::Inflate::new(15),
        }
    }
}

impl Peer for Zlib {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        payload.clear();
        self.deflate.packet(pages, PAGE_SIZE.bytes(), payload);
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        if self.inflate.packet(payload, PAGE_SIZE.bytes(), pages) {
            Ok(())
        } else {
            Err("zlib does not read its own stream".into())
        }
    }
}

/// A stock sender, and a decoder of this project.
pub struct ZlibReadBy {
    stock: Zlib,
    decoder: Box<dyn Decoder>,
}

impl ZlibReadBy {
    pub fn new(decoder: Box<dyn Decoder>) -> Self {
        Self {
            stock: Zlib::new(1),
            decoder,
        }
    }
}

impl Peer for ZlibReadBy {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        self.stock.encode(pages, payload)
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        Ok(self.decoder.decode(payload, PAGE_SIZE, pages)?)
    }

    fn decode_owned(&mut self, payload: &mut Vec<u8>, pages: &mut PageBuffer) -> Result<()> {
        Ok(self.decoder.decode_owned(payload, PAGE_SIZE, pages)?)
    }
}

/// Returns whether a stock receiver accepts these payloads like those of a stock sender.
pub fn zlib_reads(payloads: &[Vec<u8>], corpus: &Corpus) -> bool {
    let mut inflate = zlib::Inflate::new(15);
    let mut arrived = Vec::new();
    packets(corpus.all())
        .zip(payloads)
        .all(|(packet, payload)| {
            arrived.resize(packet.len(), 0);
            inflate.packet(payload, PAGE_SIZE.bytes(), &mut arrived) && arrived == packet
        })
}

/// zstd: a frame for the channel, a call for each page, a flush with the last page of a packet.
pub struct Zstd {
    compress: CCtx<'static>,
    decompress: DCtx<'static>,
}

impl Zstd {
    pub fn new(level: i32) -> Self {
        let mut compress = CCtx::create();
        let set = compress.set_parameter(CParameter::CompressionLevel(level));
        debug_assert!(set.is_ok());
        Self {
            compress,
            decompress: DCtx::create(),
        }
    }
}

impl Peer for Zstd {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        payload.clear();
        payload.reserve(zstd_safe::compress_bound(pages.len()));
        let count = pages.len() / PAGE_SIZE.bytes();
        for (index, page) in pages.chunks(PAGE_SIZE.bytes()).enumerate() {
            let is_last = index + 1 == count;
            let directive = if is_last {
                ZSTD_e_flush
            } else {
                ZSTD_e_continue
            };
            let mut input = InBuffer::around(page);
            loop {
                let filled = payload.len();
                let mut output = OutBuffer::around_pos(payload, filled);
                let pending = self
                    .compress
                    .compress_stream2(&mut output, &mut input, directive)
                    .map_err(zstd_safe::get_error_name)?;
                if input.pos() == page.len() && (!is_last || pending == 0) {
                    break;
                }
                payload.reserve(PAGE_SIZE.bytes());
            }
        }
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        let mut input = InBuffer::around(payload);
        for page in pages.chunks_mut(PAGE_SIZE.bytes()) {
            let len = page.len();
            let mut output = OutBuffer::around(page);
            while output.pos() < len {
                let before = (input.pos(), output.pos());
                self.decompress
                    .decompress_stream(&mut output, &mut input)
                    .map_err(zstd_safe::get_error_name)?;
                if (input.pos(), output.pos()) == before {
                    return Err("zstd does not read its own stream".into());
                }
            }
        }
        Ok(())
    }
}
