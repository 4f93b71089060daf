//! Which multifd channel belongs to which main channel.
//!
//! A hello names the VM's UUID; a main channel names it only with `validate-uuid`. So a channel
//! goes to the main channel that can be its own, as long as that is one alone. Where several could
//! be, who connected tells them apart if it can; else all of them are refused while each source
//! still has its guest. Nothing is decided by the order in which connections come.
//!
//! A source that has gone leaves connections behind, and these stop nobody:
//!
//! - A channel that was closed behind its hello carries nothing. It is dropped at once. A migration
//!   whose channels are all of this kind begins without any, and ends as its main channel does.
//! - A closed channel with bytes may be a short migration's, whose source has sent everything. It
//!   goes to its main channel, closed or not. Where it may be that of several, it waits until its
//!   own source must have closed its main channel too. Then it goes to the one that is closed. An
//!   open one does not miss it: a channel without an open main channel of its own is left over.
//! - A closed channel that was accepted before its main channel is not that one's, if a migration
//!   of the same peer that is just over may have left it. The system had accepted it, and this host
//!   had no descriptor for it, or no time.
//! - An open channel is never a closed main channel's, as long as an open one may be its own, or
//!   one that has still to speak.
//!
//! This is a state machine without IO and without a clock of its own.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::SetupFault;

/// A connection, as its owner counts them: in the order in which they were accepted.
pub type Id = u64;

/// How long a channel's hello waits for its main channel, counted from when none could be its own
/// any more.
pub(super) const ORPHAN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a channel waits whose id is taken. A source that has just given up leaves channels of
/// the attempt before.
pub(super) const CONFLICT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long channels of several VMs wait for a second main channel.
pub(super) const RIVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a channel waits for a main channel of its own peer, before it may be that of another.
/// One that was sent again, as it was lost on its way, comes within this time.
pub(super) const FOREIGN_TIMEOUT: Duration = Duration::from_secs(4);

/// How long after the set-up part of its stream a migration's channels may come without a doubt
/// about whose they are.
pub(super) const LATE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many migrations that are over are remembered, for [`ORPHAN_TIMEOUT`].
const MOST_PAST: usize = 64;

/// The opener of a connection, as far as the system knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "for the fuzz targets alone")]
pub enum PeerId {
    /// A process of this host, over a unix socket.
    Process(i32),
    /// A host, over TCP.
    Host(IpAddr),
    /// The system does not tell.
    Unknown,
}

/// The decision about a connection.
#[derive(Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "for the fuzz targets alone")]
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
    /// It is in doubt whether the migration has its own channels: nothing of it is to be made final
    /// meanwhile. Or it is not in doubt any more.
    Doubt {
        /// Its main channel.
        main: Id,
        /// Whether it is.
        doubt: bool,
    },
    /// The migration cannot go on.
    Refuse {
        /// Its main channel.
        main: Id,
        /// Why.
        fault: SetupFault,
    },
}

/// A main channel's set-up: its statements about the other channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "for the fuzz targets alone")]
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
    /// Migrations that are over, and when the first decision after their ends was made.
    past: VecDeque<(Main, Option<Instant>)>,
}

#[derive(Debug)]
struct Main {
    id: Id,
    peer: PeerId,
    /// When its set-up part was read, and what that said.
    ready: Option<(Instant, Stated)>,
    /// The UUID of its channels.
    uuid: Option<[u8; 16]>,
    channels: BTreeSet<u8>,
    /// All its channels have come, for certain.
    settled: bool,
    /// An engine's: it owns its UUID and no other.
    engine: bool,
    has_preempt: bool,
    /// When its peer was found to have closed it.
    closed: Option<Instant>,
    /// It has said nothing for a while, in its set-up.
    stalls: bool,
    /// A channel waits whose id one of its channels has.
    in_doubt: bool,
}

#[derive(Clone, Copy, Debug)]
struct Orphan {
    id: Id,
    uuid: [u8; 16],
    channel: u8,
    peer: PeerId,
    /// When its peer was found to have closed it.
    closed: Option<Instant>,
    /// It was closed behind its hello.
    empty: bool,
    /// A migration that is over may have been its own.
    is_left: bool,
    since: Instant,
    /// When a main channel could be its own for the last time.
    hope: Instant,
}

enum Verdict {
    Wait {
        hope: bool,
    },
    /// The channel may be this main channel's, and another one of it has the same number.
    Conflict(Id),
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
            closed: None,
            stalls: false,
            in_doubt: false,
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

    /// Sets the peers with connections of unknown kind. Each may be a main channel.
    pub(super) fn set_unspoken(&mut self, peers: impl Iterator<Item = PeerId>) {
        self.unspoken.clear();
        self.unspoken.extend(peers);
    }

    /// A migration is over. Channels that may have been its own are not given to the next one, if
    /// their peer has closed them. A main channel that ends in its set-up may be a stranger's: then
    /// it takes no channel away that may be that of another one that is here.
    pub fn end(&mut self, id: Id) {
        let Some(index) = self.mains.iter().position(|main| main.id == id) else {
            return;
        };
        let main = self.mains.remove(index);
        for orphan in &mut self.orphans {
            if main.peer != orphan.peer || !main.may_leave(orphan) {
                continue;
            }
            let is_others = |other: &Main| other.peer == orphan.peer && other.may_own(orphan.uuid);
            let has_another =
                self.unspoken.contains(&orphan.peer) || self.mains.iter().any(is_others);
            orphan.is_left |= main.ready.is_some() || !has_another;
        }
        // A stranger's main channel, which ends in its set-up, has no channels to leave.
        if main.ready.is_some() {
            self.past.truncate(MOST_PAST - 1);
            self.past.push_front((main, None));
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
            empty: false,
            is_left: false,
            since: now,
            hope: now,
        });
    }

    /// A main channel says nothing, in its set-up, or goes on. A source sends its set-up at once,
    /// so one that stalls is more likely a stranger's, for whom nobody is to wait.
    pub(super) fn main_stalls(&mut self, id: Id, stalls: bool) {
        if let Some(main) = self.main(id) {
            main.stalls = stalls;
        }
    }

    /// A main channel was closed by its peer.
    pub fn main_closed(&mut self, id: Id, now: Instant) {
        if let Some(main) = self.main(id) {
            main.closed.get_or_insert(now);
        }
    }

    /// A channel without a main channel was closed by its peer; what it has said can still be read.
    pub fn channel_closed(&mut self, id: Id, now: Instant) {
        for orphan in self.orphans.iter_mut().filter(|orphan| orphan.id == id) {
            orphan.closed.get_or_insert(now);
        }
    }

    /// The same, of one that has said nothing behind its hello: no migration needs it.
    pub(super) fn channel_closed_empty(&mut self, id: Id, now: Instant) {
        self.channel_closed(id, now);
        for orphan in self.orphans.iter_mut().filter(|orphan| orphan.id == id) {
            orphan.empty = true;
        }
    }

    /// Whether a channel which may be this main channel's is to be decided about within a moment:
    /// its peer has closed it, as that of a short migration does, or of an attempt before. Or it is
    /// open and may be the next source's.
    pub(super) fn is_undecided(&self, main: Id, now: Instant) -> bool {
        self.orphans.iter().any(|orphan| {
            let claimants = self.claimants(orphan, now);
            (orphan.is_closed_anew(now) || self.may_be_the_nexts(orphan, &claimants, now))
                && claimants.iter().any(|claimant| claimant.id == main)
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

    /// The migration to which a connection without any mark belongs: postcopy's own connection has
    /// none. It is the one migration of its peer that may switch to postcopy and has no such
    /// connection yet.
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

    /// Returns the decisions that are possible now.
    pub fn decide(&mut self, now: Instant) -> Vec<Decision> {
        for (_, over) in &mut self.past {
            over.get_or_insert(now);
        }
        self.past
            .retain(|(_, over)| over.is_none_or(|over| now.duration_since(over) < ORPHAN_TIMEOUT));
        let mut decisions = Vec::new();
        let mut conflicts = BTreeSet::new();
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
                Verdict::Conflict(main) => {
                    conflicts.insert(main);
                    if let Some(orphan) = self.orphans.get_mut(index) {
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
                    // Without conflicts, one pass serves many channels that go at once.
                    if conflicts.is_empty() {
                        continue;
                    }
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
            // A decision may make others possible.
            index = 0;
            conflicts.clear();
        }
        for main in &mut self.mains {
            let doubt = conflicts.contains(&main.id);
            if doubt != main.in_doubt {
                main.in_doubt = doubt;
                decisions.push(Decision::Doubt {
                    main: main.id,
                    doubt,
                });
            }
        }
        decisions
    }

    fn judge(&self, orphan: &Orphan, now: Instant) -> Verdict {
        // A channel of an attempt that its source has given up, if the next attempt is here
        // already.
        let renewed = |closed: Instant| {
            self.orphans.iter().any(|other| {
                other.id != orphan.id
                    && other.peer == orphan.peer
                    && (other.uuid, other.channel) == (orphan.uuid, orphan.channel)
                    && (other.closed.is_none() || closed <= other.since)
            })
        };
        if orphan
            .closed
            .is_some_and(|closed| orphan.empty || orphan.is_left || renewed(closed))
        {
            return Verdict::Drop;
        }
        let claimants = self.claimants(orphan, now);
        if self.is_past(orphan, &claimants) {
            return Verdict::Drop;
        }
        // Another's main channel is not its own while one that may be has still to speak: sources
        // open that first.
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
        if self.may_be_the_nexts(orphan, &claimants, now) {
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
            [main] if main.closed.is_none() && orphan.is_closed_anew(now) => {
                Verdict::Wait { hope: true }
            }
            // Channels of several VMs, and one main channel that does not say whose it is: the
            // others may be about to come.
            [main] if self.has_rivals(main, orphan, now) => {
                match now.duration_since(orphan.since) >= RIVAL_TIMEOUT {
                    true => Verdict::Refuse(vec![main.id], SetupFault::Alike { uuid: orphan.uuid }),
                    false => Verdict::Wait { hope: true },
                }
            }
            [main] if !main.channels.contains(&orphan.channel) && !self.is_doubled(orphan) => {
                Verdict::Give(main.id)
            }
            [main] if orphan.closed.is_some() && main.channels.contains(&orphan.channel) => {
                Verdict::Drop
            }
            [main] if now.duration_since(orphan.since) >= CONFLICT_TIMEOUT => {
                let id = orphan.channel;
                Verdict::Refuse(vec![main.id], SetupFault::ChannelTwice { id })
            }
            [main] => Verdict::Conflict(main.id),
            several if several.iter().any(|main| main.ready.is_none()) => {
                Verdict::Wait { hope: true }
            }
            _ if orphan.is_closed_anew(now) => Verdict::Wait { hope: true },
            several if orphan.closed.is_some() => judge_left(orphan, several),
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
        // A source that has closed its main channel is done, and the next attempt may be here
        // before that is.
        if orphan.closed.is_none() {
            narrow(&mut claimants, |main| main.closed.is_none());
        }
        if claimants.iter().all(|main| main.ready.is_some()) {
            narrow(&mut claimants, |main| {
                main.uuid.is_some() || main.ready.is_some_and(|(_, stated)| stated.has_channels)
            });
        }
        claimants
    }

    /// Whether the next source may have opened the channel. Its main channel is here then, and has
    /// still to speak.
    fn may_be_the_nexts(&self, orphan: &Orphan, claimants: &[&Main], now: Instant) -> bool {
        orphan.closed.is_none()
            && !claimants.is_empty()
            && claimants.iter().all(|main| is_recent(main.closed, now))
            && self.unspoken.contains(&orphan.peer)
    }

    /// Whether a closed channel is what a migration has left that is over: it came before each of
    /// `claimants`, and sources open their main channel first.
    fn is_past(&self, orphan: &Orphan, claimants: &[&Main]) -> bool {
        orphan.closed.is_some()
            && !claimants.is_empty()
            && claimants.iter().all(|main| orphan.id < main.id)
            && self.past.iter().any(|(main, _)| {
                // One that had none of its channels may have had none to leave.
                !main.channels.is_empty() && main.peer == orphan.peer && main.may_leave(orphan)
            })
    }

    /// Whether another channel that waits says to be the same one. One of both is another
    /// migration's.
    fn is_doubled(&self, orphan: &Orphan) -> bool {
        orphan.closed.is_none()
            && self.orphans.iter().any(|other| {
                let is_same = (other.uuid, other.channel) == (orphan.uuid, orphan.channel);
                is_same
                    && other.id != orphan.id
                    && other.peer == orphan.peer
                    && other.closed.is_none()
            })
    }

    /// Whether channels of another VM may belong to `main`, which has none so far.
    fn has_rivals(&self, main: &Main, orphan: &Orphan, now: Instant) -> bool {
        let is_rival = |other: &Orphan| {
            // Leftovers of a source are closed; connections of a running migration are open.
            let is_left = other.closed.is_some() && main.closed.is_none();
            // The main channel's own peer takes precedence over others.
            let is_strangers = orphan.peer == main.peer && other.peer != main.peer;
            let may_be = other.uuid != orphan.uuid && !is_left && !is_strangers;
            may_be
                && self
                    .claimants(other, now)
                    .iter()
                    .any(|claimant| claimant.id == main.id)
        };
        main.uuids().next().is_none() && self.orphans.iter().any(is_rival)
    }

    /// Whether the channel can be no other migration's than one of `mains`, whose channels come
    /// from `peer`.
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

    /// Whether the channel may be this migration's, which is over. One that has all its channels,
    /// or the one of this number, leaves no other.
    fn may_leave(&self, orphan: &Orphan) -> bool {
        !self.settled && !self.channels.contains(&orphan.channel) && self.may_own(orphan.uuid)
    }

    fn may_take(&self, orphan: &Orphan, now: Instant) -> bool {
        self.may_own(orphan.uuid) && !self.is_foreign(orphan, now)
    }

    /// Whether the channel is another's, as another host opened it. A host may have several
    /// addresses, so this holds only for a while; and for good where the channel is closed, as one
    /// is that an attempt which has failed leaves behind.
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

    /// Whether who comes now is more likely another's. A migration with gaps among its channels
    /// waits for them.
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
        is_recent(self.closed, now)
    }
}

/// Whether a connection was closed so short a while ago that others of its source may be open.
fn is_recent(closed: Option<Instant>, now: Instant) -> bool {
    closed.is_some_and(|closed| now.duration_since(closed) < CONFLICT_TIMEOUT)
}

/// Judges a channel that was closed a while ago, and that each of `several` may own.
fn judge_left(orphan: &Orphan, several: &[&Main]) -> Verdict {
    let mut closed = several.iter().filter(|main| main.closed.is_some());
    match (closed.next(), closed.next()) {
        (Some(main), None) if !main.channels.contains(&orphan.channel) => Verdict::Give(main.id),
        (Some(_), Some(_)) => {
            let mains = several.iter().filter(|main| main.closed.is_some());
            let mains = mains.map(|main| main.id).collect();
            Verdict::Refuse(mains, SetupFault::Alike { uuid: orphan.uuid })
        }
        (Some(_) | None, _) => Verdict::Drop,
    }
}

/// Keeps those for which `is_right` holds, unless that leaves none.
fn narrow<T>(items: &mut Vec<T>, is_right: impl Fn(&T) -> bool) {
    if items.iter().any(&is_right) {
        items.retain(is_right);
    }
}

#[cfg(test)]
mod tests;
