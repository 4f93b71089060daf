//! The thread that accepts connections, finds out what each is, and brings a migration's connections together.
//!
//! No connection holds up another: everything that waits for its first bytes waits in one poll, under a time limit of its
//! own, and takes neither a thread nor memory beyond a socket. Only the set-up part of a main channel is kept, within a
//! bound for all of them together.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use multifd_wire::main_stream::{Command, MainEvent, MainReceiver};
use multifd_wire::{Fault, Hello, Limits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv, sockopt};

use super::inbox::{Arrival, Inbox, IncomingChannel};
use super::kind::{Kind, kind};
use super::matching::{Decision, Id, Matching, PeerId, Stated};
use super::note::{Note, Reason, SetUpFault};
use super::{HELLO_TIMEOUT, Incoming, Order, Ready, SetupFault, Shared, Ticket};
use crate::{Listener, Stream};

/// Connections that have not said what they are, of which the oldest goes when there are more. Many more than a source has
/// channels: each of these is to be listened to while others flood in.
const MOST_UNSPOKEN: usize = 1024;

/// How soon to look again at a connection that has said too little: it is readable, so a poll would not wait. And at one
/// that was closed.
const PARTIAL_PAUSE: Duration = Duration::from_millis(20);

/// How long the poll waits at most. What has no wake-up of its own (a conflict that passes, a hope that ends) is looked at then.
const TICK: Duration = Duration::from_millis(250);

/// How long a main channel may say nothing within its set-up.
const SETUP_SILENCE: Duration = Duration::from_secs(10);

/// How long it may say nothing before channels do not wait for it any more, if they can be another's.
const SETUP_STALL: Duration = Duration::from_millis(250);

/// How long a set-up may take. Devices that send their state first (virtio-mem) send some megabytes, also over slow links.
const SETUP_TIMEOUT: Duration = Duration::from_secs(120);

/// The most that is kept of all main channels in their set-up. One takes some hundred bytes, or some megabytes with virtio-mem.
const SETUP_LIMIT_BYTES: usize = 256 << 20;

/// How much of a main channel is read at once.
const SETUP_PIECE_BYTES: usize = 4 << 10;

/// How long no connection is accepted after the system has refused to accept one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may be silent before it is taken for postcopy's own, where one is awaited.
const PREEMPT_SILENCE: Duration = Duration::from_secs(1);

/// Notes of strangers within one second; more are only counted.
const NOTES_A_SECOND: u64 = 8;

pub(super) struct Desk {
    listener: Listener,
    shared: Arc<Shared>,
    limits: Limits,
    unspoken: Vec<Unspoken>,
    setups: Vec<SetUp>,
    /// Migrations that begin, until the channels that are here were given to them.
    begun: Vec<Ready>,
    orphans: HashMap<Id, IncomingChannel>,
    inboxes: HashMap<Id, Inbox>,
    /// The main channels of migrations that have begun, for as long as these go on.
    mains: HashMap<Id, Weak<Stream>>,
    matching: Matching,
    next_id: Id,
    paused_until: Option<Instant>,
    refuses_new: bool,
    notes: Notes,
}

struct Unspoken {
    stream: Stream,
    peer: PeerId,
    since: Instant,
    partial: bool,
}

/// A main channel whose set-up part is being read.
struct SetUp {
    id: Id,
    stream: Stream,
    receiver: MainReceiver,
    start: Vec<u8>,
    stated: Stated,
    has_blocks: bool,
    since: Instant,
    last: Instant,
}

/// Limits what strangers can make us say.
#[derive(Default)]
struct Notes {
    second: Option<Instant>,
    said: u64,
}

impl Desk {
    pub(super) fn new(listener: Listener, shared: Arc<Shared>, limits: Limits) -> Self {
        Self {
            listener,
            shared,
            limits,
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
            notes: Notes::default(),
        }
    }

    /// Serves until the acceptor is dropped.
    pub(super) fn run(mut self) {
        while !self.orders() {
            self.accept();
            self.hear();
            if self.read_setups() {
                // A source's channels have said hello before its set-up ends, so they are here by now if they are of this
                // host, and begin with their main channel.
                self.accept();
                self.hear();
            }
            self.match_up();
            self.begin();
            self.wait();
        }
    }

    fn id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }

    /// Does what migrations under way ask for; whether to stop.
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
                Order::RefuseNew => self.refuses_new = true,
                Order::Expect { uuid, inbox, reply } => {
                    let id = self.id();
                    self.matching.engine_ready(id, uuid, Instant::now());
                    self.inboxes.insert(id, inbox);
                    // An engine that does not wait any more needs no number.
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
        loop {
            match self.listener.try_accept() {
                Ok(Some(stream)) => {
                    if self.unspoken.len() >= MOST_UNSPOKEN {
                        let oldest = self.unspoken.remove(0);
                        self.pass_over(&oldest.stream, Reason::Crowded);
                    }
                    let peer = peer_of(&stream);
                    let (since, partial) = (now, false);
                    self.unspoken.push(Unspoken {
                        stream,
                        peer,
                        since,
                        partial,
                    });
                }
                Ok(None) => return,
                Err(error) => {
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    self.note(Note::CannotAccept(error));
                    return;
                }
            }
        }
    }

    /// Looks at what each unspoken connection has said.
    fn hear(&mut self) {
        let now = Instant::now();
        let mut index = 0;
        while let Some(unspoken) = self.unspoken.get_mut(index) {
            let waited = now.duration_since(unspoken.since);
            let kind = kind(&unspoken.stream);
            unspoken.partial = matches!(kind, Ok(Kind::Partial));
            if matches!(kind, Ok(Kind::Silent | Kind::Partial)) && waited < HELLO_TIMEOUT {
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
    }

    /// Puts a connection that has spoken, or has had its time, where it belongs.
    fn assign(&mut self, unspoken: Unspoken, kind: io::Result<Kind>, now: Instant) {
        let Unspoken { stream, peer, .. } = unspoken;
        let reason = match kind {
            Ok(Kind::Main | Kind::Engine | Kind::Recovery) if self.refuses_new => {
                Reason::OtherKind(SetupFault::Ending)
            }
            Ok(Kind::Main) => {
                let id = self.id();
                self.matching.main_came(id, peer);
                self.setups.push(SetUp::new(id, stream, self.limits, now));
                return;
            }
            Ok(Kind::Engine) => return self.shared.put(Ready::Engine(stream)),
            Ok(Kind::Recovery) => {
                let id = self.id();
                self.matching.main_came(id, peer);
                let postcopy = true;
                let stated = Stated {
                    postcopy,
                    ..Stated::default()
                };
                self.matching.main_ready(id, stated, now);
                return self.ready(id, stream, Vec::new(), stated, true);
            }
            Ok(Kind::Channel(bytes)) => match take_hello(&stream, &bytes) {
                Ok(hello) => {
                    let id = self.id();
                    self.matching
                        .channel_came(id, hello.uuid, hello.channel, peer, now);
                    self.orphans.insert(id, IncomingChannel { hello, stream });
                    return;
                }
                Err(reason) => reason,
            },
            Ok(Kind::Unmarked(said)) => match self.matching.preempt_came(peer) {
                Some(id) => return self.give(id, Arrival::Preempt(stream)),
                None => Reason::Unmarked(said),
            },
            Ok(Kind::Tls) => Reason::Tls,
            Ok(Kind::Silent | Kind::Partial) => Reason::Silent {
                within: HELLO_TIMEOUT,
            },
            // A probe that has said nothing worth a word.
            Ok(Kind::Closed) => return,
            Err(error) => Reason::Io(error),
        };
        self.pass_over(&stream, reason);
    }

    /// Reads what main channels say in their set-up; whether that of one is over.
    fn read_setups(&mut self) -> bool {
        let now = Instant::now();
        let mut is_over = false;
        let mut index = 0;
        while let Some(setup) = self.setups.get_mut(index) {
            let before = setup.start.len();
            let outcome = setup.read(now);
            let added = setup.start.len() - before;
            let kept: usize = self.setups.iter().map(|setup| setup.start.len()).sum();
            let outcome = match outcome {
                Ok(false) if added > 0 && kept > SETUP_LIMIT_BYTES => Err(SetUpFault::TooMuch {
                    limit_bytes: SETUP_LIMIT_BYTES,
                }),
                other => other,
            };
            match outcome {
                Ok(false) => {
                    if let Some(setup) = self.setups.get(index) {
                        let stalls = now.duration_since(setup.last) >= SETUP_STALL;
                        self.matching.main_stalls(setup.id, stalls);
                    }
                    index += 1;
                }
                Ok(true) => {
                    is_over = true;
                    let setup = self.setups.remove(index);
                    self.matching.main_ready(setup.id, setup.stated, now);
                    self.ready(setup.id, setup.stream, setup.start, setup.stated, false);
                }
                Err(fault) => {
                    let setup = self.setups.remove(index);
                    self.matching.end(setup.id);
                    self.pass_over(&setup.stream, Reason::SetUp(fault));
                }
            }
        }
        is_over
    }

    /// A migration begins: whoever accepts it takes over its main channel.
    fn ready(
        &mut self,
        id: Id,
        main: Stream,
        main_start: Vec<u8>,
        stated: Stated,
        is_recovery: bool,
    ) {
        let inbox = Inbox::default();
        self.inboxes.insert(id, inbox.clone());
        let ticket = Ticket::new(id, Arc::clone(&self.shared));
        let peer = describe(&main);
        let main = Arc::new(main);
        self.mains.insert(id, Arc::downgrade(&main));
        self.begun.push(Ready::Qemu(Incoming {
            main,
            main_start,
            channels: inbox,
            has_channels: stated.has_channels,
            may_be_postcopy: stated.postcopy,
            peer,
            is_recovery,
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
        for id in self.matching.orphans().collect::<Vec<_>>() {
            if self
                .orphans
                .get(&id)
                .is_some_and(|channel| channel.stream.peer_has_closed())
            {
                self.matching.channel_closed(id, now);
            }
        }
        if !self.orphans.is_empty() {
            for (&id, main) in &self.mains {
                if main.upgrade().is_none_or(|main| main.peer_has_closed()) {
                    self.matching.main_closed(id);
                }
            }
        }
        let unspoken = self.unspoken.iter().map(|unspoken| unspoken.peer);
        self.matching.set_unspoken(unspoken);
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
                        self.pass_over(&stream, Reason::NoMain { uuid, channel });
                    }
                }
                Decision::Refuse { main, fault } => {
                    self.give(main, Arrival::Refused(fault));
                    if let Some(index) = self.setups.iter().position(|setup| setup.id == main) {
                        let setup = self.setups.remove(index);
                        self.pass_over(&setup.stream, Reason::Refused(fault));
                    }
                }
            }
        }
    }

    /// Tells of the migrations that begin. One whose channels are being decided about begins with these: its rounds would
    /// go on without them.
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
                    let reason = Reason::OtherKind(SetupFault::Ending);
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
            match unspoken.partial {
                true => timeout = timeout.min(PARTIAL_PAUSE),
                false => sources.push(PollFd::new(&unspoken.stream, PollFlags::IN)),
            }
        }
        for setup in &self.setups {
            sources.push(PollFd::new(&setup.stream, PollFlags::IN));
        }
        // Less than a second, so it fits a timespec. A poll that fails is made anew, after what there is to do.
        let timeout = Timespec::try_from(timeout).ok();
        let _ = poll(&mut sources, timeout.as_ref());
    }

    fn pass_over(&mut self, stream: &Stream, reason: Reason) {
        let peer = describe(stream);
        self.note(Note::PassedOver { peer, reason });
    }

    fn note(&mut self, note: Note) {
        let now = Instant::now();
        let is_over = |second: Instant| now.duration_since(second) >= Duration::from_secs(1);
        if self.notes.second.is_none_or(is_over) {
            let connections = self.notes.said.saturating_sub(NOTES_A_SECOND);
            if connections > 0 {
                self.shared.note(&Note::Further { connections });
            }
            self.notes = Notes {
                second: Some(now),
                said: 0,
            };
        }
        self.notes.said += 1;
        if self.notes.said <= NOTES_A_SECOND {
            self.shared.note(&note);
        }
    }
}

impl SetUp {
    fn new(id: Id, stream: Stream, limits: Limits, now: Instant) -> Self {
        Self {
            id,
            stream,
            receiver: MainReceiver::new(limits),
            start: Vec::new(),
            stated: Stated::default(),
            has_blocks: false,
            since: now,
            last: now,
        }
    }

    /// Reads what there is; whether the set-up part is over.
    fn read(&mut self, now: Instant) -> Result<bool, SetUpFault> {
        let mut piece = [0; SETUP_PIECE_BYTES];
        loop {
            let count = match recv(&self.stream, &mut piece, RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return self.check_time(now).map(|()| false),
                Err(error) => return Err(SetUpFault::Io(error.into())),
            };
            if count == 0 {
                return Err(SetUpFault::Ended);
            }
            self.last = now;
            let mut bytes = piece.get(..count).unwrap_or_default();
            self.start.extend_from_slice(bytes);
            if self.follow(&mut bytes)? {
                return Ok(true);
            }
            // The others are looked at too.
            if self.start.len().is_multiple_of(SETUP_PIECE_BYTES << 4) {
                return Ok(false);
            }
        }
    }

    fn follow(&mut self, bytes: &mut &[u8]) -> Result<bool, SetUpFault> {
        loop {
            match self.receiver.push(bytes) {
                Ok(None) => return Ok(false),
                Ok(Some(MainEvent::Configuration(configuration))) => {
                    self.stated.uuid = configuration.uuid;
                }
                Ok(Some(MainEvent::Command(Command::PostcopyAdvise))) => {
                    self.stated.postcopy = true
                }
                Ok(Some(MainEvent::RamBlocks(_))) => self.has_blocks = true,
                Ok(Some(MainEvent::Flush)) => self.stated.has_channels = true,
                // A stream without a RAM section has no channels either.
                Ok(Some(MainEvent::RamEndOfSection | MainEvent::Eof)) => return Ok(true),
                Ok(Some(_)) => {}
                // No main stream at all, or one that is a file.
                Err(fault @ (Fault::Version { .. } | Fault::MappedRam)) if !self.has_blocks => {
                    return Err(SetUpFault::Wire(fault));
                }
                // A stream that cannot be followed is passed on all the same.
                Err(_) => return Ok(true),
            }
        }
    }

    fn check_time(&self, now: Instant) -> Result<(), SetUpFault> {
        if now.duration_since(self.last) >= SETUP_SILENCE {
            return Err(SetUpFault::Stalled {
                within: SETUP_SILENCE,
            });
        }
        if now.duration_since(self.since) >= SETUP_TIMEOUT {
            return Err(SetUpFault::Slow {
                within: SETUP_TIMEOUT,
            });
        }
        Ok(())
    }
}

/// Takes the hello out of the socket, where it lies whole.
fn take_hello(stream: &Stream, bytes: &[u8; Hello::LEN]) -> Result<Hello, Reason> {
    let hello = Hello::parse(bytes).map_err(Reason::Hello)?;
    let mut taken = [0; Hello::LEN];
    match recv(stream, &mut taken, RecvFlags::DONTWAIT) {
        Ok((Hello::LEN, _)) => Ok(hello),
        Ok(_) => Err(Reason::Io(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Err(Reason::Io(error.into())),
    }
}

fn peer_of(stream: &Stream) -> PeerId {
    match stream {
        Stream::Tcp(stream) => stream.peer_addr().map_or(PeerId::Unknown, |peer| {
            PeerId::Host(peer.ip().to_canonical())
        }),
        Stream::Unix(stream) => sockopt::socket_peercred(stream).map_or(PeerId::Unknown, |peer| {
            PeerId::Process(peer.pid.as_raw_nonzero().get())
        }),
    }
}

/// The other end of a connection, for people.
pub(super) fn describe(stream: &Stream) -> String {
    match stream {
        Stream::Tcp(stream) => stream.peer_addr().map_or_else(
            |_| "a host that has gone".to_owned(),
            |peer| peer.to_string(),
        ),
        Stream::Unix(stream) => sockopt::socket_peercred(stream).map_or_else(
            |_| "a process".to_owned(),
            |peer| format!("process {}", peer.pid.as_raw_nonzero()),
        ),
    }
}
