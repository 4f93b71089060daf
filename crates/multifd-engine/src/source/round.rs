//! One round: every page of a set of bitmaps, over all channels at once.
//!
//! There is no queue. A channel that can send takes the next pages from a cursor over the bitmaps;
//! one whose connection is full takes none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::{PageBuffer, Pages};
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{Outlet, Stream, Written, report_end};
use multifd_wire::{BlockName, Packet, PageSize, RamPacket};

use super::discards::Contents;
use super::pacing::Pacer;
use crate::ZeroPageDetection;
use crate::dirty::DirtyBitmap;
use crate::engine_fault::EngineFault;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::memory::MemoryBlock;
use crate::statistics::Tally;

/// Poll interval for cancellation and deadlines while channels send.
const TICK: Duration = Duration::from_millis(20);

/// The parts that stay the same in all rounds of a migration.
pub(super) struct Work<'a> {
    pub(super) blocks: &'a [MemoryBlock<'a>],
    /// The pages of each block that the destination holds.
    pub(super) contents: Vec<Contents>,
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
    buffers: Buffers,
}

/// The state that a channel needs to fill a packet.
#[derive(Default)]
struct Buffers {
    offsets: Vec<u64>,
    normal: Vec<u64>,
    zero: Vec<u64>,
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

/// Sends the pages of `dirty` and a SYNC after them on every channel. `watch` gets the number of
/// pages that are left now and then, and decides whether to go on.
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
        let mut first = None;
        for lane in lanes {
            let (round, ended, close_all) = (&round, ended.clone(), &close_all);
            let run = move || report_end(&ended, close_all, || lane.run(round));
            if let Err(source) = thread::Builder::new().spawn_scoped(scope, run) {
                first = Some(super::on_main(EngineFault::Thread { source }.into()));
                close_all();
                break;
            }
        }
        drop(ended);
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
            // Later failures are consequences of the first one.
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
            buffers: Buffers::default(),
        }
    }

    fn run(&mut self, round: &Round<'_>) -> Result<(), Failure> {
        self.send_all(round).map_err(|(block, cause)| Failure {
            channel: Channel::Multifd(self.id),
            leg: Leg::Destination,
            block,
            cause,
        })
    }

    fn send_all(&mut self, round: &Round<'_>) -> Result<(), (Option<Box<BlockName>>, Cause)> {
        // The end of the pages, or why there are no more. What was taken before is sent first.
        let mut end = None;
        loop {
            while end.is_none() && self.outlet.room() > 0 {
                let mut pages = self.outlet.page_buffer();
                match self.buffers.take(round, &mut pages) {
                    Ok(Some(packet)) => self.outlet.push(packet, pages),
                    Ok(None) => end = Some(Ok(())),
                    Err((block, cause)) => end = Some(Err((block.cloned().map(Box::new), cause))),
                }
            }
            let written = self.outlet.pop_and_write();
            let written = written.map_err(|unwritten| (unwritten.block, unwritten.cause.into()))?;
            let Some(Written { packet, bytes, .. }) = written else {
                break;
            };
            let (normal_pages, zero_pages) = (packet.normal().len(), packet.zero().len());
            round.work.tally.pages(normal_pages, zero_pages);
            round.spend(bytes);
        }
        end.unwrap_or(Ok(()))?;
        let page_size = round.work.page_size;
        let sync = RamPacket::sync(page_size, round.work.packet_num());
        let before = self.outlet.bytes_out();
        self.outlet
            .write_packet(&Packet::Ram(sync))
            .map_err(|cause| (None, cause.into()))?;
        round.spend(self.outlet.bytes_out() - before);
        Ok(())
    }
}

impl Buffers {
    /// Takes the next packet's worth of pages, and a private copy of what is in those that are not
    /// zero. None at the end of the round. An error names the block, if it is about one.
    fn take<'r>(
        &mut self,
        round: &Round<'r>,
        pages: &mut PageBuffer,
    ) -> Result<Option<RamPacket>, (Option<&'r BlockName>, Cause)> {
        let mut cursor = round.lock();
        if round.stopped.load(Ordering::Relaxed) {
            return Err((None, TransportCause::Cancelled.into()));
        }
        let Some((block, contents)) = cursor.take(round, &mut self.offsets) else {
            return Ok(None);
        };
        let work = round.work;
        round
            .remaining
            .fetch_sub(self.offsets.len() as u64, Ordering::Relaxed);
        // Holding the cursor while pages are tested is what makes it one thread at a time.
        if work.zero_page_detection != ZeroPageDetection::Legacy {
            drop(cursor);
        }
        let name = &block.name;
        let in_block = |cause| (Some(name), cause);
        let copies = self
            .sort(block, contents, work, std::mem::take(pages).into())
            .map_err(in_block)?;
        *pages = copies.into();
        let number = work.packet_num();
        let packet = RamPacket::new(
            work.page_size,
            name.clone(),
            &self.normal,
            &self.zero,
            number,
        );
        packet.map(Some).map_err(|fault| in_block(fault.into()))
    }

    /// Sorts the pages at `offsets` into normal and zero ones. Returns copies of the normal ones.
    fn sort(
        &mut self,
        block: &MemoryBlock<'_>,
        contents: &Contents,
        work: &Work<'_>,
        mut copies: Vec<u8>,
    ) -> Result<Vec<u8>, Cause> {
        self.normal.clear();
        self.zero.clear();
        copies.clear();
        let page_size = work.page_size;
        for &offset in &self.offsets {
            let page = [block
                .range
                .page(offset, page_size)
                .map_err(EngineFault::from)?];
            let before = copies.len();
            // Test the same copy that is sent: the guest may write the page at any time.
            Pages::guest(&page, page_size)?.append_to(&mut copies);
            let is_zero = contents.note(offset, copies.get(before..).unwrap_or_default());
            if work.zero_page_detection != ZeroPageDetection::None && is_zero {
                copies.truncate(before);
                self.zero.push(offset);
            } else {
                self.normal.push(offset);
            }
        }
        Ok(copies)
    }
}

impl Round<'_> {
    /// Counts what was sent, and waits until there is budget for more.
    fn spend(&self, bytes: u64) {
        self.work.tally.bytes(bytes);
        let mut left = self.work.pacer.spend(bytes, Instant::now());
        while !left.is_zero() && !self.stopped.load(Ordering::Relaxed) {
            let nap = left.min(TICK);
            thread::sleep(nap);
            left = left.saturating_sub(nap);
        }
    }

    // A panic in between leaves a cursor that stands somewhere in the bitmaps, which is all it ever
    // does.
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
    ) -> Option<(&'r MemoryBlock<'r>, &'r Contents)> {
        offsets.clear();
        let page_size = round.work.page_size;
        loop {
            let dirty = round.dirty.get(self.block)?;
            let block = round.work.blocks.get(self.block)?;
            let contents = round.work.contents.get(self.block)?;
            while let Some(page) = dirty.next(self.page) {
                self.page = page.saturating_add(1);
                offsets.push((page as u64).saturating_mul(page_size.bytes() as u64));
                if offsets.len() == page_size.pages_per_packet() {
                    break;
                }
            }
            if !offsets.is_empty() {
                return Some((block, contents));
            }
            self.block = self.block.saturating_add(1);
            self.page = 0;
        }
    }
}
