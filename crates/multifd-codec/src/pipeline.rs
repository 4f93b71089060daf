//! Compresses packets in pieces, several packets at a time.
//!
//! The first pieces of the next packet start while the last pieces of one are still in work, and
//! other packets continue while a payload is written. So no thread waits while there are packets.
//!
//! The result of a piece depends only on the piece, and the results are joined in order. So a
//! payload is independent of the number of threads and their speed.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use crate::error::EncodeFault;
use crate::helpers::{self, Common, Help, Work, lock};
use crate::settings::run;
use crate::streams::{LEAST_BYTES, writers};
use crate::{EncodeError, PageBuffer, Streams};

/// Appends a compressed piece to a payload. Earlier uses of the tools must not matter.
pub(crate) type CompressPiece<T, C> =
    fn(tools: &mut T, context: &C, piece: &[u8], payload: &mut Vec<u8>) -> Result<(), EncodeError>;

/// A packet and its number of runs. The lengths of runs differ by at most one part.
pub(crate) struct Packet<C> {
    pub(crate) pages: PageBuffer,
    pub(crate) part_bytes: usize,
    pub(crate) runs: usize,
    /// The context for compressing the packet's pieces.
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

/// A complete payload's packet, and the ends of the payload's pieces.
pub(crate) struct Whole<'p, C> {
    pub(crate) packet: Packet<C>,
    pub(crate) ends: &'p [usize],
}

/// Packets in work at once, if there are helpers.
const PLACES: usize = 4;

/// One value per packet in work. Numbers map to places in rotation.
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

/// Compresses packets on this thread and on helpers. It owns the packets in work.
pub(crate) struct Pipeline<T: Send + 'static, C: Send + Sync + 'static> {
    /// The tools of the caller's thread.
    mine: T,
    shared: Arc<Shared<T, C>>,
    help: Help,
    made: Ring<Made>,
    /// The place of the oldest packet.
    first: usize,
    /// Packets in work.
    count: usize,
}

/// The caller's part of a payload: the head, and the first pieces.
#[derive(Default)]
struct Made {
    payload: Vec<u8>,
    ends: Vec<usize>,
}

/// Shared by the caller and its helpers.
struct Shared<T, C> {
    compress: CompressPiece<T, C>,
    common: Common<T>,
    places: Ring<Place<C>>,
    left: Mutex<Left>,
    spare: Mutex<Vec<Vec<u8>>>,
}

/// The place of a packet in work.
struct Place<C> {
    /// Changed only while no thread works on it.
    packet: RwLock<Option<Packet<C>>>,
    unfinished: AtomicUsize,
    /// Why one of its pieces failed.
    error: Mutex<Option<EncodeError>>,
    /// Pieces made by helpers, with their numbers.
    elsewhere: Mutex<Vec<(usize, Vec<u8>)>>,
}

/// The pieces not yet begun.
#[derive(Default)]
struct Left {
    pieces: Ring<Range<usize>>,
    /// The place of the oldest packet.
    first: usize,
}

/// A piece in work. Dropping it ends the work on it, successful or not.
struct Begun<'p, T, C> {
    shared: &'p Shared<T, C>,
    number: usize,
    piece: usize,
}

impl<T: Send + 'static, C: Send + Sync + 'static> Pipeline<T, C> {
    /// A pipeline with tools for this thread and for each useful helper.
    ///
    /// # Errors
    ///
    /// The errors of `tools`.
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
        // Lists sized for the maximum number of pieces never grow.
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

    /// The number of further packets that fit now: without helpers 1 at a time, as more would not
    /// be faster. It is 0 while a payload is complete, so that packets that are still arriving do
    /// not hold it back.
    pub(crate) fn room(&self) -> usize {
        if self.count > 0 && self.shared.is_over(self.first) {
            return 0;
        }
        let places = if self.has_help() { PLACES } else { 1 };
        places.saturating_sub(self.count)
    }

    /// Whether one more packet fits, regardless of [`Self::room`].
    pub(crate) const fn has_place(&self) -> bool {
        self.count < PLACES
    }

    fn has_help(&self) -> bool {
        !self.shared.common.tools().is_empty() && Help::is_there()
    }

    /// The empty payload of the next packet. The caller writes the head into it.
    pub(crate) fn next_payload(&mut self) -> &mut Vec<u8> {
        let Made { payload, ends } = self.made.at_mut(self.first + self.count);
        payload.clear();
        ends.clear();
        payload
    }

    /// Takes the packet for the payload from [`Self::next_payload`]. There must be a place.
    pub(crate) fn push(&mut self, packet: Packet<C>) {
        debug_assert!(self.has_place());
        let workers = self.shared.take_in(self.first + self.count, packet);
        self.count += 1;
        if self.has_help() {
            // At most as many helpers as tools.
            let helpers = workers.saturating_sub(1);
            let most = self.shared.common.tools().len();
            self.help.ask(helpers.min(most), &self.shared);
        }
    }

    /// Works until the payload of the oldest packet is complete, and swaps it into `payload`.
    /// Returns `None` if there is no packet.
    ///
    /// # Errors
    ///
    /// Why that packet cannot be compressed. Work on later packets stops then.
    ///
    /// # Panics
    ///
    /// Resumes the panic of a helper.
    pub(crate) fn pop(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<Whole<'_, C>>, EncodeError> {
        if self.count == 0 {
            return Ok(None);
        }
        let (number, shared) = (self.first, &*self.shared);
        while !shared.is_over(number) {
            // The first pieces go directly to their place.
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
        // A packet that is alone reuses the memory of the previous one.
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
    /// Helpers finish their current pieces, and begin no more.
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<T, C> Shared<T, C> {
    /// Returns the number of useful workers for all packets now in work.
    fn take_in(&self, number: usize, packet: Packet<C>) -> usize {
        let place = self.places.at(number);
        let (bytes, runs) = (packet.pages.as_ref().len(), packet.runs);
        place.unfinished.store(runs, Ordering::Relaxed);
        let mut left = lock(&self.left);
        *left.pieces.at_mut(number) = 0..runs;
        *write(&place.packet) = Some(packet);
        let pieces = left.pieces.0.iter().map(Range::len).sum::<usize>();
        // The packets of a channel have similar sizes.
        pieces.min(pieces * bytes / runs.max(1) / LEAST_BYTES)
    }

    /// Joins the pieces of a finished packet, and empties its place. `next` is the place of the
    /// packet that is the oldest then.
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
            .ok_or(EncodeError(EncodeFault::Incomplete))
    }

    /// Takes a piece of the oldest packet that has one left.
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

    /// Prevents all further pieces.
    fn close(&self) {
        let mut left = lock(&self.left);
        for (place, pieces) in self.places.0.iter().zip(&mut left.pieces.0) {
            place.unfinished.fetch_sub(pieces.len(), Ordering::Release);
            *pieces = 0..0;
        }
    }
}

impl<T: Send, C: Send + Sync> Work for Shared<T, C> {
    /// Takes the last pieces, so that the caller's pieces are contiguous.
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
                // The tools may be damaged after a panic, so they are not used again.
                None => return,
            }
        }
    }
}

impl<T, C> Begun<'_, T, C> {
    const fn place(&self) -> &Place<C> {
        self.shared.places.at(self.number)
    }

    /// Fails its packet. Earlier packets are unaffected.
    fn fail(&self, error: EncodeError) {
        lock(&self.place().error).get_or_insert(error);
    }

    fn compress(&self, tools: &mut T, payload: &mut Vec<u8>) -> Result<(), EncodeError> {
        let packet = self.place().packet.read();
        let packet = packet.unwrap_or_else(PoisonError::into_inner);
        // A packet stays until all of its pieces are over.
        let packet = packet
            .as_ref()
            .ok_or(EncodeError(EncodeFault::Incomplete))?;
        (self.shared.compress)(tools, &packet.context, packet.run(self.piece), payload)
    }
}

impl<T, C> Drop for Begun<'_, T, C> {
    fn drop(&mut self) {
        // The caller may wait only for the last one to finish.
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

    /// A test's tools: the workers' behaviour and observations.
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
        /// Only does the work.
        Works,
        /// The caller waits for a helper before each piece.
        Waits,
        /// The same, and then the caller or a helper panics.
        Panics { here: bool },
        /// The run that begins with this byte fails.
        Fails { at: u8 },
        /// Every piece takes some time.
        Sleeps,
        /// Every piece waits for the test.
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

    /// Compresses a part to the context and its first byte.
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
        EncodeError(EncodeFault::Library {
            method: Method::Zlib,
            source: "bad".into(),
        })
    }

    /// Waits until a helper has done something, within a generous time limit.
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

    /// Pops the next packet and checks it.
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

    /// Passes all packets, as many at a time as there is room for. Returns how many came out.
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

    /// A complete payload does not wait for more packets.
    #[test]
    fn there_is_no_room_while_a_payload_is_whole() {
        let tools = Tools::new(What::Stops);
        let mut pipeline = pipeline(1, &tools);
        push(&mut pipeline, 0, (8, 8));
        push(&mut pipeline, 1, (0, 0));
        // The first packet is incomplete, so there is room for more.
        assert_eq!(pipeline.room(), PLACES - 2);
        tools.goes_on.store(true, Ordering::Relaxed);
        pop(&mut pipeline, 0, (8, 8)).unwrap();
        assert_eq!(pipeline.room(), 0);
        assert!(pipeline.has_place());
        pop(&mut pipeline, 1, (0, 0)).unwrap();
        assert_eq!(pipeline.room(), PLACES);
    }

    /// A packet with fewer pieces made than announced is an error.
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
        assert!(matches!(outcome, Err(EncodeError(EncodeFault::Incomplete))));
        std::mem::forget(begun);
        push(&mut pipeline, 0, (2, 2));
        // A piece is taken, and neither finished nor failed.
        drop(pipeline.shared.begin(Range::next_back));
        let outcome = pop(&mut pipeline, 0, (2, 2));
        assert!(matches!(outcome, Err(EncodeError(EncodeFault::Incomplete))));
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
                    assert!(
                        matches!(error, EncodeError(EncodeFault::Library { .. })),
                        "{error:?}"
                    );
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
                // One side may have done all pieces before the other had one.
                let has_panicked = tools.panics.load(Ordering::Relaxed) > 0;
                assert_eq!(outcome.is_err(), has_panicked);
                panics += usize::from(has_panicked);
            }
            assert!(panics > 0, "nobody has panicked");
        }
    }

    /// When the caller goes away, helpers finish their current pieces and begin no more.
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
