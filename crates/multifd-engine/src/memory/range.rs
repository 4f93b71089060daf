//! A stretch of guest memory: an address, a length, and the promise that it can be used.
//!
//! The guest writes its memory while it is read here, and at a destination a peer decides which
//! channel writes which page. So there is never a reference to it, neither shared nor exclusive:
//! every access is an atomic load or store of one word.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use multifd_codec::GuestPage;
use multifd_wire::PageSize;

/// Memory of a guest, mapped in this process.
#[derive(Clone, Copy, Debug)]
pub struct HostRange<'a> {
    start: NonNull<u8>,
    len_bytes: usize,
    memory: PhantomData<&'a [AtomicU64]>,
}

/// Something is not in the memory it should be in, or not at a word's boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len_bytes} bytes at {offset:#x} are not in the {range_bytes:#x} bytes of the block")]
#[non_exhaustive]
pub struct OutOfRange {
    /// Its start in bytes.
    pub(crate) offset: u64,
    /// Its length in bytes.
    pub(crate) len_bytes: usize,
    /// The memory's length in bytes.
    pub(crate) range_bytes: usize,
}

impl<'a> HostRange<'a> {
    /// The `len_bytes` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// As long as `'a` lasts
    ///
    /// - the bytes are mapped, and may be read and, at a destination, written from any thread,
    /// - `start` is aligned to 8 bytes,
    /// - there is neither a `&` nor a `&mut` to any of the bytes but to atomics, and nobody in this
    ///   program accesses them but atomically (or, as is usual for guest memory, volatilely). The
    ///   guest itself, devices and other processes may do as they like.
    #[must_use]
    pub const unsafe fn new(start: NonNull<u8>, len_bytes: usize) -> Self {
        Self {
            start,
            len_bytes,
            memory: PhantomData,
        }
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The addresses in this process.
    #[must_use]
    pub fn addresses(&self) -> std::ops::Range<u64> {
        let start = self.start.as_ptr().addr() as u64;
        start..start.saturating_add(self.len_bytes as u64)
    }

    /// A handle to the page at `offset`, for an encoder.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when it is not all inside.
    pub fn page(&self, offset: u64, page_size: PageSize) -> Result<GuestPage<'a>, OutOfRange> {
        let start = self.word(offset, page_size.bytes())?;
        // SAFETY: `word` has checked that the page lies inside the range and is aligned; all else
        // was promised to `new` for `'a`.
        Ok(unsafe { GuestPage::new(start.cast(), page_size) })
    }

    /// Reads what is at `offset` into `bytes`; both whole words.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when they are not all inside; nothing is read then.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let start = self.word(offset, bytes.len())?;
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: `word` has checked that as many words as `bytes` has lie inside the range.
            let from = unsafe { start.add(index) };
            // SAFETY: mapped and aligned, as promised to `new`; others may access it now, which an
            // atomic allows, and this reference does not outlive the load.
            let loaded = unsafe { AtomicU64::from_ptr(from.as_ptr()) }.load(Ordering::Relaxed);
            *word = loaded.to_ne_bytes();
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`; both whole words.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when they are not all inside; nothing is written then.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let start = self.word(offset, bytes.len())?;
        let (words, _) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            // SAFETY: `word` has checked that as many words as `bytes` has lie inside the range.
            let to = unsafe { start.add(index) };
            // SAFETY: mapped, writable and aligned, as promised to `new`; others may access it now,
            // which an atomic allows, and this reference does not outlive the store.
            unsafe { AtomicU64::from_ptr(to.as_ptr()) }
                .store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes `len_bytes` of zero at `offset`; both whole words.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when they are not all inside; nothing is written then.
    pub fn clear(&self, offset: u64, len_bytes: usize) -> Result<(), OutOfRange> {
        let start = self.word(offset, len_bytes)?;
        for index in 0..len_bytes / WORD_BYTES {
            // SAFETY: `word` has checked that this many words lie inside the range.
            let to = unsafe { start.add(index) };
            // SAFETY: as in `write`.
            unsafe { AtomicU64::from_ptr(to.as_ptr()) }.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether `len_bytes` at `offset` are all inside, and both whole words.
    pub(crate) fn check(&self, offset: u64, len_bytes: usize) -> Result<(), OutOfRange> {
        self.word(offset, len_bytes).map(drop)
    }

    /// The word at `offset`, behind which `len_bytes` lie inside the range.
    fn word(&self, offset: u64, len_bytes: usize) -> Result<NonNull<u64>, OutOfRange> {
        let outside = OutOfRange {
            offset,
            len_bytes,
            range_bytes: self.len_bytes,
        };
        let at = usize::try_from(offset).map_err(|_| outside)?;
        let end = at.checked_add(len_bytes).ok_or(outside)?;
        let whole = at.is_multiple_of(WORD_BYTES) && len_bytes.is_multiple_of(WORD_BYTES);
        if end > self.len_bytes || !whole {
            return Err(outside);
        }
        // SAFETY: `at` is not beyond the end of the range, which is one mapping or part of one.
        Ok(unsafe { self.start.add(at) }.cast())
    }
}

const WORD_BYTES: usize = size_of::<u64>();

// SAFETY: a range is only an address. Using what it points to is promised to `new` to be allowed
// from any thread.
unsafe impl Send for HostRange<'_> {}
// SAFETY: as above; a shared range gives nothing but the same atomic accesses.
unsafe impl Sync for HostRange<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_codec::Pages;

    fn range(words: &[AtomicU64]) -> HostRange<'_> {
        let start = NonNull::from(words).cast();
        // SAFETY: a slice of atomics that outlives the range.
        unsafe { HostRange::new(start, size_of_val(words)) }
    }

    fn words(count: usize) -> Vec<AtomicU64> {
        std::iter::repeat_with(|| AtomicU64::new(u64::MAX))
            .take(count)
            .collect()
    }

    #[test]
    fn pages_are_written_read_and_cleared() {
        let memory = words(3 * 512);
        let range = range(&memory);
        range.write(4096, &[7; 4096]).unwrap();
        range.clear(8192, 4096).unwrap();
        let handles = [0, 4096, 8192].map(|at| range.page(at, PageSize::K4).unwrap());
        let mut bytes = Vec::new();
        Pages::guest(&handles, PageSize::K4)
            .unwrap()
            .append_to(&mut bytes);
        assert!(bytes == [[0xff; 4096], [7; 4096], [0; 4096]].concat());
        let mut read = vec![1; 3 * 4096];
        range.read(0, &mut read).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let memory = words(512);
        let range = range(&memory);
        for (offset, len_bytes) in [
            (8, 4096),
            (4096, 8),
            (4, 8),
            (0, 4),
            (u64::MAX, 8),
            (u64::MAX - 7, 8),
            (0, 8192),
        ] {
            let outside = OutOfRange {
                offset,
                len_bytes,
                range_bytes: 4096,
            };
            assert_eq!(range.write(offset, &vec![0; len_bytes]), Err(outside));
            assert_eq!(range.clear(offset, len_bytes), Err(outside));
            let mut bytes = vec![3; len_bytes];
            assert_eq!(range.read(offset, &mut bytes), Err(outside));
            assert!(bytes.iter().all(|byte| *byte == 3));
        }
        assert!(range.page(8, PageSize::K4).is_err());
        assert!(
            memory
                .iter()
                .all(|word| word.load(Ordering::Relaxed) == u64::MAX)
        );
        assert_eq!(range.write(4096, &[]), Ok(()));
    }
}
