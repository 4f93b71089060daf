//! Reproducible pseudo-random numbers.

/// Steele, Lea and Flood's SplitMix64: fast, and any seed will do.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// A separate sequence for each pair of numbers.
    pub(crate) const fn new(seed: u64, stream: u64) -> Self {
        Self {
            state: mix(seed).wrapping_add(mix(stream ^ STEP)),
        }
    }

    /// Returns the next number of the sequence.
    pub(crate) const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Returns the next number below `bound`; 0 if `bound` is 0.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// Returns the next index below `bound`, small ones more often than large ones.
    pub(crate) fn skewed(&mut self, bound: usize) -> usize {
        let chance = self.unit();
        (chance * chance * bound as f64) as usize
    }

    /// Returns the next number in 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        // The precision of a double.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Fills `bytes`.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            piece.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A permutation of all numbers that hides their order.
pub(super) const fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Chooses the requested record: some are far more frequent than others, and these are scattered,
/// as with YCSB's scrambled zipfian generator. The method is that of Gray et al., "Quickly
/// generating billion-record synthetic databases".
#[derive(Clone, Debug)]
pub(super) struct Zipfian {
    items: u64,
    zeta: f64,
    eta: f64,
    alpha: f64,
}

impl Zipfian {
    /// YCSB's constant.
    const THETA: f64 = 0.99;

    /// Chooses among `items`, at least one.
    pub(super) fn new(items: u64) -> Self {
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
    pub(super) fn next(&self, random: &mut Random) -> u64 {
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
        // With this exponent, the most frequent of ten thousand gets one request in ten, and the
        // first hundred get half.
        assert!((8_000..13_000).contains(&counts[0]), "{}", counts[0]);
        let first: u32 = counts.iter().take(100).sum();
        assert!((45_000..65_000).contains(&first), "{first}");
        assert_eq!(Zipfian::new(1).next(&mut random), 0);
    }
}
