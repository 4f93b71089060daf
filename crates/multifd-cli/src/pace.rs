//! A migration's rate, its remaining time and its limit, estimated from its last few updates.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use multifd_relay::relay::{ChannelWaits, Traffic, Waits};

/// Updates that are looked at: those of about three seconds.
const UPDATES: usize = 7;

/// The least part of the time that makes something the limit.
const LIMIT_PART: f64 = 0.4;

/// The last updates of one migration.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    updates: VecDeque<Point>,
    waits: Waits,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    at: Duration,
    traffic: Traffic,
    waits: Waits,
}

/// The activity that takes most of the channels' time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Source,
    Codec,
    MaxRate,
    Network,
    Destination,
}

impl Limit {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Codec => "codec",
            Self::MaxRate => "--max-rate",
            Self::Network => "network",
            Self::Destination => "destination",
        }
    }
}

impl Pace {
    /// Takes what comes before the next [`progress`](Self::progress).
    pub(crate) fn waits(&mut self, channels: &[ChannelWaits]) {
        self.waits = sum(channels);
    }

    pub(crate) fn progress(&mut self, at: Duration, traffic: &Traffic) {
        if self.updates.len() >= UPDATES {
            self.updates.pop_front();
        }
        self.updates.push_back(Point {
            at,
            traffic: *traffic,
            waits: self.waits,
        });
    }

    /// Bytes a second, before and after this relay.
    pub(crate) fn rates(&self) -> Option<[f64; 2]> {
        Some([
            self.rate(|traffic| traffic.bytes_in)?,
            self.rate(|traffic| traffic.bytes_out)?,
        ])
    }

    /// The share of the guest's memory that has come once, and the time for the rest, while hardly
    /// any page has come twice.
    pub(crate) fn first_pass(&self) -> Option<(f64, Option<Duration>)> {
        let Traffic {
            memory, carried, ..
        } = self.updates.back()?.traffic;
        if memory == 0 || carried >= memory {
            return None;
        }
        let left = self
            .rate(|traffic| traffic.carried)
            .and_then(|rate| seconds((memory - carried) as f64 / rate));
        Some((carried as f64 / memory as f64 * 100.0, left))
    }

    /// The activity that takes most of the channels' time. Time in which they wait for each other
    /// says nothing.
    pub(crate) fn limit(&self) -> Option<Limit> {
        let [first, last] = self.span()?;
        let waits = last.waits.since(&first.waits);
        let parts = [
            (waits.source, Limit::Source),
            (waits.codec, Limit::Codec),
            (waits.rate_limit, Limit::MaxRate),
            (waits.network, Limit::Network),
            (waits.destination, Limit::Destination),
        ];
        let all: Duration = parts.iter().map(|(time, _)| *time).sum();
        let (most, limit) = parts.into_iter().max_by_key(|(time, _)| *time)?;
        (most > Duration::ZERO && most >= all.mul_f64(LIMIT_PART)).then_some(limit)
    }

    fn span(&self) -> Option<[&Point; 2]> {
        let (first, last) = (self.updates.front()?, self.updates.back()?);
        (last.at > first.at).then_some([first, last])
    }

    fn rate(&self, count: fn(&Traffic) -> u64) -> Option<f64> {
        let [first, last] = self.span()?;
        let bytes = count(&last.traffic).saturating_sub(count(&first.traffic));
        Some(bytes as f64 / (last.at - first.at).as_secs_f64())
    }
}

/// Over all channels that carry pages: main is one only where there are no others.
pub(crate) fn sum(channels: &[ChannelWaits]) -> Waits {
    use multifd_transport::failure::Channel;
    let has_others = channels.iter().any(|told| told.channel != Channel::Main);
    let with_pages = channels
        .iter()
        .filter(|told| !has_others || told.channel != Channel::Main);
    with_pages.fold(Waits::default(), |sum, told| sum.plus(&told.waits))
}

/// A time that is no longer than some days. Others are no estimates.
pub(crate) fn seconds(count: f64) -> Option<Duration> {
    (0.0..1e6)
        .contains(&count)
        .then(|| Duration::from_secs_f64(count))
}

/// A time to go, as exactly as it can be known.
pub(crate) struct Left(pub(crate) Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            0 => f.write_str("1 s left"),
            seconds @ 0..120 => write!(f, "{seconds} s left"),
            seconds => write!(f, "{} min left", seconds.div_ceil(60)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(carried: u64, memory: u64) -> Traffic {
        let mut traffic = Traffic::default();
        (traffic.bytes_in, traffic.bytes_out) = (carried, carried / 4);
        (traffic.carried, traffic.memory) = (carried, memory);
        traffic
    }

    #[test]
    fn the_rest_of_the_first_pass_takes_as_long_as_its_rate_says() {
        let mut pace = Pace::default();
        assert_eq!(pace.first_pass(), None);
        for second in 0..20_u64 {
            pace.progress(Duration::from_secs(second), &traffic(second * 50, 2000));
        }
        assert_eq!(pace.rates().unwrap()[0], 50.0);
        let (percent, left) = pace.first_pass().unwrap();
        assert_eq!(percent, 47.5);
        assert_eq!(left, Some(Duration::from_secs(21)));
        pace.progress(Duration::from_secs(20), &traffic(2000, 2000));
        assert_eq!(pace.first_pass(), None, "pages come again");
        // A guest that sends nothing has no time to go.
        let mut pace = Pace::default();
        for second in 0..2 {
            pace.progress(Duration::from_secs(second), &traffic(1, 2000));
        }
        assert_eq!(pace.first_pass().unwrap().1, None);
    }

    #[test]
    fn most_of_the_time_is_the_limit() {
        let mut pace = Pace::default();
        pace.progress(Duration::ZERO, &Traffic::default());
        pace.progress(Duration::from_secs(1), &Traffic::default());
        assert_eq!(pace.limit(), None);
        pace.waits.network = Duration::from_secs(6);
        pace.waits.codec = Duration::from_secs(4);
        pace.progress(Duration::from_secs(2), &Traffic::default());
        assert_eq!(pace.limit(), Some(Limit::Network));
        pace.waits.rate_limit = Duration::from_secs(7);
        pace.progress(Duration::from_secs(3), &Traffic::default());
        assert_eq!(pace.limit().map(Limit::as_str), Some("--max-rate"));
    }

    #[test]
    fn a_time_to_go_is_short() {
        let left = |seconds| Left(Duration::from_secs(seconds)).to_string();
        assert_eq!(left(0), "1 s left");
        assert_eq!(left(119), "119 s left");
        assert_eq!(left(121), "3 min left");
        assert_eq!(seconds(f64::INFINITY), None);
        assert_eq!(seconds(f64::NAN), None);
    }
}
