//! Linux's own record of which pages of a mapping are written: `PAGEMAP_SCAN` with asynchronous
//! write protection by userfaultfd, from Linux 6.7 on.
//!
//! The two halves may be in two processes. The one whose writes are to be tracked registers its
//! mapping with a userfaultfd ([`WriteTracking`]): from then on the kernel can write-protect pages
//! there, and takes the protection off by itself at the first write, without waking anybody.
//! A process with read access to that process (`ptrace(2)`: itself, its owner, root) then reads
//! `/proc/PID/pagemap`. One call lists the unprotected pages and protects them again, without a gap
//! between the two ([`PagemapLog`]). The mapping stays in use meanwhile.
//!
//! The log tracks the mapping, not the file behind it. See [`PagemapLog`] for the writes that it
//! cannot see.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::ffi::c_void;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::{DirtyBitmap, DirtyLog, DirtyLogError, LogFault};
use crate::memory::{GuestMemory, HostRange};

/// Mappings of this process that can be tracked, by this process or by another one, until it is
/// dropped.
#[derive(Debug)]
pub struct WriteTracking {
    _userfaultfd: OwnedFd,
}

impl WriteTracking {
    /// Registers the mappings of `ranges`, which begin and end where pages of this machine do.
    ///
    /// # Errors
    ///
    /// When this kernel cannot, which the error says by name; when something else has registered a
    /// mapping, or the ranges are not whole pages.
    pub fn register(ranges: &[HostRange<'_>]) -> Result<Self, DirtyLogError> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
        // SAFETY: with write protection alone, registered memory keeps its content and its
        // addresses; only whether a page has been written is noted.
        let userfaultfd = unsafe { userfaultfd(flags) }.map_err(|errno| match errno {
            Errno::NOSYS => kernel_lacks(TRACKING),
            errno => refused("make a userfaultfd", errno),
        })?;
        let mut api = Api {
            api: API,
            features: FEATURES,
            ioctls: 0,
        };
        // SAFETY: the number and the structure belong together (ioctl_userfaultfd(2)).
        unsafe { ioctl(&userfaultfd, Call(UFFDIO_API, &mut api)) }
            .map_err(|errno| lacking(errno, Errno::INVAL, "use a userfaultfd"))?;
        for range in ranges {
            let addresses = range.addresses();
            let mut register = Register {
                start: addresses.start,
                len: range.len_bytes() as u64,
                mode: REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: as above.
            unsafe { ioctl(&userfaultfd, Call(UFFDIO_REGISTER, &mut register)) }
                .map_err(|errno| refused("register guest memory with a userfaultfd", errno))?;
        }
        Ok(Self {
            _userfaultfd: userfaultfd,
        })
    }
}

/// The log of writes to a process's mappings, from its page tables.
///
/// It sees every write through these mappings: of the process's threads, of virtual CPUs that run
/// on them, and of the kernel on behalf of the process (`read(2)` into guest memory, vhost in the
/// kernel). In private anonymous memory it also sees pages that are discarded.
///
/// It does not see what happens to the file behind a shared mapping in another way: a write through
/// another mapping of the same file (a vhost-user back end), `pwrite(2)` to the file, and a page
/// that is discarded (`FALLOC_FL_PUNCH_HOLE`, `MADV_REMOVE`). The source engine finds discarded
/// pages by itself, as [`DirtyLog`] says. The VMM tells of the writes with [`Marks`](super::Marks).
#[derive(Debug)]
pub struct PagemapLog {
    pagemap: File,
    /// One for each RAM block.
    ranges: Vec<Range<u64>>,
    regions: Vec<Region>,
    /// For mappings of this process.
    #[expect(
        dead_code,
        reason = "kept, because the tracking ends when it is dropped"
    )]
    tracking: Option<WriteTracking>,
}

impl PagemapLog {
    /// Tracks what this process writes to `memory`: threads of it that are the guest, or a
    /// hypervisor under it.
    ///
    /// # Errors
    ///
    /// Same as [`WriteTracking::register`].
    pub fn of_memory(memory: &dyn GuestMemory) -> Result<Self, DirtyLogError> {
        let blocks = memory.blocks();
        let ranges: Vec<_> = blocks.iter().map(|block| block.range).collect();
        let tracking = WriteTracking::register(&ranges)?;
        let addresses = ranges.iter().map(HostRange::addresses).collect();
        Self::open("/proc/self/pagemap", addresses, Some(tracking))
    }

    /// Tracks what another process writes to its mappings. `ranges` are addresses there, one range
    /// for each RAM block in the order of the engine's [`GuestMemory`], and have been registered by
    /// that process with a [`WriteTracking`] that it keeps.
    ///
    /// # Errors
    ///
    /// `System` when there is no such process, or its page tables are not for us to read.
    pub fn of_process(pid: u32, ranges: Vec<Range<u64>>) -> Result<Self, DirtyLogError> {
        Self::open(&format!("/proc/{pid}/pagemap"), ranges, None)
    }

    fn open(
        path: &str,
        ranges: Vec<Range<u64>>,
        tracking: Option<WriteTracking>,
    ) -> Result<Self, DirtyLogError> {
        let pagemap = File::open(path).map_err(|source| LogFault::System {
            what: "open the page tables of the guest's process",
            source,
        })?;
        Ok(Self {
            pagemap,
            ranges,
            regions: Vec::with_capacity(REGIONS_PER_SCAN),
            tracking,
        })
    }

    /// Finds the pages of `range` that are not protected and protects them; `found` is given their
    /// addresses.
    fn scan(
        &mut self,
        range: Range<u64>,
        found: impl FnMut(Range<u64>),
    ) -> Result<(), DirtyLogError> {
        scan(&self.pagemap, &WRITTEN, range, &mut self.regions, found)
            .map_err(|errno| lacking(errno, Errno::NOTTY, SCAN))
    }
}

/// The pages to look for in page tables, and the action for each that is found.
struct Query {
    flags: u64,
    category_inverted: u64,
    category_mask: u64,
}

/// Pages that were written since they were protected last, which are protected again.
const WRITTEN: Query = Query {
    flags: WP_MATCHING | CHECK_WPASYNC,
    category_inverted: 0,
    category_mask: PAGE_IS_WRITTEN,
};

/// Pages that have memory of their own.
const PRESENT: Query = Query {
    flags: 0,
    category_inverted: PAGE_IS_PFNZERO,
    category_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
};

/// Gives `found` the addresses of all pages in `range` that answer `query`, in their order.
fn scan(
    pagemap: &File,
    query: &Query,
    range: Range<u64>,
    regions: &mut Vec<Region>,
    mut found: impl FnMut(Range<u64>),
) -> rustix::io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        regions.clear();
        regions.reserve(REGIONS_PER_SCAN);
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: query.flags,
            start,
            end: range.end,
            walk_end: 0,
            regions: regions.as_mut_ptr().expose_provenance() as u64,
            regions_len: REGIONS_PER_SCAN as u64,
            max_pages: 0,
            category_inverted: query.category_inverted,
            category_mask: query.category_mask,
            category_anyof_mask: 0,
            // The kernel joins neighbours only when they agree in what is returned.
            return_mask: query.category_mask & PAGE_IS_WRITTEN,
        };
        // SAFETY: the number and the structure belong together
        // (Documentation/admin-guide/mm/pagemap.rst), and `regions` points to room for as many
        // regions as `regions_len` says.
        let count = unsafe { ioctl(pagemap, Call(PAGEMAP_SCAN, &mut scan)) }?;
        // SAFETY: the kernel has filled the first `count` of them, and says never more than there
        // is room for.
        unsafe { regions.set_len(count.min(REGIONS_PER_SCAN)) };
        regions
            .iter()
            .for_each(|region| found(region.start..region.end));
        if scan.walk_end <= start {
            return Err(Errno::IO);
        }
        start = scan.walk_end;
    }
    Ok(())
}

/// The pages of this process's mappings that have memory, from its page tables. Mappings may be of
/// any kind.
#[derive(Debug)]
pub(crate) struct ResidentPages {
    pagemap: File,
    page_bytes: u64,
    regions: Vec<Region>,
    /// Whether the kernel has `PAGEMAP_SCAN`. Without it the page tables are read entry by entry.
    has_scan: bool,
}

impl ResidentPages {
    pub(crate) fn open() -> Result<Self, DirtyLogError> {
        let pagemap = File::open("/proc/self/pagemap").map_err(|source| LogFault::System {
            what: "open the page tables of this process, to find discarded pages",
            source,
        })?;
        Ok(Self {
            pagemap,
            page_bytes: rustix::param::page_size() as u64,
            regions: Vec::new(),
            has_scan: true,
        })
    }

    /// Gives `absent` the addresses in `range` where nothing is mapped, or only the page of zeros
    /// that the kernel shares: pages that were discarded, swapped out or never touched.
    pub(crate) fn absent(
        &mut self,
        range: Range<u64>,
        mut absent: impl FnMut(Range<u64>),
    ) -> Result<(), DirtyLogError> {
        // Ranges need not begin where pages do.
        let page_bytes = self.page_bytes;
        let whole = range.start / page_bytes * page_bytes
            ..range.end.div_ceil(page_bytes).saturating_mul(page_bytes);
        let mut next = whole.start;
        let mut present = |found: Range<u64>| {
            if next < found.start {
                absent(next.max(range.start)..found.start.min(range.end));
            }
            next = next.max(found.end);
        };
        let refused_scan = |errno| refused(SCAN, errno);
        if self.has_scan {
            let scanned = scan(
                &self.pagemap,
                &PRESENT,
                whole.clone(),
                &mut self.regions,
                &mut present,
            );
            match scanned {
                // Nothing was given to `present` before.
                Err(Errno::NOTTY) => self.has_scan = false,
                other => other.map_err(refused_scan)?,
            }
        }
        if !self.has_scan {
            self.read_entries(whole.clone(), &mut present)
                .map_err(|source| LogFault::System { what: SCAN, source })?;
        }
        if next < whole.end {
            absent(next.max(range.start)..range.end);
        }
        Ok(())
    }

    /// Does the same by `read(2)`: 64 bits for each page, which do not tell the zero page from
    /// others.
    fn read_entries(
        &self,
        range: Range<u64>,
        mut present: impl FnMut(Range<u64>),
    ) -> io::Result<()> {
        let mut entries = vec![0; ENTRIES_PER_READ * ENTRY_BYTES];
        let mut at = range.start;
        while at < range.end {
            let pages = ((range.end - at) / self.page_bytes).min(ENTRIES_PER_READ as u64);
            let wanted = entries
                .get_mut(..pages as usize * ENTRY_BYTES)
                .unwrap_or_default();
            let offset = at / self.page_bytes * ENTRY_BYTES as u64;
            self.pagemap.read_exact_at(wanted, offset)?;
            let (words, _) = wanted.as_chunks::<ENTRY_BYTES>();
            for word in words {
                let end = at.saturating_add(self.page_bytes);
                if u64::from_ne_bytes(*word) & ENTRY_IS_PRESENT != 0 {
                    present(at..end);
                }
                at = end;
            }
        }
        Ok(())
    }
}

impl DirtyLog for PagemapLog {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        for range in self.ranges.clone() {
            self.scan(range, |_| {})?;
        }
        Ok(())
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        if dirty.len() != self.ranges.len() {
            return Err(LogFault::Blocks {
                found: self.ranges.len(),
                expected: dirty.len(),
            }
            .into());
        }
        for (range, dirty) in self.ranges.clone().into_iter().zip(dirty) {
            let base = range.start;
            self.scan(range, |written| {
                dirty.insert_bytes(
                    written.start.saturating_sub(base)..written.end.saturating_sub(base),
                );
            })?;
        }
        Ok(())
    }

    /// Leaves the last protection on: each page loses it at its next write, which costs the guest
    /// one short fault.
    fn stop(&mut self) {}
}

fn lacking(errno: Errno, telling: Errno, what: &'static str) -> DirtyLogError {
    match errno == telling {
        true => kernel_lacks(TRACKING),
        false => refused(what, errno),
    }
}

fn refused(what: &'static str, errno: Errno) -> DirtyLogError {
    let source = errno.into();
    LogFault::System { what, source }.into()
}

fn kernel_lacks(what: &'static str) -> DirtyLogError {
    let found = rustix::system::uname();
    LogFault::Kernel {
        what,
        since: "6.7",
        config: "CONFIG_USERFAULTFD, CONFIG_HAVE_ARCH_USERFAULTFD_WP and CONFIG_PTE_MARKER_UFFD_WP",
        found: found.release().to_string_lossy().into_owned(),
    }
    .into()
}

const TRACKING: &str = "tracking writes by PAGEMAP_SCAN";
const SCAN: &str = "scan the guest's page tables";

/// One call returns at most this many stretches of pages: 96 KiB, whatever the memory's size. More
/// make no scan faster.
const REGIONS_PER_SCAN: usize = 4096;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// A call with a structure that the kernel reads and answers in. Its result is a number, which the
/// ready-made callers of ioctls leave out.
struct Call<'a, T>(Opcode, &'a mut T);

// SAFETY: as far as it depends on this: the pointer is to the structure, which the kernel may
// change. That the number is one that has such a structure is for each call to say.
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.1).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        // Errors are negative and have been dealt with before.
        Ok(usize::try_from(out).unwrap_or(0))
    }
}

/// `UFFD_USER_MODE_ONLY`, with which no privilege is needed. It is about faults that wait for a
/// reader, of which there are none here: what the kernel writes for the process, as in `read(2)`,
/// is tracked too.
const USER_MODE_ONLY: u32 = 1;
const PAGEMAP_SCAN: Opcode = opcode::read_write::<Scan>(b'f', 16);
const UFFDIO_API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const API: u64 = 0xaa;
/// Write protection of files in memory, of pages that are not there yet, and without a reader of
/// faults.
const FEATURES: u64 = 1 << 12 | 1 << 13 | 1 << 15;
const REGISTER_MODE_WP: u64 = 2;
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 2;
const PAGE_IS_PRESENT: u64 = 8;
const PAGE_IS_PFNZERO: u64 = 32;
/// An entry of `/proc/PID/pagemap` for each page, and its bit for a page that is there.
const ENTRY_BYTES: usize = size_of::<u64>();
const ENTRY_IS_PRESENT: u64 = 1 << 63;
const ENTRIES_PER_READ: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        let error = lacking(Errno::NOTTY, Errno::NOTTY, "scan the guest's page tables");
        let text = error.to_string();
        assert!(text.starts_with("tracking writes by PAGEMAP_SCAN needs Linux 6.7 or later"));
        assert!(text.contains("this is "), "{text}");
        let other = lacking(Errno::PERM, Errno::NOTTY, "scan the guest's page tables");
        assert_eq!(other.to_string(), "cannot scan the guest's page tables");
    }

    #[test]
    fn both_ways_to_read_page_tables_find_the_same_pages() {
        let mapping = crate::memory::Mapping::memfd("guest", 64 * 4096).unwrap();
        let range = mapping.range();
        let touched = [0, 3, 4, 5, 40, 63];
        for page in touched {
            range.write(page * 4096, &[1; 4096]).unwrap();
        }
        let addresses = range.addresses();
        for has_scan in [true, false] {
            let mut resident = ResidentPages::open().unwrap();
            resident.has_scan = has_scan;
            let mut pages = Vec::new();
            let absent = |found: Range<u64>| {
                pages.extend(found.step_by(4096).map(|at| (at - addresses.start) / 4096));
            };
            // In part of a page, which counts as the page does.
            resident
                .absent(addresses.start + 8..addresses.end - 8, absent)
                .unwrap();
            let wanted: Vec<_> = (0..64).filter(|page| !touched.contains(page)).collect();
            assert_eq!(pages, wanted, "with PAGEMAP_SCAN: {has_scan}");
            assert_eq!(resident.has_scan, has_scan);
        }
    }
}
