//! Pages that a VMM reports itself, because its log cannot see the write.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DirtyBitmap, DirtyLog, DirtyLogError, LogFault};
use crate::memory::{GuestMemory, OutOfRange};

/// Pages that a VMM marks as changed. Clones are one and the same, and any thread may mark at any
/// time.
///
/// ```
/// use multifd_engine::dirty::{MarkedLog, Marks, PagemapLog};
/// use multifd_engine::memory::{MappedMemory, Mapping};
/// use multifd_wire::BlockName;
/// use std::os::unix::fs::FileExt;
///
/// let ram = Mapping::memfd("ram", 1 << 20)?;
/// let memory = MappedMemory::new(vec![(BlockName::new(b"ram")?, ram)]);
/// let marks = Marks::of_memory(&memory);
///
/// // A device writes past the mapping, and says so afterwards.
/// let (_, ram) = &memory.mappings()[0];
/// ram.file().write_all_at(&[1; 4096], 8192)?;
/// marks.mark(0, 8192..8192 + 4096)?;
/// # let log = match PagemapLog::of_memory(&memory) { Ok(log) => log, Err(_) => return Ok(()) };
///
/// // What is given to the source as `Guest::dirty`.
/// let log = MarkedLog::new(log, marks);
/// # drop(log);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Marks {
    blocks: Arc<[Block]>,
}

#[derive(Debug)]
struct Block {
    len_bytes: usize,
    /// One bit for each [`UNIT_BYTES`].
    words: Vec<AtomicU64>,
}

impl Marks {
    /// No marks yet, in the blocks of `memory`.
    #[must_use]
    pub fn of_memory(memory: &dyn GuestMemory) -> Self {
        let blocks = memory.blocks();
        let block = blocks.iter().map(|block| {
            let len_bytes = block.range.len_bytes();
            let words = len_bytes.div_ceil(UNIT_BYTES).div_ceil(WORD_BITS);
            Block {
                len_bytes,
                words: std::iter::repeat_with(AtomicU64::default)
                    .take(words)
                    .collect(),
            }
        });
        Self {
            blocks: block.collect(),
        }
    }

    /// The bytes of a block were written, or were discarded. Called **after** the change: a mark
    /// that comes before it may be fetched, and the page sent, too early. Blocks are counted as in
    /// [`GuestMemory::blocks`](crate::memory::GuestMemory::blocks).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when the bytes are not all in the block, or there is no such block. Nothing
    /// is marked then.
    pub fn mark(&self, block: usize, bytes: Range<u64>) -> Result<(), OutOfRange> {
        let (found, len_bytes) = match self.blocks.get(block) {
            Some(block) => (Some(block), block.len_bytes),
            None => (None, 0),
        };
        let outside = OutOfRange {
            offset: bytes.start,
            len_bytes: usize::try_from(bytes.end.saturating_sub(bytes.start)).unwrap_or(usize::MAX),
            range_bytes: len_bytes,
        };
        let (Some(block), true) = (found, bytes.end <= len_bytes as u64) else {
            return Err(outside);
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let unit = UNIT_BYTES as u64;
        for index in bytes.start / unit..bytes.end.div_ceil(unit) {
            let index = usize::try_from(index).map_err(|_| outside)?;
            let word = block.words.get(index / WORD_BITS).ok_or(outside)?;
            // A thread that fetches the mark sees every write before it.
            word.fetch_or(1 << (index % WORD_BITS), Ordering::Release);
        }
        Ok(())
    }

    fn forget(&self) {
        for block in self.blocks.iter() {
            for word in &block.words {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn fetch(&self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        if dirty.len() != self.blocks.len() {
            let (found, expected) = (self.blocks.len(), dirty.len());
            return Err(LogFault::Blocks { found, expected }.into());
        }
        for (block, dirty) in self.blocks.iter().zip(dirty) {
            for (index, word) in (0_u64..).zip(&block.words) {
                if word.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let mut marked = word.swap(0, Ordering::Acquire);
                while marked != 0 {
                    let unit = index * WORD_BITS as u64 + u64::from(marked.trailing_zeros());
                    let start = unit * UNIT_BYTES as u64;
                    dirty.insert_bytes(start..start + UNIT_BYTES as u64);
                    marked &= marked - 1;
                }
            }
        }
        Ok(())
    }
}

/// A log, and what a VMM has marked beside it.
#[derive(Debug)]
pub struct MarkedLog<L> {
    log: L,
    marks: Marks,
}

impl<L: DirtyLog> MarkedLog<L> {
    /// Both together. The marks are of the same memory.
    pub const fn new(log: L, marks: Marks) -> Self {
        Self { log, marks }
    }
}

impl<L: DirtyLog> DirtyLog for MarkedLog<L> {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.marks.forget();
        self.log.start()
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        self.log.fetch(dirty)?;
        self.marks.fetch(dirty)
    }

    fn stop(&mut self) {
        self.log.stop();
    }

    fn reports_discards(&self) -> bool {
        self.log.reports_discards()
    }
}

/// The bytes of one mark. No guest has smaller pages that matter, and the marks take 32 KiB for
/// each GiB.
const UNIT_BYTES: usize = 4096;
const WORD_BITS: usize = u64::BITS as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MappedMemory, Mapping};
    use multifd_wire::{BlockName, PageSize};

    /// A log that sees nothing.
    struct Blind;

    impl DirtyLog for Blind {
        fn start(&mut self) -> Result<(), DirtyLogError> {
            Ok(())
        }

        fn fetch(&mut self, _: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
            Ok(())
        }

        fn stop(&mut self) {}
    }

    #[test]
    fn marks_are_fetched_once_and_none_is_lost_in_silence() {
        let block = |name: &[u8]| {
            let mapping = Mapping::memfd("guest", 100 * 4096).unwrap();
            (BlockName::new(name).unwrap(), mapping)
        };
        let memory = MappedMemory::new(vec![block(b"a"), block(b"b")]);
        let marks = Marks::of_memory(&memory);
        let mut log = MarkedLog::new(Blind, marks.clone());
        marks.mark(0, 0..1).unwrap();
        log.start().unwrap();
        marks.mark(1, 4095..4097).unwrap();
        marks.mark(1, 63 * 4096..65 * 4096).unwrap();
        marks.mark(1, 99 * 4096..100 * 4096).unwrap();
        marks.mark(1, 7..7).unwrap();
        for outside in [
            (0, 0..100 * 4096 + 1),
            (1, u64::MAX - 1..u64::MAX),
            (2, 0..1),
        ] {
            assert!(marks.mark(outside.0, outside.1).is_err());
        }
        let mut dirty = [0, 1].map(|_| DirtyBitmap::new(100 * 4096, PageSize::K4));
        log.fetch(&mut dirty).unwrap();
        assert_eq!(dirty[0].count(), 0, "marked before the start");
        let pages: Vec<_> = (0..100).filter(|&page| dirty[1].contains(page)).collect();
        assert_eq!(pages, [0, 1, 63, 64, 99]);
        dirty.iter_mut().for_each(DirtyBitmap::clear);
        log.fetch(&mut dirty).unwrap();
        assert_eq!(dirty[1].count(), 0);
        assert!(matches!(
            log.fetch(&mut []),
            Err(DirtyLogError(LogFault::Blocks { found: 2, .. }))
        ));
    }
}
