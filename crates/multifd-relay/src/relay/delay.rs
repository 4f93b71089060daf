//! How long an end without need is put off for a destination that may have everything.

use std::time::Duration;

use multifd_transport::Moment;

/// An end that was put off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delay {
    since: Moment,
    bytes_out: u64,
}

impl Delay {
    /// `bytes_out`: what was written to the destination so far.
    pub(super) fn begin(bytes_out: u64) -> Self {
        Self {
            since: Moment::now(),
            bytes_out,
        }
    }

    /// Whether the delay has lasted for `limit`. While the bytes move of a source that has given
    /// its guest up (`source_is_done`), nobody else has that guest, and the time begins anew.
    pub(super) fn is_over(
        &mut self,
        limit: Duration,
        source_is_done: bool,
        bytes_out: u64,
    ) -> bool {
        if source_is_done && bytes_out > self.bytes_out {
            *self = Self::begin(bytes_out);
        }
        self.since.elapsed() >= limit
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_guest_that_nobody_else_has_is_waited_for_while_it_moves() {
        let limit = Duration::from_millis(50);
        for source_is_done in [true, false] {
            let mut delay = Delay::begin(0);
            for bytes_out in 1..4 {
                thread::sleep(limit);
                let is_over = delay.is_over(limit, source_is_done, bytes_out);
                assert_eq!(is_over, !source_is_done);
            }
            thread::sleep(limit);
            assert!(delay.is_over(limit, source_is_done, 3), "nothing moves");
        }
    }
}
