//! Several streams in one channel: pieces of a packet that know nothing of each other, all in work at once.
//!
//! What comes out of a piece depends on the piece alone, and the results are joined in the pieces' order. So the payload is
//! the same however many threads there were, and whichever of them was faster.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Streams;
use crate::helpers::{self, processors, share};

/// As many workers as can be of use, each with tools of its own.
pub(crate) struct Crew<T> {
    workers: Vec<Worker<T>>,
    pieces: Vec<Range<usize>>,
    ends: Vec<usize>,
    /// Room for pieces to decompress; empty between packets.
    places: Vec<Place<'static>>,
    /// Pages' bytes that are worth a worker.
    least_bytes: usize,
}

struct Worker<T> {
    tools: T,
    out: Vec<u8>,
    /// The pieces done in this packet from the last one on, and where their results are in `out`.
    done: Vec<(usize, Range<usize>)>,
}

// One processor takes about a millisecond for a packet, to write it or to read it. With so many, to wake them takes longer
// than another one could save.
const MOST_WRITERS: usize = 16;
const MOST_READERS: usize = 8;
/// What one processor has done by the time that another one has woken.
const LEAST_BYTES: usize = 32 << 10;

/// A piece to decompress, and its place.
pub(crate) type Place<'p> = (&'p [u8], &'p mut [u8]);

impl<T: Send> Crew<T> {
    /// A worker for each stream, but no more than this thread may have processors, or than are of use.
    ///
    /// # Errors
    ///
    /// What `tools` has said.
    pub(crate) fn new<E>(streams: Streams, tools: impl FnMut() -> Result<T, E>) -> Result<Self, E> {
        let count = match streams.value() {
            1 => 1,
            streams => streams.min(processors()).min(MOST_WRITERS),
        };
        Self::of(count, tools)
    }

    /// For whoever reads what others have cut into pieces.
    ///
    /// # Errors
    ///
    /// What `tools` has said.
    pub(crate) fn of_readers<E>(tools: impl FnMut() -> Result<T, E>) -> Result<Self, E> {
        Self::of(processors().min(MOST_READERS), tools)
    }

    fn of<E>(count: usize, mut tools: impl FnMut() -> Result<T, E>) -> Result<Self, E> {
        if count > 1 {
            helpers::start();
        }
        let worker = || {
            Ok(Worker {
                tools: tools()?,
                out: Vec::new(),
                done: Vec::new(),
            })
        };
        Ok(Self {
            workers: std::iter::repeat_with(worker)
                .take(count)
                .collect::<Result<_, E>>()?,
            pieces: Vec::new(),
            ends: Vec::new(),
            places: Vec::new(),
            least_bytes: LEAST_BYTES,
        })
    }

    /// Cuts `input` into pieces of `lengths`, lets `work` append the result of each to a buffer, and appends all results
    /// to `out`. Returns where in `out` each of them ends.
    ///
    /// # Errors
    ///
    /// What `work` has said first, in the order of the pieces as far as they were done. What is in `out` then means
    /// nothing.
    pub(crate) fn compress<E: Send>(
        &mut self,
        input: &[u8],
        lengths: impl Iterator<Item = usize>,
        out: &mut Vec<u8>,
        work: impl Fn(&mut T, &[u8], &mut Vec<u8>) -> Result<(), E> + Sync,
    ) -> Result<&[usize], E> {
        self.cut(lengths);
        let Self {
            workers,
            pieces,
            ends,
            least_bytes,
            ..
        } = self;
        ends.clear();
        let most = pieces.len().min(input.len() / *least_bytes);
        let Some((mine, others)) = first_and_others(workers, most) else {
            return Ok(ends);
        };
        for other in &mut *others {
            other.out.clear();
            other.done.clear();
        }
        let piece = |index: usize| pieces.get(index).and_then(|piece| input.get(piece.clone()));
        let left = Mutex::new(0..pieces.len());
        let first_error = FirstError::none();
        // Here the first pieces are done, which come into their place at once, elsewhere the last ones. The lock must not be
        // held meanwhile, as it would be if it was taken in the head of a loop.
        let (first, last) = (|| lock(&left).next(), || lock(&left).next_back());
        let there = |other: &mut Worker<T>| {
            while let Some(index) = last() {
                let (start, piece) = (other.out.len(), piece(index).unwrap_or_default());
                if let Err(error) = work(&mut other.tools, piece, &mut other.out) {
                    return first_error.note(index, error);
                }
                other.done.push((index, start..other.out.len()));
            }
        };
        let here = || {
            while let Some(index) = first() {
                if let Err(error) = work(&mut mine.tools, piece(index).unwrap_or_default(), out) {
                    return first_error.note(index, error);
                }
                ends.push(out.len());
            }
        };
        share(others, there, here);
        first_error.outcome().map_err(|(_, error)| error)?;
        for index in ends.len()..pieces.len() {
            let is_next = |&mut (done, _): &mut (usize, Range<usize>)| done == index;
            let found = others
                .iter_mut()
                .find_map(|other| Some((other.done.pop_if(is_next)?, &other.out)));
            debug_assert!(found.is_some(), "all pieces have been done");
            if let Some(((_, place), results)) = found {
                out.extend_from_slice(results.get(place).unwrap_or_default());
            }
            ends.push(out.len());
        }
        Ok(ends)
    }

    /// An empty list for [`Self::decompress`], with the room that the last one had.
    pub(crate) fn no_pieces<'p>(&mut self) -> Vec<Place<'p>> {
        std::mem::take(&mut self.places)
    }

    /// Decompresses each piece into its place.
    ///
    /// # Errors
    ///
    /// The first of the pieces of which `work` has said something, and what it was.
    pub(crate) fn decompress<E: Send>(
        &mut self,
        mut pieces: Vec<Place<'_>>,
        work: impl Fn(&mut T, &[u8], &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), (usize, E)> {
        let outcome = self.decompress_all(&mut pieces, work);
        // Collecting nothing into a list of the same kind keeps its memory.
        pieces.clear();
        self.places = pieces.into_iter().map(|_| Place::default()).collect();
        outcome
    }

    fn decompress_all<E: Send>(
        &mut self,
        pieces: &mut [Place<'_>],
        work: impl Fn(&mut T, &[u8], &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), (usize, E)> {
        let bytes: usize = pieces.iter().map(|(_, place)| place.len()).sum();
        let most = pieces.len().min(bytes / self.least_bytes);
        let first_error = FirstError::none();
        let pieces = pieces.iter_mut().enumerate();
        hand_out(&mut self.workers, most, pieces, |tools, (index, piece)| {
            let (input, output) = piece;
            work(tools, input, output)
                .map_err(|error| first_error.note(index, error))
                .is_ok()
        });
        first_error.outcome()
    }

    /// Does `work` for each number below `count`, none of which matters to another one. Returns the tools of all, for what
    /// they have collected.
    pub(crate) fn each(
        &mut self,
        count: usize,
        work: impl Fn(&mut T, usize) + Sync,
    ) -> impl Iterator<Item = &mut T> {
        hand_out(&mut self.workers, count, 0..count, |tools, number| {
            work(tools, number);
            true
        });
        self.workers.iter_mut().map(|worker| &mut worker.tools)
    }

    fn cut(&mut self, lengths: impl Iterator<Item = usize>) {
        self.pieces.clear();
        let mut start = 0;
        self.pieces.extend(lengths.map(|len| {
            let piece = start..start + len;
            start = piece.end;
            piece
        }));
    }
}

/// Lets workers, no more than `most`, take things to do in their order, each until `work` says that it is of no use to go on.
fn hand_out<T: Send, I>(
    workers: &mut [Worker<T>],
    most: usize,
    things: impl Iterator<Item = I> + Send,
    work: impl Fn(&mut T, I) -> bool + Sync,
) {
    let Some((mine, others)) = first_and_others(workers, most) else {
        return;
    };
    let left = Mutex::new(things);
    let work = |worker: &mut Worker<T>| {
        loop {
            // The lock must not be held meanwhile.
            let next = lock(&left).next();
            let goes_on = next.is_some_and(|thing| work(&mut worker.tools, thing));
            if !goes_on {
                return;
            }
        }
    };
    let here = || work(mine);
    share(others, work, here);
}

/// The worker of this thread, and others as long as there are no more than `most` in all.
fn first_and_others<T>(
    workers: &mut [Worker<T>],
    most: usize,
) -> Option<(&mut Worker<T>, &mut [Worker<T>])> {
    let (first, others) = workers.split_first_mut()?;
    let count = others.len().min(most.saturating_sub(1));
    Some((first, others.get_mut(..count).unwrap_or_default()))
}

/// Nothing that is locked here can be left half done.
fn lock<L>(lock: &Mutex<L>) -> MutexGuard<'_, L> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said of the first of the pieces that could not be done.
struct FirstError<E>(Mutex<Option<(usize, E)>>);

impl<E> FirstError<E> {
    const fn none() -> Self {
        Self(Mutex::new(None))
    }

    fn note(&self, index: usize, error: E) {
        let mut first = lock(&self.0);
        if first.as_ref().is_none_or(|(first, _)| index < *first) {
            *first = Some((index, error));
        }
    }

    fn outcome(self) -> Result<(), (usize, E)> {
        let first = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn crew<T: Default>(workers: usize) -> Crew<T> {
        let worker = || Worker {
            tools: T::default(),
            out: Vec::new(),
            done: Vec::new(),
        };
        Crew {
            workers: std::iter::repeat_with(worker).take(workers).collect(),
            pieces: Vec::new(),
            ends: Vec::new(),
            places: Vec::new(),
            least_bytes: 1,
        }
    }

    #[test]
    fn results_are_joined_in_the_pieces_order_whoever_made_them() {
        let input: Vec<u8> = (0..100).collect();
        for workers in 1..6 {
            for pieces in [1, 2, 7, 50] {
                let mut crew = crew(workers);
                for _ in 0..3 {
                    let mut out = vec![200];
                    let lengths = (0..pieces).map(|_| 100 / pieces);
                    let work = |(): &mut (), piece: &[u8], out: &mut Vec<u8>| {
                        out.extend(piece.iter().step_by(2));
                        Ok::<_, ()>(())
                    };
                    let ends = crew.compress(&input, lengths, &mut out, work).unwrap();
                    assert_eq!(ends.len(), pieces);
                    assert_eq!(ends.last(), Some(&out.len()));
                    let len = 100 / pieces;
                    let expected: Vec<u8> = std::iter::once(200)
                        .chain((0..pieces).flat_map(|piece| {
                            (piece * len..(piece + 1) * len)
                                .step_by(2)
                                .map(|at| at as u8)
                        }))
                        .collect();
                    assert_eq!(out, expected);
                }
            }
        }
    }

    /// Compresses bytes one by one, again until another thread has done so many of them. A byte 255 is an error.
    fn compress_with_help(crew: &mut Crew<()>, input: &[u8], there: usize) -> Result<Vec<u8>, u8> {
        let caller = thread::current().id();
        for _ in 0..1000 {
            let helped = AtomicUsize::new(0);
            let work = |(): &mut (), piece: &[u8], out: &mut Vec<u8>| {
                let since = Instant::now();
                if thread::current().id() != caller {
                    helped.fetch_add(1, Ordering::Relaxed);
                } else {
                    let is_alone = || helped.load(Ordering::Relaxed) < there;
                    while is_alone() && since.elapsed() < Duration::from_millis(10) {
                        thread::yield_now();
                    }
                }
                out.extend_from_slice(piece);
                match piece {
                    [255] => Err(255),
                    _ => Ok(()),
                }
            };
            let mut out = Vec::new();
            let lengths = std::iter::repeat_n(1, input.len());
            let outcome = crew.compress(input, lengths, &mut out, work);
            let outcome = outcome.map(|ends| ends.iter().copied().eq(1..=input.len()));
            if helped.load(Ordering::Relaxed) >= there || processors() == 1 {
                assert_ne!(outcome, Ok(false));
                return outcome.map(|_| out);
            }
        }
        unreachable!("nobody helps")
    }

    #[test]
    fn what_is_done_elsewhere_comes_into_its_place() {
        let mut crew = crew(2);
        for input in [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]] {
            let output = compress_with_help(&mut crew, &input, 3);
            assert_eq!(output, Ok(input.to_vec()));
        }
        // Others begin with the last piece.
        for (input, there) in [([1, 2, 3, 255], 1), ([255, 2, 3, 4], 3)] {
            assert_eq!(compress_with_help(&mut crew, &input, there), Err(255));
        }
        let input = [1, 2, 3];
        assert_eq!(compress_with_help(&mut crew, &input, 1), Ok(input.to_vec()));
    }

    #[test]
    fn an_error_of_any_worker_is_the_packets() {
        let input = [0, 0, 1, 0, 1, 0];
        for workers in 1..4 {
            let work = |(): &mut (), piece: &[u8], _: &mut Vec<u8>| match piece {
                [1] => Err("one"),
                _ => Ok(()),
            };
            let outcome = crew(workers)
                .compress(&input, [1; 6].into_iter(), &mut Vec::new(), work)
                .map(<[usize]>::len);
            assert_eq!(outcome, Err("one"));
        }
    }

    #[test]
    fn every_number_is_dealt_with_once() {
        for workers in 1..5 {
            let mut crew: Crew<Vec<usize>> = crew(workers);
            for count in [0, 1, 20] {
                let tools = crew.each(count, |seen, number| seen.push(number));
                let mut seen: Vec<usize> = tools.flat_map(std::mem::take).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..count));
            }
        }
    }

    #[test]
    fn every_piece_is_decompressed_into_its_own_place() {
        for workers in 1..5 {
            let mut output = [0; 10];
            let pieces = [&[1][..], &[2], &[3], &[4], &[5]]
                .into_iter()
                .zip(output.chunks_mut(2))
                .collect();
            let work = |(): &mut (), input: &[u8], output: &mut [u8]| {
                output.fill(input[0]);
                if input[0] == 9 { Err(()) } else { Ok(()) }
            };
            crew(workers).decompress(pieces, work).unwrap();
            assert_eq!(output, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
            let [first, second, third, ..] = &mut output;
            let nines = [(&[1][..], first), (&[9], second), (&[9], third)]
                .map(|(input, byte)| (input, std::slice::from_mut(byte)));
            let outcome = crew(workers).decompress(nines.into(), work);
            assert_eq!(outcome, Err((1, ())));
        }
    }
}
