//! Makes prefix codes from counts.

use super::format::MAX_CODE_BITS;

/// The size of the largest alphabet.
const SYMBOLS: usize = 288;
/// Larger than every alphabet except literals and lengths.
const SMALL: usize = 64;

/// Gives each symbol with a count a code of at most `limit` bits and keeps the sum of count times
/// length small: the minimum (Huffman) if the limit allows it, else nearly the minimum.
///
/// The code is always complete, because some decoders require it. If fewer than two symbols have a
/// count, the first ones without a count get a code too. At most 2^limit symbols may have a count.
pub(super) fn code_lengths(counts: &[u32], limit: usize, lengths: &mut [u8]) {
    let mut sorted = [0_u64; SYMBOLS];
    let mut used = 0;
    for (symbol, &count) in (0_u64..).zip(counts) {
        // Branchless: an entry without a count is overwritten by the next.
        sorted[used] = u64::from(count) << 16 | symbol;
        used += usize::from(count > 0);
    }
    let mut unused = (0_u64..).zip(counts).filter(|&(_, &count)| count == 0);
    while used < 2
        && let Some((symbol, _)) = unused.next()
    {
        sorted[used] = symbol;
        used += 1;
    }
    debug_assert!((2..=1 << limit).contains(&used) && limit <= MAX_CODE_BITS);
    let sorted = &mut sorted[..used];
    sort_by_count(sorted);

    // Raise counts that are too rare for the longest code to its weight, to save repairs later.
    let total: u64 = sorted.iter().map(|&entry| entry >> 16).sum();
    let least = (total >> limit) + 1;
    let raise = |sorted: &mut [u64]| {
        for entry in sorted {
            *entry = (*entry).max(least << 16 | *entry & 0xffff);
        }
    };
    let rarest = sorted.first().map_or(0, |entry| entry >> 16);
    // A large tree would probably exceed the limit: raise at once. A small tree often fits, and is
    // quick to rebuild.
    let is_raised = 2 * rarest < least && used > SMALL;
    if is_raised {
        raise(sorted);
    }
    let (mut leaves, mut deepest) = leaves_by_depth(sorted);
    if deepest > limit && !is_raised {
        raise(sorted);
        (leaves, deepest) = leaves_by_depth(sorted);
    }
    if deepest > limit {
        limit_depth(&mut leaves, limit);
    }
    lengths.fill(0);
    let mut rarest_first = sorted.iter();
    for depth in (1..=limit).rev() {
        for &entry in rarest_first.by_ref().take(leaves[depth]) {
            lengths[(entry & 0xffff) as usize] = depth as u8;
        }
    }
}

/// Sorts by the count above bit 16: by its lowest byte, then the few larger counts.
fn sort_by_count(entries: &mut [u64]) {
    let mut by_byte = [0; SYMBOLS];
    let byte = |entry: u64| (entry >> 16) as usize & 0xff;
    let mut places = [0_u16; 256];
    entries.iter().for_each(|&entry| places[byte(entry)] += 1);
    let mut before = 0;
    for place in &mut places {
        before += std::mem::replace(place, before);
    }
    for &entry in &*entries {
        let place = &mut places[byte(entry)];
        by_byte[usize::from(*place)] = entry;
        *place += 1;
    }
    let mut large = [0; SYMBOLS];
    let (mut smalls, mut larges) = (0, 0);
    for &entry in &by_byte[..entries.len()] {
        // Branchless: an entry that does not belong to a list is overwritten.
        entries[smalls] = entry;
        large[larges] = entry;
        let is_large = usize::from(entry >> 24 > 0);
        larges += is_large;
        smalls += 1 - is_large;
    }
    large[..larges].sort_unstable();
    entries[smalls..].copy_from_slice(&large[..larges]);
}

/// Returns the number of leaves at each depth of Huffman's tree, and the greatest depth. The counts
/// are above bit 16 and ascend.
fn leaves_by_depth(sorted: &[u64]) -> ([usize; SYMBOLS], usize) {
    // One more than the maximum, as the loop reads two. A power of two, so that masking an index
    // needs no branch.
    const ROOM: usize = 512;
    const { assert!(ROOM > SYMBOLS) };
    let inner_nodes = sorted.len() - 1;
    let mut leaf_weights = [u64::MAX; ROOM];
    for (weight, entry) in leaf_weights.iter_mut().zip(sorted) {
        *weight = entry >> 16;
    }
    // The inner nodes in order of creation, which is also the order of their weights.
    let mut weights = [u64::MAX; ROOM];
    let mut leaf_children = [0_u8; ROOM];
    let (mut leaf, mut inner) = (0, 0);
    for node in 0..inner_nodes {
        // Branchless, since it is unpredictable: the two lightest are one of each kind or two of
        // one.
        let (leaf_a, leaf_b) = (leaf_weights[leaf % ROOM], leaf_weights[(leaf + 1) % ROOM]);
        let (inner_a, inner_b) = (weights[inner % ROOM], weights[(inner + 1) % ROOM]);
        let two_leaves = leaf_a.saturating_add(leaf_b);
        let one_leaf = leaf_a.saturating_add(inner_a);
        let no_leaf = inner_a.saturating_add(inner_b);
        let leaves = 1 + usize::from(leaf_b <= inner_a) - usize::from(inner_b < leaf_a);
        weights[node % ROOM] = two_leaves.min(one_leaf).min(no_leaf);
        leaf_children[node % ROOM] = leaves as u8;
        leaf += leaves;
        inner += 2 - leaves;
    }
    // Inner nodes were created in ascending order, so those of one depth are adjacent, the root
    // last.
    let mut leaves = [0; SYMBOLS];
    let mut levels = (1..).zip(&mut leaves[1..]);
    let (mut rest, mut nodes, mut deepest) = (&leaf_children[..inner_nodes], 1, 0);
    while nodes > 0
        && let Some((depth, leaves)) = levels.next()
    {
        let (higher, level) = rest.split_at(rest.len() - nodes);
        *leaves = level.iter().map(|&leaves| usize::from(leaves)).sum();
        (rest, nodes, deepest) = (higher, 2 * nodes - *leaves, depth);
    }
    (leaves, deepest)
}

/// Moves leaves that are too deep up to `limit`, then repairs the code until it is complete again.
fn limit_depth(leaves: &mut [usize; SYMBOLS], limit: usize) {
    let too_deep: usize = leaves[limit + 1..].iter().sum();
    leaves[limit + 1..].fill(0);
    leaves[limit] += too_deep;
    // The space that the codes take, in units of the longest code. It must not exceed `full`.
    let full = 1 << limit;
    let mut taken: usize = (1..=limit)
        .map(|depth| leaves[depth] << (limit - depth))
        .sum();
    while taken > full {
        // The deepest leaf that can still move down frees the least space. One exists, as 2^limit
        // leaves at the limit would fit.
        let Some(depth) = (1..limit).rev().find(|&depth| leaves[depth] > 0) else {
            break;
        };
        leaves[depth] -= 1;
        leaves[depth + 1] += 1;
        taken -= 1 << (limit - depth - 1);
    }
    while taken < full {
        // The highest leaf that fits moves up. A leaf at the limit always fits.
        let Some(depth) =
            (2..=limit).find(|&depth| leaves[depth] > 0 && 1 << (limit - depth) <= full - taken)
        else {
            break;
        };
        leaves[depth] -= 1;
        leaves[depth - 1] += 1;
        taken += 1 << (limit - depth);
    }
    debug_assert_eq!(taken, full);
}

/// Writes the codes for these code lengths (RFC 1951 section 3.2.2), bit-reversed as on the wire.
/// `codes` is at least as long as `lengths`. A symbol without a length gets code 0.
pub(super) fn codes(lengths: &[u8], codes: &mut [u16]) {
    // Four parts with separate counters: counting the same length twice in a row is slow.
    const PARTS: usize = 4;
    let part = lengths.len().div_ceil(PARTS);
    let mut next = [[0_u16; MAX_CODE_BITS + 1]; PARTS];
    for at in 0..part {
        for (index, next) in next.iter_mut().enumerate() {
            if let Some(&length) = lengths.get(index * part + at) {
                next[usize::from(length) % (MAX_CODE_BITS + 1)] += 1;
            }
        }
    }
    // The code occupies the upper bits here, so that the reversal is the same for all lengths.
    let step = |length: usize| (0x1_0000_u32 >> length) as u16;
    let mut free = 0_u16;
    for length in 1..=MAX_CODE_BITS {
        for next in &mut next {
            let count = std::mem::replace(&mut next[length], free);
            // A complete code ends at 2^16.
            free = free.wrapping_add(count.wrapping_mul(step(length)));
        }
    }
    next.iter_mut().for_each(|next| next[0] = 0);
    for at in 0..part {
        for (index, next) in next.iter_mut().enumerate() {
            let symbol = index * part + at;
            if let (Some(&length), Some(code)) = (lengths.get(symbol), codes.get_mut(symbol)) {
                let length = usize::from(length) % (MAX_CODE_BITS + 1);
                *code = next[length];
                next[length] = next[length].wrapping_add(step(length));
            }
        }
    }
    for code in codes.iter_mut().take(lengths.len()) {
        *code = code.reverse_bits();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The minimal sum of count times length, by package-merge: the cost of the cheapest 2 n - 2
    /// packages on the highest of `limit` levels. A package is a symbol or two packages of the
    /// level below.
    fn least_cost(counts: &[u32], limit: usize) -> u64 {
        let mut symbols: Vec<u64> = counts
            .iter()
            .filter(|&&count| count > 0)
            .map(|&count| count.into())
            .collect();
        symbols.sort_unstable();
        let mut level = symbols.clone();
        for _ in 1..limit {
            let pairs = level.chunks_exact(2).map(|pair| pair[0] + pair[1]);
            level = symbols.iter().copied().chain(pairs).collect();
            level.sort_unstable();
        }
        level.iter().take(2 * symbols.len() - 2).sum()
    }

    fn check(counts: &[u32], limit: usize) -> (u64, u64) {
        let mut lengths = vec![99; counts.len()];
        code_lengths(counts, limit, &mut lengths);
        let taken: usize = lengths
            .iter()
            .filter(|&&length| length > 0)
            .map(|&length| (1 << limit) >> length)
            .sum();
        assert_eq!(taken, 1 << limit, "{lengths:?}");
        assert!(lengths.iter().all(|&length| usize::from(length) <= limit));
        let counting = counts.iter().filter(|&&count| count > 0).count();
        if counting >= 2 {
            assert!(
                counts
                    .iter()
                    .zip(&lengths)
                    .all(|(&count, &length)| (count > 0) == (length > 0))
            );
        }
        let cost = counts
            .iter()
            .zip(&lengths)
            .map(|(&count, &length)| u64::from(count) * u64::from(length))
            .sum();
        (cost, least_cost(counts, limit))
    }

    #[test]
    fn without_a_limit_that_bites_the_code_is_the_best() {
        assert_eq!(check(&[1, 1], 1), (2, 2));
        assert_eq!(check(&[5, 0, 1, 1, 2], 15), (15, 15));
        let mut state = 1_u32;
        for symbols in 2..=286 {
            let counts: Vec<u32> = (0..symbols)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state >> 24
                })
                .collect();
            let (cost, least) = check(&counts, 15);
            assert_eq!(cost, least);
        }
        // Counts below the weight of the longest code that still fit the limit.
        let rare = [&[1, 1, 2, 4][..], &[16; 7], &[17; 8]].concat();
        let (cost, least) = check(&rare, 7);
        assert_eq!(cost, least);
    }

    #[test]
    fn a_limit_costs_hardly_more_than_it_must() {
        // Fibonacci numbers make the deepest trees. Skewed counts make trees that exceed the limit.
        let mut fibonacci = vec![1_u32, 1];
        while fibonacci.len() < 40 {
            fibonacci.push(fibonacci[fibonacci.len() - 1] + fibonacci[fibonacci.len() - 2]);
        }
        let mut state = 1_u32;
        let (mut total, mut total_least) = (0, 0);
        for limit in [7, 9, 12] {
            for symbols in 2..=19 + 267 * usize::from(limit == 12) {
                for skew in [1, 8, 16, 24] {
                    let counts: Vec<u32> = (0..symbols)
                        .map(|_| {
                            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            (state >> 8) >> (state % skew)
                        })
                        .collect();
                    let (cost, least) = check(&counts, limit);
                    assert!(least <= cost && cost * 20 <= least * 21, "{cost} {least}");
                    total += cost;
                    total_least += least;
                }
            }
            for symbols in 2..=fibonacci.len() {
                let (cost, least) = check(&fibonacci[..symbols], limit);
                assert!(least <= cost && cost * 20 <= least * 21, "{cost} {least}");
            }
            let one_each = [&vec![1; 250][..], &fibonacci[..36]].concat();
            if limit == 12 {
                let (cost, least) = check(&one_each, limit);
                assert!(least <= cost && cost * 20 <= least * 21, "{cost} {least}");
            }
        }
        assert!(
            (total - total_least) * 500 <= total_least,
            "{total} {total_least}"
        );
    }

    #[test]
    fn a_code_has_at_least_two_symbols() {
        for counts in [
            [0; 30],
            std::array::from_fn(|symbol| u32::from(symbol == 0)),
            std::array::from_fn(|symbol| 7 * u32::from(symbol == 29)),
        ] {
            let mut lengths = [99; 30];
            code_lengths(&counts, 9, &mut lengths);
            assert_eq!(lengths.iter().filter(|&&length| length == 1).count(), 2);
            assert_eq!(lengths.iter().filter(|&&length| length == 0).count(), 28);
            assert!(
                counts
                    .iter()
                    .zip(&lengths)
                    .all(|(&count, &length)| count == 0 || length == 1)
            );
        }
    }

    #[test]
    fn codes_are_prefix_codes() {
        let lengths = [3, 3, 3, 3, 3, 2, 4, 4];
        let mut found = [0; 8];
        codes(&lengths, &mut found);
        // The example of RFC 1951 section 3.2.2, each code reversed.
        let expected = ["010", "011", "100", "101", "110", "00", "1110", "1111"];
        for ((code, length), expected) in found.iter().zip(lengths).zip(expected) {
            let bits: String = (0..length)
                .map(|bit| if code >> bit & 1 == 1 { '1' } else { '0' })
                .collect();
            assert_eq!(bits, expected);
        }
    }
}
