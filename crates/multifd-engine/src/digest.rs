//! One digest of all memory of a stopped guest, the same at both ends.
//!
//! SHA-256 of each leaf of 1 MiB, on all processors, and SHA-256 of all these with the blocks'
//! names and lengths.

use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use multifd_codec::{Pages, is_zero};
use multifd_wire::PageSize;
use sha2::{Digest, Sha256};

use crate::memory::{MemoryBlock, OutOfRange};

/// Small enough to stay in a processor's cache while it is copied and hashed.
const LEAF_BYTES: usize = 1 << 20;

/// A thread is worth making for this many leaves: some milliseconds of work.
const LEAVES_FOR_A_THREAD: usize = 8;

type Sum = [u8; 32];

/// Most of an idle guest is zero, and to see that is much faster than to hash it.
static ZERO_LEAF: LazyLock<Sum> = LazyLock::new(|| Sha256::digest(vec![0; LEAF_BYTES]).into());

/// The digest of `blocks`, whose order does not matter, and which are whole numbers of pages.
pub(crate) fn of_memory(
    blocks: &[MemoryBlock<'_>],
    page_size: PageSize,
) -> Result<Sum, OutOfRange> {
    let mut blocks: Vec<_> = blocks.iter().collect();
    blocks.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    let mut all = Sha256::new();
    for block in blocks {
        let len_bytes = block.range.len_bytes();
        // A name has no NUL, so what follows cannot be taken for a part of it.
        all.update(block.name.as_bytes());
        all.update([0]);
        all.update((len_bytes as u64).to_be_bytes());
        let sums = leaves(block, page_size)?;
        sums.iter().for_each(|sum| all.update(sum));
    }
    Ok(all.finalize().into())
}

/// The sums of all leaves of a block, in their order. Threads are made for a large block only, and
/// as few as it can use.
fn leaves(block: &MemoryBlock<'_>, page_size: PageSize) -> Result<Vec<Sum>, OutOfRange> {
    let count = block.range.len_bytes().div_ceil(LEAF_BYTES);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut bytes = Vec::with_capacity(LEAF_BYTES);
        let mut sums = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(sums);
            }
            sums.push((index, leaf(block, page_size, index, &mut bytes)?));
        }
    };
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let helpers = (count / LEAVES_FOR_A_THREAD).min(processors.saturating_sub(1));
    let mut sums = thread::scope(|scope| {
        // Without threads the caller does all of the work.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(spawn).collect();
        let mut sums: Vec<(usize, Sum)> = work()?;
        for helper in helpers {
            match helper.join() {
                Ok(more) => sums.extend(more?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(sums)
    })?;
    sums.sort_unstable_by_key(|(index, _)| *index);
    Ok(sums.into_iter().map(|(_, sum)| sum).collect())
}

/// Computes leaf number `index` of a block, by a copy in `bytes`.
fn leaf(
    block: &MemoryBlock<'_>,
    page_size: PageSize,
    index: usize,
    bytes: &mut Vec<u8>,
) -> Result<Sum, OutOfRange> {
    let start = index.saturating_mul(LEAF_BYTES);
    let end = start
        .saturating_add(LEAF_BYTES)
        .min(block.range.len_bytes());
    bytes.clear();
    for offset in (start..end).step_by(page_size.bytes()) {
        let page = [block.range.page(offset as u64, page_size)?];
        // One page of the right size makes a packet's worth.
        if let Ok(pages) = Pages::guest(&page, page_size) {
            pages.append_to(bytes);
        }
    }
    if bytes.len() == LEAF_BYTES && is_zero(bytes) {
        return Ok(*ZERO_LEAF);
    }
    Ok(Sha256::digest(&bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestMemory, MappedMemory, Mapping};
    use multifd_wire::BlockName;

    fn memory(names: &[&str], len_bytes: usize) -> MappedMemory {
        let block = |name: &&str| {
            let mapping = Mapping::memfd(name, len_bytes).unwrap();
            (BlockName::new(name.as_bytes()).unwrap(), mapping)
        };
        MappedMemory::new(names.iter().map(block).collect())
    }

    fn of(memory: &MappedMemory) -> Sum {
        of_memory(&memory.blocks(), PageSize::K4).unwrap()
    }

    #[test]
    fn the_order_of_blocks_does_not_matter_and_every_word_does() {
        let len = 3 * LEAF_BYTES + 4096;
        let (one, other) = (memory(&["a", "b"], len), memory(&["b", "a"], len));
        assert_eq!(of(&one), of(&other));
        for offset in [0, LEAF_BYTES - 8, LEAF_BYTES, len - 8] {
            one.blocks()[0].range.write(offset as u64, &[1; 8]).unwrap();
            assert_ne!(of(&one), of(&other), "{offset}");
            other.blocks()[1]
                .range
                .write(offset as u64, &[1; 8])
                .unwrap();
            assert_eq!(of(&one), of(&other), "{offset}");
        }
        assert_ne!(of(&memory(&["a"], len)), of(&memory(&["b"], len)));
        assert_ne!(of(&memory(&["a"], len)), of(&memory(&["a"], len + 4096)));
    }
}
