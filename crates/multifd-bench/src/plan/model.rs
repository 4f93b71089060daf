//! The model of a migration: rounds in virtual time, without clocks, files or sockets.
//!
//! A migration sends all nonzero pages, then the pages that the guest wrote meanwhile, and so on,
//! until the rest can be sent within the downtime limit. So everything follows from one number: the
//! bytes of pages that are sent in a second. It is the rate of the slowest stage:
//!
//! ```text
//! the link           link / size
//! a channel's thread channels / (receiving + encoding + size * sending)
//! a host             processors / (time of all its threads for a byte)
//! the devices        bytes a second of all accelerators
//! QEMU's limit       max-bandwidth
//! ```
//!
//! Size is a part of the page. Stages work at the same time, so their times are not added up.

/// The guest, in pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Guest {
    /// Bytes of a page.
    pub page_bytes: f64,
    /// The number of all pages.
    pub memory_pages: f64,
    /// The number of nonzero pages.
    pub used_pages: f64,
    /// Distinct pages that the guest writes in a second.
    pub dirty_rate: f64,
    /// The number of pages that the guest ever writes.
    pub working_set_pages: f64,
}

/// The conditions of a migration: hosts, network and QEMU's parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Conditions {
    /// QEMU's `multifd-channels`.
    pub channels: f64,
    /// Processors that each host has for the migration.
    pub processors: f64,
    /// Both ends are on one host and share its processors.
    pub is_one_host: bool,
    /// The link's bytes of payload a second, without headers of the network. None for no limit.
    pub link: Option<f64>,
    /// QEMU's `max-bandwidth` in bytes a second. It limits the pages before relays compress them.
    pub max_bandwidth: Option<f64>,
    /// QEMU's `downtime-limit` in seconds.
    pub downtime_limit: f64,
}

/// The measurements of a method with pages of the guest. Times are seconds of processor time for a
/// byte of pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Codec {
    /// The time of encoding, on the channel's thread.
    pub encoding: f64,
    /// The time of decoding, on the thread at the other end.
    pub decoding: f64,
    /// Bytes of payload for a byte of pages.
    pub size: f64,
    /// Bytes of pages a second that the accelerators encode together, if accelerators encode.
    pub device_rate: Option<f64>,
}

/// The costs of moving bytes without the codec. Times are seconds of processor time for a byte,
/// unless noted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moving {
    /// For a byte of pages, on the channel's thread that also encodes.
    pub channel: f64,
    /// For a byte of pages, on all threads of the source's host, `channel` included.
    pub source: f64,
    /// For a byte of pages, on all threads of the destination's host.
    pub destination: f64,
    /// For a byte of payload, at each end of the link.
    pub wire: f64,
    /// Seconds by which a zero page lengthens the migration: the source finds and names it.
    pub zero_page: f64,
    /// Seconds until the first page.
    pub setup: f64,
    /// Seconds of a round without its pages.
    pub round: f64,
    /// Seconds of the switch-over without its pages: for device state and acknowledgements.
    pub switch_over: f64,
    /// Bytes that wait in the buffers of each channel while the link is the limit. QEMU counts them
    /// as sent, so they lengthen the downtime.
    pub queued_bytes: f64,
}

/// A way to move the guest: its costs, and a codec for each kind of round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Way {
    /// The costs without the codec.
    pub moving: Moving,
    /// The codec of the first round, with all pages.
    pub first: Codec,
    /// The codec of later rounds, with written pages.
    pub later: Codec,
    /// The second round uses `first` too, because the first round keeps no pages, and so the second
    /// can have no differences.
    pub is_second_like_first: bool,
}

/// The slowest stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// The network.
    Link,
    /// The threads of the channels: more channels would help.
    Channels,
    /// The processors of the source.
    Source,
    /// The processors of the destination.
    Destination,
    /// The processors of the host that both ends share.
    Host,
    /// The accelerators.
    Device,
    /// QEMU's `max-bandwidth`.
    MaxBandwidth,
}

/// The prediction of a migration.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Prediction {
    /// Whether the last round fits into the downtime limit.
    pub converges: bool,
    /// Seconds from start to end. Without convergence: if the guest is stopped once rounds no
    /// longer shrink.
    pub total_s: f64,
    /// Seconds for which the guest is stopped.
    pub downtime_s: f64,
    /// Rounds, the last one included.
    pub rounds: u32,
    /// Bytes on the link.
    pub wire_bytes: f64,
    /// Bytes of pages sent in a second of the first round.
    pub pages_bytes_per_s: f64,
    /// The stage that limits this rate.
    pub limit: Limit,
}

/// The most rounds: far more than a migration that converges needs.
const MOST_ROUNDS: u32 = 1000;
/// If a round has more than this part of the pages of the round before, rounds no longer shrink: at
/// this factor they need hundreds of rounds to shrink to a tenth.
const NO_SMALLER: f64 = 0.995;
/// Bytes of a zero page: an offset in the header of its packet.
const ZERO_PAGE_BYTES: f64 = 8.0;
/// Bytes of a packet's header for each normal page: an offset, and a share of the fixed part.
const PAGE_HEADER_BYTES: f64 = 8.0 + 576.0 / 128.0;
/// The precision at which the bisection ends, as a part of the rate.
const RATE_PRECISION: f64 = 0.005;
/// The highest rate in the search: no guest writes so many pages a second.
const MOST_DIRTY_RATE: f64 = 1e8;
/// The least divisor, which keeps quotients finite.
const LEAST_TIME: f64 = 1e-15;

impl Codec {
    /// The codec of `none`: pages as they are.
    pub(crate) const NONE: Self = Self {
        encoding: 0.0,
        decoding: 0.0,
        size: 1.0,
        device_rate: None,
    };

    /// This codec for a share of the pages and `other` for the rest.
    #[must_use]
    pub(crate) fn mixed(self, share: f64, other: Self) -> Self {
        let share = share.clamp(0.0, 1.0);
        let mix = |a: f64, b: f64| a * share + b * (1.0 - share);
        Self {
            encoding: mix(self.encoding, other.encoding),
            decoding: mix(self.decoding, other.decoding),
            size: mix(self.size, other.size),
            device_rate: self.device_rate.or(other.device_rate),
        }
    }
}

impl Guest {
    /// The number of distinct pages that the guest writes in this time.
    #[must_use]
    pub(crate) fn dirtied(&self, seconds: f64) -> f64 {
        (self.dirty_rate * seconds).min(self.working_set_pages)
    }

    /// This guest with another dirty rate.
    #[must_use]
    pub(crate) const fn writing(self, dirty_rate: f64) -> Self {
        Self { dirty_rate, ..self }
    }
}

impl Conditions {
    /// Bytes of pages that are sent in a second, and the stage that limits this rate.
    #[must_use]
    pub(crate) fn rate(&self, moving: &Moving, codec: &Codec) -> (f64, Limit) {
        let size = codec.size.max(0.0);
        let wire = size * moving.wire;
        let channel = moving.channel + codec.encoding + wire;
        let source = moving.source + codec.encoding + wire;
        let destination = moving.destination + codec.decoding + wire;
        // The other end's thread reads and decodes at the same time, on a processor of its own.
        let reading = moving.channel + codec.decoding + wire;
        let threads = self.channels / channel.max(reading).max(LEAST_TIME);
        let mut stages = vec![(threads, Limit::Channels)];
        if self.is_one_host {
            let both = (source + destination).max(LEAST_TIME);
            stages.push((self.processors / both, Limit::Host));
        } else {
            stages.push((self.processors / source.max(LEAST_TIME), Limit::Source));
            let there = destination.max(LEAST_TIME);
            stages.push((self.processors / there, Limit::Destination));
        }
        if let Some(link) = self.link {
            stages.push((link / size.max(LEAST_TIME), Limit::Link));
        }
        if let Some(device) = codec.device_rate {
            stages.push((device, Limit::Device));
        }
        if let Some(most) = self.max_bandwidth {
            stages.push((most, Limit::MaxBandwidth));
        }
        let slowest = |a: (f64, Limit), b: (f64, Limit)| if b.0 < a.0 { b } else { a };
        stages
            .into_iter()
            .fold((f64::INFINITY, Limit::Channels), slowest)
    }

    /// The index of the best of these codecs, which begin with the cheapest. As in `auto`, the
    /// cheapest within 2 % of the highest rate is the best.
    #[must_use]
    pub(crate) fn best(&self, moving: &Moving, codecs: &[Codec]) -> usize {
        let rates: Vec<f64> = codecs
            .iter()
            .map(|codec| self.rate(moving, codec).0)
            .collect();
        let most = rates.iter().copied().fold(0.0, f64::max);
        rates
            .iter()
            .position(|rate| rate * EQUAL >= most)
            .unwrap_or(0)
    }

    /// Predicts the migration of `guest`.
    #[must_use]
    pub(crate) fn predict(&self, guest: &Guest, way: &Way) -> Prediction {
        let moving = &way.moving;
        let (pages_bytes_per_s, limit) = self.rate(moving, &way.first);
        let zero_pages = (guest.memory_pages - guest.used_pages).max(0.0);
        let mut seen = Prediction {
            converges: false,
            total_s: moving.setup,
            downtime_s: 0.0,
            rounds: 0,
            wire_bytes: zero_pages * ZERO_PAGE_BYTES,
            pages_bytes_per_s,
            limit,
        };
        let mut pending = guest.used_pages;
        let mut before = f64::INFINITY;
        let mut took = zero_pages * moving.zero_page;
        loop {
            let codec = way.codec(seen.rounds);
            seen.rounds += 1;
            took += moving.round + self.sending(guest, moving, codec, pending);
            seen.total_s += took;
            seen.wire_bytes += pending * bytes_of_a_page(guest, codec);
            let written = guest.dirtied(took);
            let last = way.codec(seen.rounds);
            let left = self.sending(guest, moving, last, written);
            seen.converges = left <= self.downtime_limit;
            let is_stuck = written >= pending * NO_SMALLER && pending >= before * NO_SMALLER;
            if seen.converges || is_stuck || seen.rounds >= MOST_ROUNDS {
                seen.downtime_s = left + moving.switch_over;
                seen.total_s += seen.downtime_s;
                // The total has this time already, in the round that wrote these bytes.
                seen.downtime_s += self.queue_time(moving, limit);
                seen.rounds += 1;
                seen.wire_bytes += written * bytes_of_a_page(guest, last);
                return seen;
            }
            (before, pending, took) = (pending, written, 0.0);
        }
    }

    /// The highest dirty rate at which the migration converges. None if it converges at any rate,
    /// because all pages that the guest ever writes can be sent within the downtime limit.
    #[must_use]
    pub(crate) fn highest_dirty_rate(&self, guest: &Guest, way: &Way) -> Option<f64> {
        let converges = |rate: f64| self.predict(&guest.writing(rate), way).converges;
        if converges(MOST_DIRTY_RATE) {
            return None;
        }
        let (mut low, mut high) = (0.0, MOST_DIRTY_RATE);
        while high - low > (high * RATE_PRECISION).max(1.0) {
            let middle = (low + high) / 2.0;
            if converges(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// Seconds that the link takes for the bytes in buffers.
    fn queue_time(&self, moving: &Moving, limit: Limit) -> f64 {
        match (limit, self.link) {
            (Limit::Link, Some(link)) => moving.queued_bytes * self.channels / link,
            _ => 0.0,
        }
    }

    /// Seconds of sending `pages` pages.
    fn sending(&self, guest: &Guest, moving: &Moving, codec: &Codec, pages: f64) -> f64 {
        pages * guest.page_bytes / self.rate(moving, codec).0
    }
}

impl Way {
    /// One codec for all rounds.
    #[must_use]
    pub(crate) const fn new(moving: Moving, codec: Codec) -> Self {
        Self {
            moving,
            first: codec,
            later: codec,
            is_second_like_first: false,
        }
    }

    /// The codec of a round. The first one is round 0.
    const fn codec(&self, round: u32) -> &Codec {
        match (round, self.is_second_like_first) {
            (0, _) | (1, true) => &self.first,
            _ => &self.later,
        }
    }
}

fn bytes_of_a_page(guest: &Guest, codec: &Codec) -> f64 {
    guest.page_bytes * codec.size + PAGE_HEADER_BYTES
}

/// Rates that differ by less than this factor are equal, as in `multifd_codec::auto`.
const EQUAL: f64 = 1.02;

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Guest = Guest {
        page_bytes: 4096.0,
        memory_pages: 262_144.0,
        used_pages: 100_000.0,
        dirty_rate: 0.0,
        working_set_pages: 100_000.0,
    };

    const FREE: Moving = Moving {
        channel: 0.0,
        source: 0.0,
        destination: 0.0,
        wire: 0.0,
        zero_page: 0.0,
        setup: 0.0,
        round: 0.0,
        switch_over: 0.0,
        queued_bytes: 0.0,
    };

    const WAY: Way = Way::new(FREE, Codec::NONE);

    /// Its link carries 10 000 pages a second.
    const CONDITIONS: Conditions = Conditions {
        channels: 2.0,
        processors: 2.0,
        is_one_host: false,
        link: Some(40_960_000.0),
        max_bandwidth: None,
        downtime_limit: 0.3,
    };

    fn is_near(a: f64, b: f64) -> bool {
        (a - b).abs() <= b.abs() * 0.01
    }

    #[test]
    fn a_guest_that_writes_nothing_takes_one_round() {
        let seen = CONDITIONS.predict(&GUEST, &WAY);
        assert!(seen.converges && is_near(seen.total_s, 10.0), "{seen:?}");
        assert_eq!((seen.rounds, seen.limit), (2, Limit::Link));
        assert_eq!(seen.downtime_s, 0.0);
        assert!(is_near(
            seen.wire_bytes,
            100_000.0 * 4108.5 + 162_144.0 * 8.0
        ));
    }

    /// Rounds shrink by the same factor: 10 s, 5 s, 2.5 s, 1.25 s, 0.625 s, 0.3125 s, and then
    /// 0.156 s are within the limit.
    #[test]
    fn rounds_are_a_geometric_series() {
        let seen = CONDITIONS.predict(&GUEST.writing(5000.0), &WAY);
        assert!(is_near(seen.total_s, 20.0 - 10.0 / 64.0), "{seen:?}");
        assert_eq!(seen.rounds, 7);
        assert!(is_near(seen.downtime_s, 10.0 / 64.0), "{seen:?}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_never_moves_unless_it_writes_few_pages() {
        let seen = CONDITIONS.predict(&GUEST.writing(12_000.0), &WAY);
        assert!(!seen.converges, "{seen:?}");
        let few = Guest {
            working_set_pages: 2900.0,
            ..GUEST
        };
        assert!(CONDITIONS.predict(&few.writing(1e6), &WAY).converges);
        assert_eq!(CONDITIONS.highest_dirty_rate(&few, &WAY), None);
    }

    /// The rate is the link's or a little less, because rounds have to shrink.
    #[test]
    fn the_highest_rate_is_found() {
        let highest = CONDITIONS.highest_dirty_rate(&GUEST, &WAY).unwrap();
        assert!((9_800.0..=10_000.0).contains(&highest), "{highest}");
        let half = Codec {
            size: 0.5,
            ..Codec::NONE
        };
        let half = Way::new(FREE, half);
        let twice = CONDITIONS.highest_dirty_rate(&GUEST, &half).unwrap();
        assert!(is_near(twice, 2.0 * highest), "{twice}");
    }

    #[test]
    fn the_slowest_stage_decides() {
        let codec = Codec {
            encoding: 10e-9,
            decoding: 2e-9,
            size: 0.5,
            device_rate: None,
        };
        let fast = Conditions {
            link: None,
            ..CONDITIONS
        };
        assert_eq!(fast.rate(&FREE, &codec), (2e8, Limit::Channels));
        let many = Conditions {
            channels: 8.0,
            ..fast
        };
        assert_eq!(many.rate(&FREE, &codec), (2e8, Limit::Source));
        let one = Conditions {
            is_one_host: true,
            ..many
        };
        let (rate, limit) = one.rate(&FREE, &codec);
        assert!(is_near(rate, 2.0 / 12e-9) && limit == Limit::Host);
        let slow_reader = Codec {
            encoding: 1e-9,
            decoding: 40e-9,
            ..codec
        };
        let (rate, limit) = many.rate(&FREE, &slow_reader);
        assert!(is_near(rate, 5e7) && limit == Limit::Destination);
        let limited = Conditions {
            max_bandwidth: Some(1e6),
            ..many
        };
        assert_eq!(limited.rate(&FREE, &codec), (1e6, Limit::MaxBandwidth));
        let device = Codec {
            encoding: 0.1e-9,
            device_rate: Some(4e9),
            ..codec
        };
        let wide = Conditions {
            processors: 64.0,
            channels: 64.0,
            ..fast
        };
        assert_eq!(wide.rate(&FREE, &device), (4e9, Limit::Device));
    }

    #[test]
    fn the_best_step_is_the_densest_that_a_slow_link_can_feed_on() {
        let step = |encoding, size| Codec {
            encoding,
            decoding: 0.0,
            size,
            device_rate: None,
        };
        let steps = [step(0.0, 1.0), step(2e-9, 0.5), step(20e-9, 0.45)];
        assert_eq!(CONDITIONS.best(&FREE, &steps), 2);
        let faster = Conditions {
            link: Some(300e6),
            ..CONDITIONS
        };
        assert_eq!(faster.best(&FREE, &steps), 1);
        let fastest = Conditions {
            link: Some(10e9),
            ..CONDITIONS
        };
        assert_eq!(fastest.best(&FREE, &steps), 0);
        // 2 % are not worth the work.
        let equal = [step(0.0, 0.5), step(2e-9, 0.495)];
        assert_eq!(CONDITIONS.best(&FREE, &equal), 0);
    }

    #[test]
    fn full_buffers_lengthen_the_downtime_alone() {
        let queued = Way {
            moving: Moving {
                queued_bytes: 1e6,
                ..FREE
            },
            ..WAY
        };
        let guest = GUEST.writing(5000.0);
        let (with, without) = (
            CONDITIONS.predict(&guest, &queued),
            CONDITIONS.predict(&guest, &WAY),
        );
        assert!(is_near(
            with.downtime_s - without.downtime_s,
            2e6 / 40_960_000.0
        ));
        assert_eq!(with.total_s, without.total_s);
    }

    #[test]
    fn differences_shrink_later_rounds_only() {
        let differences = Codec {
            size: 0.05,
            ..Codec::NONE
        };
        let way = Way {
            later: differences,
            ..WAY
        };
        let guest = GUEST.writing(50_000.0);
        let seen = CONDITIONS.predict(&guest, &way);
        assert!(seen.converges && seen.total_s > 10.0, "{seen:?}");
        assert!(!CONDITIONS.predict(&guest, &WAY).converges);
        let late = Way {
            is_second_like_first: true,
            ..way
        };
        assert!(CONDITIONS.predict(&guest, &late).total_s > seen.total_s + 9.0);
        let half = differences.mixed(0.5, Codec::NONE);
        assert!(is_near(half.size, 0.525));
    }

    #[test]
    fn predictions_end_with_any_figures() {
        let figures = [0.0, 1e-30, 1.0, 1e30, f64::INFINITY, f64::NAN, -1.0];
        for dirty_rate in figures {
            for link in figures {
                let path = Conditions {
                    link: Some(link),
                    ..CONDITIONS
                };
                let guest = Guest {
                    dirty_rate,
                    working_set_pages: 1e9,
                    ..GUEST
                };
                assert!(path.predict(&guest, &WAY).rounds <= MOST_ROUNDS + 1);
                let _ = path.highest_dirty_rate(&guest, &WAY);
            }
        }
    }
}
