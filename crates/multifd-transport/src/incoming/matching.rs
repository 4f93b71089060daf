//! Which multifd channel belongs to which main channel.
//!
//! A hello names the VM's UUID; a main channel names it only with `validate-uuid`. So a channel goes to the main channel
//! that can be its own, as long as that is one alone. Where several could be, who connected tells them apart if it can; else
//! all of them are refused while each source still has its guest. Nothing is decided by the order in which connections come.
//!
//! This is a state machine without IO and without a clock of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::SetupFault;

/// A connection, as its owner counts them.
pub type Id = u64;

/// How long a channel's hello waits for its main channel, counted from when none could be its own any more.
pub const ORPHAN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a channel waits whose id is taken. A source that has just given up leaves channels of the attempt before.
pub const CONFLICT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long channels of several VMs wait for a second main channel.
pub const RIVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a channel waits for a main channel of its own peer, before it may be that of another. One that was sent again,
/// as it was lost on its way, comes within this time.
pub const FOREIGN_TIMEOUT: Duration = Duration::from_secs(4);

/// How long after the set-up part of its stream a migration's channels may come without a doubt about whose they are.
pub const LATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who opened a connection, as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerId {
    /// A process of this host, over a unix socket.
    Process(i32),
    /// A host, over TCP.
    Host(IpAddr),
    /// The system does not tell.
    Unknown,
}

/// What is to be done with a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The channel belongs to this main channel.
    Give {
        /// The channel.
        channel: Id,
        /// Its main channel.
        main: Id,
    },
    /// The channel belongs to nobody.
    Drop {
        /// The channel.
        channel: Id,
    },
    /// The migration cannot go on.
    Refuse {
        /// Its main channel.
        main: Id,
        /// Why.
        fault: SetupFault,
    },
}

/// What the set-up part of a main channel says about its channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// The VM's UUID, with `validate-uuid`.
    pub uuid: Option<[u8; 16]>,
    /// It has a multifd flush mark, so there are channels.
    pub has_channels: bool,
    /// It may switch to postcopy.
    pub postcopy: bool,
}

/// The main channels and the channels without one.
#[derive(Debug, Default)]
pub struct Matching {
    mains: Vec<Main>,
    orphans: Vec<Orphan>,
    /// Whose connections have not said what they are.
    unspoken: Vec<PeerId>,
}

#[derive(Debug)]
struct Main {
    id: Id,
    peer: PeerId,
    /// When its set-up part was read, and what that said.
    ready: Option<(Instant, Stated)>,
    /// Of the channels that it has.
    uuid: Option<[u8; 16]>,
    channels: BTreeSet<u8>,
    /// All its channels have come, for certain.
    settled: bool,
    /// An engine's: it owns its UUID and no other.
    engine: bool,
    has_preempt: bool,
    /// Its peer has closed it.
    closed: bool,
    /// It has said nothing for a while, in its set-up.
    stalls: bool,
}

#[derive(Clone, Copy, Debug)]
struct Orphan {
    id: Id,
    uuid: [u8; 16],
    channel: u8,
    peer: PeerId,
    /// When its peer was found to have closed it.
    closed: Option<Instant>,
    /// A migration that is over may have been its own.
    doubtful: bool,
    since: Instant,
    /// When a main channel could be its own for the last time.
    hope: Instant,
}

enum Verdict {
    Wait { hope: bool },
    Give(Id),
    Drop,
    Refuse(Vec<Id>, SetupFault),
}

impl Matching {
    /// A main channel has shown itself.
    pub fn main_came(&mut self, id: Id, peer: PeerId) {
        self.mains.push(Main {
            id,
            peer,
            ready: None,
            uuid: None,
            channels: BTreeSet::new(),
            settled: false,
            engine: false,
            has_preempt: false,
            closed: false,
            stalls: false,
        });
    }

    /// The set-up part of a main channel has been read.
    pub fn main_ready(&mut self, id: Id, stated: Stated, now: Instant) {
        if let Some(main) = self.main(id) {
            main.ready = Some((now, stated));
        }
    }

    /// An engine awaits the channels that say `uuid`, which is its own.
    pub fn engine_ready(&mut self, id: Id, uuid: [u8; 16], now: Instant) {
        self.main_came(id, PeerId::Unknown);
        self.main_ready(id, Stated::default(), now);
        if let Some(main) = self.main(id) {
            main.uuid = Some(uuid);
            main.engine = true;
        }
    }

    /// All channels of a migration have come, for certain: who comes later is another's.
    pub fn settle(&mut self, id: Id) {
        if let Some(main) = self.main(id) {
            main.settled = true;
        }
    }

    /// Who has connections that have not said what they are, each of which may be a main channel.
    pub fn set_unspoken(&mut self, peers: impl Iterator<Item = PeerId>) {
        self.unspoken.clear();
        self.unspoken.extend(peers);
    }

    /// A migration is over.
    pub fn end(&mut self, id: Id) {
        for main in self.mains.extract_if(.., |main| main.id == id) {
            for orphan in &mut self.orphans {
                orphan.doubtful |= main.peer == orphan.peer && main.may_own(orphan.uuid);
            }
        }
    }

    /// A channel has said hello.
    pub fn channel_came(
        &mut self,
        id: Id,
        uuid: [u8; 16],
        channel: u8,
        peer: PeerId,
        now: Instant,
    ) {
        self.orphans.push(Orphan {
            id,
            uuid,
            channel,
            peer,
            closed: None,
            doubtful: false,
            since: now,
            hope: now,
        });
    }

    /// A main channel says nothing, in its set-up, or goes on. A source sends its set-up at once, so one that stalls is more
    /// likely a stranger's, for whom nobody is to wait.
    pub fn main_stalls(&mut self, id: Id, stalls: bool) {
        if let Some(main) = self.main(id) {
            main.stalls = stalls;
        }
    }

    /// A main channel was closed by its peer.
    pub fn main_closed(&mut self, id: Id) {
        if let Some(main) = self.main(id) {
            main.closed = true;
        }
    }

    /// A channel without a main channel was closed by its peer; what it has said can still be read.
    pub fn channel_closed(&mut self, id: Id, now: Instant) {
        for orphan in self.orphans.iter_mut().filter(|orphan| orphan.id == id) {
            orphan.closed.get_or_insert(now);
        }
    }

    /// Whether a channel which may be this main channel's is to be decided about within a moment: its peer has closed it, as
    /// that of a short migration does, or of an attempt before.
    pub fn is_undecided(&self, main: Id, now: Instant) -> bool {
        let mut closed = self
            .orphans
            .iter()
            .filter(|orphan| orphan.is_closed_anew(now));
        closed.any(|orphan| {
            let claimants = self.claimants(orphan, now);
            claimants.iter().any(|claimant| claimant.id == main)
        })
    }

    /// A channel without a main channel is given up by its owner.
    pub fn forget_channel(&mut self, id: Id) {
        self.orphans.retain(|orphan| orphan.id != id);
    }

    /// The channels without a main channel, the oldest first.
    pub fn orphans(&self) -> impl Iterator<Item = Id> {
        self.orphans.iter().map(|orphan| orphan.id)
    }

    /// How many migrations there are, those being set up included.
    pub fn migrations(&self) -> usize {
        self.mains.len()
    }

    /// The migration to which a connection without any mark belongs: postcopy's own connection has none. It is the one
    /// migration of its peer that may switch to postcopy and has no such connection yet.
    pub fn preempt_came(&mut self, peer: PeerId) -> Option<Id> {
        let mut candidates = self.mains.iter_mut().filter(|main| {
            let postcopy = main.ready.is_some_and(|(_, stated)| stated.postcopy);
            postcopy && !main.has_preempt && (main.peer == peer || main.peer == PeerId::Unknown)
        });
        let main = candidates.next()?;
        if candidates.next().is_some() {
            return None;
        }
        main.has_preempt = true;
        Some(main.id)
    }

    /// What can be decided now.
    pub fn decide(&mut self, now: Instant) -> Vec<Decision> {
        let mut decisions = Vec::new();
        let mut index = 0;
        while let Some(orphan) = self.orphans.get(index).copied() {
            match self.judge(&orphan, now) {
                Verdict::Wait { hope } => {
                    if let (true, Some(orphan)) = (hope, self.orphans.get_mut(index)) {
                        orphan.hope = now;
                    }
                    index += 1;
                    continue;
                }
                Verdict::Give(id) => {
                    if let Some(main) = self.main(id) {
                        main.uuid = Some(orphan.uuid);
                        main.channels.insert(orphan.channel);
                    }
                    let (channel, main) = (orphan.id, id);
                    decisions.push(Decision::Give { channel, main });
                    self.orphans.remove(index);
                }
                Verdict::Drop => {
                    decisions.push(Decision::Drop { channel: orphan.id });
                    self.orphans.remove(index);
                    // Of many that go at once, each is looked at once.
                    continue;
                }
                Verdict::Refuse(mains, fault) => {
                    let theirs: Vec<Id> = self
                        .orphans
                        .iter()
                        .filter(|other| self.is_of(other, &mains, orphan.peer, now))
                        .map(|other| other.id)
                        .collect();
                    for main in mains {
                        self.end(main);
                        decisions.push(Decision::Refuse { main, fault });
                    }
                    for channel in theirs {
                        self.forget_channel(channel);
                        decisions.push(Decision::Drop { channel });
                    }
                }
            }
            // What was decided may decide others.
            index = 0;
        }
        decisions
    }

    fn judge(&self, orphan: &Orphan, now: Instant) -> Verdict {
        // What is left of an attempt that its source has given up, where the next attempt is here already.
        let renewed = |closed: Instant| {
            self.orphans.iter().any(|other| {
                other.id != orphan.id
                    && (other.uuid, other.channel) == (orphan.uuid, orphan.channel)
                    && (other.closed.is_none() || closed <= other.since)
            })
        };
        if orphan
            .closed
            .is_some_and(|closed| orphan.doubtful || renewed(closed))
        {
            return Verdict::Drop;
        }
        let claimants = self.claimants(orphan, now);
        // Another's main channel is not its own while one that may be has still to speak: sources open that first.
        let is_named = orphan.uuid != [0; 16];
        let is_anothers =
            |main: &&Main| main.peer != orphan.peer && !(is_named && main.names(orphan.uuid));
        if !claimants.is_empty()
            && claimants.iter().all(is_anothers)
            && orphan.peer != PeerId::Unknown
            && self.unspoken.contains(&orphan.peer)
        {
            return Verdict::Wait { hope: true };
        }
        match claimants.as_slice() {
            [] => match self.late_for(orphan, now) {
                Some(main) => Verdict::Give(main.id),
                None if now.duration_since(orphan.hope) >= ORPHAN_TIMEOUT => Verdict::Drop,
                None => Verdict::Wait { hope: false },
            },
            [main] if main.ready.is_none() => Verdict::Wait { hope: true },
            // It may be left from an attempt before, whose successor is about to come.
            [main] if !main.closed && orphan.is_closed_anew(now) => Verdict::Wait { hope: true },
            // Channels of several VMs, and one main channel that does not say whose it is: the others may be about to come.
            [main] if self.has_rivals(main, orphan, now) => {
                match now.duration_since(orphan.since) >= RIVAL_TIMEOUT {
                    true => Verdict::Refuse(vec![main.id], SetupFault::Alike { uuid: orphan.uuid }),
                    false => Verdict::Wait { hope: true },
                }
            }
            [main] if !main.channels.contains(&orphan.channel) => Verdict::Give(main.id),
            [_] if orphan.closed.is_some() => Verdict::Drop,
            [main] if now.duration_since(orphan.since) >= CONFLICT_TIMEOUT => {
                let id = orphan.channel;
                Verdict::Refuse(vec![main.id], SetupFault::ChannelTwice { id })
            }
            [_] => Verdict::Wait { hope: true },
            several if several.iter().any(|main| main.ready.is_none()) => {
                Verdict::Wait { hope: true }
            }
            several => {
                let mains = several.iter().map(|main| main.id).collect();
                Verdict::Refuse(mains, SetupFault::Alike { uuid: orphan.uuid })
            }
        }
    }

    /// The main channels that the channel may belong to.
    fn claimants(&self, orphan: &Orphan, now: Instant) -> Vec<&Main> {
        let mut claimants: Vec<_> = self
            .mains
            .iter()
            .filter(|main| !main.is_settled(now) && main.may_take(orphan, now))
            .collect();
        // A UUID that was given on purpose is one VM's.
        if orphan.uuid != [0; 16] {
            narrow(&mut claimants, |main| main.names(orphan.uuid));
        }
        narrow(&mut claimants, |main| main.peer == orphan.peer);
        narrow(&mut claimants, |main| !main.stalls);
        // A source that has closed its main channel is done, and the next attempt may be here before that is.
        if orphan.closed.is_none() {
            narrow(&mut claimants, |main| !main.closed);
        }
        if claimants.iter().all(|main| main.ready.is_some()) {
            narrow(&mut claimants, |main| {
                main.uuid.is_some() || main.ready.is_some_and(|(_, stated)| stated.has_channels)
            });
        }
        claimants
    }

    /// Whether channels of another VM may belong to `main`, which has none so far.
    fn has_rivals(&self, main: &Main, orphan: &Orphan, now: Instant) -> bool {
        let is_rival = |other: &Orphan| {
            let claimants = self.claimants(other, now);
            other.uuid != orphan.uuid && claimants.iter().any(|claimant| claimant.id == main.id)
        };
        main.uuids().next().is_none() && self.orphans.iter().any(is_rival)
    }

    /// Whether the channel can be no other migration's than one of `mains`, whose channels come from `peer`.
    fn is_of(&self, orphan: &Orphan, mains: &[Id], peer: PeerId, now: Instant) -> bool {
        let claimants = self.claimants(orphan, now);
        let are_they = claimants.iter().all(|main| mains.contains(&main.id));
        are_they && (!claimants.is_empty() || orphan.peer == peer)
    }

    /// The one migration of this UUID that can still take the channel, where no other can.
    fn late_for(&self, orphan: &Orphan, now: Instant) -> Option<&Main> {
        let mut mains = self.mains.iter().filter(|main| {
            let missing = !main.channels.contains(&orphan.channel);
            !main.settled && main.is_settled(now) && missing && main.may_take(orphan, now)
        });
        let main = mains.next()?;
        mains.next().is_none().then_some(main)
    }

    fn main(&mut self, id: Id) -> Option<&mut Main> {
        self.mains.iter_mut().find(|main| main.id == id)
    }
}

impl Main {
    fn uuids(&self) -> impl Iterator<Item = [u8; 16]> {
        let stated = self.ready.and_then(|(_, stated)| stated.uuid);
        [self.uuid, stated].into_iter().flatten()
    }

    fn may_own(&self, uuid: [u8; 16]) -> bool {
        self.uuids().all(|own| own == uuid)
    }

    fn may_take(&self, orphan: &Orphan, now: Instant) -> bool {
        self.may_own(orphan.uuid) && !self.is_foreign(orphan, now)
    }

    /// Whether the channel is another's, as another host opened it. A host may have several addresses, so this holds only for
    /// a while; and for good where the channel is closed, as one is that an attempt which has failed leaves behind.
    fn is_foreign(&self, orphan: &Orphan, now: Instant) -> bool {
        // A UUID that was given on purpose is one VM's.
        let is_named = orphan.uuid != [0; 16] && self.names(orphan.uuid);
        // A proxy on this host may well be a process for each connection.
        let differ = matches!(
            (self.peer, orphan.peer),
            (PeerId::Host(ours), PeerId::Host(theirs)) if ours != theirs
        );
        let is_recent = now.duration_since(orphan.since) < FOREIGN_TIMEOUT;
        differ && !is_named && (is_recent || orphan.closed.is_some())
    }

    fn names(&self, uuid: [u8; 16]) -> bool {
        self.uuids().any(|own| own == uuid)
    }

    /// Whether who comes now is more likely another's. A migration with gaps among its channels waits for them.
    fn is_settled(&self, now: Instant) -> bool {
        let Some((since, stated)) = self.ready else {
            return false;
        };
        let gapless = self.channels.len()
            == self
                .channels
                .last()
                .map_or(0, |&last| usize::from(last) + 1);
        let complete = gapless && (!self.channels.is_empty() || !stated.has_channels);
        self.settled || !self.engine && complete && now.duration_since(since) >= LATE_TIMEOUT
    }
}

impl Orphan {
    fn is_closed_anew(&self, now: Instant) -> bool {
        self.closed
            .is_some_and(|closed| now.duration_since(closed) < CONFLICT_TIMEOUT)
    }
}

/// Keeps those for which `is_right` holds, unless that leaves none.
fn narrow<T>(items: &mut Vec<T>, is_right: impl Fn(&T) -> bool) {
    if items.iter().any(&is_right) {
        items.retain(is_right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: PeerId = PeerId::Process(7);
    const MULTIFD: Stated = Stated {
        uuid: None,
        has_channels: true,
        postcopy: false,
    };

    fn give(channel: Id, main: Id) -> Decision {
        Decision::Give { channel, main }
    }

    fn alike(main: Id, uuid: [u8; 16]) -> Decision {
        let fault = SetupFault::Alike { uuid };
        Decision::Refuse { main, fault }
    }

    #[test]
    fn channels_wait_for_the_set_up_of_their_main_channel() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.channel_came(1, [0; 16], 1, UNIX, now);
        assert_eq!(matching.decide(now), []);
        matching.main_came(10, UNIX);
        assert_eq!(matching.decide(now), []);
        // Long set-ups are no reason to lose a channel.
        let later = now + 3 * ORPHAN_TIMEOUT;
        assert_eq!(matching.decide(later), []);
        matching.main_ready(10, MULTIFD, later);
        assert_eq!(matching.decide(later), [give(1, 10)]);
        matching.channel_came(2, [0; 16], 0, UNIX, later);
        assert_eq!(matching.decide(later), [give(2, 10)]);
    }

    #[test]
    fn a_channel_whose_own_main_channel_has_still_to_speak_is_no_others() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        let other = PeerId::Process(8);
        for peer in [UNIX, other] {
            matching.set_unspoken([peer].into_iter());
            matching.main_came(10, UNIX);
            matching.main_ready(10, MULTIFD, now);
            matching.channel_came(5, [0; 16], 1, UNIX, now);
            matching.channel_came(1, [0; 16], 0, other, now);
            let expected: &[Decision] = match peer == other {
                true => &[give(5, 10)],
                // A proxy has many processes.
                false => &[give(5, 10), give(1, 10)],
            };
            assert_eq!(matching.decide(now), expected);
            if peer == other {
                matching.set_unspoken([].into_iter());
                matching.main_came(20, other);
                matching.main_ready(20, MULTIFD, now);
                assert_eq!(matching.decide(now), [give(1, 20)]);
            }
            matching.end(10);
        }
    }

    #[test]
    fn a_channel_without_a_main_channel_goes_after_a_while() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.channel_came(1, [0; 16], 1, UNIX, now);
        assert_eq!(matching.decide(now + ORPHAN_TIMEOUT / 2), []);
        assert_eq!(
            matching.decide(now + ORPHAN_TIMEOUT),
            [Decision::Drop { channel: 1 }]
        );
    }

    #[test]
    fn two_at_once_that_cannot_be_told_apart_are_both_refused() {
        for uuids in [[[0; 16]; 2], [[1; 16], [2; 16]]] {
            let (mut matching, now) = (Matching::default(), Instant::now());
            for main in [10, 20] {
                matching.main_came(main, UNIX);
                matching.main_ready(main, MULTIFD, now);
            }
            matching.channel_came(1, uuids[0], 0, UNIX, now);
            let drop = Decision::Drop { channel: 1 };
            assert_eq!(
                matching.decide(now),
                [alike(10, uuids[0]), alike(20, uuids[0]), drop]
            );
        }
    }

    #[test]
    fn channels_of_two_vms_and_one_main_channel_are_no_guess() {
        let uuids = [[1; 16], [2; 16]];
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        for (id, uuid) in (1..).zip(uuids) {
            matching.channel_came(id, uuid, 0, UNIX, now);
        }
        assert_eq!(matching.decide(now), []);
        matching.main_came(20, UNIX);
        matching.main_ready(20, MULTIFD, now);
        let decisions = matching.decide(now);
        assert_eq!(decisions[..2], [alike(10, uuids[0]), alike(20, uuids[0])]);

        let mut matching = Matching::default();
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        for (id, uuid) in (1..).zip(uuids) {
            matching.channel_came(id, uuid, 0, UNIX, now);
        }
        let decisions = matching.decide(now + RIVAL_TIMEOUT);
        assert_eq!(
            decisions[0],
            alike(10, uuids[0]),
            "the second one did not come"
        );
    }

    #[test]
    fn a_refusal_costs_nobody_else_a_channel() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        let other = PeerId::Process(8);
        for (main, peer) in [(10, UNIX), (20, UNIX), (30, other)] {
            matching.main_came(main, peer);
        }
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        matching.channel_came(2, [0; 16], 0, other, now);
        for main in [10, 20] {
            matching.main_ready(main, MULTIFD, now);
        }
        let (uuid, drop) = ([0; 16], Decision::Drop { channel: 1 });
        assert_eq!(
            matching.decide(now),
            [alike(10, uuid), alike(20, uuid), drop]
        );
        matching.main_ready(30, MULTIFD, now);
        assert_eq!(matching.decide(now), [give(2, 30)]);
    }

    #[test]
    fn the_peer_and_a_stated_uuid_tell_apart() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        let hosts = [1, 2].map(|last| PeerId::Host([192, 0, 2, last].into()));
        for (main, host) in [(10, hosts[0]), (20, hosts[1])] {
            matching.main_came(main, host);
            matching.main_ready(main, MULTIFD, now);
        }
        matching.channel_came(1, [0; 16], 0, hosts[1], now);
        matching.channel_came(2, [0; 16], 0, hosts[0], now);
        assert_eq!(matching.decide(now), [give(1, 20), give(2, 10)]);

        let mut matching = Matching::default();
        for (main, uuid) in [(10, [1; 16]), (20, [2; 16])] {
            matching.main_came(main, UNIX);
            let uuid = Some(uuid);
            matching.main_ready(main, Stated { uuid, ..MULTIFD }, now);
        }
        matching.channel_came(1, [2; 16], 0, UNIX, now);
        matching.channel_came(2, [1; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(1, 20), give(2, 10)]);
    }

    #[test]
    fn a_migration_that_has_all_its_channels_leaves_the_others_to_the_next() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(1, 10)]);
        matching.settle(10);
        matching.channel_came(2, [0; 16], 1, UNIX, now);
        assert_eq!(matching.decide(now), []);
        matching.main_came(20, UNIX);
        matching.main_ready(20, MULTIFD, now);
        matching.channel_came(3, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(2, 20), give(3, 20)]);
    }

    #[test]
    fn nobody_waits_for_a_stranger_that_stalls_in_its_set_up() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_came(20, UNIX);
        matching.main_ready(20, MULTIFD, now);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [], "the other one may go on");
        matching.main_stalls(10, true);
        assert_eq!(matching.decide(now), [give(1, 20)]);
    }

    #[test]
    fn a_late_channel_is_taken_where_nobody_else_can_be_meant() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(1, 10)]);
        let late = now + 2 * LATE_TIMEOUT;
        matching.channel_came(2, [0; 16], 1, UNIX, late);
        assert_eq!(matching.decide(late), [give(2, 10)]);
    }

    #[test]
    fn a_channel_id_used_twice_is_refused_and_a_stale_one_is_dropped() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        for id in [1, 2, 3] {
            matching.channel_came(id, [0; 16], 0, UNIX, now);
        }
        matching.channel_closed(1, now);
        // The closed one is a remnant, as the same channel is here anew.
        let drop = |channel| Decision::Drop { channel };
        assert_eq!(matching.decide(now), [drop(1), give(2, 10)]);
        let after = now + CONFLICT_TIMEOUT;
        let fault = SetupFault::ChannelTwice { id: 0 };
        assert_eq!(
            matching.decide(after),
            [Decision::Refuse { main: 10, fault }, drop(3)]
        );
    }

    #[test]
    fn a_closed_channel_waits_for_a_successor_while_its_main_channel_is_open() {
        for (main_closes, renewed) in [(false, false), (false, true), (true, false)] {
            let (mut matching, now) = (Matching::default(), Instant::now());
            matching.channel_came(1, [0; 16], 0, UNIX, now);
            matching.channel_closed(1, now);
            matching.main_came(10, UNIX);
            matching.main_ready(10, MULTIFD, now);
            assert_eq!(matching.decide(now), []);
            if main_closes {
                matching.main_closed(10);
                assert_eq!(matching.decide(now), [give(1, 10)]);
            } else if renewed {
                matching.channel_came(2, [0; 16], 0, UNIX, now);
                assert_eq!(
                    matching.decide(now),
                    [Decision::Drop { channel: 1 }, give(2, 10)]
                );
            } else {
                assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 10)]);
            }
        }
    }

    #[test]
    fn an_attempt_that_is_over_leaves_its_place_to_the_next() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(1, 10)]);
        matching.channel_came(2, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), []);
        matching.end(10);
        matching.main_came(20, UNIX);
        matching.main_ready(20, MULTIFD, now);
        assert_eq!(matching.decide(now), [give(2, 20)]);
    }

    #[test]
    fn an_attempt_whose_source_has_closed_is_not_taken_for_the_next() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        for main in [10, 20] {
            matching.main_came(main, UNIX);
            matching.main_ready(main, MULTIFD, now);
        }
        matching.main_closed(10);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(1, 20)]);
    }

    #[test]
    fn an_engines_channels_are_its_own() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.engine_ready(10, [9; 16], now);
        matching.main_came(20, UNIX);
        matching.main_ready(20, MULTIFD, now);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        matching.channel_came(2, [9; 16], 0, UNIX, now);
        let decisions = matching.decide(now);
        assert_eq!(decisions, [give(1, 20), give(2, 10)]);
    }

    #[test]
    fn postcopys_connection_goes_to_the_one_migration_of_its_peer() {
        let (mut matching, now) = (Matching::default(), Instant::now());
        assert_eq!(matching.preempt_came(UNIX), None);
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        assert_eq!(matching.preempt_came(UNIX), None, "without postcopy");
        let postcopy = Stated {
            postcopy: true,
            ..MULTIFD
        };
        matching.main_ready(10, postcopy, now);
        assert_eq!(
            matching.preempt_came(PeerId::Process(8)),
            None,
            "a stranger"
        );
        assert_eq!(matching.preempt_came(UNIX), Some(10));
        assert_eq!(matching.preempt_came(UNIX), None, "there is one already");
    }

    /// Numbers that look random and are the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    /// Connections of migrations in a random order.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Main(u64),
        Ready(u64),
        Channel(u64, u8),
        Closed(u64, u8),
        /// The source gives up: its channels close.
        End(u64),
    }

    fn channel_id(migration: u64, channel: u8) -> Id {
        100 * (migration + 1) + u64::from(channel)
    }

    /// Plays a script; what was given to each main channel, and which were refused.
    fn play(
        script: &[Step],
        peers: &[PeerId],
        uuids: &[[u8; 16]],
        stated: bool,
        random: &mut Random,
    ) -> (Vec<(Id, u64)>, Vec<u64>) {
        let (mut matching, mut now) = (Matching::default(), Instant::now());
        let (mut given, mut refused, mut over) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut here = BTreeSet::new();
        // Less than any time limit in all.
        let pause = CONFLICT_TIMEOUT / (script.len() as u32 + 1);
        for step in script {
            now += pause * random.below(2) as u32;
            match *step {
                Step::Main(of) => matching.main_came(of, peers[of as usize]),
                Step::Ready(of) => {
                    let uuid = stated.then_some(uuids[of as usize]);
                    matching.main_ready(of, Stated { uuid, ..MULTIFD }, now);
                }
                // A source that was refused opens no more.
                Step::Channel(of, _) if refused.contains(&of) => {}
                Step::Channel(of, id) => {
                    let (uuid, peer) = (uuids[of as usize], peers[of as usize]);
                    here.insert((of, id));
                    matching.channel_came(channel_id(of, id), uuid, id, peer, now);
                }
                Step::Closed(of, id) => matching.channel_closed(channel_id(of, id), now),
                Step::End(of) => {
                    matching.end(of);
                    over.insert(of);
                    for &(_, id) in here.iter().filter(|(its, _)| *its == of) {
                        matching.channel_closed(channel_id(of, id), now);
                    }
                }
            }
            decide(&mut matching, now, &mut given, &mut refused);
            over.extend(&refused);
            for &(of, id) in here.iter().filter(|(of, _)| over.contains(of)) {
                matching.channel_closed(channel_id(of, id), now);
            }
        }
        for later in [
            CONFLICT_TIMEOUT,
            FOREIGN_TIMEOUT,
            LATE_TIMEOUT,
            ORPHAN_TIMEOUT,
        ] {
            now += later;
            decide(&mut matching, now, &mut given, &mut refused);
        }
        assert_eq!(matching.orphans().count(), 0, "nothing waits for ever");
        (given, refused)
    }

    fn decide(
        matching: &mut Matching,
        now: Instant,
        given: &mut Vec<(Id, u64)>,
        refused: &mut Vec<u64>,
    ) {
        for decision in matching.decide(now) {
            match decision {
                Decision::Give { channel, main } => given.push((channel, main)),
                Decision::Refuse { main, .. } => refused.push(main),
                Decision::Drop { .. } => {}
            }
        }
    }

    /// A random order of `steps` in which no step comes before those that it follows in its own migration.
    fn shuffled(
        mut steps: Vec<Step>,
        random: &mut Random,
        follows: fn(Step, Step) -> bool,
    ) -> Vec<Step> {
        let mut script = Vec::new();
        while !steps.is_empty() {
            let index = random.below(steps.len() as u64) as usize;
            let step = steps[index];
            if !steps.iter().any(|&other| follows(step, other)) {
                script.push(steps.remove(index));
            }
        }
        script
    }

    fn of(step: Step) -> u64 {
        let (Step::Main(of) | Step::Ready(of) | Step::End(of)) = step else {
            let (Step::Channel(of, _) | Step::Closed(of, _)) = step else {
                unreachable!("all steps are of one of these kinds");
            };
            return of;
        };
        of
    }

    #[test]
    fn in_every_order_a_channel_goes_to_its_own_main_channel_or_to_none() {
        let mut random = Random(1);
        let mut all = 0;
        for round in 0..3000 {
            let migrations = 1 + random.below(4);
            let stated = round % 2 == 0;
            let peers: Vec<_> = (0..migrations as u8)
                .map(|of| match (stated, round % 4) {
                    (true, _) => UNIX,
                    (false, 1) => PeerId::Host([192, 0, 2, of + 1].into()),
                    (false, _) => PeerId::Host([192, 0, 2, of].into()),
                })
                .collect();
            let uuids: Vec<_> = (0..migrations as u8)
                .map(|of| match stated {
                    true => [of + 1; 16],
                    false => [(random.below(2) as u8) * (of + 1); 16],
                })
                .collect();
            let (mut steps, mut sound) = (Vec::new(), Vec::new());
            for of in 0..migrations {
                let channels = 1 + random.below(4) as u8;
                steps.extend([Step::Main(of), Step::Ready(of)]);
                steps.extend((0..channels).map(|id| Step::Channel(of, id)));
                match random.below(4) {
                    0 => steps.push(Step::End(of)),
                    1 => steps.push(Step::Closed(of, random.below(u64::from(channels)) as u8)),
                    _ => sound.push((of, channels)),
                }
            }
            let script = shuffled(steps, &mut random, |step, other| {
                of(step) == of(other)
                    && match step {
                        Step::Ready(_) => matches!(other, Step::Main(_)),
                        Step::End(_) => matches!(other, Step::Main(_) | Step::Ready(_)),
                        Step::Closed(_, id) => matches!(other, Step::Channel(_, its) if its == id),
                        Step::Main(_) | Step::Channel(..) => false,
                    }
            });
            let (given, refused) = play(&script, &peers, &uuids, stated, &mut random);
            let once: BTreeSet<_> = given.iter().map(|(channel, _)| channel).collect();
            assert_eq!(once.len(), given.len(), "{script:?}");
            for &(channel, main) in &given {
                assert_eq!(channel / 100 - 1, main, "{script:?}, {peers:?}, {uuids:?}");
            }
            assert!(
                refused.is_empty(),
                "{refused:?}: {script:?}, {peers:?}, {uuids:?}"
            );
            for (of, channels) in sound {
                let its = given.iter().filter(|(_, main)| *main == of).count();
                assert_eq!(
                    its,
                    usize::from(channels),
                    "{of}: {script:?}, {peers:?}, {uuids:?}"
                );
                all += 1;
            }
        }
        assert!(all > 1000, "{all} sound migrations");
    }

    #[test]
    fn those_that_cannot_be_told_apart_are_never_mixed() {
        let mut random = Random(2);
        let mut whole = 0;
        for _ in 0..3000 {
            let migrations = 2 + random.below(3);
            let (peers, uuids) = ([UNIX; 4], [[0; 16]; 4]);
            let mut steps = Vec::new();
            for of in 0..migrations {
                steps.extend([Step::Main(of), Step::Ready(of)]);
                steps.extend((0..=random.below(4) as u8).map(|id| Step::Channel(of, id)));
                // Those before are over, mostly: then there is no doubt.
                if random.below(4) > 0 {
                    steps.push(Step::End(of));
                }
            }
            // A source opens its main channel first.
            let script = shuffled(steps, &mut random, |step, other| {
                of(step) == of(other)
                    && match step {
                        Step::Main(_) => false,
                        Step::Ready(_) | Step::Channel(..) => matches!(other, Step::Main(_)),
                        Step::Closed(..) | Step::End(_) => !matches!(other, Step::End(_)),
                    }
            });
            let (given, refused) = play(&script, &peers, &uuids, false, &mut random);
            let once: BTreeSet<_> = given.iter().map(|(channel, _)| channel).collect();
            assert_eq!(once.len(), given.len(), "given twice: {script:?}");
            for main in (0..migrations).filter(|main| !refused.contains(main)) {
                let sources: BTreeSet<_> = given
                    .iter()
                    .filter(|(_, to)| *to == main)
                    .map(|(channel, _)| channel / 100 - 1)
                    .collect();
                assert!(
                    sources.is_empty() || sources == BTreeSet::from([main]),
                    "{main} has channels of {sources:?}: {script:?}"
                );
                whole += sources.len();
            }
        }
        assert!(whole > 100, "{whole} were whole");
    }

    #[test]
    fn a_channel_waits_a_while_for_a_main_channel_of_its_own_peer() {
        for closes in [false, true] {
            let (mut matching, now) = (Matching::default(), Instant::now());
            let hosts = [1, 2].map(|last| PeerId::Host([192, 0, 2, last].into()));
            matching.main_came(10, hosts[0]);
            matching.main_ready(10, MULTIFD, now);
            matching.channel_came(1, [0; 16], 0, hosts[1], now);
            assert_eq!(matching.decide(now), []);
            if closes {
                matching.channel_closed(1, now);
            }
            let own = match closes {
                true => vec![],
                false => vec![give(1, 10)],
            };
            assert_eq!(matching.decide(now + FOREIGN_TIMEOUT), own);
        }
    }
}
