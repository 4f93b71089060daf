//! Memory like that of a booted Linux, for a compressor: zero pages, and among the others code,
//! text, tables of pointers, lists of small structures, compressed data, and pages filled with one
//! byte.
//!
//! The share and redundancy of each sort were fitted to pages of a real guest. With zlib at level 1
//! the ratios were, in ascending order: a tenth below 1.25, a quarter around 1.6, a tenth around 2,
//! a tenth around 4, a fifth from 7 to 20, and a fifth of one repeated byte.

use std::io;

use crate::guests::PAGE_BYTES;
use crate::guests::content::Content;
use crate::guests::random::{Random, mix};

/// Part of the memory of a Linux, of any length.
#[derive(Debug)]
pub(super) struct Linux {
    seed: u64,
    /// Nonzero pages in percent.
    used_percent: u64,
    code: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Linux {
    pub(super) fn new(seed: u64, used_percent: u64) -> Self {
        let mut random = Random::new(seed, 0);
        // Bytes of a program: some are far more frequent than others.
        let code = |random: &mut Random| vec![random.skewed(256) as u8 ^ 0x48; 1];
        Self {
            seed,
            used_percent,
            code: (0..400).map(|_| code(&mut random)).collect(),
            words: (0..1200).map(|_| word(&mut random)).collect(),
        }
    }

    /// Returns whether the page is nonzero.
    pub(super) fn is_used(&self, page: u64) -> bool {
        mix(self.seed ^ mix(page / RUN_PAGES)) % 100 < self.used_percent
    }

    /// Appends the page with this index.
    pub(super) fn append(&self, page: u64, out: &mut Vec<u8>) {
        let end = out.len() + PAGE_BYTES;
        if self.is_used(page) {
            let sort = mix(self.seed.wrapping_add(page / RUN_PAGES)) % 100;
            self.append_sort(sort, &mut Random::new(self.seed, page), end, out);
        }
        out.resize(end, 0);
    }

    fn append_sort(&self, sort: u64, random: &mut Random, end: usize, out: &mut Vec<u8>) {
        match sort {
            0..8 => packed(random, end, out),
            8..32 => written(&self.code, 28, random, end, out),
            32..43 => written(&self.words, 24, random, end, out),
            43..56 => structures(32, 5, random, end, out),
            56..60 => structures(64, 9, random, end, out),
            60..74 => structures(64, 4, random, end, out),
            74..80 => sparse(random, end, out),
            // Freed memory that the kernel has poisoned, and unused buffers.
            _ => out.resize(end, 0x6b),
        }
    }
}

/// Data written in symbols of a language, with repetitions: in `repeats_percent` of all steps it
/// repeats some bytes of the last kilobyte, otherwise it adds a new symbol.
fn written(
    symbols: &[Vec<u8>],
    repeats_percent: u64,
    random: &mut Random,
    end: usize,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    while out.len() < end {
        let choice = random.next();
        let behind = ((choice >> 8) % REACH) as usize + 1;
        let len = 3 + ((choice >> 32) % 6) as usize;
        if choice % 100 < repeats_percent && behind + len < out.len() - start {
            let from = out.len() - behind - len;
            out.extend_from_within(from..from + len);
        } else {
            let symbol = symbols.get(random.skewed(symbols.len()));
            out.extend_from_slice(symbol.map_or(&[0], Vec::as_slice));
        }
    }
    out.truncate(end);
}

/// Compressed files and keys: they hardly compress again.
fn packed(random: &mut Random, end: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(end, 0);
    let bytes = out.get_mut(start..).unwrap_or_default();
    random.fill(bytes);
    bytes.iter_mut().step_by(3).for_each(|byte| *byte &= 0x0f);
}

/// An array of structures of `size` bytes. Most of a structure is the same in all; `varying` bytes,
/// in two places, differ: half of them are the low part of a kernel pointer.
fn structures(size: usize, varying: usize, random: &mut Random, end: usize, out: &mut Vec<u8>) {
    let mut template = vec![0; size];
    template
        .iter_mut()
        .step_by(8)
        .for_each(|byte| *byte = random.next() as u8);
    template
        .iter_mut()
        .skip(12)
        .take(4)
        .for_each(|byte| *byte = 0xff);
    while out.len() < end {
        let mut one = template.clone();
        let (pointer, counter) = one.split_at_mut(size / 2);
        let low = varying.div_ceil(2);
        random.fill(pointer.get_mut(8..8 + low).unwrap_or_default());
        random.fill(counter.get_mut(..varying - low).unwrap_or_default());
        out.extend_from_slice(&one);
    }
    out.truncate(end);
}

/// A page with little data.
fn sparse(random: &mut Random, end: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(end, 0);
    let bytes = out.get_mut(start..).unwrap_or_default();
    for _ in 0..32 {
        let at = random.below(PAGE_BYTES as u64 / 8) as usize * 8;
        random.fill(bytes.get_mut(at..at + 5).unwrap_or_default());
    }
}

/// A word of a text, with its separator.
fn word(random: &mut Random) -> Vec<u8> {
    const LETTERS: &[u8] = b"etaoinsrhldcumfpgwybvkxjqz_/";
    const BETWEEN: &[u8] = b"      =.,:\n-";
    let of = |set: &[u8], random: &mut Random| {
        set.get(random.skewed(set.len())).copied().unwrap_or(b' ')
    };
    let mut word: Vec<u8> = (0..2 + random.below(6))
        .map(|_| of(LETTERS, random))
        .collect();
    word.push(of(BETWEEN, random));
    word
}

/// A guest with only a Linux.
#[derive(Debug)]
pub(super) struct Idle {
    linux: Linux,
    pages: u64,
}

impl Idle {
    /// `bytes` is a whole number of pages.
    pub(super) fn new(seed: u64, bytes: u64) -> Self {
        Self {
            linux: Linux::new(seed, USED_PERCENT),
            pages: bytes / PAGE_BYTES as u64,
        }
    }
}

impl Content for Idle {
    fn pieces(&self) -> u64 {
        self.pages.div_ceil(PIECE_PAGES)
    }

    fn make(&self, index: u64, piece: &mut Vec<u8>) -> io::Result<u64> {
        let first = index * PIECE_PAGES;
        for page in first..self.pages.min(first + PIECE_PAGES) {
            self.linux.append(page, piece);
        }
        Ok(first * PAGE_BYTES as u64)
    }
}

/// The share of memory that is or was in use.
const USED_PERCENT: u64 = 20;

/// The maximum distance of a repetition.
const REACH: u64 = 1024;

/// Pages of one sort are contiguous: the kernel allocates neighbours.
const RUN_PAGES: u64 = 16;

/// Pages filled at once: enough for few system calls, and few enough for a processor's cache.
const PIECE_PAGES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::content::tests::{ratio, used_pages};

    #[test]
    fn it_is_mostly_zero_and_the_rest_compresses_as_a_real_guest_does() {
        let (used, all) = used_pages(&Idle::new(1, 256 << 20));
        let percent = used.len() / PAGE_BYTES * 100 / all;
        assert!((18..=22).contains(&percent), "{percent}");
        let ratio = ratio(&used);
        assert!((2.2..=2.5).contains(&ratio), "{ratio}");
    }

    /// The fitted ratios, under zlib.
    #[test]
    fn each_sort_of_page_compresses_as_it_was_fitted() {
        let linux = Linux::new(1, 100);
        let fitted = [
            (0, 0.97),
            (8, 1.35),
            (32, 1.74),
            (43, 3.04),
            (56, 3.69),
            (60, 5.33),
            (74, 13.83),
            (80, 103.42),
        ];
        for (sort, expected) in fitted {
            let mut pages = Vec::new();
            for page in 0..512 {
                let end = pages.len() + PAGE_BYTES;
                linux.append_sort(sort, &mut Random::new(1, page), end, &mut pages);
            }
            let off = ratio(&pages) / expected;
            assert!(
                (0.97..=1.03).contains(&off),
                "{sort}: {off} times {expected}"
            );
        }
    }
}
