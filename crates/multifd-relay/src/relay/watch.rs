//! Finds problems of a running migration that its operator can fix.

use std::fmt;
use std::time::{Duration, Instant};

use super::counters::Counters;
use super::gate::Gate;
use super::outline::Outline;
use super::waits::{Clocks, Party};

/// A note is given if nothing was passed on for so long although there is something to pass on.
const STALL: Duration = Duration::from_secs(5);

/// A note is given if no multifd channel has come for so long. Channels may be late.
const WITHOUT_CHANNELS: Duration = Duration::from_secs(2);

/// QEMU's default `max-bandwidth`, in bytes a second. A source counts the bytes that it gives to a
/// relay.
const DEFAULT_BANDWIDTH: f64 = 134_217_728.0;

/// A source whose rate is so near to that, for so long, is limited by it.
const BANDWIDTH_TOLERANCE: f64 = 0.06;
const BANDWIDTH_TIME: Duration = Duration::from_secs(4);

/// Something that an operator may want to fix while the migration runs.
/// [`Display`](fmt::Display) says what, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationNote(pub(super) Noted);

impl MigrationNote {
    /// The number of the source's multifd channels, if the destination has accepted the connections
    /// but does not load.
    #[must_use]
    pub fn not_begun(&self) -> Option<usize> {
        match self.0 {
            Noted::NotBegun { channels } => Some(channels),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// The destination has accepted the connections, but does not load.
    NotBegun {
        /// The number of the source's multifd channels.
        channels: usize,
    },
    /// Nothing is passed on.
    Stalled {
        /// For how long.
        seconds: u64,
        /// The party that is waited for.
        waits_for: Party,
    },
    /// Something is passed on again.
    GoesOn,
    /// There are no multifd channels, so nothing is compressed.
    NoMultifd,
    /// The migration is to end, and the destination may have everything that makes the guest: its
    /// word is waited for.
    WordAwaited {
        /// The longest wait.
        seconds: u64,
    },
    /// The source keeps to QEMU's default `max-bandwidth`, which counts what it gives to the relay.
    MaxBandwidth,
}

impl fmt::Display for MigrationNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Noted::NotBegun { channels: 0 } => f.write_str(
                "the destination does not begin to load: is multifd on at the destination and off at the source? \
                 Set it alike at both ends (migrate_set_capability multifd on)",
            ),
            Noted::NotBegun { channels } => write!(
                f,
                "the destination does not begin to load: does it have multifd on, and {channels} channels as the \
                 source? (migrate_set_parameter multifd-channels {channels})"
            ),
            Noted::Stalled { seconds, waits_for } => {
                write!(f, "no byte for {seconds} s: waiting for {}", waits_for.as_str())
            }
            Noted::WordAwaited { seconds } => write!(
                f,
                "the destination may have everything, and may start the guest at any moment: waiting {seconds} s for its word"
            ),
            Noted::GoesOn => f.write_str("bytes are passed on again"),
            Noted::NoMultifd => f.write_str(
                "the source has no multifd channels, so nothing is compressed \
                 (at both ends: migrate_set_capability multifd on)",
            ),
            Noted::MaxBandwidth => f.write_str(
                "the source sends about 128 MiB/s: is that QEMU's default max-bandwidth? It counts before compression \
                 (at the source: migrate_set_parameter max-bandwidth 0)",
            ),
        }
    }
}

/// The figures that are checked, about twice a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    now: Instant,
    bytes_in: u64,
    bytes_out: u64,
    channels: usize,
    has_begun: bool,
    waits_for: Party,
    is_postcopy: bool,
}

/// Remembers the notes that were given.
#[derive(Debug)]
pub(super) struct Watch {
    started: Option<Instant>,
    /// When the last byte went out, or another party began to be waited for; and how many had gone.
    moved: Option<(Instant, u64, Party)>,
    window: Option<(Instant, u64)>,
    stalled: bool,
    not_begun: bool,
    no_multifd: bool,
    capped: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            started: None,
            moved: None,
            window: None,
            stalled: false,
            not_begun: false,
            no_multifd: false,
            capped: false,
        }
    }

    pub(super) fn sample(
        &self,
        counters: &Counters,
        gate: &Gate,
        outline: &Outline,
        clocks: &Clocks,
    ) -> Sample {
        let totals = counters.totals();
        let is_idle = counters.is_main_idle() && gate.all_idle();
        // A source that has sent everything waits for an answer.
        let waits_for = match outline.look(|seen| seen.complete && seen.return_path) {
            true => Party::Destination,
            false if is_idle => Party::Source,
            false => clocks.party(),
        };
        Sample {
            now: Instant::now(),
            bytes_in: totals.bytes_in,
            // At a low rate a packet takes so long that its bytes have to count one by one.
            bytes_out: totals.bytes_out.saturating_add(clocks.limited_bytes()),
            channels: gate.channels(),
            has_begun: gate.has_begun(),
            waits_for,
            is_postcopy: outline.look(|seen| seen.postcopy),
        }
    }

    /// The notes to give now, each of them once.
    pub(super) fn look(&mut self, sample: &Sample) -> Vec<MigrationNote> {
        let mut notes = Vec::new();
        let started = *self.started.get_or_insert(sample.now);
        let now = (sample.now, sample.bytes_out, sample.waits_for);
        let (since, bytes, party) = *self.moved.get_or_insert(now);
        if bytes != sample.bytes_out || party != sample.waits_for {
            self.moved = Some(now);
            if self.stalled && bytes != sample.bytes_out {
                self.stalled = false;
                notes.push(MigrationNote(Noted::GoesOn));
            }
        } else if sample.now.duration_since(since) >= STALL && !sample.is_postcopy {
            if !sample.has_begun && !self.not_begun && party != Party::Source {
                self.not_begun = true;
                let channels = sample.channels;
                notes.push(MigrationNote(Noted::NotBegun { channels }));
            } else if (sample.has_begun || party == Party::Source) && !self.stalled {
                self.stalled = true;
                notes.push(MigrationNote(Noted::Stalled {
                    seconds: STALL.as_secs(),
                    waits_for: party,
                }));
            }
        }
        let lasts = sample.now.duration_since(started) >= WITHOUT_CHANNELS;
        if lasts && sample.channels == 0 && sample.has_begun && !self.no_multifd {
            self.no_multifd = true;
            notes.push(MigrationNote(Noted::NoMultifd));
        }
        if self.is_capped(sample) && !self.capped {
            self.capped = true;
            notes.push(MigrationNote(Noted::MaxBandwidth));
        }
        notes
    }

    /// Whether the source has kept to the default bandwidth in every second of a while.
    fn is_capped(&mut self, sample: &Sample) -> bool {
        let (since, bytes) = *self.window.get_or_insert((sample.now, sample.bytes_in));
        let seconds = sample.now.duration_since(since).as_secs_f64();
        if seconds < 1.0 {
            return false;
        }
        let rate = sample.bytes_in.saturating_sub(bytes) as f64 / seconds;
        if (rate / DEFAULT_BANDWIDTH - 1.0).abs() > BANDWIDTH_TOLERANCE {
            self.window = Some((sample.now, sample.bytes_in));
            return false;
        }
        sample.now.duration_since(since) >= BANDWIDTH_TIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: Instant, seconds: f64, megabytes: (u64, u64)) -> Sample {
        Sample {
            now: start + Duration::from_secs_f64(seconds),
            bytes_in: megabytes.0 << 20,
            bytes_out: megabytes.1 << 20,
            channels: 2,
            has_begun: true,
            waits_for: Party::Destination,
            is_postcopy: false,
        }
    }

    fn said(samples: &[Sample]) -> Vec<MigrationNote> {
        let mut watch = Watch::new();
        samples
            .iter()
            .flat_map(|sample| watch.look(sample))
            .collect()
    }

    #[test]
    fn a_destination_that_takes_nothing_is_told_of_once_and_when_it_goes_on() {
        let start = Instant::now();
        let still = (0..20).map(|half| sample(start, f64::from(half) / 2.0, (9, 9)));
        let on = sample(start, 10.0, (10, 10));
        let all: Vec<_> = still.chain([on]).collect();
        let stalled = |waits_for| {
            MigrationNote(Noted::Stalled {
                seconds: STALL.as_secs(),
                waits_for,
            })
        };
        let told = said(&all);
        assert_eq!(
            told,
            [stalled(Party::Destination), MigrationNote(Noted::GoesOn)]
        );
        let words = "no byte for 5 s: waiting for the destination";
        assert_eq!(told[0].to_string(), words);
        let of = |party: fn(usize) -> Party| {
            let samples = all.iter().enumerate().map(|(number, sample)| Sample {
                waits_for: party(number),
                ..*sample
            });
            said(&samples.collect::<Vec<_>>())
        };
        let source = of(|_| Party::Source);
        assert_eq!(
            source,
            [stalled(Party::Source), MigrationNote(Noted::GoesOn)]
        );
        // Each party has its own time.
        let late = of(|number| match number {
            0..9 => Party::Source,
            _ => Party::Destination,
        });
        assert_eq!(
            late,
            [stalled(Party::Destination), MigrationNote(Noted::GoesOn)]
        );
        let early: Vec<_> = all
            .iter()
            .map(|sample| Sample {
                has_begun: false,
                ..*sample
            })
            .collect();
        assert_eq!(
            said(&early)[0],
            MigrationNote(Noted::NotBegun { channels: 2 })
        );
    }

    #[test]
    fn a_migration_without_multifd_is_told_of() {
        let start = Instant::now();
        let all: Vec<_> = (0..9)
            .map(|half| Sample {
                channels: 0,
                ..sample(start, f64::from(half) / 2.0, (half as u64, half as u64))
            })
            .collect();
        assert_eq!(said(&all), [MigrationNote(Noted::NoMultifd)]);
    }

    #[test]
    fn the_default_bandwidth_is_recognised_and_others_are_not() {
        let start = Instant::now();
        for (rate, is_default) in [(128, true), (100, false), (150, false), (1000, false)] {
            let all: Vec<_> = (0..20)
                .map(|half| {
                    sample(
                        start,
                        f64::from(half) / 2.0,
                        (half as u64 * rate / 2, half as u64),
                    )
                })
                .collect();
            assert_eq!(
                said(&all).contains(&MigrationNote(Noted::MaxBandwidth)),
                is_default,
                "{rate}"
            );
        }
    }
}
