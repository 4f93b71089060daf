//! Helpers: threads on other processors that work on parts of packets.
//!
//! A packet is work for about a millisecond, and a sleeping processor takes up to a tenth of that
//! to wake. So the caller's own thread takes part instead of waiting. A helper stays awake for a
//! moment after its work, as the next packet may come. The caller does not wait for a helper that
//! wakes too late.
//!
//! Helpers borrow nothing. They share their work ([`Arc`]), so the caller may go away: it asks for
//! help when it has work, and later checks whether a part of the work is done.
//!
//! A packet allocates nothing, and an order is a word polled by another processor. A general task
//! pool costs more for both than it would save here.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The largest useful number of workers at once.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Work that helpers can take part in.
pub(crate) trait Work: Send + Sync {
    /// Works until nothing is left. Several helpers call it in parallel.
    fn help(&self);
}

/// The helpers asked by one caller.
pub(crate) struct Help {
    /// The seats that may be at work, a bit for each, and the time of each offer.
    asked: SeatBits,
    times: [u64; MOST_SEATS],
}

type SeatBits = u64;
const MOST_SEATS: usize = SeatBits::BITS as usize;
/// A single processor has no helper, but the tests need one.
const LEAST_SEATS: usize = if cfg!(test) { 1 } else { 0 };

impl Help {
    pub(crate) const fn new() -> Self {
        Self {
            asked: 0,
            times: [0; MOST_SEATS],
        }
    }

    /// Returns whether any helper exists.
    pub(crate) fn is_there() -> bool {
        !seats().is_empty()
    }

    /// Asks up to `count` idle helpers to work on `work`, from the first seat on: on a large
    /// machine the same ones always stay awake.
    pub(crate) fn ask<W: Work + 'static>(&mut self, count: usize, work: &Arc<W>) {
        let mut missing = count;
        if missing == 0 {
            return;
        }
        for number in bits(self.asked) {
            if self.seat(number).is_some() {
                missing = missing.saturating_sub(1);
            } else {
                self.asked &= !(1 << number);
            }
        }
        let seats = seats().iter().zip(&mut self.times).enumerate();
        for (number, (seat, asked_at)) in seats {
            if missing == 0 {
                return;
            }
            if let Some(time) = seat.offer(|| Arc::clone(work) as Arc<dyn Work>) {
                *asked_at = time;
                self.asked |= 1 << number;
                missing -= 1;
            }
        }
    }

    /// Withdraws the work from helpers that have not begun, so that other callers can ask them.
    pub(crate) fn take_back(&mut self) {
        for number in bits(self.asked) {
            if let Some((seat, time)) = self.seat(number) {
                seat.take_back(time);
            }
        }
    }

    /// A seat whose helper has not finished, and the time of the offer.
    fn seat(&self, number: usize) -> Option<(&'static Seat, u64)> {
        let (seat, &time) = (seats().get(number)?, self.times.get(number)?);
        seat.is_in(time).then_some((seat, time))
    }
}

impl Drop for Help {
    fn drop(&mut self) {
        self.take_back();
    }
}

fn bits(mut bits: SeatBits) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = bits.trailing_zeros();
        bits &= bits.checked_sub(1)?;
        Some(first as usize)
    })
}

/// The shared state of a caller and its helpers: tools for each helper, a place for the caller to
/// sleep, and the first panic of a helper.
pub(crate) struct Common<T> {
    tools: Vec<Mutex<T>>,
    /// Whether the caller sleeps.
    sleeps: Mutex<bool>,
    woken: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<T> Common<T> {
    /// `tools` has one entry for each useful helper.
    pub(crate) fn new(tools: Vec<T>) -> Self {
        Self {
            tools: tools.into_iter().map(Mutex::new).collect(),
            sleeps: Mutex::new(false),
            woken: Condvar::new(),
            panic: Mutex::new(None),
        }
    }

    /// The tools of all helpers.
    pub(crate) fn tools(&self) -> &[Mutex<T>] {
        &self.tools
    }

    /// Returns tools that no other helper uses. A caller asks no more helpers than it has tools,
    /// but an earlier helper may still be at work.
    pub(crate) fn free_tools(&self) -> Option<MutexGuard<'_, T>> {
        self.tools.iter().find_map(|tools| tools.try_lock().ok())
    }

    /// Waits for a helper's result. The helper calls [`Self::wake`] when it is done.
    pub(crate) fn wait_until(&self, is_done: impl Fn() -> bool) {
        let since = Instant::now();
        while since.elapsed() < A_PIECE {
            if is_done() {
                return;
            }
            spin_loop();
        }
        let mut sleeps = lock(&self.sleeps);
        while !is_done() {
            *sleeps = true;
            sleeps = self
                .woken
                .wait(sleeps)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *sleeps = false;
    }

    /// Makes a waiting caller check again.
    pub(crate) fn wake(&self) {
        // Under the lock: a caller that checked before is asleep by now.
        if *lock(&self.sleeps) {
            self.woken.notify_all();
        }
    }

    /// Does a helper's piece of work and stores its panic for the caller.
    pub(crate) fn guarded<R>(&self, piece: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(piece)) {
            Ok(done) => Some(done),
            Err(panic) => {
                match &mut *lock(&self.panic) {
                    none @ None => *none = Some(panic),
                    // Dropping a second panic payload could panic again and kill this helper; leak
                    // it.
                    Some(_) => std::mem::forget(panic),
                }
                None
            }
        }
    }

    /// Resumes the first panic of a helper, if there was one.
    pub(crate) fn resume_panic(&self) {
        let panic = lock(&self.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// A helper's place, which one caller at a time can use.
#[repr(align(128))]
struct Seat {
    /// The number of completed offers times [`STATES`], plus the state.
    state: AtomicU64,
    /// Whether the helper must be woken.
    sleeps: AtomicBool,
    offer: Mutex<Option<Arc<dyn Work>>>,
    helper: OnceLock<Thread>,
}

// The states of a seat, in this order: a caller takes it and offers work; the helper begins; when
// it has finished, the seat is free for the next time. An offer can be withdrawn until the helper
// begins.
const FREE: u64 = 0;
const TAKEN: u64 = 1;
const OFFERED: u64 = 2;
const BEGUN: u64 = 3;
const STATES: u64 = BEGUN + 1;

impl Seat {
    const fn new() -> Self {
        Self {
            state: AtomicU64::new(FREE),
            sleeps: AtomicBool::new(false),
            offer: Mutex::new(None),
            helper: OnceLock::new(),
        }
    }

    /// Steps to the next state if the seat is in the state `from`; returns the time.
    fn step(&self, from: u64) -> Option<u64> {
        // A plain load first keeps the word in its processor's cache.
        let found = self.state.load(Ordering::Relaxed);
        (found % STATES == from
            && self
                .state
                .compare_exchange(found, found + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok())
        .then_some(found / STATES)
    }

    /// Returns whether that time is not over.
    fn is_in(&self, time: u64) -> bool {
        self.state.load(Ordering::Acquire) / STATES == time
    }

    /// Offers work to the helper if it is free. Returns the time of the offer.
    fn offer(&self, offer: impl FnOnce() -> Arc<dyn Work>) -> Option<u64> {
        let time = self.step(FREE)?;
        *lock(&self.offer) = Some(offer());
        // Store before the test for sleep: the helper announces sleep before it looks for an offer.
        self.state.store(time * STATES + OFFERED, Ordering::SeqCst);
        if self.sleeps.load(Ordering::SeqCst)
            && let Some(helper) = self.helper.get()
        {
            helper.unpark();
        }
        Some(time)
    }

    /// Withdraws the offer if the helper has not begun.
    fn take_back(&self, time: u64) {
        let (offered, taken) = (time * STATES + OFFERED, time * STATES + TAKEN);
        let is_back = self
            .state
            .compare_exchange(offered, taken, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        if is_back {
            let offer = lock(&self.offer).take();
            drop(offer);
            self.free(time);
        }
    }

    /// Ends that time.
    fn free(&self, time: u64) {
        self.state
            .store((time + 1) * STATES + FREE, Ordering::Release);
    }

    /// The helper's loop.
    fn help(&self) -> ! {
        let mut since = Instant::now();
        loop {
            if let Some(time) = self.step(OFFERED) {
                self.take_offer(time);
                since = Instant::now();
            } else if since.elapsed() < AWAKE {
                // Yield the processor to any other thread.
                (0..SPINS).for_each(|_| spin_loop());
                thread::yield_now();
            } else {
                self.sleeps.store(true, Ordering::SeqCst);
                if self.state.load(Ordering::SeqCst) % STATES != OFFERED {
                    thread::park();
                }
                self.sleeps.store(false, Ordering::Relaxed);
                // A helper that woke too late is in time for the next packet.
                since = Instant::now();
            }
        }
    }

    fn take_offer(&self, time: u64) {
        let offer = lock(&self.offer).take();
        debug_assert!(offer.is_some(), "an offer is made before it is announced");
        if let Some(work) = offer {
            // Work guards its pieces. A helper survives every other panic.
            let call = AssertUnwindSafe(move || work.help());
            catch_unwind(call).unwrap_or_else(std::mem::forget);
        }
        self.free(time);
    }
}

/// Starts the helpers if necessary. They inherit this thread's processors.
pub(crate) fn start() {
    seats();
}

/// A seat for every processor except the caller's, for the life of the process.
fn seats() -> &'static [Seat] {
    static SEATS: OnceLock<&[Seat]> = OnceLock::new();
    SEATS.get_or_init(|| {
        let count = (processors() - 1).clamp(LEAST_SEATS, MOST_SEATS);
        let seats = std::iter::repeat_with(Seat::new).take(count);
        let seats: &'static [Seat] = seats.collect::<Vec<_>>().leak();
        let is_manned = |(number, seat): (usize, &'static Seat)| {
            let builder = thread::Builder::new().name(format!("multifd-help-{number}"));
            let helper = builder.spawn(|| seat.help()).ok()?;
            seat.helper.set(helper.thread().clone()).ok()
        };
        // Without helpers the caller does everything.
        let manned = seats.iter().enumerate().map_while(is_manned).count();
        seats.get(..manned).unwrap_or_default()
    })
}

/// No lock in this crate protects an invariant that a panic could break.
pub(crate) fn lock<L>(lock: &Mutex<L>) -> MutexGuard<'_, L> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Slightly longer than the time between two packets of a busy channel: one is written and the next
/// one read.
const AWAKE: Duration = Duration::from_micros(200);
/// About the time of a quarter of a packet. A helper that takes longer may have been interrupted
/// for a long time.
const A_PIECE: Duration = Duration::from_micros(300);
/// About a microsecond.
const SPINS: usize = 16;

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// The numbers below 100. Each has to be taken.
    struct Numbers {
        common: Common<Vec<usize>>,
        next: AtomicUsize,
        finished: AtomicUsize,
        /// The action for each number.
        each: Box<dyn Fn(usize) -> ControlFlow<()> + Send + Sync>,
    }

    impl Numbers {
        fn new(
            others: usize,
            each: impl Fn(usize) -> ControlFlow<()> + Send + Sync + 'static,
        ) -> Arc<Self> {
            Arc::new(Self {
                common: Common::new(vec![Vec::new(); others]),
                next: AtomicUsize::new(0),
                finished: AtomicUsize::new(0),
                each: Box::new(each),
            })
        }

        fn take(&self, taken: &mut Vec<usize>) {
            while let number @ ..100 = self.next.fetch_add(1, Ordering::Relaxed) {
                let done = self.common.guarded(|| (self.each)(number));
                if done.is_some() {
                    taken.push(number);
                }
                self.finished.fetch_add(1, Ordering::Release);
                self.common.wake();
                if done.is_none_or(|flow| flow.is_break()) {
                    return;
                }
            }
        }

        fn is_over(&self) -> bool {
            self.finished.load(Ordering::Acquire) == 100
        }

        /// The numbers taken by all, in order.
        fn taken(&self, mine: Vec<usize>) -> Vec<usize> {
            let mut all = mine;
            for theirs in self.common.tools() {
                all.append(&mut lock(theirs));
            }
            all.sort_unstable();
            all
        }
    }

    impl Work for Numbers {
        fn help(&self) {
            if let Some(mut tools) = self.common.free_tools() {
                self.take(&mut tools);
            }
        }
    }

    fn share_some(others: usize) -> Vec<usize> {
        let numbers = Numbers::new(others, |_| ControlFlow::Continue(()));
        let (mut mine, mut help) = (Vec::new(), Help::new());
        help.ask(others, &numbers);
        numbers.take(&mut mine);
        numbers.common.wait_until(|| numbers.is_over());
        numbers.taken(mine)
    }

    #[test]
    fn all_there_is_to_do_gets_done_once() {
        for others in [0, 1, 6, 300] {
            assert!(share_some(others).into_iter().eq(0..100));
        }
    }

    #[test]
    fn several_callers_at_once_all_get_through() {
        let rounds = if cfg!(miri) { 5 } else { 200 };
        let share_often = || {
            for _ in 0..rounds {
                assert!(share_some(3).into_iter().eq(0..100));
            }
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(share_often);
            }
        });
    }

    /// Waits until the condition holds, within a generous time limit.
    fn wait_for(is_so: impl Fn() -> bool) -> bool {
        let since = Instant::now();
        while !is_so() && since.elapsed() < Duration::from_millis(20) {
            thread::yield_now();
        }
        is_so()
    }

    /// A helper takes a number that the sleeping caller waits for.
    #[test]
    fn a_caller_that_sleeps_is_woken() {
        let mut helped = 0;
        for _ in 0..50 {
            let numbers = Numbers::new(1, |_| {
                // Longer than the caller spins.
                thread::sleep(2 * A_PIECE);
                ControlFlow::Break(())
            });
            let mut help = Help::new();
            help.ask(1, &numbers);
            if !wait_for(|| numbers.next.load(Ordering::Relaxed) > 0) {
                continue;
            }
            let is_done = || numbers.finished.load(Ordering::Acquire) > 0;
            numbers.common.wait_until(is_done);
            assert!(is_done());
            helped += 1;
        }
        assert!(helped > 0, "nobody helps");
    }

    #[test]
    fn a_panic_of_a_helper_is_the_callers() {
        let mut panics = 0;
        for _ in 0..50 {
            let numbers = Numbers::new(1, |_| resume_unwind(Box::new("as it should")));
            let mut help = Help::new();
            help.ask(1, &numbers);
            let helped = wait_for(|| numbers.finished.load(Ordering::Acquire) > 0);
            let resumed = catch_unwind(AssertUnwindSafe(|| numbers.common.resume_panic()));
            assert_eq!(resumed.is_err(), helped);
            panics += usize::from(helped);
        }
        assert!(panics > 0, "nobody helps");
    }

    /// A caller that goes away leaves its work to the helpers, which share it.
    #[test]
    fn a_caller_that_goes_away_loses_no_seat() {
        for _ in 0..50 {
            let numbers = Numbers::new(1, |_| {
                thread::sleep(Duration::from_micros(10));
                ControlFlow::Continue(())
            });
            let mut help = Help::new();
            help.ask(1, &numbers);
            wait_for(|| numbers.next.load(Ordering::Relaxed) > 0);
            drop((numbers, help));
        }
        // Other tests take seats meanwhile, and free them.
        for seat in seats() {
            let is_free = |_| {
                thread::sleep(Duration::from_millis(1));
                seat.state.load(Ordering::Relaxed) % STATES == FREE
            };
            assert!((0..10_000).any(is_free), "a seat is lost");
        }
    }
}
