//! A limit for the rate of bytes that many connections write together.
//!
//! The limit acts like a link of that rate with room for [`BURST`]: a write waits while the room is
//! full. What the link would still hold counts as queued, so a choice of effort sees a busy link.
//! Bytes count where they go to a socket: compressed, encrypted, and in frames.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most that goes out at once, as time at the limit's rate. A processor that compresses for
/// this long leaves no gap, and no switch on the way has to hold more.
const BURST: Duration = Duration::from_millis(50);

/// The time at the limit's rate that a connection gets in one turn. It is short, so that many
/// connections take turns often.
const TURN: Duration = Duration::from_millis(2);

/// The bytes of a turn: at least a network's packet, and at most what keeps system calls rare.
const TURN_BYTES: [u64; 2] = [1500, 256 << 10];

/// Writes up to this size have a line of their own: a SYNC, a mark, the end of a connection, and a
/// page that postcopy has asked for.
const SMALL: usize = 8 << 10;

/// How long a waiting thread sleeps at most before it looks again. It is woken before that.
const LOOK: Duration = Duration::from_millis(500);

/// A limit for the rate of bytes that connections write. Clones share it.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_per_second: u64,
    turn_bytes: u64,
    start: Instant,
    state: Mutex<State>,
}

/// A rate that cannot be a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// It is too low.
    #[error(
        "the lowest rate is 1 mbit ({} bytes a second): below it, packets of pages take so long \
         that peers give up",
        RateLimit::LEAST
    )]
    TooLow {
        /// The rate in bytes a second.
        found: u64,
    },
}

/// All times are since the limit was made.
#[derive(Debug, Default)]
struct State {
    /// When the link has passed on all that it was given.
    empty_at: Duration,
    /// Connections that wait: those with a small write, and others.
    lines: [VecDeque<Arc<Limited>>; 2],
    /// The last turn was that of a small write.
    was_small: bool,
}

/// A connection with a limit.
#[derive(Debug)]
pub(crate) struct Limited {
    limit: RateLimit,
    /// Whether writes wait. If not, their bytes count nevertheless.
    holds: AtomicBool,
    woken: Condvar,
    book: Mutex<Book>,
}

/// What a connection has written, and how long it was held.
#[derive(Debug, Default)]
struct Book {
    /// Bytes that the link may still hold, and when it has passed them on.
    queued: VecDeque<(Duration, u64)>,
    written: u64,
    held: Duration,
    held_since: Option<Duration>,
}

/// The most entries of queued bytes: those of [`BURST`], with room for small writes.
const MOST_QUEUED: usize = 256;

impl RateLimit {
    /// The lowest rate in bytes a second: 1 mbit. A packet of raw pages, 512 KiB, takes 4 s then.
    pub const LEAST: u64 = 125_000;

    /// A limit of so many bytes a second.
    ///
    /// # Errors
    /// If the rate is lower than [`LEAST`](Self::LEAST).
    pub fn new(bytes_per_second: u64) -> Result<Self, RateError> {
        if bytes_per_second < Self::LEAST {
            let found = bytes_per_second;
            return Err(RateError::TooLow { found });
        }
        let [least, most] = TURN_BYTES;
        let turn_bytes = bytes_in(TURN, bytes_per_second).clamp(least, most);
        Ok(Self(Arc::new(Shared {
            bytes_per_second,
            turn_bytes,
            start: Instant::now(),
            state: Mutex::default(),
        })))
    }

    /// The rate.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        self.0.bytes_per_second
    }

    fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// How long the link takes for so many bytes.
    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.0.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Every change is whole before a panic could come.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How long a write that takes `time` has to wait at `now`.
    fn wait(&self, time: Duration, now: Duration) -> Duration {
        let until = self.empty_at.max(now).saturating_add(time);
        until.saturating_sub(now.saturating_add(BURST))
    }

    /// Gives bytes to the link that take `time`. Returns when it has passed them on.
    fn give(&mut self, time: Duration, now: Duration) -> Duration {
        self.empty_at = self.empty_at.max(now).saturating_add(time);
        self.empty_at
    }

    /// The line whose turn it is. Small writes go first, and every second turn is another's.
    fn line(&self) -> usize {
        let [small, others] = &self.lines;
        let is_other = small.is_empty() || self.was_small && !others.is_empty();
        usize::from(is_other)
    }

    fn next(&self) -> Option<&Arc<Limited>> {
        self.lines.get(self.line()).and_then(VecDeque::front)
    }

    /// Takes a connection that has waited out of its line, and wakes the next one.
    fn leave(&mut self, line: usize, limited: &Arc<Limited>) {
        if let Some(line) = self.lines.get_mut(line)
            && let Some(place) = line.iter().position(|one| Arc::ptr_eq(one, limited))
        {
            line.remove(place);
        }
        if let Some(next) = self.next() {
            next.woken.notify_all();
        }
    }
}

impl Limited {
    /// A connection whose writes count, and do not wait yet.
    pub(crate) fn new(limit: &RateLimit) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.clone(),
            holds: AtomicBool::new(false),
            woken: Condvar::new(),
            book: Mutex::default(),
        })
    }

    /// Lets writes wait from now on.
    pub(crate) fn hold(&self) {
        self.holds.store(true, Ordering::SeqCst);
    }

    /// Lets writes wait no more, those that wait now included: the connection is about to be
    /// closed. Returns whether they did.
    pub(crate) fn lift(&self) -> bool {
        let held = self.holds.swap(false, Ordering::SeqCst);
        // A thread that has looked at it under this lock sleeps by now.
        let _state = self.limit.lock();
        self.woken.notify_all();
        held
    }

    /// Waits for its turn to write, and returns how many of `wanted` bytes may be written.
    pub(crate) fn take(self: &Arc<Self>, wanted: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let limit = &self.limit;
        let all = u64::try_from(wanted).unwrap_or(u64::MAX);
        let turn = all.min(limit.0.turn_bytes);
        let line = usize::from(wanted > SMALL);
        let mut state = limit.lock();
        let mut is_in_line = false;
        let bytes = loop {
            let now = limit.now();
            if !self.holds.load(Ordering::SeqCst) {
                break all;
            }
            let is_next = match state.next() {
                Some(next) if is_in_line => Arc::ptr_eq(next, self),
                next => next.is_none(),
            };
            let wait = match is_next {
                true => state.wait(limit.time_of(turn), now),
                false => LOOK,
            };
            if wait.is_zero() {
                state.was_small = line == 0;
                break turn;
            }
            if !is_in_line && let Some(line) = state.lines.get_mut(line) {
                is_in_line = true;
                line.push_back(Arc::clone(self));
                self.book().held_since = Some(now);
                // Its turn may come before that of the connection which would be next.
                continue;
            }
            let woken = self.woken.wait_timeout(state, wait.min(LOOK));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        let now = limit.now();
        let passed_at = state.give(limit.time_of(bytes), now);
        if is_in_line {
            state.leave(line, self);
        }
        self.book().took(bytes, passed_at, now);
        usize::try_from(bytes).unwrap_or(wanted)
    }

    /// Gives back what was taken and not written.
    pub(crate) fn give_back(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut state = self.limit.lock();
        state.empty_at = state.empty_at.saturating_sub(self.limit.time_of(bytes));
        let mut book = self.book();
        book.written = book.written.saturating_sub(bytes);
        if let Some((_, last)) = book.queued.back_mut() {
            *last = last.saturating_sub(bytes);
        }
    }

    /// The bytes that a link of this rate would still hold.
    pub(crate) fn queued(&self) -> u64 {
        let now = self.limit.now();
        let mut book = self.book();
        book.forget(now);
        let rate = self.limit.bytes_per_second();
        // A link passes on what came first. Only the first of them may be on its way.
        let left =
            |(at, bytes): &(Duration, u64)| bytes_in(at.saturating_sub(now), rate).min(*bytes);
        book.queued.iter().map(left).fold(0, u64::saturating_add)
    }

    /// The bytes that were taken.
    pub(crate) fn written(&self) -> u64 {
        self.book().written
    }

    /// How long writes have waited.
    pub(crate) fn held(&self) -> Duration {
        let now = self.limit.now();
        let book = self.book();
        let since = book.held_since.map(|since| now.saturating_sub(since));
        book.held.saturating_add(since.unwrap_or_default())
    }

    /// Whether a write waits now.
    pub(crate) fn is_held(&self) -> bool {
        self.book().held_since.is_some()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn took(&mut self, bytes: u64, passed_at: Duration, now: Duration) {
        if let Some(since) = self.held_since.take() {
            self.held = self.held.saturating_add(now.saturating_sub(since));
        }
        self.written = self.written.saturating_add(bytes);
        self.forget(now);
        let is_full = self.queued.len() >= MOST_QUEUED;
        match self.queued.back_mut() {
            Some((at, last)) if is_full => {
                *at = passed_at;
                *last = last.saturating_add(bytes);
            }
            _ => self.queued.push_back((passed_at, bytes)),
        }
    }

    fn forget(&mut self, now: Duration) {
        while self.queued.front().is_some_and(|(at, _)| *at <= now) {
            self.queued.pop_front();
        }
    }
}

/// The bytes that go in a time at a rate.
fn bytes_in(time: Duration, bytes_per_second: u64) -> u64 {
    let bytes = time.as_nanos() * u128::from(bytes_per_second) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;
    use crate::Stream;

    const MBIT: u64 = 125_000;

    fn limit(bytes_per_second: u64) -> RateLimit {
        RateLimit::new(bytes_per_second).unwrap()
    }

    /// A connection with the limit, and its other end.
    fn pair(limit: &RateLimit) -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Stream::from(ours).with_rate_limit(Some(limit));
        ours.hold_to_rate();
        (ours, theirs)
    }

    #[test]
    fn a_rate_below_one_mbit_is_none() {
        let error = RateLimit::new(MBIT - 1).unwrap_err();
        assert_eq!(error, RateError::TooLow { found: MBIT - 1 });
        assert!(error.to_string().contains("1 mbit"), "{error}");
        assert_eq!(limit(MBIT).bytes_per_second(), MBIT);
    }

    /// In virtual time, so that the figures are exact.
    #[test]
    fn the_rate_is_held_over_a_second_and_bursts_are_short() {
        for rate in [MBIT, 10 * MBIT, 1000 * MBIT, 100_000 * MBIT] {
            let limit = limit(rate);
            let (mut state, mut now, mut sent) = (State::default(), Duration::ZERO, Vec::new());
            let turn = limit.0.turn_bytes;
            // A pause in between, after which no more than a burst is made good.
            for until in [Duration::from_secs(2), Duration::from_secs(4)] {
                while now < until {
                    let wait = state.wait(limit.time_of(turn), now);
                    now += wait;
                    if wait.is_zero() {
                        state.give(limit.time_of(turn), now);
                        sent.push(now);
                    }
                }
                now = until + Duration::from_secs(1);
            }
            let bytes_within = |from: u64, to: u64| {
                let times = Duration::from_millis(from)..Duration::from_millis(to);
                sent.iter().filter(|at| times.contains(*at)).count() as u64 * turn
            };
            for (from, seconds) in [(0, 2), (500, 1), (3000, 1)] {
                let found = bytes_within(from, from + seconds * 1000);
                let wanted = rate * seconds;
                let is_near = found * 10 >= wanted * 9 && found * 10 <= wanted * 11;
                assert!(is_near, "{rate}: {found} in {seconds} s from {from} ms");
            }
            // At the beginning, and after the pause.
            for from in [0, 3000] {
                let found = bytes_within(from, from + 1);
                let most = rate * 51 / 1000 + turn;
                assert!((turn..=most).contains(&found), "{rate}: {found} at once");
            }
        }
    }

    /// Time only bounds the bytes from above, so a slow machine changes nothing.
    #[test]
    fn connections_share_it_in_turns() {
        let limit = limit(16 << 20);
        let bytes = vec![1; 12 << 20];
        let before = Instant::now();
        let ends: Vec<_> = (0..3).map(|_| pair(&limit)).collect();
        let read = [(); 3].map(|()| AtomicUsize::new(0));
        let is_first = AtomicBool::new(true);
        let counts = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for ((ours, mut theirs), count) in ends.into_iter().zip(&read) {
                let (bytes, read, is_first, counts) = (&bytes, &read, &is_first, &counts);
                scope.spawn(move || {
                    (&ours).write_all(bytes).unwrap();
                    ours.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(more @ 1..) = theirs.read(&mut buffer) {
                        count.fetch_add(more, Ordering::SeqCst);
                    }
                    // The others have about as much when the first one has everything.
                    if is_first.swap(false, Ordering::SeqCst) {
                        let all = read.iter().map(|count| count.load(Ordering::SeqCst));
                        counts.lock().unwrap().extend(all);
                    }
                });
            }
        });
        let all = 3 * bytes.len();
        let most = (16 << 20) as f64 * before.elapsed().as_secs_f64() * 1.1 + 1e6;
        assert!(all as f64 <= most, "{all} bytes");
        let least = bytes.len() / 3;
        let counts = counts.into_inner().unwrap();
        let is_shared = counts.iter().all(|count| *count >= least);
        assert!(is_shared && counts.len() == 3, "{counts:?}");
    }

    /// The wait would last for minutes.
    #[test]
    fn a_close_ends_the_wait() {
        for how in [Shutdown::Both, Shutdown::Read] {
            let limit = limit(MBIT);
            let (ours, mut theirs) = pair(&limit);
            let outcome = thread::scope(|scope| {
                let writing = scope.spawn(|| (&ours).write_all(&vec![1; 64 << 20]));
                scope.spawn(move || std::io::copy(&mut theirs, &mut std::io::sink()));
                while !ours.is_held_by_rate() {
                    thread::yield_now();
                }
                assert!(ours.queued_bytes() > 0, "the link is busy");
                assert!(ours.limited_bytes() > 0);
                ours.shutdown(how).unwrap();
                let outcome = writing.join().unwrap();
                ours.shutdown(Shutdown::Both).unwrap();
                outcome
            });
            assert_eq!(outcome.is_err(), how == Shutdown::Both, "{outcome:?}");
            assert!(!ours.is_held_by_rate());
            assert!(ours.held_by_rate() > Duration::ZERO);
        }
    }

    #[test]
    fn small_writes_pass_large_ones_and_do_not_stop_them() {
        let limit = limit(MBIT);
        let [first, second, third] = [(); 3].map(|()| Limited::new(&limit));
        let mut state = State::default();
        assert!(state.next().is_none());
        state.lines[1].push_back(Arc::clone(&first));
        state.lines[0].extend([&second, &third].map(Arc::clone));
        assert!(Arc::ptr_eq(state.next().unwrap(), &second));
        state.was_small = true;
        assert!(
            Arc::ptr_eq(state.next().unwrap(), &first),
            "every second turn"
        );
        state.leave(1, &first);
        assert!(Arc::ptr_eq(state.next().unwrap(), &second));
    }

    #[test]
    fn bytes_that_were_not_written_are_given_back() {
        let limit = limit(MBIT);
        let limited = Limited::new(&limit);
        limited.hold();
        let taken = limited.take(5000);
        assert_eq!(taken as u64, limit.0.turn_bytes);
        assert!(limited.queued() > 0);
        limited.give_back(taken);
        assert_eq!((limited.queued(), limited.written()), (0, 0));
        assert!(limit.lock().empty_at <= limit.now());
        // Where nothing holds, all of it counts at once, and others wait for it.
        limited.lift();
        assert_eq!(limited.take(1 << 20), 1 << 20);
        let wait = limit.lock().wait(Duration::ZERO, limit.now());
        assert!(wait > Duration::from_secs(1), "{wait:?}");
    }
}
