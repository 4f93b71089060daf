//! One round: every page of a set of bitmaps, over all channels at once.
//!
//! There is no queue. A channel that can send takes the next pages from a cursor over the bitmaps; one whose connection
//! is full takes none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::{Pages, is_zero};
use multifd_wire::{BlockName, Packet, PageSize, RamPacket};

use super::pacing::Pacer;
use crate::dirty::DirtyBitmap;
use crate::engine_fault::EngineFault;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::memory::MemoryBlock;
use crate::outlet::Outlet;
use crate::statistics::Tally;
use crate::{Stream, ZeroPageDetection};

/// How soon a wish to end, or a deadline, is noticed while channels send.
const TICK: Duration = Duration::from_millis(20);

/// What stays the same in all rounds of a migration.
pub(super) struct Work<'a> {
    pub(super) blocks: &'a [MemoryBlock<'a>],
    pub(super) page_size: PageSize,
    pub(super) zero_page_detection: ZeroPageDetection,
    pub(super) pacer: Pacer,
    pub(super) tally: Tally,
    pub(super) packets: AtomicU64,
}

/// One channel and its buffers.
pub(super) struct Lane<'s> {
    pub(super) id: u8,
    pub(super) stream: &'s Stream,
    pub(super) outlet: Outlet<'s>,
    offsets: Vec<u64>,
    normal: Vec<u64>,
    zero: Vec<u64>,
    contents: Vec<u8>,
}

/// One round while it runs.
struct Round<'a> {
    work: &'a Work<'a>,
    dirty: &'a [DirtyBitmap],
    cursor: Mutex<Cursor>,
    /// Pages not yet handed out.
    remaining: AtomicU64,
    stopped: AtomicBool,
}

/// The next page to look at.
#[derive(Default)]
struct Cursor {
    block: usize,
    page: usize,
}

/// Sends the pages of `dirty` and a SYNC behind them on every channel. `watch` is asked now and then whether to go on,
/// and told how many pages are left.
///
/// # Errors
///
/// The first failure of any channel, or that of `watch`. All channels are closed then.
pub(super) fn send(
    work: &Work<'_>,
    lanes: &mut [Lane<'_>],
    dirty: &[DirtyBitmap],
    watch: &mut dyn FnMut(u64) -> Result<(), Cause>,
) -> Result<(), Failure> {
    let pages: usize = dirty.iter().map(DirtyBitmap::count).sum();
    let round = Round {
        work,
        dirty,
        cursor: Mutex::default(),
        remaining: AtomicU64::new(pages as u64),
        stopped: AtomicBool::new(false),
    };
    let streams: Vec<&Stream> = lanes.iter().map(|lane| lane.stream).collect();
    let close_all = || {
        round.stopped.store(true, Ordering::Relaxed);
        for stream in &streams {
            // A connection that cannot be shut down is closed already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    };
    thread::scope(|scope| {
        let (ended, endings) = mpsc::channel();
        for lane in lanes {
            let (round, ended) = (&round, ended.clone());
            scope.spawn(move || {
                // Nobody hears it only if the receiver below has panicked.
                let _ = ended.send(lane.run(round));
            });
        }
        drop(ended);
        let mut first = None;
        loop {
            let failure = match endings.recv_timeout(TICK) {
                Ok(Ok(())) => continue,
                Ok(Err(failure)) => Some(failure),
                Err(RecvTimeoutError::Timeout) => {
                    let left = round.remaining.load(Ordering::Relaxed);
                    watch(left).err().map(super::on_main)
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // What fails after the first failure does so because of it.
            if let (Some(failure), None) = (failure, &first) {
                first = Some(failure);
                close_all();
            }
        }
        first.map_or(Ok(()), Err)
    })
}

impl<'s> Lane<'s> {
    pub(super) fn new(id: u8, stream: &'s Stream, outlet: Outlet<'s>) -> Self {
        Self {
            id,
            stream,
            outlet,
            offsets: Vec::new(),
            normal: Vec::new(),
            zero: Vec::new(),
            contents: Vec::new(),
        }
    }

    fn run(&mut self, round: &Round<'_>) -> Result<(), Failure> {
        let mut block = None;
        self.send_all(round, &mut block).map_err(|cause| Failure {
            channel: Channel::Multifd(self.id),
            leg: Leg::Destination,
            block: block.cloned().map(Box::new),
            cause,
        })
    }

    fn send_all<'r>(
        &mut self,
        round: &Round<'r>,
        block: &mut Option<&'r BlockName>,
    ) -> Result<(), Cause> {
        while let Some(at) = self.take(round)? {
            *block = Some(&at.name);
            self.send(&at.name, round)?;
        }
        *block = None;
        let sync = RamPacket::sync(round.work.page_size, round.work.packet_num());
        let before = self.outlet.bytes_out();
        self.outlet.write_packet(&Packet::Ram(sync))?;
        self.spend(before, round);
        Ok(())
    }

    /// Takes the next packet's worth of pages, and a private copy of what is in those that are not zero. `None` when the
    /// round has no more.
    fn take<'r>(&mut self, round: &Round<'r>) -> Result<Option<&'r MemoryBlock<'r>>, Cause> {
        let mut cursor = round.lock();
        if round.stopped.load(Ordering::Relaxed) {
            return Err(EngineFault::Cancelled.into());
        }
        let Some(block) = cursor.take(round, &mut self.offsets) else {
            return Ok(None);
        };
        round
            .remaining
            .fetch_sub(self.offsets.len() as u64, Ordering::Relaxed);
        // Holding the cursor while pages are tested is what makes it one thread at a time.
        if round.work.zero_page_detection != ZeroPageDetection::Legacy {
            drop(cursor);
        }
        self.sort(block, round.work)?;
        Ok(Some(block))
    }

    fn sort(&mut self, block: &MemoryBlock<'_>, work: &Work<'_>) -> Result<(), Cause> {
        self.normal.clear();
        self.zero.clear();
        self.contents.clear();
        let page_size = work.page_size;
        for &offset in &self.offsets {
            let page = [block
                .range
                .page(offset, page_size)
                .map_err(EngineFault::from)?];
            let before = self.contents.len();
            // What is tested is what is sent: the guest may write the page at any time.
            Pages::guest(&page, page_size)?.append_to(&mut self.contents);
            let copy = self.contents.get(before..).unwrap_or_default();
            if work.zero_page_detection != ZeroPageDetection::None && is_zero(copy) {
                self.contents.truncate(before);
                self.zero.push(offset);
            } else {
                self.normal.push(offset);
            }
        }
        Ok(())
    }

    fn send(&mut self, name: &BlockName, round: &Round<'_>) -> Result<(), Cause> {
        let work = round.work;
        let packet = RamPacket::new(
            work.page_size,
            name.clone(),
            &self.normal,
            &self.zero,
            work.packet_num(),
        )?;
        let before = self.outlet.bytes_out();
        if self.normal.is_empty() {
            self.outlet.write_packet(&Packet::Ram(packet))?;
        } else {
            self.outlet
                .write_pages(packet, &self.contents, work.page_size)?;
        }
        work.tally.pages(self.normal.len(), self.zero.len());
        self.spend(before, round);
        Ok(())
    }

    /// Counts what was sent since `before`, and waits until there is budget for more.
    fn spend(&self, before: u64, round: &Round<'_>) {
        let bytes = self.outlet.bytes_out().saturating_sub(before);
        round.work.tally.bytes(bytes);
        let mut left = round.work.pacer.spend(bytes, Instant::now());
        while !left.is_zero() && !round.stopped.load(Ordering::Relaxed) {
            let nap = left.min(TICK);
            thread::sleep(nap);
            left = left.saturating_sub(nap);
        }
    }
}

impl Round<'_> {
    // A panic in between leaves a cursor that stands somewhere in the bitmaps, which is all it ever does.
    fn lock(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work<'_> {
    fn packet_num(&self) -> u64 {
        self.packets.fetch_add(1, Ordering::Relaxed)
    }
}

impl Cursor {
    /// The offsets of the next pages, as many as a packet takes and all of one block.
    fn take<'r>(
        &mut self,
        round: &Round<'r>,
        offsets: &mut Vec<u64>,
    ) -> Option<&'r MemoryBlock<'r>> {
        offsets.clear();
        let page_size = round.work.page_size;
        loop {
            let dirty = round.dirty.get(self.block)?;
            let block = round.work.blocks.get(self.block)?;
            while let Some(page) = dirty.next(self.page) {
                self.page = page.saturating_add(1);
                offsets.push((page as u64).saturating_mul(page_size.bytes() as u64));
                if offsets.len() == page_size.pages_per_packet() {
                    break;
                }
            }
            if !offsets.is_empty() {
                return Some(block);
            }
            self.block = self.block.saturating_add(1);
            self.page = 0;
        }
    }
}
