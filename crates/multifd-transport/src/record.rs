//! A migration becomes a file.

use std::fs::File;
use std::io::{self, BufWriter};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use multifd_wire::main_stream::MainEvent;
use multifd_wire::{BlockName, ChannelReceiver, Event, Limits, Packet, RamPacket};

use crate::failure::{Cause, Channel, Failure, Leg};
use crate::incoming::Acceptor;
use crate::parameters::Cancel;
use crate::partial::{FileError, PartialFile};
use crate::recording::{Role, Writer};
use crate::taking::{Keeper, Seat, SourceSettings, take};

pub use crate::taking::Totals;

/// What one read of a channel asks for: a packet of raw pages rarely takes more than a few of these.
const BUFFER_BYTES: usize = 128 << 10;

/// The file of a recording that is being made: `NAME.partial` until the migration is whole.
///
/// It is removed when the migration fails before everything has arrived. After that it stays, whatever happens: the
/// source may have stopped its guest for good.
#[derive(Debug)]
pub struct Output {
    file: PartialFile,
}

impl Output {
    /// Makes the file.
    ///
    /// # Errors
    ///
    /// `Occupied` when there is a file of that name: nothing is overwritten.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        Ok(Self {
            file: PartialFile::create(path)?,
        })
    }
}

/// A migration that was recorded whole.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordReport {
    /// The recording.
    pub file: PathBuf,
    /// Its length in bytes.
    pub file_bytes: u64,
    /// `true`: the source has heard that everything is kept. `None`: it did not ask.
    pub confirmed: Option<bool>,
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// What arrived.
    pub totals: Totals,
    /// From the first connection to the last close.
    pub duration: Duration,
}

/// Waits for a migration at `acceptor` and records it. `progress` is called about twice a second meanwhile.
///
/// The channels are followed, so that a malformed migration is noticed now and not when it is replayed; what is recorded
/// is what arrived, to the byte.
///
/// # Errors
///
/// The first failure of any connection or of the file. A source that listens is told, and its guest goes on.
pub fn record(
    acceptor: &mut Acceptor,
    output: Output,
    settings: SourceSettings,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Totals),
) -> Result<RecordReport, Failure> {
    let file = |source| file_failure(&output, source);
    let writer = Writer::new(BufWriter::new(output.file.file())).map_err(file)?;
    let recorder = Recorder {
        output: &output,
        limits: settings.limits,
        writer: Mutex::new(writer),
    };
    recorder.writer().open(Role::Main).map_err(file)?;
    let taken = take(acceptor, settings, cancel, &recorder, progress)?;

    let mut writer = recorder
        .writer
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    writer.eof(MAIN).map_err(file)?;
    writer.finish().map_err(file)?;
    let finished = output.file.sync().and_then(|()| output.file.publish());
    finished.map_err(|error| main_failure(error.into()))?;
    let file_bytes = output.file.file().metadata().map_err(file)?.len();
    Ok(RecordReport {
        file: output.file.path().to_owned(),
        file_bytes,
        confirmed: taken.confirmed,
        channels: taken.channels,
        totals: taken.totals,
        duration: taken.duration,
    })
}

/// Main is the first stream that is opened.
const MAIN: u16 = 0;

struct Recorder<'a> {
    output: &'a Output,
    limits: Limits,
    writer: Mutex<Writer<BufWriter<&'a File>>>,
}

impl<'a> Recorder<'a> {
    fn writer(&self) -> MutexGuard<'_, Writer<BufWriter<&'a File>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file<T>(&self, outcome: io::Result<T>) -> Result<T, Cause> {
        outcome.map_err(|source| self.output.file.failed(source).into())
    }
}

impl Keeper for Recorder<'_> {
    fn channel(&self, seat: &Seat<'_>, block: &mut Option<BlockName>) -> Result<(), Cause> {
        let mut receiver = ChannelReceiver::new(self.limits);
        let hello = seat.hello.to_bytes();
        receiver.push(&mut hello.as_slice())?;
        seat.tally.bytes_in(hello.len() as u64);
        let stream = {
            let mut writer = self.writer();
            let stream = self.file(writer.open(Role::Channel))?;
            self.file(writer.data(stream, &hello))?;
            stream
        };
        let mut buffer = vec![0; BUFFER_BYTES];
        // A SYNC may carry pages, which have to be there before it counts.
        let mut sync_owed = false;
        let mut in_hand: Option<RamPacket> = None;
        loop {
            let count = seat.stream.read_some(&mut buffer)?;
            if count == 0 {
                break;
            }
            let mut bytes = buffer.get(..count).unwrap_or_default();
            seat.tally.bytes_in(count as u64);
            self.file(self.writer().data(stream, bytes))?;
            while let Some(event) = receiver.push(&mut bytes)? {
                if let Event::Packet(packet) = event {
                    sync_owed = packet.flags().is_sync();
                    if let Packet::Ram(packet) = packet {
                        seat.note(&packet);
                        *block = Some(packet.block().clone());
                        in_hand = Some(packet);
                    }
                }
                if receiver.payload_remaining() == 0 {
                    if let Some(packet) = in_hand.take() {
                        seat.came(&packet)?;
                    }
                    *block = None;
                    if mem::take(&mut sync_owed) {
                        seat.rounds.arrive(seat.index);
                    }
                }
            }
        }
        receiver.finish()?;
        self.file(self.writer().eof(stream))
    }

    fn main_bytes(&self, bytes: &[u8]) -> Result<(), Cause> {
        self.file(self.writer().data(MAIN, bytes))
    }

    fn main_event(&self, _: &MainEvent, _: &mut Option<BlockName>) -> Result<(), Cause> {
        Ok(())
    }

    fn main_page(
        &self,
        _: usize,
        _: u64,
        _: &[u8],
        _: &mut Option<BlockName>,
    ) -> Result<(), Cause> {
        Ok(())
    }

    const NEEDS_MEMORY_ONLY: bool = false;

    fn keep(&self, _: &[BlockName]) -> Result<(), Cause> {
        self.output.file.stay();
        self.file(self.writer().flush())?;
        Ok(self.output.file.sync()?)
    }
}

fn file_failure(output: &Output, source: io::Error) -> Failure {
    main_failure(output.file.failed(source).into())
}

/// The file is not one connection's; without a better place its failures are told with the main channel.
fn main_failure(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Main,
        leg: Leg::Source,
        block: None,
        cause,
    }
}
