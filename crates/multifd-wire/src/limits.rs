//! Limits for a peer's numbers.

use crate::page_size::PageSize;

/// Upper bounds for a peer's numbers. A number beyond its limit is a [`Fault`](crate::Fault); every
/// number is compared before it sizes a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest payload of a packet compressed with `zlib`, `zstd`, `qatzip` or an unknown method.
    /// The other methods need no limit: the number of pages bounds their payload.
    pub compressed_payload_bytes: u32,
    /// Longest payload of a device-state packet. It is returned in pieces, never stored here.
    pub device_state_bytes: u32,
    /// Largest RAM block: every page must end at or before it.
    pub block_bytes: u64,
    /// Most RAM blocks in the main stream's list.
    pub blocks: usize,
    /// The guest's page size, if it is known beforehand. Otherwise each channel reveals it.
    pub page_size: Option<PageSize>,
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

/// The size of QEMU's own buffer for a compressed packet (observed in 10.0). A longer payload
/// overruns it there, and no honest sender comes near: 512 KiB of incompressible pages grow by less
/// than 1 %.
pub(crate) const COMPRESSED_PAYLOAD_BYTES: u32 = 1 << 20;

/// 4 PiB, the physical address space of the widest x86 and Arm machines.
const BLOCK_BYTES: u64 = 1 << 52;

/// Machines have a few blocks, and one more for each memory module and option ROM.
const BLOCKS: usize = 4096;
