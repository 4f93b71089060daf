//! When to stop the guest: how fast pages leave, how fast they are written, and what that makes of what is left.

use std::time::Duration;

/// What the rounds so far have shown.
///
/// Pages are counted, not bytes: how well they compress is in the time they took. Zero pages cost next to nothing, so
/// only the others count, and the time of a round counts whole: the estimate errs on the slow side.
#[derive(Debug)]
pub(crate) struct Convergence {
    /// A round trip to the destination.
    round_trip: Duration,
    /// Pages and seconds of the rounds, the older ones for less.
    pages: f64,
    seconds: f64,
    dirty_rate: Option<f64>,
    fetch: Duration,
}

/// Of two rounds of equal length the last has twice the weight of the one before: the guest's writes, and so what is
/// sent, are others than in the bulk round.
const WEIGHT_OF_THE_PAST: f64 = 0.5;

/// What is waited for while the guest is stopped, beside pages: the acknowledgements of the last round, of the
/// completion and of the start.
const ROUND_TRIPS: u32 = 3;

impl Convergence {
    pub(crate) const fn new(round_trip: Duration) -> Self {
        Self {
            round_trip,
            pages: 0.0,
            seconds: 0.0,
            dirty_rate: None,
            fetch: Duration::ZERO,
        }
    }

    /// A round has gone through, with so many pages that were not zero.
    pub(crate) fn round(&mut self, normal: u64, took: Duration) {
        self.pages = self.pages * WEIGHT_OF_THE_PAST + normal as f64;
        self.seconds = self.seconds * WEIGHT_OF_THE_PAST + took.as_secs_f64();
    }

    /// The log has said, in `took`, that the guest wrote so many pages in `since`.
    pub(crate) fn fetched(&mut self, pages: u64, since: Duration, took: Duration) {
        self.fetch = took;
        if !since.is_zero() {
            self.dirty_rate = Some(pages as f64 / since.as_secs_f64());
        }
    }

    /// Pages with contents sent per second.
    pub(crate) fn normal_per_second(&self) -> Option<f64> {
        (self.pages > 0.0 && self.seconds > 0.0).then(|| self.pages / self.seconds)
    }

    /// Pages written per second.
    pub(crate) const fn dirty_rate(&self) -> Option<f64> {
        self.dirty_rate
    }

    /// How long the guest would stand still were it stopped now, with `remaining` pages to send.
    pub(crate) fn expected_downtime(&self, remaining: u64) -> Duration {
        let fixed = self.round_trip * ROUND_TRIPS + self.fetch;
        let Some(rate) = self.normal_per_second() else {
            return fixed;
        };
        // While the log was read, the guest wrote more.
        let more = self.dirty_rate.unwrap_or(0.0) * self.fetch.as_secs_f64();
        let sending = (remaining as f64 + more) / rate;
        // A rate near nothing gives a time that fits no duration: then it is long.
        fixed + Duration::try_from_secs_f64(sending).unwrap_or(Duration::from_secs(u32::MAX.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_it_took_before() {
        let mut convergence = Convergence::new(Duration::from_millis(1));
        assert_eq!(
            convergence.expected_downtime(1 << 40),
            Duration::from_millis(3)
        );
        convergence.round(10_000, Duration::from_secs(1));
        assert_eq!(
            convergence.expected_downtime(1000),
            Duration::from_millis(103)
        );
        // Half as fast from now on, for long: that is what counts in the end.
        for _ in 0..30 {
            convergence.round(5_000, Duration::from_secs(1));
        }
        let expected = convergence.expected_downtime(1000);
        assert!(expected.abs_diff(Duration::from_millis(203)) < Duration::from_millis(1));
        convergence.fetched(2000, Duration::from_secs(1), Duration::from_millis(50));
        let expected = convergence.expected_downtime(1000);
        assert!(expected.abs_diff(Duration::from_millis(273)) < Duration::from_millis(1));
    }

    #[test]
    fn no_time_is_too_long_to_tell() {
        let mut convergence = Convergence::new(Duration::ZERO);
        convergence.round(1, Duration::from_secs(u64::MAX >> 8));
        assert!(convergence.expected_downtime(u64::MAX) > Duration::from_secs(1 << 31));
    }
}
