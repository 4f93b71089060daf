//! Channels of the same UUID and number: two sources are here, and their hellos are alike.
//!
//! A source may write its channels' hellos long before its main channel says its first byte. So the
//! second of two sources shows itself first by a number that comes twice.

use std::time::Instant;

use super::{Main, Matching, Orphan, is_recent};

impl Orphan {
    /// Whether the other one has the same UUID, number and peer.
    fn is_like(&self, other: &Orphan) -> bool {
        self.id != other.id
            && self.peer == other.peer
            && (self.uuid, self.channel) == (other.uuid, other.channel)
    }
}

impl Matching {
    /// Whether the channel was closed by a source whose next attempt has opened it anew, and which
    /// has thus given the channel up.
    pub(super) fn is_renewed(&self, orphan: &Orphan, now: Instant) -> bool {
        let is_newer = |other: &Orphan| match orphan.closed {
            Some(closed) => other.closed.is_none() || closed <= other.since,
            None => false,
        };
        let mut others = self.orphans.iter().filter(|other| orphan.is_like(other));
        others.any(is_newer) && !self.may_be_done(orphan, now)
    }

    /// Whether a source may have closed the channel because it is done. Its main channel was here
    /// beside the channel, and is closed too, or is about to be: a source closes its channels
    /// first. Then an open channel of the same number is another source's.
    fn may_be_done(&self, orphan: &Orphan, now: Instant) -> bool {
        let may_own = |main: &&Main| {
            orphan.has_met(main)
                && !main.channels.contains(&orphan.channel)
                && (main.closed.is_some() || orphan.is_closed_anew(now))
        };
        orphan.closed.is_some() && self.claimants(orphan, now).iter().any(may_own)
    }

    /// Whether another waiting channel has the same UUID and number. One of the two belongs to
    /// another migration.
    pub(super) fn is_doubled(&self, orphan: &Orphan) -> bool {
        let is_double = |other: &Orphan| orphan.is_like(other) && other.closed.is_none();
        orphan.closed.is_none() && self.orphans.iter().any(is_double)
    }

    /// The same, where the other one is closed, and may be the main channel's own.
    fn is_doubled_by_closed(&self, orphan: &Orphan, now: Instant) -> bool {
        let is_double = |other: &Orphan| orphan.is_like(other) && self.may_be_done(other, now);
        orphan.closed.is_none() && self.orphans.iter().any(is_double)
    }

    /// Whether the channel may be one of another source, which shows itself by a number that comes
    /// twice. Nothing is taken from two sources that cannot be told apart.
    pub(super) fn is_among_doubles(&self, orphan: &Orphan, main: &Main, now: Instant) -> bool {
        let is_evidence = |other: &Orphan| {
            let is_alike = (other.uuid, other.peer) == (orphan.uuid, orphan.peer);
            let is_double = || main.channels.contains(&other.channel) || self.is_doubled(other);
            is_alike && other.id != orphan.id && other.closed.is_none() && is_double()
        };
        orphan.closed.is_none()
            && (self.is_doubled_by_closed(orphan, now) || self.orphans.iter().any(is_evidence))
    }
    /// Whether two sources at once have closed a channel of this number, and each of the two may be
    /// the main channel's.
    pub(super) fn is_rivalled(&self, orphan: &Orphan, now: Instant) -> bool {
        let is_beside =
            |one: &Orphan, other: &Orphan| one.closed.is_some_and(|closed| other.since < closed);
        let is_rival = |other: &Orphan| {
            orphan.is_like(other)
                && is_beside(orphan, other)
                && is_beside(other, orphan)
                && self.may_be_done(other, now)
        };
        self.orphans.iter().any(is_rival)
    }
}

/// Whether an open channel may be that of a source which is about to close it, beside another.
pub(super) fn may_be_closing(orphan: &Orphan, claimants: &[&Main], now: Instant) -> bool {
    let is_closing = |main: &&Main| is_recent(main.closed, now);
    orphan.closed.is_none() && claimants.len() > 1 && claimants.iter().any(is_closing)
}
