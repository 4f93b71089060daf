//! Packets that are compressed in pieces, several packets at a time.
//!
//! While the last pieces of one packet are done, the first ones of the next are begun, and while
//! its payload is written others go on. So nobody waits for anybody as long as there are packets.
//!
//! The result of a piece depends on the piece alone, and the results are joined in the pieces'
//! order. So a payload is the same however many threads there were, and whichever of them were
//! faster.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use crate::helpers::{self, Common, Help, Work, lock};
use crate::settings::run;
use crate::streams::{LEAST_BYTES, writers};
use crate::{EncodeError, PageBuffer, Streams};

/// Appends a piece to a payload, compressed. It must not matter what the tools have been used for.
pub(crate) type CompressPiece<T, C> =
    fn(tools: &mut T, context: &C, piece: &[u8], payload: &mut Vec<u8>) -> Result<(), EncodeError>;

/// A packet, and how it is cut: into so many runs of parts, no two of which differ by more than a
/// part.
pub(crate) struct Packet<C> {
    pub(crate) pages: PageBuffer,
    pub(crate) part_bytes: usize,
    pub(crate) runs: usize,
    /// What has to be known of the packet to compress its pieces.
    pub(crate) context: C,
}

impl<C> Packet<C> {
    fn run(&self, index: usize) -> &[u8] {
        let bytes = self.pages.as_ref();
        let parts = run(index, self.runs, bytes.len() / self.part_bytes);
        let places = parts.start * self.part_bytes..parts.end * self.part_bytes;
        bytes.get(places).unwrap_or_default()
    }
}

/// A packet whose payload is whole, and where the payload's pieces end.
pub(crate) struct Whole<'p, C> {
    pub(crate) packet: Packet<C>,
    pub(crate) ends: &'p [usize],
}

/// Packets in work at once, if there are helpers.
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

/// Compresses packets on this thread and on helpers. The packets in work belong to it.
pub(crate) struct Pipeline<T: Send + 'static, C: Send + Sync + 'static> {
    /// The tools of the caller's thread.
    mine: T,
    shared: Arc<Shared<T, C>>,
    help: Help,
    made: Ring<Made>,
    /// The place of the packet that has waited longest.
    first: usize,
    /// Packets in work.
    count: usize,
}

/// The caller's part of a payload: what precedes the pieces, and the first pieces.
#[derive(Default)]
struct Made {
    payload: Vec<u8>,
    ends: Vec<usize>,
}

/// What the caller and its helpers work on.
struct Shared<T, C> {
    compress: CompressPiece<T, C>,
    common: Common<T>,
    places: Ring<Place<C>>,
    left: Mutex<Left>,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// The place of a packet in work.
struct Place<C> {
    /// Changed only while nobody is at work on it.
    packet: RwLock<Option<Packet<C>>>,
    unfinished: AtomicUsize,
    /// Why one of its pieces cannot be had.
    error: Mutex<Option<EncodeError>>,
    /// Pieces that helpers have made, and their numbers.
    elsewhere: Mutex<Vec<(usize, Vec<u8>)>>,
}

/// The pieces that nobody has begun.
#[derive(Default)]
struct Left {
    pieces: Ring<Range<usize>>,
    /// The place of the packet that has waited longest.
    first: usize,
}

/// A piece that somebody has begun. When this is dropped the work on it is over, however it has
/// ended.
struct Begun<'p, T, C> {
    shared: &'p Shared<T, C>,
    number: usize,
    piece: usize,
}

impl<T: Send + 'static, C: Send + Sync + 'static> Pipeline<T, C> {
    /// A pipeline with tools for this thread and for as many helpers as can be of use.
    ///
    /// # Errors
    ///
    /// Those of `tools`.
    pub(crate) fn new<E>(
        streams: Streams,
        tools: impl FnMut() -> Result<T, E>,
        compress: CompressPiece<T, C>,
    ) -> Result<Self, E> {
        Self::of(writers(streams), tools, compress)
    }

    fn of<E>(
        workers: usize,
        mut tools: impl FnMut() -> Result<T, E>,
        compress: CompressPiece<T, C>,
    ) -> Result<Self, E> {
        let mine = tools()?;
        let others = std::iter::repeat_with(tools).take(workers.saturating_sub(1));
        let others = others.collect::<Result<Vec<_>, E>>()?;
        // Lists for the results of as many pieces as there can be never grow.
        let pieces = if others.is_empty() {
            0
        } else {
            Streams::MAX.value()
        };
        if pieces > 0 {
            helpers::start();
        }
        let place = |_| Place {
            packet: RwLock::new(None),
            unfinished: AtomicUsize::new(0),
            error: Mutex::new(None),
            elsewhere: Mutex::new(Vec::with_capacity(pieces)),
        };
        Ok(Self {
            mine,
            shared: Arc::new(Shared {
                compress,
                common: Common::new(others),
                places: Ring([(); PLACES].map(place)),
                left: Mutex::default(),
                spare: Mutex::new(Vec::with_capacity(PLACES * pieces)),
            }),
            help: Help::new(),
            made: Ring::default(),
            first: 0,
            count: 0,
        })
    }

    /// How many more packets it takes now: 1 at a time without helpers, which would not be faster
    /// with several. None while a payload is whole, so that it is not held back by packets that
    /// have only begun to come.
    pub(crate) fn room(&self) -> usize {
        if self.count > 0 && self.shared.is_over(self.first) {
            return 0;
        }
        let places = if self.has_help() { PLACES } else { 1 };
        places.saturating_sub(self.count)
    }

    /// Whether there is a place for another packet, whatever [`Self::room`] says.
    pub(crate) const fn has_place(&self) -> bool {
        self.count < PLACES
    }

    fn has_help(&self) -> bool {
        !self.shared.common.tools().is_empty() && Help::is_there()
    }

    /// The empty payload of the next packet. What is put into it precedes the pieces.
    pub(crate) fn next_payload(&mut self) -> &mut Vec<u8> {
        let Made { payload, ends } = self.made.at_mut(self.first + self.count);
        payload.clear();
        ends.clear();
        payload
    }

    /// Takes the packet whose payload [`Self::next_payload`] has begun. There must be a place.
    pub(crate) fn push(&mut self, packet: Packet<C>) {
        debug_assert!(self.has_place());
        let workers = self.shared.take_in(self.first + self.count, packet);
        self.count += 1;
        if self.has_help() {
            // No more helpers than there are tools.
            let helpers = workers.saturating_sub(1);
            let most = self.shared.common.tools().len();
            self.help.ask(helpers.min(most), &self.shared);
        }
    }

    /// Works until the payload of the packet that has waited longest is whole, and swaps it into
    /// `payload`. None if there is no packet.
    ///
    /// # Errors
    ///
    /// Why that packet cannot be compressed. Nobody goes on with the packets behind it then.
    ///
    /// # Panics
    ///
    /// With the panic of a helper.
    pub(crate) fn pop(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<Whole<'_, C>>, EncodeError> {
        if self.count == 0 {
            return Ok(None);
        }
        let (number, shared) = (self.first, &*self.shared);
        while !shared.is_over(number) {
            // The first pieces come into their place at once.
            let Some(begun) = shared.begin(Range::next) else {
                shared.common.wait_until(|| shared.is_over(number));
                continue;
            };
            let Made { payload, ends } = self.made.at_mut(begun.number);
            match begun.compress(&mut self.mine, payload) {
                Ok(()) => ends.push(payload.len()),
                Err(error) => begun.fail(error),
            }
        }
        let made = self.made.at_mut(number);
        self.count -= 1;
        // A packet that is alone uses the same memory as the one before.
        self.first = match self.count {
            0 => 0,
            _ => (number + 1) % PLACES,
        };
        let outcome = shared.take_out(number, made, self.first);
        if self.count == 0 {
            self.help.take_back();
        }
        shared.common.resume_panic();
        let packet = outcome.inspect_err(|_| shared.close())?;
        std::mem::swap(payload, &mut made.payload);
        let ends = &made.ends;
        Ok(Some(Whole { packet, ends }))
    }
}

impl<T: Send + 'static, C: Send + Sync + 'static> Drop for Pipeline<T, C> {
    /// Helpers finish what they have begun, and begin nothing more.
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<T, C> Shared<T, C> {
    /// Returns how many could work on what there is now.
    fn take_in(&self, number: usize, packet: Packet<C>) -> usize {
        let place = self.places.at(number);
        let (bytes, runs) = (packet.pages.as_ref().len(), packet.runs);
        place.unfinished.store(runs, Ordering::Relaxed);
        let mut left = lock(&self.left);
        *left.pieces.at_mut(number) = 0..runs;
        *write(&place.packet) = Some(packet);
        let pieces = left.pieces.0.iter().map(Range::len).sum::<usize>();
        // The packets of a channel are much alike.
        pieces.min(pieces * bytes / runs.max(1) / LEAST_BYTES)
    }

    /// Joins the pieces of a packet that is over, and empties its place. `next` is the place of the
    /// packet that has waited longest then.
    fn take_out(
        &self,
        number: usize,
        made: &mut Made,
        next: usize,
    ) -> Result<Packet<C>, EncodeError> {
        let place = self.places.at(number);
        let packet = write(&place.packet).take();
        let mut pieces = lock(&place.elsewhere);
        pieces.sort_unstable_by_key(|(piece, _)| *piece);
        for (_, bytes) in &*pieces {
            made.payload.extend_from_slice(bytes);
            made.ends.push(made.payload.len());
        }
        lock(&self.spare).extend(pieces.drain(..).map(|(_, bytes)| bytes));
        lock(&self.left).first = next;
        if let Some(error) = lock(&place.error).take() {
            return Err(error);
        }
        packet
            .filter(|packet| made.ends.len() == packet.runs)
            .ok_or(EncodeError::Incomplete)
    }

    /// Takes a piece of the packet that has waited longest and has one left.
    fn begin(&self, take: impl Fn(&mut Range<usize>) -> Option<usize>) -> Option<Begun<'_, T, C>> {
        let mut left = lock(&self.left);
        let first = left.first;
        (first..first + PLACES).find_map(|number| {
            let number = number % PLACES;
            let piece = take(left.pieces.at_mut(number))?;
            Some(Begun {
                shared: self,
                number,
                piece,
            })
        })
    }

    fn is_over(&self, number: usize) -> bool {
        self.places.at(number).unfinished.load(Ordering::Acquire) == 0
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

impl<T: Send, C: Send + Sync> Work for Shared<T, C> {
    /// Takes the last pieces, so that those of the caller come one behind the other.
    fn help(&self) {
        let Some(mut tools) = self.common.free_tools() else {
            return;
        };
        while let Some(begun) = self.begin(Range::next_back) {
            let mut out = lock(&self.spare).pop().unwrap_or_default();
            out.clear();
            let compress = || begun.compress(&mut tools, &mut out);
            match self.common.guarded(compress) {
                Some(Ok(())) => lock(&begun.place().elsewhere).push((begun.piece, out)),
                Some(Err(error)) => begun.fail(error),
                // What a panic was given is used no more.
                None => return,
            }
        }
    }
}

impl<T, C> Begun<'_, T, C> {
    const fn place(&self) -> &Place<C> {
        self.shared.places.at(self.number)
    }

    /// Its packet is lost, but not those before it.
    fn fail(&self, error: EncodeError) {
        lock(&self.place().error).get_or_insert(error);
    }

    fn compress(&self, tools: &mut T, payload: &mut Vec<u8>) -> Result<(), EncodeError> {
        let packet = self.place().packet.read();
        let packet = packet.unwrap_or_else(PoisonError::into_inner);
        // A packet stays until all of its pieces are over.
        let packet = packet.as_ref().ok_or(EncodeError::Incomplete)?;
        (self.shared.compress)(tools, &packet.context, packet.run(self.piece), payload)
    }
}

impl<T, C> Drop for Begun<'_, T, C> {
    fn drop(&mut self) {
        // The last one to finish is the only one for whom the caller may wait.
        if self.place().unfinished.fetch_sub(1, Ordering::Release) == 1 {
            self.shared.common.wake();
        }
    }
}

fn write<T>(packet: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    packet.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::atomic::AtomicBool;
    use std::thread::{self, ThreadId};
    use std::time::{Duration, Instant};

    use multifd_wire::Method;

    use super::*;

    const PART: usize = LEAST_BYTES;
    const FEW: usize = if cfg!(miri) { 2 } else { 20 };

    /// What the workers of a test do, and what they have seen.
    #[derive(Clone)]
    struct Tools {
        caller: ThreadId,
        helped: Arc<AtomicUsize>,
        panics: Arc<AtomicUsize>,
        at_work: Arc<AtomicUsize>,
        goes_on: Arc<AtomicBool>,
        what: What,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum What {
        /// Nothing but the work.
        Works,
        /// The caller waits for a helper before each piece.
        Waits,
        /// As above, and then panics: the caller, or a helper.
        Panics { here: bool },
        /// The run that begins with this byte cannot be compressed.
        Fails { at: u8 },
        /// Every piece takes a while.
        Sleeps,
        /// Every piece waits until the test lets it go on.
        Stops,
    }

    impl Tools {
        fn new(what: What) -> Self {
            Self {
                caller: thread::current().id(),
                helped: Arc::default(),
                panics: Arc::default(),
                at_work: Arc::default(),
                goes_on: Arc::default(),
                what,
            }
        }
    }

    type Tested = Pipeline<Tools, u8>;

    fn pipeline(others: usize, tools: &Tools) -> Tested {
        helpers::start();
        let tools = || Ok::<_, Infallible>(tools.clone());
        let Ok(pipeline) = Pipeline::of(others + 1, tools, compress);
        pipeline
    }

    /// Compresses a part to its first byte, behind the context.
    fn compress(
        tools: &mut Tools,
        context: &u8,
        run: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let is_here = thread::current().id() == tools.caller;
        if !is_here {
            tools.helped.fetch_add(1, Ordering::Relaxed);
        }
        match tools.what {
            What::Waits | What::Panics { .. } if is_here => wait_for(&tools.helped),
            What::Sleeps => {
                tools.at_work.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_micros(50));
                tools.at_work.fetch_sub(1, Ordering::SeqCst);
            }
            What::Stops => {
                while !tools.goes_on.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
            _ => {}
        }
        if tools.what == (What::Panics { here: is_here }) {
            tools.panics.fetch_add(1, Ordering::Relaxed);
            resume_unwind(Box::new("as it should"));
        }
        payload.push(*context);
        payload.extend(run.iter().step_by(PART));
        match tools.what {
            What::Fails { at } if run.first() == Some(&at) => Err(bad()),
            _ => Ok(()),
        }
    }

    fn bad() -> EncodeError {
        EncodeError::Library {
            method: Method::Zlib,
            source: "bad".into(),
        }
    }

    /// Waits until a helper has done something, for which there is time enough.
    fn wait_for(helped: &AtomicUsize) {
        let since = Instant::now();
        while helped.load(Ordering::Relaxed) == 0 && since.elapsed() < Duration::from_millis(20) {
            thread::yield_now();
        }
    }

    fn content(number: usize, parts: usize) -> Vec<u8> {
        (0..parts)
            .flat_map(|part| vec![(number * 16 + part) as u8; PART])
            .collect()
    }

    fn push(pipeline: &mut Tested, number: usize, (parts, runs): (usize, usize)) {
        pipeline.next_payload().push(200);
        pipeline.push(Packet {
            pages: content(number, parts).into(),
            part_bytes: PART,
            runs,
            context: number as u8,
        });
    }

    /// Takes the next packet, and checks that it is this one.
    fn pop(
        pipeline: &mut Tested,
        number: usize,
        (parts, runs): (usize, usize),
    ) -> Result<(), EncodeError> {
        let mut payload = Vec::new();
        let whole = pipeline.pop(&mut payload)?.unwrap();
        let bytes = content(number, parts);
        assert!(whole.packet.pages.as_ref() == bytes);
        let mut numbers = bytes.iter().step_by(PART).copied();
        let mut expected = vec![200];
        let mut stops = Vec::new();
        for run in 0..runs {
            let length = parts / runs + usize::from(run < parts % runs);
            expected.push(number as u8);
            expected.extend(numbers.by_ref().take(length));
            stops.push(expected.len());
        }
        assert_eq!(payload, expected);
        assert_eq!(whole.ends, stops);
        Ok(())
    }

    /// Lets all packets through, as many at a time as there is room for. Returns how many came out.
    fn pass(pipeline: &mut Tested, packets: &[(usize, usize)]) -> (usize, Result<(), EncodeError>) {
        let (mut pushed, mut popped) = (0, 0);
        while popped < packets.len() {
            while pipeline.room() > 0 && pushed < packets.len() {
                push(pipeline, pushed, packets[pushed]);
                pushed += 1;
            }
            if let Err(error) = pop(pipeline, popped, packets[popped]) {
                return (popped, Err(error));
            }
            popped += 1;
        }
        assert!(pipeline.pop(&mut Vec::new()).unwrap().is_none());
        (popped, Ok(()))
    }

    #[test]
    fn payloads_come_in_order_and_whole_whoever_made_them() {
        let kinds = [(8, 8), (1, 1), (0, 0), (8, 3), (5, 5), (7, 2), (8, 1)];
        let packets: Vec<_> = kinds.into_iter().cycle().take(15).collect();
        for others in 0..4 {
            let mut pipeline = pipeline(others, &Tools::new(What::Works));
            for _ in 0..FEW {
                let (popped, outcome) = pass(&mut pipeline, &packets);
                outcome.unwrap();
                assert_eq!(popped, packets.len());
            }
        }
    }

    #[test]
    fn there_is_room_for_several_packets_if_somebody_helps() {
        for (others, room) in [(0, 1), (1, PLACES), (3, PLACES)] {
            let tools = Tools::new(What::Stops);
            let mut pipeline = pipeline(others, &tools);
            assert_eq!(pipeline.room(), room);
            push(&mut pipeline, 0, (8, 8));
            assert_eq!(pipeline.room(), room - 1);
            tools.goes_on.store(true, Ordering::Relaxed);
            pop(&mut pipeline, 0, (8, 8)).unwrap();
            assert_eq!(pipeline.room(), room);
        }
    }

    /// A payload that is whole does not wait for more packets to come.
    #[test]
    fn there_is_no_room_while_a_payload_is_whole() {
        let tools = Tools::new(What::Stops);
        let mut pipeline = pipeline(1, &tools);
        push(&mut pipeline, 0, (8, 8));
        push(&mut pipeline, 1, (0, 0));
        // The first packet is not whole, so there is room behind it.
        assert_eq!(pipeline.room(), PLACES - 2);
        tools.goes_on.store(true, Ordering::Relaxed);
        pop(&mut pipeline, 0, (8, 8)).unwrap();
        assert_eq!(pipeline.room(), 0);
        assert!(pipeline.has_place());
        pop(&mut pipeline, 1, (0, 0)).unwrap();
        assert_eq!(pipeline.room(), PLACES);
    }

    /// A packet that says it has more pieces than anybody is given is no payload.
    #[test]
    fn a_payload_without_all_of_its_pieces_is_an_error() {
        let mut pipeline = pipeline(0, &Tools::new(What::Works));
        let begun = Begun {
            shared: &pipeline.shared,
            number: 1,
            piece: 0,
        };
        let mut tools = pipeline.mine.clone();
        let outcome = begun.compress(&mut tools, &mut Vec::new());
        assert!(matches!(outcome, Err(EncodeError::Incomplete)));
        std::mem::forget(begun);
        push(&mut pipeline, 0, (2, 2));
        // Somebody takes a piece and neither finishes it nor says why.
        drop(pipeline.shared.begin(Range::next_back));
        let outcome = pop(&mut pipeline, 0, (2, 2));
        assert!(matches!(outcome, Err(EncodeError::Incomplete)));
    }

    #[test]
    fn others_help() {
        let has_helped = || {
            let tools = Tools::new(What::Waits);
            pass(&mut pipeline(1, &tools), &[(8, 8); 4]).1.unwrap();
            tools.helped.load(Ordering::Relaxed) > 0
        };
        assert!((0..50).any(|_| has_helped()));
    }

    #[test]
    fn an_error_comes_in_its_turn() {
        for others in 0..3 {
            for at in (0..8 * 16).step_by(if cfg!(miri) { 35 } else { 5 }) {
                let mut pipeline = pipeline(others, &Tools::new(What::Fails { at }));
                let (popped, outcome) = pass(&mut pipeline, &[(8, 8); 8]);
                if at % 16 < 8 {
                    let error = outcome.unwrap_err();
                    assert!(matches!(error, EncodeError::Library { .. }), "{error:?}");
                    assert_eq!(popped, usize::from(at) / 16);
                } else {
                    outcome.unwrap();
                    assert_eq!(popped, 8);
                }
            }
        }
    }

    #[test]
    fn a_panic_of_anyone_is_the_callers() {
        for here in [true, false] {
            let mut panics = 0;
            for _ in 0..20 {
                let tools = Tools::new(What::Panics { here });
                let mut pipeline = pipeline(1, &tools);
                let call = || pass(&mut pipeline, &[(8, 8); 3]).1;
                let outcome = catch_unwind(AssertUnwindSafe(call));
                // Nobody may have had a piece before the other one had done them all.
                let has_panicked = tools.panics.load(Ordering::Relaxed) > 0;
                assert_eq!(outcome.is_err(), has_panicked);
                panics += usize::from(has_panicked);
            }
            assert!(panics > 0, "nobody has panicked");
        }
    }

    /// Helpers finish what they have begun when the caller goes away, and begin nothing more.
    #[test]
    fn a_pipeline_that_goes_away_leaves_helpers_with_nothing() {
        for packets in 1..=PLACES {
            for _ in 0..FEW {
                let tools = Tools::new(What::Sleeps);
                let mut pipeline = pipeline(2, &tools);
                for number in 0..packets {
                    push(&mut pipeline, number, (8, 8));
                }
                pop(&mut pipeline, 0, (8, 8)).unwrap();
                let shared = Arc::downgrade(&pipeline.shared);
                drop(pipeline);
                let since = Instant::now();
                while shared.strong_count() > 0 && since.elapsed() < Duration::from_secs(10) {
                    thread::yield_now();
                }
                assert_eq!(shared.strong_count(), 0);
                assert_eq!(tools.at_work.load(Ordering::SeqCst), 0);
            }
        }
    }
}
