//! Time in which this process runs.
//!
//! A process that was stopped (SIGSTOP, a frozen control group, a host that slept) finds its peers
//! silent for all that time, while their bytes wait in its sockets. So a peer's silence is measured
//! with a clock that stands still while no thread of the process looks at it.

use std::ops::{Add, Sub};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most that passes between two looks. Every wait looks several times in a second.
const MOST: Duration = Duration::from_secs(1);

static CLOCK: LazyLock<Mutex<Clock>> = LazyLock::new(|| {
    Mutex::new(Clock {
        last: Instant::now(),
        passed: START,
    })
});

/// The clock starts at one day, so that subtracting from the first moment does not underflow.
const START: Duration = Duration::from_secs(24 * 60 * 60);

struct Clock {
    last: Instant,
    passed: Duration,
}

impl Clock {
    fn look(&mut self, now: Instant) -> Moment {
        let gap = now.saturating_duration_since(self.last);
        self.last = self.last.max(now);
        self.passed = self.passed.saturating_add(gap.min(MOST));
        Moment(self.passed)
    }
}

/// A moment, as [`std::time::Instant`] is one. Time in which the process was stopped has not passed
/// between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The present one.
    #[must_use]
    pub fn now() -> Self {
        let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
        clock.look(Instant::now())
    }

    /// The time that has passed since.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_of_the_process_is_no_time() {
        let start = Instant::now();
        let mut clock = Clock {
            last: start,
            passed: Duration::ZERO,
        };
        let half = Duration::from_millis(500);
        let stop = Duration::from_secs(30);
        assert_eq!(clock.look(start + half), Moment(half));
        assert_eq!(clock.look(start + half + stop), Moment(half + MOST));
        assert_eq!(
            clock.look(start),
            Moment(half + MOST),
            "another thread was faster"
        );
        assert_eq!(
            clock.look(start + half + stop + half),
            Moment(half * 2 + MOST)
        );
    }
}
