//! The pages of a guest.

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

    /// What each contender carries before it is the next one's turn: so many packets.
    pub fn stretches(&self, packets: usize) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(packets * PACKET_BYTES)
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / PAGE_SIZE.bytes()
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// As pages are sent: as many at once as a packet takes.
pub fn packets(pages: &[u8]) -> impl Iterator<Item = &[u8]> {
    pages.chunks(PACKET_BYTES)
}

const PACKET_BYTES: usize = PAGE_SIZE.bytes() * PAGE_SIZE.pages_per_packet();

/// A few milliseconds for a fast contender: few enough that all have their turn before the machine
/// has changed, and enough that what the others have left in its caches does not matter.
pub const PACKETS_AT_ONCE: usize = 4;
/// With several streams, whose helpers fall asleep while it is the others' turn. Those of a busy
/// channel do not.
pub const PACKETS_AT_ONCE_WITH_HELP: usize = 16;
