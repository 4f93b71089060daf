//! Fills a guest's memory on all processors.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::guests::PAGE_BYTES;

/// The initial content of a guest's memory, in pieces that are made one by one in any order.
pub(super) trait Content: Sync {
    /// The number of pieces.
    fn pieces(&self) -> u64;

    /// Makes a piece in `piece`, which is empty, and returns its offset, which is the start of a
    /// page.
    ///
    /// # Errors
    ///
    /// If it comes from a file that cannot be read.
    fn make(&self, index: u64, piece: &mut Vec<u8>) -> io::Result<u64>;
}

/// Writes `content` to `memory`, which is all zero. Zero pages are not touched.
pub(super) fn fill(memory: &File, content: &dyn Content) -> io::Result<()> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut piece = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= content.pieces() {
                return Ok(());
            }
            piece.clear();
            let offset = content.make(index, &mut piece)?;
            write_where_not_zero(memory, offset, &piece)?;
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let running: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        running.into_iter().fold(own, |outcome, thread| {
            let ended = || io::Error::other("a thread has ended early");
            outcome.and(thread.join().unwrap_or_else(|_| Err(ended())))
        })
    })
}

fn write_where_not_zero(memory: &File, offset: u64, piece: &[u8]) -> io::Result<()> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut at = offset;
    let pages: Vec<&[u8]> = piece.chunks(PAGE_BYTES).collect();
    for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if run.first().is_some_and(|page| !is_zero(page)) {
            let from = usize::try_from(at - offset).unwrap_or(usize::MAX);
            memory.write_all_at(
                piece
                    .get(from..)
                    .and_then(|rest| rest.get(..len))
                    .unwrap_or_default(),
                at,
            )?;
        }
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    /// Returns the nonzero pages, back to back, and the number of all pages made, including zero
    /// pages.
    pub(crate) fn used_pages(content: &dyn Content) -> (Vec<u8>, usize) {
        let (mut used, mut pages) = (Vec::new(), 0);
        for index in 0..content.pieces() {
            let mut piece = Vec::new();
            content.make(index, &mut piece).unwrap();
            let not_zero = piece
                .chunks(PAGE_BYTES)
                .filter(|page| page.iter().any(|byte| *byte != 0));
            used.extend(not_zero.flatten());
            pages += piece.len() / PAGE_BYTES;
        }
        (used, pages)
    }

    /// Returns the compression ratio of zlib-rs at level 1. A stock zlib compresses better: its
    /// ratio is 2.8 for an idle guest and 2.0 for a Redis.
    pub(crate) fn ratio(pages: &[u8]) -> f64 {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(1));
        zlib.write_all(pages).unwrap();
        pages.len() as f64 / zlib.finish().unwrap().len() as f64
    }

    struct EveryOther;

    impl Content for EveryOther {
        fn pieces(&self) -> u64 {
            64
        }

        fn make(&self, index: u64, piece: &mut Vec<u8>) -> io::Result<u64> {
            for page in 0..16_u8 {
                piece.resize(piece.len() + PAGE_BYTES, page % 2 * (index as u8 + 1));
            }
            Ok(index * 16 * PAGE_BYTES as u64)
        }
    }

    #[test]
    fn pieces_are_written_in_place_and_zeros_take_no_memory() {
        let memory = tempfile::tempfile_in("/dev/shm")
            .or_else(|_| tempfile::tempfile())
            .unwrap();
        memory.set_len(64 * 16 * PAGE_BYTES as u64).unwrap();
        fill(&memory, &EveryOther).unwrap();
        let mut byte = [0];
        for index in 0..64_u64 {
            let page = (index * 16 + 3) * PAGE_BYTES as u64;
            memory.read_exact_at(&mut byte, page + 4095).unwrap();
            assert_eq!(u64::from(byte[0]), index + 1);
            memory.read_exact_at(&mut byte, page + 4096).unwrap();
            assert_eq!(byte[0], 0);
        }
        let used = memory.metadata().unwrap().blocks() * 512;
        assert!(used <= 33 * 16 * PAGE_BYTES as u64, "{used}");
    }
}
