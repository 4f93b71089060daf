//! Cuts units into literals and matches.
//!
//! Memory is made of words and records: what repeats, mostly repeats at the distance of the match
//! before it, or of the one before that. So at every position these two distances come first, with
//! matches from three bytes on, and then the places which a [`Search`] remembers.
//!
//! The time goes into branches that cannot be predicted, one or two for a match, and hardly into
//! instructions. What does without them, and what searches wider for fewer matches, was tried and
//! lost to this plain loop.

#![allow(
    unsafe_code,
    reason = "bounds checks in these loops cost a tenth of the encoder's time"
)]

use super::format::{MAX_MATCH, MIN_MATCH};
use super::item::{self, Item};
use super::search::{ALWAYS, Bytes, Find, Search, three_equal};
use super::wide::Wide;
use super::window::{SPAN, UNIT, Unit, WindowBytes};

/// Positions after a match that are looked at one by one. Then the two last distances are compared
/// at 30 positions at once.
const SINGLY: usize = 8;
/// Positions for which one comparison of 32 bytes shows whether three bytes are equal.
const AT_ONCE: usize = 30;
/// The two last distances at the start of a unit: words repeat words.
const FIRST_DISTANCES: (usize, usize) = (8, 4);
/// Literals without any match after which a unit is suspected to be noise, and its bytes are
/// counted: few, since noise costs nothing but them.
const SUSPICIOUS: usize = 64;

/// Room for the items of a unit, and for what wide stores write behind them.
pub(super) const UNIT_ITEMS: usize = item::most_items(UNIT) + 16;

/// Cuts `unit` into items and returns how many; nothing if the unit looks like noise.
///
/// Matches reach back by at most `window_bytes`, which is all that deflate allows if `FAR`, and
/// stay inside the unit's history and the unit.
#[inline(always)]
pub(super) fn parse<W: Wide, S: Search, const FAR: bool>(
    wide: W,
    search: &mut S,
    window: &WindowBytes,
    unit: Unit,
    window_bytes: usize,
    items: &mut [Item; UNIT_ITEMS],
) -> Option<usize> {
    let Unit {
        history,
        start,
        end,
    } = unit;
    assert!(history <= start && start < end && end <= SPAN && end - start <= UNIT);
    // SAFETY of what is read and written without checks, below:
    //
    // - `position` never goes down and is below `end` where it is read at, so below SPAN, and SLACK
    //   bytes follow.
    // - `recent` and `other` never reach back beyond `history`: the first position is at least that
    //   far behind it, and every later distance is that of a place between it (`is_match`) and the
    //   position (`distance_of`), which only grows.
    // - Items are written behind those of the bytes before `position`, which are at most as many as
    //   `most_items` says; a wide store ends at most 8 items behind that.
    let bytes = Bytes(window);
    let mut items = Items { items, count: 0 };
    let (mut recent, mut other) = FIRST_DISTANCES;
    let mut position = start.max(end.min(history + recent.max(other)));
    let mut written = start;
    // A match needs three bytes.
    let last = end.saturating_sub(MIN_MATCH - 1);
    let mut limit = if end - start == UNIT {
        start + SUSPICIOUS
    } else {
        last
    };
    loop {
        'matches: while position < limit {
            // Distance, and exclusive or of the next eight bytes here and there.
            let (distance, different) = 'found: {
                let stop = limit.min(position + SINGLY);
                let lowest = history.max(stop.saturating_sub(window_bytes));
                loop {
                    // SAFETY: see above.
                    let word = unsafe { bytes.word(position) };
                    // SAFETY: see above.
                    let at_recent = word ^ unsafe { bytes.word(position - recent) };
                    if !S::LONGEST && three_equal(at_recent) {
                        break 'found (recent, at_recent);
                    }
                    let find = search.look(bytes, position, word, lowest);
                    // SAFETY: see above.
                    let at_other = word ^ unsafe { bytes.word(position - other) };
                    if !S::LONGEST && three_equal(at_other) {
                        std::mem::swap(&mut recent, &mut other);
                        break 'found (recent, at_other);
                    }
                    let is_found = is_match::<S, FAR>(find, lowest);
                    if S::LONGEST && (is_found || three_equal(at_recent) || three_equal(at_other)) {
                        let mut best = (recent, at_recent);
                        if equal_bits(at_other) > equal_bits(best.1) {
                            best = (other, at_other);
                        }
                        if is_found && equal_bits(find.different) > equal_bits(best.1) {
                            best = (distance_of(find, position), find.different);
                        }
                        if best.0 != recent {
                            other = recent;
                            recent = best.0;
                        }
                        break 'found best;
                    }
                    if is_found {
                        other = recent;
                        recent = distance_of(find, position);
                        break 'found (recent, find.different);
                    }
                    position += 1;
                    if position >= stop {
                        break;
                    }
                }
                loop {
                    if position >= limit {
                        break 'matches;
                    }
                    // SAFETY: see above.
                    let here = unsafe { bytes.array(position) };
                    // SAFETY: see above.
                    let at_recent = wide.equal(here, unsafe { bytes.array(position - recent) });
                    // SAFETY: see above.
                    let at_other = wide.equal(here, unsafe { bytes.array(position - other) });
                    let at_recent = three_in_a_row(at_recent);
                    let ahead =
                        (at_recent | three_in_a_row(at_other) | 1 << AT_ONCE).trailing_zeros();
                    let ahead = ahead as usize;
                    let stop = limit.min(position + ahead);
                    let lowest = history.max(stop.saturating_sub(window_bytes));
                    let step = if S::PATIENCE == ALWAYS {
                        1
                    } else {
                        1 + (position - written) / S::PATIENCE
                    };
                    while position < stop {
                        // SAFETY: see above.
                        let word = unsafe { bytes.word(position) };
                        let find = search.look(bytes, position, word, lowest);
                        if is_match::<S, FAR>(find, lowest) {
                            other = recent;
                            recent = distance_of(find, position);
                            break 'found (recent, find.different);
                        }
                        position += step;
                    }
                    if S::PATIENCE != ALWAYS {
                        position = position.min(stop);
                    }
                    if position >= limit {
                        break 'matches;
                    }
                    if ahead < AT_ONCE {
                        if at_recent >> ahead & 1 == 0 {
                            std::mem::swap(&mut recent, &mut other);
                        }
                        // SAFETY: see above.
                        let word = unsafe { bytes.word(position) };
                        // SAFETY: see above.
                        let different = word ^ unsafe { bytes.word(position - recent) };
                        break 'found (recent, different);
                    }
                }
            };
            let length = match different {
                // SAFETY: see above.
                0 => unsafe { extend(wide, bytes, position, distance) },
                different => equal_bits(different) as usize / 8,
            };
            // The next position waits for this, and less for a branch that is hardly ever taken
            // than for a minimum.
            let length = if position + length > end {
                std::hint::cold_path();
                end - position
            } else {
                length
            };
            // SAFETY: see above.
            unsafe { items.literals(wide, bytes, written, position) };
            // SAFETY: see above.
            unsafe { items.put(items.count, [item::copy(length, distance)]) };
            items.count += 1;
            position += length;
            written = position;
            // SAFETY: see above; a match is longer than 2 bytes.
            search.enter(position - 2, unsafe { bytes.word(position - 2) });
        }
        if limit == last {
            break;
        }
        if written == start && is_noise(&window[start..end]) {
            return None;
        }
        limit = last;
    }
    // SAFETY: see above.
    unsafe { items.literals(wide, bytes, written, end) };
    Some(items.count)
}

/// Takes all bytes of a unit for literals; how many items they are.
pub(super) fn literals(bytes: &[u8], items: &mut [Item; UNIT_ITEMS]) -> usize {
    let pairs = bytes.chunks(2).map(|pair| match *pair {
        [first, second] => item::two_literals(first, second),
        _ => item::literal(pair[0]),
    });
    items
        .iter_mut()
        .zip(pairs)
        .map(|(item, pair)| *item = pair)
        .count()
}

/// Whether a find is long enough, and not before `lowest`.
///
/// Where matches reach `FAR`, hardly any is older, and this is seen last. Elsewhere it has to be
/// one condition and not two: each alone is true and false by turns, and could not be predicted.
#[inline(always)]
fn is_match<S: Search, const FAR: bool>(find: Find, lowest: usize) -> bool {
    let different = find.different as u32 & S::KEY;
    if FAR {
        different == 0 && (find.place >= lowest || is_too_old())
    } else {
        let too_low = find.place.wrapping_sub(lowest) >> (usize::BITS - 1);
        different | too_low as u32 == 0
    }
}

/// How far back a find is. What is read without checks relies on this.
#[inline(always)]
fn distance_of(find: Find, position: usize) -> usize {
    assert!(find.place < position);
    position - find.place
}

/// False, in a way that keeps the compiler from asking for this first.
#[cold]
#[inline(never)]
fn is_too_old() -> bool {
    std::hint::black_box(false)
}

/// How many bits of two words are equal, from the lowest on.
#[inline(always)]
fn equal_bits(different: u64) -> u32 {
    different.trailing_zeros()
}

/// Where in a mask of equal bytes three follow each other.
#[inline(always)]
fn three_in_a_row(equal: u32) -> u32 {
    equal & equal >> 1 & equal >> 2
}

/// The length of a match whose first eight bytes are equal.
///
/// # Safety
///
/// `position` is below `SPAN`, and not below `distance`.
#[inline(always)]
unsafe fn extend(wide: impl Wide, bytes: Bytes<'_>, position: usize, distance: usize) -> usize {
    let mut length = 8;
    while length < MAX_MATCH {
        let here = position + length;
        // SAFETY: the last of these loads begins 8 + 7 * 32 bytes behind `position`, and SLACK
        // covers its end.
        let a = unsafe { bytes.array(here) };
        // SAFETY: the other one lies before it.
        let equal = wide.equal(a, unsafe { bytes.array(here - distance) });
        if equal != !0 {
            return MAX_MATCH.min(length + equal.trailing_ones() as usize);
        }
        length += 32;
    }
    MAX_MATCH
}

/// Whether a unit's bytes are spread so evenly that no code could make it smaller; an eighth of
/// them tells.
#[cold]
pub(super) fn is_noise(unit: &[u8]) -> bool {
    const WORDS: usize = 64;
    const SAMPLE: u32 = 8 * WORDS as u32;
    let mut counts = [0_u32; 256];
    for word in unit.chunks_exact(unit.len() / WORDS) {
        for &byte in word.iter().take(8) {
            counts[usize::from(byte)] += 1;
        }
    }
    // The sum of squares tells how often two bytes are the same. For evenly random bytes it is 3
    // SAMPLE, with a standard deviation of SAMPLE / 11; at 7.8 bits of entropy for a byte it is 3.3
    // SAMPLE.
    let squares: u32 = counts.iter().map(|&count| count * count).sum();
    squares < SAMPLE * 33 / 10
}

/// A list of items that is written without checks.
struct Items<'a> {
    items: &'a mut [Item; UNIT_ITEMS],
    count: usize,
}

impl Items<'_> {
    /// # Safety
    ///
    /// `N` items fit behind `at`.
    #[inline(always)]
    unsafe fn put<const N: usize>(&mut self, at: usize, items: [Item; N]) {
        debug_assert!(at + N <= UNIT_ITEMS);
        // SAFETY: as the caller says.
        let first = unsafe { self.items.as_mut_ptr().add(at) };
        // SAFETY: so there is room, aligned for items.
        unsafe { first.cast::<[Item; N]>().write(items) };
    }

    /// # Safety
    ///
    /// The bytes are inside the window, with 16 more, `to` is not 0, and items for them fit, with 8
    /// more.
    #[inline(always)]
    unsafe fn literals(&mut self, wide: impl Wide, bytes: Bytes<'_>, from: usize, to: usize) {
        let mut next = from;
        let mut at = self.count;
        loop {
            // SAFETY: as the caller says.
            let pairs = wide.literals(unsafe { bytes.array(next) });
            // SAFETY: as the caller says.
            unsafe { self.put(at, pairs) };
            next += 16;
            at += 8;
            if next >= to {
                break;
            }
        }
        // An odd one out takes the place of the pair that holds it and a byte of what follows.
        let run = to - from;
        self.count += run / 2;
        // SAFETY: as the caller says.
        let [byte] = *unsafe { bytes.array(to - 1) };
        // SAFETY: as the caller says.
        unsafe { self.put(self.count, [item::literal(byte)]) };
        self.count += run % 2;
    }
}
