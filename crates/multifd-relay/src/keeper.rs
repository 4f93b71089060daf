//! `Keeper`: what `receive` and `record` each implement, and the state that `ingest` shares with
//! them.

use std::sync::atomic::{AtomicU64, Ordering};

use multifd_transport::{RoundFault, Rounds, Stream, block_of};
use multifd_wire::main_stream::MainEvent;
use multifd_wire::{BlockName, Hello, RamPacket};

use crate::coverage::Coverage;
use crate::failure::Cause;
use crate::numbers::Numbers;
use crate::return_path::Answers;

/// A destination of a migration: image files, or a recording.
pub(crate) trait Keeper: Sync {
    /// Keeps one multifd channel, whose hello has been read, up to its end.
    fn channel(&self, channel: &TakenChannel<'_>) -> Result<(), TakeError>;

    /// Keeps bytes of the main channel, before they are looked at.
    fn main_bytes(&self, bytes: &[u8]) -> Result<(), Cause>;

    /// Keeps what the main channel says.
    fn main_event(&self, event: &MainEvent) -> Result<(), TakeError>;

    /// Keeps a page that came on the main channel, without multifd: at `offset` of the block that
    /// is `index` in the list.
    fn main_page(&self, index: usize, offset: u64, contents: &[u8]) -> Result<(), TakeError>;

    /// Makes what was kept last: everything has arrived but the blocks that are `left_out`, and the
    /// source may forget it.
    fn keep(&self, left_out: &[BlockName]) -> Result<(), Cause>;

    /// Forgets what was kept: the source closed before it got the word, and has its guest.
    fn withdraw(&self);

    /// Whether the keeper needs RAM only (`receive`), and not the device state (`record`).
    const NEEDS_MEMORY_ONLY: bool;
}

/// One multifd channel in a migration that is being taken.
pub(crate) struct TakenChannel<'a> {
    pub(crate) index: usize,
    pub(crate) hello: &'a Hello,
    pub(crate) stream: &'a Stream,
    pub(crate) rounds: &'a Rounds,
    pub(crate) tally: &'a RunningTotals,
    pub(crate) coverage: &'a Coverage,
    pub(crate) numbers: &'a Numbers,
    pub(crate) answers: &'a Answers,
}

impl TakenChannel<'_> {
    /// Takes note of a packet's header.
    pub(crate) fn note(&self, packet: &RamPacket) {
        self.tally.pages(packet.normal().len(), packet.zero().len());
        self.rounds.touch(self.index);
        self.numbers.note(self.index, packet);
        // Earlier sources give every packet room for pages, and with it their page size.
        if packet.page_size().is_none() {
            self.answers.source_is_recent();
        }
    }

    /// All pages of a packet have come, in this round. The blocks that it names may still be on
    /// their way to the list of them.
    pub(crate) fn came(&self, packet: &RamPacket, round: u64) -> Result<(), Cause> {
        let Some(page_size) = packet.page_size() else {
            return Ok(());
        };
        if !packet.normal().is_empty() || !packet.zero().is_empty() {
            self.rounds.wait_open()?;
        }
        for offsets in [packet.normal(), packet.zero()] {
            if !offsets.is_empty() {
                self.coverage
                    .note(packet.block(), page_size, offsets, round)?;
            }
        }
        Ok(())
    }
}

/// A failure, and its place on the connection that was read.
#[derive(Debug)]
pub(crate) struct TakeError {
    /// The multifd channel at fault, where it is not the connection that was read.
    pub(crate) channel: Option<u8>,
    /// The block of the pages in hand.
    pub(crate) block: Option<Box<BlockName>>,
    pub(crate) cause: Cause,
}

impl TakeError {
    /// With the block of the packet in hand, if the packet has pages.
    pub(crate) fn in_packet(self, packet: &RamPacket) -> Self {
        let block = block_of(packet);
        Self { block, ..self }
    }

    /// With the block of the page in hand.
    pub(crate) fn in_block(self, block: Option<&BlockName>) -> Self {
        let block = block.cloned().map(Box::new);
        Self { block, ..self }
    }

    /// A fault of rounds, and the channel at fault if it is one channel's.
    pub(crate) fn of_rounds((index, fault): (Option<usize>, RoundFault)) -> Self {
        // Channels stand in the order of their ids, which are 0 to N - 1.
        let channel = index.and_then(|index| u8::try_from(index).ok());
        Self {
            channel,
            ..fault.into()
        }
    }
}

impl<C: Into<Cause>> From<C> for TakeError {
    fn from(cause: C) -> Self {
        Self {
            channel: None,
            block: None,
            cause: cause.into(),
        }
    }
}

/// The pages and bytes that have arrived so far, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Pages with contents.
    pub pages: u64,
    /// Zero pages.
    pub zero_pages: u64,
    /// Bytes read, of the main channel and all multifd channels.
    pub bytes_in: u64,
}

/// [`Totals`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct RunningTotals {
    pages: AtomicU64,
    zero_pages: AtomicU64,
    bytes_in: AtomicU64,
}

impl RunningTotals {
    pub(crate) fn pages(&self, normal: usize, zero: usize) {
        self.pages.fetch_add(normal as u64, Ordering::Relaxed);
        self.zero_pages.fetch_add(zero as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes_in(&self, count: u64) {
        self.bytes_in.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            pages: self.pages.load(Ordering::Relaxed),
            zero_pages: self.zero_pages.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
        }
    }
}
