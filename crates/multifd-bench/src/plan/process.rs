//! Measures a running guest from outside, without stopping it.
//!
//! It reads a sample of pages several times and compares them, and writes nothing. The kernel's
//! records of written pages are no alternative: userfaultfd has to be set up inside the process,
//! and a reset of the soft-dirty bits slows the guest down.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::is_zero;
use multifd_wire::PageSize;

use rustix::fs::{SeekFrom, seek};

use crate::guests::Random;

/// The measurements of a running guest.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// Bytes of the guest's memory.
    pub memory_bytes: u64,
    /// The number of mappings that make up this memory.
    pub mappings: usize,
    /// Bytes of nonzero pages.
    pub used_bytes: u64,
    /// Pages that change in a second.
    pub dirty_rate: f64,
    /// The statistical error of `dirty_rate`, which is smaller in 19 of 20 cases.
    pub dirty_rate_error: f64,
    /// Pages that ever change, if their number stopped growing.
    pub working_set_pages: Option<f64>,
    /// The median number of bytes that changed in a changed page. None if no page changed.
    pub rewrite: Option<usize>,
    /// The number of pages in the sample for the dirty rate.
    pub compared_pages: usize,
    /// A sample of the memory: runs of consecutive pages.
    pub content: Vec<u8>,
}

/// Why a guest could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ProcessError {
    /// The system refused access.
    #[error(
        "no right to read {file}: run as root (sudo multifd-bench plan --from {pid} ...), or as the \
         process's user with /proc/sys/kernel/yama/ptrace_scope at 0"
    )]
    Forbidden {
        /// The file.
        file: String,
        /// The process.
        pid: u32,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process does not exist, or it has ended.
    #[error("cannot read {file} of process {pid}; is it running?")]
    Gone {
        /// The file.
        file: String,
        /// The process.
        pid: u32,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process has no memory that looks like a guest's.
    #[error("process {pid} has no writable mapping of {least} bytes or more: is it a hypervisor?")]
    NoGuest {
        /// The process.
        pid: u32,
        /// The smallest mapping that counts.
        least: u64,
    },
}

/// Measures the guest of process `pid` for about this time.
///
/// # Errors
///
/// See [`ProcessError`].
pub(crate) fn look(pid: u32, time: Duration) -> Result<Running, ProcessError> {
    let maps = open(pid, "smaps")
        .and_then(|mut file| {
            let mut text = String::new();
            io::Read::read_to_string(&mut file, &mut text)?;
            Ok(text)
        })
        .map_err(|error| failed(pid, "smaps", error))?;
    let ranges = guest_ranges(&maps);
    if ranges.is_empty() {
        let least = LEAST_MAPPING;
        return Err(ProcessError::NoGuest { pid, least });
    }
    let ranges: Vec<Block> = ranges.into_iter().map(|found| found.opened(pid)).collect();
    let memory = Memory {
        mem: open(pid, "mem").map_err(|error| failed(pid, "mem", error))?,
        pagemap: open(pid, "pagemap").map_err(|error| failed(pid, "pagemap", error))?,
        ranges,
    };
    memory.look(time).map_err(|error| failed(pid, "mem", error))
}

fn open(pid: u32, name: &str) -> io::Result<File> {
    fs::File::open(format!("/proc/{pid}/{name}"))
}

fn failed(pid: u32, name: &str, source: io::Error) -> ProcessError {
    let file = format!("/proc/{pid}/{name}");
    match source.kind() {
        io::ErrorKind::PermissionDenied => ProcessError::Forbidden { file, pid, source },
        _ => ProcessError::Gone { file, pid, source },
    }
}

/// The mappings that look like a guest's memory: the largest writable one without an ordinary file,
/// and others of similar size.
fn guest_ranges(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = smaps.lines().filter_map(mapping).collect();
    found.sort_by_key(|mapping| std::cmp::Reverse(mapping.len()));
    let largest = found.first().map_or(0, Mapping::len);
    let least = (largest / LEAST_PART).max(LEAST_MAPPING);
    found.retain(|mapping| mapping.len() >= least);
    // Memory that is mapped twice counts twice. A limit bounds the work for many mappings.
    found.truncate(MOST_MAPPINGS);
    found
}

/// Parses a line such as `7f00-7f40 rw-s 00000000 00:01 5 /memfd:ram (deleted)`.
fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let file_offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let name = words.nth(2).unwrap_or_default();
    let is_memory = name.is_empty()
        || ["/memfd:", "/dev/shm/", "/dev/hugepages", "/dev/zero"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let page = PageSize::K4.bytes() as u64;
    let is_sound = start < end && start.is_multiple_of(page) && end.is_multiple_of(page);
    (rights.starts_with("rw") && is_memory && is_sound).then_some(Mapping {
        range: start..end,
        file_offset,
        is_shared: rights.ends_with('s'),
    })
}

/// A mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<u64>,
    file_offset: u64,
    is_shared: bool,
}

impl Mapping {
    const fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Opens the mapping's file. The file tells whether a page has content that is not in the page
    /// tables of the process. Only root may open it; otherwise such pages count as zero.
    fn opened(self, pid: u32) -> Block {
        let Range { start, end } = self.range;
        let name = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
        Block {
            file: self.is_shared.then(|| File::open(name).ok()).flatten(),
            file_offset: self.file_offset,
            range: self.range,
        }
    }
}

/// A block of a guest's memory.
struct Block {
    range: Range<u64>,
    file: Option<File>,
    file_offset: u64,
}

impl Block {
    const fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether the file has content at this address.
    fn has_data(&self, address: u64) -> bool {
        let offset = (address - self.range.start).saturating_add(self.file_offset);
        let found = self
            .file
            .as_ref()
            .map(|file| seek(file, SeekFrom::Data(offset)));
        matches!(found, Some(Ok(found)) if found == offset)
    }
}

/// A guest's memory in another process.
struct Memory {
    mem: File,
    pagemap: File,
    ranges: Vec<Block>,
}

/// A page's state in the page tables of the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Present,
    Swapped,
    /// Never touched. A read would allocate it in the process.
    Absent,
}

/// A page that is compared with its former content.
struct Compared {
    address: u64,
    before: Vec<u8>,
    changed_at_first: bool,
    changed: bool,
    rewritten: usize,
}

impl Memory {
    fn look(&self, time: Duration) -> io::Result<Running> {
        let mut random = Random::new(u64::from(std::process::id()), 0);
        let (mut compared, used_share) = self.draw(&mut random)?;
        let began = Instant::now();
        let content = self.content(&mut random)?;
        let first = time.min(FIRST_LOOK);
        thread::sleep(first.saturating_sub(began.elapsed()));
        let first = self.compare(&mut compared, began, true)?;
        thread::sleep(time.saturating_sub(began.elapsed()));
        let all = self.compare(&mut compared, began, false)?;

        let pages = self.pages() as f64;
        let drawn = COMPARED_PAGES as f64;
        let at_first = compared.iter().filter(|page| page.changed_at_first).count() as f64 / drawn;
        let at_last = compared.iter().filter(|page| page.changed).count() as f64 / drawn;
        // Even if no page of the sample changed, one page in that many may have.
        let error = 2.0 * (at_first.max(1.0 / drawn) * (1.0 - at_first) / drawn).sqrt();
        let steady = at_first * all / first;
        let memory_bytes = self.pages() * PageSize::K4.bytes() as u64;
        Ok(Running {
            memory_bytes,
            mappings: self.ranges.len(),
            used_bytes: (used_share * memory_bytes as f64) as u64,
            dirty_rate: at_first * pages / first,
            dirty_rate_error: error * pages / first,
            working_set_pages: (at_first > 0.0 && at_last < steady * FLATTENED)
                .then_some(at_last * pages),
            rewrite: median_rewrite(&compared),
            compared_pages: COMPARED_PAGES,
            content,
        })
    }

    /// Draws pages at random. Returns those that can be compared, and the share of nonzero pages.
    fn draw(&self, random: &mut Random) -> io::Result<(Vec<Compared>, f64)> {
        let (mut zero, mut used) = (0_usize, 0_usize);
        let mut compared = Vec::new();
        for _ in 0..COMPARED_PAGES {
            let address = self.address(random.below(self.pages()));
            match self.place(address)? {
                // A read would bring the page back from the host's swap. It is in use.
                Place::Swapped => used += 1,
                Place::Absent => zero += 1,
                Place::Present => {
                    let before = self.read(address, 1)?;
                    match is_zero(&before) {
                        true => zero += 1,
                        false => used += 1,
                    }
                    compared.push(Compared {
                        address,
                        before,
                        changed_at_first: false,
                        changed: false,
                        rewritten: 0,
                    });
                }
            }
        }
        Ok((compared, used as f64 / (used + zero).max(1) as f64))
    }

    fn pages(&self) -> u64 {
        let bytes: u64 = self.ranges.iter().map(Block::len).sum();
        bytes / PageSize::K4.bytes() as u64
    }

    /// The address of the page with this number.
    fn address(&self, page: u64) -> u64 {
        let mut left = page * PageSize::K4.bytes() as u64;
        for range in &self.ranges {
            let len = range.len();
            if left < len {
                return range.range.start + left;
            }
            left -= len;
        }
        self.ranges.first().map_or(0, |range| range.range.start)
    }

    fn place(&self, address: u64) -> io::Result<Place> {
        let mut entry = [0; 8];
        let at = address / PageSize::K4.bytes() as u64 * 8;
        self.pagemap.read_exact_at(&mut entry, at)?;
        let entry = u64::from_ne_bytes(entry);
        Ok(match (entry & PRESENT != 0, entry & SWAPPED != 0) {
            (true, _) => Place::Present,
            (_, true) => Place::Swapped,
            _ if self
                .block(address)
                .is_some_and(|block| block.has_data(address)) =>
            {
                Place::Present
            }
            _ => Place::Absent,
        })
    }

    fn block(&self, address: u64) -> Option<&Block> {
        let mut blocks = self.ranges.iter();
        blocks.find(|block| block.range.contains(&address))
    }

    fn read(&self, address: u64, pages: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; pages * PageSize::K4.bytes()];
        self.mem.read_exact_at(&mut bytes, address)?;
        Ok(bytes)
    }

    /// Reads runs of pages at random places, because neighbours have more in common than other
    /// pages.
    fn content(&self, random: &mut Random) -> io::Result<Vec<u8>> {
        let page = PageSize::K4.bytes() as u64;
        let mut content = Vec::new();
        for _ in 0..MOST_RUNS {
            if content.len() >= CONTENT_BYTES {
                break;
            }
            let start = self.address(random.below(self.pages()));
            let end = self.block(start).map_or(start, |block| block.range.end);
            for address in (start..end).step_by(page as usize).take(RUN_PAGES) {
                if self.place(address)? == Place::Present {
                    content.extend(self.read(address, 1)?);
                }
            }
        }
        Ok(content)
    }

    /// Compares pages with their former content. Returns the seconds since `began`.
    fn compare(&self, compared: &mut [Compared], began: Instant, first: bool) -> io::Result<f64> {
        let from = began.elapsed();
        for page in compared.iter_mut() {
            let now = self.read(page.address, 1)?;
            let differing = now.iter().zip(&page.before).filter(|(a, b)| a != b).count();
            page.changed |= differing > 0;
            page.changed_at_first |= first && differing > 0;
            if first || page.rewritten == 0 {
                page.rewritten = differing;
            }
        }
        let middle = (from + began.elapsed()) / 2;
        Ok(middle.as_secs_f64().max(1e-3))
    }
}

/// The median number of bytes that changed in a changed page.
fn median_rewrite(compared: &[Compared]) -> Option<usize> {
    let changed = compared.iter().filter(|page| page.changed);
    let mut rewritten: Vec<usize> = changed.map(|page| page.rewritten).collect();
    rewritten.sort_unstable();
    rewritten.get(rewritten.len() / 2).copied()
}

/// Bits of an entry of pagemap, as the kernel documents them.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The least mapping of a guest's memory: a hypervisor's own mappings are smaller.
const LEAST_MAPPING: u64 = 16 << 20;
/// A mapping counts if it has at least the largest one's bytes divided by this.
const LEAST_PART: u64 = 8;
const MOST_MAPPINGS: usize = 64;
/// Pages of the sample: they give a dirty rate of a tenth of all pages within a tenth.
const COMPARED_PAGES: usize = 4096;
/// The time between the first two reads of a page.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The working set is known if the number of changed pages is below this part of steady growth.
const FLATTENED: f64 = 0.85;
const RUN_PAGES: usize = 32;
const CONTENT_BYTES: usize = 8 << 20;
/// The most runs, for a memory that is mostly untouched.
const MOST_RUNS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_the_largest_memory_without_a_file() {
        let smaps = "\
559a10000000-559a60000000 r-xp 00000000 08:01 77 /usr/bin/qemu-system-x86_64
559a70000000-559a70400000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0040000000 rw-s 00000000 00:01 5 /memfd:pc.ram (deleted)
Size:            1048576 kB
VmFlags: rd wr sh mr mw me ms sd
7f0050000000-7f0060000000 rw-p 00000000 00:00 0
7f0070000000-7f0071000000 rw-p 00000000 00:00 0
7f0080000000-7f0180000000 rw-s 00000000 08:01 9 /var/lib/disk.img
7f0200000000-7f0100000000 rw-p 00000000 00:00 0
zz-7f0040000000 rw-p";
        let found: Vec<_> = guest_ranges(smaps)
            .into_iter()
            .map(|mapping| mapping.range)
            .collect();
        assert_eq!(
            found,
            [
                0x7f00_0000_0000..0x7f00_4000_0000,
                0x7f00_5000_0000..0x7f00_6000_0000
            ]
        );
        assert!(guest_ranges("").is_empty());
    }

    #[test]
    fn a_missing_process_is_reported() {
        let error = look(0, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("is it running?"), "{error}");
    }
}
