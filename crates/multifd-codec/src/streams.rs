//! Workers on pieces that know nothing of each other: the channel's thread and others, each with
//! tools of its own.
//!
//! The result of a piece must depend on the piece alone, and never on whose tools it was made with.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use crate::Streams;
use crate::channel::Arrived;
use crate::helpers::{self, Common, Help, Work, lock, processors};
use crate::page::Parts;

// One processor takes about a millisecond for a packet, to write it or to read it. With so many, to
// wake them takes longer than another one could save.
const MOST_WRITERS: usize = 16;
const MOST_READERS: usize = 8;
/// What one processor has done by the time that another one has woken.
pub(crate) const LEAST_BYTES: usize = 32 << 10;

/// A worker for each stream, but no more than this thread may have processors, or than are of use.
pub(crate) fn writers(streams: Streams) -> usize {
    match streams.value() {
        1 => 1,
        streams => streams.min(processors()).min(MOST_WRITERS),
    }
}

/// As many workers as can be of use, and what they do with the pieces of a job.
pub(crate) struct Crew<T: Send + 'static, J: Send + Sync + 'static> {
    mine: T,
    shared: Arc<Shared<T, J>>,
    help: Help,
}

/// Does a piece, by its number. False if it is of no use to go on.
type DoPiece<T, J> = fn(tools: &mut T, job: &J, piece: usize) -> bool;

/// What the caller and its helpers work on.
struct Shared<T, J> {
    do_piece: DoPiece<T, J>,
    common: Common<T>,
    /// Changed only while nobody is at work on it.
    job: RwLock<J>,
    /// The pieces that nobody has begun.
    left: Mutex<Range<usize>>,
    unfinished: AtomicUsize,
}

/// A piece that somebody has begun. When this is dropped the work on it is over, however it has
/// ended.
struct Begun<'s, T, J> {
    shared: &'s Shared<T, J>,
    piece: usize,
}

impl<T: Send + 'static, J: Default + Send + Sync + 'static> Crew<T, J> {
    /// A crew of so many.
    ///
    /// # Errors
    ///
    /// Those of `tools`.
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

    /// Does all pieces of a job, on this thread and on as many others that there are `most` in all.
    /// The workers take pieces in their order. When one says that it is of no use to go on, they
    /// finish what they have begun.
    ///
    /// # Panics
    ///
    /// With the panic of a helper. The job is lost then.
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

    /// Looks at everybody's tools, for what they have collected.
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

    /// Lets nobody begin anything any more.
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

/// Reads the pieces of a payload, each into its own part of the packet's pages. `X` is what has to
/// be known of the packet, `E` what can be wrong with a piece.
pub(crate) struct Readers<T: Send + 'static, X: Send + Sync + 'static, E: Send + 'static> {
    crew: Crew<T, Reading<T, X, E>>,
    job: Reading<T, X, E>,
    read: ReadPiece<T, X, E>,
}

/// Reads one piece.
pub(crate) type ReadPiece<T, X, E> =
    fn(tools: &mut T, context: &X, piece: &[u8], pages: &mut [u8]) -> Result<(), E>;

/// A packet that is read.
struct Reading<T, X, E> {
    payload: Vec<u8>,
    /// Where the pieces are in the payload.
    pieces: Vec<Range<usize>>,
    /// Where their pages belong.
    parts: Parts,
    context: X,
    read: Option<ReadPiece<T, X, E>>,
    /// How many pieces are read.
    done: AtomicUsize,
    /// What is wrong with the first of the pieces that cannot be read.
    first_error: Mutex<Option<(usize, E)>>,
}

/// The pieces of a payload, to be listed one behind the other.
pub(crate) struct Pieces<'l> {
    pieces: &'l mut Vec<Range<usize>>,
    parts: &'l mut Parts,
}

impl<T: Send + 'static, X: Default + Send + Sync + 'static, E: Send + 'static> Readers<T, X, E> {
    /// As many readers as can be of use.
    ///
    /// # Errors
    ///
    /// Those of `tools`.
    pub(crate) fn new<F>(
        tools: impl FnMut() -> Result<T, F>,
        read: ReadPiece<T, X, E>,
    ) -> Result<Self, F> {
        Self::of(processors().min(MOST_READERS), tools, read)
    }

    fn of<F>(
        workers: usize,
        tools: impl FnMut() -> Result<T, F>,
        read: ReadPiece<T, X, E>,
    ) -> Result<Self, F> {
        Ok(Self {
            crew: Crew::new(workers, tools, Reading::read)?,
            job: Reading::default(),
            read,
        })
    }

    /// Reads a packet whose pieces `list` lists. The readers have the packet's payload and pages
    /// while they read. None if `list` says no: then nothing is read.
    ///
    /// # Errors
    ///
    /// The first of the pieces that cannot be read, and what is wrong with it.
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
        self.crew.run(job, count, count.min(bytes / LEAST_BYTES));
        std::mem::swap(&mut job.payload, &mut packet.payload);
        packet.pages = job.parts.take_back();
        job.context = X::default();
        match lock(&job.first_error).take() {
            Some(error) => Err(error),
            // A piece that nobody has read has its error, or it would be no piece of this packet.
            None => Ok((job.done.load(Ordering::Acquire) == count).then_some(())),
        }
    }
}

impl Pieces<'_> {
    /// Adds a piece that is there in the payload, and becomes the next `len_bytes` of pages.
    /// Nothing if there are not so many.
    pub(crate) fn push(&mut self, piece: Range<usize>, len_bytes: usize) -> Option<()> {
        self.parts.push(len_bytes)?;
        self.pieces.push(piece);
        Some(())
    }

    /// How many there are.
    #[cfg(feature = "zstd")]
    pub(crate) const fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether they fill all of the pages.
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
            done: AtomicUsize::new(0),
            first_error: Mutex::new(None),
        }
    }
}

impl<T, X, E> Reading<T, X, E> {
    fn read(tools: &mut T, job: &Self, number: usize) -> bool {
        let piece = job.pieces.get(number).cloned();
        let piece = piece.and_then(|piece| job.payload.get(piece));
        // Nobody else has this number.
        let (Some(read), Some(piece), Some(part)) = (job.read, piece, job.parts.take(number))
        else {
            return false;
        };
        let outcome = read(tools, &job.context, piece, part);
        match outcome {
            Ok(()) => job.done.fetch_add(1, Ordering::Release),
            Err(error) => {
                job.note(number, error);
                return false;
            }
        };
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
        fn fill((): &mut (), (): &(), piece: &[u8], pages: &mut [u8]) -> Result<(), &'static str> {
            pages.fill(piece[0]);
            if piece[0] == 9 { Err("nine") } else { Ok(()) }
        }
        fn list(_: &[u8], pieces: &mut Pieces<'_>) -> Option<()> {
            (0..5).try_for_each(|at| pieces.push(at..at + 1, LEN))
        }
        for workers in 1..5 {
            let Ok(mut readers) = Readers::of(workers, || Ok::<_, Infallible>(()), fill);
            let mut packet = Arrived {
                payload: vec![1, 2, 3, 4, 5],
                pages: vec![0; 5 * LEN].into(),
            };
            assert_eq!(readers.read(&mut packet, (), list), Ok(Some(())));
            assert_eq!(packet.payload, [1, 2, 3, 4, 5]);
            for (place, number) in packet.pages.as_ref().chunks(LEN).zip(1..) {
                assert!(place.iter().all(|&byte| byte == number));
            }
            packet.payload = vec![1, 9, 9, 1, 1];
            assert_eq!(readers.read(&mut packet, (), list), Err((1, "nine")));
            // Nothing of it is left for the next one.
            packet.payload = vec![5, 4, 3, 2, 1];
            assert_eq!(readers.read(&mut packet, (), list), Ok(Some(())));
            // More than there is room for.
            let more = |_: &[u8], pieces: &mut Pieces<'_>| pieces.push(0..1, 6 * LEN);
            assert_eq!(readers.read(&mut packet, (), more), Ok(None));
            assert_eq!(packet.pages.as_ref().len(), 5 * LEN);
        }
    }
}
