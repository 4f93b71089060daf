//! A heap of a program with a garbage collector: new objects where old ones were, fields of old
//! objects changed here and there, and a part that is moved together.

use testkit::pages::Random;

use crate::sending::Image;

pub struct Heap {
    memory: Image,
    random: Random,
    round: usize,
}

const PAGE: usize = 4096;
const PAGES: usize = 24 << 8;
/// New objects take turns in these pages.
const NEW_PAGES: usize = PAGES / 4;
const CLASSES: u64 = 40;

impl Heap {
    pub fn new() -> Self {
        let mut heap = Self {
            memory: vec![0; PAGES * PAGE],
            random: Random::new(1),
            round: 0,
        };
        heap.allocate(0..PAGES);
        heap
    }

    /// The memory after one more round of work.
    pub fn round(&mut self) -> Image {
        if self.round > 0 {
            // Half of the new objects' part.
            let half = NEW_PAGES / 2;
            let first = self.round % 2 * half;
            self.allocate(first..first + half);
            for _ in 0..PAGES / 4 {
                let page = NEW_PAGES + self.random.below(PAGES - NEW_PAGES);
                for _ in 0..1 + self.random.below(12) {
                    let word = page * PAGE / 8 + self.random.below(PAGE / 8);
                    let pointer = self.pointer();
                    self.put(word, pointer);
                }
            }
            // What is left of one part is moved to its beginning.
            for page in (NEW_PAGES..NEW_PAGES + PAGES / 20).map(|page| page * PAGE) {
                let gap = 8 * (1 + self.random.below(20));
                self.memory.copy_within(page + gap..page + PAGE, page);
            }
        }
        self.round += 1;
        self.memory.clone()
    }

    fn pointer(&mut self) -> u64 {
        0x7_c000_0000 + self.random.below(PAGES * PAGE) as u64 / 8 * 8
    }

    fn put(&mut self, word: usize, value: u64) {
        if let Some(place) = self.memory.get_mut(word * 8..word * 8 + 8) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn allocate(&mut self, pages: std::ops::Range<usize>) {
        let mut word = pages.start * PAGE / 8;
        let end = pages.end * PAGE / 8;
        while word < end {
            // A mark, a class, and fields: pointers, small numbers, text.
            let class = self.random.next() % CLASSES;
            let mark = 1 | (self.random.next() % 4) << 3;
            self.put(word, mark);
            self.put(word + 1, 0x8_0000_0000 + class * 0x1c8);
            let fields = 1 + class as usize % 9;
            for field in 0..fields.min(end.saturating_sub(word + 2)) {
                let value = match (class as usize + field) % 4 {
                    0 => self.pointer(),
                    1 => self.random.next() % 1000,
                    2 => 0,
                    _ => self.random.next() & 0x1f1f_1f1f_1f1f_1f1f | 0x6060_6060_6060_6060,
                };
                self.put(word + 2 + field, value);
            }
            word += 2 + fields;
        }
    }
}
