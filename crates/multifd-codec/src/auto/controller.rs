//! The estimates, and the choice.

use std::fmt;
use std::time::Duration;

use multifd_wire::Method;

use super::Step;

/// The controller of a migration's steps: see [the model](super).
pub(super) struct Controller {
    steps: Vec<Estimate>,
    current: usize,
    /// The processors that all lanes together may take for encoding.
    processors: Option<f64>,
    lanes: u32,
    /// Bytes a second that a connection passes on, while it is the limit.
    rate: Option<f64>,
    /// Seconds for a byte of pages before it is encoded.
    reading: Mean,
    /// Seconds for a byte of payload to be copied into a connection with room.
    copying: Mean,
    changed_at: Duration,
    /// From when on a burst may show that the connection is faster than it was, and how long the
    /// next one has to wait.
    bursts_from: Duration,
    bursts_after: Duration,
    /// Seconds that trials may cost, and since when they are counted.
    credit: f64,
    credited_at: Duration,
    changes: Vec<Change>,
    /// Changes behind the last one that is kept.
    more_changes: u64,
}

/// What is known of a step.
#[derive(Default)]
struct Estimate {
    /// Seconds for a byte of pages.
    encoding: Mean,
    /// Bytes of payload for a byte of pages.
    size: Mean,
    /// The connection's rate while this step was in use, and when that was.
    rate: Option<(f64, Duration)>,
    /// Packets that it was chosen for.
    chosen: u64,
    chosen_at: Duration,
    totals: StepTotals,
}

/// A mean that forgets.
#[derive(Clone, Copy, Default)]
struct Mean(Option<f64>);

/// What a packet took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    pub(super) step: usize,
    pub(super) input_bytes: usize,
    pub(super) payload_bytes: usize,
    pub(super) reading: Duration,
    pub(super) encoding: Duration,
    /// The time of writing, if the connection had nothing to send before.
    pub(super) copying: Option<Duration>,
}

/// What a connection passed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drained {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    /// It always had something to send: so this is all that it can do.
    pub(super) was_busy: bool,
}

/// A change of step, and the figures that led to it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// When, on the clock of the lanes.
    pub at: Duration,
    /// The step before.
    pub from: Step,
    /// The step from now on.
    pub to: Step,
    /// Bytes a second that one connection passes on, if it was the limit lately.
    pub link: Option<f64>,
    /// Bytes of pages a second on one channel, as expected with the step before and with this one.
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

/// What went through one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepTotals {
    /// Packets with pages.
    pub packets: u64,
    /// Bytes of pages, of those that go as differences only the changes.
    pub page_bytes: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
}

/// What was chosen when.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The steps of the method, the cheapest first.
    pub steps: Vec<(Step, StepTotals)>,
    /// The first changes.
    pub changes: Vec<Change>,
    /// How many came behind these.
    pub more_changes: u64,
}

/// Weight of a packet in a mean: the last twenty count.
const NEWEST: f64 = 0.05;
/// The same for a step that is only tried now and then.
const NEWEST_TRIAL: f64 = 0.5;
/// A measurement that is so many times as long as usual met something else that was running.
const OUTLIER: f64 = 4.0;
/// A trial that finds times or sizes so far from what was expected says that the pages or the
/// processors have changed: then nothing is known of the other steps either.
const SURPRISING_TIME: f64 = 1.5;
const SURPRISING_SIZE: f64 = 1.05;
/// Weight of a new measurement of a connection's rate, which is a mean over 20 ms or more.
const NEWEST_RATE: f64 = 0.3;
/// The rate of a connection has changed, and not only its measurement.
const OTHER_RATE: f64 = 1.5;
/// A connection that was idle now and then has passed on so many times its rate.
const FAR_MORE: f64 = 1.3;
/// How long a hint that the connection has become faster waits for the next one, at first and at
/// most.
const BURSTS_AFTER: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(8)];
/// A rate that was measured with another step says something about that step for so long.
const RATE_TRUSTED: Duration = Duration::from_secs(5);
/// A step has to be so much better than the current one. Less is within what measurements vary.
const BETTER: f64 = 0.97;
/// Steps whose times are so close are equal; then the cheaper one is better.
const EQUAL: f64 = 1.02;
/// A step keeps at least so long, unless another one is far better.
const DWELL: Duration = Duration::from_millis(50);
const FAR_BETTER: f64 = 0.7;
/// The part of the time that trials of other steps may cost.
const TRIALS: f64 = 0.02;
/// Seconds that can be saved for trials: one packet of the most expensive step.
const MOST_CREDIT: f64 = 0.1;
/// Seconds that any trial costs: a new frame, and cold tables.
const TRIAL: f64 = 0.000_1;
/// A neighbour's estimate is good for so long, another step's for four times as long.
const TRUSTED: Duration = Duration::from_millis(250);
/// Packets of each step before its estimates count: the first one allocates.
const FIRST: u64 = 2;
/// A full packet, for which a trial is expected to be.
const PACKET_BYTES: f64 = 524_288.0;
/// Seconds for copying a byte, before anything is known.
const COPYING: f64 = 0.3e-9;
/// Far more than a migration needs, and few enough to be kept.
const MOST_CHANGES: usize = 64;

impl Controller {
    /// A controller of so many steps.
    pub(super) fn new(steps: usize, processors: Option<f64>) -> Self {
        Self {
            processors: processors.filter(|count| *count > 0.0),
            lanes: 0,
            steps: (0..steps).map(|_| Estimate::default()).collect(),
            // Most links need it.
            current: 2.min(steps.saturating_sub(1)),
            rate: None,
            reading: Mean::default(),
            copying: Mean(Some(COPYING)),
            changed_at: Duration::ZERO,
            bursts_from: Duration::ZERO,
            bursts_after: BURSTS_AFTER[0],
            credit: 0.0,
            credited_at: Duration::ZERO,
            changes: Vec::with_capacity(MOST_CHANGES),
            more_changes: 0,
        }
    }

    /// The step of the next packet.
    pub(super) fn choose(&mut self, now: Duration) -> usize {
        let elapsed = now.saturating_sub(self.credited_at).as_secs_f64();
        self.credit = (self.credit + elapsed * TRIALS).min(MOST_CREDIT);
        self.credited_at = now;
        let step = match self.unknown(now) {
            Some(step) => step,
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

    /// A step of which nothing is known yet, the current one and the denser ones first.
    fn unknown(&self, now: Duration) -> Option<usize> {
        let from_the_middle = (self.current..self.steps.len()).chain(0..self.current);
        let mut steps = from_the_middle.filter_map(|step| Some((step, self.steps.get(step)?)));
        let (step, _) = steps.find(|(_, estimate)| {
            // The packet that it was chosen for may have had no pages.
            let is_lost = now.saturating_sub(estimate.chosen_at) >= TRUSTED;
            estimate.chosen < FIRST || estimate.totals.packets == 0 && is_lost
        })?;
        Some(step)
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
        let is_better = time < current * BETTER || is_cheaper;
        let may_change = now.saturating_sub(self.changed_at) >= DWELL;
        if best != self.current && is_better && (may_change || time < current * FAR_BETTER) {
            self.change(best, [current, time], now);
        }
    }

    fn change(&mut self, to: usize, times: [f64; 2], now: Duration) {
        if self.changes.len() < MOST_CHANGES {
            // The method is known where the summary is made.
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

    /// A step to be tried with one packet, if one is due and can be afforded.
    fn trial(&mut self, now: Duration) -> Option<usize> {
        let current = self.time(self.current, now)?;
        let due = |step: &usize| {
            let trusted = match step.abs_diff(self.current) {
                0 => return false,
                1 => TRUSTED,
                _ => TRUSTED * 4,
            };
            let estimate = self.steps.get(*step);
            estimate.is_some_and(|estimate| now.saturating_sub(estimate.chosen_at) >= trusted)
        };
        let cost = |step: usize| {
            let more = (self.time(step, now)? - current).max(0.0);
            Some((step, TRIAL + more * PACKET_BYTES))
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

    /// The seconds that a byte of pages takes with a step, if it has been used.
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
        let in_budget = encoding * self.share().map_or(0.0, |share| 1.0 / share);
        // Not even nothing takes no time.
        let times = [busy, passing_on, in_budget];
        Some(times.into_iter().fold(f64::MIN_POSITIVE, f64::max))
    }

    /// The processors for one lane, if they are counted.
    pub(super) fn share(&self) -> Option<f64> {
        let processors = self.processors?;
        Some(processors / f64::from(self.lanes.max(1)))
    }

    /// A lane begins, or ends.
    pub(super) fn count_lane(&mut self, begins: bool) {
        self.lanes = match begins {
            true => self.lanes.saturating_add(1),
            false => self.lanes.saturating_sub(1),
        };
    }

    /// Takes note of a packet.
    pub(super) fn note(&mut self, packet: &Observation) {
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
        // What a step's first packet takes is not repeated.
        if totals.packets == 2 {
            estimate.encoding = Mean::default();
        }
        let is_trial = packet.step != self.current;
        let weight = if is_trial { NEWEST_TRIAL } else { NEWEST };
        let encoding = packet.encoding.as_secs_f64() / bytes;
        let size = packet.payload_bytes as f64 / bytes;
        let is_surprise = is_trial
            && (estimate.encoding.is_far_from(encoding, SURPRISING_TIME)
                || estimate.size.is_far_from(size, SURPRISING_SIZE));
        estimate.encoding.learn(encoding, weight);
        estimate.size.replace(size, weight);
        self.reading
            .replace(packet.reading.as_secs_f64() / bytes, NEWEST);
        if let (Some(copying), true) = (packet.copying, packet.payload_bytes > 0) {
            self.copying
                .learn(copying.as_secs_f64() / packet.payload_bytes as f64, NEWEST);
        }
        if is_surprise {
            for step in &mut self.steps {
                step.chosen_at = Duration::ZERO;
            }
        }
    }

    /// Takes note of what a connection passed on.
    pub(super) fn drained(&mut self, drained: Drained, now: Duration) {
        let seconds = drained.time.as_secs_f64();
        if seconds <= 0.0 || drained.bytes == 0 {
            return;
        }
        let found = drained.bytes as f64 / seconds;
        if !drained.was_busy {
            // It can do more than was thought, and nobody knows how much.
            if self.rate.is_some_and(|rate| found > rate * FAR_MORE) {
                self.forget_rates();
            }
            return;
        }
        let is_other = |rate: f64| found > rate * OTHER_RATE || found * OTHER_RATE < rate;
        let own = self.steps.get(self.current).and_then(|step| step.rate);
        if own.is_some_and(|(rate, _)| is_other(rate)) {
            self.forget_rates();
            self.bursts_after = BURSTS_AFTER[0];
        }
        let renewed = |rate: Option<f64>| match rate {
            Some(rate) if !is_other(rate) => rate + (found - rate) * NEWEST_RATE,
            _ => found,
        };
        self.rate = Some(renewed(self.rate));
        if let Some(step) = self.steps.get_mut(self.current) {
            step.rate = Some((renewed(step.rate.map(|(rate, _)| rate)), now));
        }
    }

    /// Takes note of what a connection passed on after one packet. A link that is faster than it
    /// was shows it first when a step with larger payloads is tried: they are gone at once. But
    /// links take bursts faster than what follows; so a hint that proved wrong makes the next one
    /// wait longer.
    pub(super) fn burst(&mut self, burst: Drained, now: Duration) {
        let seconds = burst.time.as_secs_f64();
        let least = self.rate.map(|rate| rate * FAR_MORE * seconds);
        let is_more = least.is_some_and(|least| burst.bytes as f64 > least);
        if burst.was_busy || !is_more || now < self.bursts_from {
            return;
        }
        self.forget_rates();
        self.bursts_from = now.saturating_add(self.bursts_after);
        let [_, most] = BURSTS_AFTER;
        self.bursts_after = (self.bursts_after * 2).min(most);
    }

    fn forget_rates(&mut self) {
        self.rate = None;
        for step in &mut self.steps {
            step.rate = None;
        }
    }

    /// The changes that are kept, from the one with this number on.
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
    /// Learns a measurement, of which one that is far too large says little.
    fn learn(&mut self, found: f64, weight: f64) {
        let found = self.0.map_or(found, |mean| found.min(mean * OUTLIER));
        self.replace(found, weight);
    }

    /// Whether a measurement is so many times more or less.
    fn is_far_from(self, found: f64, times: f64) -> bool {
        self.0
            .is_some_and(|mean| found > mean * times || found * times < mean)
    }

    fn replace(&mut self, found: f64, weight: f64) {
        self.0 = Some(match self.0 {
            Some(mean) => mean + (found - mean) * weight,
            None => found,
        });
    }
}
