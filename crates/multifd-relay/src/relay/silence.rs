//! Detects a source that is silent between its set-up and its first round.
//!
//! QEMU sends its first round at once after the set-up. A QEMU 11.1 that is cancelled in between
//! closes nothing: its guest and its monitor stand still until the peer closes its main channel
//! (docs/qemu-notes.md). Later silence is not judged, because a source may pause.

use std::time::Duration;

use multifd_transport::Moment;

use super::counters::Counters;
use super::gate::Gate;
use super::main_channel;
use super::outline::Outline;
use crate::failure::{Failure, Leg, SetupFault};

/// The longest silence. A cancelled source and its guest stand still for this time. Bytes that a
/// bad link has lost come again within it.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);

/// Measures how long a source has been silent.
#[derive(Debug)]
pub(super) struct Silence {
    within: Duration,
    /// Since when nothing has come, and the number of bytes before.
    since: Option<(Moment, u64)>,
}

impl Silence {
    pub(super) fn new(within: Duration) -> Self {
        Self {
            within,
            since: None,
        }
    }

    /// The failure, once the silence has lasted too long. The time counts only while the relay
    /// itself holds nothing back.
    pub(super) fn look(
        &mut self,
        outline: &Outline,
        gate: &Gate,
        counters: &Counters,
    ) -> Option<Failure> {
        let is_in_setup = outline.look(|seen| seen.set_up && !seen.goes_on);
        let waits = counters.is_main_idle() && gate.has_begun() && gate.all_idle();
        if !is_in_setup || !waits || gate.is_stopped() {
            self.since = None;
            return None;
        }
        let bytes = counters.totals().bytes_in;
        let (since, before) = *self.since.get_or_insert_with(|| (Moment::now(), bytes));
        if before != bytes {
            self.since = Some((Moment::now(), bytes));
            return None;
        }
        let within = self.within;
        (since.elapsed() >= within).then(|| {
            main_channel::failed(Leg::Source, SetupFault::NothingFollows { within }.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use multifd_transport::failure::Cause as TransportCause;

    use super::*;
    use crate::failure::Cause;

    const WITHIN: Duration = Duration::from_millis(20);

    /// A source that has sent its set-up and is silent for longer than it may.
    fn seen(prepare: impl Fn(&Outline, &Gate, &Counters)) -> Option<Failure> {
        let (outline, gate, counters) = <(Outline, Gate, Counters)>::default();
        outline.set_up();
        gate.begin();
        counters.main_idle(true);
        prepare(&outline, &gate, &counters);
        let mut silence = Silence::new(WITHIN);
        assert!(silence.look(&outline, &gate, &counters).is_none());
        thread::sleep(WITHIN);
        silence.look(&outline, &gate, &counters)
    }

    #[test]
    fn a_source_that_is_silent_behind_its_setup_has_stopped() {
        let failure = seen(|_, _, _| ()).unwrap();
        assert_eq!(failure.leg, Leg::Source);
        assert!(matches!(
            failure.cause,
            Cause::Transport(TransportCause::Setup(SetupFault::NothingFollows {
                within: WITHIN
            }))
        ));
    }

    #[test]
    fn a_pause_of_a_source_that_has_gone_on_is_none() {
        assert!(seen(|outline, _, _| outline.goes_on()).is_none());
    }

    #[test]
    fn a_wait_of_this_relay_is_no_silence_of_the_source() {
        assert!(seen(|_, _, counters| counters.main_idle(false)).is_none());
        assert!(seen(|_, gate, _| gate.channel_came(0)).is_none());
        assert!(seen(|_, gate, _| gate.stop()).is_none());
    }

    #[test]
    fn each_byte_begins_the_time_anew() {
        let (outline, gate, counters) = <(Outline, Gate, Counters)>::default();
        outline.set_up();
        gate.begin();
        counters.main_idle(true);
        let mut silence = Silence::new(WITHIN);
        for _ in 0..3 {
            assert!(silence.look(&outline, &gate, &counters).is_none());
            thread::sleep(WITHIN);
            counters.main(1, [None; 2]);
        }
    }
}
