//! Waiting for the threads of a migration.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Waits for `count` endings. The first failure is kept and closes everything; what ends with a
/// failure after it does so because of it.
pub(crate) fn wait_for<E>(
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
