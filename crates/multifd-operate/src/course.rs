//! The course of a migration at its source: what is to be done, given what is seen. It has no clock
//! and no connection of its own, so all of it can be tested.

use std::time::Duration;

use crate::qemu::Phase;

/// How long a cancelled QEMU may take to end its migration before the relay is cut off. That frees
/// a QEMU 11.1 which was cancelled in its set-up (docs/qemu-notes.md).
const CANCEL_LIMIT: Duration = Duration::from_secs(20);

/// How long it may take after that.
const CUT_LIMIT: Duration = Duration::from_secs(40);

/// How long the guest may stand still for its switch-over beyond the time limit: it is nearly over.
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(30);

/// How long QEMU may take to notice that its relay has failed.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);

/// How long QEMU may take to end once its relay has delivered everything.
const DELIVERED_LIMIT: Duration = Duration::from_secs(60);

/// How long the monitor may be silent before the relay is cut off, and before all hope is lost. A
/// small guest's QEMU may be silent in its last round, until its destination reads.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);
const HOPE_LIMIT: Duration = Duration::from_secs(90);

/// What the caller wants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) timeout: Option<Duration>,
    pub(crate) postcopy_after: Option<Duration>,
}

/// The relay's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relay {
    Runs,
    Delivered,
    Failed,
}

/// What is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// `None` if the monitor does not answer.
    pub(crate) phase: Option<Phase>,
    /// Since the start.
    pub(crate) elapsed: Duration,
    /// The caller wants the end.
    pub(crate) wish: bool,
    pub(crate) relay: Relay,
}

/// Why a migration was cancelled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Asked,
    Timeout,
    /// The relay has failed, and QEMU did not notice.
    Relay,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Wait,
    StartPostcopy,
    Cancel(Stop),
    /// The wish to cancel comes too late: the guest is at the destination.
    TooLate,
    CutRelay,
    /// QEMU says how it ended.
    Over,
    /// QEMU does not say it any more.
    GiveUp,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Course {
    terms: Terms,
    stop: Option<(Stop, Duration)>,
    has_postcopy: bool,
    was_too_late: bool,
    is_cut: bool,
    relay_ended: Option<Duration>,
    silent: Option<Duration>,
}

impl Course {
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            ..Self::default()
        }
    }

    /// Why it was cancelled here, if it was.
    pub(crate) fn stop(&self) -> Option<Stop> {
        self.stop.map(|(stop, _)| stop)
    }

    /// The next step. Each is given once, but for waiting and the last one.
    pub(crate) fn next(&mut self, seen: Seen) -> Step {
        let Seen { elapsed, .. } = seen;
        if seen.relay != Relay::Runs {
            self.relay_ended.get_or_insert(elapsed);
        }
        let since = |at: Option<Duration>| at.map(|at| elapsed.saturating_sub(at));
        let Some(phase) = seen.phase else {
            let silent = elapsed.saturating_sub(*self.silent.get_or_insert(elapsed));
            return match silent {
                silent if silent >= HOPE_LIMIT => Step::GiveUp,
                silent if silent >= SILENCE_LIMIT => self.cut(),
                _ => Step::Wait,
            };
        };
        self.silent = None;
        if phase.is_final() || phase == Phase::PostcopyPaused {
            return Step::Over;
        }
        let relay_ended = since(self.relay_ended);
        if seen.relay == Relay::Delivered {
            // The destination has the guest, so cancelling would be wrong.
            return match relay_ended {
                Some(ended) if ended >= DELIVERED_LIMIT => Step::GiveUp,
                _ => Step::Wait,
            };
        }
        if phase == Phase::Postcopy {
            return match relay_ended {
                Some(ended) if ended >= DELIVERED_LIMIT => Step::GiveUp,
                _ if seen.wish && !self.was_too_late => {
                    self.was_too_late = true;
                    Step::TooLate
                }
                _ => Step::Wait,
            };
        }
        if let Some(stopped) = since(self.stop.map(|(_, at)| at)) {
            return match stopped {
                stopped if stopped >= CANCEL_LIMIT + CUT_LIMIT => Step::GiveUp,
                stopped if stopped >= CANCEL_LIMIT => self.cut(),
                _ => Step::Wait,
            };
        }
        if seen.wish {
            return self.cancel(Stop::Asked, elapsed);
        }
        if relay_ended.is_some_and(|ended| ended >= NOTICE_LIMIT) {
            return self.cancel(Stop::Relay, elapsed);
        }
        let more = match phase {
            Phase::Switchover => SWITCHOVER_LIMIT,
            _ => Duration::ZERO,
        };
        let timeout = self.terms.timeout.map(|limit| limit.saturating_add(more));
        if timeout.is_some_and(|limit| elapsed >= limit) {
            return self.cancel(Stop::Timeout, elapsed);
        }
        let is_time = self
            .terms
            .postcopy_after
            .is_some_and(|after| elapsed >= after);
        if is_time && phase == Phase::Active && !self.has_postcopy {
            self.has_postcopy = true;
            return Step::StartPostcopy;
        }
        Step::Wait
    }

    fn cancel(&mut self, stop: Stop, elapsed: Duration) -> Step {
        self.stop = Some((stop, elapsed));
        Step::Cancel(stop)
    }

    fn cut(&mut self) -> Step {
        match std::mem::replace(&mut self.is_cut, true) {
            true => Step::Wait,
            false => Step::CutRelay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(phase: Phase, seconds: u32) -> Seen {
        Seen {
            phase: Some(phase),
            elapsed: SECOND * seconds,
            wish: false,
            relay: Relay::Runs,
        }
    }

    fn wished(phase: Phase, seconds: u32) -> Seen {
        Seen {
            wish: true,
            ..seen(phase, seconds)
        }
    }

    fn with(relay: Relay, phase: Phase, seconds: u32) -> Seen {
        Seen {
            relay,
            ..wished(phase, seconds)
        }
    }

    #[test]
    fn a_wish_cancels_once_then_cuts_then_gives_up() {
        let mut course = Course::new(Terms::default());
        assert_eq!(course.next(seen(Phase::Active, 1)), Step::Wait);
        let first = course.next(wished(Phase::Active, 2));
        assert_eq!(first, Step::Cancel(Stop::Asked));
        assert_eq!(course.next(wished(Phase::Cancelling, 3)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Cancelling, 22)), Step::CutRelay);
        assert_eq!(course.next(wished(Phase::Cancelling, 23)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Cancelling, 62)), Step::GiveUp);
        assert_eq!(course.next(wished(Phase::Cancelled, 63)), Step::Over);
        assert_eq!(course.stop(), Some(Stop::Asked));
    }

    #[test]
    fn a_guest_that_has_gone_is_not_called_back() {
        let mut course = Course::new(Terms {
            timeout: Some(SECOND * 2),
            postcopy_after: None,
        });
        assert_eq!(course.next(wished(Phase::Postcopy, 1)), Step::TooLate);
        assert_eq!(course.next(wished(Phase::Postcopy, 9)), Step::Wait);
        for phase in [Phase::Active, Phase::Switchover] {
            let delivered = with(Relay::Delivered, phase, 10);
            assert_eq!(course.next(delivered), Step::Wait);
        }
        let late = with(Relay::Delivered, Phase::Active, 70);
        assert_eq!(course.next(late), Step::GiveUp);
        assert_eq!(course.next(seen(Phase::PostcopyPaused, 71)), Step::Over);
        assert_eq!(course.stop(), None);
    }

    #[test]
    fn time_limits_hold() {
        let terms = Terms {
            timeout: Some(SECOND * 10),
            postcopy_after: Some(SECOND * 5),
        };
        let mut course = Course::new(terms);
        assert_eq!(course.next(seen(Phase::Setup, 6)), Step::Wait);
        assert_eq!(course.next(seen(Phase::Active, 7)), Step::StartPostcopy);
        assert_eq!(course.next(seen(Phase::Active, 8)), Step::Wait);
        assert_eq!(course.next(seen(Phase::Switchover, 11)), Step::Wait);
        let late = course.next(seen(Phase::Active, 11));
        assert_eq!(late, Step::Cancel(Stop::Timeout));
    }

    #[test]
    fn a_qemu_that_does_not_notice_or_does_not_answer_is_given_up() {
        let mut course = Course::new(Terms::default());
        let failed = |seconds| Seen {
            relay: Relay::Failed,
            ..seen(Phase::Active, seconds)
        };
        assert_eq!(course.next(failed(1)), Step::Wait);
        assert_eq!(course.next(failed(21)), Step::Cancel(Stop::Relay));
        let mut course = Course::new(Terms::default());
        let silent = |seconds| Seen {
            phase: None,
            ..seen(Phase::Active, seconds)
        };
        assert_eq!(course.next(silent(1)), Step::Wait);
        assert_eq!(course.next(silent(46)), Step::CutRelay);
        assert_eq!(course.next(seen(Phase::Active, 50)), Step::Wait);
        assert_eq!(course.next(silent(60)), Step::Wait);
        assert_eq!(course.next(silent(150)), Step::GiveUp);
    }
}
