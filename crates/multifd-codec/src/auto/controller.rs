//! The estimates of all steps, and the choice of one.

use std::fmt;
use std::time::Duration;

use multifd_wire::Method;

use super::Step;
use super::probe::Probe;

/// Chooses the step of each packet of a migration: see [the model](super).
pub(super) struct Controller {
    steps: Vec<Estimate>,
    current: usize,
    /// The processors that all lanes together may use for encoding.
    processors: Option<f64>,
    lanes: u32,
    /// Bytes a second that one connection passes on, while it is the limit.
    rate: Option<f64>,
    /// Seconds of reading for a byte of pages.
    reading: Mean,
    /// Seconds for copying a byte of payload into a connection with room.
    copying: Mean,
    changed_at: Duration,
    /// The time of the next burst that may count, and the pause after it.
    next_burst_at: Duration,
    burst_pause: Duration,
    /// Whether the other end's decoding is the limit.
    probe: Probe,
    /// Seconds that trials may cost, and the time of its last increase.
    credit: f64,
    credited_at: Duration,
    changes: Vec<Change>,
    /// The number of changes that are not in `changes`.
    more_changes: u64,
}

/// The measurements of a step.
#[derive(Default)]
struct Estimate {
    /// Seconds of encoding for a byte of pages.
    encoding: Mean,
    /// Bytes of payload for a byte of pages.
    size: Mean,
    /// The connection's rate while this step was in use, and the time of that measurement.
    rate: Option<(f64, Duration)>,
    /// The number of packets that were given this step.
    chosen: u64,
    chosen_at: Duration,
    totals: StepTotals,
}

/// A mean in which the newest values weigh most.
#[derive(Clone, Copy, Default)]
struct Mean(Option<f64>);

/// The measurements of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    pub(super) step: usize,
    pub(super) input_bytes: usize,
    pub(super) payload_bytes: usize,
    pub(super) reading: Duration,
    pub(super) encoding: Duration,
    /// The time of writing, if no bytes waited in the connection before.
    pub(super) copying: Option<Duration>,
}

/// The bytes that a connection passed on in a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drained {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    /// Bytes always waited in the connection, so it was the limit.
    pub(super) was_busy: bool,
}

/// A change of step, and the figures that led to it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// The time of the change, on the clock of the lanes.
    pub at: Duration,
    /// The step before.
    pub from: Step,
    /// The step from now on.
    pub to: Step,
    /// Bytes a second that one connection passes on, if the connections are the limit.
    pub link: Option<f64>,
    /// Bytes of pages a second that one channel is expected to encode and send with the step
    /// before, and with the new one.
    pub expected: [f64; 2],
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = self.expected.map(|rate| rate / 1e6);
        let Self { from, to, .. } = self;
        write!(
            f,
            "effort {from}, now {to}: {after:.0} MB/s of pages on a channel are expected, "
        )?;
        write!(f, "instead of {before:.0}; ")?;
        match self.link {
            Some(rate) => write!(f, "a connection passes on {:.0} MB/s", rate / 1e6),
            None => f.write_str("the connections are not the limit"),
        }
    }
}

/// The packets that one step encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepTotals {
    /// Packets with normal pages.
    pub packets: u64,
    /// Bytes of normal pages. A page that is sent as a difference counts with the difference's
    /// length.
    pub page_bytes: u64,
    /// Bytes of the payloads.
    pub payload_bytes: u64,
}

/// The totals of each step, and the changes from step to step.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The steps of the method, the cheapest first.
    pub steps: Vec<(Step, StepTotals)>,
    /// The first 64 changes.
    pub changes: Vec<Change>,
    /// The number of later changes.
    pub more_changes: u64,
}

/// The step that most links need.
const ORDINARY: usize = 2;
/// The weight of a new packet in a mean of about twenty packets.
const PACKET_WEIGHT: f64 = 0.05;
/// The weight of a trial packet: trials are rare, so a mean over many would be old.
const TRIAL_WEIGHT: f64 = 0.5;
/// A measurement counts as at most this many times its mean: other work may have interrupted it.
const OUTLIER: f64 = 4.0;
/// If the time or the size of a trial differs from its mean by this factor, then the pages or the
/// processors have changed, and all other steps are tried again.
const SURPRISING_TIME: f64 = 1.5;
const SURPRISING_SIZE: f64 = 1.05;
/// The weight of a new measurement of a connection's rate, which is a mean over 20 ms or more.
const RATE_WEIGHT: f64 = 0.3;
/// A rate that differs by this factor is a change of the connection, and no inaccuracy.
const RATE_CHANGED: f64 = 1.5;
/// A connection that is not always busy, and yet exceeds its known rate by this factor, has become
/// faster.
const RATE_EXCEEDED: f64 = 1.3;
/// The first and the longest pause after a burst that counted.
const BURST_PAUSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(8)];
/// The time for which the rate counts that was measured while a step was in use.
const RATE_TRUSTED: Duration = Duration::from_secs(5);
/// Another step replaces the current one if its time is less than this part of the current one's.
/// Measurements vary by the rest.
const BETTER_PART: f64 = 0.97;
/// Steps whose times differ by less than this factor are equal, and the cheaper one is chosen.
const EQUAL: f64 = 1.02;
/// The least time between two changes, unless another step is far better.
const LEAST_STAY: Duration = Duration::from_millis(50);
/// Another step is far better if its time is less than this part of the current one's.
const FAR_BETTER_PART: f64 = 0.7;
/// The time after which a rate is that of the current step.
const SETTLED: Duration = Duration::from_millis(100);
/// The part of the time that trials of other steps may cost.
const TRIALS_PART: f64 = 0.02;
/// The most seconds of credit for trials: one packet of the most expensive step.
const MOST_CREDIT: f64 = 0.1;
/// Seconds that any trial costs: for a new frame and for cold tables.
const TRIAL_SECONDS: f64 = 0.000_1;
/// The time after which a step beside the current one is tried again. Other steps have four times
/// as long.
const TRIED_AFTER: Duration = Duration::from_millis(250);
/// Packets that each step gets before steps are compared: the first one allocates memory.
const FIRST_PACKETS: u64 = 2;
/// Bytes of a full packet: the cost of a trial is estimated for one.
const PACKET_BYTES: f64 = 524_288.0;
/// Seconds for copying a byte, before the first measurement.
const COPYING: f64 = 0.3e-9;
/// The most changes that a summary has: far more than a migration needs.
const MOST_CHANGES: usize = 64;

impl Controller {
    /// A controller of `steps` steps.
    pub(super) fn new(steps: usize, processors: Option<f64>) -> Self {
        Self {
            processors: processors.filter(|count| *count > 0.0),
            lanes: 0,
            steps: (0..steps).map(|_| Estimate::default()).collect(),
            current: ORDINARY.min(steps.saturating_sub(1)),
            rate: None,
            reading: Mean::default(),
            copying: Mean(Some(COPYING)),
            changed_at: Duration::ZERO,
            next_burst_at: Duration::ZERO,
            burst_pause: BURST_PAUSE[0],
            probe: Probe::default(),
            credit: 0.0,
            credited_at: Duration::ZERO,
            changes: Vec::with_capacity(MOST_CHANGES),
            more_changes: 0,
        }
    }

    /// The step of the next packet.
    pub(super) fn choose(&mut self, now: Duration) -> usize {
        let elapsed = now.saturating_sub(self.credited_at).as_secs_f64();
        self.credit = (self.credit + elapsed * TRIALS_PART).min(MOST_CREDIT);
        self.credited_at = now;
        let step = match self.unmeasured(now) {
            Some(step) => step,
            None if self.probes(now) => match self.probe.is_plain() {
                true => 0,
                false => self.current,
            },
            None => {
                self.reconsider(now);
                self.trial(now).unwrap_or(self.current)
            }
        };
        if let Some(estimate) = self.steps.get_mut(step) {
            estimate.chosen += 1;
            estimate.chosen_at = now;
        }
        step
    }

    /// A step without measurements, if there is one: the current one and denser ones come first.
    fn unmeasured(&self, now: Duration) -> Option<usize> {
        let from_the_middle = (self.current..self.steps.len()).chain(0..self.current);
        let mut steps = from_the_middle.filter_map(|step| Some((step, self.steps.get(step)?)));
        let (step, _) = steps.find(|(_, estimate)| {
            // The packet may have had no pages, so nothing was measured.
            let is_lost = now.saturating_sub(estimate.chosen_at) >= TRIED_AFTER;
            estimate.chosen < FIRST_PACKETS || estimate.totals.packets == 0 && is_lost
        })?;
        Some(step)
    }

    /// Whether a probe is under way, to see whether the link or the decoder is the limit. Begins
    /// and ends them.
    fn probes(&mut self, now: Duration) -> bool {
        if let Some(found) = self.probe.end(now) {
            // The rate with step 0, and no more than that, is the link's.
            self.forget_rates();
            self.rate = Some(found);
        }
        // Packets from before the last change must have passed.
        let is_settled = now.saturating_sub(self.changed_at) >= SETTLED;
        if is_settled
            && self.current > 0
            && let Some(estimate) = self.steps.get(self.current)
            && let Some((rate, then)) = estimate.rate
            && now.saturating_sub(then) < SETTLED
            && let Some(size) = estimate.size.0
            && let Some(encoding) = self.steps.get(ORDINARY).and_then(|step| step.encoding.0)
        {
            self.probe.begin(now, rate, size, encoding);
        }
        self.probe.runs()
    }

    /// Changes the current step if another one is better.
    fn reconsider(&mut self, now: Duration) {
        let Some(current) = self.time(self.current, now) else {
            return;
        };
        let times = |step| Some((step, self.time(step, now)?));
        let all = || (0..self.steps.len()).filter_map(times);
        let Some(least) = all().map(|(_, time)| time).reduce(f64::min) else {
            return;
        };
        let Some((best, time)) = all().find(|(_, time)| *time <= least * EQUAL) else {
            return;
        };
        let is_cheaper = best < self.current && time <= current;
        let is_better = time < current * BETTER_PART || is_cheaper;
        let may_change = now.saturating_sub(self.changed_at) >= LEAST_STAY;
        if best != self.current && is_better && (may_change || time < current * FAR_BETTER_PART) {
            self.change(best, [current, time], now);
        }
    }

    fn change(&mut self, to: usize, times: [f64; 2], now: Duration) {
        if self.changes.len() < MOST_CHANGES {
            // `changes` sets the method.
            let step = |index| Step::of(Method::None, index);
            self.changes.push(Change {
                at: now,
                from: step(self.current),
                to: step(to),
                link: self.rate,
                expected: times.map(|time| 1.0 / time),
            });
        } else {
            self.more_changes += 1;
        }
        self.current = to;
        self.changed_at = now;
    }

    /// The step for a trial packet, if a step is due and the credit suffices.
    fn trial(&mut self, now: Duration) -> Option<usize> {
        let current = self.time(self.current, now)?;
        let due = |step: &usize| {
            let trusted = match step.abs_diff(self.current) {
                0 => return false,
                1 => TRIED_AFTER,
                _ => TRIED_AFTER * 4,
            };
            let estimate = self.steps.get(*step);
            estimate.is_some_and(|estimate| now.saturating_sub(estimate.chosen_at) >= trusted)
        };
        let cost = |step: usize| {
            let more = (self.time(step, now)? - current).max(0.0);
            Some((step, TRIAL_SECONDS + more * PACKET_BYTES))
        };
        let affordable = |(_, cost): &(usize, f64)| *cost <= self.credit;
        let (step, cost) = (0..self.steps.len())
            .filter(due)
            .filter_map(cost)
            .filter(affordable)
            .min_by(|(_, one), (_, other)| one.total_cmp(other))?;
        self.credit -= cost;
        Some(step)
    }

    /// The seconds that a byte of pages takes a channel with this step, if it was measured.
    fn time(&self, step: usize, now: Duration) -> Option<f64> {
        let estimate = self.steps.get(step)?;
        let (encoding, size) = (estimate.encoding.0?, estimate.size.0?);
        let copying = self.copying.0.unwrap_or(COPYING) * size;
        let busy = self.reading.0.unwrap_or(0.0) + encoding + copying;
        let own = estimate
            .rate
            .filter(|(_, then)| now.saturating_sub(*then) < RATE_TRUSTED);
        let rate = match (self.rate, own) {
            (Some(all), Some((own, _))) => Some(all.min(own)),
            (all, own) => all.or(own.map(|(own, _)| own)),
        };
        let passing_on = rate.map_or(0.0, |rate| size / rate);
        let decoding = match step {
            0 => 0.0,
            _ => self.probe.decoding(now).unwrap_or(0.0),
        };
        let in_budget = encoding
            * self
                .lane_processors()
                .map_or(0.0, |lane_processors| 1.0 / lane_processors);
        // Callers divide by this time.
        let times = [busy, passing_on, decoding, in_budget];
        Some(times.into_iter().fold(f64::MIN_POSITIVE, f64::max))
    }

    /// The processors that one lane may use for encoding, if there is a budget.
    pub(super) fn lane_processors(&self) -> Option<f64> {
        let processors = self.processors?;
        Some(processors / f64::from(self.lanes.max(1)))
    }

    pub(super) fn add_lane(&mut self) {
        self.lanes = self.lanes.saturating_add(1);
    }

    pub(super) fn remove_lane(&mut self) {
        self.lanes = self.lanes.saturating_sub(1);
    }

    /// Learns from a packet.
    pub(super) fn packet_done(&mut self, packet: &Observation) {
        let Some(estimate) = self.steps.get_mut(packet.step) else {
            return;
        };
        if packet.input_bytes == 0 {
            return;
        }
        let bytes = packet.input_bytes as f64;
        let totals = &mut estimate.totals;
        totals.packets += 1;
        totals.page_bytes = totals.page_bytes.saturating_add(packet.input_bytes as u64);
        totals.payload_bytes = totals
            .payload_bytes
            .saturating_add(packet.payload_bytes as u64);
        // The first packet of a step allocates memory, so its time is no estimate.
        if totals.packets == 2 {
            estimate.encoding = Mean::default();
        }
        let is_trial = packet.step != self.current;
        let weight = if is_trial {
            TRIAL_WEIGHT
        } else {
            PACKET_WEIGHT
        };
        let encoding = packet.encoding.as_secs_f64() / bytes;
        let size = packet.payload_bytes as f64 / bytes;
        let is_surprise = is_trial
            && (estimate.encoding.is_far_from(encoding, SURPRISING_TIME)
                || estimate.size.is_far_from(size, SURPRISING_SIZE));
        estimate.encoding.add_time(encoding, weight);
        estimate.size.add(size, weight);
        self.reading
            .add(packet.reading.as_secs_f64() / bytes, PACKET_WEIGHT);
        if let (Some(copying), true) = (packet.copying, packet.payload_bytes > 0) {
            self.copying.add_time(
                copying.as_secs_f64() / packet.payload_bytes as f64,
                PACKET_WEIGHT,
            );
        }
        if is_surprise {
            for step in &mut self.steps {
                step.chosen_at = Duration::ZERO;
            }
        }
    }

    /// Learns the rate of a connection.
    pub(super) fn drained(&mut self, drained: Drained, now: Duration) {
        let seconds = drained.time.as_secs_f64();
        if seconds <= 0.0 || drained.bytes == 0 {
            return;
        }
        if self.probe.takes(drained, now) {
            return;
        }
        let found = drained.bytes as f64 / seconds;
        if !drained.was_busy {
            // The connection is faster than its known rate, and was not busy enough to show by how
            // much.
            if self.rate.is_some_and(|rate| found > rate * RATE_EXCEEDED) {
                self.forget_rates();
            }
            return;
        }
        let is_other = |rate: f64| found > rate * RATE_CHANGED || found * RATE_CHANGED < rate;
        let own = self.steps.get(self.current).and_then(|step| step.rate);
        if own.is_some_and(|(rate, _)| is_other(rate)) {
            self.forget_rates();
            self.burst_pause = BURST_PAUSE[0];
        }
        let renewed = |rate: Option<f64>| match rate {
            Some(rate) if !is_other(rate) => rate + (found - rate) * RATE_WEIGHT,
            _ => found,
        };
        self.rate = Some(renewed(self.rate));
        if let Some(step) = self.steps.get_mut(self.current) {
            step.rate = Some((renewed(step.rate.map(|(rate, _)| rate)), now));
        }
    }

    /// Learns from the bytes that a connection passed on after one packet. A link that has become
    /// faster shows this first in a trial of a step with larger payloads: the link takes them at
    /// once. But many links take a burst faster than a stream. So a burst discards the rates only
    /// after a pause, which doubles each time.
    pub(super) fn burst(&mut self, burst: Drained, now: Duration) {
        let seconds = burst.time.as_secs_f64();
        let least = self.rate.map(|rate| rate * RATE_EXCEEDED * seconds);
        let is_more = least.is_some_and(|least| burst.bytes as f64 > least);
        if self.probe.runs() || burst.was_busy || !is_more || now < self.next_burst_at {
            return;
        }
        self.forget_rates();
        self.next_burst_at = now.saturating_add(self.burst_pause);
        let [_, most] = BURST_PAUSE;
        self.burst_pause = (self.burst_pause * 2).min(most);
    }

    fn forget_rates(&mut self) {
        self.rate = None;
        for step in &mut self.steps {
            step.rate = None;
        }
    }

    /// The kept changes, from the index `from` on.
    pub(super) fn changes(&self, method: Method, from: usize) -> Vec<Change> {
        let of = |step: Step| Step::of(method, step.index());
        let changes = self.changes.iter().skip(from);
        changes
            .map(|change| Change {
                from: of(change.from),
                to: of(change.to),
                ..*change
            })
            .collect()
    }

    pub(super) fn summary(&self, method: Method) -> Summary {
        let steps = self.steps.iter().enumerate();
        Summary {
            steps: steps
                .map(|(index, estimate)| (Step::of(method, index), estimate.totals))
                .collect(),
            changes: self.changes(method, 0),
            more_changes: self.more_changes,
        }
    }
}

impl Mean {
    /// Adds a measurement of a time, which counts as at most [`OUTLIER`] times the mean.
    fn add_time(&mut self, found: f64, weight: f64) {
        let found = self.0.map_or(found, |mean| found.min(mean * OUTLIER));
        self.add(found, weight);
    }

    /// Whether a measurement differs from the mean by more than this factor.
    fn is_far_from(self, found: f64, times: f64) -> bool {
        self.0
            .is_some_and(|mean| found > mean * times || found * times < mean)
    }

    fn add(&mut self, found: f64, weight: f64) {
        self.0 = Some(match self.0 {
            Some(mean) => mean + (found - mean) * weight,
            None => found,
        });
    }
}
