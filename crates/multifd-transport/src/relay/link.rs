//! The two connections of one channel, and how they end.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::connect_unspec;

use crate::Stream;
use crate::failure::Channel;

/// The two connections of one channel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) source: Arc<Stream>,
    pub(super) destination: Stream,
}

impl Link {
    /// Ends every read and write on both connections, here and at the peers. What was written still arrives: a SYNC that
    /// is on its way is waited for.
    pub(super) fn close(&self) {
        // A connection that cannot be shut down is closed already.
        let _ = self.destination.shutdown(Shutdown::Both);
        let _ = self.source.shutdown(Shutdown::Both);
    }

    /// The same, but what is on its way to the destination is taken back as far as the system can, and the destination
    /// sees a broken connection and no end.
    pub(super) fn reset(&self) {
        if let Stream::Tcp(stream) = &self.destination {
            // A connection that is gone already needs no reset.
            let _ = connect_unspec(stream);
        }
        self.close();
    }

    /// Whether everything that was written to the destination has left this host, or was read by a process of it.
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
    closed: bool,
}

impl Links {
    pub(super) fn add(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.closed {
            link.close();
        }
        state.links.push(link.clone());
    }

    /// Closes all: the main channel first, and with a reset, so that the destination cannot take for whole what is not.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (index, link) in state.links.iter().enumerate() {
            match index {
                0 => link.reset(),
                _ => link.close(),
            }
        }
    }

    /// Closes all after a migration that is over.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.links.iter().for_each(|link| link.close());
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
