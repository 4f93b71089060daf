//! Other processors, which help with parts of a packet.
//!
//! A packet is work for half a millisecond or so, and a processor that sleeps takes a tenth of that to wake. So the
//! caller's own thread, which is awake, takes part instead of waiting, and a thread that has helped stays awake for a
//! moment, in which the next packet may come. By the ordinary ways of rayon, in which the caller sleeps meanwhile, two
//! processors did 1.4 times the work of one, and this way they do 1.7 times.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

/// Most workers that can be of use at once.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Does `here` on this thread, and at the same time lets `others` do `there` on processors that have nothing else to help
/// with. Which of them there are is left to chance, so what there is to do has to be taken from a common heap.
///
/// Returns when all have finished. So there should be no more `others` than can have something to do. Each that helps
/// takes two small allocations of rayon's.
pub(crate) fn share<W: Send, R>(
    others: &mut [W],
    there: impl Fn(&mut W) + Sync,
    here: impl FnOnce() -> R,
) -> R {
    let Some(pool) = pool().filter(|_| !others.is_empty()) else {
        return here();
    };
    let (there, helping) = (&there, &AtomicUsize::new(0));
    pool.in_place_scope(|scope| {
        for other in others {
            let Some(seat) = Counted::within(&TAKEN_SEATS, pool.current_num_threads()) else {
                break;
            };
            let Some(is_helping) = Counted::within(helping, usize::MAX) else {
                break;
            };
            scope.spawn(move |_| {
                let counted = (seat, is_helping);
                there(other);
                if !IS_AWAKE.get() {
                    rayon::spawn(stay_awake);
                }
                drop(counted);
            });
        }
        let done = here();
        // Rayon would put this thread to sleep until they have finished, which takes longer to wake from than they need.
        let since = Instant::now();
        while helping.load(Ordering::Acquire) > 0 && since.elapsed() < A_PIECE {
            spin_loop();
        }
        // Between what they count down and what rayon looks at are some of its instructions.
        (0..16).for_each(|_| spin_loop());
        done
    })
}

/// As many threads as there are processors beside the caller's; nothing if that is none.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    POOL.get_or_init(|| {
        let threads = processors() - 1;
        let builder = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("multifd-help-{number}"));
        // Without them everything is done by the caller.
        (threads > 0).then(|| builder.build().ok()).flatten()
    })
    .as_ref()
}

/// The pool's threads that are spoken for. Nobody takes more of them than there are, so that nobody waits for one.
static TAKEN_SEATS: AtomicUsize = AtomicUsize::new(0);

/// One more, until it is dropped.
struct Counted<'c>(&'c AtomicUsize);

impl<'c> Counted<'c> {
    fn within(count: &'c AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |count: usize| (count < most).then_some(count + 1);
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| Self(count))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

thread_local! {
    /// Whether this thread is in [`stay_awake`], perhaps with other work on top of it.
    static IS_AWAKE: Cell<bool> = const { Cell::new(false) };
}

/// Looks for work for a moment before the thread goes to sleep.
fn stay_awake() {
    if IS_AWAKE.replace(true) {
        return;
    }
    let mut since = Instant::now();
    while since.elapsed() < AWAKE {
        if rayon::yield_now() == Some(Yield::Executed) {
            since = Instant::now();
        }
        spin_loop();
    }
    IS_AWAKE.set(false);
}

/// About what it takes to wake a processor: to wait for longer would cost more than it could save.
const AWAKE: Duration = Duration::from_micros(100);
/// About the time that half a packet takes. Who has not finished then has been interrupted, and may be for long.
const A_PIECE: Duration = Duration::from_micros(300);

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the numbers below 100, and gives them back in order.
    fn share_some(others: usize) -> Vec<usize> {
        let next = AtomicUsize::new(0);
        let take = |taken: &mut Vec<usize>| {
            while let piece @ ..100 = next.fetch_add(1, Ordering::Relaxed) {
                taken.push(piece);
            }
        };
        let mut theirs = vec![Vec::new(); others];
        let mut mine = Vec::new();
        share(&mut theirs, take, || take(&mut mine));
        let mut all = [mine, theirs.concat()].concat();
        all.sort_unstable();
        all
    }

    #[test]
    fn all_there_is_to_do_gets_done_once() {
        for others in [0, 1, 6] {
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

    #[test]
    fn a_panic_of_a_helper_is_the_callers_and_its_seat_is_free_again() {
        let helped = AtomicUsize::new(0);
        let there = |_: &mut ()| {
            helped.fetch_add(1, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("as it should"));
        };
        let here = || thread::sleep(Duration::from_millis(1));
        for _ in 0..50 {
            let before = helped.load(Ordering::Relaxed);
            let call = || share(&mut [(); 1], there, here);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
            assert_eq!(outcome.is_err(), helped.load(Ordering::Relaxed) > before);
        }
        // Other tests take seats meanwhile, and give them back.
        let is_free = |_: usize| {
            let is_free =
                processors() == 1 || TAKEN_SEATS.load(Ordering::Relaxed) < processors() - 1;
            thread::sleep(Duration::from_millis(u64::from(!is_free)));
            is_free
        };
        assert!((0..10_000).any(is_free), "a seat is lost");
    }
}
