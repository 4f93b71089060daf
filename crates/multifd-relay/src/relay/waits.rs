//! The waits of a migration's channels.
//!
//! A channel's thread tells a [`Clock`] when it reads and when it writes. Now and then the session
//! looks at all clocks. The time of writing is that of the rate limit, if the connection has waited
//! for it. The rest is the network's, the destination's or the codec's, by what the system tells of
//! the socket then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use multifd_transport::{Backlog, Clock, Doing, Spent};

use super::link::Link;
use crate::failure::Channel;

/// Time between two looks at the sockets.
const LOOK: Duration = Duration::from_millis(100);

/// The time that a channel, or all of them, spent with each party of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waits {
    /// Reading from the source, and waiting for it and for the network before this relay.
    pub source: Duration,
    /// Computing here.
    pub codec: Duration,
    /// Waiting because of [`rate_limit`](super::RelayConfig::rate_limit).
    pub rate_limit: Duration,
    /// Waiting for the network behind this relay.
    pub network: Duration,
    /// Waiting for the destination, whose host takes nothing.
    pub destination: Duration,
    /// Waiting for other channels, at the end of a round.
    pub channels: Duration,
}

impl Waits {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        let parts = [
            self.codec,
            self.rate_limit,
            self.network,
            self.destination,
            self.channels,
        ];
        parts
            .into_iter()
            .fold(self.source, Duration::saturating_add)
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, more: &Self) -> Self {
        self.with(more, Duration::saturating_add)
    }

    /// The waits since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.with(before, Duration::saturating_sub)
    }

    fn with(&self, other: &Self, of: fn(Duration, Duration) -> Duration) -> Self {
        Self {
            source: of(self.source, other.source),
            codec: of(self.codec, other.codec),
            rate_limit: of(self.rate_limit, other.rate_limit),
            network: of(self.network, other.network),
            destination: of(self.destination, other.destination),
            channels: of(self.channels, other.channels),
        }
    }
}

/// The waits of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelWaits {
    /// The channel.
    pub channel: Channel,
    /// The times, from its first packet on.
    pub waits: Waits,
}

impl ChannelWaits {
    /// The waits of `channel`.
    #[must_use]
    pub const fn new(channel: Channel, waits: Waits) -> Self {
        Self { channel, waits }
    }
}

/// The party that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// The source, or the network before this relay.
    Source,
    /// This relay.
    Here,
    /// The rate limit of this relay.
    RateLimit,
    /// The network behind this relay.
    Network,
    /// The destination.
    Destination,
}

impl Party {
    /// With an article.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "the source",
            Self::Here => "this relay",
            Self::RateLimit => "its turn within --max-rate",
            Self::Network => "the network",
            Self::Destination => "the destination",
        }
    }
}

/// The clocks of a migration's channels.
#[derive(Debug, Default)]
pub(super) struct Clocks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    link: Arc<Link>,
    clock: Arc<Clock>,
    /// The state at the last look.
    seen: Spent,
    held: Duration,
    waits: Waits,
}

impl Clocks {
    /// A channel begins.
    pub(super) fn add(&self, link: &Arc<Link>) -> Arc<Clock> {
        let clock = Arc::new(Clock::new());
        self.lock().entries.push(Entry {
            link: Arc::clone(link),
            clock: Arc::clone(&clock),
            seen: Spent::default(),
            held: Duration::ZERO,
            waits: Waits::default(),
        });
        clock
    }

    /// Looks at all clocks and sockets, if it is time to.
    pub(super) fn look(&self) {
        let mut state = self.lock();
        if state.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            state.looked = Some(Instant::now());
            state.entries.iter_mut().for_each(Entry::look);
        }
    }

    /// The waits of all channels, main first.
    pub(super) fn all(&self) -> Vec<ChannelWaits> {
        let mut state = self.lock();
        state.entries.iter_mut().for_each(Entry::look);
        let entries = state.entries.iter().map(|entry| ChannelWaits {
            channel: entry.link.channel,
            waits: entry.waits,
        });
        let mut all: Vec<_> = entries.collect();
        all.sort_by_key(|told| match told.channel {
            Channel::Multifd(id) => Some(id),
            _ => None,
        });
        all
    }

    /// Bytes that were written under a rate limit. A large packet counts bit by bit.
    pub(super) fn limited_bytes(&self) -> u64 {
        let state = self.lock();
        let all = state.entries.iter();
        all.map(|entry| entry.link.destination.limited_bytes())
            .fold(0, u64::saturating_add)
    }

    /// The party that a migration waits for if nothing moves.
    pub(super) fn party(&self) -> Party {
        let state = self.lock();
        let mut works = false;
        for entry in &state.entries {
            match entry.clock.look().0 {
                Doing::Writes => {
                    return match entry.link.destination.backlog() {
                        _ if entry.link.destination.is_held_by_rate() => Party::RateLimit,
                        Backlog::Link => Party::Network,
                        _ => Party::Destination,
                    };
                }
                Doing::Works => works = true,
                _ => {}
            }
        }
        match works {
            true => Party::Here,
            false => Party::Source,
        }
    }

    /// A thread that panicked has left times that are a little wrong.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn look(&mut self) {
        let (_, spent) = self.clock.look();
        let more = |of: fn(&Spent) -> Duration| of(&spent).saturating_sub(of(&self.seen));
        let (reads, works) = (more(|spent| spent.reads), more(|spent| spent.works));
        let (writes, waits) = (more(|spent| spent.writes), more(|spent| spent.waits));
        self.seen = spent;
        // The clock was looked at before, so a wait may be a little longer than its writing.
        let held = self.link.destination.held_by_rate();
        let limited = held.saturating_sub(self.held).min(writes);
        self.held = self.held.saturating_add(limited);
        let writes = writes.saturating_sub(limited);
        let sum = &mut self.waits;
        sum.source = sum.source.saturating_add(reads);
        sum.codec = sum.codec.saturating_add(works);
        sum.rate_limit = sum.rate_limit.saturating_add(limited);
        sum.channels = sum.channels.saturating_add(waits);
        if writes > Duration::ZERO {
            let sum = match self.link.destination.backlog() {
                Backlog::Link => &mut sum.network,
                Backlog::Peer => &mut sum.destination,
                // Nothing waits to be sent, so the time went into copies, encryption and, on the
                // main channel of a trunk, compression.
                _ => &mut sum.codec,
            };
            *sum = sum.saturating_add(writes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use multifd_transport::{RateLimit, Stream};

    use super::*;

    /// The peer reads all at once, so neither it nor the network is waited for.
    #[test]
    fn a_wait_for_the_rate_limit_is_nobody_elses() {
        let [(source, ours), (there, mut destination)] =
            [(); 2].map(|()| UnixStream::pair().unwrap());
        let limit = RateLimit::new(RateLimit::LEAST).unwrap();
        let link = Arc::new(Link {
            channel: Channel::Multifd(0),
            source: Arc::new(Stream::from(ours)),
            destination: Stream::from(there).with_rate_limit(Some(&limit)),
        });
        link.destination.hold_to_rate();
        let clocks = Clocks::default();
        let clock = clocks.add(&link);
        thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut destination, &mut std::io::sink()));
            scope.spawn(|| {
                let write = || (&link.destination).write(&[1; 20_000]);
                clock.during(Doing::Writes, || while write().is_ok() {});
            });
            while clocks.limited_bytes() < 20_000 {
                clocks.look();
                thread::sleep(Duration::from_millis(2));
            }
            while clocks.party() != Party::RateLimit {
                thread::sleep(Duration::from_millis(1));
            }
            link.close();
        });
        let waits = clocks.all()[0].waits;
        assert!(waits.rate_limit > Duration::ZERO, "{waits:?}");
        let others = waits.total() - waits.rate_limit;
        assert!(others < waits.rate_limit, "{waits:?}");
        drop(source);
    }

    #[test]
    fn a_destination_that_does_not_read_is_waited_for() {
        let [(source, ours), (there, destination)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        let link = Arc::new(Link {
            channel: Channel::Multifd(0),
            source: Arc::new(Stream::from(ours)),
            destination: Stream::from(there),
        });
        let clocks = Clocks::default();
        let clock = clocks.add(&link);
        let pause = Duration::from_millis(30);
        clock.during(Doing::Reads, || {
            thread::sleep(pause);
            assert_eq!(clocks.party(), Party::Source);
        });
        assert_eq!(clocks.party(), Party::Here);
        assert_eq!(clocks.all()[0].waits.destination, Duration::ZERO);
        link.destination.set_timeouts(Some(pause)).unwrap();
        clock.during(Doing::Writes, || {
            while (&link.destination).write(&[1; 1 << 20]).is_ok() {}
            assert_eq!(clocks.party(), Party::Destination);
        });
        let all = clocks.all();
        assert!(all[0].waits.source >= pause, "{all:?}");
        assert!(all[0].waits.destination >= pause, "{all:?}");
        let waits = all[0].waits;
        assert_eq!(waits.plus(&waits).since(&waits), waits);
        assert!(waits.total() >= pause * 2);
        drop((source, destination));
    }
}
