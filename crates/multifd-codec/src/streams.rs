//! Who works on pieces that know nothing of each other: the channel's thread and others, each with tools of its own.
//!
//! What comes out of a piece must depend on the piece alone, and never on whose tools it was made with.

use std::sync::Mutex;

use crate::Streams;
use crate::helpers::{self, get_mut, into_inner, lock, processors, share};
use crate::pipeline::{self, Ends, Room};

/// As many workers as can be of use: this thread and others, each with tools of its own.
pub(crate) struct Crew<T> {
    mine: T,
    others: Vec<Mutex<T>>,
    room: Box<Room>,
    /// Room for pieces to decompress; empty between packets.
    places: Vec<Place<'static>>,
}

// One processor takes about a millisecond for a packet, to write it or to read it. With so many, to wake them takes longer
// than another one could save.
const MOST_WRITERS: usize = 16;
const MOST_READERS: usize = 8;
/// What one processor has done by the time that another one has woken.
pub(crate) const LEAST_BYTES: usize = 32 << 10;

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
        let mut crew = Self::of(count, tools)?;
        if count > 1 {
            crew.room.make_ready();
        }
        Ok(crew)
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
        Ok(Self {
            mine: tools()?,
            others: std::iter::repeat_with(|| tools().map(Mutex::new))
                .take(count - 1)
                .collect::<Result<_, E>>()?,
            room: Box::default(),
            places: Vec::new(),
        })
    }

    /// Compresses packets, several at a time, for as long as `ends` has some.
    ///
    /// # Errors
    ///
    /// What `work` has said of the first packet that cannot be compressed, or what `ends` has said. Packets in work are lost
    /// then.
    pub(crate) fn compress<E: Ends>(
        &mut self,
        ends: &mut E,
        work: impl Fn(&mut T, &E::Context, &[u8], &mut Vec<u8>) -> Result<(), E::Error> + Sync,
    ) -> Result<(), E::Error> {
        pipeline::compress(&mut self.mine, &self.others, &mut self.room, ends, work)
    }

    /// An empty list for [`Self::decompress`], with the room that the last one had.
    pub(crate) fn no_places<'p>(&mut self) -> Vec<Place<'p>> {
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
        let most = pieces.len().min(bytes / LEAST_BYTES);
        let first_error = FirstError::none();
        let pieces = pieces.iter_mut().enumerate();
        self.hand_out(most, pieces, |tools, (index, piece)| {
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
        self.hand_out(count, 0..count, |tools, number| {
            work(tools, number);
            true
        });
        std::iter::once(&mut self.mine).chain(self.others.iter_mut().map(get_mut))
    }

    /// Lets workers, no more than `most`, take things to do in their order, each until `work` says that it is of no use to go on.
    fn hand_out<I>(
        &mut self,
        most: usize,
        things: impl Iterator<Item = I> + Send,
        work: impl Fn(&mut T, I) -> bool + Sync,
    ) {
        let left = Mutex::new(things);
        let work = |tools: &mut T| {
            loop {
                // The lock must not be held meanwhile.
                let next = lock(&left).next();
                let goes_on = next.is_some_and(|thing| work(tools, thing));
                if !goes_on {
                    return;
                }
            }
        };
        share(&self.others, work, |help| {
            help.ask(most.saturating_sub(1));
            work(&mut self.mine);
        });
    }
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
        into_inner(self.0).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crew<T: Default + Send>(workers: usize) -> Crew<T> {
        let Ok(crew) = Crew::of(workers, || Ok::<_, std::convert::Infallible>(T::default()));
        crew
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
        const LEN: usize = LEAST_BYTES;
        for workers in 1..5 {
            let mut output = vec![0; 5 * LEN];
            let pieces = [&[1][..], &[2], &[3], &[4], &[5]]
                .into_iter()
                .zip(output.chunks_mut(LEN))
                .collect();
            let work = |(): &mut (), input: &[u8], output: &mut [u8]| {
                output.fill(input[0]);
                if input[0] == 9 { Err(()) } else { Ok(()) }
            };
            crew(workers).decompress(pieces, work).unwrap();
            for (place, number) in output.chunks(LEN).zip(1..) {
                assert!(place.iter().all(|&byte| byte == number));
            }
            let nines = [&[1][..], &[9], &[9]]
                .into_iter()
                .zip(output.chunks_mut(LEN))
                .collect();
            let outcome = crew(workers).decompress(nines, work);
            assert_eq!(outcome, Err((1, ())));
        }
    }
}
