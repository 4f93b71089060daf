//! The two connections of one channel, and how they end.
//!
//! A failed migration is closed step by step. If channels of a source before QEMU 11.1 break in its
//! last round, the source and its monitor may hang for ever. If only its main channel breaks, it
//! closes the channels itself. And a destination whose channels end before its main channel may
//! wait for them. So the relay closes the main channel first. It reads and discards the channels
//! until the source closes them.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use multifd_transport::{Backlog, Stream};

use crate::failure::Channel;

/// The delay between closing a destination's main channel and its other channels. With 50 ms, none
/// of 538 QEMU destinations hung.
const CHANNELS_AFTER: Duration = Duration::from_millis(60);

/// Time limit for a source to close its channels, once its main channel is closed.
const SOURCES_AFTER: Duration = Duration::from_secs(3);

/// The two connections of one channel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) source: Arc<Stream>,
    pub(super) destination: Stream,
}

impl Link {
    /// Ends every read and write on both connections, here and at the peers. Written bytes still
    /// arrive: a peer waits for a SYNC that is on its way.
    pub(super) fn close(&self) {
        // The error means that the connection is closed already.
        let _ = self.destination.shutdown(Shutdown::Both);
        let _ = self.source.shutdown(Shutdown::Both);
    }

    /// The same, but with a reset towards the destination: the system discards unsent bytes, and
    /// the destination sees a broken connection and no clean end. Peers that are relays get the
    /// reason.
    pub(super) fn reset(&self, words: &str) {
        self.destination.reset(Some(words));
        self.source.explain(words);
        self.close();
    }

    /// Whether all bytes written to the destination have left this host, or were read by a process
    /// on it.
    pub(super) fn is_delivered(&self) -> bool {
        self.destination.unsent_bytes() == 0
    }
}

/// How the links of a failed migration are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Step by step. The main channel is reset now, so that the destination cannot take an
    /// incomplete stream for a complete one.
    Broken,
    /// All at once, with clean ends. The source has given the guest up, all of it is on its way,
    /// and the system delivers it.
    Delivered,
}

/// The links of a migration, which are closed together. The first is the main channel's.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Link>>,
    /// The source connections of all channels, with or without a link.
    sources: Vec<Arc<Stream>>,
    /// The time at which closing began.
    closed: Option<Instant>,
}

impl State {
    fn close_all(&self) {
        self.links.iter().for_each(|link| link.close());
        for source in &self.sources {
            // A connection that cannot be shut down is closed already.
            let _ = source.shutdown(Shutdown::Both);
        }
    }
}

impl Links {
    pub(super) fn add(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.closed.is_some() {
            link.close();
        }
        state.links.push(link.clone());
    }

    /// Adds a channel. It may be read and discarded before it has a link.
    pub(super) fn add_source(&self, source: &Arc<Stream>) {
        self.lock().sources.push(Arc::clone(source));
    }

    /// Closes all links of a migration that has failed. `words` give the reason to a source that is
    /// a relay.
    pub(super) fn close(&self, way: Way, words: &str) {
        let mut state = self.lock();
        let is_first = state.closed.is_none();
        state.closed.get_or_insert_with(Instant::now);
        match way {
            Way::Broken if is_first => {
                state.links.first().inspect(|main| main.reset(words));
            }
            // `go_on_closing` does the rest.
            Way::Broken => {}
            Way::Delivered => {
                state
                    .links
                    .first()
                    .inspect(|main| main.source.explain(words));
                state.close_all();
            }
        }
    }

    /// Takes the steps after [`Way::Broken`] whose time has come.
    pub(super) fn go_on_closing(&self) {
        let state = self.lock();
        let Some(since) = state.closed.map(|since| since.elapsed()) else {
            return;
        };
        if since >= SOURCES_AFTER {
            state.close_all();
        } else if since >= CHANNELS_AFTER {
            for link in state.links.iter().skip(1) {
                // A connection that cannot be shut down is closed already.
                let _ = link.destination.shutdown(Shutdown::Both);
            }
        }
    }

    /// Closes all links after the end of a migration.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(Instant::now);
        state.close_all();
    }

    /// A channel that its destination has closed.
    pub(super) fn hung_up(&self) -> Option<Channel> {
        let state = self.lock();
        let mut channels = state.links.iter().skip(1);
        let closed = channels.find(|link| link.destination.peer_has_closed());
        closed.map(|link| link.channel)
    }

    /// The first channel with bytes that its destination's host has not acknowledged, and that wait
    /// for what is wanted; and how many bytes wait on all channels.
    pub(super) fn find_unsent(&self, wants: impl Fn(Backlog) -> bool) -> Option<(Channel, u64)> {
        let state = self.lock();
        let mut sum = 0_u64;
        let mut found = None;
        for link in &state.links {
            let unsent = link.destination.unsent_bytes();
            sum = sum.saturating_add(unsent);
            let is_it = unsent > 0 && wants(link.destination.backlog());
            found = found.or_else(|| is_it.then_some(link.channel));
        }
        found.map(|channel| (channel, sum))
    }

    pub(super) fn are_delivered(&self) -> bool {
        self.lock().links.iter().all(|link| link.is_delivered())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A channel ends later than main if a stream is broken, and at once if all was delivered.
    #[test]
    fn the_way_of_closing_decides_when_channels_end() {
        for way in [Way::Broken, Way::Delivered] {
            let links = Links::default();
            let ends = [Channel::Main, Channel::Multifd(0)].map(|channel| {
                let (source, ours) = UnixStream::pair().unwrap();
                let (there, destination) = UnixStream::pair().unwrap();
                links.add(&Arc::new(Link {
                    channel,
                    source: Arc::new(Stream::from(ours)),
                    destination: Stream::from(there),
                }));
                [Stream::from(source), Stream::from(destination)]
            });
            links.close(way, "words");
            links.close(way, "words");
            let [main, channel] = ends
                .each_ref()
                .map(|ends| ends.each_ref().map(Stream::peer_has_closed));
            assert_eq!(main, [true, true]);
            assert_eq!(channel, [way == Way::Delivered; 2]);
            links.end();
            assert!(ends.as_flattened().iter().all(Stream::peer_has_closed));
        }
    }
}
