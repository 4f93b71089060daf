//! Guest memory of `vm-memory` that cannot be moved is an error, at both ends.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;

use multifd_engine::memory::{GuestMemory, VmMemory};
use vm_memory::bitmap::BS;
use vm_memory::region::{GuestMemoryRegion, GuestMemoryRegionBytes};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

/// A region as a VMM may have it.
struct Region {
    guest_address: u64,
    len_bytes: u64,
    /// Where in `memory` it is mapped, and how much of it; nowhere if there is nothing.
    mapped: Option<(usize, usize)>,
    memory: Box<[UnsafeCell<u64>; 1024]>,
}

impl Region {
    fn new(guest_address: u64, mapped: Option<(usize, usize)>) -> Self {
        Self {
            guest_address,
            len_bytes: 4096,
            mapped,
            memory: Box::new([const { UnsafeCell::new(0) }; 1024]),
        }
    }
}

// SAFETY: no test accesses the memory.
unsafe impl Sync for Region {}

impl GuestMemoryRegionBytes for Region {}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len_bytes
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.guest_address)
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_slice(
        &self,
        _: MemoryRegionAddress,
        _: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        let (offset, len) = self
            .mapped
            .ok_or(GuestMemoryError::HostAddressNotAvailable)?;
        let start = self.memory.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: 8 KiB, of which each test maps 4 KiB at most, not far from the beginning. Nobody
        // uses them.
        Ok(unsafe { VolatileSlice::new(start.wrapping_add(offset), len) })
    }
}

struct Memory(Vec<Region>);

impl GuestMemoryBackend for Memory {
    type R = Region;

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }
}

#[test]
fn a_region_that_cannot_be_a_block_is_an_error_at_both_ends() {
    let whole = || Region::new(0, Some((0, 4096)));
    let whole_ones = Memory(vec![whole(), Region::new(1 << 32, Some((8, 4096)))]);
    let memory = VmMemory::new(&whole_ones).unwrap();
    let names: Vec<_> = memory
        .blocks()
        .iter()
        .map(|block| block.name.to_string())
        .collect();
    assert_eq!(names, ["ram@0x0", "ram@0x100000000"]);

    let fault = |region: Region| {
        let memory = Memory(vec![whole(), region]);
        let (source, destination) = (VmMemory::new(&memory), VmMemory::fresh(&memory));
        let fault = source.unwrap_err();
        assert_eq!(fault, destination.unwrap_err());
        fault.to_string()
    };
    let guest_address = 0x2000;
    assert_eq!(
        fault(Region::new(guest_address, None)),
        "the memory region at 0x2000 is not mapped in this process"
    );
    let unaligned = fault(Region::new(guest_address, Some((4, 4096))));
    let rest = unaligned.strip_prefix("the memory region at 0x2000 is mapped at 0x");
    let rest = rest.and_then(|rest| rest.strip_suffix(", which is not a multiple of 8"));
    let host_address = usize::from_str_radix(rest.unwrap(), 16).unwrap();
    assert_eq!(host_address % 8, 4);
    assert_eq!(
        fault(Region::new(guest_address, Some((0, 4088)))),
        "0xff8 of the 0x1000 bytes of the memory region at 0x2000 are mapped"
    );
}

#[test]
fn ordinary_memory_has_all_its_regions() {
    let ranges = [(GuestAddress(0), 8192), (GuestAddress(1 << 32), 4096)];
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let lengths: Vec<_> = (VmMemory::fresh(&memory).unwrap().blocks().iter())
        .map(|block| (block.range.len_bytes(), block.is_fresh))
        .collect();
    assert_eq!(lengths, [(8192, true), (4096, true)]);
}
