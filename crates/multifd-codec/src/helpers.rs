//! Other processors, which help with parts of packets.
//!
//! A packet is work for a millisecond or so, and a processor that sleeps takes up to a tenth of
//! that to wake. So the caller's own thread, which is awake, takes part instead of waiting; a
//! thread that has helped stays awake for a moment, in which the next packet may come; and a thread
//! that has not woken before all is done is not waited for.
//!
//! Helpers borrow nothing. They hold a share ([`Arc`]) of what they work on, so the caller may come
//! and go: it asks for help when it has work, and later looks whether a part of the work is done.
//!
//! Nothing is allocated for a packet, and an order is a word that another processor looks at. A
//! pool for tasks of any kind does both in a way that costs more than what it would save here.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Most workers that can be of use at once.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Work that helpers can take part in.
pub(crate) trait Work: Send + Sync {
    /// Does what there is to do until nothing is left. Helpers call it, several of them at once.
    fn help(&self);
}

/// The helpers that one caller has asked.
pub(crate) struct Help {
    /// The seats that may be at work, a bit for each, and for which time they were offered it.
    asked: SeatBits,
    times: [u64; MOST_SEATS],
}

type SeatBits = u64;
const MOST_SEATS: usize = SeatBits::BITS as usize;
/// A single processor has nobody to help it. The tests want a helper all the same.
const LEAST_SEATS: usize = if cfg!(test) { 1 } else { 0 };

impl Help {
    pub(crate) const fn new() -> Self {
        Self {
            asked: 0,
            times: [0; MOST_SEATS],
        }
    }

    /// Whether there is anybody who could help.
    pub(crate) fn is_there() -> bool {
        !seats().is_empty()
    }

    /// Sees to it that up to `count` others help with `work`, if so many have nothing else to do.
    /// They are those in the first seats: on a large machine the same ones always stay awake.
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

    /// Takes the work back from those who have not begun, so that others can ask them.
    pub(crate) fn take_back(&mut self) {
        for number in bits(self.asked) {
            if let Some((seat, time)) = self.seat(number) {
                seat.take_back(time);
            }
        }
    }

    /// A seat whose helper has not finished, and the time it was asked.
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

/// What a caller and its helpers have in common: tools for each helper, a place where the caller
/// waits for helpers, and the first panic of one.
pub(crate) struct Common<T> {
    tools: Vec<Mutex<T>>,
    /// Whether the caller sleeps.
    sleeps: Mutex<bool>,
    woken: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<T> Common<T> {
    /// As many helpers as there are tools can be of use.
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

    /// Tools that no other helper has. No more helpers are asked than there are tools, but one that
    /// was asked before may still be there.
    pub(crate) fn free_tools(&self) -> Option<MutexGuard<'_, T>> {
        self.tools.iter().find_map(|tools| tools.try_lock().ok())
    }

    /// Waits for what a helper does. The helper calls [`Self::wake`] when it has done it.
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

    /// Lets a waiting caller look again.
    pub(crate) fn wake(&self) {
        // Under the lock: a caller that has looked before sleeps by now.
        if *lock(&self.sleeps) {
            self.woken.notify_all();
        }
    }

    /// Does a helper's piece of work, whose panic becomes the caller's.
    pub(crate) fn guarded<R>(&self, piece: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(piece)) {
            Ok(done) => Some(done),
            Err(panic) => {
                match &mut *lock(&self.panic) {
                    none @ None => *none = Some(panic),
                    // Dropping a further one may be a panic itself, which a helper must not have.
                    Some(_) => std::mem::forget(panic),
                }
                None
            }
        }
    }

    /// Goes on with the first panic of a helper, if there was one.
    pub(crate) fn resume_panic(&self) {
        let panic = lock(&self.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// A helper's place, where one caller at a time can have help.
#[repr(align(128))]
struct Seat {
    /// How often work was offered or done here, times [`STATES`], and the state.
    state: AtomicU64,
    /// Whether the helper has to be woken.
    sleeps: AtomicBool,
    offer: Mutex<Option<Arc<dyn Work>>>,
    helper: OnceLock<Thread>,
}

// The states of a seat, in this order: a caller takes it and offers work; the helper begins; when
// it has finished, the seat is free for the next time. An offer that is not begun can be taken
// back.
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

    /// Steps to the next state if it is in the state `from`; the time.
    fn step(&self, from: u64) -> Option<u64> {
        // Not to take the word from its processor's cache for nothing.
        let found = self.state.load(Ordering::Relaxed);
        (found % STATES == from
            && self
                .state
                .compare_exchange(found, found + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok())
        .then_some(found / STATES)
    }

    /// Whether that time is not over.
    fn is_in(&self, time: u64) -> bool {
        self.state.load(Ordering::Acquire) / STATES == time
    }

    /// Offers work to the helper, if it has none. Returns the time for which it has.
    fn offer(&self, offer: impl FnOnce() -> Arc<dyn Work>) -> Option<u64> {
        let time = self.step(FREE)?;
        *lock(&self.offer) = Some(offer());
        // Before it is looked whether the helper sleeps, as the helper says so before it looks for
        // an offer.
        self.state.store(time * STATES + OFFERED, Ordering::SeqCst);
        if self.sleeps.load(Ordering::SeqCst)
            && let Some(helper) = self.helper.get()
        {
            helper.unpark();
        }
        Some(time)
    }

    /// Takes back what was offered, if the helper has not begun.
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

    /// What the helper does.
    fn help(&self) -> ! {
        let mut since = Instant::now();
        loop {
            if let Some(time) = self.step(OFFERED) {
                self.take_offer(time);
                since = Instant::now();
            } else if since.elapsed() < AWAKE {
                // Whoever else wants this processor shall have it.
                (0..SPINS).for_each(|_| spin_loop());
                thread::yield_now();
            } else {
                self.sleeps.store(true, Ordering::SeqCst);
                if self.state.load(Ordering::SeqCst) % STATES != OFFERED {
                    thread::park();
                }
                self.sleeps.store(false, Ordering::Relaxed);
                // A helper that was woken too late is not too late for the next packet.
                since = Instant::now();
            }
        }
    }

    fn take_offer(&self, time: u64) {
        let offer = lock(&self.offer).take();
        debug_assert!(offer.is_some(), "an offer is made before it is announced");
        if let Some(work) = offer {
            // Work guards its pieces. A helper outlives everything else that may go wrong.
            let call = AssertUnwindSafe(move || work.help());
            catch_unwind(call).unwrap_or_else(std::mem::forget);
        }
        self.free(time);
    }
}

/// Starts the helpers, if that has not been done. They may run where this thread may.
pub(crate) fn start() {
    seats();
}

/// A seat for every processor beside the caller's. They are there as long as the process is.
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
        // Without them everything is done by the caller.
        let manned = seats.iter().enumerate().map_while(is_manned).count();
        seats.get(..manned).unwrap_or_default()
    })
}

/// Nothing that is locked in this crate can be left half done.
pub(crate) fn lock<L>(lock: &Mutex<L>) -> MutexGuard<'_, L> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bit more than what lies between two packets of a busy channel: one is written and the next one
/// read.
const AWAKE: Duration = Duration::from_micros(200);
/// About the time that a quarter of a packet takes. A helper that has not finished then may have
/// been interrupted, and for long.
const A_PIECE: Duration = Duration::from_micros(300);
/// About a microsecond.
const SPINS: usize = 16;

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// The numbers below 100, which somebody has to take.
    struct Numbers {
        common: Common<Vec<usize>>,
        next: AtomicUsize,
        finished: AtomicUsize,
        /// What is done with each.
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

        /// What all have taken, in order.
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

    /// Waits until it is so, for which there is time enough.
    fn wait_for(is_so: impl Fn() -> bool) -> bool {
        let since = Instant::now();
        while !is_so() && since.elapsed() < Duration::from_millis(20) {
            thread::yield_now();
        }
        is_so()
    }

    /// A helper takes a number that the caller then waits for, asleep.
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

    /// A caller that goes away leaves its work to the helpers, whose share keeps it.
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
        // Other tests take seats meanwhile, and give them back.
        for seat in seats() {
            let is_free = |_| {
                thread::sleep(Duration::from_millis(1));
                seat.state.load(Ordering::Relaxed) % STATES == FREE
            };
            assert!((0..10_000).any(is_free), "a seat is lost");
        }
    }
}
