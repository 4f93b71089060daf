//! A door: the way into an acceptor for other protocols, such as TLS and the trunk.

use std::fmt;
use std::sync::Arc;

use super::{Incoming, Note, Order, Shared, lock};
use crate::Stream;

/// Takes connections by their first bytes.
pub(super) struct Claim {
    pub(super) is_wanted: fn(&[u8; 4]) -> bool,
    /// The reason for which all other connections are passed over, if they are.
    pub(super) others: Option<&'static str>,
    pub(super) take: Box<dyn FnMut(Stream) + Send>,
}

/// The way into an acceptor for a protocol that the acceptor does not know.
#[derive(Clone)]
pub struct Door {
    shared: Arc<Shared>,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Takes all connections whose first four bytes are wanted. No bytes of them have been read.
    /// While `take` runs, nothing is accepted. With `others`, all other connections are passed over
    /// for this reason, except those that come by [`hear`](Self::hear).
    pub fn claim(
        &self,
        is_wanted: fn(&[u8; 4]) -> bool,
        others: Option<&'static str>,
        take: impl FnMut(Stream) + Send + 'static,
    ) {
        let take = Box::new(take);
        *lock(&self.shared.claim) = Some(Claim {
            is_wanted,
            others,
            take,
        });
    }

    /// Takes no more connections.
    pub fn unclaim(&self) {
        *lock(&self.shared.claim) = None;
    }

    /// Adds a connection, like one that has just been accepted.
    pub fn hear(&self, stream: Stream) {
        self.shared.order(Order::Hear(stream));
    }

    /// Adds a main channel of which nothing has been read. The desk reads its set-up within the
    /// bounds of all set-ups, and then the migration is accepted. So a silent stranger reaches no
    /// destination. A migration that goes on after a break is accepted with its first bytes.
    /// Meanwhile its further connections may be put into its inbox.
    pub fn set_up(&self, incoming: Incoming) {
        self.shared.order(Order::SetUp(Box::new(incoming)));
    }

    /// Gives a note about a connection, like the acceptor's own notes.
    pub fn note(&self, note: &Note) {
        self.shared.note(note);
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}
