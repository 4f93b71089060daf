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

use multifd_transport::Stream;

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

    /// Begins to close all links. The main channel is reset now, so that the destination cannot
    /// take an incomplete stream for a complete one. [`go_on_closing`](Self::go_on_closing) does
    /// the rest.
    pub(super) fn close(&self, words: &str) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some(Instant::now());
            state.links.first().inspect(|main| main.reset(words));
        }
    }

    /// Takes the steps after [`close`](Self::close) whose time has come.
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

    pub(super) fn are_delivered(&self) -> bool {
        self.lock().links.iter().all(|link| link.is_delivered())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
