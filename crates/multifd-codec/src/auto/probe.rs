//! Finds the limit of a connection: the link, or the other end's decoder.
//!
//! To the writer both look alike: bytes wait in the connection. A link passes on the same bytes a
//! second whatever they are. A decoder takes about the same pages a second whatever their effort,
//! and takes pages far faster that are as they are. So for some time all packets go as they are. If
//! bytes pass on no faster, then the link is the limit, and effort is free. If they do, then the
//! decoder is, and effort only slows it.

use std::time::Duration;

use super::controller::Drained;

/// Probes, and what the last one has shown.
#[derive(Default)]
pub(super) struct Probe {
    running: Option<Running>,
    next_at: Duration,
    /// What was encoded before the end of the last one has passed by then.
    settled_at: Duration,
    /// The number of probes in a row that found the link to be the limit.
    in_vain: u32,
    decoder: Option<Decoder>,
}

/// A probe under way.
struct Running {
    /// The rate with packets as they are. Until it is known, they go so.
    plain: Option<f64>,
    /// From here on, bytes passed on count.
    counts_from: Duration,
    until: Duration,
    /// Bytes a second that a connection passed on before, and seconds for a byte of pages then.
    rate: f64,
    time: f64,
    /// Bytes that all connections passed on, and the sum of their times.
    bytes: f64,
    seconds: f64,
}

/// The decoder was the limit.
struct Decoder {
    /// Seconds for a byte of pages, with any effort.
    time: f64,
    believed_until: Duration,
    /// For how long it was believed.
    belief: Duration,
}

/// The time for which bytes count in each half of a probe. A connection's rate is measured over 20
/// ms.
const TIME: Duration = Duration::from_millis(45);
/// The bytes that may wait in the sockets, and the least and the longest time for them to pass.
/// They were encoded before, and do not count.
const WAITING: f64 = 4e6;
const SETTLING: [f64; 2] = [0.03, 0.15];
/// If a byte of pages takes more than this many times as long as its encoding with an ordinary
/// effort, then the link is the limit: no decoder of these methods is that slow.
const SLOWEST_DECODER: f64 = 4.0;
/// The decoder was the limit if bytes pass on faster by this factor, and with effort by less than
/// the other one. Rates vary by less.
const FASTER: f64 = 1.5;
const SAME: f64 = 1.25;
/// The first and the longest pause between probes. One costs less than its time.
const PAUSE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(32)];
/// The first and the longest time for which a decoder is taken for the limit without another probe.
const BELIEF: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// The time in which what waits in the sockets has passed on.
fn settling(rate: f64) -> Duration {
    let [least, longest] = SETTLING;
    Duration::try_from_secs_f64((WAITING / rate).clamp(least, longest)).unwrap_or(TIME)
}

impl Running {
    fn half(now: Duration, rate: f64, time: f64, plain: Option<f64>) -> Self {
        let counts_from = now.saturating_add(settling(plain.unwrap_or(rate)));
        Self {
            plain,
            counts_from,
            until: counts_from.saturating_add(TIME),
            rate,
            time,
            bytes: 0.0,
            seconds: 0.0,
        }
    }
}

impl Probe {
    /// Whether one is under way.
    pub(super) const fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Whether packets go as they are.
    pub(super) fn is_plain(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.plain.is_none())
    }

    /// Begins one, if it is time and a decoder may be the limit: a connection passes on `rate`
    /// bytes a second, and a byte of pages becomes `size` bytes, and takes `encoding` seconds with
    /// an ordinary effort.
    pub(super) fn begin(&mut self, now: Duration, rate: f64, size: f64, encoding: f64) {
        let time = size / rate;
        let may_be = size * FASTER < 1.0 && time < encoding * SLOWEST_DECODER;
        if self.runs() || !may_be || self.decoding(now).is_some() || now < self.next_at {
            return;
        }
        self.running = Some(Running::half(now, rate, time, None));
    }

    /// Takes what a connection passed on, if that has to do with a probe.
    pub(super) fn takes(&mut self, drained: Drained, now: Duration) -> bool {
        let began = now.saturating_sub(drained.time);
        let Some(running) = &mut self.running else {
            return began < self.settled_at;
        };
        if began >= running.counts_from {
            running.bytes += drained.bytes as f64;
            running.seconds += drained.time.as_secs_f64();
        }
        true
    }

    /// Ends the half of a probe that is over. Returns the rate of packets as they are, if the
    /// decoder was the limit.
    pub(super) fn end(&mut self, now: Duration) -> Option<f64> {
        let running = self.running.take_if(|running| now >= running.until)?;
        let found = running.bytes / running.seconds;
        let has_found = running.seconds > 0.0;
        match running.plain {
            None if has_found && found >= running.rate * FASTER => {
                self.running = Some(Running::half(now, running.rate, running.time, Some(found)));
                None
            }
            Some(plain) if has_found && found < running.rate * SAME => {
                let [first, longest] = BELIEF;
                let before = self.decoder.as_ref().map(|decoder| decoder.belief);
                let belief = before.map_or(first, |before| (before * 2).min(longest));
                self.decoder = Some(Decoder {
                    time: running.time,
                    believed_until: now.saturating_add(belief),
                    belief,
                });
                self.in_vain = 0;
                self.next_at = now;
                self.settled_at = now.saturating_add(settling(running.rate));
                Some(plain)
            }
            _ => {
                let [first, longest] = PAUSE;
                let pause = first.saturating_mul(1 << self.in_vain.min(4));
                self.next_at = now.saturating_add(pause.min(longest));
                self.in_vain = self.in_vain.saturating_add(1);
                self.decoder = None;
                None
            }
        }
    }

    /// The seconds for which the other end decodes a byte of pages, if that is the limit.
    pub(super) fn decoding(&self, now: Duration) -> Option<f64> {
        let decoder = self.decoder.as_ref()?;
        (now < decoder.believed_until).then_some(decoder.time)
    }
}
