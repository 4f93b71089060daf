//! A way in for those who read other protocols: TLS, and what relays say to each other.

use std::fmt;
use std::sync::Arc;

use super::{Incoming, Note, Order, Shared, lock};
use crate::Stream;

/// Takes the connections that begin in a certain way.
pub(super) struct Claim {
    pub(super) is_wanted: fn(&[u8; 4]) -> bool,
    /// Why other connections are passed over, if they are.
    pub(super) others: Option<&'static str>,
    pub(super) take: Box<dyn FnMut(Stream) + Send>,
}

/// An acceptor, for those who read a protocol that it does not know.
#[derive(Clone)]
pub struct Door {
    shared: Arc<Shared>,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Takes all connections whose first four bytes are wanted. Nothing of them has been read.
    /// Nothing is accepted while `take` runs. With `others`, all other connections are passed over
    /// for this reason; not so those that come by [`hear`](Self::hear).
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

    /// Lets nobody take connections any more.
    pub fn unclaim(&self) {
        *lock(&self.shared.claim) = None;
    }

    /// A connection that is to be listened to like one that has just been accepted.
    pub fn hear(&self, stream: Stream) {
        self.shared.order(Order::Hear(stream));
    }

    /// A main channel of which nothing has been read. Its set-up is read within the bounds of all
    /// others, and the migration is accepted after that: so a stranger who says nothing reaches no
    /// destination. One that goes on after a break is accepted with its first bytes. Its further
    /// connections may be put into its inbox meanwhile.
    pub fn set_up(&self, incoming: Incoming) {
        self.shared.order(Order::SetUp(Box::new(incoming)));
    }

    /// Tells of a connection, as the acceptor tells of those that it passes over.
    pub fn note(&self, note: &Note) {
        self.shared.note(note);
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}
