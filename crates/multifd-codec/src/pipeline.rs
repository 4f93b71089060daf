//! Packets that are compressed in pieces, several packets at a time.
//!
//! While the last pieces of one packet are done, the first ones of the next are begun, and while its payload is written
//! others go on. So nobody waits for anybody as long as there are packets.
//!
//! What comes out of a piece depends on the piece alone, and the results are joined in the pieces' order. So a payload is
//! the same however many threads there were, and whichever of them were faster.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockWriteGuard};

use crate::Streams;
use crate::helpers::{Help, get_mut, lock, share};
use crate::settings::run;
use crate::streams::LEAST_BYTES;

/// Where packets come from and payloads go to, all on the caller's thread.
pub(crate) trait Ends {
    /// What holds a packet's bytes.
    type Bytes: AsRef<[u8]> + Send + Sync;
    /// What has to be known of a packet to compress its pieces.
    type Context: Send + Sync;
    /// Why it cannot go on.
    type Error: Send + From<Incomplete>;

    /// The next packet, if there is one now. `payload` is empty; what is put into it precedes the pieces.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be compressed.
    fn next(&mut self, payload: &mut Vec<u8>) -> Result<NextPacket<Self>, Self::Error>;

    /// Takes the payload of the packet that has waited longest. Its pieces end where `ends` says.
    ///
    /// # Errors
    ///
    /// When nothing more shall be done.
    fn done(
        &mut self,
        packet: Packet<Self::Bytes, Self::Context>,
        payload: &mut Vec<u8>,
        ends: &[usize],
    ) -> Result<(), Self::Error>;
}

/// A piece of a packet is missing and nobody has said why. That would be a fault of this file; what
/// there is of the payload is not handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incomplete;

pub(crate) type NextPacket<E> = Option<Packet<<E as Ends>::Bytes, <E as Ends>::Context>>;

/// A packet, and how it is cut: into so many runs of parts, no two of which differ by more than a part.
pub(crate) struct Packet<B, C> {
    pub(crate) bytes: B,
    pub(crate) part_bytes: usize,
    pub(crate) runs: usize,
    pub(crate) context: C,
}

impl<B: AsRef<[u8]>, C> Packet<B, C> {
    fn run(&self, index: usize) -> &[u8] {
        let bytes = self.bytes.as_ref();
        let parts = run(index, self.runs, bytes.len() / self.part_bytes);
        let places = parts.start * self.part_bytes..parts.end * self.part_bytes;
        bytes.get(places).unwrap_or_default()
    }
}

/// One packet, whose payload goes behind what `payload` holds.
pub(crate) struct One<'o, C, F, E> {
    packet: Option<Packet<&'o [u8], C>>,
    payload: &'o mut Vec<u8>,
    /// Is told where the payload's pieces end.
    note: F,
    error: PhantomData<fn() -> E>,
}

impl<'o, C, E, F: FnMut(&[usize])> One<'o, C, F, E> {
    pub(crate) const fn new(
        packet: Packet<&'o [u8], C>,
        payload: &'o mut Vec<u8>,
        note: F,
    ) -> Self {
        Self {
            packet: Some(packet),
            payload,
            note,
            error: PhantomData,
        }
    }
}

impl<'o, C: Send + Sync, E: Send + From<Incomplete>, F: FnMut(&[usize])> Ends for One<'o, C, F, E> {
    type Bytes = &'o [u8];
    type Context = C;
    type Error = E;

    fn next(&mut self, payload: &mut Vec<u8>) -> Result<NextPacket<Self>, E> {
        let packet = self.packet.take();
        if packet.is_some() {
            std::mem::swap(payload, self.payload);
        }
        Ok(packet)
    }

    fn done(
        &mut self,
        _: Packet<&'o [u8], C>,
        payload: &mut Vec<u8>,
        ends: &[usize],
    ) -> Result<(), E> {
        std::mem::swap(payload, self.payload);
        (self.note)(ends);
        Ok(())
    }
}

/// Packets in work at once.
const PLACES: usize = 4;

/// Something for each packet in work. Every number has a place, in turn.
#[derive(Default)]
struct Ring<T>([T; PLACES]);

impl<T> Ring<T> {
    const fn at(&self, number: usize) -> &T {
        let [first, second, third, fourth] = &self.0;
        match number % PLACES {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        }
    }

    const fn at_mut(&mut self, number: usize) -> &mut T {
        let [first, second, third, fourth] = &mut self.0;
        match number % PLACES {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        }
    }
}

/// Memory that is used again and again.
#[derive(Default)]
pub(crate) struct Room {
    made: Ring<Made>,
    elsewhere: Ring<Elsewhere>,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Room {
    /// Makes lists for the results of as many pieces as there can be, so that they never grow.
    pub(crate) fn make_ready(&mut self) {
        for pieces in &mut self.elsewhere.0 {
            get_mut(pieces).reserve(Streams::MAX.value());
        }
        get_mut(&mut self.spare).reserve(PLACES * Streams::MAX.value());
    }
}

/// A payload as far as it is there, and where its pieces end.
#[derive(Default)]
struct Made {
    payload: Vec<u8>,
    ends: Vec<usize>,
}

/// Pieces that helpers have made, and their numbers.
type Elsewhere = Mutex<Vec<(usize, Vec<u8>)>>;

/// The packets in work, each at its place of a ring.
struct Pipeline<'r, E: Ends> {
    places: Ring<Place<'r, E>>,
    left: Mutex<Left>,
    spare: &'r Mutex<Vec<Vec<u8>>>,
}

struct Place<'r, E: Ends> {
    /// Changed only while nobody is at work on it.
    packet: RwLock<Option<Packet<E::Bytes, E::Context>>>,
    unfinished: AtomicUsize,
    /// Why one of its pieces cannot be had.
    error: Mutex<Option<E::Error>>,
    elsewhere: &'r Elsewhere,
}

/// The pieces that nobody has begun.
#[derive(Default)]
struct Left {
    pieces: Ring<Range<usize>>,
    /// The place of the packet that has waited longest.
    first: usize,
}

/// A piece that somebody has begun. When this is dropped the work on it is over, however it has ended.
struct Begun<'p, 'r, E: Ends> {
    place: &'p Place<'r, E>,
    number: usize,
    piece: usize,
}

/// Compresses all the packets that come by `work`, `mine` being the tools of this thread.
///
/// # Errors
///
/// What `work` has said of the first packet that cannot be compressed, when all before it have been taken; or what `ends` has
/// said. Packets in work are lost then.
pub(crate) fn compress<T: Send, E: Ends>(
    mine: &mut T,
    others: &[Mutex<T>],
    room: &mut Room,
    ends: &mut E,
    work: impl Fn(&mut T, &E::Context, &[u8], &mut Vec<u8>) -> Result<(), E::Error> + Sync,
) -> Result<(), E::Error> {
    // Whoever panicked has left something behind.
    room.elsewhere
        .0
        .iter_mut()
        .for_each(|pieces| get_mut(pieces).clear());
    let pipeline = Pipeline::<E> {
        places: Ring(room.elsewhere.0.each_ref().map(Place::new)),
        left: Mutex::default(),
        spare: &room.spare,
    };
    let there = |tools: &mut T| {
        while let Some(begun) = pipeline.begin_last() {
            let mut out = lock(pipeline.spare).pop().unwrap_or_default();
            out.clear();
            match begun.compress(|context, bytes| work(tools, context, bytes, &mut out)) {
                Ok(()) => lock(begun.place.elsewhere).push((begun.piece, out)),
                Err(error) => begun.fail(error),
            }
        }
    };
    let here = |help: &mut Help<'_>| {
        let work = |context: &_, bytes: &_, out: &mut _| work(mine, context, bytes, out);
        let outcome = pipeline.run(help, &mut room.made, ends, work);
        // Nothing of what is left has to be done any more.
        pipeline.close();
        outcome
    };
    share(others, there, here)
}

impl<E: Ends> Pipeline<'_, E> {
    /// What this thread does.
    fn run(
        &self,
        help: &mut Help<'_>,
        made: &mut Ring<Made>,
        ends: &mut E,
        mut work: impl FnMut(&E::Context, &[u8], &mut Vec<u8>) -> Result<(), E::Error>,
    ) -> Result<(), E::Error> {
        // Alone it would not be faster with several.
        let places = if help.is_there() { PLACES } else { 1 };
        let (mut first, mut count) = (0, 0);
        loop {
            // What is ready is not held back by what has only begun to come.
            while count < places && !(count > 0 && self.is_over(first)) {
                let number = (first + count) % PLACES;
                let Made {
                    payload,
                    ends: stops,
                } = made.at_mut(number);
                payload.clear();
                stops.clear();
                let Some(packet) = ends.next(payload)? else {
                    break;
                };
                help.ask(self.take_in(number, packet).saturating_sub(1));
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            while !self.is_over(first) {
                // The first pieces come into their place at once.
                let Some(begun) = self.begin_first() else {
                    help.wait_until(|| self.is_over(first));
                    continue;
                };
                let Made {
                    payload,
                    ends: stops,
                } = made.at_mut(begun.number);
                match begun.compress(|context, bytes| work(context, bytes, payload)) {
                    Ok(()) => stops.push(payload.len()),
                    Err(error) => begun.fail(error),
                }
            }
            if let Some(error) = lock(&self.place(first).error).take() {
                return Err(error);
            }
            let made = made.at_mut(first);
            let Some(packet) = self.take_out(first, made) else {
                // A helper has panicked: `share` goes on with that.
                return Err(Incomplete.into());
            };
            ends.done(packet, &mut made.payload, &made.ends)?;
            first = (first + 1) % PLACES;
            count -= 1;
        }
    }

    /// Returns how many could work on what there is now.
    fn take_in(&self, number: usize, packet: Packet<E::Bytes, E::Context>) -> usize {
        let place = self.place(number);
        let (bytes, runs) = (packet.bytes.as_ref().len(), packet.runs);
        place.unfinished.store(runs, Ordering::Relaxed);
        let mut left = lock(&self.left);
        *left.pieces.at_mut(number) = 0..runs;
        *write(&place.packet) = Some(packet);
        let pieces = left.pieces.0.iter().map(Range::len).sum::<usize>();
        // The packets of a channel are much alike.
        pieces.min(pieces * bytes / runs.max(1) / LEAST_BYTES)
    }

    /// Joins the pieces of a packet that is over.
    fn take_out(&self, number: usize, made: &mut Made) -> Option<Packet<E::Bytes, E::Context>> {
        let place = self.place(number);
        let packet = write(&place.packet).take()?;
        let mut pieces = lock(place.elsewhere);
        pieces.sort_unstable_by_key(|(piece, _)| *piece);
        for (_, bytes) in &*pieces {
            made.payload.extend_from_slice(bytes);
            made.ends.push(made.payload.len());
        }
        lock(self.spare).extend(pieces.drain(..).map(|(_, bytes)| bytes));
        lock(&self.left).first = (number + 1) % PLACES;
        (made.ends.len() == packet.runs).then_some(packet)
    }
}

impl<'r, E: Ends> Pipeline<'r, E> {
    fn begin_first(&self) -> Option<Begun<'_, 'r, E>> {
        self.begin(Range::next)
    }

    fn begin_last(&self) -> Option<Begun<'_, 'r, E>> {
        self.begin(Range::next_back)
    }

    /// Takes a piece of the packet that has waited longest and has one left.
    fn begin(&self, take: impl Fn(&mut Range<usize>) -> Option<usize>) -> Option<Begun<'_, 'r, E>> {
        let mut left = lock(&self.left);
        let first = left.first;
        (first..first + PLACES).find_map(|number| {
            let number = number % PLACES;
            let piece = take(left.pieces.at_mut(number))?;
            Some(Begun {
                place: self.place(number),
                number,
                piece,
            })
        })
    }

    fn place(&self, number: usize) -> &Place<'r, E> {
        self.places.at(number)
    }

    fn is_over(&self, number: usize) -> bool {
        self.place(number).unfinished.load(Ordering::Acquire) == 0
    }

    /// Lets nobody begin anything any more.
    fn close(&self) {
        let mut left = lock(&self.left);
        for (place, pieces) in self.places.0.iter().zip(&mut left.pieces.0) {
            place.unfinished.fetch_sub(pieces.len(), Ordering::Release);
            *pieces = 0..0;
        }
    }
}

impl<'r, E: Ends> Place<'r, E> {
    const fn new(elsewhere: &'r Elsewhere) -> Self {
        Self {
            packet: RwLock::new(None),
            unfinished: AtomicUsize::new(0),
            error: Mutex::new(None),
            elsewhere,
        }
    }
}

impl<E: Ends> Begun<'_, '_, E> {
    /// Its packet is lost, but not those before it.
    fn fail(&self, error: E::Error) {
        lock(&self.place.error).get_or_insert(error);
    }

    fn compress(
        &self,
        work: impl FnOnce(&E::Context, &[u8]) -> Result<(), E::Error>,
    ) -> Result<(), E::Error> {
        let packet = self.place.packet.read();
        let packet = packet.unwrap_or_else(PoisonError::into_inner);
        // A packet stays until all of its pieces are over.
        let packet = packet.as_ref().ok_or(Incomplete)?;
        work(&packet.context, packet.run(self.piece))
    }
}

impl<E: Ends> Drop for Begun<'_, '_, E> {
    fn drop(&mut self) {
        self.place.unfinished.fetch_sub(1, Ordering::Release);
    }
}

fn write<T>(packet: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    packet.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::helpers;

    const PART: usize = LEAST_BYTES;

    impl From<Incomplete> for &'static str {
        fn from(_: Incomplete) -> Self {
            "incomplete"
        }
    }

    /// Packets whose parts are of one byte each. Some of the time there is none to be had.
    struct Packets {
        /// Number of parts and runs.
        packets: Vec<(usize, usize)>,
        brought: usize,
        taken: usize,
        stop_at: usize,
    }

    impl Packets {
        fn new(packets: &[(usize, usize)]) -> Self {
            Self {
                packets: packets.to_vec(),
                brought: 0,
                taken: 0,
                stop_at: usize::MAX,
            }
        }

        fn content(&self, packet: usize) -> Vec<u8> {
            let parts = 0..self.packets[packet].0;
            parts
                .flat_map(|part| vec![(packet * 16 + part) as u8; PART])
                .collect()
        }
    }

    impl Ends for Packets {
        type Bytes = Vec<u8>;
        type Context = u8;
        type Error = &'static str;

        fn next(&mut self, payload: &mut Vec<u8>) -> Result<NextPacket<Self>, &'static str> {
            assert!(payload.is_empty());
            // None now and then, but never while there is nothing in work.
            if self.brought == self.packets.len() || self.brought == self.taken + 2 {
                return Ok(None);
            }
            let bytes = self.content(self.brought);
            let (_, runs) = self.packets[self.brought];
            payload.push(200);
            self.brought += 1;
            Ok(Some(Packet {
                bytes,
                part_bytes: PART,
                runs,
                context: self.brought as u8,
            }))
        }

        fn done(
            &mut self,
            packet: Packet<Vec<u8>, u8>,
            payload: &mut Vec<u8>,
            ends: &[usize],
        ) -> Result<(), &'static str> {
            if self.taken == self.stop_at {
                return Err("stop");
            }
            let bytes = packet.bytes;
            assert!(bytes == self.content(self.taken));
            let (parts, runs) = self.packets[self.taken];
            self.taken += 1;
            let numbers = bytes.iter().step_by(PART);
            let mut expected = vec![200];
            let mut stops = Vec::new();
            let mut numbers = numbers.copied();
            for run in 0..runs {
                let length = parts / runs + usize::from(run < parts % runs);
                expected.push(self.taken as u8);
                expected.extend(numbers.by_ref().take(length));
                stops.push(expected.len());
            }
            assert_eq!(*payload, expected);
            assert_eq!(ends, stops);
            Ok(())
        }
    }

    /// Compresses a part to its first byte, and notes who was there.
    fn parts(context: u8, run: &[u8], payload: &mut Vec<u8>) {
        payload.push(context);
        payload.extend(run.iter().step_by(PART));
    }

    fn crew(others: usize) -> Vec<Mutex<()>> {
        helpers::start();
        std::iter::repeat_with(Mutex::default)
            .take(others)
            .collect()
    }

    #[test]
    fn payloads_come_in_order_and_whole_whoever_made_them() {
        let kinds = [(8, 8), (1, 1), (0, 0), (8, 3), (5, 5), (7, 2), (8, 1)];
        let packets: Vec<_> = kinds.into_iter().cycle().take(15).collect();
        let mut room = Room::default();
        for others in 0..4 {
            let others = crew(others);
            for _ in 0..20 {
                let mut ends = Packets::new(&packets);
                let work = |(): &mut (), context: &u8, run: &[u8], payload: &mut Vec<u8>| {
                    parts(*context, run, payload);
                    Ok(())
                };
                compress(&mut (), &others, &mut room, &mut ends, work).unwrap();
                assert_eq!(ends.taken, packets.len());
            }
        }
    }

    /// A packet that says it has more pieces than anybody is given is no payload.
    #[test]
    fn a_payload_without_all_of_its_pieces_is_an_error() {
        let mut room = Room::default();
        let mut ends = Packets::new(&[(2, 2)]);
        let pipeline = Pipeline::<Packets> {
            places: Ring(room.elsewhere.0.each_ref().map(Place::new)),
            left: Mutex::default(),
            spare: &room.spare,
        };
        let begun = Begun {
            place: pipeline.place(0),
            number: 0,
            piece: 0,
        };
        assert_eq!(begun.compress(|_, _| Ok(())), Err("incomplete"));
        drop(begun);
        let outcome = share::<(), _>(
            &[],
            |()| (),
            |help| {
                let lost = |_: &u8, _: &[u8], _: &mut Vec<u8>| {
                    // Somebody takes a piece and neither finishes it nor says why.
                    if let Some(begun) = pipeline.begin_last() {
                        drop(begun);
                    }
                    Ok(())
                };
                pipeline.run(help, &mut room.made, &mut ends, lost)
            },
        );
        assert_eq!((outcome, ends.taken), (Err("incomplete"), 0));
    }

    /// Waits until another thread has done something as well, for which there is time enough.
    fn wait_for(helped: &AtomicUsize) {
        let since = Instant::now();
        while helped.load(Ordering::Relaxed) == 0 && since.elapsed() < Duration::from_millis(20) {
            thread::yield_now();
        }
    }

    #[test]
    fn others_help() {
        let (others, mut room) = (crew(1), Room::default());
        let caller = thread::current().id();
        let has_helped = || {
            let helped = AtomicUsize::new(0);
            let mut ends = Packets::new(&[(8, 8); 4]);
            let work = |(): &mut (), context: &u8, run: &[u8], payload: &mut Vec<u8>| {
                if thread::current().id() == caller {
                    wait_for(&helped);
                } else {
                    helped.fetch_add(1, Ordering::Relaxed);
                }
                parts(*context, run, payload);
                Ok(())
            };
            compress(&mut (), &others, &mut room, &mut ends, work).unwrap();
            helped.load(Ordering::Relaxed) > 0
        };
        assert!(
            std::iter::repeat_with(has_helped)
                .take(50)
                .any(|helped| helped)
        );
    }

    #[test]
    fn an_error_or_a_stop_ends_it_wherever_it_comes_from() {
        let mut room = Room::default();
        for others in 0..3 {
            let others = crew(others);
            for bad in (0..8 * 16).step_by(5) {
                let mut ends = Packets::new(&[(8, 8); 8]);
                let work = |(): &mut (), context: &u8, run: &[u8], payload: &mut Vec<u8>| {
                    parts(*context, run, payload);
                    if run[0] == bad { Err("bad") } else { Ok(()) }
                };
                let is_there = bad % 16 < 8;
                let outcome = compress(&mut (), &others, &mut room, &mut ends, work);
                assert_eq!(outcome, if is_there { Err("bad") } else { Ok(()) });
                // All before it are there.
                assert_eq!(ends.taken, if is_there { usize::from(bad) / 16 } else { 8 });
            }
            let mut ends = Packets::new(&[(8, 8); 8]);
            ends.stop_at = 3;
            let outcome = compress(&mut (), &others, &mut room, &mut ends, whole);
            assert_eq!((outcome, ends.taken), (Err("stop"), 3));
        }
    }

    fn whole(
        (): &mut (),
        context: &u8,
        run: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        parts(*context, run, payload);
        Ok(())
    }

    /// When a piece is done at last, what is ready has been taken: it does not wait for more packets to come.
    #[test]
    fn what_is_ready_is_taken_before_more_is_asked_for() {
        /// Counts how many were ready when it was asked for another one.
        struct Late(Packets, usize);

        impl Ends for Late {
            type Bytes = Vec<u8>;
            type Context = u8;
            type Error = &'static str;

            fn next(&mut self, payload: &mut Vec<u8>) -> Result<NextPacket<Self>, &'static str> {
                let Self(packets, most) = self;
                // A packet without pages is ready as soon as it is there.
                let ready =
                    (packets.taken..packets.brought).take_while(|&at| packets.packets[at].1 == 0);
                *most = ready.count().max(*most);
                packets.next(payload)
            }

            fn done(
                &mut self,
                packet: Packet<Vec<u8>, u8>,
                payload: &mut Vec<u8>,
                ends: &[usize],
            ) -> Result<(), &'static str> {
                self.0.done(packet, payload, ends)
            }
        }

        let mut room = Room::default();
        for others in 0..3 {
            let kinds = [(0, 0), (8, 8), (0, 0), (0, 0), (1, 1), (0, 0)];
            let mut late = Late(Packets::new(&kinds), 0);
            compress(&mut (), &crew(others), &mut room, &mut late, whole).unwrap();
            assert_eq!((late.0.taken, late.1), (kinds.len(), 0));
        }
    }

    #[test]
    fn a_panic_of_anyone_is_the_callers_and_leaves_nothing_behind() {
        let caller = thread::current().id();
        let mut room = Room::default();
        let panics = AtomicUsize::new(0);
        for round in 0..40 {
            // What a panic was given is used no more.
            let others = crew(1);
            let helped = AtomicUsize::new(0);
            let work = |(): &mut (), context: &u8, run: &[u8], payload: &mut Vec<u8>| {
                let is_here = thread::current().id() == caller;
                if !is_here {
                    helped.fetch_add(1, Ordering::Relaxed);
                } else {
                    wait_for(&helped);
                }
                if is_here == (round % 2 == 0) {
                    panics.fetch_add(1, Ordering::Relaxed);
                    resume_unwind(Box::new("as it should"));
                }
                whole(&mut (), context, run, payload)
            };
            let before = panics.load(Ordering::Relaxed);
            let mut ends = Packets::new(&[(8, 8); 3]);
            let call = || compress(&mut (), &others, &mut room, &mut ends, work);
            let outcome = catch_unwind(AssertUnwindSafe(call));
            let has_panicked = panics.load(Ordering::Relaxed) > before;
            assert_eq!(outcome.is_err(), has_panicked);

            let mut ends = Packets::new(&[(8, 8); 3]);
            compress(&mut (), &others, &mut room, &mut ends, whole).unwrap();
        }
        assert!(panics.into_inner() > 0, "nobody has panicked");
    }

    /// Whoever brings packets or takes payloads panics while others are at work.
    #[test]
    fn a_panic_at_an_end_waits_for_helpers() {
        struct Panics(Packets, usize);

        impl Ends for Panics {
            type Bytes = Vec<u8>;
            type Context = u8;
            type Error = &'static str;

            fn next(&mut self, payload: &mut Vec<u8>) -> Result<NextPacket<Self>, &'static str> {
                if self.0.brought == self.1 {
                    resume_unwind(Box::new("as it should"));
                }
                self.0.next(payload)
            }

            fn done(
                &mut self,
                packet: Packet<Vec<u8>, u8>,
                payload: &mut Vec<u8>,
                ends: &[usize],
            ) -> Result<(), &'static str> {
                if self.0.taken + 10 == self.1 {
                    resume_unwind(Box::new("as it should"));
                }
                self.0.done(packet, payload, ends)
            }
        }

        let (others, mut room) = (crew(2), Room::default());
        let at_work = AtomicUsize::new(0);
        let work = |(): &mut (), context: &u8, run: &[u8], payload: &mut Vec<u8>| {
            at_work.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_micros(50));
            at_work.fetch_sub(1, Ordering::SeqCst);
            whole(&mut (), context, run, payload)
        };
        for at in [1, 3, 10, 11, 12] {
            for _ in 0..10 {
                let mut ends = Panics(Packets::new(&[(8, 8); 6]), at);
                let call = || compress(&mut (), &others, &mut room, &mut ends, work);
                assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
                assert_eq!(at_work.load(Ordering::SeqCst), 0);
            }
        }
    }
}
