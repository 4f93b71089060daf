//! Taking a migration without being a QEMU: what receiving and recording have in common.
//!
//! All connections are read to their ends at once, one thread each. The main channel says where rounds end, and its
//! return path is answered as a destination would.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_wire::main_stream::{Configuration, MainEvent, MainReceiver};
use multifd_wire::{BlockName, Fault, Hello, Limits, PageSize, RamPacket};

use crate::Stream;
use crate::answers::Answers;
use crate::endings::{told, wait_for};
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::incoming::{Acceptor, Incoming, IncomingChannel};
use crate::rounds::{RoundFault, Rounds};
use crate::stream::hung_up;

/// The main channel carries little beside multifd, and a guest's whole memory without it.
const BUFFER_BYTES: usize = 64 << 10;

/// What is to be known of a source beforehand.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceSettings {
    /// What it may send.
    pub limits: Limits,
    /// It has the capability `switchover-ack`, and a machine type whose name does not tell whether it may be sent a
    /// SWITCHOVER_ACK: one without a version, as those of some distributions, or before 8.1.
    pub switchover_ack: bool,
}

/// A source that dies or gives up closes its connections one after another; this is how long that may take.
const CLOSING_TIME: Duration = Duration::from_millis(200);

/// How soon to look again whether it has.
const CLOSING_PAUSE: Duration = Duration::from_millis(5);

/// What has arrived so far, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages with contents.
    pub pages: u64,
    /// Zero pages.
    pub zero_pages: u64,
    /// Bytes read, of the main channel and all multifd channels.
    pub bytes_in: u64,
}

/// A migration that was taken whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) channels: usize,
    pub(crate) totals: Totals,
    pub(crate) duration: Duration,
}

/// What becomes of a migration.
///
/// `block` is where a method notes the RAM block that it has in hand, for an error to name.
pub(crate) trait Keeper: Sync {
    /// Keeps one multifd channel, whose hello has been read, up to its end.
    fn channel(&self, seat: &Seat<'_>, block: &mut Option<BlockName>) -> Result<(), Cause>;

    /// Keeps bytes of the main channel, before they are looked at.
    fn main_bytes(&self, bytes: &[u8]) -> Result<(), Cause>;

    /// Keeps what the main channel says.
    fn main_event(&self, event: &MainEvent, block: &mut Option<BlockName>) -> Result<(), Cause>;

    /// Keeps a page that came on the main channel, without multifd: at `offset` of the block that is `index` in the list.
    fn main_page(
        &self,
        index: usize,
        offset: u64,
        contents: &[u8],
        block: &mut Option<BlockName>,
    ) -> Result<(), Cause>;

    /// Makes what was kept last: everything has arrived, and the source may forget it.
    fn keep(&self) -> Result<(), Cause>;
}

/// One multifd channel in a migration that is being taken.
pub(crate) struct Seat<'a> {
    pub(crate) index: usize,
    pub(crate) hello: &'a Hello,
    pub(crate) stream: &'a Stream,
    pub(crate) rounds: &'a Rounds,
    pub(crate) tally: &'a Tally,
    answers: &'a Answers,
}

impl Seat<'_> {
    /// Takes note of a packet.
    pub(crate) fn note(&self, packet: &RamPacket) {
        self.tally.pages(packet.normal().len(), packet.zero().len());
        // Earlier sources give every packet room for pages, and with it their page size.
        if packet.page_size().is_none() {
            self.answers.source_is_recent();
        }
    }
}

/// [`Totals`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pages: AtomicU64,
    zero_pages: AtomicU64,
    bytes_in: AtomicU64,
}

impl Tally {
    fn pages(&self, normal: usize, zero: usize) {
        self.pages.fetch_add(normal as u64, Ordering::Relaxed);
        self.zero_pages.fetch_add(zero as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes_in(&self, count: u64) {
        self.bytes_in.fetch_add(count, Ordering::Relaxed);
    }

    fn totals(&self) -> Totals {
        Totals {
            pages: self.pages.load(Ordering::Relaxed),
            zero_pages: self.zero_pages.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
        }
    }
}

/// Waits for a migration at `acceptor` and hands it to `keeper`. `progress` is called about twice a second meanwhile.
///
/// # Errors
///
/// The first failure of any connection. All are closed then, and a source that listens is told that it failed.
pub(crate) fn take(
    acceptor: &mut Acceptor,
    settings: SourceSettings,
    keeper: &impl Keeper,
    progress: &mut dyn FnMut(Totals),
) -> Result<Taken, Failure> {
    let Incoming {
        main,
        main_start,
        channels,
    } = acceptor.accept()?;
    let started = Instant::now();
    let rounds = Rounds::new(channels.len());
    let tally = Tally::default();
    let answers = Answers::new(settings.switchover_ack);
    let main = MainChannel {
        stream: &main,
        start: &main_start,
        keeper,
        rounds: &rounds,
        tally: &tally,
        answers: &answers,
    };
    let close_all = || {
        main.answers.refuse(main.stream);
        rounds.stop();
        for stream in
            std::iter::once(main.stream).chain(channels.iter().map(|channel| &channel.stream))
        {
            // A connection that cannot be shut down is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    };
    let failure = thread::scope(|scope| {
        let (ended, endings) = mpsc::channel();
        let (main, rounds, tally, close_all) = (&main, &rounds, &tally, &close_all);
        let tell = ended.clone();
        scope.spawn(move || told(&tell, close_all, || main.run(settings.limits)));
        for (index, IncomingChannel { hello, stream }) in channels.iter().enumerate() {
            let tell = ended.clone();
            let seat = Seat {
                index,
                hello,
                stream,
                rounds,
                tally,
                answers: main.answers,
            };
            scope.spawn(move || told(&tell, close_all, || sit(&seat, main)));
        }
        drop(ended);
        wait_for(
            channels.len().saturating_add(1),
            &endings,
            || progress(tally.totals()),
            close_all,
        )
    });
    match failure {
        Some(failure) => Err(failure),
        None => Ok(Taken {
            channels: channels.len(),
            totals: tally.totals(),
            duration: started.elapsed(),
        }),
    }
}

/// One multifd channel, to its end.
fn sit<K: Keeper>(seat: &Seat<'_>, main: &MainChannel<'_, K>) -> Result<(), Failure> {
    let mut block = None;
    let outcome = main
        .keeper
        .channel(seat, &mut block)
        .and_then(|()| Ok(seat.rounds.leave(seat.index)?));
    match outcome {
        // Everything has arrived; how the source closes its connections does not matter.
        Err(Cause::Io(_)) if main.answers.is_settled() => Ok(()),
        Err(cause) => Err(main.failure(Channel::Multifd(seat.hello.channel), block, cause)),
        Ok(()) => Ok(()),
    }
}

/// The main channel and its return path.
struct MainChannel<'a, K> {
    stream: &'a Stream,
    /// What has been read of it already.
    start: &'a [u8],
    keeper: &'a K,
    rounds: &'a Rounds,
    tally: &'a Tally,
    answers: &'a Answers,
}

impl<K: Keeper> MainChannel<'_, K> {
    fn run(&self, limits: Limits) -> Result<(), Failure> {
        let mut block = None;
        let mut culprit = Channel::Main;
        let outcome = self.follow(limits, &mut block, &mut culprit);
        outcome.map_err(|cause| self.failure(culprit, block, cause))
    }

    /// Reads to the end. `culprit` becomes the multifd channel that does not fit to the main channel, if one does not.
    fn follow(
        &self,
        limits: Limits,
        block: &mut Option<BlockName>,
        culprit: &mut Channel,
    ) -> Result<(), Cause> {
        let mut receiver = MainReceiver::new(limits);
        let mut outline = Outline::new(limits);
        let mut page = Page::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut bytes = self.start;
        loop {
            self.keeper.main_bytes(bytes)?;
            self.tally.bytes_in(bytes.len() as u64);
            loop {
                if let Some((index, offset)) = page.place {
                    let mut contents = page.gather(&mut bytes, outline.page_size.bytes());
                    if contents.is_empty() {
                        break;
                    }
                    self.keeper.main_page(index, offset, contents, block)?;
                    self.tally.pages(1, 0);
                    // The reader crosses the contents and says nothing to them.
                    receiver.push(&mut contents)?;
                    page.place = None;
                }
                let Some(event) = receiver.push(&mut bytes)? else {
                    break;
                };
                *block = None;
                self.keeper.main_event(&event, block)?;
                self.answers.react(&event, self.stream).map_err(gave_up)?;
                match event {
                    MainEvent::ZeroPage { .. } => self.tally.pages(0, 1),
                    MainEvent::RamBlocks(_) => self.rounds.open(),
                    MainEvent::Page { block, offset } => page.place = Some((block, offset)),
                    MainEvent::End => self.settle(&outline, culprit)?,
                    _ => {}
                }
                if outline.ends_round(&event) {
                    self.rounds.mark().map_err(|fault| blame(fault, culprit))?;
                }
            }
            let count = match self.stream.read_some(&mut buffer) {
                Ok(count) => count,
                Err(_) if self.answers.is_settled() => 0,
                Err(error) => return Err(gave_up(error)),
            };
            if count == 0 {
                break;
            }
            bytes = buffer.get(..count).unwrap_or_default();
        }
        match self.answers.is_settled() {
            true => Ok(()),
            false => Err(Cause::Incomplete),
        }
    }

    /// Everything has arrived: keeps it and tells the source.
    fn settle(&self, outline: &Outline, culprit: &mut Channel) -> Result<(), Cause> {
        if !outline.ram_ended {
            return Err(RoundFault::NoRam.into());
        }
        self.rounds
            .finish()
            .map_err(|fault| blame(fault, culprit))?;
        let wanted = self.answers.settle()?;
        let kept = self.keeper.keep();
        if wanted {
            self.answers
                .shut(kept.is_ok(), self.stream)
                .map_err(gave_up)?;
        }
        kept
    }

    /// A failure of `channel`, unless that broke off because the source has given up the whole migration.
    fn failure(&self, channel: Channel, block: Option<BlockName>, cause: Cause) -> Failure {
        let broken_off = matches!(
            cause,
            Cause::Wire(Fault::Truncated { .. })
                | Cause::Io(_)
                | Cause::Round(RoundFault::OpenRound | RoundFault::MissingSync { .. })
        );
        let leg = Leg::Source;
        if broken_off && !self.answers.is_settled() && self.source_is_gone() {
            return Failure {
                channel: Channel::Main,
                leg,
                block: None,
                cause: Cause::Incomplete,
            };
        }
        Failure {
            channel,
            leg,
            block: block.map(Box::new),
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

/// The cause of a broken main channel: a source that ends its migration closes it, whatever is still under way.
fn gave_up(error: io::Error) -> Cause {
    match hung_up(&error) {
        true => Cause::Incomplete,
        false => error.into(),
    }
}

/// The cause of a fault of rounds; `culprit` becomes the multifd channel at fault, if it is one's.
fn blame((index, fault): (Option<usize>, RoundFault), culprit: &mut Channel) -> Cause {
    // Channels stand in the order of their ids, which are 0 to N - 1.
    if let Some(id) = index.and_then(|index| u8::try_from(index).ok()) {
        *culprit = Channel::Multifd(id);
    }
    fault.into()
}

/// What has to be known of the main channel to find the ends of rounds and of RAM in it.
///
/// A source of QEMU 8.1 or later, with a machine type as new, writes a flush mark where a round ends, the first of them
/// before the set-up of the RAM section ends. All others end a round wherever a body of the RAM section ends.
#[derive(Debug)]
struct Outline {
    page_size: PageSize,
    ram: Option<u32>,
    ram_ended: bool,
    flush_seen: bool,
    /// Known from the end of the set-up on.
    per_section: Option<bool>,
}

impl Outline {
    fn new(limits: Limits) -> Self {
        Self {
            page_size: limits.page_size.unwrap_or(PageSize::K4),
            ram: None,
            ram_ended: false,
            flush_seen: false,
            per_section: None,
        }
    }

    /// Takes note of `event`; whether it ends a round.
    fn ends_round(&mut self, event: &MainEvent) -> bool {
        match event {
            MainEvent::Configuration(Configuration {
                page_size: Some(page_size),
                ..
            }) => {
                self.page_size = *page_size;
            }
            MainEvent::SectionStart(section) if section.name.as_bytes() == b"ram" => {
                self.ram = Some(section.id)
            }
            MainEvent::SectionEnd { id } if self.ram == Some(*id) => self.ram_ended = true,
            MainEvent::Flush => {
                self.flush_seen = true;
                return true;
            }
            MainEvent::RamEndOfSection => return *self.per_section.get_or_insert(!self.flush_seen),
            _ => {}
        }
        false
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
