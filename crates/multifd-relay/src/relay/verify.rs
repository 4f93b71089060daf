//! Verifies that the far relay gets the pages that the near relay has sent.
//!
//! For each channel and round, both relays of a trunk add up the digests of all pages: of block,
//! offset and contents, after decompression. At each mark of the main channel the near relay sends
//! its sums. The far relay compares them with its own before it passes on the mark's last byte. So
//! a guest whose memory differs never has a complete round at its destination, and stays at its
//! source.
//!
//! A sum does not depend on the order of channels and packets. XXH3 with 64 bits finds accidents of
//! a codec, a processor or a memory. It does not find attacks; TLS does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use multifd_wire::RamPacket;
use twox_hash::XxHash3_64;

/// The most sums that are kept. A channel that runs ahead of its marks has one for each round.
const MOST_SUMS: usize = 1 << 16;

/// The most sums in one note. Further ones wait for the next mark.
const MOST_TOLD: usize = 2048;

/// The bytes of a sum in a note.
const SUM_LEN: usize = 25;

/// The bytes of the longest note.
pub(crate) const MAX_NOTE_LEN: usize = 8 + MOST_TOLD * SUM_LEN;

/// The sum of a channel's pages in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) pages: u64,
    digest: u64,
}

/// A sum with its channel and round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Counted from 0.
    pub(super) round: u64,
    pub(super) channel: u8,
    pub(super) sum: Sum,
}

/// The verified part of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Pages, with zero pages, that both relays had alike.
    pub pages: u64,
    /// Marks at which sums were compared.
    pub rounds: u64,
}

/// Why sums do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(crate) struct VerifyFault(#[from] Mismatch);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mismatch {
    /// The pages that came are not those that went.
    #[error(
        "the {found} pages of round {round} that came are not the {told} that the other relay sent: \
         memory was changed on the way. The guest stays at its source: check memory and processors \
         of both hosts"
    )]
    Differs {
        /// Counted from 1.
        round: u64,
        /// Pages that came.
        found: u64,
        /// Pages that the other relay has sent.
        told: u64,
    },
    /// The other relay has not sent its sums.
    #[error("the other relay has sent no sums for round {round}, or malformed ones")]
    NotTold {
        /// Counted from 1.
        round: u64,
    },
    /// The channels run too far ahead of their marks.
    #[error("more than {MOST_SUMS} rounds of channels wait for their marks")]
    Ahead,
}

/// Adds up what all channels of a migration carry.
#[derive(Debug, Default)]
pub(super) struct Sums(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<(u64, u8), Sum>,
    verified: Verified,
}

impl Sums {
    /// Adds a packet of a channel and round. `contents` are its normal pages.
    pub(super) fn add(
        &self,
        channel: u8,
        round: u64,
        packet: &RamPacket,
        contents: &[u8],
    ) -> Result<(), VerifyFault> {
        let sum = sum_of(packet, contents);
        if sum.pages == 0 {
            return Ok(());
        }
        let mut state = self.lock();
        let is_full = state.waiting.len() >= MOST_SUMS;
        match state.waiting.get_mut(&(round, channel)) {
            Some(before) => {
                before.pages = before.pages.saturating_add(sum.pages);
                before.digest = before.digest.wrapping_add(sum.digest);
            }
            None if is_full => return Err(Mismatch::Ahead.into()),
            None => drop(state.waiting.insert((round, channel), sum)),
        }
        Ok(())
    }

    /// The sum of a channel's pages in a round.
    pub(super) fn of(&self, round: u64, channel: u8) -> Sum {
        let sum = self.lock().waiting.get(&(round, channel)).copied();
        sum.unwrap_or_default()
    }

    /// Takes the sums of rounds before `mark`, for the channels in `synced`.
    pub(super) fn take(&self, mark: u64, synced: &BTreeSet<u8>) -> Vec<Told> {
        let mut state = self.lock();
        let all = state.waiting.range(..(mark, 0));
        let whole = all.filter(|((_, channel), _)| synced.contains(channel));
        let told: Vec<_> = whole
            .take(MOST_TOLD)
            .map(|(&(round, channel), &sum)| Told {
                round,
                channel,
                sum,
            })
            .collect();
        for told in &told {
            state.waiting.remove(&(told.round, told.channel));
        }
        told
    }

    /// Notes that these sums were equal at both relays, at one mark.
    pub(super) fn verified(&self, told: &[Told]) {
        let mut state = self.lock();
        let pages = told.iter().map(|told| told.sum.pages);
        let pages = pages.fold(state.verified.pages, u64::saturating_add);
        state.verified.pages = pages;
        state.verified.rounds = state.verified.rounds.saturating_add(1);
    }

    pub(super) fn result(&self) -> Verified {
        self.lock().verified
    }

    /// Every change is complete before the lock is released.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digests of a packet's pages, added up.
fn sum_of(packet: &RamPacket, contents: &[u8]) -> Sum {
    let block = XxHash3_64::oneshot(packet.block().as_bytes());
    let page_size = packet.page_size().map_or(usize::MAX, |size| size.bytes());
    let normal = packet.normal().iter().zip(contents.chunks(page_size));
    let normal = normal.map(|(&offset, page)| digest(block, offset, page));
    let zero = packet.zero().iter();
    let zero = zero.map(|&offset| digest(block, offset, &[]));
    normal.chain(zero).fold(Sum::default(), |sum, digest| Sum {
        pages: sum.pages.saturating_add(1),
        digest: sum.digest.wrapping_add(digest),
    })
}

/// The block and the offset are the seed. They are mixed, because XXH3 adds a seed to its secret.
fn digest(block: u64, offset: u64, page: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let seed = (block ^ offset).wrapping_mul(ODD).rotate_left(32) ^ block;
    XxHash3_64::oneshot_with_seed(seed, page)
}

/// Makes a note of the mark's number and the sums.
pub(super) fn note(mark: u64, all: &[Told]) -> Vec<u8> {
    let mut note = mark.to_be_bytes().to_vec();
    for told in all.iter().take(MOST_TOLD) {
        note.extend(told.round.to_be_bytes());
        note.push(told.channel);
        note.extend(told.sum.pages.to_be_bytes());
        note.extend(told.sum.digest.to_be_bytes());
    }
    note
}

/// Parses the note of a mark. Returns `None` if it is malformed.
pub(super) fn parse(mark: u64, note: &[u8]) -> Option<Vec<Told>> {
    let (number, rest) = note.split_first_chunk()?;
    if u64::from_be_bytes(*number) != mark || note.len() > MAX_NOTE_LEN {
        return None;
    }
    let (sums, rest) = rest.as_chunks::<SUM_LEN>();
    let all: Option<Vec<_>> = sums.iter().map(|sum| parse_sum(mark, sum)).collect();
    all.filter(|_| rest.is_empty())
}

fn parse_sum(mark: u64, sum: &[u8]) -> Option<Told> {
    let (round, rest) = sum.split_first_chunk()?;
    let (&channel, rest) = rest.split_first()?;
    let (pages, rest) = rest.split_first_chunk()?;
    let (digest, _) = rest.split_first_chunk()?;
    let round = u64::from_be_bytes(*round);
    (round < mark).then_some(Told {
        round,
        channel,
        sum: Sum {
            pages: u64::from_be_bytes(*pages),
            digest: u64::from_be_bytes(*digest),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_what_was_told() {
        let told = |round, channel| Told {
            round,
            channel,
            sum: Sum {
                pages: round + 7,
                digest: u64::MAX - round,
            },
        };
        for count in [0, 1, 256, MOST_TOLD] {
            let all: Vec<_> = (0..count as u64).map(|n| told(n, n as u8)).collect();
            let mark = count as u64;
            let bytes = note(mark, &all);
            assert_eq!(parse(mark, &bytes), Some(all));
            assert_eq!(parse(mark + 1, &bytes), None);
            assert_eq!(parse(mark, &[&bytes[..], &[0]].concat()), None);
        }
        // A sum of a round that is not over.
        assert_eq!(parse(3, &note(3, &[told(3, 0)])), None);
        assert_eq!(parse(0, &[]), None);
    }

    #[test]
    fn a_digest_knows_its_place_and_every_bit() {
        let mut page = vec![0; 4096];
        let before = digest(1, 4096, &page);
        assert_ne!(before, digest(1, 8192, &page));
        assert_ne!(before, digest(2, 4096, &page));
        assert_ne!(before, digest(1, 4096, &[]));
        page[4095] ^= 1;
        assert_ne!(before, digest(1, 4096, &page));
    }

    #[test]
    fn only_whole_rounds_are_taken() {
        let sums = Sums::default();
        let sum = Sum {
            pages: 1,
            digest: 5,
        };
        for place in [(0, 0), (0, 1), (1, 0), (2, 0)] {
            sums.lock().waiting.insert(place, sum);
        }
        let places = |told: Vec<Told>| -> Vec<(u64, u8)> {
            told.iter().map(|told| (told.round, told.channel)).collect()
        };
        assert_eq!(places(sums.take(1, &BTreeSet::from([0]))), [(0, 0)]);
        let both = BTreeSet::from([0, 1]);
        assert_eq!(places(sums.take(2, &both)), [(0, 1), (1, 0)]);
        assert_eq!(sums.of(2, 0), sum);
        assert_eq!(sums.of(0, 0), Sum::default());
    }
}
