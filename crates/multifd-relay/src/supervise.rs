//! Waiting for the threads of a migration.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Time from one call of `watch` to the next: a person reads the progress that it shows.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Waits for `count` endings, and calls `watch` regularly meanwhile, which fails if the wait is to
/// end. Returns the first failure, which closes everything; later failures are its consequences.
pub(crate) fn wait_for<E>(
    mut count: usize,
    endings: &Receiver<Result<(), E>>,
    mut watch: impl FnMut() -> Result<(), E>,
    close_all: impl Fn(),
) -> Option<E> {
    let mut first = None;
    while count > 0 {
        let ended = match endings.recv_timeout(PROGRESS_INTERVAL) {
            Ok(ending) => {
                count = count.saturating_sub(1);
                ending
            }
            Err(RecvTimeoutError::Timeout) => watch(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if let (Err(failure), None) = (ended, &first) {
            first = Some(failure);
            close_all();
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc;

    #[test]
    fn the_first_failure_counts_and_closes_once() {
        let (ended, endings) = mpsc::channel();
        for ending in [Ok(()), Err("first"), Err("second")] {
            ended.send(ending).unwrap();
        }
        let closed = Cell::new(0);
        let failure = wait_for(3, &endings, || Ok(()), || closed.set(closed.get() + 1));
        assert_eq!((failure, closed.get()), (Some("first"), 1));
    }

    #[test]
    fn the_watch_is_asked_while_nothing_ends() {
        let (ended, endings) = mpsc::channel::<Result<(), ()>>();
        let asked = Cell::new(0);
        let watch = || {
            asked.set(asked.get() + 1);
            ended.send(Ok(())).unwrap();
            Ok(())
        };
        assert_eq!(
            wait_for(1, &endings, watch, || panic!("nothing failed")),
            None
        );
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn a_failed_watch_closes_everything() {
        let (ended, endings) = mpsc::channel();
        let close_all = || ended.send(Err("closed")).unwrap();
        let failure = wait_for(1, &endings, || Err("stalled"), close_all);
        assert_eq!(failure, Some("stalled"));
    }
}
