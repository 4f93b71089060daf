//! Which multifd channel belongs to which main channel.
//!
//! A hello names the VM's UUID; a main channel names it only with `validate-uuid`. So a channel
//! goes to the main channel that may own it, if there is only one. If there are several, their
//! openers tell them apart if possible. Otherwise all of them are refused while each source still
//! has its guest. The order in which connections come decides nothing.
//!
//! A source that has gone leaves connections behind. These stop no other migration:
//!
//! - A channel that was closed behind its hello carries nothing. It is dropped at once. A migration
//!   whose channels are all of this kind begins without any, and ends as its main channel does.
//! - A closed channel with bytes may be a short migration's, whose source has sent everything. It
//!   goes to its main channel, closed or not. Where it may be that of several, it waits until its
//!   own source must have closed its main channel too. Then it goes to the one that is closed. An
//!   open one does not miss it: a channel without an open main channel of its own is left over.
//! - A closed channel is not that of a source with a return path, which keeps its channels open
//!   until it has the destination's word.
//! - A closed channel that was accepted before its main channel may be left from a migration of the
//!   same peer that is just over. The system had accepted it, and this host had no descriptor for
//!   it, or no time. Or it has overtaken its main channel, whose source is done. It is kept until
//!   that is known, and nothing is made final meanwhile: the migration's own channel of this number
//!   comes, or one with a lower number does not come. A channel that was open beside the main
//!   channel is not left over, as a source closes everything before its next attempt. A migration
//!   that went through leaves nothing.
//! - An open channel is never a closed main channel's, as long as an open one may be its own, or
//!   one that has still to speak. Nor is it another's while the closed one's may be about to close.
//!
//! This is a state machine without IO and without a clock of its own.

mod doubles;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::doubles::may_be_closing;
use super::SetupFault;

/// The number of a connection. Its owner counts connections in the order in which they were
/// accepted.
pub type Id = u64;

/// Time limit for a channel without a main channel, counted from when no main channel may own it
/// any more.
pub(super) const ORPHAN_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for a channel whose id another channel has. A source that has just given up an
/// attempt leaves channels of that attempt.
pub(super) const CONFLICT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit for a further main channel while channels of several VMs wait.
pub(super) const RIVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for a main channel of a channel's own peer, before one of another peer may own it. A
/// retransmitted connection request arrives within this time.
pub(super) const FOREIGN_TIMEOUT: Duration = Duration::from_secs(4);

/// Time after its set-up in which a migration's channels may come without doubt about their owner.
pub(super) const LATE_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of ended migrations that are remembered, for [`ORPHAN_TIMEOUT`].
const MOST_PAST: usize = 64;

/// The opener of a connection, as far as the system knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "for the fuzz targets alone")]
pub enum PeerId {
    /// A process of this host, over a unix socket.
    Process(i32),
    /// A host, over TCP.
    Host(IpAddr),
    /// The system does not say.
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
    /// The channel belongs to no migration.
    Drop {
        /// The channel.
        channel: Id,
    },
    /// It has come into doubt whether the migration has its own channels, so nothing of it may be
    /// made final; or the doubt is over.
    Doubt {
        /// Its main channel.
        main: Id,
        /// Whether there is doubt.
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
    /// Whether it has a multifd flush mark, so there are channels.
    pub has_channels: bool,
    /// Whether it may switch to postcopy.
    pub postcopy: bool,
    /// Whether its source waits for the destination's word.
    pub return_path: bool,
}

/// The main channels and the channels without one.
#[derive(Debug, Default)]
pub struct Matching {
    mains: Vec<Main>,
    orphans: Vec<Orphan>,
    /// The peers with connections of unknown kind.
    unspoken: Vec<PeerId>,
    /// Migrations that are over, each with the time of the first decision after its end.
    past: VecDeque<(Main, Option<Instant>)>,
    /// The number of times at which decisions were made.
    turns: u64,
}

#[derive(Debug)]
struct Main {
    id: Id,
    peer: PeerId,
    /// When its set-up was read, and its statements.
    ready: Option<(Instant, Stated)>,
    /// The UUID of its channels.
    uuid: Option<[u8; 16]>,
    channels: BTreeSet<u8>,
    /// Those of its channels that its own peer has opened.
    own: BTreeSet<u8>,
    /// Whether all its channels have certainly come.
    settled: bool,
    /// Whether it is an engine's, which owns its UUID and no other.
    engine: bool,
    has_preempt: bool,
    /// When its peer was found to have closed it.
    closed: Option<Instant>,
    /// Whether it has been silent for a while in its set-up.
    stalls: bool,
    /// Whether a channel waits that has the id of one of its channels.
    in_doubt: bool,
    /// The last decisions before it came.
    came: u64,
}

#[derive(Clone, Copy, Debug)]
struct Orphan {
    id: Id,
    uuid: [u8; 16],
    channel: u8,
    peer: PeerId,
    /// When its peer was found to have closed it.
    closed: Option<Instant>,
    /// Whether it was closed directly behind its hello.
    empty: bool,
    /// Whether only a main channel that has ended may have owned it, or it is not told apart from
    /// that one's.
    is_left: bool,
    /// Whether a migration that is over may have owned it.
    may_be_left: bool,
    /// The last decisions at which it was open.
    open: u64,
    since: Instant,
    /// The last time at which a main channel might have owned it.
    hope: Instant,
}

enum Verdict {
    Wait {
        hope: bool,
    },
    /// This main channel may own the channel, but has another one of the same id, or the channel
    /// may be left from an earlier migration.
    Conflict(Id),
    Give(Id),
    Drop,
    Refuse(Vec<Id>, SetupFault),
}

impl Matching {
    /// Adds a main channel.
    pub fn main_came(&mut self, id: Id, peer: PeerId) {
        self.mains.push(Main {
            id,
            peer,
            ready: None,
            uuid: None,
            channels: BTreeSet::new(),
            own: BTreeSet::new(),
            settled: false,
            engine: false,
            has_preempt: false,
            closed: None,
            stalls: false,
            in_doubt: false,
            came: self.turns,
        });
    }

    /// Notes that the set-up of a main channel has been read.
    pub fn main_ready(&mut self, id: Id, stated: Stated, now: Instant) {
        if let Some(main) = self.main(id) {
            main.ready = Some((now, stated));
        }
    }

    /// Adds an engine that awaits the channels with `uuid`, which it owns.
    pub fn engine_ready(&mut self, id: Id, uuid: [u8; 16], now: Instant) {
        self.main_came(id, PeerId::Unknown);
        self.main_ready(id, Stated::default(), now);
        if let Some(main) = self.main(id) {
            main.uuid = Some(uuid);
            main.engine = true;
        }
    }

    /// Notes that all channels of a migration have certainly come. Later ones belong to another
    /// migration.
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

    /// Notes the end of a migration. Closed channels that it may have owned are given to the next
    /// one only without doubt. A main channel that ends in its set-up may be a stranger's, so it
    /// takes no channel away that another present main channel may own.
    pub fn end(&mut self, id: Id) {
        let Some(index) = self.mains.iter().position(|main| main.id == id) else {
            return;
        };
        let main = self.mains.remove(index);
        for orphan in &mut self.orphans {
            if main.peer != orphan.peer || !main.may_leave(orphan) {
                continue;
            }
            let is_others = |other: &&Main| other.peer == orphan.peer && other.may_own(orphan.uuid);
            let mut others = self.mains.iter().filter(is_others);
            let is_left = match main.ready {
                // Sources at the same time are not told apart.
                Some(_) => others.any(|other| orphan.has_met(other)),
                None => !self.unspoken.contains(&orphan.peer) && others.next().is_none(),
            };
            orphan.is_left |= is_left;
            orphan.may_be_left |= main.ready.is_some();
        }
        // A stranger's main channel that ends in its set-up leaves no channels.
        if main.ready.is_some() {
            self.past.truncate(MOST_PAST - 1);
            self.past.push_front((main, None));
        }
    }

    /// Adds a channel whose hello has been read.
    pub fn channel_came(
        &mut self,
        id: Id,
        uuid: [u8; 16],
        channel: u8,
        peer: PeerId,
        now: Instant,
    ) {
        let mut orphan = Orphan {
            id,
            uuid,
            channel,
            peer,
            closed: None,
            empty: false,
            is_left: false,
            may_be_left: false,
            open: 0,
            since: now,
            hope: now,
        };
        orphan.may_be_left = self.past.iter().any(|(main, _)| {
            // A migration that had no channels may have left none.
            !main.channels.is_empty() && main.peer == peer && main.may_leave(&orphan)
        });
        self.orphans.push(orphan);
    }

    /// Notes that a main channel stalls in its set-up, or goes on. A source sends its set-up at
    /// once. So a main channel that stalls is probably a stranger's, and no channel waits for it.
    pub(super) fn main_stalls(&mut self, id: Id, stalls: bool) {
        if let Some(main) = self.main(id) {
            main.stalls = stalls;
        }
    }

    /// Notes that the peer has closed a main channel.
    pub fn main_closed(&mut self, id: Id, now: Instant) {
        if let Some(main) = self.main(id) {
            main.closed.get_or_insert(now);
        }
    }

    /// Notes that the peer has closed a channel without a main channel. Its bytes can still be
    /// read.
    pub fn channel_closed(&mut self, id: Id, now: Instant) {
        for orphan in self.orphans.iter_mut().filter(|orphan| orphan.id == id) {
            orphan.closed.get_or_insert(now);
        }
    }

    /// The same for a channel without bytes behind its hello. No migration needs it.
    pub(super) fn channel_closed_empty(&mut self, id: Id, now: Instant) {
        self.channel_closed(id, now);
        for orphan in self.orphans.iter_mut().filter(|orphan| orphan.id == id) {
            orphan.empty = true;
        }
    }

    /// Whether a decision is due soon about a channel that this main channel may own. The channel's
    /// peer has closed it, as in a short migration or an earlier attempt; or it is open and the
    /// next source may own it.
    pub(super) fn is_undecided(&self, main: Id, now: Instant) -> bool {
        self.orphans.iter().any(|orphan| {
            let claimants = self.claimants(orphan, now);
            (orphan.is_closed_anew(now)
                || self.may_be_the_nexts(orphan, &claimants, now)
                || may_be_closing(orphan, &claimants, now))
                && claimants.iter().any(|claimant| claimant.id == main)
        })
    }

    /// Removes a channel without a main channel, which its owner gives up.
    pub fn forget_channel(&mut self, id: Id) {
        self.orphans.retain(|orphan| orphan.id != id);
    }

    /// The channels without a main channel, the oldest first.
    pub fn orphans(&self) -> impl Iterator<Item = Id> {
        self.orphans.iter().map(|orphan| orphan.id)
    }

    /// The number of migrations, including those in their set-up.
    pub fn migrations(&self) -> usize {
        self.mains.len()
    }

    /// The migration that owns postcopy's own connection, which identifies itself in no way: the
    /// only migration of its peer that may switch to postcopy and has no such connection.
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
        self.turns = self.turns.saturating_add(1);
        for orphan in self.orphans.iter_mut().filter(|it| it.closed.is_none()) {
            orphan.open = self.turns;
        }
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
                        if main.peer == orphan.peer {
                            main.own.insert(orphan.channel);
                        }
                    }
                    let (channel, main) = (orphan.id, id);
                    decisions.push(Decision::Give { channel, main });
                    self.orphans.remove(index);
                }
                Verdict::Drop => {
                    decisions.push(Decision::Drop { channel: orphan.id });
                    self.orphans.remove(index);
                    // Without conflicts, one pass serves all channels that can go now.
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
            // One decision may allow others.
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
        if orphan.closed.is_some()
            && (orphan.empty || orphan.is_left || self.is_renewed(orphan, now))
        {
            return Verdict::Drop;
        }
        let claimants = self.claimants(orphan, now);
        if let Some(verdict) = self.judge_doubtful(orphan, &claimants, now) {
            return verdict;
        }
        // A main channel of another peer does not own it while one that may own it has still to
        // identify itself: sources open main first.
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
                None => outlast(orphan, now),
            },
            [main] if main.ready.is_none() => Verdict::Wait { hope: true },
            // It may be left from an attempt whose successor is about to come.
            [main] if main.closed.is_none() && orphan.is_closed_anew(now) => {
                Verdict::Wait { hope: true }
            }
            // There are channels of several VMs, and one main channel without a UUID. Further main
            // channels may be about to come.
            [main] if self.has_rivals(main, orphan, now) => {
                match now.duration_since(orphan.since) >= RIVAL_TIMEOUT {
                    true => Verdict::Refuse(vec![main.id], SetupFault::Alike { uuid: orphan.uuid }),
                    false => Verdict::Wait { hope: true },
                }
            }
            [main] if !main.channels.contains(&orphan.channel) && self.is_rivalled(orphan, now) => {
                let id = orphan.channel;
                Verdict::Refuse(vec![main.id], SetupFault::ChannelTwice { id })
            }
            [main] if !main.channels.contains(&orphan.channel) && !self.is_doubled(orphan) => {
                match self.is_among_doubles(orphan, main, now) {
                    false => Verdict::Give(main.id),
                    true if main.closed.is_none() => Verdict::Conflict(main.id),
                    true => outlast(orphan, now),
                }
            }
            [main] if orphan.closed.is_some() && main.channels.contains(&orphan.channel) => {
                Verdict::Drop
            }
            // The source is done, and may have given its guest up. It has all its channels.
            [main] if main.closed.is_some() && main.channels.contains(&orphan.channel) => {
                outlast(orphan, now)
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
            several if may_be_closing(orphan, several, now) => Verdict::Wait { hope: true },
            several if orphan.closed.is_some() => judge_left(orphan, several),
            several => {
                let mains = several.iter().map(|main| main.id).collect();
                Verdict::Refuse(mains, SetupFault::Alike { uuid: orphan.uuid })
            }
        }
    }

    /// The main channels that may own the channel.
    fn claimants(&self, orphan: &Orphan, now: Instant) -> Vec<&Main> {
        let mut claimants: Vec<_> = self
            .mains
            .iter()
            .filter(|main| !main.is_settled(now) && main.may_take(orphan, now))
            .filter(|main| !self.is_outdone(orphan, main))
            .collect();
        if orphan.closed.is_none() {
            let has_own = |main: &Main| main.channels.contains(&orphan.channel);
            narrow(&mut claimants, |main| {
                main.closed.is_none() || !has_own(main)
            });
        }
        // A UUID that was set on purpose belongs to one VM.
        if orphan.uuid != [0; 16] {
            narrow(&mut claimants, |main| main.names(orphan.uuid));
        }
        narrow(&mut claimants, |main| main.peer == orphan.peer);
        narrow(&mut claimants, |main| !main.stalls);
        // A source that has closed its main channel is done, and its channels close at once. The
        // next attempt may be here before this end is.
        if orphan.closed.is_none() {
            let may_close = |main: &&Main| main.closed.is_none() || is_recent(main.closed, now);
            narrow(&mut claimants, may_close);
        }
        if claimants.iter().all(|main| main.ready.is_some()) {
            narrow(&mut claimants, |main| {
                main.uuid.is_some() || main.ready.is_some_and(|(_, stated)| stated.has_channels)
            });
        }
        claimants
    }

    /// Whether the next source may have opened the channel. Its main channel is then here, but has
    /// still to identify itself.
    fn may_be_the_nexts(&self, orphan: &Orphan, claimants: &[&Main], now: Instant) -> bool {
        orphan.closed.is_none()
            && !claimants.is_empty()
            && claimants.iter().all(|main| is_recent(main.closed, now))
            && self.unspoken.contains(&orphan.peer)
    }

    /// Decides about a closed channel that a migration which is over may have left. It came before
    /// each of `claimants`, and sources open their main channel first. `None`: there is no such
    /// doubt any more.
    fn judge_doubtful(
        &self,
        orphan: &Orphan,
        claimants: &[&Main],
        now: Instant,
    ) -> Option<Verdict> {
        let first = claimants.first()?;
        let has_met = claimants.iter().any(|main| orphan.has_met(main));
        if !orphan.may_be_left || orphan.closed.is_none() || has_met {
            return None;
        }
        let has_own = |main: &&Main| main.channels.contains(&orphan.channel);
        if claimants.iter().all(has_own) {
            return Some(Verdict::Drop);
        }
        let mut ready = Vec::new();
        for main in claimants {
            match main.ready {
                Some((since, _)) => ready.push(since),
                None => return Some(Verdict::Wait { hope: true }),
            }
        }
        // By then, the migration's own channels have come.
        let since = ready.into_iter().fold(orphan.since, Instant::max);
        if now.duration_since(since) < FOREIGN_TIMEOUT {
            return Some(Verdict::Conflict(first.id));
        }
        // A migration has all numbers up to its highest.
        let has_lower = |main: &Main, number| {
            main.channels.contains(&number)
                || self.orphans.iter().any(|other| {
                    other.channel == number
                        && other.uuid == orphan.uuid
                        && main.may_take(other, now)
                })
        };
        let is_needed = |main: &&Main| (0..orphan.channel).all(|number| has_lower(main, number));
        match claimants.iter().any(is_needed) {
            true => None,
            false => Some(Verdict::Drop),
        }
    }

    /// Whether the channel is another peer's, and the main channel's own peer has one of this UUID
    /// and id: then it is none of this migration's, and stops it in no way.
    fn is_outdone(&self, orphan: &Orphan, main: &Main) -> bool {
        let has_own = || {
            self.orphans.iter().any(|other| {
                let is_same = (other.uuid, other.channel) == (orphan.uuid, orphan.channel);
                is_same && other.peer == main.peer && other.closed.is_none()
            })
        };
        main.peer != orphan.peer && (main.own.contains(&orphan.channel) || has_own())
    }

    /// Whether `main`, which has no channels so far, may own channels of another VM.
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

    /// Whether only `mains` can own the channel. Their channels come from `peer`.
    fn is_of(&self, orphan: &Orphan, mains: &[Id], peer: PeerId, now: Instant) -> bool {
        let claimants = self.claimants(orphan, now);
        let are_they = claimants.iter().all(|main| mains.contains(&main.id));
        are_they && (!claimants.is_empty() || orphan.peer == peer)
    }

    /// The only migration of this UUID that can still take the channel, if there is only one.
    fn late_for(&self, orphan: &Orphan, now: Instant) -> Option<&Main> {
        let mut mains = self.mains.iter().filter(|main| {
            let missing = !main.channels.contains(&orphan.channel);
            let may_be = !main.settled && main.is_settled(now) && main.may_take(orphan, now);
            may_be && missing && !self.is_among_doubles(orphan, main, now)
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

    /// Whether this migration, which is over, may own the channel. A migration that has all its
    /// channels, or one with this id, owns no other.
    fn may_leave(&self, orphan: &Orphan) -> bool {
        !self.settled && !self.channels.contains(&orphan.channel) && self.may_own(orphan.uuid)
    }

    fn may_take(&self, orphan: &Orphan, now: Instant) -> bool {
        self.may_own(orphan.uuid) && !self.is_foreign(orphan, now) && !self.outlives(orphan)
    }

    /// Whether the channel was closed by its source, and this one's keeps its channels open until
    /// it has the destination's word.
    fn outlives(&self, orphan: &Orphan) -> bool {
        orphan.closed.is_some() && self.ready.is_some_and(|(_, stated)| stated.return_path)
    }

    /// Whether the channel belongs to another migration because another host opened it. A host may
    /// have several addresses, so this holds only for a while. It holds for good if the channel is
    /// closed: a failed attempt leaves such channels.
    fn is_foreign(&self, orphan: &Orphan, now: Instant) -> bool {
        // A UUID that was given on purpose is one VM's.
        let is_named = orphan.uuid != [0; 16] && self.names(orphan.uuid);
        // Its own channels come at about the time of its set-up.
        let ready = self.ready.map(|(ready, _)| ready);
        let since = ready.map_or(orphan.since, |ready| ready.max(orphan.since));
        // A proxy on this host may have one process for each connection.
        let differ = matches!(
            (self.peer, orphan.peer),
            (PeerId::Host(ours), PeerId::Host(theirs)) if ours != theirs
        );
        let is_recent = now.duration_since(since) < FOREIGN_TIMEOUT;
        differ && !is_named && (is_recent || orphan.closed.is_some())
    }

    fn names(&self, uuid: [u8; 16]) -> bool {
        self.uuids().any(|own| own == uuid)
    }

    /// Whether a channel that comes now probably belongs to another migration. A migration with
    /// gaps among its channels waits for them.
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
    /// Whether it was open while the main channel was here.
    fn has_met(&self, main: &Main) -> bool {
        self.id > main.id || self.open > main.came
    }

    fn is_closed_anew(&self, now: Instant) -> bool {
        is_recent(self.closed, now)
    }
}

/// Whether a connection was closed so recently that others of its source may still be open.
fn is_recent(closed: Option<Instant>, now: Instant) -> bool {
    closed.is_some_and(|closed| now.duration_since(closed) < CONFLICT_TIMEOUT)
}

/// No main channel that is here owns the channel. Its own may still come.
fn outlast(orphan: &Orphan, now: Instant) -> Verdict {
    match now.duration_since(orphan.hope) >= ORPHAN_TIMEOUT {
        true => Verdict::Drop,
        false => Verdict::Wait { hope: false },
    }
}

/// Decides about a channel that was closed a while ago, and that each of `several` may own.
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

/// Keeps the items for which `is_right` holds, unless none would be left.
fn narrow<T>(items: &mut Vec<T>, is_right: impl Fn(&T) -> bool) {
    if items.iter().any(&is_right) {
        items.retain(is_right);
    }
}

#[cfg(test)]
mod tests;
