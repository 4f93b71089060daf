//! Memory that this process maps: of its own, or shared with the process in which the guest runs.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use multifd_wire::BlockName;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{GuestMemory, HostRange, MemoryBlock};

/// One shared mapping of a file, usually a memfd. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len_bytes: usize,
    file: File,
    /// The mapping as an array of atomic words, for concurrent writers.
    memory: PhantomData<[AtomicU64]>,
}

impl Mapping {
    /// Makes a memfd of `len_bytes` zero bytes, sealed against shrinking.
    ///
    /// # Errors
    ///
    /// When the system has not as much address space, or the length is 0.
    pub fn memfd(name: &str, len_bytes: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(name, flags)?);
        file.set_len(len_bytes as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK)?;
        Self::shared(file.into())
    }

    /// All of a file that another process may have mapped too, such as a memfd that it has passed.
    /// Should that process make it shorter, both are killed by the system when they touch what is
    /// gone.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped for reading and writing, or is empty.
    pub fn shared(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let too_long = || io::Error::from(io::ErrorKind::FileTooLarge);
        let len_bytes = usize::try_from(file.metadata()?.len()).map_err(|_| too_long())?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the system's choice, which overlaps nothing that
        // is in use.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                len_bytes,
                access,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            start,
            len_bytes,
            file,
            memory: PhantomData,
        })
    }

    /// The memory.
    #[must_use]
    pub fn range(&self) -> HostRange<'_> {
        // SAFETY: mapped for reading and writing, and aligned to a page, until `self` is dropped,
        // which the lifetime outlasts not; nobody is given a reference to it, only ranges.
        unsafe { HostRange::new(self.start, self.len_bytes) }
    }

    /// Whether the file has no memory at all yet: no process has touched it.
    fn is_fresh(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.blocks() == 0)
    }

    /// The file, for other processes that map it too.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `shared` has mapped; no range outlives `self`. It cannot fail for
        // such a range.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

// SAFETY: an address and a file; the mapping is the process's and not a thread's.
unsafe impl Send for Mapping {}
// SAFETY: a shared mapping gives only ranges, which any thread may use.
unsafe impl Sync for Mapping {}

impl AsFd for Mapping {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A guest whose RAM blocks are [`Mapping`]s.
#[derive(Debug, Default)]
pub struct MappedMemory {
    blocks: Vec<(BlockName, Mapping)>,
}

impl MappedMemory {
    /// The memory made of these blocks.
    #[must_use]
    pub const fn new(blocks: Vec<(BlockName, Mapping)>) -> Self {
        Self { blocks }
    }

    /// The blocks' names and mappings.
    #[must_use]
    pub fn mappings(&self) -> &[(BlockName, Mapping)] {
        &self.blocks
    }
}

impl GuestMemory for MappedMemory {
    fn blocks(&self) -> Vec<MemoryBlock<'_>> {
        self.blocks
            .iter()
            .map(|(name, mapping)| MemoryBlock {
                name: name.clone(),
                range: mapping.range(),
                is_fresh: mapping.is_fresh(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_memfd_is_shared_with_whoever_maps_it() {
        let ours = Mapping::memfd("guest", 8192).unwrap();
        let theirs = Mapping::shared(ours.file().try_clone().unwrap().into()).unwrap();
        assert!(ours.is_fresh() && theirs.is_fresh());
        ours.range().write(4096, &[5; 4096]).unwrap();
        let mut byte = [0];
        theirs.file().read_exact_at(&mut byte, 8191).unwrap();
        assert_eq!(byte, [5]);
        assert!(!ours.is_fresh() && !theirs.is_fresh());
        assert!(theirs.file().set_len(4096).is_err(), "sealed");
        assert_eq!(theirs.range().len_bytes(), 8192);
    }

    #[test]
    fn nothing_cannot_be_mapped() {
        assert!(Mapping::memfd("guest", 0).is_err());
    }
}
