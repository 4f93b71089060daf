//! Threads that act at a given rate and stop immediately on request.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The work of a thread.
pub(super) trait Worker: Send {
    /// Acts once. `running` is the thread's age.
    ///
    /// # Errors
    ///
    /// If it cannot act; this ends the thread.
    fn act(&mut self, running: Duration) -> io::Result<()>;
}

/// Stops and resumes one thread.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Another thread waits for `state`. Without this flag, a worker that never sleeps would lock
    /// it again first.
    wanted: AtomicBool,
    acts: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    paused: bool,
    ended: bool,
    failed: Option<String>,
}

impl Gate {
    /// Stops the thread. After this it does nothing until it is resumed.
    ///
    /// # Errors
    ///
    /// Why it has already ended.
    pub(super) fn pause(&self) -> Result<(), String> {
        self.set(|state| state.paused = true)
    }

    /// Resumes the thread.
    ///
    /// # Errors
    ///
    /// Why it has already ended.
    pub(super) fn resume(&self) -> Result<(), String> {
        self.set(|state| state.paused = false)
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        // An earlier failure no longer matters.
        let _ = self.set(|state| state.ended = true);
    }

    /// The number of actions so far.
    pub(super) fn acts(&self) -> u64 {
        self.acts.load(Ordering::Relaxed)
    }

    fn set(&self, change: impl FnOnce(&mut State)) -> Result<(), String> {
        self.wanted.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        self.wanted.store(false, Ordering::Relaxed);
        change(&mut state);
        self.changed.notify_all();
        state.failed.clone().map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts `rate` times per second until the end.
    pub(super) fn run(&self, worker: &mut dyn Worker, rate: u64) {
        let begun = Instant::now();
        let mut pace = Pace::new(rate, begun);
        loop {
            let mut state = self.lock();
            while state.paused && !state.ended {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                pace = Pace::new(rate, Instant::now());
            }
            if state.ended {
                return;
            }
            let now = Instant::now();
            let due = pace.due(now).min(MOST_AT_ONCE);
            for _ in 0..due {
                if let Err(error) = worker.act(now - begun) {
                    state.failed = Some(error.to_string());
                    return;
                }
            }
            pace.done += due;
            self.acts.fetch_add(due, Ordering::Relaxed);
            drop(state);
            if due == 0 {
                thread::sleep(TICK);
            }
            while self.wanted.load(Ordering::Relaxed) {
                thread::yield_now();
            }
        }
    }
}

/// Computes the actions that are due.
#[derive(Debug)]
struct Pace {
    rate: u64,
    since: Instant,
    done: u64,
}

impl Pace {
    const fn new(rate: u64, since: Instant) -> Self {
        Self {
            rate,
            since,
            done: 0,
        }
    }

    /// Returns the number of actions due now. Backlog is dropped, like a client that waits for each
    /// reply.
    fn due(&mut self, now: Instant) -> u64 {
        let all = |since: Instant| (now - since).as_secs_f64() * self.rate as f64;
        let due = (all(self.since) as u64).saturating_sub(self.done);
        if due as f64 > MOST_BEHIND.as_secs_f64() * self.rate as f64 {
            (self.since, self.done) = (now, 0);
            return MOST_AT_ONCE;
        }
        due
    }
}

/// The pause while no action is due.
const TICK: Duration = Duration::from_millis(1);
/// The longest backlog.
const MOST_BEHIND: Duration = Duration::from_millis(250);
/// Actions between two checks for a stop: far less than a millisecond's work.
const MOST_AT_ONCE: u64 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    struct Count<'a>(&'a AtomicU64);

    impl Worker for Count<'_> {
        fn act(&mut self, _: Duration) -> io::Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                u64::MAX => Err(io::Error::other("too far")),
                _ => Ok(()),
            }
        }
    }

    fn with(rate: u64, count: &AtomicU64, test: impl FnOnce(&Gate)) {
        let gate = Gate::default();
        thread::scope(|scope| {
            scope.spawn(|| gate.run(&mut Count(count), rate));
            test(&gate);
            gate.end();
        });
    }

    #[test]
    fn a_paused_thread_does_nothing() {
        for rate in [0, 1000, u64::MAX] {
            let count = AtomicU64::new(0);
            with(rate, &count, |gate| {
                for _ in 0..20 {
                    gate.pause().unwrap();
                    let before = count.load(Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                    assert_eq!(count.load(Ordering::Relaxed), before);
                    assert_eq!(gate.acts(), before);
                    gate.resume().unwrap();
                    thread::sleep(Duration::from_millis(3));
                }
            });
            assert_eq!(count.load(Ordering::Relaxed) == 0, rate == 0, "{rate}");
        }
    }

    #[test]
    fn keeps_the_rate_and_drops_backlog() {
        let begun = Instant::now();
        let mut pace = Pace::new(1000, begun);
        assert_eq!(pace.due(begun + Duration::from_millis(100)), 100);
        pace.done = 100;
        assert_eq!(pace.due(begun + Duration::from_millis(150)), 50);
        let late = begun + Duration::from_secs(9);
        assert_eq!(pace.due(late), MOST_AT_ONCE);
        assert_eq!(pace.due(late + Duration::from_millis(7)), 7);
    }

    #[test]
    fn failures_are_reported_to_callers() {
        let count = AtomicU64::new(u64::MAX);
        with(1000, &count, |gate| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while gate.resume().is_ok() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(gate.pause(), Err("too far".to_owned()));
        });
    }
}
