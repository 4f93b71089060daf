//! The memory of VMMs that are built on the `vm-memory` crate.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use multifd_wire::BlockName;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, HostRange, MemoryBlock};

/// `vm-memory`'s guest memory. Each region is a RAM block, named by its guest address: `ram@0x0`,
/// `ram@0x100000000`.
///
/// Regions that are not mapped in this process, or are not aligned to 8 bytes there, are left out: the other end
/// then refuses the guest for the lack of a block.
#[derive(Debug)]
pub struct VmMemory<'a, M> {
    memory: &'a M,
    is_fresh: bool,
}

impl<'a, M: GuestMemoryBackend + Sync> VmMemory<'a, M> {
    /// The memory of a guest that has run, or was filled with something.
    pub const fn new(memory: &'a M) -> Self {
        Self {
            memory,
            is_fresh: false,
        }
    }

    /// Memory which nobody has written to since it was made: see [`MemoryBlock::is_fresh`].
    pub const fn fresh(memory: &'a M) -> Self {
        Self {
            memory,
            is_fresh: true,
        }
    }
}

impl<M: GuestMemoryBackend + Sync> GuestMemory for VmMemory<'_, M> {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        let block = |region: &M::R| {
            let slice = region.as_volatile_slice().ok()?;
            let start = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
            if !start.cast::<u64>().is_aligned() {
                return None;
            }
            // SAFETY: `vm-memory` keeps the region mapped, for reading and writing, as long as the memory is borrowed;
            // its own users access it by volatile accesses only. Aligned, as was just looked at.
            let range = unsafe { HostRange::new(start, slice.len()) };
            let name = format!("ram@{:#x}", region.start_addr().0);
            Some(MemoryBlock {
                name: BlockName::new(name.as_bytes()).ok()?,
                range,
                is_fresh: self.is_fresh,
            })
        };
        self.memory.iter().filter_map(block).collect()
    }
}
