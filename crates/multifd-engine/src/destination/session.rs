//! One migration at the destination, from the source's hello to the start of the guest.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::decoder;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::incoming::{Acceptor, Arrival, HELLO_TIMEOUT};
use multifd_transport::{
    Cancel, Inlet, Item, RoundFault, Rounds, Stream, block_of, hung_up, report_end,
};
use multifd_wire::{Hello, Limits, Method, Packet, RamPacket};

use super::placing::Places;
use super::{DestinationSettings, Offer, Received};
use crate::control::{self, Accepted, Acked, Capabilities, Completion, Message};
use crate::control_link::{ControlLink, is_broken_off, out_of_turn};
use crate::digest;
use crate::engine_fault::{EngineError, EngineFault};
use crate::failure::{Cause, Channel, Failure, Leg, SetupFault};
use crate::memory::{GuestMemory, MemoryBlock};
use crate::statistics::{Arrived, Tally};
use crate::vm::{VmError, VmHandle};

/// Poll interval for cancellation, and the shortest time between two reports of progress.
const TICK: Duration = Duration::from_millis(50);

/// Time limit for sending the word that the guest runs here to the source.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// The capabilities of this end.
const OURS: Capabilities = Capabilities::DIGEST.union(Capabilities::DELTA);

/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run<M: GuestMemory>(
    acceptor: &mut Acceptor,
    memory: impl FnOnce(&Offer) -> Result<M, VmError>,
    vm: &mut dyn VmHandle,
    settings: &DestinationSettings,
    cancel: &Cancel,
    observe: &mut dyn FnMut(Arrived),
) -> Result<Received<M>, Failure> {
    let main = acceptor
        .accept_engine(cancel)
        .map_err(|cause| on_main(cause.into()))?;
    let started = Instant::now();
    main.notice_stalled_peer()
        .map_err(|error| on_main(error.into()))?;
    let mut link = ControlLink::new(&main, Limits::default()).map_err(on_main)?;
    let session = Session {
        settings,
        cancel,
        started,
    };
    let outcome = session.receive(acceptor, memory, vm, &mut link, observe);
    outcome.map_err(|failure| link.explained(failure))
}

struct Session<'a> {
    settings: &'a DestinationSettings,
    cancel: &'a Cancel,
    started: Instant,
}

/// The agreed parameters.
#[derive(Clone, Copy)]
struct Agreement {
    hello: control::Hello,
    method: Method,
    accepted: Accepted,
}

impl Session<'_> {
    fn receive<M: GuestMemory>(
        &self,
        acceptor: &mut Acceptor,
        memory: impl FnOnce(&Offer) -> Result<M, VmError>,
        vm: &mut dyn VmHandle,
        link: &mut ControlLink<'_>,
        observe: &mut dyn FnMut(Arrived),
    ) -> Result<Received<M>, Failure> {
        let agreement = self.agree(link).map_err(on_main)?;
        let channels = accept_channels(
            acceptor,
            agreement.hello.session,
            usize::from(agreement.accepted.channels),
            &|| match link.peer_has_closed() {
                true => Err(EngineFault::Closed.into()),
                false => self.check(),
            },
        )?;
        for (_, stream) in &channels {
            stream
                .notice_stalled_peer()
                .map_err(|error| on_main(error.into()))?;
        }
        let offer = self.offer(agreement, link).map_err(on_main)?;
        let memory = memory(&offer).map_err(|source| {
            let what = "have memory for the guest";
            on_main(EngineFault::Vm { what, source }.into())
        })?;
        let blocks = memory.blocks();
        let places = Places::new(&blocks, &offer.blocks, offer.page_size)?;
        let transfer = Transfer {
            session: self,
            places: &places,
            blocks: &blocks,
            method: offer.method,
            has_differences: (agreement.accepted.capabilities).contains(Capabilities::DELTA),
            limits: Limits::default()
                .with_block_bytes(longest(&blocks))
                .with_page_size(offer.page_size),
            rounds: Rounds::new(channels.len()),
            tally: Tally::default(),
            messages: AtomicU64::new(0),
            at_work: AtomicBool::new(false),
            fate: OnceLock::new(),
        };
        let (device_state_bytes, digest) = transfer.run(&channels, link, vm, observe)?;
        let arrived = transfer.tally.so_far();
        drop(blocks);
        Ok(Received {
            memory,
            offer,
            channels: channels.len(),
            arrived,
            device_state_bytes,
            duration: self.started.elapsed(),
            digest,
        })
    }

    fn check(&self) -> Result<(), Cause> {
        match self.cancel.is_cancelled() {
            true => Err(TransportCause::Cancelled.into()),
            false => Ok(()),
        }
    }

    /// Same as [`check`](Self::check), during a peer's turn that began at `since`. The peer should
    /// speak at once.
    fn check_opening(&self, since: Instant) -> Result<(), Cause> {
        if since.elapsed() > HELLO_TIMEOUT {
            return Err(SetupFault::Silent {
                within: HELLO_TIMEOUT,
            }
            .into());
        }
        self.check()
    }

    /// Agrees with the source on what to do, or refuses it.
    fn agree(&self, link: &mut ControlLink<'_>) -> Result<Agreement, Cause> {
        let watch = || self.check_opening(self.started);
        // Said in any case: a source that speaks other versions is to know which.
        link.send_preamble(&watch)?;
        link.preamble(&watch)?;
        let hello = match link.receive(&watch)? {
            Message::Hello(hello) => hello,
            other => return Err(out_of_turn(&other, "a hello")),
        };
        let method = hello.method().map_err(Cause::from).and_then(|method| {
            decoder(method, &self.settings.codec)?;
            Ok(method)
        });
        let method = match method {
            Ok(method) => method,
            Err(cause) => {
                let failure = on_main(cause);
                let reason = control::reason(&failure.explain());
                link.send(&Message::Refused(reason), &watch)?;
                return Err(failure.cause);
            }
        };
        let accepted = Accepted {
            capabilities: hello.capabilities.intersection(OURS),
            channels: hello
                .channels
                .min(self.settings.channels.clamp(1, control::MAX_CHANNELS)),
        };
        link.send(&Message::Accepted(accepted), &watch)?;
        Ok(Agreement {
            hello,
            method,
            accepted,
        })
    }

    fn offer(&self, agreement: Agreement, link: &mut ControlLink<'_>) -> Result<Offer, Cause> {
        // The time that channels took to come is not the block list's.
        let since = Instant::now();
        let blocks = match link.receive(&|| self.check_opening(since))? {
            Message::Blocks(blocks) => blocks,
            other => return Err(out_of_turn(&other, "a list of RAM blocks")),
        };
        let page_size = agreement.hello.page_size;
        let page_bytes = page_size.bytes();
        for block in &blocks {
            let len_bytes = block.len_bytes;
            if !len_bytes.is_multiple_of(page_bytes as u64) {
                return Err(EngineFault::NotWholePages {
                    len_bytes,
                    page_bytes,
                }
                .into());
            }
        }
        Ok(Offer {
            vm: agreement.hello.vm,
            page_size,
            method: agreement.method,
            blocks,
        })
    }
}

/// The part of a session in which everything is connected.
struct Transfer<'a> {
    session: &'a Session<'a>,
    places: &'a Places<'a>,
    blocks: &'a [MemoryBlock<'a>],
    method: Method,
    /// Pages may come as differences to those that are in their places.
    has_differences: bool,
    limits: Limits,
    rounds: Rounds,
    tally: Tally,
    /// Messages that came on the main connection.
    messages: AtomicU64,
    /// It is this end's turn: the source waits.
    at_work: AtomicBool,
    fate: OnceLock<Fate>,
}

/// The decision about the guest, taken once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The source has given it away: it is started here, and what happens to connections from then
    /// on does not matter.
    Starts,
    /// It stays where it is.
    Stays,
}

/// The length of the devices' state, and the digest.
type Done = (usize, Option<[u8; 32]>);

/// The figures at the last look with something new, and its time.
struct Idle {
    heard: (u64, u64),
    since: Instant,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            heard: (0, 0),
            since: Instant::now(),
        }
    }
}

/// How a thread has ended.
enum Ending {
    Main(Result<Done, Failure>),
    Channel(Result<(), Failure>),
    /// None has: this end cannot go on.
    Own(Failure),
}

impl Transfer<'_> {
    /// Serves all connections to the end.
    fn run(
        &self,
        channels: &[(Hello, Stream)],
        link: &mut ControlLink<'_>,
        vm: &mut dyn VmHandle,
        observe: &mut dyn FnMut(Arrived),
    ) -> Result<Done, Failure> {
        self.rounds.open();
        let close_all = || {
            self.rounds.stop();
            for (_, stream) in channels {
                // A connection that cannot be shut down is closed already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        };
        thread::scope(|scope| {
            let (ended, endings) = mpsc::channel();
            let close_all = &close_all;
            let tell = ended.clone();
            let main = move || {
                report_end(&tell, close_all, || Ending::Main(self.serve_main(link, vm)));
            };
            let mut started = thread::Builder::new().spawn_scoped(scope, main).map(drop);
            for (index, (hello, stream)) in channels.iter().enumerate() {
                let tell = ended.clone();
                let channel = move || {
                    report_end(&tell, close_all, || {
                        Ending::Channel(self.serve_channel(index, hello, stream))
                    });
                };
                if started.is_ok() {
                    let thread = thread::Builder::new().spawn_scoped(scope, channel);
                    started = thread.map(drop);
                }
            }
            if let Err(source) = started {
                // The guest cannot have been started: that takes a SYNC from every channel.
                let failure = on_main(EngineFault::Thread { source }.into());
                // The receiver below still exists, so this cannot fail.
                let _ = ended.send(Ending::Own(failure));
            }
            drop(ended);
            self.wait(&endings, observe, close_all)
        })
    }

    /// Waits for all threads. The first failure closes everything; what fails after it does so
    /// because of it, unless it is the source's own reason.
    fn wait(
        &self,
        endings: &mpsc::Receiver<Ending>,
        observe: &mut dyn FnMut(Arrived),
        close_all: impl Fn(),
    ) -> Result<Done, Failure> {
        let mut done = (0, None);
        let mut first = None;
        let mut told = Instant::now();
        let mut idle = Idle::default();
        loop {
            let (failure, is_mains) = match endings.recv_timeout(TICK) {
                Ok(Ending::Main(Ok(outcome))) => {
                    done = outcome;
                    // The guest runs. Channels may wait for a source that is gone.
                    close_all();
                    (None, true)
                }
                Ok(Ending::Main(Err(failure))) => (Some(failure), true),
                Ok(Ending::Channel(outcome)) => (outcome.err(), false),
                Ok(Ending::Own(failure)) => (Some(failure), false),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let check = self
                        .session
                        .check()
                        .and_then(|()| self.check_idle(&mut idle));
                    (check.err().map(on_main), false)
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return first.map_or(Ok(done), Err),
            };
            let failure = failure
                .filter(|_| is_mains || *self.fate.get_or_init(|| Fate::Stays) == Fate::Stays);
            match (failure, &first) {
                (Some(failure), None) => {
                    first = Some(failure);
                    close_all();
                }
                // A source that gives up closes its channels, and then says so.
                (Some(failure), Some(before))
                    if is_broken_off(&before.cause)
                        && matches!(
                            failure.cause,
                            Cause::Engine(EngineError(EngineFault::Peer { .. }))
                        ) =>
                {
                    first = Some(failure);
                }
                _ => {}
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                observe(self.tally.so_far());
            }
        }
    }

    /// Whether the source still sends anything, be it slowly.
    fn check_idle(&self, idle: &mut Idle) -> Result<(), Cause> {
        let heard = (
            self.tally.so_far().bytes,
            self.messages.load(Ordering::Relaxed),
        );
        if heard != idle.heard || self.at_work.load(Ordering::Relaxed) {
            *idle = Idle {
                heard,
                since: Instant::now(),
            };
        }
        let within = self.session.settings.idle_timeout;
        match idle.since.elapsed() > within {
            true => Err(EngineFault::Idle { within }.into()),
            false => Ok(()),
        }
    }

    fn serve_main(
        &self,
        link: &mut ControlLink<'_>,
        vm: &mut dyn VmHandle,
    ) -> Result<Done, Failure> {
        let (completion, state) = self.follow_rounds(link)?;
        self.start(link, vm, &completion, &state).map_err(on_main)?;
        Ok((state.len(), completion.digest))
    }

    /// Follows the rounds to their end. Gives what the source says of the whole, and its devices'
    /// state.
    fn follow_rounds(&self, link: &mut ControlLink<'_>) -> Result<(Completion, Vec<u8>), Failure> {
        let watch = || self.watch();
        let acked = link.send(&Message::Ack(Acked::Blocks), &watch);
        acked.map_err(on_main)?;
        let mut round = 0_u64;
        let mut state = Vec::new();
        let completion = loop {
            let message = link.receive(&watch).map_err(on_main)?;
            self.messages.fetch_add(1, Ordering::Relaxed);
            match message {
                Message::RoundMark(mark) if mark == round && state.is_empty() => {
                    self.rounds.mark().map_err(of_rounds)?;
                    let acked = link.send(&Message::Ack(Acked::Round(round)), &watch);
                    acked.map_err(on_main)?;
                    round = round.saturating_add(1);
                }
                Message::DeviceState(piece) => {
                    let allowed = self.session.settings.device_state_bytes;
                    if piece.len() > allowed.saturating_sub(state.len()) {
                        let fault = EngineFault::DeviceStateTooLong { allowed };
                        return Err(on_main(fault.into()));
                    }
                    state.extend_from_slice(&piece);
                }
                Message::Completion(completion) => break completion,
                other => {
                    let fault = out_of_turn(&other, "the end of the round, or of all");
                    return Err(on_main(fault));
                }
            }
        };
        self.rounds.finish().map_err(of_rounds)?;
        Ok((completion, state))
    }

    /// Ends a wait on the main connection when another one has failed.
    fn watch(&self) -> Result<(), Cause> {
        match self.rounds.is_stopped() {
            true => Err(RoundFault::Stopped.into()),
            false => Ok(()),
        }
    }

    /// Loads and starts the guest, once everything has come and the source has given it away.
    fn start(
        &self,
        link: &mut ControlLink<'_>,
        vm: &mut dyn VmHandle,
        completion: &Completion,
        state: &[u8],
    ) -> Result<(), Cause> {
        let watch = || self.watch();
        self.at_work.store(true, Ordering::Relaxed);
        self.check_complete(completion, state)?;
        let loaded = vm.load_device_state(state);
        loaded.map_err(|source| vm_fault("load the devices' state", source))?;
        self.at_work.store(false, Ordering::Relaxed);
        link.send(&Message::Ack(Acked::Completion), &watch)?;
        match link.receive(&watch)? {
            Message::Start => {}
            other => return Err(out_of_turn(&other, "the start")),
        }
        if *self.fate.get_or_init(|| Fate::Starts) == Fate::Stays {
            return Err(RoundFault::Stopped.into());
        }
        let resumed = vm.resume();
        resumed.map_err(|source| vm_fault("be started", source))?;
        // The guest runs, whether the source gets to know it or not. A source that takes nothing is
        // not waited for.
        let deadline = Instant::now() + LAST_WORD_TIMEOUT;
        let watch = || match Instant::now() < deadline {
            true => Ok(()),
            false => Err(EngineFault::Closed.into()),
        };
        let _ = link.send(&Message::Ack(Acked::Start), &watch);
        Ok(())
    }

    fn check_complete(&self, completion: &Completion, state: &[u8]) -> Result<(), Cause> {
        let found = state.len() as u64;
        if completion.device_state_bytes != found {
            return Err(EngineFault::DeviceStateLength {
                found,
                expected: completion.device_state_bytes,
            }
            .into());
        }
        // A source that has not sent everything is not believed that it has.
        self.places.check_all_came()?;
        if let Some(theirs) = completion.digest {
            let ours = digest::of_memory(self.blocks, self.places.page_size());
            if ours.map_err(EngineFault::from)? != theirs {
                return Err(EngineFault::Digest.into());
            }
        }
        Ok(())
    }

    /// Puts the pages of one channel in their places, to its end.
    fn serve_channel(&self, index: usize, hello: &Hello, stream: &Stream) -> Result<(), Failure> {
        let failed = |cause: Cause| Failure {
            channel: Channel::Multifd(hello.channel),
            ..on_main(cause)
        };
        let inlet = Inlet::new(stream, hello, self.limits, self.session.settings.codec);
        let mut inlet = inlet.map_err(|cause| failed(cause.into()))?;
        if self.has_differences {
            inlet = inlet.with_differences_in_place(self.method);
        }
        let mut counted = 0;
        loop {
            let item = match inlet.next_item() {
                // How the source closes its connections does not matter once it is done with them.
                Err(TransportCause::Io(error)) if hung_up(&error) && self.rounds.is_finished() => {
                    Item::End
                }
                other => other.map_err(|cause| failed(cause.into()))?,
            };
            match item {
                Item::Packet(Packet::Ram(packet)) => {
                    let placed = self.place(index, &packet, &mut inlet);
                    placed.map_err(|cause| Failure {
                        block: block_of(&packet),
                        ..failed(cause)
                    })?;
                    if packet.is_sync() {
                        let held = self.rounds.hold(index);
                        held.map_err(|fault| failed(fault.into()))?;
                    }
                }
                Item::Packet(Packet::DeviceState(_)) => {
                    return Err(failed(EngineFault::DevicePacket.into()));
                }
                Item::Padding { .. } => {}
                Item::End => break,
            }
            self.tally.bytes(inlet.bytes_in().saturating_sub(counted));
            counted = inlet.bytes_in();
        }
        let left = self.rounds.leave(index);
        left.map_err(|fault| failed(fault.into()))
    }

    /// Puts the pages of a packet in their places.
    fn place(&self, index: usize, packet: &RamPacket, inlet: &mut Inlet<'_>) -> Result<(), Cause> {
        if packet.normal().is_empty() && packet.zero().is_empty() {
            return Ok(());
        }
        let place = self.places.of(packet.block())?;
        let found = packet.method()?;
        // A packet of zero pages alone has no method. One with differences states another in its
        // header, and the inlet knows which one it must have.
        if found != self.method && !packet.normal().is_empty() && !inlet.has_differences() {
            let agreed = self.method;
            return Err(EngineFault::Method { found, agreed }.into());
        }
        self.rounds.enter(index)?;
        // Rounds keep the order: no channel is here before all pages of the round before it are in
        // their places, and a round has each page once. So the base of a difference is there.
        let base = |offset: u64, page: &mut [u8]| place.read(offset, page);
        place.write(packet.normal(), inlet.read_pages_over(packet, &base)?)?;
        place.clear(packet.zero())?;
        self.tally.pages(packet.normal().len(), packet.zero().len());
        Ok(())
    }
}

/// Waits for `count` channels whose hellos name this session, in the order of their ids.
fn accept_channels(
    acceptor: &Acceptor,
    session: [u8; 16],
    count: usize,
    watch: &dyn Fn() -> Result<(), Cause>,
) -> Result<Vec<(Hello, Stream)>, Failure> {
    let (inbox, _ticket) = acceptor.expect_channels(session);
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let mut channels: Vec<(Hello, Stream)> = Vec::new();
    while channels.len() < count {
        match inbox.next_within(TICK) {
            Some(Arrival::Channel(channel)) => {
                let id = channel.hello.channel;
                if usize::from(id) >= count {
                    let (found, channels) = (id, count);
                    return Err(unnamed(SetupFault::ChannelId { found, channels }.into()));
                }
                channels.push((channel.hello, channel.stream));
            }
            Some(Arrival::Refused(fault)) => return Err(unnamed(fault.into())),
            Some(Arrival::Preempt(_) | Arrival::Doubt(_)) | None => {}
        }
        watch().map_err(unnamed)?;
        if channels.len() < count && Instant::now() >= deadline {
            let fault = EngineFault::Channels {
                found: channels.len(),
                expected: count,
                within: HELLO_TIMEOUT,
            };
            return Err(unnamed(fault.into()));
        }
    }
    channels.sort_by_key(|(hello, _)| hello.channel);
    Ok(channels)
}

/// A failure of a connection that has not said which channel it is.
fn unnamed(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Unnamed,
        ..on_main(cause)
    }
}

/// The longest block: where any page may end at most.
fn longest(blocks: &[MemoryBlock<'_>]) -> u64 {
    let lengths = blocks.iter().map(|block| block.range.len_bytes() as u64);
    lengths.max().unwrap_or(0)
}

fn vm_fault(what: &'static str, source: VmError) -> Cause {
    EngineFault::Vm { what, source }.into()
}

/// A failure that is of no channel in particular.
pub(super) fn on_main(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Main,
        leg: Leg::Source,
        block: None,
        cause,
    }
}

/// A fault of rounds: of one channel if it is that one's, of the main connection otherwise.
fn of_rounds((index, fault): (Option<usize>, RoundFault)) -> Failure {
    // Channels stand in the order of their ids, which are 0 to N - 1.
    let id = index.and_then(|index| u8::try_from(index).ok());
    Failure {
        channel: id.map_or(Channel::Main, Channel::Multifd),
        ..on_main(fault.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source whose channels took long to come has as much time for its block list as any other.
    #[test]
    fn every_part_of_the_opening_has_its_own_time() {
        let (settings, cancel) = (DestinationSettings::default(), Cancel::new());
        let long_ago = Instant::now().checked_sub(HELLO_TIMEOUT * 2).unwrap();
        let session = Session {
            settings: &settings,
            cancel: &cancel,
            started: long_ago,
        };
        assert!(session.check_opening(long_ago).is_err());
        assert!(session.check_opening(Instant::now()).is_ok());
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (ours, theirs) = (Stream::from(ours), Stream::from(theirs));
        let mut link = ControlLink::new(&ours, Limits::default()).unwrap();
        let mut source = ControlLink::new(&theirs, Limits::default()).unwrap();
        let hello = control::Hello {
            capabilities: Capabilities::default(),
            vm: [0; 16],
            session: [0; 16],
            page_size: multifd_wire::PageSize::K4,
            channels: 1,
            method_bits: 0,
        };
        let accepted = Accepted {
            capabilities: Capabilities::default(),
            channels: 1,
        };
        let agreement = Agreement {
            hello,
            method: Method::None,
            accepted,
        };
        source.send_preamble(&|| Ok(())).unwrap();
        link.preamble(&|| Ok(())).unwrap();
        // Not there yet when it is asked for.
        let offer = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(4 * TICK);
                let blocks = Message::Blocks(Vec::new());
                source.send(&blocks, &|| Ok(())).unwrap();
            });
            session.offer(agreement, &mut link)
        });
        assert!(offer.unwrap().blocks.is_empty());
    }
}
