//! Other processors, which help with parts of a packet.
//!
//! A packet is work for half a millisecond or so, and a processor that sleeps takes a tenth of that to wake. So the
//! caller's own thread, which is awake, takes part instead of waiting, and a thread that has helped stays awake for a
//! moment, in which the next packet may come. By the ordinary ways of rayon, in which the caller sleeps meanwhile, two
//! processors did 1.4 times the work of one, and this way they do 1.7 times.

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
            let Some(seat) = Seat::take(pool) else {
                break;
            };
            helping.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move |_| {
                there(other);
                drop(seat);
                rayon::spawn(stay_awake);
                helping.fetch_sub(1, Ordering::Release);
            });
        }
        let done = here();
        // They have at most a piece left to do, and what follows that in rayon is a matter of nanoseconds.
        let since = Instant::now();
        while helping.load(Ordering::Acquire) > 0 && since.elapsed() < A_PIECE {
            spin_loop();
        }
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

/// The right to one of the pool's threads, so that nobody has to wait for one.
struct Seat;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Seat {
    fn take(pool: &ThreadPool) -> Option<Self> {
        let is_free = |taken: usize| (taken < pool.current_num_threads()).then_some(taken + 1);
        TAKEN
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, is_free)
            .ok()
            .map(|_| Self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Release);
    }
}

/// Looks for work for a moment before the thread goes to sleep.
fn stay_awake() {
    let since = Instant::now();
    while since.elapsed() < AWAKE {
        // Whoever has helped stays awake anew.
        if rayon::yield_now() == Some(Yield::Executed) {
            return;
        }
        spin_loop();
    }
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
        let since = Instant::now();
        while TAKEN.load(Ordering::Relaxed) > 0 {
            assert!(since.elapsed() < Duration::from_secs(10), "a seat is lost");
            thread::yield_now();
        }
    }
}
