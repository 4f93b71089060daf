//! Threads that do something so many times a second, and stop at once when they are told to.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a thread does.
pub trait Worker: Send {
    /// Does it once. `running` is for how long the thread has been there.
    ///
    /// # Errors
    ///
    /// When it cannot be done, which ends the thread.
    fn act(&mut self, running: Duration) -> io::Result<()>;
}

/// Stops and resumes one thread.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody waits for `state`: a thread that has no time to sleep would take it again before
    /// them.
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
    /// Stops the thread. Afterwards it does nothing any more, until it is resumed.
    ///
    /// # Errors
    ///
    /// Why it has ended already.
    pub fn pause(&self) -> Result<(), String> {
        self.set(|state| state.paused = true)
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// Why it has ended already.
    pub fn resume(&self) -> Result<(), String> {
        self.set(|state| state.paused = false)
    }

    /// Lets it end.
    pub fn end(&self) {
        // Whether it has failed before does not matter any more.
        let _ = self.set(|state| state.ended = true);
    }

    /// How often it has acted.
    pub fn acts(&self) -> u64 {
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

    /// Acts `rate` times a second until the end.
    pub fn run(&self, worker: &mut dyn Worker, rate: u64) {
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

/// How much is due.
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

    /// What is to be done now. What cannot be kept up with is forgotten, as by a client that waits
    /// for each answer.
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

/// A tick of a busy machine's clock.
const TICK: Duration = Duration::from_millis(1);
const MOST_BEHIND: Duration = Duration::from_millis(250);
/// Done between two looks at whether to stop: far less than a millisecond's work.
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
    fn nothing_happens_while_paused_however_busy_it_is() {
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
    fn a_rate_is_kept_and_what_is_missed_is_forgotten() {
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
    fn a_failure_is_told_to_who_asks() {
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
