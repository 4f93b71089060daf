//! Answers the callers of a trunk: each becomes part of a migration, or is refused.
//!
//! One thread listens to all callers at once. No caller delays another. Until its preface is
//! complete, a caller takes only a socket and some hundred bytes.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use multifd_codec::delta::Kept;
use multifd_codec::delta::memory::Share;
use multifd_transport::Stream;
use multifd_transport::failure::NoThread;
use multifd_transport::incoming::{
    Arrival, Door, HELLO_TIMEOUT, Inbox, Incoming, IncomingChannel, Note, Origin, Reason, Ticket,
    describe,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::carried::Carried;
use super::gathering::Gatherings;
use super::strands::Strands;
use super::{
    Encryption, LegAddress, PLAIN, Protocol, VERIFY, abilities, extension, has, readable, visit,
};
use crate::relay::RelayConfig;
#[cfg(feature = "tls")]
use crate::tls::{Handshake, PeerIdentity};
use crate::trunk::{
    Abilities, Accepted, Answer, Chosen, Connection, DeltaTerms, PREFACE_MAGIC, Preface,
    PrefaceReceiver, Refusal, RefusalCode, StrandTerms, Visit, choose,
};

/// The time limit for writing an answer. It fits into the empty buffer of a new socket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The most callers without a complete preface. Beyond it, the one that has been silent for the
/// longest is closed. A preface comes in one piece, so on a trunk without TLS only strangers wait
/// here. A TLS handshake waits for an answer or two, and at most [`HANDSHAKES_A_SECOND`] begin.
const MOST_CALLERS: usize = 1024;

/// The most callers whose handshake has not begun; each is only a socket. Beyond it, the oldest is
/// closed. 64 migrations of 257 connections may begin at once.
const MOST_WAITING: usize = 64 * 257;

/// The most handshakes that begin in a second. One takes 1 to 2 ms of a processor.
const HANDSHAKES_A_SECOND: usize = 300;

/// The most connections of one migration beside its main channel: a channel for each id, and one
/// for postcopy. They wait in its inbox until its set-up has been read.
const MOST_CONNECTIONS: usize = 257;

/// The longest poll. Time limits are checked after it.
const TICK: Duration = Duration::from_millis(250);

/// Answers the callers of one address.
#[derive(Debug)]
pub(crate) struct Greeter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    wake: OwnedFd,
    door: Door,
    leg: LegAddress,
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "a build without TLS")
    )]
    encryption: Encryption,
    abilities: Abilities,
    /// Only migrations that verify their pages are accepted.
    verify: bool,
    /// One migration may keep this many bytes of pages.
    delta_memory: u64,
}

#[derive(Default)]
struct State {
    /// Accepted callers whose handshake has not begun.
    new: VecDeque<Stream>,
    migrations: HashMap<[u8; 16], Migration>,
    next_ticket: u64,
    refuses_new: bool,
    stop: bool,
}

/// A migration under way.
struct Migration {
    ticket: u64,
    inbox: Inbox,
    /// The number of connections that have joined it.
    connections: usize,
    /// Those that wait for strands.
    gatherings: Gatherings<Welcomed>,
}

/// A connection that has joined a migration, and has its answer.
struct Welcomed {
    stream: Stream,
    preface: Preface,
    chosen: Chosen,
    kept: Option<Kept>,
    inbox: Inbox,
    peer: String,
}

/// A connection without a complete preface.
struct Caller {
    stage: Stage,
    since: Instant,
    /// When it last sent something.
    last: Instant,
}

/// The progress of a caller.
enum Stage {
    #[cfg(feature = "tls")]
    Handshake(Handshake),
    Preface(Greeted, PrefaceReceiver),
}

/// A connection on which the preface is read: unencrypted, or after its handshake.
struct Greeted {
    stream: Stream,
    #[cfg(feature = "tls")]
    peer: Option<PeerIdentity>,
}

/// The outcome for a caller.
enum Outcome {
    Waits(Caller),
    /// It does not speak the trunk's protocol.
    #[cfg(feature = "tls")]
    Other(Stream),
    Said(Greeted, Preface),
    Refused(Stream, Refusal),
    Gone(String, String),
}

impl Greeter {
    /// Takes connections from `door` that are not QEMU's own: encrypted ones if `leg` is encrypted,
    /// and trunks if it is a trunk. Others are refused with the reason.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(door: Door, leg: &LegAddress, config: &RelayConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            door: door.clone(),
            leg: leg.clone(),
            encryption: config.encryption.clone(),
            abilities: abilities(readable(&config.settings)),
            verify: config.verify,
            delta_memory: config.delta_memory,
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("greet".to_owned())
            .spawn(move || serve(&serving))
            .map_err(NoThread::io)?;
        let queue = Arc::clone(&shared);
        let others = match (leg.protocol, leg.tls) {
            (Protocol::Qemu, false) => None,
            (Protocol::Qemu, true) => Some(
                "it does not begin TLS, and this address is encrypted: give its QEMU tls-creds, or listen with tcp:",
            ),
            (Protocol::Trunk, _) => Some(
                "it does not speak the trunk's protocol, and this address is a trunk's: let a relay call it, or listen with tcp: or unix:",
            ),
        };
        door.claim(is_ours, others, move |stream| {
            let mut state = queue.lock();
            let crowded = (state.new.len() >= MOST_WAITING).then(|| state.new.pop_front());
            state.new.push_back(stream);
            drop(state);
            queue.wake();
            if let Some(oldest) = crowded.flatten() {
                queue.pass_over(&oldest, Reason::crowded().to_string());
            }
        });
        let thread = Some(thread);
        Ok(Self { shared, thread })
    }

    /// Begins no more migrations; those under way go on.
    pub(crate) fn refuse_new(&self) {
        self.shared.lock().refuses_new = true;
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.shared.door.unclaim();
        self.shared.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // After a panic there is nothing to clean up.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // The write fails only if the counter is full. The thread then wakes anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Every change is one call, so a thread that panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_over(&self, stream: &Stream, words: String) {
        self.note(describe(stream), words);
    }

    fn note(&self, peer: String, words: String) {
        let reason = Reason::other(words);
        self.door.note(&Note::PassedOver { peer, reason });
    }

    /// Makes a caller part of a migration, by its preface.
    fn welcome(self: &Arc<Self>, greeted: Greeted, preface: &Preface) {
        let refuse = |stream: &Stream, refusal: Refusal| {
            let words = format!("refused: {refusal}");
            answer(stream, &Answer::Refused(refusal));
            self.pass_over(stream, words);
        };
        #[cfg(feature = "tls")]
        if let Some(peer) = &greeted.peer
            && !self.encryption.allows(peer, &preface.name)
        {
            let words = format!("{peer} may not use the name {}", preface.name.as_str());
            let refusal = Refusal::new(RefusalCode::NAME_NOT_ALLOWED, &words);
            return refuse(&greeted.stream, refusal);
        }
        let stream = greeted.stream;
        let chosen = match choose(preface, &self.abilities) {
            Ok(chosen) => chosen,
            Err(refusal) => return refuse(&stream, refusal),
        };
        if has(Visit::ID, &preface.extensions) {
            let ends = self.lock().refuses_new;
            let shown = visit::shown(
                preface,
                chosen,
                &self.abilities.methods,
                self.verify,
                self.delta_memory,
                ends,
            );
            return match shown {
                Ok(accepted) => {
                    answer(&stream, &Answer::Accepted(accepted));
                    let peer = describe(&stream);
                    self.door.note(&Note::Visited { peer });
                }
                Err(refusal) => refuse(&stream, refusal),
            };
        }
        if let Connection::Strand { group, number } = preface.connection {
            let expected = self
                .lock()
                .expects_strand(&preface.migration, group, number);
            return match expected {
                Ok(()) => self.join(stream, chosen, &preface.migration, group, number),
                Err(refusal) => refuse(&stream, refusal),
            };
        }
        if self.verify && !has(VERIFY, &preface.extensions) {
            let words = "this relay takes migrations with --verify only";
            return refuse(&stream, Refusal::new(RefusalCode::EXTENSION, words));
        }
        let terms = DeltaTerms::among(&preface.extensions);
        let strands = StrandTerms::among(&preface.extensions);
        let (terms, strands) = match terms.and_then(|terms| Ok((terms, strands?))) {
            Ok(both) => both,
            Err(fault) => return refuse(&stream, Refusal::from(fault)),
        };
        // A channel joins the migration that its main channel has begun.
        let inbox = {
            let mut state = self.lock();
            let refuses_new = state.refuses_new;
            match (
                preface.connection,
                state.migrations.get_mut(&preface.migration),
            ) {
                (Connection::Main { .. }, Some(_)) => {
                    drop(state);
                    let words = "this migration is already under way here: do the routes lead back to this relay?";
                    return refuse(&stream, Refusal::new(RefusalCode::ITSELF, words));
                }
                (Connection::Main { .. }, None) if refuses_new => {
                    drop(state);
                    let refusal = Refusal::new(RefusalCode::ENDS, "");
                    return refuse(&stream, refusal);
                }
                (Connection::Main { .. }, None) => {
                    state.next_ticket = state.next_ticket.saturating_add(1);
                    let (ticket, inbox) = (state.next_ticket, Inbox::default());
                    let migration = Migration {
                        ticket,
                        inbox: inbox.clone(),
                        connections: 0,
                        gatherings: Gatherings::new(),
                    };
                    state.migrations.insert(preface.migration, migration);
                    inbox
                }
                (_, Some(migration)) if migration.connections >= MOST_CONNECTIONS => {
                    drop(state);
                    let words = format!("a migration has at most {MOST_CONNECTIONS} of these");
                    return refuse(&stream, Refusal::new(RefusalCode::BUSY, &words));
                }
                (_, Some(migration)) => {
                    migration.connections = migration.connections.saturating_add(1);
                    migration.inbox.clone()
                }
                (_, None) => {
                    drop(state);
                    return refuse(&stream, Refusal::new(RefusalCode::UNKNOWN_MIGRATION, ""));
                }
            }
        };
        let mut accepted = Accepted::from(chosen);
        for id in [VERIFY, PLAIN] {
            if has(id, &preface.extensions) {
                accepted.extensions.push(extension(id));
            }
        }
        let kept = terms.and_then(|terms| self.keep(terms));
        if let Some((terms, _)) = &kept {
            accepted.extensions.push(terms.extension());
        }
        let strands = strands.and_then(|asked| {
            let state = self.lock();
            let migration = state.migrations.get(&preface.migration);
            migration.and_then(|migration| migration.gatherings.grant(asked))
        });
        if let Some(strands) = strands {
            accepted.extensions.push(strands.extension());
        }
        let peer = describe(&stream);
        if !answer(&stream, &Answer::Accepted(accepted)) {
            return self.forget(preface);
        }
        let welcomed = Welcomed {
            stream,
            preface: preface.clone(),
            chosen,
            kept: kept.map(|(_, kept)| kept),
            inbox,
            peer,
        };
        match strands {
            None => self.bring_in(welcomed, Vec::new()),
            Some(granted) => {
                let mut state = self.lock();
                if let Some(migration) = state.migrations.get_mut(&preface.migration) {
                    let gatherings = &mut migration.gatherings;
                    gatherings.begin(granted, welcomed, Instant::now());
                }
            }
        }
    }

    /// Takes an expected strand. If it was the last one, its connection joins the migration.
    fn join(
        self: &Arc<Self>,
        stream: Stream,
        chosen: Chosen,
        migration: &[u8; 16],
        group: u16,
        number: u8,
    ) {
        if !answer(&stream, &Answer::Accepted(Accepted::from(chosen))) {
            return;
        }
        let whole = {
            let mut state = self.lock();
            let migration = state.migrations.get_mut(migration);
            migration.and_then(|migration| migration.gatherings.put(group, number, stream))
        };
        if let Some((first, strands)) = whole {
            self.bring_in(first, strands);
        }
    }

    /// Lets a connection join its migration, with its strands.
    fn bring_in(self: &Arc<Self>, welcomed: Welcomed, strands: Vec<Stream>) {
        let Welcomed {
            stream,
            preface,
            chosen,
            kept,
            inbox,
            peer,
        } = welcomed;
        let has_notes = has(VERIFY, &preface.extensions);
        let is_stream = !matches!(preface.connection, Connection::Channel(_));
        let stream = Strands::joined(stream, strands);
        let stream = match Carried::new(stream, &chosen, is_stream) {
            Ok(carried) => Stream::layered(carried.with_notes(has_notes)),
            // This host chooses only from what it supports.
            Err(_) => return self.forget(&preface),
        };
        match preface.connection {
            Connection::Main {
                has_channels,
                may_be_postcopy,
                is_recovery,
            } => {
                let ticket = self.ticket(&preface);
                let mut incoming = Incoming::new(Arc::new(stream), inbox, peer, ticket);
                incoming.has_channels = has_channels;
                incoming.may_be_postcopy = may_be_postcopy;
                incoming.is_recovery = is_recovery;
                let name = preface.name.as_str().to_owned();
                let mut origin = Origin::new(name, preface.migration);
                origin.has_plain_packets = has(PLAIN, &preface.extensions);
                incoming.origin = Some(origin);
                incoming.kept = kept.map(Arc::new);
                self.door.set_up(incoming);
            }
            Connection::Channel(hello) => {
                inbox.put(Arrival::Channel(IncomingChannel { hello, stream }));
            }
            Connection::Preempt => inbox.put(Arrival::Preempt(stream)),
            // It is part of another connection now.
            Connection::Strand { .. } => {}
        }
    }

    /// Closes connections whose strands did not come in time.
    fn let_go(&self, now: Instant) {
        let mut late = Vec::new();
        self.lock().migrations.retain(|_, migration| {
            let found = migration.gatherings.take_late(now);
            let is_main =
                |first: &Welcomed| matches!(first.preface.connection, Connection::Main { .. });
            let has_ended = found.iter().any(|late| is_main(&late.first));
            late.extend(found);
            !has_ended
        });
        for connection in late {
            let words = connection.words();
            self.note(connection.first.peer, words);
        }
    }

    /// Takes memory for the pages of a new migration, as much as there is.
    fn keep(&self, terms: DeltaTerms) -> Option<(DeltaTerms, Kept)> {
        let share = Share::take(terms.bytes.min(self.delta_memory));
        let bytes = share.bytes();
        (bytes > 0).then(|| (DeltaTerms { bytes }, Kept::new(share)))
    }

    /// The caller has gone before its answer.
    fn forget(&self, preface: &Preface) {
        if matches!(preface.connection, Connection::Main { .. }) {
            self.lock().migrations.remove(&preface.migration);
        }
    }

    fn ticket(self: &Arc<Self>, preface: &Preface) -> Ticket {
        let number = self
            .lock()
            .migrations
            .get(&preface.migration)
            .map_or(0, |migration| migration.ticket);
        let shared = Arc::clone(self);
        let end = move || {
            let mut state = shared.lock();
            let migrations = &mut state.migrations;
            migrations.retain(|_, migration| migration.ticket != number);
        };
        // A number says which migration a connection belongs to, so there is no doubt to settle.
        Ticket::new(|| {}, end)
    }
}

impl State {
    /// Whether a connection waits for this strand.
    fn expects_strand(&self, migration: &[u8; 16], group: u16, number: u8) -> Result<(), Refusal> {
        match self.migrations.get(migration) {
            Some(migration) => migration.gatherings.expects(group, number),
            None => Err(Refusal::new(RefusalCode::UNKNOWN_MIGRATION, "")),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Whether these first bytes are for a greeter: a trunk's, or TLS.
fn is_ours(said: &[u8; 4]) -> bool {
    *said == PREFACE_MAGIC || is_tls(said)
}

/// Whether these are the first bytes of a TLS connection (RFC 8446 section 5.1).
fn is_tls(said: &[u8]) -> bool {
    said.starts_with(&[0x16, 0x03])
}

/// Listens to all callers until the greeter is dropped.
fn serve(shared: &Arc<Shared>) {
    let mut callers: Vec<Caller> = Vec::new();
    let mut handshakes = VecDeque::new();
    let mut second = (Instant::now(), 0_usize);
    loop {
        let ready = wait(shared, &callers);
        let now = Instant::now();
        if now.duration_since(second.0) >= Duration::from_secs(1) {
            second = (now, 0);
        }
        let new: Vec<Stream> = {
            let mut state = shared.lock();
            if state.stop {
                return;
            }
            state.new.drain(..).collect()
        };
        shared.let_go(now);
        let mut begun = Vec::new();
        for stream in new {
            match begins_tls(&stream) {
                true => handshakes.push_back(stream),
                false => begun.push(stream),
            }
        }
        while handshakes.len() > MOST_WAITING {
            if let Some(oldest) = handshakes.pop_front() {
                shared.pass_over(&oldest, Reason::crowded().to_string());
            }
        }
        let room = HANDSHAKES_A_SECOND.saturating_sub(second.1);
        let count = handshakes.len().min(room);
        second.1 = second.1.saturating_add(count);
        begun.extend(handshakes.drain(..count));
        let mut heard = Vec::new();
        for (mut caller, is_ready) in std::mem::take(&mut callers).into_iter().zip(ready) {
            if is_ready {
                caller.last = now;
                heard.extend(shared.heed(caller.listen(&shared.leg)));
            } else {
                heard.push(caller);
            }
        }
        // A complete preface never waits behind silent callers.
        for stream in begun {
            match shared.begin(stream) {
                Ok(stage) => {
                    let (since, last) = (now, now);
                    let caller = Caller { stage, since, last };
                    heard.extend(shared.heed(caller.listen(&shared.leg)));
                }
                Err((stream, words)) => shared.pass_over(&stream, words.to_owned()),
            }
        }
        for caller in heard {
            if now.duration_since(caller.since) < HELLO_TIMEOUT {
                callers.push(caller);
            } else {
                let within = HELLO_TIMEOUT;
                let peer = caller.stage.describe();
                shared.note(peer, Reason::silent(within).to_string());
            }
        }
        let surplus = callers.len().saturating_sub(MOST_CALLERS);
        if surplus > 0 {
            callers.sort_by_key(|caller| caller.last);
            for caller in callers.drain(..surplus) {
                let peer = caller.stage.describe();
                shared.note(peer, Reason::crowded().to_string());
            }
        }
    }
}

/// Waits until a caller sends something. Returns which callers are ready.
fn wait(shared: &Shared, callers: &[Caller]) -> Vec<bool> {
    let mut sources = vec![PollFd::new(&shared.wake, PollFlags::IN)];
    let mut places = Vec::new();
    for caller in callers {
        places.push(sources.len());
        match &caller.stage {
            #[cfg(feature = "tls")]
            Stage::Handshake(handshake) => {
                let flags = match handshake.wants_write() {
                    true => PollFlags::OUT,
                    false => PollFlags::IN,
                };
                match handshake.socket() {
                    Some(socket) => sources.push(PollFd::from_borrowed_fd(socket, flags)),
                    // It has failed. The next read reports that.
                    None => sources.push(PollFd::new(&shared.wake, PollFlags::OUT)),
                }
            }
            Stage::Preface(greeted, _) => {
                sources.push(PollFd::new(&greeted.stream, PollFlags::IN));
            }
        }
    }
    let timeout = Timespec::try_from(TICK).ok();
    // A failed poll is repeated in the next turn.
    let _ = poll(&mut sources, timeout.as_ref());
    // The counter is only a signal, so its value does not matter.
    let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
    let is_ready = |place: usize| {
        sources
            .get(place)
            .is_some_and(|it| !it.revents().is_empty())
    };
    places.into_iter().map(is_ready).collect()
}

/// Whether a connection begins a TLS handshake.
fn begins_tls(stream: &Stream) -> bool {
    let mut said = [0; 4];
    matches!(stream.peek(&mut said), Ok(4)) && is_tls(&said)
}

impl Shared {
    /// Handles the outcome for a caller. Returns the caller if it has none yet.
    fn heed(self: &Arc<Self>, outcome: Outcome) -> Option<Caller> {
        match outcome {
            Outcome::Waits(caller) => return Some(caller),
            #[cfg(feature = "tls")]
            Outcome::Other(stream) => self.door.hear(stream),
            Outcome::Said(greeted, preface) => self.welcome(greeted, &preface),
            Outcome::Refused(stream, refusal) => {
                let words = refusal.to_string();
                answer(&stream, &Answer::Refused(refusal));
                self.pass_over(&stream, words);
            }
            Outcome::Gone(peer, words) => self.note(peer, words),
        }
        None
    }

    /// The first step of a new connection.
    fn begin(&self, stream: Stream) -> Result<Stage, (Stream, &'static str)> {
        match (self.leg.tls, begins_tls(&stream)) {
            (false, true) => Err((
                stream,
                "it begins TLS, and this address is in clear: listen with trunk: or tls: there",
            )),
            #[cfg(feature = "tls")]
            (true, true) => match self.encryption.server() {
                Some(server) => Ok(Stage::Handshake(server.begin(stream))),
                None => Err((stream, "this address has no certificates")),
            },
            // A trunk without TLS on an encrypted leg gets the reason.
            _ => Ok(Stage::Preface(
                Greeted::in_clear(stream),
                PrefaceReceiver::default(),
            )),
        }
    }
}

impl Greeted {
    fn in_clear(stream: Stream) -> Self {
        Self {
            stream,
            #[cfg(feature = "tls")]
            peer: None,
        }
    }

    /// Whether the connection is encrypted.
    fn is_encrypted(&self) -> bool {
        #[cfg(feature = "tls")]
        let is_encrypted = self.peer.is_some();
        #[cfg(not(feature = "tls"))]
        let is_encrypted = false;
        is_encrypted
    }
}

impl Stage {
    fn describe(&self) -> String {
        match self {
            #[cfg(feature = "tls")]
            Stage::Handshake(handshake) => handshake.stream().map(describe).unwrap_or_default(),
            Stage::Preface(greeted, _) => describe(&greeted.stream),
        }
    }
}

impl Caller {
    /// Makes progress, as far as possible without waiting.
    fn listen(self, leg: &LegAddress) -> Outcome {
        let (since, last) = (self.since, self.last);
        match self.stage {
            Stage::Preface(greeted, receiver) => greeted.listen(receiver, (since, last), leg),
            #[cfg(feature = "tls")]
            Stage::Handshake(mut handshake) => {
                let peer = handshake.stream().map(describe).unwrap_or_default();
                match handshake.go_on() {
                    Ok(None) => {
                        let stage = Stage::Handshake(handshake);
                        Outcome::Waits(Caller { stage, since, last })
                    }
                    Err(error) => Outcome::Gone(peer, error.to_string()),
                    Ok(Some(accepted)) if leg.protocol == Protocol::Qemu => {
                        Outcome::Other(accepted.stream)
                    }
                    Ok(Some(accepted)) => {
                        let greeted = Greeted {
                            stream: accepted.stream,
                            peer: Some(accepted.peer),
                        };
                        greeted.listen(PrefaceReceiver::default(), (since, last), leg)
                    }
                }
            }
        }
    }
}

impl Greeted {
    /// Reads the bytes of the preface that have come.
    fn listen(
        self,
        mut receiver: PrefaceReceiver,
        (since, last): (Instant, Instant),
        leg: &LegAddress,
    ) -> Outcome {
        let mut buffer = [0; 512];
        let said = loop {
            let most = receiver.wanted().min(buffer.len());
            let space = buffer.get_mut(..most).unwrap_or_default();
            let count = match self.stream.read_now(space) {
                Ok(0) => return self.gone(&io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let stage = Stage::Preface(self, receiver);
                    return Outcome::Waits(Caller { stage, since, last });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.gone(&error),
            };
            let mut said = buffer.get(..count).unwrap_or_default();
            match receiver.push(&mut said) {
                Ok(None) => {}
                Ok(Some(preface)) => break Ok(preface),
                Err(fault) => break Err(Refusal::from(fault)),
            }
        };
        let refused = |stream: Stream, words: &str| {
            Outcome::Refused(stream, Refusal::new(RefusalCode::OTHER, words))
        };
        match said {
            Err(refusal) => Outcome::Refused(self.stream, refusal),
            Ok(_) if leg.protocol == Protocol::Qemu => refused(
                self.stream,
                "this address is a QEMU's: listen with trunk:, trunk+tcp: or trunk+unix: there",
            ),
            Ok(_) if leg.tls && !self.is_encrypted() => refused(
                self.stream,
                "this trunk is encrypted: call it with trunk:HOST:PORT",
            ),
            Ok(preface) => Outcome::Said(self, preface),
        }
    }

    fn gone(&self, error: &io::Error) -> Outcome {
        Outcome::Gone(describe(&self.stream), error.to_string())
    }
}

/// Writes an answer. Returns whether it was written.
fn answer(stream: &Stream, answer: &Answer) -> bool {
    let Ok(bytes) = answer.encode() else {
        return false;
    };
    let is_written = stream.set_timeouts(Some(ANSWER_TIMEOUT)).is_ok()
        && stream.write_all_of_two(&bytes, &[]).is_ok();
    is_written && stream.set_timeouts(None).is_ok()
}
