//! The course of a migration at its source: what is to be done, given what is seen. It has no clock
//! and no connection of its own, so all of it can be tested.

use std::time::Duration;

use crate::qemu::Phase;

/// Time limit for a cancelled QEMU to end its migration, before the relay is cut off. That frees a
/// QEMU 11.1 which was cancelled in its set-up (docs/qemu-notes.md).
const CANCEL_LIMIT: Duration = Duration::from_secs(20);

/// Time limit for QEMU to begin to cancel, before the command is repeated. The command may have
/// been lost with the monitor's connection.
const CANCEL_AGAIN: Duration = Duration::from_secs(2);

/// When a cancelled QEMU is released that waits before its switch-over. If the two meet, 7.2 stays
/// in `cancelling`, with its guest standing still.
const RELEASE_AFTER: Duration = Duration::from_millis(200);

/// Time limit for a cancelled QEMU to end after the relay was cut off.
const CUT_LIMIT: Duration = Duration::from_secs(10);

/// Time limit for QEMU to begin postcopy.
const POSTCOPY_LIMIT: Duration = Duration::from_secs(30);

/// Time limit for QEMU to notice that its relay has failed.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);

/// Time limit for QEMU to end once its relay has ended, with the guest let go.
const ENDED_LIMIT: Duration = Duration::from_secs(60);

/// Time limits for a silent monitor: until the relay is cut off, and until the migration is given
/// up. A small guest's QEMU may be silent in its last round, until its destination reads.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);
const HOPE_LIMIT: Duration = Duration::from_secs(90);

/// The caller's terms.
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

/// One observation of QEMU, the relay and the caller.
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

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Wait,
    StartPostcopy,
    /// The guest may be let go: from then on it cannot be called back.
    GoOn,
    /// A cancelled QEMU may still wait for the command to let the guest go.
    Release,
    Cancel(Stop),
    /// QEMU has not begun to cancel.
    CancelAgain,
    /// The wish to cancel comes too late.
    TooLate,
    CutRelay,
    /// QEMU says how it ended.
    Over,
    /// QEMU does not say it any more.
    GiveUp,
}

/// The state of a source's migration: the actions so far, and when they were taken.
#[derive(Debug, Default)]
pub(crate) struct Course {
    terms: Terms,
    stop: Option<(Stop, Duration)>,
    /// When it was cancelled for the last time.
    cancelled: Option<Duration>,
    /// When the guest was let go, at the latest.
    let_go: Option<Duration>,
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

    /// The next step. `Wait`, the final steps, `GoOn`, `Release` and `CancelAgain` may repeat;
    /// every other step is returned once.
    pub(crate) fn next(&mut self, seen: Seen) -> Step {
        let Seen { elapsed, .. } = seen;
        if seen.relay != Relay::Runs {
            self.relay_ended.get_or_insert(elapsed);
        }
        let since = |at: Option<Duration>| at.map(|at| elapsed.saturating_sub(at));
        let Some(phase) = seen.phase else {
            let silent = elapsed.saturating_sub(*self.silent.get_or_insert(elapsed));
            if self.let_go.is_some() {
                // Nothing is cut off then: the relay says how it ended.
                let ended = since(self.relay_ended);
                return match ended.is_some_and(|ended| ended >= ENDED_LIMIT) {
                    true => Step::GiveUp,
                    false => Step::Wait,
                };
            }
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
                Some(ended) if ended >= ENDED_LIMIT => Step::GiveUp,
                _ => Step::Wait,
            };
        }
        if matches!(phase, Phase::Switchover | Phase::Postcopy) {
            self.let_go.get_or_insert(elapsed);
        }
        let is_waiting = self.has_postcopy
            && phase == Phase::Active
            && since(self.let_go) >= Some(POSTCOPY_LIMIT);
        if self.let_go.is_some() && self.stop.is_none() && !is_waiting {
            return self.let_go(phase, seen, relay_ended);
        }
        if let Some(stopped) = since(self.stop.map(|(_, at)| at)) {
            return match stopped {
                // Another client has begun it. The guest runs there, and a part of it only here.
                _ if phase == Phase::Postcopy => match relay_ended {
                    Some(ended) if ended >= ENDED_LIMIT => Step::GiveUp,
                    _ => Step::Wait,
                },
                stopped if stopped >= CANCEL_LIMIT + CUT_LIMIT => Step::GiveUp,
                stopped if stopped >= CANCEL_LIMIT => self.cut(),
                stopped if phase == Phase::Cancelling && stopped >= RELEASE_AFTER => Step::Release,
                // In later phases the guest has been let go, by us or another client.
                _ if matches!(phase, Phase::Setup | Phase::Active | Phase::PreSwitchover)
                    && since(self.cancelled) >= Some(CANCEL_AGAIN) =>
                {
                    self.cancelled = Some(elapsed);
                    Step::CancelAgain
                }
                _ => Step::Wait,
            };
        }
        if seen.wish {
            return self.cancel(Stop::Asked, elapsed);
        }
        if relay_ended.is_some_and(|ended| ended >= NOTICE_LIMIT) {
            return self.cancel(Stop::Relay, elapsed);
        }
        if phase == Phase::None && elapsed >= HOPE_LIMIT {
            // It has refused the command by now, or forgotten it.
            return self.cancel(Stop::Relay, elapsed);
        }
        if phase == Phase::PreSwitchover && seen.relay == Relay::Failed {
            // No destination waits for it, or it is another client's.
            return self.cancel(Stop::Relay, elapsed);
        }
        if phase == Phase::PreSwitchover {
            self.let_go = Some(elapsed);
            return Step::GoOn;
        }
        if self.terms.timeout.is_some_and(|limit| elapsed >= limit) {
            return self.cancel(Stop::Timeout, elapsed);
        }
        let is_time = self
            .terms
            .postcopy_after
            .is_some_and(|after| elapsed >= after);
        if is_time && phase == Phase::Active && !self.has_postcopy {
            self.has_postcopy = true;
            self.let_go = Some(elapsed);
            return Step::StartPostcopy;
        }
        Step::Wait
    }

    /// The next step once the guest was let go. Cancelling could make it run at both ends.
    fn let_go(&mut self, phase: Phase, seen: Seen, relay_ended: Option<Duration>) -> Step {
        match relay_ended {
            Some(ended) if ended >= ENDED_LIMIT => Step::GiveUp,
            _ if phase == Phase::PreSwitchover && seen.relay != Relay::Failed => Step::GoOn,
            _ if seen.wish && !self.was_too_late => {
                self.was_too_late = true;
                Step::TooLate
            }
            _ => Step::Wait,
        }
    }

    fn cancel(&mut self, stop: Stop, elapsed: Duration) -> Step {
        self.stop = Some((stop, elapsed));
        self.cancelled = Some(elapsed);
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
        assert_eq!(course.next(wished(Phase::Cancelling, 2)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Cancelling, 3)), Step::Release);
        assert_eq!(course.next(wished(Phase::Cancelling, 22)), Step::CutRelay);
        assert_eq!(course.next(wished(Phase::Cancelling, 23)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Cancelling, 32)), Step::GiveUp);
        assert_eq!(course.next(wished(Phase::Cancelled, 33)), Step::Over);
        assert_eq!(course.stop(), Some(Stop::Asked));
    }

    /// The command went into a connection that broke.
    #[test]
    fn a_cancel_that_has_come_to_nothing_is_said_again() {
        let mut course = Course::new(Terms::default());
        let first = course.next(wished(Phase::PreSwitchover, 1));
        assert_eq!(first, Step::Cancel(Stop::Asked));
        assert_eq!(course.next(wished(Phase::PreSwitchover, 2)), Step::Wait);
        let again = course.next(wished(Phase::PreSwitchover, 3));
        assert_eq!(again, Step::CancelAgain);
        assert_eq!(course.next(wished(Phase::PreSwitchover, 4)), Step::Wait);
        // Another client has let the guest go.
        assert_eq!(course.next(wished(Phase::Switchover, 6)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Postcopy, 9)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Cancelling, 6)), Step::Release);
        // In postcopy nothing is cut off, and the relay's end is the end.
        assert_eq!(course.next(wished(Phase::Postcopy, 99)), Step::Wait);
        let ended = |seconds| with(Relay::Failed, Phase::Postcopy, seconds);
        assert_eq!(course.next(ended(100)), Step::Wait);
        assert_eq!(course.next(ended(160)), Step::GiveUp);
    }

    #[test]
    fn a_guest_that_was_let_go_is_not_called_back() {
        let terms = Terms {
            timeout: Some(SECOND * 2),
            postcopy_after: None,
        };
        let mut course = Course::new(terms);
        assert_eq!(course.next(wished(Phase::Postcopy, 1)), Step::TooLate);
        assert_eq!(course.next(wished(Phase::Postcopy, 9)), Step::Wait);
        assert_eq!(course.next(seen(Phase::PostcopyPaused, 71)), Step::Over);
        let mut course = Course::new(terms);
        assert_eq!(course.next(seen(Phase::PreSwitchover, 1)), Step::GoOn);
        // QEMU has not done it yet.
        assert_eq!(course.next(seen(Phase::PreSwitchover, 1)), Step::GoOn);
        assert_eq!(course.next(wished(Phase::Switchover, 1)), Step::TooLate);
        assert_eq!(course.next(wished(Phase::Switchover, 9)), Step::Wait);
        for relay in [Relay::Failed, Relay::Delivered] {
            let ended = |seconds| with(relay, Phase::Switchover, seconds);
            let mut course = Course::new(terms);
            assert_eq!(course.next(seen(Phase::Switchover, 5)), Step::Wait);
            assert_ne!(course.next(ended(10)), Step::Cancel(Stop::Asked));
            assert_eq!(course.next(ended(11)), Step::Wait);
            assert_eq!(course.next(ended(70)), Step::GiveUp);
            assert_eq!(course.stop(), None);
        }
    }

    #[test]
    fn a_wish_before_the_switch_over_keeps_the_guest() {
        let mut course = Course::new(Terms::default());
        let first = course.next(wished(Phase::PreSwitchover, 1));
        assert_eq!(first, Step::Cancel(Stop::Asked));
        // QEMU stops for its switch-over in the meantime, and gets no command to go on.
        assert_eq!(course.next(wished(Phase::PreSwitchover, 1)), Step::Wait);
        assert_eq!(course.next(wished(Phase::Cancelled, 2)), Step::Over);
    }

    #[test]
    fn time_limits_hold() {
        let terms = Terms {
            timeout: Some(SECOND * 40),
            postcopy_after: Some(SECOND * 5),
        };
        let mut course = Course::new(terms);
        assert_eq!(course.next(seen(Phase::Setup, 6)), Step::Wait);
        assert_eq!(course.next(seen(Phase::Active, 7)), Step::StartPostcopy);
        assert_eq!(course.next(wished(Phase::Active, 8)), Step::TooLate);
        assert_eq!(course.next(seen(Phase::Active, 9)), Step::Wait);
        // It does not begin.
        let late = course.next(seen(Phase::Active, 41));
        assert_eq!(late, Step::Cancel(Stop::Timeout));
        let mut course = Course::new(terms);
        let late = course.next(seen(Phase::Setup, 40));
        assert_eq!(late, Step::Cancel(Stop::Timeout));
    }

    #[test]
    fn a_guest_is_not_let_go_behind_a_relay_that_has_failed() {
        let mut course = Course::new(Terms::default());
        assert_eq!(course.next(seen(Phase::Active, 1)), Step::Wait);
        let failed = Seen {
            relay: Relay::Failed,
            ..seen(Phase::PreSwitchover, 2)
        };
        assert_eq!(course.next(failed), Step::Cancel(Stop::Relay));
    }

    #[test]
    fn a_migration_that_does_not_begin_is_given_up() {
        let mut course = Course::new(Terms::default());
        assert_eq!(course.next(seen(Phase::None, 60)), Step::Wait);
        let late = course.next(seen(Phase::None, 90));
        assert_eq!(late, Step::Cancel(Stop::Relay));
        assert_eq!(course.next(seen(Phase::None, 120)), Step::GiveUp);
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
        let mut course = Course::new(Terms::default());
        assert_eq!(course.next(seen(Phase::PreSwitchover, 1)), Step::GoOn);
        assert_eq!(course.next(silent(2)), Step::Wait);
        assert_eq!(course.next(silent(200)), Step::Wait);
        let ended = |seconds| Seen {
            relay: Relay::Failed,
            ..silent(seconds)
        };
        assert_eq!(course.next(ended(201)), Step::Wait);
        assert_eq!(course.next(ended(261)), Step::GiveUp);
    }
}
