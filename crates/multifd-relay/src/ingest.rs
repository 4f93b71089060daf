//! Taking a migration without being a QEMU: what receiving and recording have in common.
//!
//! All connections are read to their ends at once, one thread each. The main channel says where
//! rounds end, and its return path is answered as a destination would.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use multifd_codec::Settings;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::{Acceptor, Arrival, Incoming, IncomingChannel};
use multifd_transport::{Cancel, Moment, RoundFault, Rounds, Stream, hung_up, report_end};
use multifd_wire::main_stream::{Command, Configuration, MainEvent, MainReceiver};
use multifd_wire::{BlockName, Fault, Limits, PageSize};

use crate::connections::Connections;
use crate::coverage::Coverage;
use crate::failure::{Cause, Channel, Failure, Leg, Other, OtherCause, SetupFault};
use crate::image::{ImageError, ImageFault};
use crate::keeper::{Keeper, RunningTotals, TakeError, TakenChannel, Totals};
use crate::marks::Marks;
use crate::numbers::Numbers;
use crate::relay::SILENCE_TIMEOUT;
use crate::return_path::Answers;

/// The main channel carries little beside multifd, and a guest's whole memory without it.
const BUFFER_BYTES: usize = 64 << 10;

/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Poll interval of waiting threads.
const TICK: Duration = Duration::from_millis(20);

/// Time limit for channels at the end of a round, if the set-up announces some or if ids are
/// missing between others. They were opened before.
const CHANNELS_TIMEOUT: Duration = Duration::from_secs(20);

/// Time limit for pages at the end of the main channel while nothing comes. The source has sent
/// them before, and its guest stands still meanwhile.
const PAGES_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence of the main channel that shows its end, in a stream without the description of devices.
/// The source waits for its answer then.
const END_SILENCE: Duration = Duration::from_secs(1);

/// Settings for a source.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SourceSettings {
    /// Limits on its stream.
    pub limits: Limits,
    /// It has the capability `switchover-ack`, and a machine type whose name does not tell whether
    /// it may be sent a SWITCHOVER_ACK: one without a version, as those of some distributions, or
    /// before 8.1.
    pub switchover_ack: bool,
    /// How its pages are decoded, where they are.
    pub codec: Settings,
}

/// Time limit for a lack of descriptors that prevents accepting: the next connection may be a
/// channel of this migration, and its source waits for it.
const STARVED: Duration = Duration::from_secs(10);

/// A source that dies or gives up closes its connections one after another; this is how long that
/// may take.
const CLOSING_TIME: Duration = Duration::from_millis(200);

/// Poll interval for that.
const CLOSING_PAUSE: Duration = Duration::from_millis(5);

/// How soon to look again whether the source's host has our word.
const WORD_PAUSE: Duration = Duration::from_millis(2);

/// Time limit for a source to close, after the word that everything is kept.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(30);

/// A migration that was taken whole.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) channels: usize,
    pub(crate) totals: Totals,
    pub(crate) duration: Duration,
    /// The source waited for our word, and has heard that we have the guest. `None`: it did not
    /// wait, or it is not known whether it has heard.
    pub(crate) confirmed: Option<bool>,
    /// The source waited for our word, and it is not known whether it has heard.
    pub(crate) unheard: bool,
    /// Blocks that the source shares and does not send (`x-ignore-shared`).
    pub(crate) left_out: Vec<BlockName>,
}

/// An event of a migration.
enum Event {
    Arrival(Arrival),
    /// A channel has failed, and its thread goes on until its source closes it.
    Failed(Failure),
    /// A thread has ended.
    Ended(Result<(), Failure>),
}

/// Starts a thread that reports its end.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    tell: &Sender<Event>,
    close_all: impl Fn() -> bool + Send + 'scope,
    work: impl FnOnce() -> Result<(), Failure> + Send + 'scope,
) -> Result<(), Failure> {
    let tell = tell.clone();
    let ended = tell.clone();
    // A thread that panics ends too.
    let panicked = move || {
        close_all();
        let _ = ended.send(Event::Ended(Ok(())));
    };
    let thread = move || report_end(&tell, panicked, || Event::Ended(work()));
    let spawned = thread::Builder::new().spawn_scoped(scope, thread);
    spawned.map(drop).map_err(|error| Failure {
        channel: Channel::Main,
        leg: Leg::Here,
        block: None,
        cause: TransportCause::thread(error).into(),
    })
}

/// Waits for a migration at `acceptor` and hands it to `keeper`. `progress` is called about twice a
/// second meanwhile. `cancel` ends it before everything has come.
///
/// # Errors
///
/// The first failure of any connection. All are closed then, and a source that listens gets the
/// failure.
pub(crate) fn take(
    acceptor: &mut Acceptor,
    settings: SourceSettings,
    cancel: &Cancel,
    keeper: &impl Keeper,
    progress: &mut dyn FnMut(Totals),
) -> Result<Taken, Failure> {
    let Incoming {
        main,
        main_start,
        channels: inbox,
        has_channels,
        ticket: _ticket,
        ..
    } = loop {
        let incoming = acceptor
            .accept(cancel)
            .map_err(multifd_transport::Failure::widened)?;
        match incoming.is_recovery {
            true => acceptor.pass_over_recovery(&incoming),
            false => break incoming,
        }
    };
    let started = Instant::now();
    let rounds = Rounds::new(0);
    let tally = RunningTotals::default();
    let coverage = Coverage::default();
    let numbers = Numbers::default();
    let answers = Answers::new(settings.switchover_ack);
    let connections = Connections::default();
    let kept = AtomicBool::new(false);
    let main_stream = main;
    connections.add(&main_stream);
    let main = MainChannel {
        stream: &main_stream,
        start: &main_start,
        has_channels,
        keeper,
        rounds: &rounds,
        tally: &tally,
        coverage: &coverage,
        numbers: &numbers,
        answers: &answers,
        kept: &kept,
        heard: AtomicBool::new(false),
        in_doubt: AtomicBool::new(false),
        left_out: Mutex::default(),
    };
    let close_all = || {
        let is_settled = main.answers.refuse(main.stream);
        rounds.stop();
        connections.fail();
        is_settled
    };
    let (tell, events) = mpsc::channel();
    let arrivals = tell.clone();
    inbox.deliver_to(move |arrival| {
        // A migration that is over needs no more connections.
        let _ = arrivals.send(Event::Arrival(arrival));
    });
    let failure = thread::scope(|scope| {
        let (main, rounds, tally, coverage) = (&main, &rounds, &tally, &coverage);
        let close_all = &close_all;
        // Channels that have come already are there before the first mark is read.
        let mut early = Vec::new();
        while let Ok(event) = events.try_recv() {
            if let Event::Arrival(Arrival::Channel(channel)) = &event {
                rounds.join(usize::from(channel.hello.channel));
            }
            early.push(event);
        }
        let mut early = early.into_iter();
        let work = move || main.run(settings.limits);
        let mut failure = spawn(scope, &tell, close_all, work).err();
        let mut running = usize::from(failure.is_none());
        let mut told_progress = Instant::now();
        let mut kept_since: Option<Instant> = None;
        if failure.is_some() {
            close_all();
        }
        while running > 0 {
            let tick = match failure {
                Some(_) => TICK,
                None => PROGRESS_INTERVAL,
            };
            let next = early.next().map_or_else(|| events.recv_timeout(tick), Ok);
            let is_end = matches!(next, Ok(Event::Ended(_)));
            let fault = match next {
                Ok(Event::Ended(outcome)) => {
                    running = running.saturating_sub(1);
                    outcome.err()
                }
                Ok(Event::Arrival(Arrival::Channel(IncomingChannel { hello, stream }))) => {
                    let index = usize::from(hello.channel);
                    // Nothing of it has been counted so far.
                    rounds.join(index);
                    let stream = Arc::new(stream);
                    connections.add(&stream);
                    let tell_failure = tell.clone();
                    let work = move || {
                        let channel = TakenChannel {
                            index,
                            hello: &hello,
                            stream: &stream,
                            rounds,
                            tally,
                            coverage,
                            numbers: main.numbers,
                            answers: main.answers,
                        };
                        if let Err(failure) = take_channel(&channel, main) {
                            // Its receiver is gone only if that thread has panicked.
                            let _ = tell_failure.send(Event::Failed(failure));
                            stream.drain();
                        }
                        Ok(())
                    };
                    let spawned = spawn(scope, &tell, close_all, work);
                    running = running.saturating_add(usize::from(spawned.is_ok()));
                    spawned.err()
                }
                Ok(Event::Failed(failure)) => Some(failure),
                Ok(Event::Arrival(Arrival::Refused(fault))) => Some(Failure {
                    channel: Channel::Main,
                    leg: Leg::Source,
                    block: None,
                    cause: fault.into(),
                }),
                Ok(Event::Arrival(Arrival::Doubt(doubt))) => {
                    main.in_doubt.store(doubt, Ordering::Relaxed);
                    None
                }
                Ok(Event::Arrival(Arrival::Preempt(_))) | Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            connections.go_on_closing();
            let fault = fault.or_else(|| {
                let starved = acceptor.starved(STARVED)?;
                Some(Failure::here(TransportCause::Listener(starved).into()))
            });
            let fault = fault.or_else(|| {
                let is_cancelled = cancel.is_cancelled();
                is_cancelled.then(|| Failure::here(TransportCause::Cancelled.into()))
            });
            // Once everything has come, the source is told so, and only main's thread may say
            // otherwise. Either that or the failure is first.
            let fault = fault.filter(|_| failure.is_none()).filter(|_| {
                let has_arrived = main.answers.refuse(main.stream);
                is_end || !has_arrived
            });
            if let Some(fault) = fault {
                failure = Some(fault);
                close_all();
            }
            // Nothing is missing any more, so a source that does not close is not waited for
            // without end.
            let is_kept = kept.load(Ordering::Relaxed);
            if is_kept && kept_since.get_or_insert_with(Instant::now).elapsed() >= GOODBYE_TIMEOUT {
                connections.close();
            }
            if told_progress.elapsed() >= PROGRESS_INTERVAL {
                told_progress = Instant::now();
                progress(tally.totals());
                acceptor.pass_over_others();
            }
        }
        failure
    });
    inbox.deliver_to(drop);
    let heard = main.heard.load(Ordering::Relaxed);
    match failure {
        Some(failure) => Err(failure),
        None => Ok(Taken {
            channels: rounds.channels().len(),
            totals: tally.totals(),
            duration: started.elapsed(),
            confirmed: (answers.was_asked() && heard).then_some(true),
            unheard: answers.was_asked() && !heard,
            left_out: main
                .left_out
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
        }),
    }
}

/// One multifd channel, to its end.
fn take_channel<K: Keeper>(
    channel: &TakenChannel<'_>,
    main: &MainChannel<'_, K>,
) -> Result<(), Failure> {
    let kept = main.keeper.channel(channel);
    match kept.and_then(|()| Ok(channel.rounds.leave(channel.index)?)) {
        // Everything has arrived; how the source closes its connections does not matter.
        Err(TakeError {
            cause:
                Cause::Transport(TransportCause::Io(_) | TransportCause::Wire(Fault::Truncated { .. })),
            ..
        }) if main.answers.is_settled() => Ok(()),
        Err(broken) => Err(main.failure(Channel::Multifd(channel.hello.channel), broken)),
        Ok(()) => Ok(()),
    }
}

/// The main channel and its return path.
struct MainChannel<'a, K> {
    stream: &'a Stream,
    /// The bytes of it that have been read already.
    start: &'a [u8],
    /// Its set-up says that there are multifd channels.
    has_channels: bool,
    keeper: &'a K,
    rounds: &'a Rounds,
    tally: &'a RunningTotals,
    coverage: &'a Coverage,
    numbers: &'a Numbers,
    answers: &'a Answers,
    /// Everything is kept, and a source that asked has got the word.
    kept: &'a AtomicBool,
    /// The source's host has acknowledged that word, and nothing says that the source did not read
    /// it.
    heard: AtomicBool,
    /// Channels may be another migration's.
    in_doubt: AtomicBool,
    left_out: Mutex<Vec<BlockName>>,
}

impl<K: Keeper> MainChannel<'_, K> {
    fn run(&self, limits: Limits) -> Result<(), Failure> {
        self.follow(limits)
            .map_err(|broken| self.failure(Channel::Main, broken))
    }

    /// Reads to the end.
    fn follow(&self, limits: Limits) -> Result<(), TakeError> {
        let mut receiver = MainReceiver::new(limits);
        let mut outline = RamOutline::new(limits);
        let mut page = Page::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut bytes = self.start;
        let (mut is_set_up, mut goes_on) = (false, false);
        loop {
            self.keeper.main_bytes(bytes)?;
            self.tally.bytes_in(bytes.len() as u64);
            loop {
                if let Some((index, offset)) = page.place {
                    let mut contents = page.gather(&mut bytes, outline.page_size.bytes());
                    if contents.is_empty() {
                        break;
                    }
                    let _in_time = self.coverage.in_time();
                    self.keeper.main_page(index, offset, contents)?;
                    self.tally.pages(1, 0);
                    self.came(index, &outline, offset)?;
                    // The reader crosses the contents and says nothing to them.
                    receiver.push(&mut contents)?;
                    page.place = None;
                }
                let event = match receiver.push(&mut bytes) {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    // Everything is kept, and the source has got the word.
                    Err(_) if self.answers.is_settled() => break,
                    Err(fault) => return Err(fault.into()),
                };
                if matches!(event, MainEvent::Command(Command::PostcopyAdvise)) {
                    return Err(Cause::Postcopy.into());
                }
                let is_page = matches!(event, MainEvent::ZeroPage { .. });
                let in_time = is_page.then(|| self.coverage.in_time());
                self.keeper.main_event(&event)?;
                self.answers.react(&event, self.stream).map_err(gave_up)?;
                match event {
                    MainEvent::RamEndOfSection => is_set_up = true,
                    MainEvent::SectionPart { .. } | MainEvent::SectionEnd { .. } => goes_on = true,
                    MainEvent::ZeroPage { block, offset } => {
                        self.tally.pages(0, 1);
                        self.came(block, &outline, offset)?;
                        drop(in_time);
                    }
                    MainEvent::RamBlocks(ref blocks) => {
                        self.coverage.list(blocks);
                        self.rounds.open();
                    }
                    MainEvent::Page { block, offset } => page.place = Some((block, offset)),
                    MainEvent::End => self.settle(&outline)?,
                    _ => {}
                }
                if outline.ends_round(&event) {
                    self.wait_for_channels()?;
                    self.rounds.mark().map_err(TakeError::of_rounds)?;
                }
            }
            let may_end = receiver.finish().is_ok() && !self.answers.is_settled();
            if may_end && !self.stream.is_readable_within(END_SILENCE)? {
                // Only the end of the connection would tell more, and the source waits for an
                // answer first.
                match K::NEEDS_MEMORY_ONLY {
                    true => self.settle(&outline)?,
                    false => return Err(Cause::from(Other::NoEnd).into()),
                }
            }
            if is_set_up && !goes_on {
                self.wait_for_round()?;
            }
            let count = match self.stream.read_some(&mut buffer) {
                Ok(count) => count,
                Err(_) if self.answers.is_settled() => {
                    // It has closed with something unread, which may be our word.
                    self.heard.store(false, Ordering::Relaxed);
                    0
                }
                Err(error) => return Err(gave_up(error).into()),
            };
            if count == 0 {
                // A stream without the description of devices ends here.
                if may_end {
                    self.settle(&outline)?;
                }
                break;
            }
            bytes = buffer.get(..count).unwrap_or_default();
        }
        match self.answers.is_settled() {
            true => Ok(()),
            false => Err(Cause::Incomplete.into()),
        }
    }

    /// Behind the set-up: waits until main can be read, and as long as channels bring something.
    fn wait_for_round(&self) -> Result<(), TakeError> {
        let within = SILENCE_TIMEOUT;
        let arrived = || self.tally.totals().bytes_in;
        let mut last = (Moment::now(), arrived());
        while !self.stream.is_readable_within(TICK)? {
            let so_far = arrived();
            if so_far != last.1 {
                last = (Moment::now(), so_far);
            } else if last.0.elapsed() >= within {
                return Err(Cause::from(SetupFault::NothingFollows { within }).into());
            }
        }
        Ok(())
    }

    /// Notes that the page at `offset` of a block has come: the block at `index` in the list.
    fn came(&self, index: usize, outline: &RamOutline, offset: u64) -> Result<(), TakeError> {
        let round = self.rounds.marks();
        let noted = self
            .coverage
            .note_nth(index, outline.page_size, offset, round);
        noted.map_err(|fault| TakeError::from(fault).in_block(self.coverage.nth(index)))
    }

    /// At the end of a round: waits for the channels that the set-up says there are, and for those
    /// between others.
    fn wait_for_channels(&self) -> Result<(), Cause> {
        let deadline = Moment::now() + CHANNELS_TIMEOUT;
        loop {
            let channels = self.rounds.channels();
            let gap = channels
                .iter()
                .zip(0_u8..)
                .find(|(id, wanted)| **id != usize::from(*wanted));
            let missing = gap.map(|(_, wanted)| wanted);
            if missing.is_none() && (!channels.is_empty() || !self.has_channels) {
                return Ok(());
            }
            if self.rounds.is_stopped() {
                return Err(RoundFault::Stopped.into());
            }
            if Moment::now() >= deadline {
                let within = CHANNELS_TIMEOUT;
                return Err(SetupFault::ChannelsMissing { missing, within }.into());
            }
            thread::sleep(TICK);
        }
    }

    /// The main channel has ended: keeps everything once it has come, and sends the word to the
    /// source. Missing pages are on a channel that is late, or does not come.
    fn settle(&self, outline: &RamOutline) -> Result<(), TakeError> {
        if !outline.ram_ended {
            return Err(RoundFault::NoRam.into());
        }
        let arrived = || (self.rounds.channels().len(), self.tally.totals());
        let mut last = (Moment::now(), arrived());
        // A channel that has come late may have newer contents of pages, up to its last SYNC.
        let complete = || -> Result<(), TakeError> {
            self.coverage.check(outline.ignores_shared)?;
            self.numbers.check()?;
            match self.rounds.behind() {
                Some((index, fault)) => Err(TakeError::of_rounds((Some(index), fault))),
                None => Ok(()),
            }
        };
        while let Err(fault) = complete() {
            if self.rounds.is_stopped() {
                return Err(RoundFault::Stopped.into());
            }
            if let Some((index, fault)) = self.rounds.lost() {
                return Err(TakeError::of_rounds((Some(index), fault)));
            }
            if last.0.elapsed() >= PAGES_TIMEOUT || self.source_has_ended() {
                return Err(fault);
            }
            thread::sleep(TICK);
            let so_far = arrived();
            if so_far != last.1 {
                last = (Moment::now(), so_far);
            }
        }
        // Whatever ends the doubt ends this: the channel that raises it goes, or the migration
        // does.
        while self.in_doubt.load(Ordering::Relaxed) {
            if self.rounds.is_stopped() {
                return Err(RoundFault::Stopped.into());
            }
            thread::sleep(TICK);
        }
        self.rounds.finish().map_err(TakeError::of_rounds)?;
        let left_out = match outline.ignores_shared {
            true => self.coverage.untouched(),
            false => Vec::new(),
        };
        let wanted = self.answers.settle()?;
        let kept = self.keeper.keep(&left_out);
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner) = left_out;
        if wanted {
            let told = match self.stream.peer_has_closed() {
                true => Err(Cause::Incomplete),
                false => self
                    .answers
                    .shut(kept.is_ok(), self.stream)
                    .map_err(gave_up),
            };
            if told.is_err() && kept.is_ok() {
                self.keeper.withdraw();
                return Ok(told?);
            }
        }
        self.kept.store(kept.is_ok(), Ordering::Relaxed);
        if wanted && kept.is_ok() {
            self.heard.store(self.is_heard(), Ordering::Relaxed);
        }
        Ok(kept?)
    }

    /// Waits until the source's host has acknowledged our word. `false` if it does not: the source
    /// had closed, or all connections were closed meanwhile.
    fn is_heard(&self) -> bool {
        loop {
            match self.stream.is_acknowledged() {
                Ok(true) => return true,
                Ok(false) => thread::sleep(WORD_PAUSE),
                Err(_) => return false,
            }
        }
    }

    /// Whether a source that waits for our word has closed: nothing more comes then, and no word is
    /// due.
    fn source_has_ended(&self) -> bool {
        self.answers.was_asked() && self.stream.peer_has_closed()
    }

    /// A failure of `channel`, or of the one that `broken` names, unless it broke off because the
    /// source has given up the whole migration.
    fn failure(&self, channel: Channel, broken: TakeError) -> Failure {
        let TakeError {
            channel: other,
            block,
            cause,
        } = broken;
        let broken_off = matches!(
            cause,
            Cause::Transport(
                TransportCause::Wire(Fault::Truncated { .. })
                    | TransportCause::Io(_)
                    | TransportCause::Round(RoundFault::OpenRound | RoundFault::MissingSync { .. })
            )
        );
        // A file that cannot be written is no fault of a source's.
        let leg = match cause {
            Cause::Other(OtherCause(
                Other::Image(ImageError(ImageFault::File(_) | ImageFault::Folder { .. }))
                | Other::File(_),
            )) => Leg::Here,
            _ => Leg::Source,
        };
        if broken_off && !self.answers.is_settled() && self.source_is_gone() {
            return Failure {
                channel: Channel::Main,
                leg,
                block: None,
                cause: Cause::Incomplete,
            };
        }
        Failure {
            channel: other.map_or(channel, Channel::Multifd),
            leg,
            block,
            cause,
        }
    }

    /// Whether the source closes the main channel too, now that another one has ended.
    fn source_is_gone(&self) -> bool {
        let deadline = Instant::now() + CLOSING_TIME;
        while !self.stream.peer_has_closed() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(CLOSING_PAUSE);
        }
        true
    }
}

/// The cause of a broken main channel: a source that ends its migration closes it, whatever is
/// still under way.
fn gave_up(error: io::Error) -> Cause {
    match hung_up(&error) {
        true => Cause::Incomplete,
        false => error.into(),
    }
}

/// The state of the main channel, to find the ends of rounds and of RAM in it.
#[derive(Debug)]
struct RamOutline {
    page_size: PageSize,
    ram: Option<u32>,
    ram_ended: bool,
    /// Blocks which are shared between source and destination are listed and not sent.
    ignores_shared: bool,
    marks: Marks,
}

impl RamOutline {
    fn new(limits: Limits) -> Self {
        Self {
            page_size: limits.page_size.unwrap_or(PageSize::K4),
            ram: None,
            ram_ended: false,
            ignores_shared: false,
            marks: Marks::default(),
        }
    }

    /// Takes note of `event`; whether it ends a round.
    fn ends_round(&mut self, event: &MainEvent) -> bool {
        match event {
            MainEvent::Configuration(configuration) => self.configure(configuration),
            MainEvent::SectionStart(section) if section.name.as_bytes() == b"ram" => {
                self.ram = Some(section.id)
            }
            MainEvent::SectionEnd { id } if self.ram == Some(*id) => self.ram_ended = true,
            _ => {}
        }
        self.marks.ends_round(event)
    }

    fn configure(&mut self, configuration: &Configuration) {
        self.page_size = configuration.page_size.unwrap_or(self.page_size);
        let mut capabilities = configuration.capabilities.iter();
        self.ignores_shared =
            capabilities.any(|capability| capability.as_bytes() == b"x-ignore-shared");
    }
}

/// A page on the main channel whose contents are being read.
#[derive(Debug, Default)]
struct Page {
    /// The block's place in the list, and the page's in the block.
    place: Option<(usize, u64)>,
    contents: Vec<u8>,
}

impl Page {
    /// Takes contents from the front of `bytes`. Empty until all `len` bytes are there.
    fn gather(&mut self, bytes: &mut &[u8], len: usize) -> &[u8] {
        if self.contents.len() >= len {
            self.contents.clear();
        }
        let missing = len.saturating_sub(self.contents.len());
        let (taken, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        self.contents.extend_from_slice(taken);
        *bytes = rest;
        if taken.len() < missing {
            &[]
        } else {
            &self.contents
        }
    }
}
