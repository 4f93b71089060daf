//! Guest memory as the engines see it: named RAM blocks that lie somewhere in this process.

mod mapping;
mod range;
#[cfg(feature = "vm-memory")]
mod vm_memory;

use std::sync::Arc;

use multifd_wire::BlockName;

pub use mapping::{MappedMemory, Mapping};
pub use range::{HostRange, OutOfRange};
#[cfg(feature = "vm-memory")]
pub use vm_memory::{VmMemory, VmMemoryError};

/// The memory of a guest.
///
/// An engine asks for the blocks once, at the beginning of a migration. Source and destination must
/// have the same blocks: as many, with the same names and lengths, in any order. They are all of
/// the guest's memory: what is in no block is not moved, and if both ends leave out the same,
/// neither can notice. So memory that cannot be a block is an error where the value is made, and
/// never left out.
pub trait GuestMemory: Sync {
    /// The RAM blocks.
    fn blocks(&self) -> Vec<MemoryBlock<'_>>;
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        (**self).blocks()
    }
}

impl<M: GuestMemory + Send + ?Sized> GuestMemory for Arc<M> {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        (**self).blocks()
    }
}

/// One RAM block.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemoryBlock<'a> {
    /// The name by which the other end knows it.
    pub name: BlockName,
    /// Its address range in this process.
    pub range: HostRange<'a>,
    /// Nothing has been written to it since it was made, so all of it is zero. A destination skips
    /// writing zero pages to such a block, so untouched pages take no memory. A source ignores this
    /// field.
    pub is_fresh: bool,
}

impl<'a> MemoryBlock<'a> {
    /// A block that may have been written to: not [`is_fresh`](Self::is_fresh).
    pub fn new(name: BlockName, range: HostRange<'a>) -> Self {
        Self {
            name,
            range,
            is_fresh: false,
        }
    }
}
