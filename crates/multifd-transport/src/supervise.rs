//! How the threads of a migration end.

use std::sync::mpsc::Sender;
use std::thread;

/// Does a thread's work, and reports how it ended. A panic reports nothing: it closes everything,
/// so that none of the other threads goes on waiting, and comes out where the threads are joined.
pub fn report_end<T>(tell: &Sender<T>, close_all: impl Fn(), work: impl FnOnce() -> T) {
    struct Closing<F: Fn()>(F);

    impl<F: Fn()> Drop for Closing<F> {
        fn drop(&mut self) {
            if thread::panicking() {
                (self.0)();
            }
        }
    }

    let _closing = Closing(close_all);
    // It fails only if the receiving thread has panicked.
    let _ = tell.send(work());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

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
                report_end(&ended, close_all, work)
            });
            panics.join()
        });
        assert!(joined.is_err());
        assert_eq!(closed.load(Ordering::Relaxed), 1);
        report_end(&ended, close_all, || Ok(()));
        assert_eq!(endings.try_recv(), Ok(Ok(())));
        assert_eq!(closed.into_inner(), 1);
    }
}
