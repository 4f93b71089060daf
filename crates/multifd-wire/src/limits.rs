//! What a peer's numbers are compared with before they are used.

use crate::page_size::PageSize;

/// Upper bounds for what a peer may state. A number beyond its limit is a [`Fault`](crate::Fault);
/// none of them is ever used to size a buffer before it was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Longest payload of a packet compressed with `zlib`, `zstd`, `qatzip` or a method this crate
    /// does not know. The other methods need no limit: their payload is bounded by the number of
    /// pages.
    pub compressed_payload_bytes: u32,
    /// Longest payload of a device-state packet. It is handed on in pieces, never stored here.
    pub device_state_bytes: u32,
    /// Largest RAM block: every page must end at or before it.
    pub block_bytes: u64,
    /// Most RAM blocks in the main stream's list.
    pub blocks: usize,
    /// The guest's page size, when it is known beforehand. Otherwise a channel tells it by itself.
    pub page_size: Option<PageSize>,
}

impl Limits {
    /// With this limit of [`compressed_payload_bytes`](Self::compressed_payload_bytes).
    #[must_use]
    pub const fn with_compressed_payload_bytes(mut self, bytes: u32) -> Self {
        self.compressed_payload_bytes = bytes;
        self
    }

    /// With this limit of [`device_state_bytes`](Self::device_state_bytes).
    #[must_use]
    pub const fn with_device_state_bytes(mut self, bytes: u32) -> Self {
        self.device_state_bytes = bytes;
        self
    }

    /// With this limit of [`block_bytes`](Self::block_bytes).
    #[must_use]
    pub const fn with_block_bytes(mut self, bytes: u64) -> Self {
        self.block_bytes = bytes;
        self
    }

    /// With this limit of [`blocks`](Self::blocks).
    #[must_use]
    pub const fn with_blocks(mut self, count: usize) -> Self {
        self.blocks = count;
        self
    }

    /// With the guest's page size.
    #[must_use]
    pub const fn with_page_size(mut self, page_size: PageSize) -> Self {
        self.page_size = Some(page_size);
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compressed_payload_bytes: COMPRESSED_PAYLOAD_BYTES,
            device_state_bytes: u32::MAX,
            block_bytes: BLOCK_BYTES,
            blocks: BLOCKS,
            page_size: None,
        }
    }
}

/// The size of QEMU's own buffer for a compressed packet (seen in 10.0). A longer payload overruns
/// it there, and no honest sender comes near: 512 KiB of pages grow by less than 1 % when they do
/// not compress.
pub(crate) const COMPRESSED_PAYLOAD_BYTES: u32 = 1 << 20;

/// 4 PiB, the physical address space of the widest x86 and Arm machines.
const BLOCK_BYTES: u64 = 1 << 52;

/// Machines have a handful of blocks, and one more for each memory module and option ROM.
const BLOCKS: usize = 4096;
