//! How often symbols occur in items.

use super::format::{
    DISTANCE_SYMBOLS, END_OF_BLOCK, LENGTH_SYMBOL, LITLEN_SYMBOLS, MAX_MATCH, MIN_MATCH,
};
use super::item::{self, Item};

/// How often each symbol occurs, or is thought to.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) litlen: [u32; LITLEN_SYMBOLS],
    pub(super) distance: [u32; DISTANCE_SYMBOLS],
}

impl Counts {
    /// Nothing counted, for counting everything.
    pub(super) fn none() -> Self {
        Self {
            litlen: [0; LITLEN_SYMBOLS],
            distance: [0; DISTANCE_SYMBOLS],
        }
    }

    /// Every symbol counted once. Not everything that comes will have been counted, but all of it
    /// needs a code.
    pub(super) fn one_each() -> Self {
        Self {
            litlen: [1; LITLEN_SYMBOLS],
            distance: [1; DISTANCE_SYMBOLS],
        }
    }

    /// Adds the ends of so many blocks.
    pub(super) fn add_ends(&mut self, count: u32) {
        self.litlen[END_OF_BLOCK] += count;
    }

    /// Adds the symbols of counted items.
    pub(super) fn add(&mut self, tally: &Tally) {
        for (literal, count) in self.litlen.iter_mut().take(END_OF_BLOCK).enumerate() {
            *count += tally.first(literal) + tally.second(literal);
        }
        for length in MIN_MATCH..=MAX_MATCH {
            let symbol = LENGTH_SYMBOL[length - MIN_MATCH];
            self.litlen[usize::from(symbol)] += tally.first(item::LENGTHS + length - MIN_MATCH);
        }
        for (symbol, count) in self.distance.iter_mut().enumerate() {
            *count += tally.second(item::DISTANCES + symbol);
        }
    }
}

#[derive(Clone)]
/// Counts of items' indexes, in four parts, since counting the same twice in a row is slow.
pub(super) struct Tally {
    first: [[u32; item::FIRST_CODES]; 4],
    second: [[u32; item::SECOND_CODES]; 4],
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            first: [[0; item::FIRST_CODES]; 4],
            second: [[0; item::SECOND_CODES]; 4],
        }
    }

    pub(super) fn count(&mut self, items: &[Item]) {
        let mut four = items.chunks_exact(4);
        for items in &mut four {
            for (part, &item) in items.iter().enumerate() {
                self.first[part][item::first(item)] += 1;
                self.second[part][item::second(item)] += 1;
            }
        }
        for &item in four.remainder() {
            self.first[0][item::first(item)] += 1;
            self.second[0][item::second(item)] += 1;
        }
    }

    /// Adds what another one has counted.
    pub(super) fn add(&mut self, other: &Self) {
        let first = self.first.as_flattened_mut().iter_mut();
        let second = self.second.as_flattened_mut().iter_mut();
        let others = other.first.as_flattened().iter();
        let others = others.chain(other.second.as_flattened());
        for (count, other) in first.chain(second).zip(others) {
            *count += other;
        }
    }

    fn first(&self, index: usize) -> u32 {
        self.first.iter().map(|part| part[index]).sum()
    }

    fn second(&self, index: usize) -> u32 {
        self.second.iter().map(|part| part[index]).sum()
    }
}
