//! The circuit breaker: after enough failures, the whole process stops using the device.
//!
//! libqpl spreads the work over all devices and does not report which one failed, so the process
//! has one breaker. A temporary condition, like a queue filled by others, opens it for a while; a
//! permanent one, like a job that never ends, opens it for good.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::outcome::Outcome;

/// The process's breaker.
pub(super) static BREAKER: LazyLock<Breaker> = LazyLock::new(Breaker::new);

/// Counts failures and decides when there are too many.
#[derive(Debug)]
pub(super) struct Breaker {
    made: Instant,
    /// When it closes again, in milliseconds since its creation; 0 while closed.
    open_until: AtomicU64,
    reason: Mutex<Option<Arc<str>>>,
    has_lost: AtomicBool,
    /// Failures of any kind since the last success.
    failures: AtomicU32,
    /// Jobs without progress on the device, in total.
    stalls: AtomicU32,
    /// Failures of bus and device, in total.
    device_failures: AtomicU32,
    /// Since when the queues have been full at every submission, in milliseconds since the
    /// breaker's creation; 0 if they have not.
    busy_since: AtomicU64,
}

impl Breaker {
    fn new() -> Self {
        Self {
            made: Instant::now(),
            open_until: AtomicU64::new(0),
            reason: Mutex::new(None),
            has_lost: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            stalls: AtomicU32::new(0),
            device_failures: AtomicU32::new(0),
            busy_since: AtomicU64::new(0),
        }
    }

    /// Why the device must not be used now, if so.
    pub(super) fn open(&self) -> Option<Arc<str>> {
        let until = self.open_until.load(Ordering::Acquire);
        if until == 0 || (until != FOR_GOOD && until <= self.now()) {
            return None;
        }
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone()
    }

    /// Records whether a job was accepted, or the queues were full.
    pub(super) fn submitted(&self, accepted: bool) {
        if accepted {
            // Almost always 0. A plain load first leaves other processors' caches undisturbed.
            if self.busy_since.load(Ordering::Relaxed) != 0 {
                self.busy_since.store(0, Ordering::Relaxed);
            }
            return;
        }
        let now = self.now();
        let since = self
            .busy_since
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            .err()
            .unwrap_or(now);
        if now.saturating_sub(since) >= BUSY_FOR.as_millis() as u64 {
            self.busy_since.store(0, Ordering::Relaxed);
            self.pause(format!("its queues were full for {} s", BUSY_FOR.as_secs()));
        }
    }

    /// Records the outcome of a job.
    pub(super) fn ended(&self, outcome: Outcome) {
        match outcome {
            Outcome::Done | Outcome::NoRoom => {
                if self.failures.load(Ordering::Relaxed) != 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
                return;
            }
            // The first blames the data and not the device, the second was counted at submission,
            // the third ends the use of the device at its own place.
            Outcome::Corrupt | Outcome::Busy | Outcome::Config => return,
            Outcome::Stalled => {
                if count(&self.stalls) >= STALLS {
                    self.give_up("a job made no progress, again".to_owned());
                }
            }
            Outcome::Device => {
                if count(&self.device_failures) >= DEVICE_FAILURES {
                    self.give_up(format!("{DEVICE_FAILURES} failures of device or bus"));
                }
            }
            Outcome::Fault | Outcome::Other => {}
        }
        if count(&self.failures) >= FAILURES_IN_A_ROW {
            self.failures.store(0, Ordering::Relaxed);
            let what = match outcome {
                Outcome::Fault => "page faults",
                _ => "failures",
            };
            self.pause(format!("{FAILURES_IN_A_ROW} {what} in a row"));
        }
    }

    /// Records a job that did not end within the time limit.
    pub(super) fn lost(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
        self.give_up(format!(
            "a job has not ended within {} s",
            super::hardware::PATIENCE.as_secs()
        ));
    }

    /// Returns whether there was such a job.
    pub(super) fn has_lost(&self) -> bool {
        self.has_lost.load(Ordering::Relaxed)
    }

    fn give_up(&self, why: String) {
        self.open_for(FOR_GOOD, format!("IAA given up: {why}"));
    }

    fn pause(&self, why: String) {
        let until = self.now() + PAUSE.as_millis() as u64;
        self.open_for(until, format!("{PAUSED}{why}"));
    }

    fn open_for(&self, until: u64, reason: String) {
        let mut held = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        // Giving up is final, and its first reason stays.
        if self.open_until.load(Ordering::Relaxed) != FOR_GOOD {
            *held = Some(reason.into());
            self.open_until.store(until, Ordering::Release);
        }
    }

    /// Never 0, which is reserved for "never".
    fn now(&self) -> u64 {
        self.made.elapsed().as_millis() as u64 + 1
    }
}

/// Increments a counter and returns the new value.
fn count(counter: &AtomicU32) -> u32 {
    counter.fetch_add(1, Ordering::Relaxed).saturating_add(1)
}

/// The prefix of a temporary condition's reason.
pub(super) const PAUSED: &str = "IAA not used for now: ";

const FOR_GOOD: u64 = u64::MAX;

/// The pause after a temporary condition.
const PAUSE: Duration = Duration::from_secs(10);

/// Queues that are full for this long are used by others. Until then, asking again is cheap.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// After this many failures without a success, the next would fail too. This is half of the jobs in
/// flight.
const FAILURES_IN_A_ROW: u32 = 32;

/// One stall may be the job's fault; two are the device's.
const STALLS: u32 = 2;

/// Bus errors come from a failing device.
const DEVICE_FAILURES: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_now_and_then_is_no_reason() {
        let breaker = Breaker::new();
        for outcome in [Outcome::Fault, Outcome::Other, Outcome::Done].repeat(100) {
            breaker.ended(outcome);
            breaker.submitted(outcome == Outcome::Done);
        }
        assert_eq!(breaker.open(), None);
    }

    #[test]
    fn a_burst_opens_it_for_a_while() {
        let breaker = Breaker::new();
        for _ in 0..FAILURES_IN_A_ROW {
            assert_eq!(breaker.open(), None);
            breaker.ended(Outcome::Fault);
        }
        let reason = breaker.open().unwrap();
        assert_eq!(&*reason, "IAA not used for now: 32 page faults in a row");
        assert_ne!(breaker.open_until.load(Ordering::Relaxed), FOR_GOOD);
        breaker.open_until.store(breaker.now(), Ordering::Relaxed);
        assert_eq!(breaker.open(), None);
    }

    #[test]
    fn what_does_not_pass_opens_it_for_good() {
        for (outcome, times) in [
            (Outcome::Stalled, STALLS),
            (Outcome::Device, DEVICE_FAILURES),
        ] {
            let breaker = Breaker::new();
            for _ in 0..times {
                assert_eq!(breaker.open(), None);
                breaker.ended(outcome);
                breaker.ended(Outcome::Done);
            }
            let reason = breaker.open().unwrap();
            assert!(reason.starts_with("IAA given up: "), "{reason}");
            // A temporary condition does not shorten it.
            breaker.pause("for a while".to_owned());
            assert_eq!(breaker.open(), Some(reason));
        }
        let breaker = Breaker::new();
        breaker.lost();
        let reason = breaker.open().unwrap();
        assert_eq!(&*reason, "IAA given up: a job has not ended within 2 s");
    }

    #[test]
    fn queues_that_stay_full_open_it() {
        let breaker = Breaker::new();
        breaker.submitted(false);
        assert_eq!(breaker.open(), None);
        // Simulates the passage of time.
        let long_ago = breaker.made.checked_sub(BUSY_FOR).unwrap();
        let breaker = Breaker {
            made: long_ago,
            ..breaker
        };
        breaker.submitted(false);
        let reason = breaker.open().unwrap();
        assert_eq!(
            &*reason,
            "IAA not used for now: its queues were full for 1 s"
        );
    }

    #[test]
    fn data_that_is_wrong_is_not_the_devices_fault() {
        let breaker = Breaker::new();
        for _ in 0..1000 {
            breaker.ended(Outcome::Corrupt);
        }
        assert_eq!(breaker.open(), None);
    }
}
