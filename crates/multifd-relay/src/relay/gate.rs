//! The gate: connections of a migration wait here for each other.
//!
//! A source writes a mark on its main channel only after it has written a SYNC on each channel. A
//! destination that reads the mark waits for these SYNCs, and a QEMU waits for ever if one does not
//! come. So the gate holds a mark until every channel has passed its SYNC on. If a connection
//! breaks before that, the destination sees an end and not a silence.
//!
//! Until the destination has begun to load, the relay neither reads nor passes on anything after
//! the set-up. Otherwise a source could give everything to relays, and stop its guest for a
//! destination that still waits for channels.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use multifd_transport::Moment;

/// Time limit for channels after a set-up that announces them. The source opened them before; over
/// a link that loses packets, their first bytes may come this much later.
pub(super) const CHANNELS_TIMEOUT: Duration = Duration::from_secs(20);

/// Time limit for holding a mark for a SYNC while its channel has nothing to read. The source sent
/// the SYNC before the mark.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// Poll interval of a waiting thread.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    channels: BTreeMap<u8, Progress>,
    moved: Option<Moment>,
    /// Bytes after the set-up may pass.
    begun: bool,
    /// The destination certainly loads, so it has all channels.
    loads: bool,
    /// Channels may belong to another migration, so no mark passes.
    in_doubt: bool,
    /// Marks are no longer held.
    open: bool,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Progress {
    /// The number of SYNCs that were passed on.
    syncs: u64,
    end: Option<End>,
    /// Since when the channel has waited for its source.
    idle: Option<Moment>,
}

/// How a channel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The source closed it at the end of a packet.
    Closed,
    /// The destination closed it.
    Abandoned(io::ErrorKind),
}

/// Why a mark cannot be passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The migration is ending.
    Stopped,
    /// Announced channels do not come. The id is the first missing one below those that have come.
    Missing(Option<u8>),
    /// A channel has ended, or is idle, before the SYNC of this mark.
    NoSync {
        channel: u8,
        found: u64,
        end: Option<End>,
    },
}

impl Gate {
    /// Adds a channel.
    pub(super) fn channel_came(&self, id: u8) {
        self.change(|state| {
            state.channels.entry(id).or_default();
            state.moved = Some(Moment::now());
        });
    }

    /// The last time at which a channel came or passed on a SYNC.
    pub(super) fn moved(&self) -> Option<Moment> {
        self.lock().moved
    }

    /// The number of channels that have come.
    pub(super) fn channels(&self) -> usize {
        self.lock().channels.len()
    }

    /// Counts a SYNC that a channel has passed on.
    pub(super) fn synced(&self, id: u8) {
        self.change(|state| {
            let channel = state.channels.entry(id).or_default();
            channel.syncs = channel.syncs.saturating_add(1);
            state.moved = Some(Moment::now());
        });
    }

    /// Notes whether a channel waits for its source or has bytes in hand.
    pub(super) fn idle(&self, id: u8, idle: bool) {
        let mut state = self.lock();
        if let Some(channel) = state.channels.get_mut(&id) {
            channel.idle = idle.then(Moment::now);
        }
    }

    /// Whether every channel waits for its source.
    pub(super) fn all_idle(&self) -> bool {
        let state = self.lock();
        state
            .channels
            .values()
            .all(|channel| channel.idle.is_some() || channel.end.is_some())
    }

    /// Notes the end of a channel.
    pub(super) fn ended(&self, id: u8, end: End) {
        self.change(|state| {
            state.channels.entry(id).or_default().end = Some(end);
        });
    }

    /// Lets bytes after the set-up pass: the destination loads, or cannot show whether it does.
    pub(super) fn begin(&self) {
        self.change(|state| state.begun = true);
    }

    /// Notes that the destination loads.
    pub(super) fn loads(&self) {
        self.change(|state| {
            state.begun = true;
            state.loads = true;
        });
    }

    /// Whether the destination has shown that it loads.
    pub(super) fn is_loading(&self) -> bool {
        self.lock().loads
    }

    pub(super) fn has_begun(&self) -> bool {
        self.lock().begun
    }

    /// Notes whether channels may belong to another migration.
    pub(super) fn doubt(&self, doubt: bool) {
        self.change(|state| state.in_doubt = doubt);
    }

    /// Passes on all marks at once from now on: in postcopy, channels have no SYNCs.
    pub(super) fn open(&self) {
        self.change(|state| state.open = true);
    }

    /// Whether marks are no longer held.
    pub(super) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// The channels that have passed on this many SYNCs.
    pub(super) fn synced_channels(&self, syncs: u64) -> BTreeSet<u8> {
        let state = self.lock();
        let channels = state.channels.iter();
        let synced = channels.filter(|(_, channel)| channel.syncs >= syncs);
        synced.map(|(&id, _)| id).collect()
    }

    /// Waits until a channel has passed on this many SYNCs. Returns `false` if the migration ends,
    /// or if it takes too long.
    pub(super) fn wait_synced(&self, id: u8, syncs: u64) -> bool {
        let since = Moment::now();
        let mut state = self.lock();
        loop {
            let channel = state.channels.get(&id);
            if channel.is_some_and(|channel| channel.syncs >= syncs) {
                return true;
            }
            if state.stopped || since.elapsed() >= CHANNELS_TIMEOUT {
                return false;
            }
            state = self.wait(state, TICK);
        }
    }

    /// Wakes all waiting threads, because the migration ends.
    pub(super) fn stop(&self) {
        self.change(|state| state.stopped = true);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits until bytes after the set-up may pass, and calls `look` now and then, which may open
    /// the gate. Returns `false` if the migration ends.
    ///
    /// # Errors
    /// The errors of `look`.
    pub(super) fn wait_begun<E>(&self, look: impl Fn(&Self) -> Result<(), E>) -> Result<bool, E> {
        let mut state = self.lock();
        let mut pause = Duration::from_millis(1);
        loop {
            if state.stopped || state.begun {
                return Ok(!state.stopped);
            }
            drop(state);
            look(self)?;
            state = self.lock();
            if !state.begun && !state.stopped {
                state = self.wait(state, pause);
                pause = (pause * 2).min(TICK);
            }
        }
    }

    /// Waits until every channel has passed on as many SYNCs as the main channel has marks, this
    /// one included. The first mark waits for all channels up to the highest id that has come. If
    /// `has_channels`, each mark waits for at least one channel.
    pub(super) fn hold(&self, mark: u64, has_channels: bool) -> Result<(), Held> {
        let since = Moment::now();
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Err(Held::Stopped);
            }
            if state.open {
                return Ok(());
            }
            if state.in_doubt {
                state = self.wait(state, TICK);
                continue;
            }
            let missing = state.missing(has_channels);
            let has_some = !state.channels.is_empty();
            if missing.is_none() || mark > 1 && has_some {
                match state.behind(mark, since) {
                    None => return Ok(()),
                    Some(Err(held)) => return Err(held),
                    Some(Ok(())) => {}
                }
            } else if let (Some(missing), true) = (missing, since.elapsed() >= CHANNELS_TIMEOUT) {
                return Err(Held::Missing(missing));
            }
            state = self.wait(state, TICK);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let outcome = self.changed.wait_timeout(state, most);
        outcome.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Every change is one assignment, so a thread that panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first channel that is still missing. `Some(None)`: no channel has come.
    fn missing(&self, has_channels: bool) -> Option<Option<u8>> {
        if self.channels.is_empty() {
            return has_channels.then_some(None);
        }
        let gap = self
            .channels
            .keys()
            .zip(0_u8..)
            .find(|(found, wanted)| **found != *wanted);
        gap.map(|(_, wanted)| Some(wanted))
    }

    /// Whether a channel has not reached `mark`, which has been held since then; and the reason if
    /// it will never reach it. Only idle time since then counts.
    fn behind(&self, mark: u64, since: Moment) -> Option<Result<(), Held>> {
        let mut behind = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.syncs < mark)
            .peekable();
        behind.peek()?;
        let lost = behind.find(|(_, channel)| {
            channel.end.is_some()
                || channel
                    .idle
                    .is_some_and(|idle| idle.max(since).elapsed() >= SYNC_TIMEOUT)
        });
        let held = lost.map(|(&id, channel)| {
            let (found, end) = (channel.syncs, channel.end);
            Held::NoSync {
                channel: id,
                found,
                end,
            }
        });
        Some(held.map_or(Ok(()), Err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    /// Long enough for a thread that does not wait to have passed.
    const A_WHILE: Duration = Duration::from_millis(50);

    #[test]
    fn a_mark_waits_for_the_sync_of_every_channel() {
        let gate = Gate::default();
        gate.channel_came(0);
        gate.channel_came(1);
        let passed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.hold(1, true).unwrap();
                passed.store(true, Ordering::SeqCst);
            });
            gate.synced(0);
            thread::sleep(A_WHILE);
            assert!(!passed.load(Ordering::SeqCst), "channel 1 is behind");
            gate.synced(1);
        });
        assert!(passed.into_inner());
    }

    #[test]
    fn the_first_mark_waits_for_channels_that_are_late() {
        let gate = Gate::default();
        let passed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.hold(1, true).unwrap();
                passed.store(true, Ordering::SeqCst);
            });
            thread::sleep(A_WHILE);
            assert!(!passed.load(Ordering::SeqCst), "no channel has come");
            gate.channel_came(1);
            gate.synced(1);
            thread::sleep(A_WHILE);
            assert!(!passed.load(Ordering::SeqCst), "channel 0 has not come");
            gate.channel_came(0);
            gate.synced(0);
        });
        assert!(passed.into_inner());
    }

    #[test]
    fn a_channel_that_ends_before_its_sync_is_named() {
        let gate = Gate::default();
        gate.channel_came(0);
        gate.channel_came(1);
        gate.synced(0);
        gate.ended(1, End::Closed);
        let (channel, found, end) = (1, 0, Some(End::Closed));
        assert_eq!(
            gate.hold(1, true),
            Err(Held::NoSync {
                channel,
                found,
                end
            })
        );
        gate.synced(0);
        gate.synced(1);
        assert_eq!(gate.hold(1, true), Ok(()), "it had its SYNC");
    }

    /// A round may take longer than a SYNC: over a link that loses packets, its mark comes before
    /// the SYNC then as well.
    #[test]
    fn a_channel_that_was_idle_before_the_mark_still_has_its_time() {
        let gate = Gate::default();
        gate.channel_came(0);
        gate.synced(0);
        let long_ago = Moment::now() - SYNC_TIMEOUT * 2;
        gate.lock().channels.get_mut(&0).unwrap().idle = Some(long_ago);
        thread::scope(|scope| {
            let holding = scope.spawn(|| gate.hold(2, true));
            thread::sleep(A_WHILE);
            gate.synced(0);
            assert_eq!(holding.join().unwrap(), Ok(()));
        });
        // Both have been for so long.
        let held = gate.lock().behind(3, long_ago);
        let (channel, found, end) = (0, 2, None);
        let lost = Held::NoSync {
            channel,
            found,
            end,
        };
        assert_eq!(held, Some(Err(lost)));
    }

    #[test]
    fn without_channels_nothing_is_held_unless_there_are_some() {
        assert_eq!(Gate::default().hold(1, false), Ok(()));
        let gate = Gate::default();
        thread::scope(|scope| {
            let holding = scope.spawn(|| gate.hold(2, true));
            thread::sleep(A_WHILE);
            assert!(!holding.is_finished(), "no channel has come");
            gate.stop();
            assert_eq!(holding.join().unwrap(), Err(Held::Stopped));
        });
    }

    #[test]
    fn postcopy_and_an_end_open_it() {
        for end in [false, true] {
            let gate = Gate::default();
            gate.channel_came(0);
            thread::scope(|scope| {
                let holding = scope.spawn(|| gate.hold(1, true));
                let waiting = scope.spawn(|| gate.wait_begun(|_| Ok::<_, Infallible>(())));
                thread::sleep(A_WHILE);
                match end {
                    true => gate.stop(),
                    false => {
                        gate.open();
                        gate.begin();
                    }
                }
                assert_eq!(holding.join().unwrap().is_ok(), !end);
                assert_eq!(waiting.join().unwrap(), Ok(!end));
            });
        }
    }
}
