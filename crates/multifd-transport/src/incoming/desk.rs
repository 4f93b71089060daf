//! The desk: a thread that accepts connections, finds out their kinds, and groups them by
//! migration.
//!
//! No connection delays another. All connections without first bytes wait in one poll, each with
//! its own time limit, and each takes only a socket: no thread and no further memory. Only the
//! set-up of a main channel is kept in memory, within one bound for all of them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use multifd_wire::main_stream::{Command, MainEvent, MainReceiver};
use multifd_wire::{Fault, Hello, Limits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::inbox::{Arrival, Inbox, IncomingChannel};
use super::kind::{Kind, kind};
use super::matching::{Decision, Id, Matching, PeerId, Stated};
use super::note::{Note, Reason, SetUpEnd, SetUpFault, Why};
use super::{HELLO_TIMEOUT, Incoming, Order, Ready, SetupFault, Shared};
use crate::stream::Socket;
use crate::{Listener, Stream};

/// Poll interval for a connection that has sent too little, or was closed. It is readable, so a
/// poll would not wait.
const PARTIAL_PAUSE: Duration = Duration::from_millis(20);

/// The longest poll. Time limits of matching have no wake-up of their own and are checked after it.
const TICK: Duration = Duration::from_millis(250);

/// Time limit for a main channel that is silent in its set-up; after it, channels that may belong
/// to another one no longer wait for it.
const SETUP_STALL: Duration = Duration::from_millis(250);

/// The bytes of one read from a main channel, and the number of reads before other connections have
/// their turn.
const SETUP_PIECE_BYTES: usize = 4 << 10;
const SETUP_PIECES: usize = 16;

/// The pause after the system has refused to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// If postcopy's own connection is awaited, a connection that is silent for so long is taken for
/// it.
const PREEMPT_SILENCE: Duration = Duration::from_secs(1);

/// Limits for connections that are not part of a migration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The time limit for a connection's first bytes.
    pub(super) hello: Duration,
    /// The longest silence of a main channel within its set-up.
    pub(super) setup_silence: Duration,
    /// The time limit for a set-up. Some devices (virtio-mem) first send some megabytes of state,
    /// possibly over a slow link.
    pub(super) setup: Duration,
    /// The most bytes of all set-ups together. One has some hundred bytes, or some megabytes with
    /// virtio-mem.
    pub(super) setup_bytes: usize,
    /// The most main channels in their set-up. Beyond it, the one that has been silent for the
    /// longest is closed.
    pub(super) setups: usize,
    /// The most connections of unknown kind, and channels without a main channel. Beyond it, the
    /// oldest is closed. The number is much larger than a source's channels, so that these get
    /// their turn during a flood of connections.
    pub(super) waiting: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            hello: HELLO_TIMEOUT,
            setup_silence: Duration::from_secs(10),
            setup: Duration::from_secs(120),
            setup_bytes: 256 << 20,
            setups: 256,
            waiting: 1024,
        }
    }
}

pub(super) struct Desk {
    listener: Listener,
    shared: Arc<Shared>,
    limits: Limits,
    bounds: Bounds,
    unspoken: Vec<Unspoken>,
    setups: Vec<SetUp>,
    /// Migrations that begin, until they have been given their channels that are here.
    begun: Vec<Ready>,
    orphans: HashMap<Id, IncomingChannel>,
    inboxes: HashMap<Id, Inbox>,
    /// The main channels of the migrations that go on.
    mains: HashMap<Id, Weak<Stream>>,
    matching: Matching,
    next_id: Id,
    paused_until: Option<Instant>,
    refuses_new: bool,
}

struct Unspoken {
    id: Id,
    stream: Stream,
    peer: PeerId,
    since: Instant,
    partial: bool,
}

/// A main channel whose set-up is being read.
struct SetUp {
    id: Id,
    stream: Arc<Stream>,
    /// The migration, if it came by a door. Its channels come the same way, so none are matched.
    brought: Option<Incoming>,
    receiver: MainReceiver,
    start: Vec<u8>,
    stated: Stated,
    has_blocks: bool,
    since: Instant,
    last: Instant,
}

impl Desk {
    pub(super) fn new(listener: Listener, shared: Arc<Shared>, bounds: Bounds) -> Self {
        Self {
            listener,
            shared,
            limits: Limits::default(),
            bounds,
            unspoken: Vec::new(),
            setups: Vec::new(),
            begun: Vec::new(),
            orphans: HashMap::new(),
            inboxes: HashMap::new(),
            mains: HashMap::new(),
            matching: Matching::default(),
            next_id: 0,
            paused_until: None,
            refuses_new: false,
        }
    }

    /// Serves until the acceptor is dropped.
    pub(super) fn run(mut self) {
        while !self.orders() {
            self.accept();
            self.hear();
            if self.read_setups() {
                // A source sends its channels' hellos before its set-up ends. So a local source's
                // channels are here by now, and begin together with their main channel.
                self.accept();
                self.hear();
            }
            self.match_up();
            self.begin();
            self.shared.sum_up_notes();
            self.wait();
        }
    }

    fn id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }

    /// Handles the requests of migrations under way. Returns whether to stop.
    fn orders(&mut self) -> bool {
        let (stop, orders) = self.shared.take_orders();
        for order in orders {
            match order {
                Order::Settle(id) => self.matching.settle(id),
                Order::End(id) => {
                    self.matching.end(id);
                    self.inboxes.remove(&id);
                    self.mains.remove(&id);
                }
                Order::RefuseNew => {
                    self.refuses_new = true;
                    while let Some(last) = self.setups.len().checked_sub(1) {
                        self.give_up_setup(last, Reason(Why::OtherKind(SetupFault::Ending)));
                    }
                    self.shared.pass_over_ready(SetupFault::Ending);
                }
                Order::Hear(stream) => self.listen_to(stream, Instant::now()),
                Order::SetUp(incoming) => {
                    let (id, stream) = (self.id(), Arc::clone(&incoming.main));
                    self.set_up(id, stream, Some(*incoming), Instant::now());
                    if self.refuses_new {
                        let last = self.setups.len().saturating_sub(1);
                        self.give_up_setup(last, Reason(Why::OtherKind(SetupFault::Ending)));
                    }
                }
                Order::Expect { uuid, inbox, reply } => {
                    let id = self.id();
                    self.matching.engine_ready(id, uuid, Instant::now());
                    self.inboxes.insert(id, inbox);
                    // An engine that has stopped waiting needs no number.
                    let _ = reply.send(id);
                }
            }
        }
        stop
    }

    fn accept(&mut self) {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        self.paused_until = None;
        for count in 1_usize.. {
            // A connection that has sent bytes is never taken for a silent one.
            if count.is_multiple_of((self.bounds.waiting / 4).max(1)) {
                self.hear();
            }
            match self.listener.try_accept() {
                Ok(Some(stream)) => self.listen_to(stream, now),
                Ok(None) => {
                    super::lock(&self.shared.front).starved = None;
                    return;
                }
                Err(error) => {
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    let reason = error.raw_os_error();
                    super::lock(&self.shared.front)
                        .starved
                        .get_or_insert((now, reason));
                    self.shared.note(&Note::CannotAccept(error));
                    return;
                }
            }
        }
    }

    /// Waits for the first bytes of a connection.
    fn listen_to(&mut self, stream: Stream, now: Instant) {
        if self.unspoken.len() >= self.bounds.waiting {
            let oldest = self.unspoken.remove(0);
            self.pass_over(&oldest.stream, Reason(Why::Crowded));
        }
        let peer = peer_of(&stream);
        let (id, since, partial) = (self.id(), now, false);
        self.unspoken.push(Unspoken {
            id,
            stream,
            peer,
            since,
            partial,
        });
    }

    /// Looks at the first bytes of each unspoken connection.
    fn hear(&mut self) {
        let now = Instant::now();
        let mut index = 0;
        while let Some(unspoken) = self.unspoken.get_mut(index) {
            let waited = now.duration_since(unspoken.since);
            let kind = kind(&unspoken.stream);
            unspoken.partial = matches!(kind, Ok(Kind::Partial));
            if matches!(kind, Ok(Kind::Silent | Kind::Partial)) && waited < self.bounds.hello {
                let silent = !unspoken.partial && waited >= PREEMPT_SILENCE;
                let preempt = silent
                    .then(|| self.matching.preempt_came(unspoken.peer))
                    .flatten();
                match preempt {
                    Some(id) => {
                        let unspoken = self.unspoken.remove(index);
                        self.give(id, Arrival::Preempt(unspoken.stream));
                    }
                    None => index += 1,
                }
                continue;
            }
            let unspoken = self.unspoken.remove(index);
            self.assign(unspoken, kind, now);
        }
        let unspoken = self.unspoken.iter().map(|unspoken| unspoken.peer);
        self.matching.set_unspoken(unspoken);
    }

    /// Handles a connection of known kind, or one whose time limit has passed.
    fn assign(&mut self, unspoken: Unspoken, kind: io::Result<Kind>, now: Instant) {
        let Unspoken {
            id, stream, peer, ..
        } = unspoken;
        let mut others = None;
        if stream.is_bare()
            && let Some(claim) = &mut *super::lock(&self.shared.claim)
        {
            if let Ok(Kind::Unmarked(said) | Kind::Tls(said)) = &kind
                && (claim.is_wanted)(said)
            {
                return (claim.take)(stream);
            }
            others = claim.others;
        }
        let reason = match kind {
            Ok(
                Kind::Main | Kind::Engine | Kind::Recovery | Kind::Channel(_) | Kind::Unmarked(_),
            ) if others.is_some() => Reason(Why::Other(others.unwrap_or_default().to_owned())),
            Ok(Kind::Main | Kind::Engine | Kind::Recovery) if self.refuses_new => {
                Reason(Why::OtherKind(SetupFault::Ending))
            }
            Ok(Kind::Main) => {
                self.matching.main_came(id, peer);
                return self.set_up(id, Arc::new(stream), None, now);
            }
            Ok(Kind::Engine) => return self.shared.put(Ready::Engine(stream)),
            Ok(Kind::Recovery) => {
                self.matching.main_came(id, peer);
                let postcopy = true;
                let stated = Stated {
                    postcopy,
                    ..Stated::default()
                };
                self.matching.main_ready(id, stated, now);
                // Its channels belonged to the migration that broke.
                self.matching.settle(id);
                return self.ready(id, Arc::new(stream), Vec::new(), stated, true);
            }
            Ok(Kind::Channel(bytes)) => match take_hello(&stream, &bytes) {
                Ok(hello) => {
                    self.matching
                        .channel_came(id, hello.uuid, hello.channel, peer, now);
                    self.orphans.insert(id, IncomingChannel { hello, stream });
                    if self.orphans.len() > self.bounds.waiting {
                        self.give_up_oldest_orphan();
                    }
                    return;
                }
                Err(reason) => reason,
            },
            Ok(Kind::Unmarked(said)) => match self.matching.preempt_came(peer) {
                Some(id) => return self.give(id, Arrival::Preempt(stream)),
                None => Reason(Why::Unmarked(said)),
            },
            Ok(Kind::Tls(_)) => Reason(Why::Tls),
            Ok(Kind::Silent | Kind::Partial) => Reason(Why::Silent {
                within: self.bounds.hello,
            }),
            // A probe that was closed without bytes is not worth a note.
            Ok(Kind::Closed) => return,
            Err(error) => Reason(Why::Io(error)),
        };
        self.pass_over(&stream, reason);
    }

    /// Starts to read the set-up of a main channel.
    fn set_up(&mut self, id: Id, stream: Arc<Stream>, brought: Option<Incoming>, now: Instant) {
        let all = self.setups.iter().enumerate();
        if self.setups.len() >= self.bounds.setups
            && let Some((index, _)) = all.min_by_key(|(_, setup)| setup.last)
        {
            self.give_up_setup(index, Reason(Why::Crowded));
        }
        let setup = SetUp::new(id, stream, brought, self.limits, now);
        self.setups.push(setup);
    }

    /// Reads the set-ups of main channels. Returns whether one is complete.
    fn read_setups(&mut self) -> bool {
        let now = Instant::now();
        let mut is_over = false;
        let mut index = 0;
        while let Some(setup) = self.setups.get_mut(index) {
            match setup.read(now, &self.bounds) {
                Ok(false) => {
                    let stalls = now.duration_since(setup.last) >= SETUP_STALL;
                    if setup.brought.is_none() {
                        self.matching.main_stalls(setup.id, stalls);
                    }
                    index += 1;
                }
                Ok(true) => {
                    is_over = true;
                    let setup = self.setups.remove(index);
                    match setup.brought {
                        Some(mut incoming) => {
                            incoming.main_start = setup.start;
                            incoming.has_channels |= setup.stated.has_channels;
                            incoming.may_be_postcopy |= setup.stated.postcopy;
                            self.shared.put(Ready::Qemu(incoming));
                        }
                        None => {
                            self.matching.main_ready(setup.id, setup.stated, now);
                            self.ready(setup.id, setup.stream, setup.start, setup.stated, false);
                        }
                    }
                }
                Err(fault) => self.give_up_setup(index, Reason(Why::SetUp(SetUpFault(fault)))),
            }
            self.bound_setups();
        }
        is_over
    }

    /// Gives up the longest set-up while all together take too much memory. Short ones are not the
    /// cause.
    fn bound_setups(&mut self) {
        let limit_bytes = self.bounds.setup_bytes;
        while self.setups.iter().map(SetUp::bytes).sum::<usize>() > limit_bytes {
            let longest = self.setups.iter().enumerate();
            let Some((index, _)) = longest.max_by_key(|(_, setup)| setup.bytes()) else {
                return;
            };
            self.give_up_setup(
                index,
                Reason(Why::SetUp(SetUpFault(SetUpEnd::TooMuch { limit_bytes }))),
            );
        }
    }

    fn give_up_setup(&mut self, index: usize, reason: Reason) {
        let setup = self.setups.remove(index);
        match &setup.brought {
            // Its buffers are still empty, so the write does not block.
            Some(_) => setup.stream.explain(&reason.to_string()),
            None => self.matching.end(setup.id),
        }
        self.pass_over(&setup.stream, reason);
    }

    fn give_up_oldest_orphan(&mut self) {
        let Some(oldest) = self.matching.orphans().next() else {
            return;
        };
        self.matching.forget_channel(oldest);
        if let Some(channel) = self.orphans.remove(&oldest) {
            self.pass_over(&channel.stream, Reason(Why::Crowded));
        }
    }

    /// Begins a migration. Its acceptor takes over the main channel.
    fn ready(
        &mut self,
        id: Id,
        main: Arc<Stream>,
        main_start: Vec<u8>,
        stated: Stated,
        is_recovery: bool,
    ) {
        let inbox = Inbox::default();
        stated.uuid.inspect(|uuid| inbox.vm().is_named(*uuid));
        self.inboxes.insert(id, inbox.clone());
        let ticket = self.shared.ticket(id);
        let peer = describe(&main);
        self.mains.insert(id, Arc::downgrade(&main));
        self.begun.push(Ready::Qemu(Incoming {
            main,
            main_start,
            channels: inbox,
            has_channels: stated.has_channels,
            may_be_postcopy: stated.postcopy,
            peer,
            is_recovery,
            origin: None,
            kept: None,
            ticket,
        }));
    }

    fn give(&mut self, id: Id, arrival: Arrival) {
        if let Some(inbox) = self.inboxes.get(&id) {
            inbox.put(arrival);
        }
    }

    fn match_up(&mut self) {
        let now = Instant::now();
        // A source that is done closes its channels before its main channel, so they are looked at
        // behind it: a channel found open is none of a main channel found closed.
        if !self.orphans.is_empty() {
            for (&id, main) in &self.mains {
                if main.upgrade().is_none_or(|main| main.peer_has_closed()) {
                    self.matching.main_closed(id, now);
                }
            }
        }
        for id in self.matching.orphans().collect::<Vec<_>>() {
            let closed = self.orphans.get(&id);
            let Some(channel) = closed.filter(|channel| channel.stream.peer_has_closed()) else {
                continue;
            };
            // This is looked at after the close, behind which nothing comes.
            let is_empty = match channel.stream.peek(&mut [0]) {
                Ok(count) => count == 0,
                Err(error) => !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ),
            };
            match is_empty {
                true => self.matching.channel_closed_empty(id, now),
                false => self.matching.channel_closed(id, now),
            }
        }
        for decision in self.matching.decide(now) {
            match decision {
                Decision::Give { channel, main } => {
                    if let Some(channel) = self.orphans.remove(&channel) {
                        self.give(main, Arrival::Channel(channel));
                    }
                }
                Decision::Drop { channel } => {
                    if let Some(IncomingChannel { hello, stream }) = self.orphans.remove(&channel) {
                        let (uuid, channel) = (hello.uuid, hello.channel);
                        self.pass_over(&stream, Reason(Why::NoMain { uuid, channel }));
                    }
                }
                Decision::Doubt { main, doubt } => self.give(main, Arrival::Doubt(doubt)),
                Decision::Refuse { main, fault } => {
                    self.give(main, Arrival::Refused(fault));
                    if let Some(index) = self.setups.iter().position(|setup| setup.id == main) {
                        self.give_up_setup(index, Reason(Why::Refused(fault)));
                    }
                }
            }
        }
    }

    /// Announces migrations that begin. If a decision about its channels is due, a migration waits
    /// for it: otherwise its rounds would go on without them.
    fn begin(&mut self) {
        let now = Instant::now();
        let (undecided, begun) = std::mem::take(&mut self.begun)
            .into_iter()
            .partition(|ready| match ready {
                Ready::Qemu(incoming) => self.matching.is_undecided(incoming.ticket.id, now),
                Ready::Engine(_) => false,
            });
        self.begun = undecided;
        let begun: Vec<Ready> = begun;
        for ready in begun {
            match ready {
                Ready::Qemu(incoming) if self.refuses_new => {
                    let reason = Reason(Why::OtherKind(SetupFault::Ending));
                    self.pass_over(&incoming.main, reason);
                }
                other => self.shared.put(other),
            }
        }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        let mut timeout = match self.begun.is_empty() {
            true => TICK,
            false => PARTIAL_PAUSE,
        };
        let mut sources = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        match self.paused_until {
            Some(until) => timeout = timeout.min(until.saturating_duration_since(now)),
            None => sources.push(PollFd::new(&self.listener, PollFlags::IN)),
        }
        for unspoken in &self.unspoken {
            match unspoken.partial || !unspoken.stream.is_bare() {
                true => timeout = timeout.min(PARTIAL_PAUSE),
                false => sources.push(PollFd::new(&unspoken.stream, PollFlags::IN)),
            }
        }
        for setup in &self.setups {
            if !setup.stream.is_bare() {
                timeout = timeout.min(PARTIAL_PAUSE);
            }
            sources.push(PollFd::new(&setup.stream, PollFlags::IN));
        }
        // The timeout is less than a second, so it fits a timespec. A failed poll is repeated in
        // the next turn.
        let timeout = Timespec::try_from(timeout).ok();
        let _ = poll(&mut sources, timeout.as_ref());
    }

    fn pass_over(&self, stream: &Stream, reason: Reason) {
        let peer = describe(stream);
        self.shared.note(&Note::PassedOver { peer, reason });
    }
}

impl SetUp {
    fn new(
        id: Id,
        stream: Arc<Stream>,
        brought: Option<Incoming>,
        limits: Limits,
        now: Instant,
    ) -> Self {
        Self {
            id,
            stream,
            brought,
            receiver: MainReceiver::new(limits),
            start: Vec::new(),
            stated: Stated::default(),
            has_blocks: false,
            since: now,
            last: now,
        }
    }

    /// Reads the bytes that have come. Returns whether the set-up is complete.
    fn read(&mut self, now: Instant, bounds: &Bounds) -> Result<bool, SetUpEnd> {
        let mut piece = [0; SETUP_PIECE_BYTES];
        for _ in 0..SETUP_PIECES {
            let count = match self.stream.read_now(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(SetUpEnd::Io(error)),
            };
            if count == 0 {
                return Err(SetUpEnd::Ended);
            }
            self.last = now;
            let mut bytes = piece.get(..count).unwrap_or_default();
            self.start.extend_from_slice(bytes);
            if self.follow(&mut bytes)? {
                return Ok(true);
            }
        }
        self.check_time(now, bounds).map(|()| false)
    }

    /// The bytes that it keeps in memory.
    fn bytes(&self) -> usize {
        self.start.capacity()
    }

    fn follow(&mut self, bytes: &mut &[u8]) -> Result<bool, SetUpEnd> {
        // A stream that goes on after a break has no set-up. Its first bytes are enough.
        if self.brought.as_ref().is_some_and(|it| it.is_recovery) {
            return Ok(true);
        }
        loop {
            match self.receiver.push(bytes) {
                Ok(None) => return Ok(false),
                Ok(Some(MainEvent::Configuration(configuration))) => {
                    self.stated.uuid = configuration.uuid;
                }
                Ok(Some(MainEvent::Command(Command::PostcopyAdvise))) => {
                    self.stated.postcopy = true
                }
                Ok(Some(MainEvent::Command(Command::OpenReturnPath))) => {
                    self.stated.return_path = true
                }
                Ok(Some(MainEvent::RamBlocks(_))) => self.has_blocks = true,
                Ok(Some(MainEvent::Flush)) => self.stated.has_channels = true,
                // A stream without a RAM section has no channels.
                Ok(Some(MainEvent::RamEndOfSection | MainEvent::Eof)) => return Ok(true),
                Ok(Some(_)) => {}
                // It is no main stream, or a file's.
                Err(fault @ (Fault::Magic { .. } | Fault::Version { .. } | Fault::MappedRam))
                    if !self.has_blocks =>
                {
                    return Err(SetUpEnd::Wire(fault));
                }
                // A stream that cannot be followed is passed on nevertheless.
                Err(_) => return Ok(true),
            }
        }
    }

    fn check_time(&self, now: Instant, bounds: &Bounds) -> Result<(), SetUpEnd> {
        let within = bounds.setup_silence;
        if now.duration_since(self.last) >= within {
            return Err(SetUpEnd::Stalled { within });
        }
        let within = bounds.setup;
        if now.duration_since(self.since) >= within {
            return Err(SetUpEnd::Slow { within });
        }
        Ok(())
    }
}

/// Takes the hello out of the socket, which has all of it.
fn take_hello(stream: &Stream, bytes: &[u8; Hello::LEN]) -> Result<Hello, Reason> {
    let hello = Hello::parse(bytes).map_err(Why::Hello)?;
    let mut taken = [0; Hello::LEN];
    match stream.read_now(&mut taken) {
        Ok(Hello::LEN) => Ok(hello),
        Ok(_) => Err(Reason(Why::Io(io::ErrorKind::UnexpectedEof.into()))),
        Err(error) => Err(Reason(Why::Io(error))),
    }
}

fn peer_of(stream: &Stream) -> PeerId {
    match stream.socket() {
        Socket::Tcp(stream) => stream.peer_addr().map_or(PeerId::Unknown, |peer| {
            PeerId::Host(peer.ip().to_canonical())
        }),
        Socket::Unix(stream) => sockopt::socket_peercred(stream).map_or(PeerId::Unknown, |peer| {
            PeerId::Process(peer.pid.as_raw_nonzero().get())
        }),
    }
}

/// Describes the other end of a connection, for people.
pub fn describe(stream: &Stream) -> String {
    match stream.socket() {
        Socket::Tcp(stream) => stream.peer_addr().map_or_else(
            |_| "a host that has gone".to_owned(),
            |peer| peer.to_string(),
        ),
        Socket::Unix(stream) => sockopt::socket_peercred(stream).map_or_else(
            |_| "a process".to_owned(),
            |peer| format!("process {}", peer.pid.as_raw_nonzero()),
        ),
    }
}
