//! Parses units to literals and matches.
//!
//! Memory is made of words and records: data mostly repeats at the distance of the previous match
//! or of the one before that. So every position tries these two distances first, with matches from
//! three bytes on, and then the places that a [`Search`] remembers.
//!
//! Unpredictable branches take most of the time, one or two for a match; instructions matter
//! little. Branchless variants, and wider searches for fewer matches, were tried and lost to this
//! plain loop.

#![allow(
    unsafe_code,
    reason = "bounds checks in these loops cost a tenth of the encoder's time"
)]

use super::format::{MAX_MATCH, MIN_MATCH};
use super::item::{self, Item};
use super::search::{ALWAYS, Bytes, Find, Search, three_equal};
use super::wide::Wide;
use super::window::{SPAN, UNIT, Unit, WindowBytes};

/// Positions after a match that are tested one by one. Later positions compare the two last
/// distances at 30 positions at once.
const SINGLY: usize = 8;
/// Positions for which one comparison of 32 bytes shows whether three bytes are equal.
const AT_ONCE: usize = 30;
/// The two last distances at the start of a unit: machine words tend to repeat.
const FIRST_DISTANCES: (usize, usize) = (8, 4);
/// Literals without any match before a unit is suspected to be noise and its bytes are counted. The
/// value is low, since a unit of noise then costs little more.
const SUSPICIOUS: usize = 64;
/// Noise often begins with a header that has matches, so a unit is suspected once more here.
const BEHIND_HEADER: usize = 512;
/// The bytes that are not counted then. What they could save is not worth the time for the rest.
const HEADER: usize = 128;

/// Room for the items of a unit, and for the overshoot of wide stores.
pub(super) const UNIT_ITEMS: usize = item::most_items(UNIT) + 16;

/// Parses `unit` and returns the number of items, or `None` if the unit looks like noise.
///
/// Matches reach back by at most `window_bytes`, which is the maximum of deflate if `FAR`. They
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
    // SAFETY of the unchecked reads and writes below:
    //
    // - `position` never decreases and is below `end` at every read, so below SPAN, and SLACK bytes
    //   follow.
    // - `recent` and `other` never reach back beyond `history`: the first position is at least that
    //   far after it, and every later distance is that of a place between it (`is_match`) and the
    //   position (`distance_of`), which only grows.
    // - Items are written after those of the bytes before `position`, which are at most as many as
    //   `most_items` says; a wide store ends at most 8 items after that.
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
            // The distance, and the exclusive or of the next eight bytes here and there.
            let (distance, different) = 'found: {
                let stop = limit.min(position + SINGLY);
                let lowest = history.max(stop.saturating_sub(window_bytes));
                loop {
                    // SAFETY: see above.
                    let word = unsafe { bytes.word(position) };
                    // SAFETY: see above.
                    let at_recent = word ^ unsafe { bytes.word(position - recent) };
                    if !S::LONGEST && three_equal(at_recent) {
                        if !S::WORDS {
                            search.enter(position, word);
                            break 'found (recent, at_recent);
                        }
                        let find = search.look(bytes, position, word, lowest);
                        if !is_longer(find, at_recent, lowest) {
                            break 'found (recent, at_recent);
                        }
                        other = recent;
                        recent = distance_of(find, position);
                        break 'found (recent, find.different);
                    }
                    let find = search.look(bytes, position, word, lowest);
                    // SAFETY: see above.
                    let at_other = word ^ unsafe { bytes.word(position - other) };
                    if !S::LONGEST && three_equal(at_other) {
                        if S::WORDS && is_longer(find, at_other, lowest) {
                            other = recent;
                            recent = distance_of(find, position);
                            break 'found (recent, find.different);
                        }
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
                        if S::WORDS {
                            let find = search.look(bytes, position, word, lowest);
                            if is_longer(find, different, lowest) {
                                other = recent;
                                recent = distance_of(find, position);
                                break 'found (recent, find.different);
                            }
                        } else {
                            search.enter(position, word);
                        }
                        break 'found (recent, different);
                    }
                }
            };
            let length = match different {
                // SAFETY: see above.
                0 => unsafe { extend(wide, bytes, position, distance) },
                different => equal_bits(different) as usize / 8,
            };
            // The next position depends on this length. A branch that is almost never taken has
            // less latency than a minimum.
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
            let begun = position;
            position += length;
            written = position;
            // Two places inside the match are remembered, near its ends: records repeat from there,
            // too. More of them displace what is worth more.
            // SAFETY: see above; a match is longer than 2 bytes.
            search.enter(begun + 2, unsafe { bytes.word(begun + 2) });
            // SAFETY: as before.
            search.enter(position - 2, unsafe { bytes.word(position - 2) });
        }
        if limit == last {
            break;
        }
        let header = if limit == start + SUSPICIOUS {
            0
        } else {
            HEADER
        };
        if position - written >= SUSPICIOUS && is_noise(&window[start + header..end]) {
            return None;
        }
        limit = if limit == start + SUSPICIOUS {
            start + BEHIND_HEADER
        } else {
            last
        };
    }
    // SAFETY: see above.
    unsafe { items.literals(wide, bytes, written, end) };
    Some(items.count)
}

/// Parses all bytes of a unit to literals and returns the number of items.
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
/// With `FAR`, hardly any find is too old, so this test comes last. Otherwise both tests form one
/// condition: each alone alternates and would be mispredicted.
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

/// Whether a find has eight equal bytes, and a match at a last distance has fewer. One branch, and
/// rarely taken.
#[inline(always)]
fn is_longer(find: Find, different: u64, lowest: usize) -> bool {
    find.different | u64::from(different == 0) == 0 && find.place >= lowest && {
        std::hint::cold_path();
        true
    }
}

/// The distance of a find. Unchecked reads rely on the assertion.
#[inline(always)]
fn distance_of(find: Find, position: usize) -> usize {
    assert!(find.place < position);
    position - find.place
}

/// Evaluates to false. It is opaque to the optimiser, so the cheaper test stays first.
#[cold]
#[inline(never)]
fn is_too_old() -> bool {
    std::hint::black_box(false)
}

/// The number of equal low bits of two words, given their exclusive or.
#[inline(always)]
fn equal_bits(different: u64) -> u32 {
    different.trailing_zeros()
}

/// The index of the first three consecutive equal bytes in a mask.
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
        // SAFETY: the last of these loads begins 8 + 7 * 32 bytes after `position`, and SLACK
        // covers its end.
        let a = unsafe { bytes.array(here) };
        // SAFETY: this load lies before the other.
        let equal = wide.equal(a, unsafe { bytes.array(here - distance) });
        if equal != !0 {
            return MAX_MATCH.min(length + equal.trailing_ones() as usize);
        }
        length += 32;
    }
    MAX_MATCH
}

/// Returns whether a unit's bytes are spread so evenly that no code could make it smaller. It
/// samples an eighth of them.
#[cold]
pub(super) fn is_noise(unit: &[u8]) -> bool {
    const WORDS: usize = 64;
    const SAMPLE: u32 = 8 * WORDS as u32;
    let mut counts = [0_u32; 256];
    for word in unit.chunks_exact(unit.len() / WORDS).take(WORDS) {
        for &byte in word.iter().take(8) {
            counts[usize::from(byte)] += 1;
        }
    }
    // The sum of squares shows how often two bytes are equal. For evenly random bytes it is 3
    // SAMPLE, with a standard deviation of SAMPLE / 11; at 7.8 bits of entropy per byte it is 3.3
    // SAMPLE.
    let squares: u32 = counts.iter().map(|&count| count * count).sum();
    squares < SAMPLE * 33 / 10
}

/// A list of items with unchecked writes.
struct Items<'a> {
    items: &'a mut [Item; UNIT_ITEMS],
    count: usize,
}

impl Items<'_> {
    /// # Safety
    ///
    /// `N` items fit at `at`.
    #[inline(always)]
    unsafe fn put<const N: usize>(&mut self, at: usize, items: [Item; N]) {
        debug_assert!(at + N <= UNIT_ITEMS);
        // SAFETY: the caller ensures it.
        let first = unsafe { self.items.as_mut_ptr().add(at) };
        // SAFETY: the slice has room there, aligned for items.
        unsafe { first.cast::<[Item; N]>().write(items) };
    }

    /// # Safety
    ///
    /// The bytes are inside the window, with 16 more. `to` is not 0. Items for the bytes fit, with
    /// 8 more.
    #[inline(always)]
    unsafe fn literals(&mut self, wide: impl Wide, bytes: Bytes<'_>, from: usize, to: usize) {
        let mut next = from;
        let mut at = self.count;
        loop {
            // SAFETY: the caller ensures it.
            let pairs = wide.literals(unsafe { bytes.array(next) });
            // SAFETY: the caller ensures it.
            unsafe { self.put(at, pairs) };
            next += 16;
            at += 8;
            if next >= to {
                break;
            }
        }
        // An odd last byte replaces the pair that holds it and the byte after the run.
        let run = to - from;
        self.count += run / 2;
        // SAFETY: the caller ensures it.
        let [byte] = *unsafe { bytes.array(to - 1) };
        // SAFETY: the caller ensures it.
        unsafe { self.put(self.count, [item::literal(byte)]) };
        self.count += run % 2;
    }
}
