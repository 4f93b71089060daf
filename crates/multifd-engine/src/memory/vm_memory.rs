//! The memory of VMMs that are built on the `vm-memory` crate.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use multifd_wire::BlockName;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, HostRange, MemoryBlock};

/// `vm-memory`'s guest memory. Each region is a RAM block, named by its guest address: `ram@0x0`,
/// `ram@0x100000000`.
#[derive(Clone, Debug)]
pub struct VmMemory<'a> {
    blocks: Vec<MemoryBlock<'a>>,
}

/// A region that cannot be a RAM block. It is never left out: both ends would do so alike, and the
/// guest would lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct VmMemoryError(#[from] RegionFault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum RegionFault {
    /// It has no address in this process.
    #[error("the memory region at {guest_address:#x} is not mapped in this process")]
    NotMapped {
        /// Its guest address.
        guest_address: u64,
    },
    /// It does not begin at a word.
    #[error(
        "the memory region at {guest_address:#x} is mapped at {host_address:#x}, which is not a multiple of 8"
    )]
    Unaligned {
        /// Its guest address.
        guest_address: u64,
        /// Its address in this process.
        host_address: usize,
    },
    /// It is mapped in part.
    #[error(
        "{mapped_bytes:#x} of the {len_bytes:#x} bytes of the memory region at {guest_address:#x} are mapped"
    )]
    Length {
        /// Its guest address.
        guest_address: u64,
        /// The bytes that are mapped in one piece.
        mapped_bytes: usize,
        /// The region's length.
        len_bytes: u64,
    },
    /// Its address makes no block name.
    #[error("the memory region at {guest_address:#x} has no name that a RAM block can have")]
    Name {
        /// Its guest address.
        guest_address: u64,
    },
}

impl<'a> VmMemory<'a> {
    /// The memory of a guest that has run, or was filled with something.
    ///
    /// # Errors
    ///
    /// When a region cannot be a RAM block, which names it.
    pub fn new<M: GuestMemoryBackend>(memory: &'a M) -> Result<Self, VmMemoryError> {
        Self::of(memory, false)
    }

    /// Memory that has not been written to since it was made: see [`MemoryBlock::is_fresh`].
    ///
    /// # Errors
    ///
    /// When a region cannot be a RAM block, which names it.
    pub fn fresh<M: GuestMemoryBackend>(memory: &'a M) -> Result<Self, VmMemoryError> {
        Self::of(memory, true)
    }

    fn of<M: GuestMemoryBackend>(memory: &'a M, is_fresh: bool) -> Result<Self, VmMemoryError> {
        let blocks = memory.iter().map(|region| block(region, is_fresh));
        Ok(Self {
            blocks: blocks.collect::<Result<_, _>>()?,
        })
    }
}

impl GuestMemory for VmMemory<'_> {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        self.blocks.clone()
    }
}

fn block<R: GuestMemoryRegion>(region: &R, is_fresh: bool) -> Result<MemoryBlock<'_>, RegionFault> {
    let guest_address = region.start_addr().0;
    let not_mapped = RegionFault::NotMapped { guest_address };
    let slice = region.as_volatile_slice().map_err(|_| not_mapped)?;
    let start = NonNull::new(slice.ptr_guard_mut().as_ptr()).ok_or(not_mapped)?;
    if !start.cast::<u64>().is_aligned() {
        return Err(RegionFault::Unaligned {
            guest_address,
            host_address: start.as_ptr().addr(),
        });
    }
    let (mapped_bytes, len_bytes) = (slice.len(), region.len());
    if mapped_bytes as u64 != len_bytes {
        return Err(RegionFault::Length {
            guest_address,
            mapped_bytes,
            len_bytes,
        });
    }
    let name = format!("ram@{guest_address:#x}");
    let name = BlockName::new(name.as_bytes()).map_err(|_| RegionFault::Name { guest_address })?;
    Ok(MemoryBlock {
        name,
        // SAFETY: `vm-memory` keeps the region mapped, for reading and writing, as long as the
        // memory is borrowed; its own users access it by volatile accesses only. Aligned, as was
        // just looked at.
        range: unsafe { HostRange::new(start, mapped_bytes) },
        is_fresh,
    })
}
