//! The memory of a made guest: pages like those of a server that keeps records.
//!
//! Every page is its own, although only few are kept: the page's number stands at its start. So any
//! page that arrives can be checked, whatever the guest's size.

/// The size of a page on x86-64.
pub(super) const PAGE_BYTES: usize = 4096;

/// The pages that are kept: 16 MiB, more than the caches nearest to a processor.
const POOL_PAGES: usize = 4096;

/// Where a page's number stands.
const STAMP: usize = 8;

/// Where a page that is written again changes. So few bytes are those of a counter or a record.
const CHANGED: std::ops::Range<usize> = 1024..1088;

/// The memory.
pub(super) struct Memory {
    pool: Vec<u8>,
}

/// A generator that needs no seed of the system: the same pages come each time (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Memory {
    /// A half of the pages has records with random texts, a quarter has pointers, an eighth has
    /// words, and an eighth cannot be compressed.
    pub(super) fn new() -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut pool = Vec::with_capacity(POOL_PAGES * PAGE_BYTES);
        for page in 0..POOL_PAGES {
            let end = pool.len() + PAGE_BYTES;
            match page % 8 {
                0..=3 => records(&mut pool, end, &mut random),
                4 | 5 => pointers(&mut pool, end, &mut random),
                6 => words(&mut pool, end, &mut random),
                _ => {
                    while pool.len() < end {
                        pool.extend_from_slice(&random.next().to_le_bytes());
                    }
                }
            }
            pool.truncate(end);
        }
        Self { pool }
    }

    fn kept(&self, number: u64) -> &[u8] {
        let index = (number % POOL_PAGES as u64) as usize;
        let start = index.saturating_mul(PAGE_BYTES);
        let end = start.saturating_add(PAGE_BYTES);
        self.pool.get(start..end).unwrap_or_default()
    }

    /// Appends the page of this number, as it is after so many writes to it.
    pub(super) fn append(&self, number: u64, writes: u64, out: &mut Vec<u8>) {
        let kept = self.kept(number);
        out.extend_from_slice(&number.to_le_bytes());
        if writes == 0 {
            out.extend_from_slice(kept.get(STAMP..).unwrap_or_default());
            return;
        }
        out.extend_from_slice(kept.get(STAMP..CHANGED.start).unwrap_or_default());
        out.extend_from_slice(&changed(number, writes));
        out.extend_from_slice(kept.get(CHANGED.end..).unwrap_or_default());
    }

    /// Whether `page` is the page of this number after so many writes.
    pub(super) fn has(&self, number: u64, writes: u64, page: &[u8]) -> bool {
        let kept = self.kept(number);
        let is_same = |range: std::ops::Range<usize>| page.get(range.clone()) == kept.get(range);
        let is_changed = match writes {
            0 => is_same(CHANGED),
            _ => page.get(CHANGED) == Some(&changed(number, writes)),
        };
        page.len() == PAGE_BYTES
            && page.starts_with(&number.to_le_bytes())
            && is_changed
            && is_same(STAMP..CHANGED.start)
            && is_same(CHANGED.end..PAGE_BYTES)
    }
}

fn changed(number: u64, writes: u64) -> [u8; 64] {
    // Odd numbers, so that no two writes to a page look alike; the generator needs a seed above 0.
    let page = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let seed = page ^ writes.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut random = Random(seed.max(1));
    let mut bytes = [0; 64];
    for part in bytes.chunks_exact_mut(8) {
        part.copy_from_slice(&random.next().to_le_bytes());
    }
    bytes
}

/// Keys, and values of random printable bytes.
fn records(pool: &mut Vec<u8>, end: usize, random: &mut Random) {
    while pool.len() < end {
        let key = format!(
            "user{:019}\0\0\0\x64field{}\0",
            random.next() >> 2,
            pool.len() % 10
        );
        pool.extend_from_slice(key.as_bytes());
        for _ in 0..12 {
            let mut bits = random.next();
            for _ in 0..8 {
                pool.push(b' ' + (bits % 64) as u8);
                bits >>= 8;
            }
        }
        pool.extend_from_slice(&[0; 24]);
    }
}

/// Lists of addresses in one heap, with lengths and flags.
fn pointers(pool: &mut Vec<u8>, end: usize, random: &mut Random) {
    while pool.len() < end {
        let bits = random.next();
        let address = 0x7f3a_0000_0000 + (bits & 0x03ff_fff0);
        pool.extend_from_slice(&address.to_le_bytes());
        pool.extend_from_slice(&(bits >> 58).to_le_bytes());
        pool.extend_from_slice(&[0; 16]);
    }
}

/// Text of few words.
fn words(pool: &mut Vec<u8>, end: usize, random: &mut Random) {
    const WORDS: [&str; 16] = [
        "the ", "guest ", "runs ", "while ", "its ", "memory ", "moves ", "to ", "another ",
        "host, ", "page ", "by ", "page; ", "nobody ", "notices ", "it.\n",
    ];
    while pool.len() < end {
        let index = (random.next() >> 60) as usize;
        pool.extend_from_slice(WORDS.get(index).unwrap_or(&"").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_known_again_and_no_other_passes_for_it() {
        let memory = Memory::new();
        for number in [0, 5, 4095, 4096, 1 << 30] {
            for writes in [0, 1, 2] {
                let mut page = Vec::new();
                memory.append(number, writes, &mut page);
                assert!(memory.has(number, writes, &page), "{number} {writes}");
                assert!(!memory.has(number + 4096, writes, &page));
                assert!(!memory.has(number, writes + 1, &page));
                for at in [0, 7, 8, 1023, 1024, 1087, 1088, 4095] {
                    page[at] ^= 1;
                    assert!(!memory.has(number, writes, &page), "{number} {writes} {at}");
                    page[at] ^= 1;
                }
                page.pop();
                assert!(!memory.has(number, writes, &page));
            }
        }
    }
}
