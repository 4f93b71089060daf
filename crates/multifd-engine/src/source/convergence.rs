//! When to stop the guest: how fast pages leave, how fast they are written, and what that makes of
//! what is left.

use std::time::Duration;

/// Rates measured in the rounds so far.
///
/// Pages are counted, not bytes: how well they compress is in the time they took. Zero pages cost
/// next to nothing, so only the others count, and the time of a round counts whole: the estimate
/// errs on the slow side.
#[derive(Debug)]
pub(crate) struct Convergence {
    /// A round trip to the destination.
    round_trip: Duration,
    /// Pages and seconds of the rounds, the older ones for less.
    normal: Rate,
    /// Pages and seconds of zero pages, from the rounds of written pages alone.
    zero: Rate,
    /// Rounds of written pages that had only zero pages, until the first other page.
    zero_rounds: u32,
    dirty_rate: Option<f64>,
    fetch: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    pages: f64,
    seconds: f64,
}

impl Rate {
    /// A round without such pages says nothing about them.
    fn add(&mut self, pages: u64, took: Duration) {
        if pages == 0 {
            return;
        }
        self.pages = self.pages * WEIGHT_OF_THE_PAST + pages as f64;
        self.seconds = self.seconds * WEIGHT_OF_THE_PAST + took.as_secs_f64();
    }

    fn per_second(self) -> Option<f64> {
        (self.pages > 0.0 && self.seconds > 0.0).then(|| self.pages / self.seconds)
    }
}

/// Of two rounds of equal length, the last has twice the weight of the one before. The pages that a
/// guest writes differ from those of the bulk round.
const WEIGHT_OF_THE_PAST: f64 = 0.5;

/// Acknowledgements during the downtime: of the last round, of the completion and of the start.
const ROUND_TRIPS: u32 = 3;

/// A guest that has written nothing but zeros in this many rounds is taken to write nothing else.
/// Otherwise one that does so for ever would never be stopped.
const ZERO_ROUNDS: u32 = 3;

impl Convergence {
    pub(crate) const fn new(round_trip: Duration) -> Self {
        let none = Rate {
            pages: 0.0,
            seconds: 0.0,
        };
        Self {
            round_trip,
            normal: none,
            zero: none,
            zero_rounds: 0,
            dirty_rate: None,
            fetch: Duration::ZERO,
        }
    }

    /// The round of all pages has gone through, with this many that were not zero.
    pub(crate) fn bulk_round(&mut self, normal: u64, took: Duration) {
        self.normal.add(normal, took);
    }

    /// A round of written pages has gone through.
    pub(crate) fn dirty_round(&mut self, normal: u64, zero: u64, took: Duration) {
        self.normal.add(normal, took);
        self.zero.add(zero, took);
        if self.normal.pages == 0.0 {
            self.zero_rounds = self.zero_rounds.saturating_add(1);
        }
    }

    /// The log has said, in `took`, that the guest wrote this many pages in `since`.
    pub(crate) fn fetched(&mut self, pages: u64, since: Duration, took: Duration) {
        self.fetch = took;
        if !since.is_zero() {
            self.dirty_rate = Some(pages as f64 / since.as_secs_f64());
        }
    }

    /// Pages with contents sent per second.
    pub(crate) fn normal_per_second(&self) -> Option<f64> {
        self.normal.per_second()
    }

    /// Pages written per second.
    pub(crate) const fn dirty_rate(&self) -> Option<f64> {
        self.dirty_rate
    }

    /// Estimated downtime if the guest were stopped now, with `remaining` pages to send. `None`
    /// when that is not known, because no page with contents was sent yet.
    pub(crate) fn expected_downtime(&self, remaining: u64) -> Option<Duration> {
        let fixed = self.round_trip * ROUND_TRIPS + self.fetch;
        // While the log was read, the guest wrote more.
        let more = self.dirty_rate.unwrap_or(0.0) * self.fetch.as_secs_f64();
        let rate = match self.normal_per_second() {
            Some(rate) => rate,
            None if remaining == 0 => return Some(fixed),
            None if self.zero_rounds >= ZERO_ROUNDS => self.zero.per_second()?,
            None => return None,
        };
        let sending = (remaining as f64 + more) / rate;
        // A rate near nothing gives a time that fits no duration: then it is long.
        let sending = Duration::try_from_secs_f64(sending);
        Some(fixed + sending.unwrap_or(Duration::from_secs(u32::MAX.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_it_took_before() {
        let mut convergence = Convergence::new(Duration::from_millis(1));
        convergence.bulk_round(10_000, Duration::from_secs(1));
        assert_eq!(
            convergence.expected_downtime(1000),
            Some(Duration::from_millis(103))
        );
        // Half as fast from now on, for long: that is what counts in the end.
        for _ in 0..30 {
            convergence.dirty_round(5_000, 0, Duration::from_secs(1));
        }
        let expected = convergence.expected_downtime(1000).unwrap();
        assert!(expected.abs_diff(Duration::from_millis(203)) < Duration::from_millis(1));
        convergence.fetched(2000, Duration::from_secs(1), Duration::from_millis(50));
        let expected = convergence.expected_downtime(1000).unwrap();
        assert!(expected.abs_diff(Duration::from_millis(273)) < Duration::from_millis(1));
    }

    #[test]
    fn what_was_never_sent_takes_nobody_knows_how_long() {
        let mut convergence = Convergence::new(Duration::from_millis(1));
        convergence.bulk_round(0, Duration::from_millis(140));
        assert_eq!(convergence.expected_downtime(1), None);
        assert_eq!(convergence.expected_downtime(1 << 40), None);
        // Nothing takes no time to send.
        assert_eq!(
            convergence.expected_downtime(0),
            Some(Duration::from_millis(3))
        );
        convergence.dirty_round(100, 1_000_000, Duration::from_secs(1));
        let expected = Some(Duration::from_millis(1003));
        assert_eq!(convergence.expected_downtime(100), expected);
        // Rounds of zero pages change nothing about it.
        (0..100).for_each(|_| convergence.dirty_round(0, 10, Duration::from_millis(1)));
        assert_eq!(convergence.expected_downtime(100), expected);
    }

    #[test]
    fn a_guest_that_only_ever_writes_zeros_can_be_stopped() {
        let mut convergence = Convergence::new(Duration::from_millis(1));
        convergence.bulk_round(0, Duration::from_millis(140));
        let mut rounds = 0;
        while convergence.expected_downtime(10).is_none() {
            convergence.dirty_round(0, 10, Duration::from_millis(1));
            rounds += 1;
        }
        assert_eq!(rounds, ZERO_ROUNDS);
        let expected = convergence.expected_downtime(10).unwrap();
        assert!(expected.abs_diff(Duration::from_millis(4)) < Duration::from_millis(1));
    }

    #[test]
    fn no_time_is_too_long_to_tell() {
        let mut convergence = Convergence::new(Duration::ZERO);
        convergence.bulk_round(1, Duration::from_secs(u64::MAX >> 8));
        assert!(convergence.expected_downtime(u64::MAX) > Some(Duration::from_secs(1 << 31)));
    }
}
