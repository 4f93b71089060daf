//! The processor time of threads, which other work on the machine hardly changes.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The time that some work took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// Seconds of processor time.
    pub cpu: f64,
    /// Seconds of real time, summed over all threads.
    pub wall: f64,
}

impl Times {
    /// Runs `work` on this thread. Returns its result and its time.
    pub(crate) fn of<R>(work: impl FnOnce() -> R) -> (R, Self) {
        let (wall, cpu) = (Instant::now(), thread_seconds());
        let result = work();
        let wall = wall.elapsed().as_secs_f64();
        let cpu = thread_seconds() - cpu;
        (result, Self { cpu, wall })
    }

    /// The sum of both times.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            wall: self.wall + other.wall,
        }
    }
}

/// Runs `work` in several threads at once, like the channels of a migration. Calls it with the
/// thread's number, and returns the results.
pub(crate) fn in_threads<R: Send>(threads: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let start = Barrier::new(threads.max(1));
    let (start, work) = (&start, &work);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|number| {
                scope.spawn(move || {
                    start.wait();
                    work(number)
                })
            })
            .collect();
        start.wait();
        let mut results = vec![work(0)];
        // A thread that panicked has printed why, and has no result.
        results.extend(others.into_iter().filter_map(|thread| thread.join().ok()));
        results
    })
}

/// The part of a processor that each of `threads` computing threads gets now: 1 on an idle machine.
#[must_use]
pub(crate) fn share_of_processors(threads: usize) -> f64 {
    let times = in_threads(threads, |_| {
        Times::of(|| {
            let end = Instant::now() + SHARE_TIME;
            let mut sum = 0_u64;
            while Instant::now() < end {
                sum = (0..1000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
            }
        })
    });
    let all = times
        .into_iter()
        .fold(Times::default(), |all, (_, times)| all.plus(times));
    (all.cpu / all.wall.max(f64::MIN_POSITIVE)).clamp(LEAST_SHARE, 1.0)
}

/// This thread's processor time in seconds.
fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The time of a measurement: long in comparison with a time slice of the scheduler.
const SHARE_TIME: Duration = Duration::from_millis(400);
/// The least result, because a thread that got almost no time was unlucky.
const LEAST_SHARE: f64 = 0.02;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_no_work() {
        let ((), times) = Times::of(|| thread::sleep(Duration::from_millis(20)));
        assert!(times.wall >= 0.02 && times.cpu < 0.015, "{times:?}");
        let numbers = in_threads(3, |number| number);
        assert_eq!(numbers.len(), 3);
        assert_eq!(numbers.iter().sum::<usize>(), 3);
    }
}
