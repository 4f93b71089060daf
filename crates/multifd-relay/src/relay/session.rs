//! One migration through the relay: its connections, its threads, its end.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use multifd_codec::auto::Auto;
use multifd_codec::delta::memory::{self, Share};
use multifd_codec::delta::{Kept, Sent};
use multifd_transport::dial::DialError;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::{Arrival, Incoming, IncomingChannel};
use multifd_transport::supervise::report_end;
use multifd_transport::{Cancel, Moment, Stream, circle};
use multifd_wire::Method;
use multifd_wire::main_stream::{MainEvent, MainReceiver};

use super::back;
use super::counters::Counters;
use super::ends::{can_wait, is_a_word, is_an_end, worse};
use super::gate::Gate;
use super::link::{Link, Links};
use super::main_channel::{self, Forward};
use super::outline::{Outline, Seen};
use super::pump::{self, Shared};
use super::reach::unreached;
use super::silence::{SILENCE_TIMEOUT, Silence};
use super::taken::take;
use super::verify::Sums;
use super::waits::Clocks;
use super::watch::{MigrationNote, Watch};
use super::{CHANNELS_TIMEOUT, MigrationReport, RelayConfig, Remark, Update};
use crate::failure::{Cause, Channel, Failure, Leg, SetupFault};
use crate::leg::{Caller, Introduction, Protocol, Terms};
use crate::trunk::{Name, StrandTerms};

/// How long the word of a destination is waited for that may have everything, where the migration
/// was to end: it starts its guest and says so, or fails. A service has less time than that to end.
const WORD_TIMEOUT: Duration = Duration::from_secs(10);

/// How often to check for the source's end while nothing else happens.
const TICK: Duration = Duration::from_millis(100);

/// The same, while a failed migration is being closed.
const CLOSING_TICK: Duration = Duration::from_millis(20);

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long a peer may take to close after everything was delivered and confirmed.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a destination may take to begin. It answers at once when it has all channels. Over a
/// link that loses a fifth of all packets, one answer in 15,000 takes 13 s. The source of a small
/// guest may be in its last round by then: its guest and its monitor stand still while it is held.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait for another relay's reason after a connection to it has broken. The reason
/// comes on main.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// How long to wait for main to explain a closed channel.
const HUNG_UP: Duration = Duration::from_millis(500);

/// The memory that must be left within this process's limits for one more connection: its thread's
/// stack, its buffers, and allocations of other threads at the same time. Kept pages leave more. An
/// allocator may have reserved most of a limited address space in advance.
const LEAST_FREE_BYTES: u64 = 8 << 20;

/// The most bytes to read from a main channel whose source has closed before the destination was
/// dialled.
const REMNANT_LIMIT_BYTES: usize = 64 << 20;

/// An event of a migration.
enum Event {
    Arrival(Arrival),
    /// A channel has failed. Its thread goes on until the source closes the channel.
    Failed(Failure),
    /// A thread has ended.
    Ended(Role, Result<(), Failure>),
}

/// The task of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Main, source to destination.
    Forward,
    /// Main, destination to source.
    Back,
    Channel,
    /// Postcopy's own connection.
    Preempt,
}

/// Passes one migration on.
pub(super) fn run(
    incoming: Incoming,
    config: &RelayConfig,
    cancel: &Cancel,
    observe: &mut dyn FnMut(Update),
) -> Result<MigrationReport, Failure> {
    let started = Instant::now();
    let mut introduction = introduction(&incoming, config);
    let mut share = Share::take(introduction.delta_bytes);
    introduction.delta_bytes = share.bytes();
    let _taken = match incoming.origin {
        Some(_) if config.connect.needs_name() => Some(take(&introduction, config)?),
        _ => None,
    };
    let mut opening = Opening {
        source: incoming.main,
        introduction,
        start: incoming.main_start,
        is_whole: false,
        early: Vec::new(),
        config,
        cancel,
    };
    opening.wait_for_channel(&incoming.channels, incoming.has_channels)?;
    let (target, main, terms) = opening.dial()?;
    share.shrink_to(terms.delta_bytes);
    let sent = (share.bytes() > 0).then(|| Arc::new(Sent::new(share)));
    let verifies = main.source.has_notes() || main.destination.has_notes();
    let sums = Sums::default();
    let auto = match config.auto {
        true => Auto::within(terms.method, &config.settings, config.processors),
        false => None,
    };
    let session = Session {
        config,
        target: &target,
        main: &Arc::new(main),
        links: &Links::default(),
        outline: &Outline::default(),
        gate: &Gate::default(),
        counters: &Counters::default(),
        clocks: &Clocks::default(),
        cancel,
        is_recovery: incoming.is_recovery,
        sent: sent.as_ref(),
        terms,
        auto: auto.as_ref(),
        kept: incoming.kept.as_ref(),
        plain_packets_come: incoming
            .origin
            .is_some_and(|origin| origin.has_plain_packets),
        sums: verifies.then_some(&sums),
    };
    session.links.add(session.main);
    let (tell, events) = mpsc::channel();
    for arrival in opening.early {
        // The receiver lives until the end of this function.
        let _ = tell.send(Event::Arrival(arrival));
    }
    let arrivals = tell.clone();
    incoming.channels.deliver_to(move |arrival| {
        // After its end a migration needs no more connections.
        let _ = arrivals.send(Event::Arrival(arrival));
    });
    let settle = || incoming.ticket.settle();
    let outcome = session.run(&opening.start, &tell, &events, &settle, observe);
    // Connections that are still on their way to this migration are closed with it.
    incoming.channels.deliver_to(drop);
    outcome?;
    if let Some(taken) = target.fewer_strands() {
        let wanted = config.trunk_channels;
        let remark = Remark::FewerTrunkChannels { taken, wanted };
        session.outline.remark(remark);
    }
    let (confirmed, remarks) = session.outline.look(|seen| {
        let confirmed = seen.confirmed.then_some(true);
        (confirmed, seen.remarks.clone())
    });
    Ok(MigrationReport {
        peer: incoming.peer,
        channels: session.gate.channels(),
        totals: session.counters.totals(),
        confirmed,
        remarks,
        decoded: session.counters.decoded(),
        encoded: session.counters.encoded(),
        auto: session.auto.map(|auto| auto.summary()),
        verified: session.sums.map(Sums::result),
        differences: session.sent.map(|sent| sent.counts()),
        waits: session.clocks.all(),
        duration: started.elapsed(),
    })
}

/// The introduction of a migration, for a destination that is a relay.
fn introduction(incoming: &Incoming, config: &RelayConfig) -> Introduction {
    let origin = incoming.origin.as_ref();
    let name = origin.and_then(|origin| Name::new(&origin.name).ok());
    Introduction {
        name: name.or_else(|| config.name.clone()),
        migration: origin.map(|origin| origin.migration),
        methods: methods(config),
        has_plain_packets: config.auto,
        has_channels: incoming.has_channels,
        may_be_postcopy: incoming.may_be_postcopy,
        is_recovery: incoming.is_recovery,
        delta_bytes: delta_bytes(incoming, config),
        verify: config.verify || incoming.main.has_notes(),
        strands: config.trunk_channels.clamp(1, StrandTerms::MAX_STRANDS),
    }
}

/// The methods that can be written, the best first: the wanted one, or with an automatic effort any
/// method that has efforts.
fn methods(config: &RelayConfig) -> Vec<Method> {
    let others = [Method::Zstd, Method::Zlib].into_iter().filter(|&method| {
        let has_efforts = Auto::new(method, &config.settings).is_some();
        config.auto && has_efforts && method != config.compression
    });
    std::iter::once(config.compression).chain(others).collect()
}

/// How many bytes to keep for pages that may be sent again: all of the guest's memory, within the
/// limit. Without compression only speed counts, so none.
fn delta_bytes(incoming: &Incoming, config: &RelayConfig) -> u64 {
    let is_trunk = config.connect.protocol == Protocol::Trunk;
    if !is_trunk || config.compression == Method::None {
        return 0;
    }
    let mut receiver = MainReceiver::new(config.limits);
    let mut bytes = incoming.main_start.as_slice();
    let guest = loop {
        match receiver.push(&mut bytes) {
            Ok(Some(MainEvent::RamBlocks(blocks))) => {
                let lengths = blocks.iter().map(|block| block.used_length);
                break lengths.fold(0, u64::saturating_add);
            }
            Ok(Some(_)) => {}
            // The guest's size is unknown, so it may have any size.
            Ok(None) | Err(_) => break u64::MAX,
        }
    };
    // A kept page takes a little more than its size.
    guest.saturating_add(guest / 32).min(config.delta_memory)
}

/// A migration whose destination has not been dialled.
struct Opening<'a> {
    source: Arc<Stream>,
    introduction: Introduction,
    start: Vec<u8>,
    /// The source has closed, and its bytes are to be passed on.
    is_whole: bool,
    /// The connections that have come.
    early: Vec<Arrival>,
    config: &'a RelayConfig,
    cancel: &'a Cancel,
}

impl Opening<'_> {
    /// Waits for the first channel if the set-up announces channels. Otherwise the destination
    /// might be dialled in vain, and a QEMU takes only one migration.
    fn wait_for_channel(
        &mut self,
        channels: &multifd_transport::incoming::Inbox,
        has_channels: bool,
    ) -> Result<(), Failure> {
        let deadline = Moment::now() + CHANNELS_TIMEOUT;
        let failed = |fault: SetupFault| Err(main_channel::failed(Leg::Source, fault.into()));
        if !has_channels {
            return Ok(());
        }
        loop {
            match channels.next_within(TICK) {
                Some(Arrival::Refused(fault)) => return failed(fault),
                Some(channel @ Arrival::Channel(_)) => {
                    self.early.push(channel);
                    return Ok(());
                }
                Some(other @ (Arrival::Preempt(_) | Arrival::Doubt(_))) => self.early.push(other),
                None => {}
            }
            self.check_cancel()?;
            self.check_source()?;
            if Moment::now() >= deadline {
                let (missing, within) = (None, CHANNELS_TIMEOUT);
                return failed(SetupFault::ChannelsMissing { missing, within });
            }
        }
    }

    fn check_cancel(&self) -> Result<(), Failure> {
        match self.cancel.is_cancelled() {
            true => Err(Failure::here(TransportCause::Cancelled.into())),
            false => Ok(()),
        }
    }

    /// Fails if the source has closed an incomplete stream. A source without a return path may have
    /// sent everything.
    fn check_source(&mut self) -> Result<(), Failure> {
        if self.is_whole || !self.source.peer_has_closed() {
            return Ok(());
        }
        let gone = || main_channel::failed(Leg::Source, Cause::Incomplete);
        while self.start.len() < REMNANT_LIMIT_BYTES {
            let mut piece = [0; 4096];
            match self.source.read_some(&mut piece) {
                Ok(0) => break,
                Ok(count) => self
                    .start
                    .extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(_) => return Err(gone()),
            }
        }
        let mut receiver = MainReceiver::new(self.config.limits);
        let mut bytes = self.start.as_slice();
        let mut facts = main_channel::Facts::default();
        loop {
            match receiver.push(&mut bytes) {
                Ok(Some(event)) => facts.note(&event),
                Ok(None) => break,
                // A stream that cannot be followed is passed on.
                Err(_) => {
                    self.is_whole = true;
                    return Ok(());
                }
            }
        }
        let has_ended = receiver.finish().is_ok() || facts.ram_ended;
        self.is_whole = has_ended && !facts.return_path;
        match self.is_whole {
            true => Ok(()),
            false => Err(gone()),
        }
    }

    /// Dials main first: a destination before QEMU 8.0 takes the first connection for main. Also
    /// returns the terms.
    fn dial(&mut self) -> Result<(Caller, Link, Terms), Failure> {
        self.check_source()?;
        let address = self
            .config
            .connect
            .of(self.introduction.name.as_ref())
            .map_err(|error| main_channel::failed(Leg::Source, error.into()))?;
        let target = Caller::resolve(address.clone(), self.config, &self.introduction)
            .map_err(|error| unreached(error, &address, Channel::Main))?;
        let (source, timeout) = (Arc::clone(&self.source), self.config.dial_timeout);
        // A call is given up only if the migration has failed. A destination takes each call for a
        // connection of its source, and a source that has closed may have sent everything.
        let failure = Cell::new(None);
        let opening = RefCell::new(self);
        let given_up = || {
            let mut opening = opening.borrow_mut();
            let fault = opening.check_cancel().and_then(|()| opening.check_source());
            let given_up = fault.is_err();
            failure.set(fault.err());
            given_up
        };
        match (target.main(timeout, &given_up), failure.take()) {
            (Ok((destination, terms)), _) => {
                // Nothing was passed on, so the source has its guest.
                circle::look_behind(&destination, target.socket_address(), timeout, &given_up)
                    .map_err(|circle| Failure::here(circle.into()))?;
                let channel = Channel::Main;
                let link = Link {
                    channel,
                    source,
                    destination,
                };
                Ok((target, link, terms))
            }
            (Err(DialError::GivenUp), Some(failure)) => Err(failure),
            (Err(error), _) => Err(unreached(error, target.address(), Channel::Main)),
        }
    }
}

/// A migration under way.
struct Session<'a> {
    config: &'a RelayConfig,
    target: &'a Caller,
    main: &'a Arc<Link>,
    links: &'a Links,
    outline: &'a Outline,
    gate: &'a Gate,
    counters: &'a Counters,
    clocks: &'a Clocks,
    cancel: &'a Cancel,
    is_recovery: bool,
    /// The sums of all carried pages, if relays verify them.
    sums: Option<&'a Sums>,
    /// The pages that differences to the destination are made from. `kept` has those from the
    /// source.
    sent: Option<&'a Arc<Sent>>,
    terms: Terms,
    auto: Option<&'a Arc<Auto>>,
    kept: Option<&'a Arc<Kept>>,
    /// The source's channels may have packets of the method `none` among others.
    plain_packets_come: bool,
}

/// The threads that are running.
#[derive(Default)]
struct Running {
    forward: bool,
    back: bool,
    channels: usize,
    preempt: usize,
}

impl Running {
    fn count(&mut self, role: Role, more: bool) {
        match role {
            Role::Forward => self.forward = more,
            Role::Back => self.back = more,
            Role::Channel if more => self.channels += 1,
            Role::Channel => self.channels = self.channels.saturating_sub(1),
            Role::Preempt if more => self.preempt += 1,
            Role::Preempt => self.preempt = self.preempt.saturating_sub(1),
        }
    }

    fn any(&self) -> bool {
        self.forward || self.back || self.channels > 0 || self.preempt > 0
    }
}

impl<'env> Session<'env> {
    fn run(
        &'env self,
        start: &[u8],
        tell: &Sender<Event>,
        events: &mpsc::Receiver<Event>,
        settle: &dyn Fn(),
        observe: &mut dyn FnMut(Update),
    ) -> Result<(), Failure> {
        thread::scope(|scope| {
            let mut running = Running::default();
            // Channels that have come already are added before the first mark is read.
            let mut early = Vec::new();
            while let Ok(event) = events.try_recv() {
                if let Event::Arrival(Arrival::Channel(channel)) = &event {
                    self.gate.channel_came(channel.hello.channel);
                }
                early.push(event);
            }
            let mut early = early.into_iter();
            let clock = self.clocks.add(self.main);
            let mut failure = self
                .spawn(scope, tell, Role::Back, &mut running, || {
                    back::run(self.main, self.outline, self.gate, self.target.is_relay())
                })
                .and_then(|()| {
                    let is_recovery = self.is_recovery;
                    let work = move || {
                        let forward = Forward {
                            link: self.main,
                            limits: self.config.limits,
                            begin_timeout: BEGIN_TIMEOUT.max(self.config.dial_timeout),
                            outline: self.outline,
                            gate: self.gate,
                            counters: self.counters,
                            clock: &clock,
                            sums: self.sums,
                        };
                        let outcome = forward.run(start, is_recovery);
                        clock.stop();
                        outcome
                    };
                    self.spawn(scope, tell, Role::Forward, &mut running, work)
                })
                .err();
            if let Some(failure) = &failure {
                self.close(&failure.explain());
            }
            let mut watch = Watch::new();
            let mut silence = Silence::new(SILENCE_TIMEOUT.max(self.config.dial_timeout));
            let (mut told, mut changes_told) = (Instant::now(), 0);
            let mut settled = false;
            let mut over_since: Option<Moment> = None;
            let mut hung_up_since: Option<Moment> = None;
            // Since when the end has been delayed for the destination's word.
            let mut word_since: Option<Moment> = None;
            // When to close the failed migration.
            let mut closing: Option<Instant> = None;
            // After this relay has closed everything, a broken connection is no failure.
            let mut is_closed = false;
            while running.any() {
                let tick = match failure {
                    Some(_) => CLOSING_TICK,
                    None => TICK,
                };
                let next = early.next().map_or_else(|| events.recv_timeout(tick), Ok);
                let fault = match next {
                    Ok(Event::Ended(role, outcome)) => {
                        running.count(role, false);
                        outcome.err()
                    }
                    Ok(Event::Failed(failure)) => Some(failure),
                    Ok(Event::Arrival(arrival)) if failure.is_none() => {
                        self.arrived(scope, tell, arrival, &mut running).err()
                    }
                    Ok(Event::Arrival(_)) | Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                let fault = fault
                    .or_else(|| self.look_at_source())
                    .or_else(|| self.look_at_channels(&mut hung_up_since))
                    .or_else(|| silence.look(self.outline, self.gate, self.counters));
                let waited = word_since.is_some();
                let fault = self
                    .postpone(fault, &mut word_since)
                    .filter(|fault| self.matters(fault));
                if word_since.is_some() && !waited {
                    let seconds = WORD_TIMEOUT.as_secs();
                    observe(Update::Note(MigrationNote::WordAwaited { seconds }));
                }
                if let (Some(fault), false) = (fault, is_closed) {
                    // If the source has ended, the destination's relay has no reason to give.
                    let is_there = self.target.is_relay() && fault.leg == Leg::Destination;
                    let patience = match is_there && is_an_end(&fault.cause) {
                        true => REASON_TIMEOUT,
                        false => Duration::ZERO,
                    };
                    let closes_at = Instant::now() + patience;
                    closing = closing.map(|at| at.min(closes_at)).or(Some(closes_at));
                    failure = Some(worse(failure, fault));
                }
                if closing.is_some_and(|at| at <= Instant::now()) {
                    // Meanwhile the source was told that its guest has arrived.
                    let has_passed = !self.outline.fails();
                    failure = failure.filter(|failure| !has_passed || is_a_word(failure));
                    match &failure {
                        // All of the guest is on its way, and the system delivers it.
                        Some(failure)
                            if self.outline.look(|seen| seen.is_given_up() && seen.ended) =>
                        {
                            self.main.source.explain(&failure.explain());
                            self.gate.stop();
                            self.links.end();
                        }
                        Some(failure) => self.close(&failure.explain()),
                        None => closing = None,
                    }
                }
                self.links.go_on_closing();
                self.clocks.look();
                if !settled && self.gate.is_loading() {
                    settled = true;
                    settle();
                }
                if told.elapsed() >= PROGRESS_INTERVAL {
                    told = Instant::now();
                    self.progress(observe);
                    if let Some(auto) = self.auto {
                        let changes = auto.changes(changes_told);
                        changes_told += changes.len();
                        changes
                            .into_iter()
                            .for_each(|change| observe(Update::Effort(change)));
                    }
                    let sample = watch.sample(self.counters, self.gate, self.outline, self.clocks);
                    // A trunk compresses the main channel too.
                    let comes_so = self.main.source.bytes_below().is_some();
                    let compresses = self.target.is_relay() || comes_so;
                    let notes = watch.look(&sample).into_iter();
                    notes
                        .filter(|note| !(compresses && *note == MigrationNote::NoMultifd))
                        .for_each(|note| observe(Update::Note(note)));
                }
                // Everything was delivered and confirmed, or the guest has arrived and nobody needs
                // the rest. So the wait for a peer that does not close has a limit.
                let is_over = failure.is_none() && !running.forward && running.channels == 0;
                let confirmed = self.outline.look(|seen| seen.confirmed);
                let needs_rest = !self.outline.guest_has_arrived();
                match is_over || confirmed {
                    true if over_since.is_none() && (!needs_rest || self.links.are_delivered()) => {
                        over_since = Some(Moment::now());
                    }
                    true if over_since.is_some_and(|since| since.elapsed() >= CLOSING_TIMEOUT) => {
                        is_closed = true;
                        self.gate.stop();
                        self.links.end();
                    }
                    _ => {}
                }
            }
            self.progress(observe);
            match failure {
                Some(mut failure) => {
                    if let Cause::Far(far) = &mut failure.cause {
                        far.was_complete = self.outline.look(Seen::may_be_whole);
                    }
                    Err(failure)
                }
                None => {
                    self.links.end();
                    Ok(())
                }
            }
        })
    }

    fn progress(&self, observe: &mut dyn FnMut(Update)) {
        observe(Update::Waits(self.clocks.all()));
        observe(Update::Progress(self.counters.totals()));
    }

    /// A source that closes while it waits for the destination's word has taken its guest back.
    fn look_at_source(&self) -> Option<Failure> {
        let confirmed = self.outline.look(|seen| seen.confirmed);
        if self.cancel.is_cancelled() && !confirmed && !self.gate.is_stopped() {
            return Some(Failure::here(TransportCause::Cancelled.into()));
        }
        // The order matters: the source closes at once after it has got the destination's word.
        let gone = self.main.source.peer_has_closed() && self.outline.is_taken_back();
        (gone && !self.gate.is_stopped())
            .then(|| main_channel::failed(Leg::Source, self.outline.taken_back()))
    }

    /// Puts off an end without need once the destination may have everything that makes the guest.
    /// It starts the guest at any moment, and a source that was cut off goes on with it. A source
    /// that waits for no word may have given its guest up as soon as it has gone.
    fn postpone(&self, fault: Option<Failure>, since: &mut Option<Moment>) -> Option<Failure> {
        if let Some(fault) = fault {
            let has_word = self.outline.look(|seen| seen.return_path);
            let has_marks = !self.gate.is_open();
            let source_is_done = !has_word && self.main.source.peer_has_closed();
            if !can_wait(&fault, has_word && has_marks) || self.outline.may_end(source_is_done) {
                return Some(fault);
            }
            since.get_or_insert_with(Moment::now);
        }
        let is_late = since.is_some_and(|since| since.elapsed() >= WORD_TIMEOUT);
        is_late.then(|| {
            let within = WORD_TIMEOUT;
            main_channel::failed(Leg::Destination, Cause::NoWord { within })
        })
    }

    /// Whether a fault counts. After the destination has said that it has the guest, the ends of
    /// connections do not matter.
    fn matters(&self, fault: &Failure) -> bool {
        is_a_word(fault) || !(self.outline.guest_has_arrived() || self.is_behind_end(fault))
    }

    /// Whether a channel's source has broken its connection behind the end, and waits for no word.
    /// A mark behind the last round has shown that the channel's pages were passed on. The source
    /// may have given its guest up, so the destination gets all of it.
    fn is_behind_end(&self, fault: &Failure) -> bool {
        fault.leg == Leg::Source
            && is_an_end(&fault.cause)
            && !self.gate.is_open()
            && self
                .outline
                .look(|seen| seen.is_given_up() && seen.has_flush && !seen.device_state)
    }

    /// Looks for a channel that the destination has lost before it has begun. Nothing is written to
    /// channels then, so the loss shows only here, and the destination would wait for that channel
    /// without end. If the destination fails as a whole, its main channel shows that first.
    fn look_at_channels(&self, since: &mut Option<Moment>) -> Option<Failure> {
        let waits = !self.gate.has_begun() && !self.gate.is_stopped();
        let Some(channel) = waits.then(|| self.links.hung_up()).flatten() else {
            *since = None;
            return None;
        };
        let since = *since.get_or_insert_with(Moment::now);
        (since.elapsed() >= HUNG_UP).then(|| Failure {
            channel,
            leg: Leg::Destination,
            block: None,
            cause: io::Error::from(io::ErrorKind::ConnectionReset).into(),
        })
    }

    /// Closes a failed migration. `words` give the reason to another relay.
    fn close(&self, words: &str) {
        self.outline.fails();
        self.gate.stop();
        self.links.close(words);
    }

    fn arrived<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        tell: &Sender<Event>,
        arrival: Arrival,
        running: &mut Running,
    ) -> Result<(), Failure> {
        match arrival {
            Arrival::Channel(channel) => {
                self.gate.channel_came(channel.hello.channel);
                let shared = Shared {
                    config: self.config,
                    target: self.target,
                    links: self.links,
                    main: self.main,
                    outline: self.outline,
                    gate: self.gate,
                    counters: self.counters,
                    clocks: self.clocks,
                    sums: self.sums,
                    sent: self.sent,
                    terms: self.terms,
                    auto: self.auto,
                    plain_packets_come: self.plain_packets_come,
                    kept: self.kept,
                };
                let tell_failure = tell.clone();
                let IncomingChannel { hello, stream } = channel;
                let source = Arc::new(stream);
                self.links.add_source(&source);
                self.spawn(scope, tell, Role::Channel, running, move || {
                    if let Err(failure) = pump::run(hello, &source, shared) {
                        // The receiver is gone only after a panic of the session.
                        let _ = tell_failure.send(Event::Failed(failure));
                        source.drain();
                    } else if shared.gate.is_stopped() {
                        source.drain();
                    }
                    Ok(())
                })
            }
            Arrival::Preempt(source) => self.spawn(scope, tell, Role::Preempt, running, || {
                self.preempt(source);
                Ok(())
            }),
            Arrival::Doubt(doubt) => {
                self.gate.doubt(doubt);
                Ok(())
            }
            Arrival::Refused(fault) => Err(main_channel::failed(Leg::Source, fault.into())),
        }
    }

    /// Passes postcopy's own connection on, both ways. It cannot be recognised with certainty, so
    /// it may be a stranger's. So its failure does not fail the migration, and a source that needs
    /// it takes its guest back.
    fn preempt(&self, source: Stream) {
        let given_up = || self.gate.is_stopped();
        let Ok(destination) = self.target.preempt(self.config.dial_timeout, &given_up) else {
            return;
        };
        self.outline.remark(Remark::Preempt);
        let source = Arc::new(source);
        let link = Arc::new(Link {
            channel: Channel::Unnamed,
            source,
            destination,
        });
        self.links.add(&link);
        thread::scope(|scope| {
            scope.spawn(|| pipe(&link.source, &link.destination));
            pipe(&link.destination, &link.source);
        });
    }

    fn spawn<'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        tell: &Sender<Event>,
        role: Role,
        running: &mut Running,
        work: impl FnOnce() -> Result<(), Failure> + Send + 'scope,
    ) -> Result<(), Failure> {
        // Without memory, every migration of this process would end.
        if let Some(left) = memory::left().filter(|left| *left < LEAST_FREE_BYTES) {
            let needed = LEAST_FREE_BYTES;
            return Err(main_channel::failed(
                Leg::Here,
                Cause::Memory { left, needed },
            ));
        }
        let tell = tell.clone();
        let ended = tell.clone();
        // A panic ends a thread too.
        let close = move || {
            self.close("a defect of this program");
            let _ = ended.send(Event::Ended(role, Ok(())));
        };
        let thread = move || report_end(&tell, close, || Event::Ended(role, work()));
        thread::Builder::new()
            .spawn_scoped(scope, thread)
            .map_err(|error| {
                main_channel::failed(Leg::Here, TransportCause::Thread(error).into())
            })?;
        running.count(role, true);
        Ok(())
    }
}

/// Passes on bytes unchanged, and their end.
fn pipe(from: &Stream, to: &Stream) {
    // An error only ends this pipe. The main channel shows the outcome of the migration.
    let _ = io::copy(&mut &*from, &mut &*to);
    let _ = to.shutdown(Shutdown::Write);
}
