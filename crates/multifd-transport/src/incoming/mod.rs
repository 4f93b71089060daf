//! Accepting migrations: the main channel and all multifd channels of each, among everything else
//! that connects.
//!
//! One thread per listener finds out the kind of each connection from its first bytes, under a time
//! limit. It groups the connections of a migration by their content: never by the order in which
//! they come, and never by a delay. A stream does not state its number of channels. So a migration
//! begins with its main channel, and its channels follow through an [`Inbox`].
//!
//! A migration is announced once the set-up of its RAM section has been read. Until then the
//! connection may be a stranger's that imitates the beginning of a main channel. Before that point
//! a source does not wait for its destination.

mod desk;
mod door;
mod inbox;
mod kind;
#[cfg_attr(not(feature = "unstable-matching"), allow(unreachable_pub, dead_code))]
mod matching;
mod note;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use multifd_codec::delta::Kept;
use rustix::event::{EventfdFlags, eventfd};

pub use self::desk::describe;
use self::desk::{Bounds, Desk};
use self::door::Claim;
pub use self::door::Door;
pub use self::inbox::{Arrival, Inbox, IncomingChannel, Vm};
pub use self::kind::ENGINE_MAGIC;
#[cfg(not(feature = "unstable-matching"))]
use self::matching::Id;
#[cfg(feature = "unstable-matching")]
pub use self::matching::{Decision, Id, Matching, PeerId, Stated};
pub use self::note::{Note, Reason};
use self::note::{Notes, Why};
use crate::failure::{Cause, Channel, Failure, Leg, NoThread, SetupFault};
use crate::{Address, Cancel, Listener, Stream};

/// The time limit for a connection's first bytes. A source sends them at once; the time covers a
/// slow network.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Poll interval for cancellation while no connection comes.
const TICK: Duration = Duration::from_millis(200);

/// A migration that has begun.
#[derive(Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// The main channel.
    pub main: Arc<Stream>,
    /// The bytes read from it, up to some point behind the RAM section's set-up.
    pub main_start: Vec<u8>,
    /// Its multifd channels, as they come.
    pub channels: Inbox,
    /// Whether its set-up says that it has multifd channels. Machine types before 8.1 do not say
    /// so.
    pub has_channels: bool,
    /// Whether its set-up says that it may switch to postcopy.
    pub may_be_postcopy: bool,
    /// The opener of the main channel, as far as the system knows it.
    pub peer: String,
    /// Whether it is a postcopy migration that goes on after a break. Its stream has no beginning.
    pub is_recovery: bool,
    /// The statement of another relay, if the migration came through one.
    pub origin: Option<Origin>,
    /// The pages that its differences are made from, if differences were agreed on.
    pub kept: Option<Arc<Kept>>,
    /// Its place with the acceptor, until this is dropped.
    pub ticket: Ticket,
}

impl Incoming {
    /// A migration that has not come to an acceptor's address. Nothing of its main channel has been
    /// read, and nothing is known of it.
    pub fn new(main: Arc<Stream>, channels: Inbox, peer: String, ticket: Ticket) -> Self {
        Self {
            main,
            main_start: Vec::new(),
            channels,
            has_channels: false,
            may_be_postcopy: false,
            peer,
            is_recovery: false,
            origin: None,
            kept: None,
            ticket,
        }
    }
}

/// Another relay's statement about a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The name of its destination.
    pub name: String,
    /// The number of the migration, which no other one has.
    pub migration: [u8; 16],
    /// Whether its channels may have packets of the method `none` among those of another method.
    pub has_plain_packets: bool,
}

impl Origin {
    /// A migration of this number, for the destination of this name.
    pub fn new(name: String, migration: [u8; 16]) -> Self {
        Self {
            name,
            migration,
            has_plain_packets: false,
        }
    }
}

/// The kind of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a caller serves each kind in its own way, so it must know of a new one"
)]
pub enum Peer {
    /// A QEMU, whose migration [`Acceptor::accept`] takes.
    Qemu,
    /// A source engine: its main connection begins with [`ENGINE_MAGIC`].
    /// [`Acceptor::accept_engine`] takes it.
    Engine,
}

/// A migration's place with its acceptor. Dropped at the migration's end.
pub struct Ticket {
    /// Its number at a desk, or 0.
    id: Id,
    settle: Box<dyn Fn() + Send + Sync>,
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

/// Accepts migrations, any number at once.
///
/// While one migration is served, further ones are accepted and wait here.
#[derive(Debug)]
pub struct Acceptor {
    address: Address,
    shared: Arc<Shared>,
    desk: Option<JoinHandle<()>>,
}

/// State that the desk and its migrations share.
struct Shared {
    front: Mutex<Front>,
    changed: Condvar,
    /// Wakes the desk out of its poll.
    wake: OwnedFd,
    notes: Mutex<Notes>,
    claim: Mutex<Option<Claim>>,
}

#[derive(Default)]
struct Front {
    ready: VecDeque<Ready>,
    orders: Vec<Order>,
    stop: bool,
    /// Since when the system has refused to accept connections, and its error.
    starved: Option<(Instant, Option<i32>)>,
}

/// The source of a new migration.
enum Ready {
    Qemu(Incoming),
    Engine(Stream),
}

/// A migration's request to the desk.
enum Order {
    Settle(Id),
    End(Id),
    RefuseNew,
    Hear(Stream),
    SetUp(Box<Incoming>),
    Expect {
        uuid: [u8; 16],
        inbox: Inbox,
        reply: Sender<Id>,
    },
}

impl Acceptor {
    /// Listens on `address`.
    ///
    /// # Errors
    /// If it cannot listen on the address, or the system gives no thread.
    pub fn bind(address: &Address) -> io::Result<Acceptor> {
        Acceptor::on(Listener::bind(address)?)
    }

    /// Accepts connections to `listener`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn on(listener: Listener) -> io::Result<Acceptor> {
        Self::within(listener, Bounds::default())
    }

    fn within(listener: Listener, bounds: Bounds) -> io::Result<Acceptor> {
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            front: Mutex::default(),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            notes: Mutex::default(),
            claim: Mutex::default(),
        });
        let desk = Desk::new(listener, Arc::clone(&shared), bounds);
        let desk = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || desk.run())
            .map_err(NoThread::io)?;
        Ok(Acceptor {
            address,
            shared,
            desk: Some(desk),
        })
    }

    /// The address it listens on. The port is the real one even if 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Gives notes about connections that are passed over to `listen`, at most a few in a second.
    /// While it runs, nothing is accepted.
    pub fn on_note(&self, listen: impl Fn(&Note) + Send + 'static) {
        lock(&self.shared.notes).listen_to(Box::new(listen));
    }

    /// The way into this acceptor for other protocols.
    pub fn door(&self) -> Door {
        Door::new(Arc::clone(&self.shared))
    }

    /// Waits for a QEMU's migration, whose channels come through its [`Inbox`]. Engines are passed
    /// over.
    ///
    /// # Errors
    /// [`Cause::Cancelled`].
    pub fn accept(&mut self, cancel: &Cancel) -> Result<Incoming, Failure> {
        loop {
            match self.next(cancel).map_err(unnamed)? {
                Ready::Qemu(incoming) => return Ok(incoming),
                Ready::Engine(stream) => self.shared.pass_over(&stream, SetupFault::Engine),
            }
        }
    }

    /// Waits until a migration begins, and returns the kind of its source. The migration is not
    /// taken.
    ///
    /// # Errors
    /// [`Cause::Cancelled`].
    pub fn peer(&mut self, cancel: &Cancel) -> Result<Peer, Failure> {
        let peer = self.wait_for(cancel, |front| {
            front.ready.front().map(|ready| match ready {
                Ready::Qemu(_) => Peer::Qemu,
                Ready::Engine(_) => Peer::Engine,
            })
        });
        peer.map_err(unnamed)
    }

    /// Waits for the main connection of a source engine. No bytes of it are read. QEMUs are passed
    /// over.
    ///
    /// # Errors
    /// [`Cause::Cancelled`].
    pub fn accept_engine(&mut self, cancel: &Cancel) -> Result<Stream, Cause> {
        loop {
            match self.next(cancel)? {
                Ready::Engine(stream) => return Ok(stream),
                Ready::Qemu(incoming) => self.shared.pass_over(&incoming.main, SetupFault::Qemu),
            }
        }
    }

    /// Claims the channels whose hellos name `uuid` for a source engine. They come through the
    /// inbox while the ticket is kept. Without a ticket none can come, because the accepting thread
    /// has ended.
    pub fn expect_channels(&self, uuid: [u8; 16]) -> (Inbox, Option<Ticket>) {
        let inbox = Inbox::default();
        let (reply, id) = mpsc::channel();
        let order = Order::Expect {
            uuid,
            inbox: inbox.clone(),
            reply,
        };
        self.shared.order(order);
        // The desk answers as soon as it wakes. If it has died, no channel will come.
        while self.desk.as_ref().is_some_and(|desk| !desk.is_finished()) {
            if let Ok(id) = id.recv_timeout(TICK) {
                return (inbox, Some(self.shared.ticket(id)));
            }
        }
        (inbox, None)
    }

    fn next(&mut self, cancel: &Cancel) -> Result<Ready, Cause> {
        self.wait_for(cancel, |front| front.ready.pop_front())
    }

    fn wait_for<T>(
        &self,
        cancel: &Cancel,
        mut find: impl FnMut(&mut Front) -> Option<T>,
    ) -> Result<T, Cause> {
        let mut front = lock(&self.shared.front);
        loop {
            if cancel.is_cancelled() {
                return Err(Cause::Cancelled);
            }
            if let Some(found) = find(&mut front) {
                return Ok(found);
            }
            if self.desk.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(Cause::Listener(io::Error::other(
                    "the accepting thread has ended",
                )));
            }
            let outcome = self.shared.changed.wait_timeout(front, TICK);
            front = outcome.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Begins no more migrations; those under way go on.
    pub fn refuse_new(&self) {
        self.shared.order(Order::RefuseNew);
    }

    /// Passes over a migration that only goes on after a break.
    pub fn pass_over_recovery(&self, incoming: &Incoming) {
        let peer = incoming.peer.clone();
        let reason = Reason(Why::Recovery);
        self.shared.note(&Note::PassedOver { peer, reason });
    }

    /// The system's error, if it has refused to accept connections for so long: this host has no
    /// descriptors or no memory left.
    pub fn starved(&self, least: Duration) -> Option<io::Error> {
        let starved = lock(&self.shared.front).starved;
        let (_, reason) = starved.filter(|(since, _)| since.elapsed() >= least)?;
        Some(reason.map_or(
            io::ErrorKind::OutOfMemory.into(),
            io::Error::from_raw_os_error,
        ))
    }

    /// Passes over all other migrations, for a caller that takes only one.
    pub fn pass_over_others(&self) {
        self.shared.pass_over_ready(SetupFault::Busy);
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        lock(&self.shared.front).stop = true;
        self.shared.wake_desk();
        if let Some(desk) = self.desk.take() {
            // After a panic of the desk there is nothing to clean up.
            let _ = desk.join();
        }
        // Each of these refers to the desk that holds it, so they would never be dropped.
        let others = {
            let mut front = lock(&self.shared.front);
            (
                std::mem::take(&mut front.ready),
                std::mem::take(&mut front.orders),
            )
        };
        drop(others);
    }
}

impl Ticket {
    /// A place. `settle` notes that all channels of the migration have certainly come, and `end`
    /// that the migration is over.
    pub fn new(
        settle: impl Fn() + Send + Sync + 'static,
        end: impl FnOnce() + Send + Sync + 'static,
    ) -> Self {
        Self {
            id: 0,
            settle: Box::new(settle),
            end: Some(Box::new(end)),
        }
    }

    /// Notes that all channels of the migration have certainly come. Later ones belong to another
    /// migration.
    pub fn settle(&self) {
        (self.settle)();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The ticket of the migration that the desk has under this number.
    fn ticket(self: &Arc<Self>, id: Id) -> Ticket {
        let (settling, ending) = (Arc::clone(self), Arc::clone(self));
        let settle = move || settling.order(Order::Settle(id));
        let mut ticket = Ticket::new(settle, move || ending.order(Order::End(id)));
        ticket.id = id;
        ticket
    }

    fn put(&self, ready: Ready) {
        lock(&self.front).ready.push_back(ready);
        self.changed.notify_all();
    }

    fn order(&self, order: Order) {
        lock(&self.front).orders.push(order);
        self.wake_desk();
    }

    fn take_orders(&self) -> (bool, Vec<Order>) {
        // The counter is only a signal, so its value does not matter.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut front = lock(&self.front);
        (front.stop, std::mem::take(&mut front.orders))
    }

    fn wake_desk(&self) {
        // The write fails only if the counter is full. The desk then wakes anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn note(&self, note: &Note) {
        lock(&self.notes).take(note, Instant::now());
    }

    fn sum_up_notes(&self) {
        lock(&self.notes).sum_up(Instant::now());
    }

    /// Passes over all migrations that wait to be accepted.
    fn pass_over_ready(&self, fault: SetupFault) {
        let others = std::mem::take(&mut lock(&self.front).ready);
        for other in others {
            match other {
                Ready::Qemu(incoming) => self.pass_over(&incoming.main, fault),
                Ready::Engine(stream) => self.pass_over(&stream, fault),
            }
        }
    }

    fn pass_over(&self, stream: &Stream, fault: SetupFault) {
        let peer = desk::describe(stream);
        let reason = Reason(Why::OtherKind(fault));
        self.note(&Note::PassedOver { peer, reason });
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Every change under these locks is one assignment, so a thread that panicked has left nothing
/// half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unnamed(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Unnamed,
        leg: Leg::Source,
        block: None,
        cause,
    }
}
