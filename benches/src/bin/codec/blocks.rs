//! Codecs without streams, which compress every page independently.

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use multifd_benches::PAGE_SIZE;

use crate::Result;
use crate::contender::Peer;

/// libdeflate at level 1: zlib around each page, a length in front of it.
pub struct LibDeflate {
    compressor: Compressor,
    decompressor: Decompressor,
}

impl LibDeflate {
    pub fn new() -> Self {
        Self {
            compressor: Compressor::new(CompressionLvl::new(1).unwrap_or_default()),
            decompressor: Decompressor::new(),
        }
    }
}

impl Peer for LibDeflate {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        let bound = self.compressor.deflate_compress_bound(PAGE_SIZE.bytes());
        by_page(pages, payload, bound, |page, room| {
            Ok(self.compressor.deflate_compress(page, room)?)
        })
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        to_pages(payload, pages, |piece, page| {
            Ok(self.decompressor.deflate_decompress(piece, page)?)
        })
    }
}

/// lz4's C library.
pub struct Lz4;

impl Peer for Lz4 {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        let bound = lz4::block::compress_bound(PAGE_SIZE.bytes())?;
        by_page(pages, payload, bound, |page, room| {
            Ok(lz4::block::compress_to_buffer(page, None, false, room)?)
        })
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        let len = i32::try_from(PAGE_SIZE.bytes())?;
        to_pages(payload, pages, |piece, page| {
            Ok(lz4::block::decompress_to_buffer(piece, Some(len), page)?)
        })
    }
}

/// The length before every page: 16 bits suffice for a page that has grown slightly.
const LENGTH_BYTES: usize = 2;

fn by_page(
    pages: &[u8],
    payload: &mut Vec<u8>,
    bound: usize,
    mut compress: impl FnMut(&[u8], &mut [u8]) -> Result<usize>,
) -> Result<()> {
    let count = pages.len() / PAGE_SIZE.bytes();
    payload.resize(count * (LENGTH_BYTES + bound), 0);
    let mut filled = 0;
    for page in pages.chunks(PAGE_SIZE.bytes()) {
        let (length, room) = payload[filled..].split_at_mut(LENGTH_BYTES);
        let len = compress(page, room)?;
        length.copy_from_slice(&u16::try_from(len)?.to_le_bytes());
        filled += LENGTH_BYTES + len;
    }
    payload.truncate(filled);
    Ok(())
}

fn to_pages(
    mut payload: &[u8],
    pages: &mut [u8],
    mut decompress: impl FnMut(&[u8], &mut [u8]) -> Result<usize>,
) -> Result<()> {
    for page in pages.chunks_mut(PAGE_SIZE.bytes()) {
        let (length, rest) = payload.split_first_chunk().ok_or("a length is missing")?;
        let (piece, rest) = rest
            .split_at_checked(u16::from_le_bytes(*length).into())
            .ok_or("a page is missing")?;
        if decompress(piece, page)? != page.len() {
            return Err("a page is short".into());
        }
        payload = rest;
    }
    Ok(())
}
