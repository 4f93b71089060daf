//! The model of a migration: rounds in virtual time, without clocks, files or sockets.
//!
//! A migration sends all used pages, then the pages that the guest wrote meanwhile, and so on,
//! until what is left can be sent within the downtime limit. So everything follows from one number:
//! the bytes of pages that go through in a second. The slowest stage decides it:
//!
//! ```text
//! the link           link / size
//! a channel's thread channels / (receiving + encoding + size * sending)
//! a host's           processors / (what all threads of the host take for a byte)
//! a device           bytes a second of all accelerators
//! QEMU's limit       max-bandwidth
//! ```
//!
//! Size is a part of the page. Stages work at the same time, so their times are not added.

/// The guest, in pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guest {
    /// Bytes of a page.
    pub page_bytes: f64,
    /// All pages.
    pub memory_pages: f64,
    /// Pages that are not zero.
    pub used_pages: f64,
    /// Distinct pages that the guest writes in a second.
    pub dirty_rate: f64,
    /// The pages that it writes at all.
    pub working_set_pages: f64,
}

/// What lies between the guest's two places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// QEMU's `multifd-channels`.
    pub channels: f64,
    /// Processors that each host has for the migration.
    pub processors: f64,
    /// Both ends are on one host and share its processors.
    pub is_one_host: bool,
    /// Payload bytes a second, without the headers of the network. None if it is no limit.
    pub link: Option<f64>,
    /// QEMU's `max-bandwidth` in bytes a second, before relays compress.
    pub max_bandwidth: Option<f64>,
    /// QEMU's `downtime-limit` in seconds.
    pub downtime_limit: f64,
}

/// A method, as measured on pages of the guest. Times are seconds of a processor for a byte of
/// pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codec {
    /// Encoding, on the channel's thread.
    pub encoding: f64,
    /// Decoding at the other end.
    pub decoding: f64,
    /// Bytes of payload for a byte of pages.
    pub size: f64,
    /// Bytes of pages a second that accelerators encode, if they do it.
    pub device: Option<f64>,
}

/// What moving bytes takes beside the codec, in seconds of a processor for a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moving {
    /// For a byte of pages on the thread of a channel that also encodes.
    pub channel: f64,
    /// For a byte of pages on all threads of the source's host, with that of `channel`.
    pub source: f64,
    /// The same at the destination's host.
    pub destination: f64,
    /// For a byte of payload, at each end of the link.
    pub wire: f64,
    /// For a zero page, in seconds of all the migration: the source finds it and names it.
    pub zero_page: f64,
    /// Seconds until the first page.
    pub setup: f64,
    /// Seconds of a round that do not depend on its pages.
    pub round: f64,
    /// Seconds of the switch-over that do not depend on pages: device state and acknowledgements.
    pub switch_over: f64,
    /// Bytes that wait in the buffers of each channel's connection while the link is the limit.
    /// QEMU takes them for sent, so the guest stands still for them too.
    pub queued: f64,
}

/// A way to move the guest: what it costs, and one codec for each kind of round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// What it takes beside the codec.
    pub moving: Moving,
    /// The round of all pages.
    pub first: Codec,
    /// The rounds of written pages.
    pub again: Codec,
    /// The first round leaves no pages to which differences could refer, so that the second goes as
    /// the first.
    pub is_again_late: bool,
}

/// The slowest stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The network.
    Link,
    /// The threads of the channels: more channels would help.
    Channels,
    /// The processors of the source.
    Source,
    /// The processors of the destination.
    Destination,
    /// The processors that both ends share.
    Host,
    /// The accelerators.
    Device,
    /// QEMU's `max-bandwidth`.
    MaxBandwidth,
}

/// What a migration will take.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// The guest can be stopped within the downtime limit.
    pub converges: bool,
    /// Seconds from start to end. Without convergence: until rounds did not shrink any more.
    pub total_s: f64,
    /// Seconds for which the guest is stopped. Without convergence: if it were stopped then.
    pub downtime_s: f64,
    /// Rounds, the last one included.
    pub rounds: u32,
    /// Bytes on the link.
    pub wire_bytes: f64,
    /// Bytes of pages a second in the first round.
    pub pages_bytes_per_s: f64,
    /// What decides that.
    pub limit: Limit,
}

/// More rounds than a migration that converges has ever needed.
const MOST_ROUNDS: u32 = 1000;
/// A round that is so little smaller than the one before will not get much smaller: a geometric
/// series with this factor needs hundreds of rounds for a tenth of its pages.
const NO_SMALLER: f64 = 0.995;
/// A zero page is an offset in the header of its packet.
const ZERO_PAGE_BYTES: f64 = 8.0;
/// A packet's header for each page of a packet: an offset, and a share of what each header has.
const PAGE_HEADER_BYTES: f64 = 8.0 + 576.0 / 128.0;
/// The bisection ends when it knows the rate so well.
const RATE_PRECISION: f64 = 0.005;
/// No guest writes so many pages a second.
const MOST_DIRTY_RATE: f64 = 1e8;
/// Times below this are none: it keeps quotients finite.
const LEAST_TIME: f64 = 1e-15;

impl Codec {
    /// Pages as they are.
    pub const NONE: Self = Self {
        encoding: 0.0,
        decoding: 0.0,
        size: 1.0,
        device: None,
    };

    /// This codec for a share of the pages and `other` for the rest.
    #[must_use]
    pub fn mixed(self, share: f64, other: Self) -> Self {
        let share = share.clamp(0.0, 1.0);
        let mix = |a: f64, b: f64| a * share + b * (1.0 - share);
        Self {
            encoding: mix(self.encoding, other.encoding),
            decoding: mix(self.decoding, other.decoding),
            size: mix(self.size, other.size),
            device: self.device.or(other.device),
        }
    }
}

impl Guest {
    /// The distinct pages that it writes in so many seconds.
    #[must_use]
    pub fn dirtied(&self, seconds: f64) -> f64 {
        (self.dirty_rate * seconds).min(self.working_set_pages)
    }

    /// The guest with another dirty rate.
    #[must_use]
    pub const fn writing(self, dirty_rate: f64) -> Self {
        Self { dirty_rate, ..self }
    }
}

impl Path {
    /// Bytes of pages that go through in a second, and what decides it.
    #[must_use]
    pub fn rate(&self, moving: &Moving, codec: &Codec) -> (f64, Limit) {
        let size = codec.size.max(0.0);
        let wire = size * moving.wire;
        let channel = moving.channel + codec.encoding + wire;
        let source = moving.source + codec.encoding + wire;
        let destination = moving.destination + codec.decoding + wire;
        // A second end works in the same threads in turn, each on a processor of its own.
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
        if let Some(device) = codec.device {
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

    /// The index of the best of these codecs, the cheapest first: one that is as good as another
    /// within 2 % gives way to the cheaper one, as `auto` does it.
    #[must_use]
    pub fn best(&self, moving: &Moving, codecs: &[Codec]) -> usize {
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

    /// What the migration of `guest` will take.
    #[must_use]
    pub fn predict(&self, guest: &Guest, way: &Way) -> Prediction {
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
                // These bytes were counted in the round that they are from.
                seen.downtime_s += self.queue_time(moving, limit);
                seen.rounds += 1;
                seen.wire_bytes += written * bytes_of_a_page(guest, last);
                return seen;
            }
            (before, pending, took) = (pending, written, 0.0);
        }
    }

    /// The most pages that the guest may write in a second. None if any rate will do: all that it
    /// writes to can be sent within the downtime limit.
    #[must_use]
    pub fn highest_dirty_rate(&self, guest: &Guest, way: &Way) -> Option<f64> {
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

    /// Seconds that the link takes for what waits in buffers.
    fn queue_time(&self, moving: &Moving, limit: Limit) -> f64 {
        match (limit, self.link) {
            (Limit::Link, Some(link)) => moving.queued * self.channels / link,
            _ => 0.0,
        }
    }

    fn sending(&self, guest: &Guest, moving: &Moving, codec: &Codec, pages: f64) -> f64 {
        pages * guest.page_bytes / self.rate(moving, codec).0
    }
}

impl Way {
    /// The codec of the round with this number, from 0.
    const fn codec(&self, round: u32) -> &Codec {
        match (round, self.is_again_late) {
            (0, _) | (1, true) => &self.first,
            _ => &self.again,
        }
    }
}

fn bytes_of_a_page(guest: &Guest, codec: &Codec) -> f64 {
    guest.page_bytes * codec.size + PAGE_HEADER_BYTES
}

/// See `multifd_codec::auto`.
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
        queued: 0.0,
    };

    const WAY: Way = Way {
        moving: FREE,
        first: Codec::NONE,
        again: Codec::NONE,
        is_again_late: false,
    };

    /// A link that takes 10 000 pages a second.
    const PATH: Path = Path {
        channels: 2.0,
        processors: 2.0,
        is_one_host: false,
        link: Some(40_960_000.0),
        max_bandwidth: None,
        downtime_limit: 0.3,
    };

    fn with(codec: Codec) -> Way {
        Way {
            first: codec,
            again: codec,
            ..WAY
        }
    }

    fn is_near(a: f64, b: f64) -> bool {
        (a - b).abs() <= b.abs() * 0.01
    }

    #[test]
    fn a_guest_that_writes_nothing_takes_one_round() {
        let seen = PATH.predict(&GUEST, &WAY);
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
        let seen = PATH.predict(&GUEST.writing(5000.0), &WAY);
        assert!(is_near(seen.total_s, 20.0 - 10.0 / 64.0), "{seen:?}");
        assert_eq!(seen.rounds, 7);
        assert!(is_near(seen.downtime_s, 10.0 / 64.0), "{seen:?}");
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_never_moves_unless_it_writes_few_pages() {
        let seen = PATH.predict(&GUEST.writing(12_000.0), &WAY);
        assert!(!seen.converges, "{seen:?}");
        let few = Guest {
            working_set_pages: 2900.0,
            ..GUEST
        };
        assert!(PATH.predict(&few.writing(1e6), &WAY).converges);
        assert_eq!(PATH.highest_dirty_rate(&few, &WAY), None);
    }

    /// It is the rate of the link, or a little less: rounds have to shrink.
    #[test]
    fn the_highest_rate_is_found() {
        let highest = PATH.highest_dirty_rate(&GUEST, &WAY).unwrap();
        assert!((9_800.0..=10_000.0).contains(&highest), "{highest}");
        let half = with(Codec {
            size: 0.5,
            ..Codec::NONE
        });
        let twice = PATH.highest_dirty_rate(&GUEST, &half).unwrap();
        assert!(is_near(twice, 2.0 * highest), "{twice}");
    }

    #[test]
    fn the_slowest_stage_decides() {
        let codec = Codec {
            encoding: 10e-9,
            decoding: 2e-9,
            size: 0.5,
            device: None,
        };
        let fast = Path { link: None, ..PATH };
        assert_eq!(fast.rate(&FREE, &codec), (2e8, Limit::Channels));
        let many = Path {
            channels: 8.0,
            ..fast
        };
        assert_eq!(many.rate(&FREE, &codec), (2e8, Limit::Source));
        let one = Path {
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
        let limited = Path {
            max_bandwidth: Some(1e6),
            ..many
        };
        assert_eq!(limited.rate(&FREE, &codec), (1e6, Limit::MaxBandwidth));
        let device = Codec {
            encoding: 0.1e-9,
            device: Some(4e9),
            ..codec
        };
        let wide = Path {
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
            device: None,
        };
        let steps = [step(0.0, 1.0), step(2e-9, 0.5), step(20e-9, 0.45)];
        assert_eq!(PATH.best(&FREE, &steps), 2);
        let faster = Path {
            link: Some(300e6),
            ..PATH
        };
        assert_eq!(faster.best(&FREE, &steps), 1);
        let fastest = Path {
            link: Some(10e9),
            ..PATH
        };
        assert_eq!(fastest.best(&FREE, &steps), 0);
        // 2 % are not worth the work.
        let equal = [step(0.0, 0.5), step(2e-9, 0.495)];
        assert_eq!(PATH.best(&FREE, &equal), 0);
    }

    #[test]
    fn full_buffers_lengthen_the_downtime_alone() {
        let queued = Way {
            moving: Moving {
                queued: 1e6,
                ..FREE
            },
            ..WAY
        };
        let guest = GUEST.writing(5000.0);
        let (with, without) = (PATH.predict(&guest, &queued), PATH.predict(&guest, &WAY));
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
            again: differences,
            ..WAY
        };
        let guest = GUEST.writing(50_000.0);
        let seen = PATH.predict(&guest, &way);
        assert!(seen.converges && seen.total_s > 10.0, "{seen:?}");
        assert!(!PATH.predict(&guest, &WAY).converges);
        let late = Way {
            is_again_late: true,
            ..way
        };
        assert!(PATH.predict(&guest, &late).total_s > seen.total_s + 9.0);
        let half = differences.mixed(0.5, Codec::NONE);
        assert!(is_near(half.size, 0.525));
    }

    /// Whatever figures are given, there is an end.
    #[test]
    fn no_figures_make_it_run_for_ever() {
        let figures = [0.0, 1e-30, 1.0, 1e30, f64::INFINITY, f64::NAN, -1.0];
        for dirty_rate in figures {
            for link in figures {
                let path = Path {
                    link: Some(link),
                    ..PATH
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
