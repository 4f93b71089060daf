//! The tiny guest: the content of its memory, and its invariants.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::firmware;
use crate::memory::Ram;

/// A page of the emulated PC.
pub const PAGE: usize = 4096;

/// The page with the number of the pass and the stack.
pub(crate) const STATE_PAGE: u32 = 8;

/// Content begins at 1 MiB: a PC's windows onto its firmware are below.
pub(crate) const FIRST_CONTENT_PAGE: u32 = 256;

/// The offset of a counter page's four-byte counter.
pub(crate) const COUNTER_AT: u8 = 8;

/// The offset of a blinker page's only byte.
pub(crate) const BLINK_AT: u32 = 0x800;

/// A guest that works through its pages for ever, and detects pages that differ from its own last
/// write.
///
/// Its memory, from 1 MiB on: `counters` pages of content with a counter each, `blinkers` pages of
/// zeros with one byte each, `still` pages of constant content, and zeros.
///
/// In every *pass* the guest takes each counter in turn, checks that it equals the number of the
/// pass, and increments it; then each blinker, whose byte steps through `0..blink_cycle`, so that
/// the page is all zeros once per cycle. It prints to the serial port: `S` when it starts, `.`
/// every `passes_per_report` passes, `E` for every wrong page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Memory in MiB, at least 2.
    pub ram_mib: u32,
    /// Pages of content that change in every pass.
    pub counters: u32,
    /// Pages that alternate between content and zeros.
    pub blinkers: u32,
    /// Values in a blinker's cycle, at least 2.
    pub blink_cycle: u8,
    /// Pages of content that never change.
    pub still: u32,
    /// Pages written per hundredth of a second, after which the guest sleeps; 0: it never sleeps.
    pub pages_per_tick: u32,
    /// Passes between two `.` on the serial port, at least 1.
    pub passes_per_report: u32,
    /// The content of pages.
    pub content: Content,
}

/// The content of a guest's pages, except the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Content {
    /// It compresses to about one half: a quarter text-like, a quarter random, a quarter half
    /// random and half zero, a quarter similar records.
    #[default]
    Mixed,
    /// These pages in rotation; there is at least one.
    Pages(Arc<[[u8; PAGE]]>),
}

impl Content {
    fn fill(&self, number: u32, page: &mut [u8; PAGE]) {
        match self {
            Content::Mixed => pattern(number, page),
            Content::Pages(pages) => *page = pages[number as usize % pages.len()],
        }
    }
}

impl Default for Guest {
    /// 8 MiB, half of it in use, of which 300 pages change at up to 20 000 pages per second.
    fn default() -> Self {
        Guest {
            ram_mib: 8,
            counters: 200,
            blinkers: 100,
            blink_cycle: 3,
            still: 700,
            pages_per_tick: 200,
            passes_per_report: 10,
            content: Content::Mixed,
        }
    }
}

/// A guest's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    /// Passes completed.
    pub pass: u32,
    /// Pages already done in the current pass.
    pub pages: u32,
}

/// Why a guest's memory is wrong.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFault {
    /// The memory could not be read.
    #[error("cannot read the guest's memory")]
    Io(#[from] io::Error),
    /// Pages with wrong content.
    #[error("in pass {pass}, {count} pages of the guest's memory are wrong, first page {first}")]
    Damaged {
        /// The pass number in the guest's state page.
        pass: u32,
        /// Number of wrong pages.
        count: u32,
        /// The first of them.
        first: u32,
    },
}

impl Guest {
    /// The firmware image with this guest's program.
    ///
    /// # Panics
    /// If a field is out of range or the pages do not fit into the memory.
    #[must_use]
    pub fn firmware(&self) -> Vec<u8> {
        let content = u64::from(self.counters) + u64::from(self.blinkers) + u64::from(self.still);
        let end = (u64::from(FIRST_CONTENT_PAGE) + content) * PAGE as u64;
        assert!(
            end <= self.ram_bytes(),
            "{content} pages do not fit into {} MiB",
            self.ram_mib
        );
        assert!(
            self.blink_cycle >= 2 && self.passes_per_report >= 1,
            "{self:?}"
        );
        firmware::image(self)
    }

    /// The memory's size.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        u64::from(self.ram_mib) << 20
    }

    /// Writes the memory of a guest before its start into an empty file of `ram_bytes`.
    pub fn fill(&self, ram: &File) -> io::Result<()> {
        let mut page = [0; PAGE];
        let content = (0..self.counters).chain(self.counters + self.blinkers..self.used());
        for number in content.map(|index| FIRST_CONTENT_PAGE + index) {
            self.expected(number, Progress { pass: 0, pages: 0 }, &mut page);
            ram.write_all_at(&page, u64::from(number) * PAGE as u64)?;
        }
        Ok(())
    }

    /// The number of completed passes, from the guest's memory; it may be running.
    pub fn pass(&self, ram: &Ram) -> io::Result<u32> {
        let mut pass = [0; 4];
        ram.read_at(&mut pass, u64::from(STATE_PAGE) * PAGE as u64)?;
        Ok(u32::from_le_bytes(pass))
    }

    /// Checks every byte of a stopped guest's memory except the state page.
    pub fn check_memory(&self, ram: &Ram) -> Result<Progress, MemoryFault> {
        let pass = self.pass(ram)?;
        let mut progress = Progress { pass, pages: 0 };
        let mut faults = (0, 0);
        let mut expected = [0; PAGE];
        let moving = FIRST_CONTENT_PAGE..FIRST_CONTENT_PAGE + self.counters + self.blinkers;
        ram.for_each_page(|number, page| {
            let number = number as u32;
            if number == STATE_PAGE {
                return;
            }
            // The pages are processed in order, so those already done in this pass are the first
            // ones.
            if moving.contains(&number) && progress.pages == number - moving.start {
                let done = Progress {
                    pass,
                    pages: progress.pages + 1,
                };
                self.expected(number, done, &mut expected);
                if page == expected {
                    progress = done;
                    return;
                }
            }
            self.expected(number, progress, &mut expected);
            if page != expected {
                faults = (faults.0 + 1, if faults.0 == 0 { number } else { faults.1 });
            }
        })?;
        match faults {
            (0, _) => Ok(progress),
            (count, first) => Err(MemoryFault::Damaged { pass, count, first }),
        }
    }

    fn used(&self) -> u32 {
        self.counters + self.blinkers + self.still
    }

    /// The content of page `number` at `progress`.
    fn expected(&self, number: u32, progress: Progress, page: &mut [u8; PAGE]) {
        page.fill(0);
        let Some(index) = number
            .checked_sub(FIRST_CONTENT_PAGE)
            .filter(|&index| index < self.used())
        else {
            return;
        };
        let passes = progress.pass + u32::from(index < progress.pages);
        if index < self.counters {
            self.content.fill(number, page);
            let counter = usize::from(COUNTER_AT);
            page[counter..counter + 4].copy_from_slice(&passes.to_le_bytes());
        } else if index < self.counters + self.blinkers {
            page[BLINK_AT as usize] = (passes % u32::from(self.blink_cycle)) as u8;
        } else {
            self.content.fill(number, page);
        }
    }
}

/// Fills a page with one of four kinds of content, reproducibly for each number.
fn pattern(number: u32, page: &mut [u8; PAGE]) {
    // Marsaglia's xorshift; the multiplier spreads neighbouring numbers over all bits, and the
    // state must not be 0.
    let mut state = u64::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (index, word) in page.chunks_exact_mut(8).enumerate() {
        let value = match number % 4 {
            // Sixteen letters: four of eight bits are random.
            0 => (random() & 0x0f0f_0f0f_0f0f_0f0f) + 0x6161_6161_6161_6161,
            1 => random(),
            2 if index < PAGE / 16 => random(),
            2 => 0,
            // Records of 64 bytes: a number, and repeated words.
            _ if index % 8 == 0 => random() & 0xffff_ffff,
            _ => 0x0101_0101_0101_0101 * (index as u64 % 8),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{BLINK_AT, COUNTER_AT, FIRST_CONTENT_PAGE, Guest, MemoryFault, PAGE, Progress};
    use crate::memory::Ram;

    /// The memory of a guest that stops at `progress`.
    fn memory(guest: &Guest, progress: Progress) -> Vec<u8> {
        let mut ram = vec![0; guest.ram_bytes() as usize];
        let mut expected = [0; PAGE];
        for (number, page) in ram.chunks_exact_mut(PAGE).enumerate() {
            guest.expected(number as u32, progress, &mut expected);
            page.copy_from_slice(&expected);
        }
        ram[super::STATE_PAGE as usize * PAGE..][..4].copy_from_slice(&progress.pass.to_le_bytes());
        ram
    }

    fn check(guest: &Guest, bytes: &[u8]) -> Result<Progress, MemoryFault> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        guest.check_memory(&Ram::open(file.path()).unwrap())
    }

    #[test]
    fn a_whole_memory_tells_how_far_the_guest_came() {
        let guest = Guest {
            ram_mib: 4,
            counters: 20,
            blinkers: 10,
            still: 5,
            ..Guest::default()
        };
        for (pass, pages) in [(0, 0), (7, 3), (300, 25)] {
            let progress = Progress { pass, pages };
            assert_eq!(check(&guest, &memory(&guest, progress)).unwrap(), progress);
        }
    }

    #[test]
    fn any_wrong_page_is_found() {
        let guest = Guest {
            ram_mib: 4,
            counters: 20,
            blinkers: 10,
            still: 5,
            ..Guest::default()
        };
        let whole = memory(&guest, Progress { pass: 7, pages: 3 });
        let counter = usize::from(COUNTER_AT);
        let places = [
            (0, 0),             // low memory, zero
            (257, counter),     // a counter already done
            (270, counter),     // a counter still to do
            (258, counter + 1), // the counter's second byte
            (259, 2000),        // content around a counter
            (280, BLINK_AT as usize),
            (281, 0),   // a zero of a blinker
            (287, 5),   // still content
            (500, 100), // unused memory
        ];
        for (page, offset) in places {
            let mut damaged = whole.clone();
            damaged[page * PAGE + offset] ^= 0x55;
            match check(&guest, &damaged) {
                Err(MemoryFault::Damaged { count, first, .. }) => {
                    assert!(count >= 1 && first as usize == page)
                }
                other => panic!("page {page} offset {offset}: {other:?}"),
            }
        }
        assert_eq!(FIRST_CONTENT_PAGE, 256);
    }

    #[test]
    fn a_page_of_the_next_pass_is_not_mistaken_for_progress() {
        let guest = Guest {
            ram_mib: 4,
            counters: 20,
            blinkers: 0,
            still: 0,
            ..Guest::default()
        };
        let mut ram = memory(&guest, Progress { pass: 7, pages: 3 });
        let late = memory(&guest, Progress { pass: 7, pages: 20 });
        let page = (256 + 10) * PAGE;
        ram[page..page + PAGE].copy_from_slice(&late[page..page + PAGE]);
        assert!(matches!(
            check(&guest, &ram),
            Err(MemoryFault::Damaged {
                count: 1,
                first: 266,
                ..
            })
        ));
    }
}
