//! The rounds of a migration's channels, relative to each other.
//!
//! A source divides a migration into rounds. At the end of a round it writes a SYNC packet on every
//! multifd channel and, after all of them, a mark on the main channel. Inside a round a page is
//! sent once, so the order between channels does not matter there; the next round may send it
//! again. A receiver that applies pages therefore lets no channel into round k + 1 before all
//! channels and the main channel have come to the end of round k.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Moment;

/// Channels which do not agree about the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoundFault {
    /// A channel ended before it came to the end of a round.
    #[error(
        "the channel ended after {found} SYNC packets, but the main channel marks the end of round {wanted}"
    )]
    MissingSync {
        /// The channel's number of SYNC packets.
        found: u64,
        /// The number of rounds that the main channel has ended.
        wanted: u64,
    },
    /// The main channel ended without the RAM section, or inside it.
    #[error("the main channel ended before its RAM section did")]
    NoRam,
    /// A channel ended inside a round, or went on after the last.
    #[error(
        "the channel has pages after its last SYNC, in a round that no mark on the main channel ends"
    )]
    OpenRound,
    /// Another channel failed, so this one was stopped. Never the first failure of a migration.
    #[error("stopped, because another channel failed")]
    Stopped,
}

/// Time limit for the end of a round on a channel that gives nothing.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// Poll interval of waiting threads.
const TICK: Duration = Duration::from_millis(500);

/// How a channel enters a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The round's number, by the channel's own count.
    pub round: u64,
    /// The round had ended without the channel, which came late: others may have sent its pages
    /// again since.
    pub is_behind: bool,
}

/// The round of every channel. One thread per channel and one for the main channel share it.
#[derive(Debug)]
pub struct Rounds {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    main: MainState,
    /// Rounds which the main channel has marked the end of.
    marks: u64,
    /// Rounds which all channels that had come have ended too.
    ended: u64,
    /// By their ids.
    channels: BTreeMap<usize, ChannelState>,
    stopped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MainState {
    /// It has not said yet which RAM blocks there are.
    Opening,
    Running,
    /// There are no more rounds.
    Finished,
}

#[derive(Clone, Copy, Debug)]
struct ChannelState {
    /// When it gave something for the last time.
    active: Moment,
    syncs: u64,
    /// It has given pages since its last SYNC.
    in_round: bool,
    ended: bool,
}

impl ChannelState {
    fn new() -> Self {
        Self {
            active: Moment::now(),
            syncs: 0,
            in_round: false,
            ended: false,
        }
    }
}

impl Rounds {
    /// With this many channels from the start.
    pub fn new(channels: usize) -> Self {
        let channels = (0..channels).map(|id| (id, ChannelState::new()));
        let state = State {
            main: MainState::Opening,
            marks: 0,
            ended: 0,
            channels: channels.collect(),
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// One more channel has come.
    pub fn join(&self, channel: usize) {
        let mut state = self.lock();
        state.channels.insert(channel, ChannelState::new());
        self.changed.notify_all();
    }

    /// The ids of the channels that have come.
    pub fn channels(&self) -> Vec<usize> {
        self.lock().channels.keys().copied().collect()
    }

    /// A channel gives something.
    pub fn touch(&self, channel: usize) {
        if let Some(channel) = self.lock().channels.get_mut(&channel) {
            channel.active = Moment::now();
        }
    }

    /// The main channel has named the RAM blocks: channels may give pages.
    pub fn open(&self) {
        self.lock().main = MainState::Running;
        self.changed.notify_all();
    }

    /// The main channel marks the end of a round; waits for every channel's SYNC.
    ///
    /// # Errors
    ///
    /// The index of the channel that will not come to it, and why.
    pub fn mark(&self) -> Result<(), (Option<usize>, RoundFault)> {
        let since = Moment::now();
        let mut state = self.lock();
        state.marks = state.marks.saturating_add(1);
        self.changed.notify_all();
        loop {
            if state.stopped {
                return Err((None, RoundFault::Stopped));
            }
            let wanted = state.marks;
            let mut behind = state
                .channels
                .iter()
                .filter(|(_, channel)| channel.syncs < wanted);
            let is_lost = |channel: &ChannelState| {
                channel.ended || channel.active.max(since).elapsed() >= SYNC_TIMEOUT
            };
            if let Some((&id, channel)) = behind.clone().find(|(_, channel)| is_lost(channel)) {
                return Err((
                    Some(id),
                    RoundFault::MissingSync {
                        found: channel.syncs,
                        wanted,
                    },
                ));
            }
            if behind.next().is_none() {
                state.ended = wanted;
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    /// The main channel has marked its last round.
    ///
    /// # Errors
    ///
    /// The index of a channel that is inside another round already.
    pub fn finish(&self) -> Result<(), (Option<usize>, RoundFault)> {
        let mut state = self.lock();
        state.main = MainState::Finished;
        self.changed.notify_all();
        let open = state.channels.iter().find(|(_, channel)| channel.in_round);
        match open {
            Some((&id, _)) => Err((Some(id), RoundFault::OpenRound)),
            None => Ok(()),
        }
    }

    /// Waits until the main channel has named the RAM blocks.
    ///
    /// # Errors
    ///
    /// [`RoundFault::Stopped`].
    pub fn wait_open(&self) -> Result<(), RoundFault> {
        let mut state = self.lock();
        while state.main == MainState::Opening {
            if state.stopped {
                return Err(RoundFault::Stopped);
            }
            state = self.wait(state);
        }
        Ok(())
    }

    /// A channel that has ended short of a round's end, if there is one.
    pub fn lost(&self) -> Option<(usize, RoundFault)> {
        let state = self.lock();
        let wanted = state.marks;
        let mut channels = state.channels.iter();
        let lost = channels.find(|(_, channel)| channel.ended && channel.syncs < wanted);
        lost.map(|(&id, channel)| {
            let found = channel.syncs;
            (id, RoundFault::MissingSync { found, wanted })
        })
    }

    /// A channel that has not come to the end of the last marked round, or is inside another one,
    /// if there is one. It may be on its way there.
    pub fn behind(&self) -> Option<(usize, RoundFault)> {
        let state = self.lock();
        let wanted = state.marks;
        let mut channels = state.channels.iter();
        let behind = channels.find(|(_, channel)| channel.in_round || channel.syncs < wanted);
        behind.map(|(&id, channel)| match channel.syncs {
            found if found < wanted => (id, RoundFault::MissingSync { found, wanted }),
            _ => (id, RoundFault::OpenRound),
        })
    }

    /// Whether the main channel has marked its last round.
    pub fn is_finished(&self) -> bool {
        self.lock().main == MainState::Finished
    }

    /// `channel` has pages to give; waits until the RAM blocks are known.
    pub fn enter(&self, channel: usize) -> Result<Entry, RoundFault> {
        let mut state = self.lock();
        loop {
            match state.main {
                _ if state.stopped => return Err(RoundFault::Stopped),
                MainState::Finished => return Err(RoundFault::OpenRound),
                MainState::Running => break,
                MainState::Opening => state = self.wait(state),
            }
        }
        let ended = state.ended;
        let channel = state.channels.get_mut(&channel);
        let round = channel.map_or(ended, |channel| {
            channel.in_round = true;
            channel.syncs
        });
        let is_behind = round < ended;
        Ok(Entry { round, is_behind })
    }

    /// The number of rounds that the main channel has ended.
    pub fn marks(&self) -> u64 {
        self.lock().marks
    }

    /// `channel` has come to a SYNC.
    pub fn arrive(&self, channel: usize) -> u64 {
        let mut state = self.lock();
        let syncs = match state.channels.get_mut(&channel) {
            Some(channel) => {
                channel.active = Moment::now();
                channel.syncs = channel.syncs.saturating_add(1);
                channel.in_round = false;
                channel.syncs
            }
            None => 0,
        };
        self.changed.notify_all();
        syncs
    }

    /// Like [`arrive`](Self::arrive), and waits for all other channels and the main channel to come
    /// there too.
    ///
    /// A SYNC which the main channel does not know of by its end is let pass: nothing can come
    /// after it.
    pub fn hold(&self, channel: usize) -> Result<(), RoundFault> {
        let syncs = self.arrive(channel);
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Err(RoundFault::Stopped);
            }
            let all_here = || {
                state
                    .channels
                    .values()
                    .all(|channel| channel.syncs >= syncs)
            };
            if state.main == MainState::Finished {
                return Ok(());
            }
            if state.marks >= syncs && all_here() {
                // A channel that comes from now on finds the round over, whether or not main's
                // thread has seen it.
                state.ended = state.ended.max(syncs);
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    /// `channel` has ended.
    ///
    /// # Errors
    ///
    /// `OpenRound` when it did so inside a round.
    pub fn leave(&self, channel: usize) -> Result<(), RoundFault> {
        let mut state = self.lock();
        self.changed.notify_all();
        match state.channels.get_mut(&channel) {
            Some(channel) if channel.in_round => Err(RoundFault::OpenRound),
            Some(channel) => {
                channel.ended = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Wakes all waiting threads, with an error.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    // Every change is one assignment, so a thread that panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let outcome = self.changed.wait_timeout(state, TICK);
        outcome.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    /// Long enough for a thread that does not wait to have passed.
    const A_WHILE: Duration = Duration::from_millis(50);

    #[test]
    fn pages_wait_for_the_list_of_blocks() {
        let rounds = Rounds::new(1);
        let waited = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                rounds.wait_open().unwrap();
                waited.fetch_add(1, Ordering::SeqCst);
            });
            thread::sleep(A_WHILE);
            assert_eq!(waited.load(Ordering::SeqCst), 0);
            rounds.open();
        });
        assert_eq!(waited.into_inner(), 1);
        let stopped = Rounds::new(1);
        stopped.stop();
        assert_eq!(stopped.wait_open(), Err(RoundFault::Stopped));
    }

    #[test]
    fn a_late_channel_that_ends_early_is_named() {
        let rounds = Rounds::new(1);
        rounds.open();
        rounds.arrive(0);
        rounds.mark().unwrap();
        assert_eq!(rounds.lost(), None);
        rounds.join(1);
        assert_eq!(rounds.lost(), None, "it may go on");
        rounds.leave(1).unwrap();
        let (found, wanted) = (0, 1);
        assert_eq!(
            rounds.lost(),
            Some((1, RoundFault::MissingSync { found, wanted }))
        );
    }

    /// Main's thread may see the end of a round later than the channels do.
    #[test]
    fn a_channel_that_comes_once_others_have_passed_is_behind() {
        for _ in 0..500 {
            let rounds = Rounds::new(1);
            rounds.open();
            thread::scope(|scope| {
                scope.spawn(|| rounds.mark());
                rounds.hold(0).unwrap();
                rounds.join(1);
                assert!(rounds.enter(1).unwrap().is_behind);
                rounds.arrive(1);
            });
        }
    }

    #[test]
    fn a_channel_on_its_way_is_seen() {
        let rounds = Rounds::new(1);
        rounds.open();
        rounds.arrive(0);
        rounds.mark().unwrap();
        assert_eq!(rounds.behind(), None);
        rounds.join(1);
        let (found, wanted) = (0, 1);
        let missing = RoundFault::MissingSync { found, wanted };
        assert_eq!(rounds.behind(), Some((1, missing)));
        rounds.arrive(1);
        rounds.enter(1).unwrap();
        assert_eq!(rounds.behind(), Some((1, RoundFault::OpenRound)));
        rounds.arrive(1);
        assert_eq!(rounds.behind(), None);
    }

    #[test]
    fn nobody_passes_before_all_are_there() {
        let rounds = Rounds::new(2);
        let passed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for channel in 0..2 {
                let (rounds, passed) = (&rounds, &passed);
                scope.spawn(move || {
                    rounds.enter(channel).unwrap();
                    if channel == 1 {
                        thread::sleep(A_WHILE);
                    }
                    rounds.hold(channel).unwrap();
                    passed.fetch_add(1, Ordering::SeqCst);
                });
            }
            rounds.open();
            thread::sleep(2 * A_WHILE);
            assert_eq!(
                passed.load(Ordering::SeqCst),
                0,
                "the main channel is missing"
            );
            rounds.mark().unwrap();
        });
        assert_eq!(passed.load(Ordering::SeqCst), 2);
        rounds.finish().unwrap();
        rounds.leave(0).unwrap();
    }

    #[test]
    fn pages_wait_for_the_block_list() {
        let rounds = Rounds::new(1);
        let entered = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                rounds.enter(0).unwrap();
                entered.fetch_add(1, Ordering::SeqCst);
            });
            thread::sleep(A_WHILE);
            assert_eq!(entered.load(Ordering::SeqCst), 0);
            rounds.open();
        });
        assert_eq!(entered.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_channel_that_ends_too_early_is_named() {
        let rounds = Rounds::new(2);
        rounds.open();
        rounds.arrive(0);
        rounds.leave(1).unwrap();
        assert_eq!(
            rounds.mark(),
            Err((
                Some(1),
                RoundFault::MissingSync {
                    found: 0,
                    wanted: 1
                }
            ))
        );
    }

    #[test]
    fn a_surplus_sync_passes_at_the_end_and_pages_do_not() {
        let rounds = Rounds::new(1);
        rounds.open();
        rounds.arrive(0);
        rounds.mark().unwrap();
        thread::scope(|scope| {
            let surplus = scope.spawn(|| rounds.hold(0));
            thread::sleep(A_WHILE);
            rounds.finish().unwrap();
            surplus.join().unwrap().unwrap();
        });
        assert_eq!(rounds.enter(0), Err(RoundFault::OpenRound));
    }

    #[test]
    fn an_end_inside_a_round_is_noticed() {
        let rounds = Rounds::new(1);
        rounds.open();
        rounds.enter(0).unwrap();
        assert_eq!(rounds.leave(0), Err(RoundFault::OpenRound));
        assert_eq!(rounds.finish(), Err((Some(0), RoundFault::OpenRound)));
    }

    #[test]
    fn a_late_channel_is_behind_until_it_has_caught_up() {
        let rounds = Rounds::new(1);
        rounds.open();
        for _ in 0..3 {
            rounds.arrive(0);
            rounds.mark().unwrap();
        }
        rounds.join(1);
        let entry = |round, is_behind| Ok(Entry { round, is_behind });
        assert_eq!(rounds.enter(0), entry(3, false));
        rounds.arrive(0);
        for round in 1..3 {
            rounds.arrive(1);
            assert_eq!(rounds.enter(1), entry(round, true));
        }
        rounds.arrive(1);
        assert_eq!(rounds.enter(1), entry(3, false), "it has caught up");
    }

    #[test]
    fn a_stop_wakes_everybody() {
        let rounds = Rounds::new(2);
        thread::scope(|scope| {
            let entering = scope.spawn(|| rounds.enter(0));
            let holding = scope.spawn(|| rounds.hold(1));
            let marking = scope.spawn(|| rounds.mark());
            thread::sleep(A_WHILE);
            rounds.stop();
            assert_eq!(entering.join().unwrap(), Err(RoundFault::Stopped));
            assert_eq!(holding.join().unwrap(), Err(RoundFault::Stopped));
            assert_eq!(marking.join().unwrap(), Err((None, RoundFault::Stopped)));
        });
    }
}
