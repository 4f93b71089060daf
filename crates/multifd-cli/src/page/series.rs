//! A migration's figures over time, in bounded memory.

use std::time::Duration;

use multifd_operate::qemu::RamStatus;
use multifd_relay::relay::Traffic;

/// The most samples that are kept: more than a screen has points for.
const MOST: usize = 512;

/// The least time between two samples: in less, chance makes a rate.
const LEAST_STEP: Duration = Duration::from_millis(200);

/// The figures at one moment. All but `remaining` only grow, so the rates between any two samples
/// are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) at: Duration,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) rounds: u64,
    /// The bytes that the source QEMU has still to send, if it can be asked.
    pub(super) remaining: Option<u64>,
}

impl Sample {
    pub(super) fn new(at: Duration, traffic: &Traffic, qemu: Option<&RamStatus>) -> Self {
        let qemu = qemu.filter(|ram| ram.total > 0);
        Self {
            at,
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
            // QEMU counts the round that it is in.
            rounds: qemu.map_or(traffic.rounds, |ram| ram.dirty_sync_count.saturating_sub(1)),
            remaining: qemu.map(|ram| ram.remaining),
        }
    }
}

/// Samples in the order of their times.
#[derive(Debug)]
pub(super) struct Series {
    samples: Vec<Sample>,
    /// The least time between two samples, but for the last one.
    step: Duration,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            samples: vec![Sample::default()],
            step: LEAST_STEP,
        }
    }
}

impl Series {
    pub(super) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// All samples but the last one but one, if that is too near to the last.
    pub(super) fn spaced(&self) -> Vec<Sample> {
        let mut spaced = self.samples.clone();
        if let [.., _, before, last] = spaced.as_slice()
            && last.at.saturating_sub(before.at) < self.step / 2
        {
            spaced.swap_remove(self.samples.len().saturating_sub(2));
        }
        spaced
    }

    /// Adds a sample. When there is no room for it, every second one goes, and from then on half as
    /// many are kept.
    pub(super) fn push(&mut self, sample: Sample) {
        let mut newest = self.samples.iter().rev();
        let last = newest.next().map_or(Duration::ZERO, |last| last.at);
        if sample.at < last {
            return;
        }
        let before = newest.next().map(|before| before.at);
        if before.is_some_and(|before| last < before.saturating_add(self.step)) {
            self.samples.pop();
        } else if self.samples.len() >= MOST {
            let mut number = 0_usize;
            self.samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.step = self.step.max(sample.at / (MOST as u32 / 2));
        }
        self.samples.push(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u64) -> Sample {
        Sample {
            at: Duration::from_millis(number * 500),
            bytes_in: number * 1000,
            ..Sample::default()
        }
    }

    #[test]
    fn a_long_migration_takes_no_more_memory_and_keeps_its_ends() {
        let mut series = Series::default();
        for number in 1..100_000 {
            series.push(sample(number));
            assert!(series.samples().len() <= MOST);
            assert_eq!(series.samples().last(), Some(&sample(number)));
        }
        let samples = series.samples();
        assert!(samples.len() >= MOST / 4, "{}", samples.len());
        assert_eq!(samples[0], sample(0));
        let times = samples.windows(2).map(|pair| pair[1].at - pair[0].at);
        let longest = times.clone().max().unwrap();
        let mean = samples.last().unwrap().at / samples.len() as u32;
        assert!(longest <= mean * 4, "{longest:?} {mean:?}");
        assert!(times.clone().all(|time| time > Duration::ZERO));
    }

    #[test]
    fn the_last_sample_is_not_too_near() {
        let mut series = Series::default();
        let near = Sample {
            at: Duration::from_millis(1001),
            ..Sample::default()
        };
        for sample in [sample(1), sample(2), near] {
            series.push(sample);
        }
        assert_eq!(series.spaced(), [sample(0), sample(1), near]);
        series.push(sample(3));
        assert_eq!(series.spaced(), series.samples());
    }

    #[test]
    fn a_clock_that_goes_back_adds_nothing() {
        let mut series = Series::default();
        series.push(sample(4));
        series.push(sample(2));
        assert_eq!(series.samples(), [sample(0), sample(4)]);
    }

    #[test]
    fn what_qemu_tells_counts_where_it_tells_it() {
        let mut traffic = Traffic::default();
        traffic.rounds = 3;
        let mut ram = RamStatus::default();
        let at = Duration::from_secs(1);
        assert_eq!(Sample::new(at, &traffic, Some(&ram)).rounds, 3);
        (ram.total, ram.remaining, ram.dirty_sync_count) = (9, 2, 6);
        let told = Sample::new(at, &traffic, Some(&ram));
        assert_eq!((told.rounds, told.remaining), (5, Some(2)));
    }
}
