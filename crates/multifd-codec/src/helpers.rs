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

/// Most workers that can be of use to [`share`].
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Lets the first of `workers` do `part` on this thread, and others do it at the same time on processors that have
/// nothing else to help with. Which of them there are is left to chance, so that `part` has to take what there is to do
/// from a common heap.
pub(crate) fn share<W: Send>(workers: &mut [W], part: impl Fn(&mut W) + Sync) {
    let Some((first, others)) = workers.split_first_mut() else {
        return;
    };
    let Some(pool) = pool().filter(|_| !others.is_empty()) else {
        return part(first);
    };
    let (part, helping) = (&part, &AtomicUsize::new(0));
    pool.in_place_scope(|scope| {
        for other in others {
            let Some(seat) = Seat::take(pool) else {
                break;
            };
            helping.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move |_| {
                part(other);
                drop(seat);
                helping.fetch_sub(1, Ordering::Release);
                rayon::spawn(stay_awake);
            });
        }
        part(first);
        // They have at most a piece left to do.
        let since = Instant::now();
        while helping.load(Ordering::Acquire) > 0 && since.elapsed() < AWAKE {
            spin_loop();
        }
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_there_is_to_do_gets_done_once() {
        for workers in [1, 2, 7] {
            let next = AtomicUsize::new(0);
            let mut done = vec![Vec::new(); workers];
            share(&mut done, |done| {
                while let piece @ ..100 = next.fetch_add(1, Ordering::Relaxed) {
                    done.push(piece);
                }
            });
            let mut all = done.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..100));
        }
        share(&mut [(); 0], |()| unreachable!());
    }

    #[test]
    fn several_callers_at_once_all_get_through() {
        let share_some = || {
            for _ in 0..200 {
                let next = AtomicUsize::new(0);
                let mut sums = [0_usize; 4];
                share(&mut sums, |sum| {
                    while let piece @ ..64 = next.fetch_add(1, Ordering::Relaxed) {
                        *sum += piece;
                    }
                });
                assert_eq!(sums.iter().sum::<usize>(), 63 * 64 / 2);
            }
        };
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(share_some);
            }
        });
        let since = Instant::now();
        while TAKEN.load(Ordering::Relaxed) > 0 {
            assert!(since.elapsed() < Duration::from_secs(10), "a seat is lost");
            thread::yield_now();
        }
    }
}
