//! The pages of a packet, anywhere in memory.
//!
//! The pages of a running guest change while they are read, so they are never accessed through a
//! Rust slice. A [`GuestPage`] is only an address; its content is copied once, word by word, and
//! everything after that uses the private copy. The copy may include guest writes made meanwhile:
//! such a page is dirty again and is sent again.
//!
//! [`Parts`] lets several threads fill separate parts of one buffer.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use multifd_wire::PageSize;

/// The normal pages of one packet, in the order of their offsets: the input of an
/// [`Encoder`](crate::Encoder).
///
/// At most [`PageSize::pages_per_packet`] pages; it may be empty.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    source: Source<'a>,
    page_size: PageSize,
}

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Private(&'a [u8]),
    Guest(&'a [GuestPage<'a>]),
}

impl<'a> Pages<'a> {
    /// Pages that lie back to back in memory without concurrent writers.
    ///
    /// # Errors
    ///
    /// If the bytes do not end at a page's end, or exceed a packet.
    pub fn private(bytes: &'a [u8], page_size: PageSize) -> Result<Self, PagesError> {
        if !bytes.len().is_multiple_of(page_size.bytes()) {
            return Err(PagesError(PagesFault::NotWhole {
                found_bytes: bytes.len(),
                page_size,
            }));
        }
        Self::checked(Source::Private(bytes), page_size)
    }

    /// Pages anywhere in a guest's memory, which others may write at any time.
    ///
    /// # Errors
    ///
    /// If a handle's page has another size, or the pages exceed a packet.
    pub fn guest(pages: &'a [GuestPage<'a>], page_size: PageSize) -> Result<Self, PagesError> {
        if let Some(other) = pages.iter().find(|page| page.page_size != page_size) {
            return Err(PagesError(PagesFault::MixedSizes {
                found: other.page_size,
                allowed: page_size,
            }));
        }
        Self::checked(Source::Guest(pages), page_size)
    }

    fn checked(source: Source<'a>, page_size: PageSize) -> Result<Self, PagesError> {
        let pages = Self { source, page_size };
        let allowed = page_size.pages_per_packet();
        if pages.len() > allowed {
            return Err(PagesError(PagesFault::TooMany {
                found: pages.len(),
                allowed,
            }));
        }
        Ok(pages)
    }

    /// The size of each page.
    #[must_use]
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The number of pages.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self.source {
            Source::Private(bytes) => bytes.len() / self.page_size.bytes(),
            Source::Guest(pages) => pages.len(),
        }
    }

    /// Returns whether there are no pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content of all pages back to back, now constant.
    ///
    /// Private pages are returned in place. Guest pages are copied once into `scratch`, whose
    /// former content is dropped and whose memory is reused.
    pub fn gather<'s>(&self, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        match self.source {
            Source::Private(bytes) => bytes,
            Source::Guest(_) => {
                scratch.clear();
                self.append_to(scratch);
                scratch
            }
        }
    }

    /// Appends the content of all pages, back to back, to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        self.append_range(0..self.len(), out);
    }

    /// Appends the content of some pages, back to back, to `out`. Appends nothing if the range is
    /// not within the pages.
    pub(crate) fn append_range(&self, range: Range<usize>, out: &mut Vec<u8>) {
        let page_bytes = self.page_size.bytes();
        match self.source {
            Source::Private(bytes) => {
                let bytes = range
                    .start
                    .checked_mul(page_bytes)
                    .zip(range.end.checked_mul(page_bytes))
                    .and_then(|(start, end)| bytes.get(start..end));
                out.extend_from_slice(bytes.unwrap_or_default());
            }
            Source::Guest(pages) => {
                let pages = pages.get(range).unwrap_or_default();
                out.reserve(pages.len() * page_bytes);
                pages.iter().for_each(|page| page.append_to(out));
            }
        }
    }
}

/// A packet's pages, back to back in memory of their own. The memory serves one packet after the
/// other and is never cleared in between.
#[derive(Clone, Debug, Default)]
pub struct PageBuffer {
    memory: Vec<u8>,
    len_bytes: usize,
}

impl PageBuffer {
    /// Makes the buffer `len_bytes` long. Earlier content of its memory stays until it is
    /// overwritten.
    pub fn space(&mut self, len_bytes: usize) -> &mut [u8] {
        if self.memory.len() < len_bytes {
            self.memory.resize(len_bytes, 0);
        }
        self.len_bytes = len_bytes;
        self.memory.get_mut(..len_bytes).unwrap_or_default()
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.len_bytes).unwrap_or_default()
    }

    /// Makes it a copy of these pages.
    pub(crate) fn copy_from(&mut self, pages: &Pages<'_>) {
        let mut memory: Vec<u8> = std::mem::take(self).into();
        memory.clear();
        pages.append_to(&mut memory);
        *self = memory.into();
    }
}

impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(..self.len_bytes).unwrap_or_default()
    }
}

impl From<Vec<u8>> for PageBuffer {
    fn from(memory: Vec<u8>) -> Self {
        Self {
            len_bytes: memory.len(),
            memory,
        }
    }
}

impl From<PageBuffer> for Vec<u8> {
    fn from(buffer: PageBuffer) -> Self {
        let mut memory = buffer.memory;
        memory.truncate(buffer.len_bytes);
        memory
    }
}

/// A buffer that several threads fill in parallel, each its own part.
#[derive(Default)]
pub(crate) struct Parts {
    /// Not accessed while threads have parts of it.
    buffer: PageBuffer,
    /// The buffer's memory, once a buffer is set.
    start: Option<NonNull<u8>>,
    /// Consecutive parts, all within `len_bytes`.
    parts: Vec<Part>,
    len_bytes: usize,
}

/// A part, and whether it is taken.
struct Part {
    place: Range<usize>,
    is_taken: AtomicBool,
}

impl Parts {
    /// Forgets all parts and starts on a buffer of `len_bytes`.
    pub(crate) fn begin(&mut self, len_bytes: usize) {
        self.take_back();
        self.parts.clear();
        self.len_bytes = len_bytes;
    }

    /// Makes the next `len_bytes` a part. Returns `None` if fewer remain.
    pub(crate) fn push(&mut self, len_bytes: usize) -> Option<()> {
        let start = self.end();
        let end = start.checked_add(len_bytes)?;
        (end <= self.len_bytes).then(|| {
            self.parts.push(Part {
                place: start..end,
                is_taken: AtomicBool::new(false),
            });
        })
    }

    /// The end of the last part.
    fn end(&self) -> usize {
        self.parts.last().map_or(0, |part| part.place.end)
    }

    /// Returns whether the parts cover the whole buffer.
    #[cfg(any(test, feature = "zstd"))]
    pub(crate) fn are_all(&self) -> bool {
        self.end() == self.len_bytes
    }

    /// Bytes of all parts.
    pub(crate) fn len_bytes(&self) -> usize {
        self.end()
    }

    /// Takes the buffer, which has the length given to [`Self::begin`], and leaves an empty one.
    /// From now on its parts can be taken.
    pub(crate) fn fill(&mut self, buffer: &mut PageBuffer) {
        self.buffer = std::mem::take(buffer);
        let memory = self.buffer.space(self.len_bytes);
        self.start = Some(NonNull::from(memory).cast());
    }

    /// Takes a part by its number. Each part can be taken once.
    #[expect(clippy::mut_from_ref, reason = "no part is given twice")]
    pub(crate) fn take(&self, number: usize) -> Option<&mut [u8]> {
        let (start, part) = (self.start?, self.parts.get(number)?);
        if part.is_taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: `push` has verified that the part ends within `len_bytes`, which is the buffer's
        // length since `fill`.
        let first = unsafe { start.add(part.place.start) };
        // SAFETY: the bytes exist and are initialised, as said above. `buffer` keeps them for as
        // long as `self` is borrowed, and is not accessed meanwhile. No other slice has any of
        // them: parts follow one another without overlap, and a flag lets each be taken once.
        Some(unsafe { NonNull::slice_from_raw_parts(first, part.place.len()).as_mut() })
    }

    /// Returns the buffer. Its parts can no longer be taken.
    pub(crate) fn take_back(&mut self) -> PageBuffer {
        self.start = None;
        std::mem::take(&mut self.buffer)
    }
}

// SAFETY: `start` points to memory owned by `buffer`, so both move between threads together.
unsafe impl Send for Parts {}
// SAFETY: `take` on a shared `Parts` only gives out bytes without another owner.
unsafe impl Sync for Parts {}

/// The location of one page of guest memory: an address, and the promise that it is readable.
#[derive(Clone, Copy, Debug)]
pub struct GuestPage<'a> {
    start: NonNull<u8>,
    page_size: PageSize,
    memory: PhantomData<&'a [AtomicU64]>,
}

impl GuestPage<'_> {
    /// A handle to the `page_size` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// During the whole lifetime of the handle and its copies
    ///
    /// - the bytes are mapped, and may be read and written from any thread (a handle never writes;
    ///   a reference to an atomic requires this),
    /// - `start` is aligned to 8 bytes,
    /// - no `&mut` to any of the bytes exists, and this program writes them only through atomic
    ///   (or, as is usual for guest memory, volatile) accesses. The guest itself, devices and other
    ///   processes may write freely.
    #[must_use]
    pub const unsafe fn new(start: NonNull<u8>, page_size: PageSize) -> Self {
        Self {
            start,
            page_size,
            memory: PhantomData,
        }
    }

    fn append_to(self, out: &mut Vec<u8>) {
        let len_bytes = self.page_size.bytes();
        out.reserve(len_bytes);
        let (slots, _) = out.spare_capacity_mut().as_chunks_mut::<8>();
        let words = self.start.as_ptr().cast::<u64>();
        for (index, slot) in slots.iter_mut().take(len_bytes / 8).enumerate() {
            // SAFETY: a page is a whole number of words, and `index` counts those before its end,
            // so this stays inside the page that the caller of `new` promised to be mapped.
            let word = unsafe { words.add(index) };
            // SAFETY: `word` is in mapped memory and aligned, as promised to `new`. Others may
            // write it now; an atomic is the one kind of reference that allows this, and this one
            // does not outlive the load.
            let word = unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed);
            slot.write_copy_of_slice(&word.to_ne_bytes());
        }
        // SAFETY: `reserve` has made room for `len_bytes` more, so `len_bytes / 8` slots existed
        // and the loop has filled them all.
        unsafe { out.set_len(out.len() + len_bytes) };
    }
}

// SAFETY: a handle is only an address. The promise to `new` allows reads of its target from any
// thread.
unsafe impl Send for GuestPage<'_> {}
// SAFETY: as above; a shared handle allows only the same reads.
unsafe impl Sync for GuestPage<'_> {}

/// The input is not a packet of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct PagesError(#[from] PagesFault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum PagesFault {
    /// The bytes do not end where a page ends.
    #[error("{found_bytes} bytes are not a whole number of pages of {page_size} bytes")]
    NotWhole {
        /// Length of the input.
        found_bytes: usize,
        /// The size of each page.
        page_size: PageSize,
    },
    /// The pages exceed a packet.
    #[error("{found} pages, but a packet takes {allowed} of this size")]
    TooMany {
        /// Number of pages given.
        found: usize,
        /// [`PageSize::pages_per_packet`].
        allowed: usize,
    },
    /// A handle's page has another size.
    #[error("a page of {found} bytes among pages of {allowed} bytes")]
    MixedSizes {
        /// The size of the first page that differs.
        found: PageSize,
        /// The size of the packet's pages.
        allowed: PageSize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words in place of guest memory: page `n` is filled with the byte `n`.
    fn guest_memory(pages: u8) -> Vec<AtomicU64> {
        (0..pages)
            .flat_map(|page| {
                std::iter::repeat_with(move || AtomicU64::new(u64::from_ne_bytes([page; 8])))
                    .take(PageSize::K4.bytes() / 8)
            })
            .collect()
    }

    fn handle(memory: &[AtomicU64], page: usize) -> GuestPage<'_> {
        let words = PageSize::K4.bytes() / 8;
        let start = NonNull::from(&memory[page * words..][..words]).cast();
        // SAFETY: the slice is a page of atomics that outlives the handle.
        unsafe { GuestPage::new(start, PageSize::K4) }
    }

    #[test]
    fn guest_pages_are_gathered_in_the_order_given() {
        let memory = guest_memory(5);
        let handles = [3, 0, 4].map(|page| handle(&memory, page));
        let pages = Pages::guest(&handles, PageSize::K4).unwrap();
        let mut scratch = b"left from before".to_vec();
        let gathered = pages.gather(&mut scratch);
        let expected = [[3u8; 4096], [0; 4096], [4; 4096]].concat();
        assert_eq!(pages.len(), 3);
        assert!(gathered == expected);
    }

    #[test]
    fn gathering_again_does_not_allocate() {
        let memory = guest_memory(3);
        let handles = [0, 1, 2].map(|page| handle(&memory, page));
        let pages = Pages::guest(&handles, PageSize::K4).unwrap();
        let mut scratch = Vec::new();
        let first = pages.gather(&mut scratch).as_ptr();
        assert_eq!(pages.gather(&mut scratch).as_ptr(), first);
    }

    #[test]
    fn private_pages_are_not_copied() {
        let bytes = vec![7; 3 * 4096];
        let pages = Pages::private(&bytes, PageSize::K4).unwrap();
        let mut scratch = Vec::new();
        assert_eq!(pages.gather(&mut scratch).as_ptr(), bytes.as_ptr());
        assert_eq!(scratch.capacity(), 0);
    }

    #[test]
    fn appending_keeps_what_was_there() {
        let memory = guest_memory(2);
        let handles = [handle(&memory, 1)];
        let mut out = vec![9; 3];
        Pages::guest(&handles, PageSize::K4)
            .unwrap()
            .append_to(&mut out);
        assert_eq!(out.len(), 3 + 4096);
        assert_eq!(out[..5], [9, 9, 9, 1, 1]);
        assert_eq!(out[3 + 4095], 1);
    }

    #[test]
    fn some_of_the_pages_are_copied() {
        let memory = guest_memory(4);
        let handles = [0, 1, 2, 3].map(|page| handle(&memory, page));
        let mut private = Vec::new();
        let guest = Pages::guest(&handles, PageSize::K4).unwrap();
        guest.append_to(&mut private);
        for pages in [guest, Pages::private(&private, PageSize::K4).unwrap()] {
            for (range, expected) in [
                (1..3, &private[4096..3 * 4096]),
                (2..2, &[]),
                (3..5, &[]),
                (0..usize::MAX, &[]),
            ] {
                let mut out = Vec::new();
                pages.append_range(range, &mut out);
                assert!(out == expected);
            }
        }
    }

    #[test]
    fn every_part_is_given_once_to_whoever_comes_first() {
        let mut parts = Parts::default();
        let mut buffer = PageBuffer::from(vec![0; 100]);
        parts.begin(100);
        for len_bytes in [10, 0, 50] {
            parts.push(len_bytes).unwrap();
        }
        assert!(parts.push(41).is_none());
        assert!(!parts.are_all());
        assert!(parts.take(0).is_none(), "there is no buffer");
        parts.fill(&mut buffer);
        assert!(buffer.as_ref().is_empty());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for number in 0..4 {
                        if let Some(part) = parts.take(number) {
                            part.iter_mut().for_each(|byte| *byte += number as u8 + 1);
                        }
                    }
                });
            }
        });
        let filled = parts.take_back();
        assert!(parts.take(2).is_none());
        assert_eq!(filled.as_ref()[..10], [1; 10]);
        assert_eq!(filled.as_ref()[10..60], [3; 50]);
        assert_eq!(filled.as_ref()[60..], [0; 40]);
    }

    #[test]
    fn what_is_no_packets_worth_of_pages_is_refused() {
        let k8 = PageSize::new(8192).unwrap();
        let bytes = vec![0; 129 * 4096];
        assert_eq!(
            Pages::private(&bytes[..4097], PageSize::K4).unwrap_err(),
            PagesError(PagesFault::NotWhole {
                found_bytes: 4097,
                page_size: PageSize::K4
            })
        );
        assert_eq!(
            Pages::private(&bytes, PageSize::K4).unwrap_err(),
            PagesError(PagesFault::TooMany {
                found: 129,
                allowed: 128
            })
        );
        assert!(Pages::private(&bytes[..128 * 4096], PageSize::K4).is_ok());
        let memory = guest_memory(1);
        let handles = [handle(&memory, 0)];
        assert_eq!(
            Pages::guest(&handles, k8).unwrap_err(),
            PagesError(PagesFault::MixedSizes {
                found: PageSize::K4,
                allowed: k8
            })
        );
        assert!(Pages::guest(&[], k8).unwrap().is_empty());
    }
}
