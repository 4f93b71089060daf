//! The difference of two pages.

use super::varint;

/// The result of a comparison of a page with the kept one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// The pages are equal.
    None,
    /// The difference was appended.
    Written,
    /// The difference is longer than the limit.
    TooMuch,
}

/// Appends the difference between `kept` and `page` to `out`, in at most `limit` bytes, and makes
/// `kept` equal to `page`. If the difference is [too much](Difference::TooMuch), it appends
/// nothing, and `kept` has parts of both pages.
///
/// Both have the length of a page.
pub(crate) fn update(kept: &mut [u8], page: &[u8], limit: usize, out: &mut Vec<u8>) -> Difference {
    let start = out.len();
    let mut is_sampled = false;
    let mut runs = Runs {
        page,
        written: 0,
        pending: 0..0,
        out,
    };
    let kept = kept.as_chunks_mut::<BLOCK>().0;
    for (number, new) in page.as_chunks::<BLOCK>().0.iter().enumerate() {
        let Some(old) = kept.get_mut(number).filter(|old| *old != new) else {
            continue;
        };
        let mut mask = changed(old, new);
        *old = *new;
        let first = number * BLOCK;
        while mask != 0 {
            let begin = mask.trailing_zeros();
            let end = begin + (!(mask >> begin)).trailing_zeros();
            runs.add(first + begin as usize, first + end as usize);
            mask &= u64::MAX.checked_shl(end).unwrap_or(0);
        }
        let len = runs.out.len() - start + runs.pending.len() + MOST_AROUND;
        // Few pages are sampled, because samples disturb the processor's prefetching.
        let is_much = len > WORTH_SAMPLING && !is_sampled && {
            is_sampled = true;
            is_much(kept, page, number + 1, limit)
        };
        if len > limit || is_much {
            out.truncate(start);
            return Difference::TooMuch;
        }
    }
    if runs.pending.is_empty() {
        return Difference::None;
    }
    runs.flush();
    out.push(0);
    Difference::Written
}

/// Whether a sample of the blocks from `first` on shows that the pages differ too much. The sample
/// has to exceed twice the limit, because it may be untypical.
fn is_much(kept: &[[u8; BLOCK]], page: &[u8], first: usize, limit: usize) -> bool {
    let step = (kept.len() / SAMPLES).max(1);
    let blocks = kept.iter().zip(page.as_chunks().0);
    let samples = blocks.skip(first).step_by(step);
    let counts = samples.map(|(old, new)| changed(old, new).count_ones());
    counts.sum::<u32>() as usize * step > 2 * limit
}

/// Takes a difference from the front of `area` and applies it to `page`. `None` if the difference
/// is wrong.
pub(crate) fn apply(page: &mut [u8], area: &mut &[u8]) -> Option<()> {
    let mut rest = page;
    loop {
        let len = usize::try_from(varint::read(area)?).ok()?;
        if len == 0 {
            return Some(());
        }
        let gap = usize::try_from(varint::read(area)?).ok()?;
        let (bytes, behind) = area.split_at_checked(len)?;
        let (run, end) = rest.get_mut(gap..)?.split_at_mut_checked(len)?;
        run.copy_from_slice(bytes);
        (*area, rest) = (behind, end);
    }
}

/// Bytes that are compared at a time: one for each bit of a mask.
const BLOCK: usize = 64;
/// The length of a difference from which on the rest of the page is sampled.
const WORTH_SAMPLING: usize = 200;
/// The number of blocks in a sample of a whole page.
const SAMPLES: usize = 8;
/// The longest gap that joins a run instead of ending it: a new run takes as many bytes for its
/// numbers.
const SHORT_GAP: usize = 3;
/// The most bytes for the numbers of the last run and for the end of the list.
const MOST_AROUND: usize = 7;

/// The runs found so far.
struct Runs<'a> {
    page: &'a [u8],
    /// The end of the last run that was written.
    written: usize,
    /// The run that is not written yet, because it may grow.
    pending: std::ops::Range<usize>,
    out: &'a mut Vec<u8>,
}

impl Runs<'_> {
    fn add(&mut self, begin: usize, end: usize) {
        if self.pending.is_empty() {
            self.pending = begin..end;
        } else if begin - self.pending.end <= SHORT_GAP {
            self.pending.end = end;
        } else {
            self.flush();
            self.pending = begin..end;
        }
    }

    fn flush(&mut self) {
        let run = self.pending.clone();
        varint::write(run.len() as u64, self.out);
        varint::write((run.start - self.written) as u64, self.out);
        self.written = run.end;
        self.out
            .extend_from_slice(self.page.get(run).unwrap_or_default());
    }
}

/// One bit for each byte, the lowest for the first: set if the byte differs.
fn changed(old: &[u8; BLOCK], new: &[u8; BLOCK]) -> u64 {
    let words = old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0);
    words.rev().fold(0, |mask, (old, new)| {
        let bits = u64::from_le_bytes(*old) ^ u64::from_le_bytes(*new);
        mask << 8 | nonzero_bytes(bits)
    })
}

/// One bit for each byte, the lowest for the lowest: set if the byte is not zero.
const fn nonzero_bytes(word: u64) -> u64 {
    // The top bit of a byte ends up set if it was set, or if a carry of the other bits sets it.
    let tops = (((word & LOW_BITS) + LOW_BITS) | word) & !LOW_BITS;
    // Each factor moves one of these bits to its place in the top byte, and no two meet.
    (tops >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

const LOW_BITS: u64 = 0x7f7f_7f7f_7f7f_7f7f;

#[cfg(test)]
mod tests {
    use testkit::pages::Random;

    use super::*;

    const PAGE: usize = 4096;

    fn between(old: &[u8], new: &[u8], limit: usize) -> (Difference, Vec<u8>) {
        let (mut kept, mut out) = (old.to_vec(), vec![7; 3]);
        let found = update(&mut kept, new, limit, &mut out);
        assert_eq!(out[..3], [7; 3]);
        out.drain(..3);
        match found {
            Difference::TooMuch => assert!(out.is_empty()),
            _ => assert!(kept == new),
        }
        assert_eq!(found == Difference::Written, !out.is_empty());
        assert!(out.len() <= limit);
        (found, out)
    }

    #[test]
    fn nonzero_bytes_are_those_of_the_word() {
        let mut random = Random::new(1);
        for _ in 0..10_000 {
            let mut bytes = [0; 8];
            for byte in &mut bytes {
                *byte = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
            }
            let expected = (0..8).fold(0, |mask, at| mask | u64::from(bytes[at] != 0) << at);
            assert_eq!(nonzero_bytes(u64::from_le_bytes(bytes)), expected);
        }
    }

    #[test]
    fn runs_are_written_as_specified() {
        let old = vec![0; PAGE];
        let mut new = old.clone();
        assert_eq!(between(&old, &new, 2048), (Difference::None, vec![]));
        new[0] = 1;
        new[4] = 2;
        new[9] = 3;
        new[63] = 4;
        new[64] = 5;
        new[PAGE - 1] = 6;
        let expected = [
            5, 0, 1, 0, 0, 0, 2, 1, 4, 3, 2, 53, 4, 5, 1, 0xbe, 0x1f, 6, 0,
        ];
        assert_eq!(
            between(&old, &new, 2048),
            (Difference::Written, expected.to_vec())
        );
    }

    #[test]
    fn a_difference_makes_the_page() {
        let mut random = Random::new(2);
        for round in 0..2000 {
            let mut old = vec![0; PAGE];
            old.iter_mut()
                .for_each(|byte| *byte = random.below(3) as u8);
            let mut new = old.clone();
            for _ in 0..random.below(1 + round / 20) {
                let start = random.below(PAGE);
                let end = PAGE.min(start + 1 + random.below(130));
                new[start..end]
                    .iter_mut()
                    .for_each(|byte| *byte = random.below(3) as u8);
            }
            let (found, difference) = between(&old, &new, random.below(PAGE / 2));
            if found == Difference::Written {
                let area = [&*difference, b"more"].concat();
                let mut rest = &*area;
                apply(&mut old, &mut rest).unwrap();
                assert_eq!(rest, b"more");
                assert!(old == new);
                for len in 0..difference.len() {
                    assert_eq!(apply(&mut old, &mut &difference[..len]), None);
                }
            }
        }
    }

    #[test]
    fn a_run_stays_in_its_page() {
        let mut page = [0; 16];
        for wrong in [
            &[17, 0][..],
            &[1, 16],
            &[2, 15],
            &[8, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        ] {
            let area = [wrong, &[1; 40]].concat();
            assert_eq!(apply(&mut page, &mut &*area), None, "{wrong:?}");
        }
        assert_eq!(apply(&mut page, &mut &[1, 15, 9, 0][..]), Some(()));
        assert_eq!(page[15], 9);
    }
}
