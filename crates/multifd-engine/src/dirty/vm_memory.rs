//! The dirty log that `vm-memory` keeps of what a VMM itself writes to guest memory.

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryBackend, GuestRegionMmap};

use super::{DirtyBitmap, DirtyLog, DirtyLogError, LogFault};

/// `vm-memory`'s [`AtomicBitmap`], which knows all writes made through that crate: of a VMM's
/// devices, and of a guest that is emulated.
///
/// It does not know what a virtual CPU writes on its own. A VMM with KVM adds what the hypervisor's
/// log says in a [`DirtyLog`] of its own around this one, or tracks its mappings with a
/// [`PagemapLog`](super::PagemapLog), which sees both.
#[derive(Debug)]
pub struct AtomicBitmapLog<'a, M> {
    memory: &'a M,
}

impl<'a, M: GuestMemoryBackend<R = GuestRegionMmap<AtomicBitmap>>> AtomicBitmapLog<'a, M> {
    /// The log of this memory.
    pub const fn new(memory: &'a M) -> Self {
        Self { memory }
    }
}

impl<M: GuestMemoryBackend<R = GuestRegionMmap<AtomicBitmap>> + Sync> DirtyLog
    for AtomicBitmapLog<'_, M>
{
    fn start(&mut self) -> Result<(), DirtyLogError> {
        for region in self.memory.iter() {
            region.bitmap().reset();
        }
        Ok(())
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        let found = self.memory.num_regions();
        if found != dirty.len() {
            let expected = dirty.len();
            return Err(LogFault::Blocks { found, expected }.into());
        }
        for (region, dirty) in self.memory.iter().zip(dirty) {
            let bitmap = region.bitmap();
            // Each bit is a page of the host, whose size the bitmap keeps to itself.
            let page_bytes = (bitmap.byte_size().checked_div(bitmap.len()).unwrap_or(0) as u64)
                .next_power_of_two();
            for (index, mut word) in (0_u64..).zip(bitmap.get_and_reset()) {
                while word != 0 {
                    let page = index * u64::from(u64::BITS) + u64::from(word.trailing_zeros());
                    dirty.insert_bytes(page * page_bytes..(page + 1) * page_bytes);
                    word &= word - 1;
                }
            }
        }
        Ok(())
    }

    /// The VMM's bitmap is always kept.
    fn stop(&mut self) {}
}
