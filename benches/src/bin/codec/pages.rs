//! The pages of a guest.

use multifd_benches::PAGE_SIZE;
use multifd_codec::is_zero;

use crate::Result;

/// Pages back to back, none of them zero: a migration only names zero pages.
pub struct Corpus {
    bytes: Vec<u8>,
    /// The number of zero pages in the file.
    pub zero_pages: usize,
}

impl Corpus {
    pub fn read(source: &str) -> Result<Self> {
        let mut corpus = Self {
            bytes: Vec::new(),
            zero_pages: 0,
        };
        for page in qemu_lab::guest_pages(source)? {
            if is_zero(&page) {
                corpus.zero_pages += 1;
            } else {
                corpus.bytes.extend_from_slice(&page);
            }
        }
        if corpus.bytes.is_empty() {
            return Err(format!("{} has no page but zero pages", source).into());
        }
        Ok(corpus)
    }

    pub fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// Splits the pages into turns of `packets` packets.
    pub fn stretches(&self, packets: usize) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(packets * PACKET_BYTES)
    }

    /// The number of pages.
    pub fn len(&self) -> usize {
        self.bytes.len() / PAGE_SIZE.bytes()
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Splits pages into packets.
pub fn packets(pages: &[u8]) -> impl Iterator<Item = &[u8]> {
    pages.chunks(PACKET_BYTES)
}

const PACKET_BYTES: usize = PAGE_SIZE.bytes() * PAGE_SIZE.pages_per_packet();

/// A few milliseconds for a fast contender: short enough that all have their turn before the
/// machine changes, and long enough that caches filled by others do not matter.
pub const PACKETS_AT_ONCE: usize = 4;
/// With several streams: helpers fall asleep during the others' turns, unlike those of a busy
/// channel.
pub const PACKETS_AT_ONCE_WITH_HELP: usize = 16;
