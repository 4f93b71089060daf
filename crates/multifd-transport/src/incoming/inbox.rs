//! An acceptor's messages to a running migration: its further connections, and a refusal.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use multifd_wire::Hello;

use super::SetupFault;
use crate::Stream;
use crate::failure::Uuid;

/// A multifd connection whose hello has been read.
#[derive(Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a channel is its hello and its connection"
)]
pub struct IncomingChannel {
    /// Its hello.
    pub hello: Hello,
    /// The connection, standing behind the hello.
    pub stream: Stream,
}

/// A further connection of a migration, or the end of it. A program has to handle each kind, so a
/// new kind comes with a new version of this crate.
#[derive(Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a taker of migrations must treat every arrival"
)]
pub enum Arrival {
    /// A multifd channel.
    Channel(IncomingChannel),
    /// The connection which postcopy opens for urgent pages (`postcopy-preempt`). It has no mark of
    /// its own.
    Preempt(Stream),
    /// `true`: some channels may belong to another migration, so nothing may be made final.
    /// `false`: the doubt is over.
    Doubt(bool),
    /// The migration's connections do not fit together, so it has to end.
    Refused(SetupFault),
}

/// The VM of a migration, by its UUID. Clones share what they learn.
#[derive(Clone, Debug, Default)]
pub struct Vm(Arc<OnceLock<[u8; 16]>>);

impl Vm {
    /// The UUID that its first channel names, or its set-up with `validate-uuid`. A VM without one
    /// names zeros, which tell nobody apart.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.0.get().copied()
    }

    /// The UUID in its usual form.
    pub fn text(&self) -> Option<String> {
        self.0.get().map(|uuid| Uuid(uuid).to_string())
    }

    /// The first UUID stays.
    pub(super) fn is_named(&self, uuid: [u8; 16]) {
        if uuid != [0; 16] {
            let _ = self.0.set(uuid);
        }
    }
}

type Sink = Box<dyn FnMut(Arrival) + Send>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Arrival>,
    sink: Option<Sink>,
    vm: Vm,
}

/// Receives the connections of a migration.
#[derive(Clone, Default)]
pub struct Inbox(Arc<(Mutex<State>, Condvar)>);

impl Inbox {
    /// The VM that the connections belong to.
    pub fn vm(&self) -> Vm {
        self.lock().vm.clone()
    }

    /// Waits for the next connection. `None`: none came `within` this time.
    pub fn next_within(&self, within: Duration) -> Option<Arrival> {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        loop {
            if let Some(arrival) = state.waiting.pop_front() {
                return Some(arrival);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let (_, changed) = &*self.0;
            let outcome = changed.wait_timeout(state, left);
            state = outcome.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives every connection to `sink` from now on, beginning with those that wait.
    pub fn deliver_to(&self, mut sink: impl FnMut(Arrival) + Send + 'static) {
        let mut state = self.lock();
        while let Some(arrival) = state.waiting.pop_front() {
            sink(arrival);
        }
        state.sink = Some(Box::new(sink));
    }

    /// Adds a connection.
    pub fn put(&self, arrival: Arrival) {
        let mut state = self.lock();
        if let Arrival::Channel(channel) = &arrival {
            state.vm.is_named(channel.hello.uuid);
        }
        match &mut state.sink {
            Some(sink) => sink(arrival),
            None => state.waiting.push_back(arrival),
        }
        self.0.1.notify_all();
    }

    /// Every change is one call, so a thread that panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("waiting", &self.lock().waiting)
            .finish_non_exhaustive()
    }
}
