//! Whether packets are missing, as their numbers tell.
//!
//! A QEMU source of 9.0 or later counts the RAM packets of all its channels together, from 0 on, and leaves no number out.
//! So a channel that never came shows as a gap, although all pages have come once: it may have had the newer contents of
//! some. Earlier sources repeat numbers and leave some out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use multifd_wire::RamPacket;

use crate::coverage::CoverageFault;

/// A source that counts does not come as far: what has higher numbers has them for reasons of its own.
const HIGHEST: u64 = 1 << 48;

/// The numbers that have come. Many threads may note at once.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The source is a QEMU of 9.0 or later: its SYNC packets have no room for pages.
    counts: bool,
    packets: u64,
    highest: u64,
}

impl Numbers {
    /// Takes note of a packet's header.
    pub(crate) fn note(&self, packet: &RamPacket) {
        let mut state = self.lock();
        state.counts |= packet.page_size().is_none();
        state.packets = state.packets.saturating_add(1);
        state.highest = state.highest.max(packet.packet_num());
    }

    /// Whether packets of all numbers up to the highest have come.
    ///
    /// # Errors
    /// [`CoverageFault::Packets`].
    pub(crate) fn check(&self) -> Result<(), CoverageFault> {
        let state = self.lock();
        let found = state.packets;
        if state.counts && found > 0 && (found..HIGHEST).contains(&state.highest) {
            let packets = state.highest.saturating_add(1);
            return Err(CoverageFault::Packets { found, packets });
        }
        Ok(())
    }

    /// A thread that panicked has left a packet uncounted at worst, which then counts as missing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_wire::{BlockName, PageSize};

    /// As they arrive: a SYNC of a recent source has no page size.
    fn noted(recent: bool, numbers: &[u64]) -> Result<(), CoverageFault> {
        let seen = Numbers::default();
        for &number in numbers {
            let page = PageSize::K4;
            let packet = RamPacket::new(page, BlockName::EMPTY, &[], &[], number);
            seen.note(&packet.unwrap());
        }
        seen.lock().counts |= recent;
        seen.check()
    }

    #[test]
    fn a_number_that_never_came_is_missed() {
        assert_eq!(noted(true, &[]), Ok(()));
        assert_eq!(noted(true, &[2, 0, 3, 1]), Ok(()), "of several channels");
        let (found, packets) = (3, 4);
        assert_eq!(
            noted(true, &[0, 1, 3]),
            Err(CoverageFault::Packets { found, packets })
        );
        assert_eq!(noted(true, &[0, 0, 0]), Ok(()), "no numbers");
        assert_eq!(noted(true, &[u64::MAX, 7]), Ok(()), "no counter");
        assert_eq!(noted(false, &[1, 3, 7]), Ok(()), "an earlier source");
    }
}
