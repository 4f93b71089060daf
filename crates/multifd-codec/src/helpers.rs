//! Other processors, which help with parts of packets.
//!
//! A packet is work for a millisecond or so, and a processor that sleeps takes up to a tenth of that to wake. So the
//! caller's own thread, which is awake, takes part instead of waiting; a thread that has helped stays awake for a moment,
//! in which the next packet may come; and one that has not woken before all is done is not waited for.
//!
//! Nothing is allocated for a packet, and an order is a word that another processor looks at. A pool for tasks of any
//! kind does both in a way that costs more than what it would save here.
#![allow(
    unsafe_code,
    reason = "other threads work on what the caller has borrowed, see `Help::new`"
)]

use std::hint::spin_loop;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Most workers that can be of use at once.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Does `here` on this thread, which may ask for help meanwhile: others then do `there` on processors that have nothing else
/// to help with, each with one of `others`. Which of them there are is left to chance, so what there is to do has to be
/// taken from a common heap.
///
/// Returns when all who have begun have finished.
///
/// # Panics
///
/// With the panic of `here`, or else with the first one of `there`. What that one was given is nobody's any more.
pub(crate) fn share<W: Send, R>(
    others: &[Mutex<W>],
    there: impl Fn(&mut W) + Sync,
    here: impl FnOnce(&mut Help<'_>) -> R,
) -> R {
    let first_panic = Mutex::new(None);
    let there = &there;
    let help = || {
        // No more are asked than there are.
        let other = others.iter().find_map(|other| other.try_lock().ok());
        let Some(mut other) = other else { return };
        let call = AssertUnwindSafe(move || there(&mut other));
        if let Err(panic) = catch_unwind(call) {
            // To forget a further one may be a panic itself, which this thread must not have.
            match &mut *lock(&first_panic) {
                none @ None => *none = Some(panic),
                Some(_) => std::mem::forget(panic),
            }
        }
    };
    let done = here(&mut Help::new(&help, others.len()));
    if let Some(panic) = into_inner(first_panic) {
        resume_unwind(panic);
    }
    done
}

/// What others can be asked to do, for as long as this is there.
pub(crate) struct Help<'w> {
    /// See [`Help::new`].
    work: &'static (dyn Fn() + Sync),
    /// So many can be asked at once.
    most: usize,
    /// The seats of those who may be at work, a bit for each, and for which time they were offered it.
    asked: SeatBits,
    times: [u64; MOST_SEATS],
    /// It has borrowed what helpers work on.
    borrowed: PhantomData<&'w (dyn Fn() + Sync)>,
}

type SeatBits = u64;
const MOST_SEATS: usize = SeatBits::BITS as usize;
/// A single processor has nobody to help it. The tests want a helper all the same.
const LEAST_SEATS: usize = if cfg!(test) { 1 } else { 0 };

impl<'w> Help<'w> {
    fn new(work: &'w (dyn Fn() + Sync), most: usize) -> Self {
        // SAFETY: only seats taken for this get the longer life, and a helper calls it between `OFFERED` and the end of that
        // time of its seat. `drop` takes it back or waits for that end, for every seat that was asked. This is dropped
        // before `'w` ends, as nobody but `share` has one and could forget it: `here` is lent it, with a lifetime that
        // leaves it nothing to put in its place.
        let work = unsafe {
            std::mem::transmute::<&'w (dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work)
        };
        Self {
            work,
            most,
            asked: 0,
            times: [0; MOST_SEATS],
            borrowed: PhantomData,
        }
    }

    /// Whether there is anybody who could help.
    pub(crate) fn is_there(&self) -> bool {
        self.most > 0 && !seats().is_empty()
    }

    /// Sees to it that up to `count` others help, if there are so many with nothing else to do: those in the first seats,
    /// so that on a large machine it is always the same ones who stay awake.
    pub(crate) fn ask(&mut self, count: usize) {
        let mut missing = count.min(self.most);
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
            let offer = || Offer {
                work: self.work,
                caller: thread::current(),
            };
            if let Some(time) = seat.offer(offer) {
                *asked_at = time;
                self.asked |= 1 << number;
                missing -= 1;
            }
        }
    }

    /// Waits for what a helper does before it finishes.
    pub(crate) fn wait_until(&self, is_done: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_done() {
            if since.elapsed() < A_PIECE {
                spin_loop();
            } else {
                thread::park();
            }
        }
    }

    /// A seat whose helper has not finished, and the time it was asked.
    fn seat(&self, number: usize) -> Option<(&'static Seat, u64)> {
        let (seat, &time) = (seats().get(number)?, self.times.get(number)?);
        seat.is_in(time).then_some((seat, time))
    }
}

impl Drop for Help<'_> {
    /// Takes the work back from those who have not begun, and waits for the others.
    fn drop(&mut self) {
        for number in bits(self.asked) {
            if let Some((seat, time)) = self.seat(number)
                && !seat.take_back(time)
            {
                self.wait_until(|| !seat.is_in(time));
            }
        }
    }
}

fn bits(mut bits: SeatBits) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = bits.trailing_zeros();
        bits &= bits.checked_sub(1)?;
        Some(first as usize)
    })
}

/// A helper's place, where one caller at a time can have help.
#[repr(align(128))]
struct Seat {
    /// How often work was offered or done here, times [`STATES`], and the state.
    state: AtomicU64,
    /// Whether the helper has to be woken.
    sleeps: AtomicBool,
    offer: Mutex<Option<Offer>>,
    helper: OnceLock<Thread>,
}

/// What there is to do, and who waits for it.
struct Offer {
    work: &'static (dyn Fn() + Sync),
    caller: Thread,
}

// The states of a seat, in this order: a caller takes it and offers work; the helper begins; when it has finished, the seat is
// free, for the next time. What is offered and not begun can be taken back.
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
    fn offer(&self, offer: impl FnOnce() -> Offer) -> Option<u64> {
        let time = self.step(FREE)?;
        *lock(&self.offer) = Some(offer());
        // Before it is looked whether the helper sleeps, as the helper says so before it looks for an offer.
        self.state.store(time * STATES + OFFERED, Ordering::SeqCst);
        if self.sleeps.load(Ordering::SeqCst)
            && let Some(helper) = self.helper.get()
        {
            helper.unpark();
        }
        Some(time)
    }

    /// Takes back what was offered, if the helper has not begun.
    fn take_back(&self, time: u64) -> bool {
        let (offered, taken) = (time * STATES + OFFERED, time * STATES + TAKEN);
        let is_back = self
            .state
            .compare_exchange(offered, taken, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        if is_back {
            *lock(&self.offer) = None;
            self.free(time);
        }
        is_back
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
                // Who was woken too late will not be too late for the next packet.
                since = Instant::now();
            }
        }
    }

    fn take_offer(&self, time: u64) {
        let offer = lock(&self.offer).take();
        debug_assert!(offer.is_some(), "an offer is made before it is announced");
        let caller = offer.map(|Offer { work, caller }| {
            work();
            caller
        });
        // From here on `work` may be gone.
        self.free(time);
        if let Some(caller) = caller {
            caller.unpark();
        }
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

pub(crate) fn into_inner<L>(lock: Mutex<L>) -> L {
    lock.into_inner().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn get_mut<L>(lock: &mut Mutex<L>) -> &mut L {
    lock.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// A bit more than what lies between two packets of a busy channel: one is written and the next one read.
const AWAKE: Duration = Duration::from_micros(200);
/// About the time that a quarter of a packet takes. Who has not finished then may have been interrupted, and for long.
const A_PIECE: Duration = Duration::from_micros(300);
/// About a microsecond.
const SPINS: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Takes the numbers below 100, and gives them back in order.
    fn share_some(others: usize) -> Vec<usize> {
        let next = AtomicUsize::new(0);
        let take = |taken: &mut Vec<usize>| {
            while let piece @ ..100 = next.fetch_add(1, Ordering::Relaxed) {
                taken.push(piece);
            }
        };
        let theirs: Vec<_> = std::iter::repeat_with(Mutex::default)
            .take(others)
            .collect();
        let mut mine = Vec::new();
        share(&theirs, take, |help| {
            help.ask(others);
            take(&mut mine);
        });
        let mut all = mine;
        for theirs in theirs {
            all.extend(theirs.into_inner().unwrap());
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn all_there_is_to_do_gets_done_once() {
        for others in [0, 1, 6, 300] {
            assert!(share_some(others).into_iter().eq(0..100));
        }
    }

    #[test]
    fn several_callers_at_once_all_get_through() {
        let share_often = || {
            for _ in 0..200 {
                assert!(share_some(3).into_iter().eq(0..100));
            }
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(share_often);
            }
        });
    }

    /// Waits until a helper has come, for which there is time enough.
    fn wait_for(helped: &AtomicUsize, before: usize) {
        let since = Instant::now();
        while helped.load(Ordering::Relaxed) == before
            && since.elapsed() < Duration::from_millis(20)
        {
            thread::yield_now();
        }
    }

    #[test]
    fn helpers_come_and_are_waited_for() {
        let helped = AtomicUsize::new(0);
        let mut finished = 0;
        for _ in 0..50 {
            let before = helped.load(Ordering::Relaxed);
            let others = [Mutex::new(false)];
            let there = |finished: &mut bool| {
                helped.fetch_add(1, Ordering::Relaxed);
                // Longer than the caller spins.
                thread::sleep(2 * A_PIECE);
                *finished = true;
            };
            share(&others, there, |help| {
                help.ask(1);
                wait_for(&helped, before);
            });
            let has_helped = helped.load(Ordering::Relaxed) > before;
            assert_eq!(*others[0].lock().unwrap(), has_helped);
            finished += usize::from(has_helped);
        }
        assert!(finished > 0, "nobody helps");
    }

    #[test]
    fn a_panic_of_a_helper_is_the_callers() {
        let helped = AtomicUsize::new(0);
        let there = |_: &mut ()| {
            helped.fetch_add(1, Ordering::Relaxed);
            resume_unwind(Box::new("as it should"));
        };
        for _ in 0..50 {
            let before = helped.load(Ordering::Relaxed);
            let call = || {
                share(&[Mutex::new(())], there, |help| {
                    help.ask(1);
                    wait_for(&helped, before);
                });
            };
            let outcome = catch_unwind(AssertUnwindSafe(call));
            assert_eq!(outcome.is_err(), helped.load(Ordering::Relaxed) > before);
        }
        assert!(helped.into_inner() > 0, "nobody helps");
    }

    #[test]
    fn a_panic_of_the_caller_waits_for_helpers_and_frees_their_seats() {
        let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let there = |_: &mut ()| {
            begun.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
            ended.fetch_add(1, Ordering::Relaxed);
        };
        for _ in 0..50 {
            let before = begun.load(Ordering::Relaxed);
            let here = |help: &mut Help<'_>| {
                help.ask(1);
                wait_for(&begun, before);
                resume_unwind(Box::new("as it should"));
            };
            let call = || share(&[Mutex::new(())], there, here);
            let outcome = catch_unwind(AssertUnwindSafe(call));
            assert!(outcome.is_err());
            assert_eq!(begun.load(Ordering::Relaxed), ended.load(Ordering::Relaxed));
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
