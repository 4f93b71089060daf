//! Whether packets are missing, as their numbers tell.
//!
//! A QEMU source counts the RAM packets of all its channels together, from 0 on. So a channel that
//! never came shows as a gap, although all pages have come once: it may have had the newer contents
//! of some.
//!
//! A source of 9.0 or later leaves no number out. Earlier sources let a SYNC take the place of a
//! packet that still waits: its pages go out under the number of the SYNC, and its own number is
//! never seen. An empty packet with the same number follows. So each SYNC with pages stands for two
//! numbers there. This was seen with QEMU 7.2, in every capture.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use multifd_wire::RamPacket;

use crate::coverage::Gap;

/// A source that numbers from 0 never reaches this. Higher numbers are not a count and are ignored.
const HIGHEST: u64 = 1 << 48;

/// The numbers that have come. Many threads may note at once.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The source is a QEMU of 9.0 or later: its SYNC packets have no room for pages.
    is_recent: bool,
    /// Numbers that have come, and those that SYNCs have taken the place of.
    found: u64,
    highest: u64,
    channels: BTreeMap<usize, Seen>,
}

/// The packets of one channel that have come.
#[derive(Debug, Default)]
struct Seen {
    last: Option<u64>,
    syncs: u64,
}

impl Numbers {
    /// Takes note of the header of a packet of the channel that is `index`.
    pub(crate) fn note(&self, index: usize, packet: &RamPacket) {
        let mut state = self.lock();
        let number = packet.packet_num();
        let has_pages = !packet.normal().is_empty() || !packet.zero().is_empty();
        let seen = state.channels.entry(index).or_default();
        let is_new = seen.last != Some(number);
        seen.last = Some(number);
        seen.syncs = seen.syncs.saturating_add(packet.is_sync().into());
        let takes_a_place = packet.is_sync() && has_pages;
        let found = u64::from(is_new).saturating_add(takes_a_place.into());
        state.found = state.found.saturating_add(found);
        state.highest = state.highest.max(number);
        state.is_recent |= packet.page_size().is_none();
    }

    /// Whether packets of all numbers up to the highest have come.
    ///
    /// # Errors
    /// [`Gap::Packets`].
    pub(crate) fn check(&self) -> Result<(), Gap> {
        let state = self.lock();
        if state.channels.is_empty() || state.highest >= HIGHEST {
            return Ok(());
        }
        let (found, packets) = (state.found, state.highest.saturating_add(1));
        let least = if state.is_recent {
            1
        } else {
            state.least_of_a_channel()
        };
        match packets.saturating_sub(found) < least {
            true => Ok(()),
            false => Err(Gap::Packets { found, packets }),
        }
    }

    /// A thread that panicked has left a packet uncounted at worst, which then counts as missing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The least gap in the numbers if a channel of an earlier source is missing. It has a SYNC for
    /// each round, as the others have, and one of them may be higher than all that came. A smaller
    /// gap has another reason.
    fn least_of_a_channel(&self) -> u64 {
        let syncs = self.channels.values().map(|seen| seen.syncs).min();
        syncs.unwrap_or(0).saturating_sub(1).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use multifd_wire::{BlockName, ChannelReceiver, Event, Limits, Packet, PageSize};

    /// As packets arrive, on one channel: a SYNC of a recent source has no page size.
    fn noted(is_recent: bool, numbers: &[u64]) -> Result<(), Gap> {
        let seen = Numbers::default();
        for &number in numbers {
            seen.note(0, &packet(number, false));
        }
        seen.lock().is_recent |= is_recent;
        seen.check()
    }

    fn packet(number: u64, has_pages: bool) -> RamPacket {
        let normal: &[u64] = if has_pages { &[0] } else { &[] };
        let name = BlockName::new(b"pc.ram").unwrap();
        RamPacket::new(PageSize::K4, name, normal, &[], number).unwrap()
    }

    #[test]
    fn a_number_that_never_came_is_missed() {
        assert_eq!(noted(true, &[]), Ok(()));
        assert_eq!(noted(true, &[2, 0, 3, 1]), Ok(()), "of several channels");
        let (found, packets) = (3, 4);
        assert_eq!(
            noted(true, &[0, 1, 3]),
            Err(Gap::Packets { found, packets })
        );
        assert_eq!(noted(true, &[0, 0, 0]), Ok(()), "no numbers");
        assert_eq!(noted(true, &[u64::MAX, 7]), Ok(()), "no counter");
    }

    /// The numbers of all channels of a capture but `without`.
    fn of_capture(folder: &Path, without: Option<u8>) -> Numbers {
        let seen = Numbers::default();
        for id in (0..4).filter(|id| Some(*id) != without) {
            let Ok(bytes) = fs::read(folder.join(format!("mfd{id}.fwd"))) else {
                break;
            };
            let mut receiver = ChannelReceiver::new(Limits::default());
            let mut rest = bytes.as_slice();
            while let Some(event) = receiver.push(&mut rest).unwrap() {
                if let Event::Packet(Packet::Ram(packet)) = event {
                    seen.note(id.into(), &packet);
                }
            }
        }
        seen
    }

    /// QEMU 7.2, 10.0 and 11.1, with two and four channels.
    #[test]
    fn every_channel_of_a_real_source_is_missed_and_nothing_else() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/captures");
        let captures = fs::read_dir(&folder).unwrap();
        let mut early = 0;
        for capture in captures.map(|entry| entry.unwrap().path()) {
            let name = capture.display();
            let whole = of_capture(&capture, None);
            assert_eq!(whole.check(), Ok(()), "{name}");
            early += usize::from(!whole.lock().is_recent);
            let channels = whole.lock().channels.len() as u8;
            for id in 0..channels {
                let outcome = of_capture(&capture, Some(id)).check();
                assert!(outcome.is_err(), "{name} without channel {id}");
            }
        }
        assert!(early >= 7, "only {early} captures of early sources");
    }
}
