//! `max-bandwidth`: one budget of bytes for all connections of a migration.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most unused budget that is saved up and may be spent at once. Little enough that no second
/// has noticeably more than its share.
const MOST_SAVED: Duration = Duration::from_millis(20);

/// Says how long to wait after bytes that were sent.
#[derive(Debug)]
pub(crate) struct Pacer {
    rate: Option<NonZeroU64>,
    /// When all that was sent so far is paid for.
    paid: Mutex<Instant>,
}

impl Pacer {
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Self {
        Self {
            rate,
            paid: Mutex::new(Instant::now()),
        }
    }

    /// Notes that `bytes` were sent now. Returns the time in which no channel may send.
    pub(crate) fn spend(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(MOST_SAVED).unwrap_or(now);
        *paid = (*paid).max(earliest) + cost;
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_and_little_is_saved() {
        let pacer = Pacer::new(NonZeroU64::new(1000));
        let start = Instant::now();
        // A second of nothing saves 20 ms.
        let mut now = start + Duration::from_secs(1);
        assert_eq!(pacer.spend(20, now), Duration::ZERO);
        for _ in 0..100 {
            now += pacer.spend(50, now);
        }
        let whole = now - start - Duration::from_secs(1);
        assert!(whole.abs_diff(Duration::from_secs(5)) < Duration::from_millis(1));
        assert_eq!(
            Pacer::new(None).spend(u64::MAX, start),
            Duration::ZERO,
            "no limit"
        );
    }
}
