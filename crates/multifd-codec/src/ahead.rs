//! Work ahead: jobs that other processors do, and that are taken in the order of their coming.
//!
//! It suits work that is not a codec's own, such as the compression of a byte stream in pieces. The
//! helpers are those of the codecs: one for each processor but one, for the whole process.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::Mutex;

use crate::helpers::{self, Common, Help, Work, lock, processors};

/// With this many processors at work, the caller has no time left to bring more and to take what is
/// done.
const MOST_WORKERS: usize = 8;

/// Jobs for each worker: one that it does, and one that is there when it has done that.
const JOBS_EACH: usize = 2;

/// A job of about the tenth of a millisecond or more: waking a processor takes as long.
pub trait Job: Send + 'static {
    /// The tools of a worker. The result must not depend on what it did before.
    type Tools: Send + 'static;

    /// Does the job. What comes of it stays in the job.
    fn work(&mut self, tools: &mut Self::Tools);
}

/// A line of jobs in work. The caller gives and takes them, and does jobs itself while it would
/// wait. It holds few of them, so a caller gives as long as there [is room](Self::has_room).
///
/// Dropped, it forgets the jobs that it has. It does not wait for workers then.
pub struct Ahead<J: Job> {
    mine: J::Tools,
    shared: Arc<Shared<J>>,
    help: Help,
}

struct Shared<J: Job> {
    common: Common<J::Tools>,
    line: Mutex<Line<J>>,
}

/// Jobs in order, the oldest first.
struct Line<J> {
    places: VecDeque<Place<J>>,
    /// The number of the oldest job.
    first: u64,
    /// Jobs that no worker has begun. They are the last ones.
    waiting: usize,
}

enum Place<J> {
    Waiting(J),
    Begun,
    Done(J),
    /// Its worker has panicked.
    Lost,
}

impl<J: Job> Ahead<J> {
    /// A line without jobs. `tools` makes the tools of each worker.
    ///
    /// # Errors
    /// Errors of `tools`.
    pub fn new<E>(mut tools: impl FnMut() -> Result<J::Tools, E>) -> Result<Self, E> {
        let mine = tools()?;
        let others = processors().min(MOST_WORKERS).saturating_sub(1);
        let others = std::iter::repeat_with(tools).take(others);
        let others = others.collect::<Result<Vec<_>, E>>()?;
        Ok(Self {
            mine,
            shared: Arc::new(Shared {
                common: Common::new(others),
                line: Mutex::new(Line {
                    places: VecDeque::new(),
                    first: 0,
                    waiting: 0,
                }),
            }),
            help: Help::new(),
        })
    }

    /// The most jobs that there may be in it.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let others = self.shared.common.tools().len();
        JOBS_EACH.saturating_mul(others.saturating_add(1))
    }

    /// Whether one more job may come.
    #[must_use]
    pub fn has_room(&self) -> bool {
        lock(&self.shared.line).places.len() < self.capacity()
    }

    /// Whether [`pop`](Self::pop) gives a job at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let line = lock(&self.shared.line);
        matches!(line.places.front(), Some(Place::Done(_)))
    }

    /// Adds a job, even beyond [`capacity`](Self::capacity).
    pub fn push(&mut self, job: J) {
        let waiting = {
            let mut line = lock(&self.shared.line);
            line.places.push_back(Place::Waiting(job));
            line.waiting = line.waiting.saturating_add(1);
            line.waiting
        };
        // The caller may do the only one before a worker has woken.
        let others = self.shared.common.tools().len();
        let wanted = waiting.saturating_sub(1).min(others);
        if wanted > 0 {
            helpers::start();
            self.help.ask(wanted, &self.shared);
        }
    }

    /// Takes the oldest job when it is done; `None` when there are no jobs.
    ///
    /// # Panics
    /// If a job panicked. Drop the `Ahead` then.
    pub fn pop(&mut self) -> Option<J> {
        loop {
            let oldest = lock(&self.shared.line).take()?;
            match oldest {
                Place::Done(job) => return Some(job),
                Place::Lost => {
                    self.shared.common.resume_panic();
                    resume_unwind(Box::new("a job was lost to a panic"));
                }
                Place::Waiting(_) | Place::Begun => {}
            }
            if !self.shared.do_one(&mut self.mine) {
                let common = &self.shared.common;
                common.wait_until(|| lock(&self.shared.line).is_decided());
            }
        }
    }
}

impl<J> Line<J> {
    /// Takes the oldest job, if it is done. Otherwise answers how far it is. `None`: no jobs.
    fn take(&mut self) -> Option<Place<J>> {
        match self.places.front()? {
            Place::Done(_) => {
                self.first = self.first.wrapping_add(1);
                self.places.pop_front()
            }
            Place::Lost => Some(Place::Lost),
            Place::Waiting(_) | Place::Begun => Some(Place::Begun),
        }
    }

    /// Whether the oldest job is in work no more.
    fn is_decided(&self) -> bool {
        matches!(self.places.front(), Some(Place::Done(_) | Place::Lost))
    }

    fn begin(&mut self) -> Option<(u64, J)> {
        let index = self.places.len().checked_sub(self.waiting)?;
        let place = self.places.get_mut(index)?;
        match mem::replace(place, Place::Begun) {
            Place::Waiting(job) => {
                self.waiting = self.waiting.saturating_sub(1);
                Some((self.first.wrapping_add(index as u64), job))
            }
            other => {
                *place = other;
                None
            }
        }
    }

    fn finish(&mut self, number: u64, done: Option<J>) {
        let index = number.wrapping_sub(self.first) as usize;
        if let Some(place) = self.places.get_mut(index) {
            *place = done.map_or(Place::Lost, Place::Done);
        }
    }
}

impl<J: Job> Shared<J> {
    /// Does the oldest job that no worker has begun, if there is one.
    fn do_one(&self, tools: &mut J::Tools) -> bool {
        let Some((number, mut job)) = lock(&self.line).begin() else {
            return false;
        };
        let done = self.common.guarded(move || {
            job.work(tools);
            job
        });
        lock(&self.line).finish(number, done);
        self.common.wake();
        true
    }
}

impl<J: Job> Work for Shared<J> {
    fn help(&self) {
        if let Some(mut tools) = self.common.free_tools() {
            while self.do_one(&mut tools) {}
        }
    }
}

impl<J: Job> fmt::Debug for Ahead<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;
    use std::time::Duration;

    struct Square {
        number: u64,
        takes: Duration,
    }

    impl Job for Square {
        /// Jobs that it has done.
        type Tools = u64;

        fn work(&mut self, done: &mut u64) {
            if self.takes == Duration::MAX {
                resume_unwind(Box::new("as it should"));
            }
            thread::sleep(self.takes);
            self.number *= self.number;
            *done += 1;
        }
    }

    fn line() -> Ahead<Square> {
        Ahead::new(|| Ok::<_, Infallible>(0)).unwrap()
    }

    /// Microseconds that look random.
    fn delay(number: u64) -> Duration {
        Duration::from_micros((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 300)
    }

    #[test]
    fn jobs_come_back_in_order_however_long_they_take() {
        let mut ahead = line();
        let (mut given, mut taken) = (0, 0);
        let most = if cfg!(miri) { 30 } else { 2000 };
        while taken < most {
            while given < most && ahead.has_room() {
                ahead.push(Square {
                    number: given,
                    takes: delay(given),
                });
                given += 1;
            }
            assert!(given - taken <= ahead.capacity() as u64);
            assert_eq!(ahead.pop().map(|job| job.number), Some(taken * taken));
            taken += 1;
        }
        assert!(!ahead.is_ready() && ahead.pop().is_none());
    }

    #[test]
    fn others_take_part() {
        let mut ahead = line();
        for round in 0..200 {
            for _ in 0..ahead.capacity() {
                ahead.push(Square {
                    number: round,
                    takes: Duration::from_micros(200),
                });
            }
            while let Some(job) = ahead.pop() {
                assert_eq!(job.number, round * round);
            }
        }
        let others = ahead.shared.common.tools();
        assert!(others.is_empty() || others.iter().any(|done| *lock(done) > 0));
    }

    #[test]
    fn what_is_done_is_seen_without_a_wait() {
        let mut ahead = line();
        assert!(!ahead.is_ready());
        let takes = Duration::ZERO;
        ahead.push(Square { number: 3, takes });
        assert!(!ahead.is_ready());
        assert!(ahead.shared.do_one(&mut 0));
        assert!(ahead.is_ready());
        assert!(ahead.pop().is_some_and(|job| job.number == 9));
    }

    #[test]
    fn a_panic_in_a_job_is_the_callers_each_time() {
        for at in 0..4 {
            let mut ahead = line();
            for number in 0..4 {
                let takes = match number == at {
                    true => Duration::MAX,
                    false => Duration::ZERO,
                };
                ahead.push(Square { number, takes });
            }
            for number in 0..at {
                assert!(ahead.pop().is_some_and(|job| job.number == number * number));
            }
            for _ in 0..2 {
                assert!(catch_unwind(AssertUnwindSafe(|| ahead.pop())).is_err());
            }
        }
    }

    #[test]
    fn a_line_with_jobs_may_be_dropped() {
        for number in 0..50 {
            let mut ahead = line();
            for _ in 0..3 {
                let takes = delay(number);
                ahead.push(Square { number, takes });
            }
        }
    }
}
