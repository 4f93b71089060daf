//! Generated pages for testing codecs, with the texture of memory.

/// A small deterministic generator, so that every failure can be reproduced.
pub struct Random(u64);

impl Random {
    /// Starts the sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// 8 random bits.
    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

/// Appends one page of a random kind, which may repeat parts of `pages`.
pub fn push_page(random: &mut Random, page_bytes: usize, pages: &mut Vec<u8>) {
    let start = pages.len();
    let end = start + page_bytes;
    match random.below(12) {
        0 => pages.resize(end, random.byte()),
        1 => pages.extend((0..page_bytes).map(|_| random.byte())),
        // Few different bytes.
        2 => {
            let alphabet = 1 + random.below(40);
            pages.extend((0..page_bytes).map(|_| random.below(alphabet) as u8));
        }
        // Pointers into one heap.
        3 => {
            let heap = random.next() & 0x7fff_ffff_f000;
            while pages.len() < end {
                let word = match random.below(4) {
                    0 => 0,
                    1 => heap + random.below(1 << 20) as u64 * 8,
                    2 => random.below(256) as u64,
                    _ => heap + random.below(64) as u64 * 16,
                };
                pages.extend(word.to_le_bytes());
            }
        }
        // Words from a small dictionary.
        4..=6 => {
            let words: Vec<Vec<u8>> = (0..4 + random.below(60))
                .map(|_| {
                    (0..1 + random.below(24))
                        .map(|_| random.byte() & 0x5f)
                        .collect()
                })
                .collect();
            while pages.len() < end {
                pages.extend(&words[random.below(words.len())]);
            }
        }
        // A copy of earlier bytes, from any distance, with some bytes changed.
        7 | 8 if start >= page_bytes => {
            let source = start - 1 - random.below((start - 1).min(70_000));
            for i in 0..page_bytes {
                pages.push(pages[source + i]);
            }
            for _ in 0..random.below(100) {
                pages[start + random.below(page_bytes)] = random.byte();
            }
        }
        // A periodic pattern.
        9 => {
            let period = 1 + random.below(600);
            let unit: Vec<u8> = (0..period).map(|_| random.byte()).collect();
            pages.extend(unit.iter().cycle().take(page_bytes));
        }
        // Zeros with islands.
        10 => {
            pages.resize(end, 0);
            for _ in 0..random.below(60) {
                pages[start + random.below(page_bytes)] = random.byte();
            }
        }
        // A skewed spectrum, so that codes become long.
        _ => pages.extend((0..page_bytes).map(|_| {
            let bits = random.next() as u32;
            (bits.trailing_ones() * 8 + (bits >> 29)) as u8
        })),
    }
    pages.resize(end, 0);
}

/// Makes `count` pages.
pub fn packet(random: &mut Random, count: usize, page_bytes: usize) -> Vec<u8> {
    let mut pages = Vec::with_capacity(count * page_bytes);
    for _ in 0..count {
        push_page(random, page_bytes, &mut pages);
    }
    pages
}
