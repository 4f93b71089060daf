//! The activity of a channel's thread, and the time spent on each.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread's activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doing {
    /// It reads from the source, or waits for it.
    Reads,
    /// It computes.
    Works,
    /// It writes to the destination, or waits for it.
    Writes,
    /// It waits for other channels.
    Waits,
    /// It has ended.
    Nothing,
}

/// The time that a thread has spent with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spent {
    /// [`Doing::Reads`].
    pub reads: Duration,
    /// [`Doing::Works`].
    pub works: Duration,
    /// [`Doing::Writes`].
    pub writes: Duration,
    /// [`Doing::Waits`].
    pub waits: Duration,
}

/// The clock of one thread, which other threads may look at.
///
/// A change takes a lock that no other thread holds for long, and a look at the system's clock.
/// Both happen a few times for each packet. The rate of a relay that only passes on shows no
/// difference.
#[derive(Debug)]
pub struct Clock(Mutex<State>);

#[derive(Debug)]
struct State {
    doing: Doing,
    since: Instant,
    spent: Spent,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A thread that begins to work now.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(State {
            doing: Doing::Works,
            since: Instant::now(),
            spent: Spent::default(),
        }))
    }

    /// Does `work`, which is what `doing` says.
    pub fn during<T>(&self, doing: Doing, work: impl FnOnce() -> T) -> T {
        let before = self.turn(doing);
        let done = work();
        self.turn(before);
        done
    }

    /// The thread has ended.
    pub fn stop(&self) {
        self.turn(Doing::Nothing);
    }

    /// The thread's activity, and its times until now.
    pub fn look(&self) -> (Doing, Spent) {
        let mut state = self.lock();
        state.count(Instant::now());
        (state.doing, state.spent)
    }

    /// Returns what the thread did before.
    fn turn(&self, doing: Doing) -> Doing {
        let mut state = self.lock();
        state.count(Instant::now());
        std::mem::replace(&mut state.doing, doing)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Times that are a little wrong do no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        let spent = match self.doing {
            Doing::Reads => &mut self.spent.reads,
            Doing::Works => &mut self.spent.works,
            Doing::Writes => &mut self.spent.writes,
            Doing::Waits => &mut self.spent.waits,
            Doing::Nothing => return,
        };
        *spent = spent.saturating_add(took);
    }
}

/// Does `work`, on the clock if there is one.
pub(crate) fn on<T>(clock: Option<&Clock>, doing: Doing, work: impl FnOnce() -> T) -> T {
    match clock {
        Some(clock) => clock.during(doing, work),
        None => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_WHILE: Duration = Duration::from_millis(20);

    #[test]
    fn each_time_counts_for_what_was_done() {
        let clock = Clock::new();
        let pause = || std::thread::sleep(A_WHILE);
        clock.during(Doing::Writes, || {
            clock.during(Doing::Waits, pause);
            // A look is no change.
            assert_eq!(clock.look().0, Doing::Writes);
            pause();
        });
        clock.during(Doing::Reads, pause);
        assert_eq!(clock.look().0, Doing::Works);
        clock.stop();
        let (doing, spent) = clock.look();
        assert_eq!(doing, Doing::Nothing);
        for (part, time) in [spent.reads, spent.writes, spent.waits].iter().enumerate() {
            assert!(*time >= A_WHILE, "{part}: {time:?}");
        }
        pause();
        assert_eq!(clock.look().1, spent, "it has ended");
    }

    #[test]
    fn what_lasts_is_seen_before_it_ends() {
        let clock = Clock::new();
        clock.during(Doing::Reads, || {
            std::thread::sleep(A_WHILE);
            let (doing, spent) = clock.look();
            assert!(doing == Doing::Reads && spent.reads >= A_WHILE, "{spent:?}");
        });
    }
}
