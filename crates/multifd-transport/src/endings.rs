//! Waiting for the threads of a migration.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Does a thread's work, and tells how it ended. A panic tells nothing: it closes everything, so that none of the other
/// threads goes on waiting, and comes out where the threads are joined.
pub fn told<T>(tell: &Sender<T>, close_all: impl Fn(), work: impl FnOnce() -> T) {
    struct Closing<F: Fn()>(F);

    impl<F: Fn()> Drop for Closing<F> {
        fn drop(&mut self) {
            if thread::panicking() {
                (self.0)();
            }
        }
    }

    let _closing = Closing(close_all);
    // Nobody hears it only if who waits for it has panicked.
    let _ = tell.send(work());
}

/// Waits for `count` endings. The first failure is kept and closes everything; what ends with a failure after it does so
/// because of it.
pub fn wait_for<E>(
    mut count: usize,
    endings: &Receiver<Result<(), E>>,
    mut progress: impl FnMut(),
    close_all: impl Fn(),
) -> Option<E> {
    let mut first = None;
    while count > 0 {
        match endings.recv_timeout(PROGRESS_INTERVAL) {
            Ok(ending) => {
                count = count.saturating_sub(1);
                if let (Err(failure), None) = (ending, &first) {
                    first = Some(failure);
                    close_all();
                }
            }
            Err(RecvTimeoutError::Timeout) => progress(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn the_first_failure_counts_and_closes_once() {
        let (ended, endings) = mpsc::channel();
        for ending in [Ok(()), Err("first"), Err("second")] {
            ended.send(ending).unwrap();
        }
        let closed = Cell::new(0);
        let failure = wait_for(3, &endings, || {}, || closed.set(closed.get() + 1));
        assert_eq!((failure, closed.get()), (Some("first"), 1));
    }

    #[test]
    fn a_panic_closes_everything_and_is_not_swallowed() {
        let (ended, endings) = mpsc::channel::<Result<(), ()>>();
        let closed = AtomicUsize::new(0);
        let close_all = || {
            closed.fetch_add(1, Ordering::Relaxed);
        };
        let joined = thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let work = || std::panic::resume_unwind(Box::new("as it should"));
                told(&ended, close_all, work)
            });
            panics.join()
        });
        assert!(joined.is_err());
        assert_eq!(closed.load(Ordering::Relaxed), 1);
        told(&ended, close_all, || Ok(()));
        drop(ended);
        assert_eq!(
            wait_for(2, &endings, || {}, || panic!("nothing failed")),
            None
        );
        assert_eq!(closed.into_inner(), 1);
    }

    #[test]
    fn progress_is_told_while_nothing_ends() {
        let (ended, endings) = mpsc::channel::<Result<(), ()>>();
        let told = Cell::new(0);
        let tell = || {
            told.set(told.get() + 1);
            ended.send(Ok(())).unwrap();
        };
        assert_eq!(
            wait_for(1, &endings, tell, || panic!("nothing failed")),
            None
        );
        assert_eq!(told.get(), 1);
    }
}
