//! The pages of a guest.

use std::path::Path;

use multifd_benches::PAGE_SIZE;
use multifd_codec::is_zero;

use crate::Result;

/// Pages back to back, none of them zero: a migration only names zero pages.
pub struct Corpus {
    bytes: Vec<u8>,
    /// How many the file had beside them.
    pub zero_pages: usize,
}

impl Corpus {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let bytes = if bytes.starts_with(&ZSTD_MAGIC) {
            zstd_whole(&bytes)?
        } else {
            bytes
        };
        let mut corpus = Self {
            bytes: Vec::new(),
            zero_pages: 0,
        };
        let pages = bytes.chunks_exact(PAGE_SIZE.bytes());
        if !pages.remainder().is_empty() {
            return Err(format!("{} does not end where a page ends", path.display()).into());
        }
        for page in pages {
            if is_zero(page) {
                corpus.zero_pages += 1;
            } else {
                corpus.bytes.extend_from_slice(page);
            }
        }
        if corpus.bytes.is_empty() {
            return Err(format!("{} has no page but zero pages", path.display()).into());
        }
        Ok(corpus)
    }

    /// As they are sent: as many at once as a packet takes.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes
            .chunks(PAGE_SIZE.bytes() * PAGE_SIZE.pages_per_packet())
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / PAGE_SIZE.bytes()
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// All frames of a file.
fn zstd_whole(file: &[u8]) -> Result<Vec<u8>> {
    let mut stream = zstd_safe::DCtx::create();
    let mut input = zstd_safe::InBuffer::around(file);
    let mut bytes = Vec::new();
    loop {
        bytes.reserve(1 << 20);
        let room = bytes.capacity();
        let filled = bytes.len();
        let mut output = zstd_safe::OutBuffer::around_pos(&mut bytes, filled);
        stream
            .decompress_stream(&mut output, &mut input)
            .map_err(zstd_safe::get_error_name)?;
        if input.pos() == file.len() && bytes.len() < room {
            return Ok(bytes);
        }
    }
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
