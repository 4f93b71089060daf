//! The two connections of one channel, and how they end.
//!
//! What has failed ends step by step. A source before QEMU 11.1 whose channels break in its last
//! round may stand still for good, its monitor too; if only its main channel breaks, it closes the
//! channels by itself. And a destination whose channels end in front of its main channel may wait
//! for them. So the main channel is closed first, and the channels are read to nowhere until the
//! source closes them.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use multifd_transport::Stream;

use crate::failure::Channel;

/// How long after its main channel a destination's channels are closed. Of 538 QEMU destinations
/// whose main channel broke 50 ms before the others did, none stood still.
const CHANNELS_AFTER: Duration = Duration::from_millis(60);

/// How long a source may take to close its channels, once its main channel is closed.
const SOURCES_AFTER: Duration = Duration::from_secs(3);

/// The two connections of one channel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) source: Arc<Stream>,
    pub(super) destination: Stream,
}

impl Link {
    /// Ends every read and write on both connections, here and at the peers. What was written still
    /// arrives: a SYNC that is on its way is waited for.
    pub(super) fn close(&self) {
        // A connection that cannot be shut down is closed already.
        let _ = self.destination.shutdown(Shutdown::Both);
        let _ = self.source.shutdown(Shutdown::Both);
    }

    /// The same, but what is on its way to the destination is taken back as far as the system can,
    /// and the destination sees a broken connection and no end. Peers that are relays hear why.
    pub(super) fn reset(&self, words: &str) {
        self.destination.reset(Some(words));
        self.source.explain(words);
        self.close();
    }

    /// Whether everything that was written to the destination has left this host, or was read by a
    /// process of it.
    pub(super) fn is_delivered(&self) -> bool {
        self.destination.unsent_bytes() == 0
    }
}

/// The links of a migration, to be closed together. The first is that of the main channel.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Link>>,
    /// The sources of all channels, whether or not they have a destination by now.
    sources: Vec<Arc<Stream>>,
    /// When closing began.
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

    /// A channel has come, which may be read to nowhere before it has a link.
    pub(super) fn add_source(&self, source: &Arc<Stream>) {
        self.lock().sources.push(Arc::clone(source));
    }

    /// Begins to close all: the main channel now, and with a reset, so that the destination cannot
    /// take for whole what is not. [`go_on_closing`](Self::go_on_closing) does the rest.
    pub(super) fn close(&self, words: &str) {
        let mut state = self.lock();
        if state.closed.is_none() {
            state.closed = Some(Instant::now());
            state.links.first().inspect(|main| main.reset(words));
        }
    }

    /// Goes on with what [`close`](Self::close) has begun, as far as it is time for it.
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

    /// Closes all after a migration that is over.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(Instant::now);
        state.close_all();
    }

    /// A channel whose destination has closed it.
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
