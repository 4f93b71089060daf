//! A migration becomes a file.
//!
//! ```
//! use multifd_relay::SourceSettings;
//! use multifd_relay::record::{Output, record};
//! use multifd_transport::Cancel;
//! use multifd_transport::incoming::Acceptor;
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/guest/source.rs"));
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("guest.recording");
//! let output = Output::create(&file)?;
//! let mut acceptor = Acceptor::bind(&"tcp:127.0.0.1:0".parse()?)?;
//! # send_guest(acceptor.address())?;
//!
//! let (source, cancel) = (SourceSettings::default(), Cancel::new());
//! let report = record(&mut acceptor, output, source, &cancel, &mut |_progress| {})?;
//! assert_eq!((report.channels, report.file), (1, file));
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::incoming::Acceptor;
use multifd_transport::{Cancel, RoundFault};
use multifd_wire::main_stream::MainEvent;
use multifd_wire::{BlockName, ChannelReceiver, Event, Limits, Packet, RamPacket};

use crate::atomic_file::{FileError, PartialFile};
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::ingest::{SourceSettings, take};
use crate::keeper::{Keeper, TakeError, TakenChannel};
use crate::recording::{Role, Writer};

pub use crate::keeper::Totals;

/// The bytes that one read of a channel asks for: a packet of raw pages rarely takes more than a
/// few of these.
const BUFFER_BYTES: usize = 128 << 10;

/// The file of a recording that is being made: `NAME.partial` until the migration is whole.
///
/// It is whole, and has its name, before the source hears that it may forget its guest. It is
/// removed when the migration fails before that, and when the source closes before it can be told.
#[derive(Debug)]
pub struct Output {
    file: PartialFile,
}

impl Output {
    /// Makes the file.
    ///
    /// # Errors
    ///
    /// If the file exists already: nothing is overwritten.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        Ok(Self {
            file: PartialFile::create(path)?,
        })
    }
}

/// A migration that was recorded whole.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordReport {
    /// The recording.
    pub file: PathBuf,
    /// Its length in bytes.
    pub file_bytes: u64,
    /// `true`: the source has heard that everything is kept. `None`: it did not ask, or it is not
    /// known.
    pub confirmed: Option<bool>,
    /// The source asked, and it is not known whether it has heard the answer. If its guest runs on,
    /// this is of an earlier moment.
    pub unheard: bool,
    /// Blocks that the source shares and has not sent (`x-ignore-shared`): the recording is of the
    /// others.
    pub left_out: Vec<BlockName>,
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// The pages and bytes that arrived.
    pub totals: Totals,
    /// From the first connection to the last close.
    pub duration: Duration,
}

/// Waits for a migration at `acceptor` and records it. `progress` is called about twice a second
/// meanwhile.
///
/// The channels are followed, so that a malformed migration is noticed now and not when it is
/// replayed; what is recorded is what arrived, to the byte.
///
/// # Errors
///
/// The first failure of any connection or of the file. A source that listens gets the failure, and
/// its guest goes on.
pub fn record(
    acceptor: &mut Acceptor,
    output: Output,
    settings: SourceSettings,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Totals),
) -> Result<RecordReport, Failure> {
    let file = |source| file_failure(&output, source);
    let mut writer = Writer::new(BufWriter::new(output.file.file())).map_err(file)?;
    let main = writer.open(Role::Main).map_err(file)?;
    let recorder = Recorder {
        output: &output,
        limits: settings.limits,
        state: Mutex::new(State {
            writer: Some(writer),
            open: vec![main],
            inside: BTreeSet::new(),
            last: Instant::now(),
        }),
    };
    let taken = take(acceptor, settings, cancel, &recorder, progress)?;
    let file_bytes = output.file.file().metadata().map_err(file)?.len();
    Ok(RecordReport {
        file: output.file.path().to_owned(),
        file_bytes,
        confirmed: taken.confirmed,
        unheard: taken.unheard,
        left_out: taken.left_out,
        channels: taken.channels,
        totals: taken.totals,
        duration: taken.duration,
    })
}

/// Main is the first stream that is opened.
const MAIN: u16 = 0;

/// Silence of the channels that shows that nothing more comes: a source says on main that it has
/// ended when it has written everything on the channels too, and over a network main may be ahead.
const SILENCE: Duration = Duration::from_millis(200);

/// Time limit for the rest of a packet then.
const REST_TIMEOUT: Duration = Duration::from_secs(10);

/// Poll interval for that.
const PAUSE: Duration = Duration::from_millis(10);

struct Recorder<'a> {
    output: &'a Output,
    limits: Limits,
    state: Mutex<State<'a>>,
}

struct State<'a> {
    /// None once the recording is whole: what comes then says nothing more.
    writer: Option<Writer<BufWriter<&'a File>>>,
    /// Streams that have not ended.
    open: Vec<u16>,
    /// Streams that are inside a packet.
    inside: BTreeSet<u16>,
    /// When something came last.
    last: Instant,
}

impl<'a> Recorder<'a> {
    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file<T>(&self, outcome: io::Result<T>) -> Result<T, Cause> {
        outcome.map_err(|source| self.output.file.failed(source).into())
    }

    fn open(&self) -> Result<u16, Cause> {
        let mut state = self.lock();
        let writer = state.writer.as_mut().ok_or(RoundFault::OpenRound)?;
        let stream = self.file(writer.open(Role::Channel))?;
        state.open.push(stream);
        Ok(stream)
    }

    /// Writes bytes of a stream, unless the recording is whole.
    fn data(&self, stream: u16, bytes: &[u8]) -> Result<(), Cause> {
        let mut state = self.lock();
        state.last = Instant::now();
        match &mut state.writer {
            Some(writer) => self.file(writer.data(stream, bytes)),
            None => Ok(()),
        }
    }

    /// A stream has come to the end of what was read of it, inside a packet or between two.
    fn paused(&self, stream: u16, inside: bool) {
        let mut state = self.lock();
        match inside {
            true => state.inside.insert(stream),
            false => state.inside.remove(&stream),
        };
    }

    fn ended(&self, stream: u16) -> Result<(), Cause> {
        let mut state = self.lock();
        state.open.retain(|open| *open != stream);
        match &mut state.writer {
            Some(writer) => self.file(writer.eof(stream)),
            None => Ok(()),
        }
    }

    /// Waits until the channels have given everything.
    fn wait_for_rest(&self) -> Result<(), Cause> {
        let deadline = Instant::now() + REST_TIMEOUT;
        loop {
            let state = self.lock();
            let is_whole = state.inside.is_empty();
            if is_whole && state.last.elapsed() >= SILENCE {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return match is_whole {
                    true => Ok(()),
                    false => Err(RoundFault::OpenRound.into()),
                };
            }
            drop(state);
            thread::sleep(PAUSE);
        }
    }

    /// Keeps a channel's bytes to its end, and follows its packets.
    fn follow(
        &self,
        channel: &TakenChannel<'_>,
        followed: &mut FollowedChannel,
    ) -> Result<(), Cause> {
        let hello = channel.hello.to_bytes();
        followed.receiver.push(&mut hello.as_slice())?;
        channel.tally.bytes_in(hello.len() as u64);
        let stream = self.open()?;
        self.data(stream, &hello)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = channel.stream.read_some(&mut buffer)?;
            if count == 0 {
                break;
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            channel.tally.bytes_in(count as u64);
            self.data(stream, bytes)?;
            followed.push(bytes, channel)?;
            self.paused(stream, followed.receiver.finish().is_err());
        }
        followed.receiver.finish()?;
        self.ended(stream)
    }
}

/// The position up to which a channel has been followed.
struct FollowedChannel {
    receiver: ChannelReceiver,
    /// The packet whose payload is being read.
    in_hand: Option<RamPacket>,
    /// A SYNC may carry pages, which have to be there before it counts.
    sync_owed: bool,
}

impl FollowedChannel {
    fn push(&mut self, mut bytes: &[u8], channel: &TakenChannel<'_>) -> Result<(), Cause> {
        while let Some(event) = self.receiver.push(&mut bytes)? {
            if let Event::Packet(packet) = event {
                self.sync_owed = packet.flags().is_sync();
                if let Packet::Ram(packet) = packet {
                    channel.note(&packet);
                    self.in_hand = Some(packet);
                }
            }
            if self.receiver.payload_remaining() == 0 {
                if let Some(packet) = &self.in_hand {
                    // Over a network a channel may be ahead of the main channel.
                    channel.rounds.wait_open()?;
                    channel.came(packet, 0)?;
                }
                self.in_hand = None;
                if mem::take(&mut self.sync_owed) {
                    channel.rounds.arrive(channel.index);
                }
            }
        }
        Ok(())
    }
}

impl Keeper for Recorder<'_> {
    fn channel(&self, channel: &TakenChannel<'_>) -> Result<(), TakeError> {
        let mut followed = FollowedChannel {
            receiver: ChannelReceiver::new(self.limits),
            in_hand: None,
            sync_owed: false,
        };
        let kept = self.follow(channel, &mut followed);
        kept.map_err(|cause| match &followed.in_hand {
            Some(packet) => TakeError::from(cause).in_packet(packet),
            None => cause.into(),
        })
    }

    fn main_bytes(&self, bytes: &[u8]) -> Result<(), Cause> {
        self.data(MAIN, bytes)
    }

    fn main_event(&self, _: &MainEvent) -> Result<(), TakeError> {
        Ok(())
    }

    fn main_page(&self, _: usize, _: u64, _: &[u8]) -> Result<(), TakeError> {
        Ok(())
    }

    const NEEDS_MEMORY_ONLY: bool = false;

    fn keep(&self, _: &[BlockName]) -> Result<(), Cause> {
        self.wait_for_rest()?;
        let mut state = self.lock();
        if let Some(mut writer) = state.writer.take() {
            for stream in mem::take(&mut state.open) {
                self.file(writer.eof(stream))?;
            }
            self.file(writer.finish())?;
        }
        self.output.file.sync()?;
        Ok(self.output.file.publish()?)
    }

    fn withdraw(&self) {
        self.output.file.withdraw();
    }
}

fn file_failure(output: &Output, source: io::Error) -> Failure {
    main_failure(output.file.failed(source).into())
}

/// The file is not one connection's; without a better place its failures are reported with the main
/// channel.
fn main_failure(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Main,
        leg: Leg::Source,
        block: None,
        cause,
    }
}
