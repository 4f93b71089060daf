//! One migration through the relay: its connections, its threads, its end.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use multifd_codec::auto::Auto;
use multifd_codec::delta::memory::{self, Share};
use multifd_codec::delta::{Kept, Sent};
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::{Arrival, Incoming, IncomingChannel};
use multifd_transport::{Cancel, Moment, Stream, report_end};
use multifd_wire::Method;
use multifd_wire::main_stream::{MainEvent, MainReceiver};

use super::back;
use super::counters::Counters;
use super::dead_link::{DeadLink, LINK_TIMEOUT};
use super::delay::Delay;
use super::ends::{as_known, can_wait, is_a_word, is_an_end, worse};
use super::gate::Gate;
use super::link::{Link, Links, Way};
use super::main_channel::{self, Forward};
use super::opening::Opening;
use super::outline::{Outline, Seen};
use super::pump::{self, Shared};
use super::silence::{SILENCE_TIMEOUT, Silence};
use super::taken::take;
use super::verify::Sums;
use super::waits::Clocks;
use super::watch::{MigrationNote, Noted, Watch};
use super::{MigrationReport, RelayConfig, Remark, Unusual, Update};
use crate::failure::{Cause, Channel, Failure, Leg, Other};
use crate::leg::{Caller, Introduction, Protocol, Terms};
use crate::trunk::{Name, StrandTerms};

/// After a cancel: time limit for a destination that may have the whole guest to say so. A service
/// has less time than that to end.
const WORD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the rest of a source's bytes is read, where the source waits for no word and the
/// migration is to end. They lie in a socket, and only a destination that takes nothing holds them
/// up.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// Poll interval for the source's end while nothing else happens.
const TICK: Duration = Duration::from_millis(100);

/// The same, while a failed migration is being closed.
const CLOSING_TICK: Duration = Duration::from_millis(20);

/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Time limit for a peer to close after everything was delivered and confirmed.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(30);

/// How much longer a source may take that is a relay: it waits as long for its own source, and says
/// how that has ended.
const FAR_CLOSING_TIME: Duration = Duration::from_secs(10);

/// How long the end of a source that was cut off may take to be passed on.
const END_TIME: Duration = Duration::from_secs(1);

/// Time limit for a destination to begin. It answers at once when it has all channels. Over a link
/// that loses a fifth of all packets, one answer in 15,000 takes 13 s. The source of a small guest
/// may be in its last round by then: its guest and its monitor stand still while it is held.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Time limit for another relay's reason after a connection to it has broken. The reason comes on
/// main.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// Time limit for main to explain a closed channel.
const HUNG_UP: Duration = Duration::from_millis(500);

/// The memory that must be left within this process's limits for one more connection: its thread's
/// stack, its buffers, and allocations of other threads at the same time. Kept pages leave more. An
/// allocator may have reserved most of a limited address space in advance.
const LEAST_FREE_BYTES: u64 = 8 << 20;

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
    // What went through had all its channels, whether or not the destination has said so.
    incoming.ticket.settle();
    if let Some(taken) = target.fewer_strands() {
        let wanted = config.trunk_channels;
        let remark = Remark(Unusual::FewerTrunkChannels { taken, wanted });
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

/// The bytes to keep for pages that may be sent again: all of the guest's memory, within the limit.
/// Without compression only speed counts, so none.
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
            let (mut settled, mut tells_postcopy) = (false, false);
            let mut over_since: Option<Moment> = None;
            // Since when the destination has said its word.
            let mut said_since: Option<Moment> = None;
            let mut hung_up_since: Option<Moment> = None;
            // Since when the end has been delayed for the destination's word.
            let mut word_since: Option<Delay> = None;
            let mut dead_link = DeadLink::new(LINK_TIMEOUT);
            // Since when the source, which waits for no word, can write no more.
            let mut halted: Option<Moment> = None;
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
                    .or_else(|| self.look_at_source(running.forward, &mut halted))
                    .or_else(|| self.look_at_word(running.forward, &mut said_since))
                    .or_else(|| self.look_at_channels(&mut hung_up_since))
                    .or_else(|| silence.look(self.outline, self.gate, self.counters))
                    .or_else(|| dead_link.look(self.outline, self.links));
                let waited = word_since.is_some();
                let fault = self
                    .postpone(fault, &mut word_since, halted)
                    .filter(|fault| self.matters(fault));
                if word_since.is_some() && !waited {
                    let seconds = WORD_TIMEOUT.as_secs();
                    observe(Update::Note(MigrationNote(Noted::WordAwaited { seconds })));
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
                        Some(failure) => self.close(&failure.explain()),
                        None => closing = None,
                    }
                }
                self.links.go_on_closing();
                self.clocks.look();
                if !tells_postcopy && self.outline.look(|seen| seen.postcopy) {
                    tells_postcopy = true;
                    observe(Update::Postcopy);
                }
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
                    let compresses = self.target.is_relay() || self.source_is_relay();
                    let notes = watch.look(&sample).into_iter();
                    notes
                        .filter(|note| !(compresses && *note == MigrationNote(Noted::NoMultifd)))
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
                    true if !confirmed || self.is_heard(running.forward) => {
                        let over = over_since.map_or(Duration::ZERO, |since| since.elapsed());
                        if over >= CLOSING_TIMEOUT {
                            is_closed = true;
                            // Its end is passed on as a clean one: another relay counts on that. A
                            // connection that cannot be shut down is closed already.
                            let _ = self.main.source.shutdown(Shutdown::Both);
                        }
                        if is_closed && (!running.forward || over >= CLOSING_TIMEOUT + END_TIME) {
                            self.gate.stop();
                            self.links.end();
                        }
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
                    Err(self.told(failure))
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
    fn look_at_source(&self, reads: bool, halted: &mut Option<Moment>) -> Option<Failure> {
        let confirmed = self.outline.look(|seen| seen.confirmed);
        let is_wish = self.cancel.is_cancelled() && !self.stays();
        if is_wish && !confirmed && !self.gate.is_stopped() {
            let is_read = self.halt(reads, halted);
            return is_read.then(|| Failure::here(TransportCause::Cancelled.into()));
        }
        // The order matters: the source closes at once after it has got the destination's word.
        let gone = self.main.source.peer_has_closed() && self.outline.is_taken_back();
        (gone && !self.gate.is_stopped())
            .then(|| main_channel::failed(Leg::Source, self.outline.taken_back()))
    }

    /// Whether a wish to end is passed over.
    fn stays(&self) -> bool {
        self.config.stays_in_postcopy && self.outline.look(|seen| seen.postcopy)
    }

    /// Looks for a source that cannot be told the destination's word: it may go on with its guest.
    /// `reads`: the thread that reads its main channel runs.
    fn look_at_word(&self, reads: bool, since: &mut Option<Moment>) -> Option<Failure> {
        if !self.outline.look(|seen| seen.confirmed) || self.is_heard(reads) {
            return None;
        }
        let patience = match self.source_is_relay() {
            true => CLOSING_TIMEOUT + FAR_CLOSING_TIME,
            false => CLOSING_TIMEOUT,
        };
        let is_late = since.get_or_insert_with(Moment::now).elapsed() >= patience;
        is_late.then(|| main_channel::failed(Leg::Destination, Cause::NotTold))
    }

    /// Whether the source has certainly heard the destination's word: its host has acknowledged it.
    /// A relay says by a clean end that its own source has heard it.
    fn is_heard(&self, reads: bool) -> bool {
        self.outline.look(|seen| seen.told) && !(reads && self.source_is_relay())
    }

    fn source_is_relay(&self) -> bool {
        self.main.source.bytes_below().is_some()
    }

    /// Before a wish ends a migration whose source waits for no word: takes the right to write from
    /// the source, and has the bytes read that it has written. If these are all of the guest, the
    /// source has given it up, and it is passed on. Returns whether they were read, or are waited
    /// for no longer. `reads`: the thread that reads them runs.
    fn halt(&self, reads: bool, halted: &mut Option<Moment>) -> bool {
        if halted.is_none() {
            let source = &self.main.source;
            // A source that has closed writes no more. One that is a relay is told the reason, and
            // decides by itself.
            let is_halted =
                reads && !source.peer_has_closed() && source.is_bare() && self.outline.halts();
            if !is_halted {
                return true;
            }
            *halted = Some(Moment::now());
            // A connection that cannot be shut down is closed already.
            let _ = source.shutdown(Shutdown::Both);
        }
        !reads || halted.is_some_and(|since| since.elapsed() >= REST_TIMEOUT)
    }

    /// The failure as it is reported. Where the source waits for no word and may have given its
    /// guest up, nobody knows here who has it.
    fn told(&self, mut failure: Failure) -> Failure {
        failure = self.outline.look(|seen| as_known(failure, seen));
        let is_unknown = self.outline.look(Seen::may_be_given_up);
        if is_unknown && !is_a_word(&failure) && !failure.cause.is_unknown() {
            let source = Box::new(failure.cause);
            failure.cause = Cause::Untold { source };
        }
        failure
    }

    /// Puts off an end without need once the destination may have everything that makes the guest.
    /// It starts the guest at any moment, and a source that was cut off goes on with it. A source
    /// that waits for no word may have given its guest up as soon as it has gone.
    fn postpone(
        &self,
        fault: Option<Failure>,
        since: &mut Option<Delay>,
        halted: Option<Moment>,
    ) -> Option<Failure> {
        let has_word = self.outline.look(|seen| seen.return_path);
        let source_is_done = !has_word && halted.is_none() && self.main.source.peer_has_closed();
        let bytes_out = self.counters.totals().bytes_out;
        if let Some(fault) = fault {
            // Behind what cannot be followed no mark is seen, and everything may have come.
            let shows = !self.gate.is_open() || self.outline.look(Seen::is_lost_before_postcopy);
            if !can_wait(&fault, has_word && shows) || self.outline.may_end(source_is_done) {
                return Some(fault);
            }
            since.get_or_insert_with(|| Delay::begin(bytes_out));
        }
        let delay = since.as_mut().filter(|_| !self.stays());
        let is_late =
            delay.is_some_and(|delay| delay.is_over(WORD_TIMEOUT, source_is_done, bytes_out));
        is_late.then(|| {
            let within = WORD_TIMEOUT;
            main_channel::failed(Leg::Destination, self.outline.no_word(within))
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
        let is_delivered = self.outline.look(|seen| seen.is_given_up() && seen.ended);
        let way = match is_delivered {
            true => Way::Delivered,
            false => Way::Broken,
        };
        self.links.close(way, words);
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

    /// Passes postcopy's own connection on, both ways. It may be a stranger's, so its failure does
    /// not fail the migration; a source that needs it takes its guest back.
    fn preempt(&self, source: Stream) {
        let given_up = || self.gate.is_stopped();
        let Ok(destination) = self.target.preempt(self.config.dial_timeout, &given_up) else {
            return;
        };
        self.outline.remark(Remark(Unusual::Preempt));
        let link = Arc::new(Link {
            channel: Channel::Unnamed,
            source: Arc::new(source),
            destination,
        });
        self.links.add(&link);
        thread::scope(|scope| {
            let forward = || pipe(&link.source, &link.destination);
            let begun = thread::Builder::new().spawn_scoped(scope, forward);
            let back = |_| pipe(&link.destination, &link.source);
            begun.map_or_else(|_| link.close(), back);
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
                Other::Memory { left, needed }.into(),
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
                main_channel::failed(Leg::Here, TransportCause::thread(error).into())
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
