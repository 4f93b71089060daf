//! A hash table that finds slots by their keys.

/// A table with linear probing: an entry stands at its key's home or behind it, without a gap in
/// between. The keys themselves are in the slots, so callers pass `key_of`.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// A slot's number plus 1, or 0 for none. The length is a power of two, and at least half of
    /// the entries are 0.
    entries: Vec<u32>,
}

impl Places {
    /// Makes room for `slots` slots. `used` are the slots in the table.
    pub(crate) fn make_room(
        &mut self,
        slots: usize,
        used: impl Iterator<Item = u32>,
        key_of: impl Fn(u32) -> u64,
    ) {
        let len = (2 * slots).next_power_of_two();
        if len > self.entries.len() {
            self.entries = vec![0; len];
            used.for_each(|slot| self.insert(key_of(slot), slot));
        }
    }

    /// The slot of `key`.
    pub(crate) fn find(&self, key: u64, key_of: impl Fn(u32) -> u64) -> Option<u32> {
        let mut at = self.home(key);
        while let Some(slot) = self.at(at) {
            if key_of(slot) == key {
                return Some(slot);
            }
            at = self.next(at);
        }
        None
    }

    /// Adds a slot whose key is not in the table. There must be room.
    pub(crate) fn insert(&mut self, key: u64, slot: u32) {
        let mut at = self.home(key);
        while self.at(at).is_some() {
            at = self.next(at);
        }
        self.set(at, slot + 1);
    }

    /// Removes a slot.
    pub(crate) fn remove(&mut self, key: u64, slot: u32, key_of: impl Fn(u32) -> u64) {
        let mut hole = self.home(key);
        loop {
            match self.at(hole) {
                Some(found) if found == slot => break,
                Some(_) => hole = self.next(hole),
                None => return,
            }
        }
        // Entries behind the hole move into it, unless it is before their home.
        let mut at = self.next(hole);
        while let Some(found) = self.at(at) {
            let from_home = self.distance(self.home(key_of(found)), at);
            if from_home >= self.distance(hole, at) {
                self.set(hole, found + 1);
                hole = at;
            }
            at = self.next(at);
        }
        self.set(hole, 0);
    }

    fn home(&self, key: u64) -> usize {
        hash(key) as usize & self.mask()
    }

    const fn mask(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }

    const fn next(&self, at: usize) -> usize {
        (at + 1) & self.mask()
    }

    const fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & self.mask()
    }

    fn at(&self, at: usize) -> Option<u32> {
        self.entries.get(at).and_then(|entry| entry.checked_sub(1))
    }

    fn set(&mut self, at: usize, entry: u32) {
        if let Some(place) = self.entries.get_mut(at) {
            *place = entry;
        }
    }
}

/// Spreads consecutive keys over the table. A guest that provokes collisions slows down only its
/// own migration.
pub(crate) const fn hash(key: u64) -> u64 {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use testkit::pages::Random;

    use super::*;

    #[test]
    fn a_table_has_what_was_put_in() {
        let mut random = Random::new(3);
        for slots in [1, 2, 3, 50] {
            let mut table = Places::default();
            table.make_room(slots, 0..0, |_| 0);
            let mut keys = vec![0; slots];
            let mut model = HashMap::new();
            for _ in 0..20_000 {
                let key = random.below(2 * slots) as u64;
                let key_of = |slot: u32| keys[slot as usize];
                assert_eq!(table.find(key, key_of), model.get(&key).copied());
                if random.below(5000) == 0 {
                    let used = model.values().copied();
                    table.make_room(8 * slots, used, key_of);
                }
                let free = (0..slots as u32).find(|slot| !model.values().any(|used| used == slot));
                match (model.get(&key), free) {
                    (Some(&slot), _) => {
                        table.remove(key, slot, key_of);
                        model.remove(&key);
                    }
                    (None, Some(slot)) => {
                        keys[slot as usize] = key;
                        table.insert(key, slot);
                        model.insert(key, slot);
                    }
                    (None, None) => {}
                }
            }
        }
    }
}
