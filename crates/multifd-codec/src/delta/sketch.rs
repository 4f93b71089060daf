//! Counts roughly how often each page was sent, in a few bits for each slot.

use super::places::hash;

/// Small counters for far more pages than there are slots. Pages share counters by hash, so a count
/// may be too high. All counts are halved now and then, so older packets count less.
#[derive(Debug, Default)]
pub(crate) struct Sketch {
    /// Each has sixteen counters of 4 bits.
    words: Vec<u64>,
    /// Pages counted since the last halving.
    counted: usize,
}

impl Sketch {
    /// Counters for a shard of `slots` slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            words: vec![0; slots.div_ceil(SLOTS_PER_WORD)],
            counted: 0,
        }
    }

    /// Counts a page that is sent. Returns its count, which is at least 1.
    pub(crate) fn add(&mut self, key: u64) -> u64 {
        self.counted += 1;
        if self.counted > self.words.len() * PAGES_PER_WORD {
            self.counted = 0;
            self.words
                .iter_mut()
                .for_each(|word| *word = *word >> 1 & HALVES);
        }
        let count = (self.count(key) + 1).min(MOST);
        let places = places(key);
        if let Some(word) = self.word_mut(key) {
            for place in places {
                // A counter that is higher already counts other pages, too.
                if *word >> place & MOST < count {
                    *word = *word & !(MOST << place) | count << place;
                }
            }
        }
        count
    }

    /// The count of a page.
    pub(crate) fn count(&self, key: u64) -> u64 {
        let word = self.words.get(self.index(key)).copied().unwrap_or_default();
        let [first, second] = places(key).map(|place| word >> place & MOST);
        first.min(second)
    }

    /// Halves a page's count, because it differed too much.
    pub(crate) fn halve(&mut self, key: u64) {
        let half = self.count(key) / 2;
        let places = places(key);
        if let Some(word) = self.word_mut(key) {
            for place in places {
                *word = *word & !(MOST << place) | half << place;
            }
        }
    }

    fn index(&self, key: u64) -> usize {
        // The table of places uses the lowest bits.
        ((hash(key) >> 24) % self.words.len().max(1) as u64) as usize
    }

    fn word_mut(&mut self, key: u64) -> Option<&mut u64> {
        let index = self.index(key);
        self.words.get_mut(index)
    }
}

/// The places of a page's two counters in their word, which may be the same.
const fn places(key: u64) -> [u64; 2] {
    let hash = hash(key);
    [hash >> 60 << 2, (hash >> 56 & 15) << 2]
}

const SLOTS_PER_WORD: usize = 2;
/// After this many pages for each word all counts are halved: sixteen rounds of as many pages as
/// there are slots.
const PAGES_PER_WORD: usize = 16 * SLOTS_PER_WORD;
const MOST: u64 = 15;
const HALVES: u64 = 0x7777_7777_7777_7777;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted() {
        let mut sketch = Sketch::new(1000);
        for round in 1..=4 {
            let wrong = (0..1000).filter(|key| sketch.add(*key) != round).count();
            assert!(wrong < 50, "{wrong} wrong");
        }
        let news = (1000..4000).filter(|key| sketch.add(*key) == 1).count();
        assert!(news > 2000, "{news} are new");
        sketch.halve(7);
        assert!(sketch.count(7) <= 2);
        for _ in 0..40 {
            sketch.add(5);
        }
        assert_eq!(sketch.count(5), MOST);
    }

    #[test]
    fn old_counts_fade() {
        let mut sketch = Sketch::new(100);
        for _ in 0..8 {
            sketch.add(1);
        }
        for key in 0..4 * 1600 {
            sketch.add(1000 + key % 10);
        }
        assert!(sketch.count(1) <= 1);
    }
}
