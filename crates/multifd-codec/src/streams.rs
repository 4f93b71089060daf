//! Workers on independent pieces: the channel's thread and helpers, each with its own tools.
//!
//! The result of a piece must depend only on the piece, not on the tools.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use crate::Streams;
use crate::channel::Arrived;
use crate::helpers::{self, Common, Help, Work, lock, processors};
use crate::page::Parts;

// One processor takes about a millisecond to write or read a packet. With this many, waking one
// more takes longer than it could save.
const MOST_WRITERS: usize = 16;
const MOST_READERS: usize = 8;
/// Most pieces that a reader reads at a time.
const MOST_TOGETHER: usize = 32;
/// The work of one processor while another one wakes.
pub(crate) const LEAST_BYTES: usize = 32 << 10;

/// The number of writers: one per stream, up to this thread's processors and the useful maximum.
pub(crate) fn writers(streams: Streams) -> usize {
    match streams.value() {
        1 => 1,
        streams => streams.min(processors()).min(MOST_WRITERS),
    }
}

/// The useful number of workers, and their function for the pieces of a job.
pub(crate) struct Crew<T: Send + 'static, J: Send + Sync + 'static> {
    mine: T,
    shared: Arc<Shared<T, J>>,
    help: Help,
}

/// Does a piece, by its number. Returns false if there is no point in continuing.
type DoPiece<T, J> = fn(tools: &mut T, job: &J, piece: usize) -> bool;

/// Shared by the caller and its helpers.
struct Shared<T, J> {
    do_piece: DoPiece<T, J>,
    common: Common<T>,
    /// Changed only while no thread works on it.
    job: RwLock<J>,
    /// The pieces not yet begun.
    left: Mutex<Range<usize>>,
    unfinished: AtomicUsize,
}

/// A piece in work. Dropping it ends the work on it, successful or not.
struct Begun<'s, T, J> {
    shared: &'s Shared<T, J>,
    piece: usize,
}

impl<T: Send + 'static, J: Default + Send + Sync + 'static> Crew<T, J> {
    /// A crew of `workers` workers.
    ///
    /// # Errors
    ///
    /// The errors of `tools`.
    pub(crate) fn new<E>(
        workers: usize,
        mut tools: impl FnMut() -> Result<T, E>,
        do_piece: DoPiece<T, J>,
    ) -> Result<Self, E> {
        let mine = tools()?;
        let others = std::iter::repeat_with(tools).take(workers.saturating_sub(1));
        let others = others.collect::<Result<Vec<_>, E>>()?;
        if !others.is_empty() {
            helpers::start();
        }
        Ok(Self {
            mine,
            shared: Arc::new(Shared {
                do_piece,
                common: Common::new(others),
                job: RwLock::default(),
                left: Mutex::new(0..0),
                unfinished: AtomicUsize::new(0),
            }),
            help: Help::new(),
        })
    }

    /// Does all pieces of a job, on this thread and helpers, `most` workers in all. The workers
    /// take pieces in order. When one returns false, they finish their current pieces and stop.
    ///
    /// # Panics
    ///
    /// Resumes the panic of a helper. The job is lost then.
    pub(crate) fn run(&mut self, job: &mut J, pieces: usize, most: usize) {
        let shared = &*self.shared;
        std::mem::swap(job, &mut *shared.write());
        shared.unfinished.store(pieces, Ordering::Relaxed);
        *lock(&shared.left) = 0..pieces;
        let others = most.saturating_sub(1).min(shared.common.tools().len());
        self.help.ask(others, &self.shared);
        while let Some(begun) = shared.begin() {
            begun.work(&mut self.mine);
        }
        shared.common.wait_until(|| shared.is_over());
        self.help.take_back();
        shared.common.resume_panic();
        std::mem::swap(job, &mut *shared.write());
    }

    /// The number of workers.
    pub(crate) fn workers(&self) -> usize {
        1 + self.shared.common.tools().len()
    }

    /// Visits all workers' tools, for collected results.
    pub(crate) fn each_tools(&mut self, mut look: impl FnMut(&mut T)) {
        look(&mut self.mine);
        for tools in self.shared.common.tools() {
            look(&mut lock(tools));
        }
    }
}

impl<T, J> Shared<T, J> {
    fn begin(&self) -> Option<Begun<'_, T, J>> {
        let piece = lock(&self.left).next()?;
        Some(Begun {
            shared: self,
            piece,
        })
    }

    fn is_over(&self) -> bool {
        self.unfinished.load(Ordering::Acquire) == 0
    }

    /// Prevents all further pieces.
    fn close(&self) {
        let mut left = lock(&self.left);
        self.unfinished.fetch_sub(left.len(), Ordering::Release);
        *left = 0..0;
    }

    fn write(&self) -> RwLockWriteGuard<'_, J> {
        self.job.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send, J: Send + Sync> Work for Shared<T, J> {
    fn help(&self) {
        let Some(mut tools) = self.common.free_tools() else {
            return;
        };
        while let Some(begun) = self.begin() {
            if self.common.guarded(|| begun.work(&mut tools)).is_none() {
                self.close();
                return;
            }
        }
    }
}

impl<T, J> Begun<'_, T, J> {
    fn work(&self, tools: &mut T) {
        let job = self.shared.job.read();
        let job = job.unwrap_or_else(PoisonError::into_inner);
        if !(self.shared.do_piece)(tools, &job, self.piece) {
            self.shared.close();
        }
    }
}

impl<T, J> Drop for Begun<'_, T, J> {
    fn drop(&mut self) {
        if self.shared.unfinished.fetch_sub(1, Ordering::Release) == 1 {
            self.shared.common.wake();
        }
    }
}

/// Reads the pieces of a payload, each into its own part of the packet's pages. `X` is the packet's
/// context, `E` the error of a piece.
pub(crate) struct Readers<T: Send + 'static, X: Send + Sync + 'static, E: Send + 'static> {
    crew: Crew<T, Reading<T, X, E>>,
    job: Reading<T, X, E>,
    read: ReadPieces<T, X, E>,
    least: usize,
}

/// Reads pieces, each to its part of the pages. Its error may be that of any bad piece.
pub(crate) type ReadPieces<T, X, E> = for<'d> fn(
    tools: &mut T,
    context: &X,
    pieces: &mut dyn Iterator<Item = Piece<'d>>,
) -> Result<(), E>;

/// A piece of a payload, and its part of the pages.
pub(crate) type Piece<'d> = (&'d [u8], &'d mut [u8]);

/// A packet that is being read.
struct Reading<T, X, E> {
    payload: Vec<u8>,
    /// The locations of the pieces in the payload.
    pieces: Vec<Range<usize>>,
    /// The parts for their pages.
    parts: Parts,
    context: X,
    read: Option<ReadPieces<T, X, E>>,
    /// Pieces that a worker reads at a time, at most [`MOST_TOGETHER`].
    together: usize,
    /// The number of pieces read.
    done: AtomicUsize,
    /// The error of the first bad piece.
    first_error: Mutex<Option<(usize, E)>>,
}

/// The pieces of a payload, to be listed in order.
pub(crate) struct Pieces<'l> {
    pieces: &'l mut Vec<Range<usize>>,
    parts: &'l mut Parts,
}

impl<T: Send + 'static, X: Default + Send + Sync + 'static, E: Send + 'static> Readers<T, X, E> {
    /// Makes the useful number of readers. Each reads at least `least` pieces at a time, as far as
    /// there are so many.
    ///
    /// # Errors
    ///
    /// The errors of `tools`.
    pub(crate) fn new<F>(
        tools: impl FnMut() -> Result<T, F>,
        read: ReadPieces<T, X, E>,
        least: usize,
    ) -> Result<Self, F> {
        Self::of(processors().min(MOST_READERS), tools, read, least)
    }

    fn of<F>(
        workers: usize,
        tools: impl FnMut() -> Result<T, F>,
        read: ReadPieces<T, X, E>,
        least: usize,
    ) -> Result<Self, F> {
        Ok(Self {
            crew: Crew::new(workers, tools, Reading::read)?,
            job: Reading::default(),
            read,
            least: least.min(MOST_TOGETHER),
        })
    }

    /// Reads a packet whose pieces `list` lists. The readers have the packet's payload and pages
    /// meanwhile. Returns `None` and reads nothing if `list` returns `None`.
    ///
    /// # Errors
    ///
    /// The first bad piece and its error.
    pub(crate) fn read(
        &mut self,
        packet: &mut Arrived,
        context: X,
        list: impl FnOnce(&[u8], &mut Pieces<'_>) -> Option<()>,
    ) -> Result<Option<()>, (usize, E)> {
        let job = &mut self.job;
        job.pieces.clear();
        job.parts.begin(packet.pages.as_ref().len());
        let mut pieces = Pieces {
            pieces: &mut job.pieces,
            parts: &mut job.parts,
        };
        if list(&packet.payload, &mut pieces).is_none() {
            return Ok(None);
        }
        job.context = context;
        job.done = AtomicUsize::new(0);
        job.read = Some(self.read);
        std::mem::swap(&mut job.payload, &mut packet.payload);
        job.parts.fill(&mut packet.pages);
        let (count, bytes) = (job.pieces.len(), job.parts.len_bytes());
        let workers = self.crew.workers().min(count).min(bytes / LEAST_BYTES);
        let workers = workers.max(1);
        // A few turns for each worker, so that all of them end at about the same time.
        job.together = (count / (4 * workers)).clamp(self.least, MOST_TOGETHER);
        let batches = count.div_ceil(job.together);
        self.crew.run(job, batches, workers);
        std::mem::swap(&mut job.payload, &mut packet.payload);
        packet.pages = job.parts.take_back();
        job.context = X::default();
        match lock(&job.first_error).take() {
            Some(error) => Err(error),
            // An unread piece without an error would not be a piece of this packet.
            None => Ok((job.done.load(Ordering::Acquire) == count).then_some(())),
        }
    }
}

impl Pieces<'_> {
    /// Adds a piece of the payload, which fills the next `len_bytes` of pages. Returns `None` if
    /// the payload or the pages have fewer bytes.
    pub(crate) fn push(&mut self, piece: Range<usize>, len_bytes: usize) -> Option<()> {
        self.parts.push(len_bytes)?;
        self.pieces.push(piece);
        Some(())
    }

    /// The number of pieces.
    #[cfg(feature = "zstd")]
    pub(crate) const fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Returns whether they fill all of the pages.
    #[cfg(feature = "zstd")]
    pub(crate) fn are_all(&self) -> bool {
        self.parts.are_all()
    }
}

impl<T, X: Default, E> Default for Reading<T, X, E> {
    fn default() -> Self {
        Self {
            payload: Vec::new(),
            pieces: Vec::new(),
            parts: Parts::default(),
            context: X::default(),
            read: None,
            together: 1,
            done: AtomicUsize::new(0),
            first_error: Mutex::new(None),
        }
    }
}

impl<T, X, E> Reading<T, X, E> {
    fn read(tools: &mut T, job: &Self, batch: usize) -> bool {
        let first = batch * job.together;
        let pieces = job.pieces.get(first..).unwrap_or_default();
        let pieces = pieces.get(..job.together).unwrap_or(pieces);
        let mut room: [Option<Piece<'_>>; MOST_TOGETHER] = [const { None }; MOST_TOGETHER];
        for ((number, piece), room) in (first..).zip(pieces).zip(&mut room) {
            // No other worker has these numbers.
            let (Some(piece), Some(part)) =
                (job.payload.get(piece.clone()), job.parts.take(number))
            else {
                return false;
            };
            *room = Some((piece, part));
        }
        let Some(read) = job.read else {
            return false;
        };
        let all = room.iter_mut().flatten();
        let mut all = all.map(|(piece, part)| (*piece, &mut **part));
        if read(tools, &job.context, &mut all).is_ok() {
            job.done.fetch_add(pieces.len(), Ordering::Release);
            return true;
        }
        // Again one by one, to find the first bad piece.
        let all = room.iter_mut().flatten();
        let all = all.map(|(piece, part)| (*piece, &mut **part));
        for (number, piece) in (first..).zip(all) {
            if let Err(error) = read(tools, &job.context, &mut std::iter::once(piece)) {
                job.note(number, error);
                return false;
            }
            job.done.fetch_add(1, Ordering::Release);
        }
        true
    }

    fn note(&self, number: usize, error: E) {
        let mut first = lock(&self.first_error);
        if first.as_ref().is_none_or(|(first, _)| number < *first) {
            *first = Some((number, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn every_number_is_dealt_with_once() {
        fn see(seen: &mut Vec<usize>, (): &(), number: usize) -> bool {
            seen.push(number);
            true
        }
        for workers in 1..5 {
            let Ok(mut crew) = Crew::new(workers, || Ok::<_, Infallible>(Vec::new()), see);
            for count in [0, 1, 20] {
                crew.run(&mut (), count, count);
                let mut all = Vec::new();
                crew.each_tools(|seen| all.append(seen));
                all.sort_unstable();
                assert!(all.into_iter().eq(0..count));
            }
        }
    }

    #[test]
    fn every_piece_is_read_into_its_own_part() {
        const LEN: usize = LEAST_BYTES;
        fn fill(
            (): &mut (),
            (): &(),
            pieces: &mut dyn Iterator<Item = Piece<'_>>,
        ) -> Result<(), &'static str> {
            // The last one first: it need not be the first bad one.
            let mut pieces: Vec<_> = pieces.collect();
            for (piece, pages) in pieces.iter_mut().rev() {
                pages.fill(piece[0]);
                match piece[0] {
                    9 => return Err("nine"),
                    8 => return Err("eight"),
                    _ => {}
                }
            }
            Ok(())
        }
        fn list(_: &[u8], pieces: &mut Pieces<'_>) -> Option<()> {
            (0..5).try_for_each(|at| pieces.push(at..at + 1, LEN))
        }
        for workers in 1..5 {
            let Ok(mut readers) =
                Readers::of(workers, || Ok::<_, Infallible>(()), fill, 1 + workers % 2);
            let mut packet = Arrived {
                payload: vec![1, 2, 3, 4, 5],
                pages: vec![0; 5 * LEN].into(),
            };
            assert_eq!(readers.read(&mut packet, (), list), Ok(Some(())));
            assert_eq!(packet.payload, [1, 2, 3, 4, 5]);
            for (place, number) in packet.pages.as_ref().chunks(LEN).zip(1..) {
                assert!(place.iter().all(|&byte| byte == number));
            }
            packet.payload = vec![1, 9, 8, 1, 1];
            assert_eq!(readers.read(&mut packet, (), list), Err((1, "nine")));
            // The next packet gets nothing of it.
            packet.payload = vec![5, 4, 3, 2, 1];
            assert_eq!(readers.read(&mut packet, (), list), Ok(Some(())));
            // More than the pages have room for.
            let more = |_: &[u8], pieces: &mut Pieces<'_>| pieces.push(0..1, 6 * LEN);
            assert_eq!(readers.read(&mut packet, (), more), Ok(None));
            assert_eq!(packet.pages.as_ref().len(), 5 * LEN);
        }
    }
}
