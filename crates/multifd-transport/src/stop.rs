//! A wish to end, which threads that wait for connections notice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Asks for an end. All clones are one wish, which is never taken back.
///
/// Its descriptor becomes readable, and stays so, once the end is asked for: threads that poll
/// sockets poll it too.
///
/// ```
/// use std::time::Duration;
/// use multifd_transport::Stop;
///
/// let stop = Stop::new()?;
/// let asking = stop.clone();
/// std::thread::spawn(move || asking.request());
/// assert!(stop.wait(Some(Duration::from_secs(60))));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Stop(Arc<Wish>);

#[derive(Debug)]
struct Wish {
    requested: AtomicBool,
    event: OwnedFd,
}

impl Stop {
    /// Nothing is asked for yet.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop(Arc::new(Wish {
            requested: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })))
    }

    /// Asks for the end.
    pub fn request(&self) {
        if !self.0.requested.swap(true, Ordering::AcqRel) {
            // The counter has room for this one, the only number that is ever added to it.
            let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
        }
    }

    /// Whether the end was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.requested.load(Ordering::Acquire)
    }

    /// Waits until the end is asked for, at most as long as `timeout`. Returns whether it was.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.is_requested() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(self, PollFlags::IN)], left.as_ref()) {
                Ok(1..) | Err(Errno::INTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        self.is_requested()
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_are_one_wish_and_it_stays() {
        let stop = Stop::new().unwrap();
        let other = stop.clone();
        assert!(!stop.is_requested() && !stop.wait(Some(Duration::ZERO)));
        for _ in 0..2 {
            other.request();
            assert!(stop.is_requested() && stop.wait(None) && stop.wait(Some(Duration::ZERO)));
            let mut event = [PollFd::new(&stop, PollFlags::IN)];
            assert_eq!(poll(&mut event, None), Ok(1));
        }
    }
}
