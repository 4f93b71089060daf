//! Numbers that look random and are the same for the same seed.

/// Steele, Lea and Flood's SplitMix64: fast, and any seed will do.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A sequence of its own for each pair of numbers.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self {
            state: mix(seed).wrapping_add(mix(stream ^ STEP)),
        }
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// The next number below `bound`; 0 when there is none.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// The next index below `bound`, small ones more often than large ones.
    pub fn skewed(&mut self, bound: usize) -> usize {
        let chance = self.unit();
        (chance * chance * bound as f64) as usize
    }

    /// The next number from 0 up to but not 1.
    pub fn unit(&mut self) -> f64 {
        // As many bits as a double has.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            piece.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A permutation of all numbers which leaves no trace of their order.
pub const fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Which record is asked for: some far more often than others, and those scattered, as with YCSB's
/// scrambled zipfian generator. The method is that of Gray et al., "Quickly generating
/// billion-record synthetic databases".
#[derive(Clone, Debug)]
pub struct Zipfian {
    items: u64,
    zeta: f64,
    eta: f64,
    alpha: f64,
}

impl Zipfian {
    /// YCSB's constant.
    const THETA: f64 = 0.99;

    /// Of `items`, at least one.
    pub fn new(items: u64) -> Self {
        let zeta = |count: u64| -> f64 { (1..=count).map(|i| (i as f64).powf(-Self::THETA)).sum() };
        let (all, two) = (zeta(items), zeta(2));
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - Self::THETA)) / (1.0 - two / all);
        Self {
            items,
            zeta: all,
            eta,
            alpha: 1.0 / (1.0 - Self::THETA),
        }
    }

    /// The next item.
    pub fn next(&self, random: &mut Random) -> u64 {
        let chance = random.unit();
        let scaled = chance * self.zeta;
        let rank = if scaled < 1.0 {
            0
        } else if scaled < 1.0 + 0.5_f64.powf(Self::THETA) {
            1
        } else {
            let base = self.eta.mul_add(chance, 1.0 - self.eta);
            (self.items as f64 * base.powf(self.alpha)) as u64
        };
        mix(rank) % self.items.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_gives_others() {
        let take = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [(); 4].map(|()| random.next())
        };
        assert_eq!(take(1, 2), take(1, 2));
        assert_ne!(take(1, 2), take(2, 1));
        assert_ne!(take(1, 0), take(0, 1));
        let mut random = Random::new(0, 0);
        assert!((0..1000).all(|_| random.below(7) < 7 && random.skewed(5) < 5));
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn a_few_items_have_most_of_the_requests() {
        let zipfian = Zipfian::new(10_000);
        let mut random = Random::new(3, 0);
        let mut counts = HashMap::<u64, u32>::new();
        for _ in 0..100_000 {
            *counts.entry(zipfian.next(&mut random)).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // With this exponent the most frequent of ten thousand has one request in ten, and the
        // first hundred have half.
        assert!((8_000..13_000).contains(&counts[0]), "{}", counts[0]);
        let first: u32 = counts.iter().take(100).sum();
        assert!((45_000..65_000).contains(&first), "{first}");
        assert_eq!(Zipfian::new(1).next(&mut random), 0);
    }
}
