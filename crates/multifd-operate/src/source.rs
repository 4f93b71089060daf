//! The source's side: checks a QEMU, sets it, sends its guest to a trunk, and follows it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use multifd_relay::failure::Cause as RelayCause;
use multifd_relay::leg::LegAddress;
use multifd_relay::relay::{MigrationReport, Relay, RelayConfig, look_for_relay};
use multifd_transport::{Address, Cancel, Listener};

use crate::carrier::Carrier;
use crate::course::{self, Course, Seen, Step, Stop, Terms};
use crate::failure::{Cause, Failure, Whereabouts, chain, has_everything, whereabouts};
use crate::folder::PrivateFolder;
use crate::news::{News, Progress};
use crate::qemu::{MigrationStatus, Phase, Qemu, RunState, end_of, status_of};
use crate::qmp::QmpError;
use crate::settings::{Plan, Wish};

/// Time between two questions to QEMU about its progress. Asking more often would take a noticeable
/// part of its time.
const LOOK: Duration = Duration::from_millis(500);

/// Poll interval for cancellation and for the end.
const TICK: Duration = Duration::from_millis(100);

/// Time limit for the relay to accept the connection of a QEMU that reports completion. All of a
/// small guest may wait in that connection, on a machine with too much to do.
const BEGIN_LIMIT: Duration = Duration::from_secs(5);

/// Time limit for the relay to close its connections after QEMU's end.
const RELAY_LIMIT: Duration = Duration::from_secs(40);

/// Time limit for QEMU to have all figures of a completed migration.
const FIGURES_LIMIT: Duration = Duration::from_secs(1);

/// Time limit for QEMU to end its migration before its settings are put back.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// Time limit, and pause, for cancelling through a monitor that keeps disconnecting, while the
/// guest was not let go.
const CALL_BACK_LIMIT: Duration = Duration::from_secs(30);
const CALL_BACK_PAUSE: Duration = Duration::from_millis(250);

/// Time limit for the guest to run on at the source after a failure.
const RUN_LIMIT: Duration = Duration::from_secs(30);

const LOOK_AT_BOTH: &str = "Look at both QEMUs (query-status) before you end or start either";

/// The order to a source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Order {
    /// The path of QEMU's monitor.
    pub qmp: PathBuf,
    /// The relay, whose `connect` is the trunk.
    pub relay: RelayConfig,
    /// The settings for QEMU.
    pub wish: Wish,
    /// The migration is cancelled after that time.
    pub timeout: Option<Duration>,
    /// Postcopy starts after that time.
    pub postcopy_after: Option<Duration>,
    /// The folder in which the private folder of the socket is made; QEMU must see it under the
    /// same name. If not given, it is beside the monitor, or else in the folder for temporary
    /// files.
    pub socket_dir: Option<PathBuf>,
}

impl Order {
    /// An order without time limit or postcopy, with the socket beside the monitor.
    #[must_use]
    pub fn new(qmp: PathBuf, relay: RelayConfig, wish: Wish) -> Self {
        Self {
            qmp,
            relay,
            wish,
            timeout: None,
            postcopy_after: None,
            socket_dir: None,
        }
    }
}

/// A guest that has moved.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Moved {
    /// QEMU's figures.
    pub qemu: MigrationStatus,
    /// The relay's figures, if it came to its end.
    pub report: Option<MigrationReport>,
    /// From the command to QEMU to its end.
    pub elapsed: Duration,
}

/// Checks the source, and says what would be set. Changes nothing.
///
/// # Errors
/// When the guest cannot be sent.
pub fn plan(order: &Order) -> Result<Plan, Failure> {
    let mut qemu = Qemu::connect(&order.qmp).map_err(Failure::before)?;
    Ok(check(&mut qemu, &order.wish)?.0)
}

/// Sends the guest, unless `cancel` ends that before the destination has it.
///
/// # Errors
/// When the migration failed. The failure says where the guest is.
pub fn migrate(
    order: &Order,
    cancel: &Cancel,
    observe: &mut dyn FnMut(News),
) -> Result<Moved, Failure> {
    let mut qemu = Qemu::connect(&order.qmp).map_err(Failure::before)?;
    let (plan, state) = check(&mut qemu, &order.wish)?;
    look_for_destination(order, cancel)?;
    let user = qemu.qmp().user();
    let folder = PrivateFolder::beside(&order.qmp, order.socket_dir.as_deref(), user, observe)?;
    let socket = folder.socket();
    let leg = LegAddress::qemu(Address::Unix(socket.clone()));
    let listen = |source| {
        Failure::before(Cause::Listen {
            address: leg.to_string(),
            source,
        })
    };
    let listener = Listener::bind(&leg.address).map_err(listen)?;
    folder.give(&socket).map_err(listen)?;
    let relay = Relay::on(listener, &leg, order.relay.clone()).map_err(listen)?;
    let outcome = plan
        .apply(&mut qemu)
        .map_err(Failure::before)
        .and_then(|()| {
            let carrier = Carrier::start(relay).map_err(Failure::before)?;
            let mut run = Run {
                order,
                qemu: &mut qemu,
                carrier,
                ran: state.running,
                course: Course::new(Terms {
                    timeout: order.timeout,
                    postcopy_after: order.postcopy_after,
                }),
                last: MigrationStatus::default(),
                told: String::new(),
                told_at: None,
                waits: false,
                ended: None,
                has_switched: false,
                begun: Instant::now(),
            };
            run.go(&leg.to_string(), cancel, observe)
        });
    put_back_when_idle(&plan, &mut qemu, observe);
    outcome
}

/// Undoes the changes of a plan, unless a migration runs: another client has begun it, or it has
/// not ended.
pub(crate) fn put_back_when_idle(plan: &Plan, qemu: &mut Qemu, observe: &mut dyn FnMut(News)) {
    match qemu.ask_again(|qemu| qemu.wait_idle(IDLE_LIMIT)) {
        Ok(status) if status.is_under_way() && !plan.changes.is_empty() => {
            observe(stayed(plan, &Cause::Busy(status.status)));
        }
        _ => put_back(plan, qemu, observe),
    }
}

/// Undoes the changes of a plan, and reports settings that stay changed.
pub(crate) fn put_back(plan: &Plan, qemu: &mut Qemu, observe: &mut dyn FnMut(News)) {
    if let Err(error) = qemu.ask_again(|qemu| plan.undo(qemu)) {
        observe(stayed(plan, &error));
    }
}

fn stayed(plan: &Plan, error: &dyn std::error::Error) -> News {
    let stayed: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
    News::Note(format!(
        "QEMU's settings could not all be put back ({}). They were changed to: {}",
        chain(error),
        stayed.join(", ")
    ))
}

/// Checks that a relay listens there, before QEMU is asked for anything: a QEMU 10.0 whose
/// connections are closed while it makes them may abort, and its guest with it.
fn look_for_destination(order: &Order, cancel: &Cancel) -> Result<(), Failure> {
    look_for_relay(&order.relay, cancel).map_err(|failure| match cancel.is_cancelled() {
        true => Failure {
            cancelled: true,
            ..Failure::before(Cause::Cancelled)
        },
        false => Failure::before(failure),
    })
}

fn check(qemu: &mut Qemu, wish: &Wish) -> Result<(Plan, RunState), Failure> {
    let state = qemu.run_state().map_err(Failure::before)?;
    if matches!(
        state.status.as_str(),
        "inmigrate" | "postmigrate" | "finish-migrate"
    ) {
        return Err(Failure::before(Cause::NoGuest(state.to_string())));
    }
    let migration = qemu.migration().map_err(Failure::before)?;
    if !migration.blocked_reasons.is_empty() {
        return Err(Failure::before(Cause::Blocked(migration.blocked_reasons)));
    }
    if migration.is_under_way() {
        return Err(Failure::before(Cause::Busy(migration.status)));
    }
    let settings = qemu.settings().map_err(Failure::before)?;
    let wish = Wish {
        pause: true,
        ..wish.clone()
    };
    let plan = Plan::of(&wish, &settings).map_err(Failure::before)?;
    Ok((plan, state))
}

/// A migration under way.
struct Run<'a> {
    order: &'a Order,
    qemu: &'a mut Qemu,
    carrier: Carrier,
    /// The guest ran before.
    ran: bool,
    course: Course,
    /// The last status with figures.
    last: MigrationStatus,
    /// The status that was reported last, and when.
    told: String,
    told_at: Option<Instant>,
    /// QEMU has just said that it waits before its switch-over.
    waits: bool,
    /// The last status of this migration, as QEMU has said it by an event. Another client may begin
    /// its own migration right after that.
    ended: Option<String>,
    /// The guest was let go to the destination. Before that, no destination can have it.
    has_switched: bool,
    begun: Instant,
}

impl Run<'_> {
    fn go(
        &mut self,
        uri: &str,
        cancel: &Cancel,
        observe: &mut dyn FnMut(News),
    ) -> Result<Moved, Failure> {
        self.begun = Instant::now();
        // They are about migrations before this one.
        self.qemu.qmp().forget_events();
        match self.qemu.migrate(uri) {
            // It may have begun all the same.
            Err(error @ QmpError::Hangs { .. }) => observe(News::Note(error.to_string())),
            Err(error) if error.is_final() && self.qemu.connects_again(&error, observe) => {
                let status = self.qemu.migration().map_err(Failure::before)?;
                if !status.is_under_way() {
                    return Err(Failure::before(error));
                }
            }
            outcome => outcome.map_err(Failure::before)?,
        }
        loop {
            let waits = std::mem::take(&mut self.waits);
            let phase = match waits {
                // The guest stands still: no more questions.
                true => Ok(None),
                false => self.qemu.migration().map(Some),
            };
            let mut seen = MigrationStatus::default();
            let phase = match phase {
                Ok(None) => Some(Phase::PreSwitchover),
                Ok(Some(mut status)) => {
                    self.look_for_end();
                    if let Some(ended) = self.ended.clone().filter(|_| !status.is_final()) {
                        let error_desc = None;
                        status = MigrationStatus {
                            status: ended,
                            error_desc,
                            ..status
                        };
                    }
                    let phase = status.phase();
                    seen.clone_from(&status);
                    self.tell(status, observe);
                    Some(phase)
                }
                Err(error) if error.is_final() => match self.qemu.connects_again(&error, observe) {
                    true => continue,
                    false => return self.gone(error, observe),
                },
                Err(error) => {
                    observe(News::Note(error.to_string()));
                    None
                }
            };
            let step = self.course.next(Seen {
                phase,
                elapsed: self.begun.elapsed(),
                wish: cancel.is_cancelled(),
                relay: match &self.carrier.outcome {
                    None => course::Relay::Runs,
                    Some(Ok(_)) => course::Relay::Delivered,
                    Some(Err(_)) => course::Relay::Failed,
                },
            });
            match step {
                Step::Wait => {}
                Step::Over => return self.over(seen, observe),
                Step::GiveUp => return self.given_up(observe),
                Step::CutRelay => {
                    observe(News::Note(
                        "QEMU does not end the migration: its connections are closed".to_owned(),
                    ));
                    self.carrier.cancel();
                }
                Step::TooLate => observe(News::Note(
                    "the guest is on its way to the destination, and cannot be called back: waiting \
                     for the end"
                        .to_owned(),
                )),
                Step::GoOn => {
                    let again = std::mem::replace(&mut self.has_switched, true);
                    // The next look shows what has become of it.
                    if let Err(error) = self.qemu.go_on("pre-switchover")
                        && !again
                    {
                        observe(News::Note(error.to_string()));
                    }
                }
                Step::Release => {
                    // If it has ended in the meantime, it refuses.
                    let _ = self.qemu.go_on("cancelling");
                }
                Step::StartPostcopy => {
                    self.has_switched = true;
                    observe(News::Note("postcopy starts".to_owned()));
                    if let Err(error) = self.qemu.start_postcopy() {
                        observe(News::Note(error.to_string()));
                    }
                }
                Step::CancelAgain => {
                    // The next look shows what has become of it.
                    let _ = self.qemu.cancel();
                }
                Step::Cancel(stop) => {
                    if stop == Stop::Asked {
                        observe(News::Note("cancelling".to_owned()));
                    }
                    // If it has ended in the meantime, QEMU says how.
                    if let Err(error) = self.qemu.cancel() {
                        observe(News::Note(error.to_string()));
                    }
                }
            }
            if let Err(error) = self.rest(cancel, observe)
                && !self.qemu.connects_again(&error, observe)
            {
                return self.gone(error, observe);
            }
        }
    }

    /// Waits for something to look at.
    fn rest(&mut self, cancel: &Cancel, observe: &mut dyn FnMut(News)) -> Result<(), QmpError> {
        let deadline = Instant::now() + LOOK;
        let (wished, ended) = (cancel.is_cancelled(), self.carrier.outcome.is_some());
        while Instant::now() < deadline {
            let event = self.qemu.qmp().wait_event(TICK)?;
            self.carrier.look(observe);
            let is_new = wished != cancel.is_cancelled() || ended != self.carrier.outcome.is_some();
            let event = event.filter(|event| event.name.starts_with("MIGRATION"));
            if let Some(event) = &event {
                self.waits = status_of(event).map(Phase::of) == Some(Phase::PreSwitchover);
                self.ended = self.ended.take().or_else(|| end_of(event));
            }
            if is_new || event.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Checks whether QEMU has reported the end of this migration. After that, QEMU's answers
    /// describe the next migration.
    fn look_for_end(&mut self) {
        if self.ended.is_none() {
            self.ended = self.qemu.qmp().waiting_events().find_map(end_of);
        }
    }

    fn tell(&mut self, status: MigrationStatus, observe: &mut dyn FnMut(News)) {
        self.carrier.look(observe);
        let is_new = self.told != status.status;
        if is_new {
            self.told.clone_from(&status.status);
            observe(News::Status(self.told.clone()));
        }
        self.has_switched |= matches!(
            status.phase(),
            Phase::Switchover | Phase::Postcopy | Phase::PostcopyPaused
        );
        if status.ram.total > 0 {
            self.last = status.clone();
        }
        let is_due = self
            .told_at
            .is_none_or(|told| told.elapsed() >= LOOK - TICK);
        if !status.is_final() && (is_new || is_due) {
            self.told_at = Some(Instant::now());
            observe(News::Progress(Box::new(Progress {
                elapsed: self.begun.elapsed(),
                qemu: status,
                traffic: self.carrier.traffic,
                waits: self.carrier.waits.clone(),
            })));
        }
    }

    /// Whether the relay has taken QEMU's connection, or does so soon.
    fn begins(&mut self, observe: &mut dyn FnMut(News)) -> bool {
        let deadline = Instant::now() + BEGIN_LIMIT;
        self.carrier.look(observe);
        while !self.carrier.has_begun && self.carrier.outcome.is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(TICK / 10);
            self.carrier.look(observe);
        }
        self.carrier.has_begun
    }

    /// Waits for the relay's end.
    fn wait_relay(&mut self, observe: &mut dyn FnMut(News)) {
        let deadline = Instant::now() + RELAY_LIMIT;
        self.carrier.look(observe);
        while self.carrier.outcome.is_none() && Instant::now() < deadline {
            std::thread::sleep(TICK / 10);
            self.carrier.look(observe);
        }
    }

    /// QEMU has said how it ended, and may have gone since then.
    fn over(
        &mut self,
        seen: MigrationStatus,
        observe: &mut dyn FnMut(News),
    ) -> Result<Moved, Failure> {
        let elapsed = self.begun.elapsed();
        // Another client's migration may have begun since then.
        let is_over = |status: &MigrationStatus| status.is_final() || !seen.is_final();
        let status = self.figures().ok().filter(is_over).unwrap_or(seen);
        if status.phase() == Phase::PostcopyPaused {
            return Err(Failure {
                guest: Whereabouts::Unknown,
                ..Failure::before(Cause::PostcopyBroke)
            });
        }
        if status.is_completed() {
            if !self.begins(observe) {
                // The status of another migration.
                self.carrier.cancel();
                self.wait_relay(observe);
                return Err(self.not_ours(status.status));
            }
            self.wait_relay(observe);
            // Without the destination's word it may be the status of another client's migration, or
            // of one whose return path another client has switched off.
            if !self.carrier.has_delivered() {
                return Err(self.unknown(format!("its status is {}", status.status)));
            }
            return Ok(Moved {
                qemu: status,
                report: self.report(),
                elapsed,
            });
        }
        if !self.carrier.has_begun {
            // QEMU has not come to the relay, which would wait for it.
            self.carrier.cancel();
        }
        self.wait_relay(observe);
        Err(self.failed(&status))
    }

    /// QEMU's last figures. QEMU 7.2 says that it has completed a moment before it has them.
    fn figures(&mut self) -> Result<MigrationStatus, QmpError> {
        let deadline = Instant::now() + FIGURES_LIMIT;
        loop {
            let status = self.qemu.migration()?;
            let is_whole = !status.is_completed() || status.total_time > 0;
            if is_whole || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(TICK / 10);
        }
    }

    /// The place of the guest of a failed migration, once the relay has ended. The destination may
    /// run the guest, even if the source QEMU says otherwise.
    fn whereabouts(&self) -> Whereabouts {
        match &self.carrier.outcome {
            _ if self.carrier.has_delivered() => Whereabouts::Unknown,
            _ if !self.carrier.has_begun => Whereabouts::Source,
            // The guest was let go, so its destination may have everything.
            Some(Err(Cause::Relay(failure))) if self.has_switched || has_everything(failure) => {
                whereabouts(failure)
            }
            _ if self.has_switched => Whereabouts::Unknown,
            _ => Whereabouts::Source,
        }
    }

    /// Why a migration failed that QEMU has ended.
    fn failed(&mut self, status: &MigrationStatus) -> Failure {
        let is_delivered = self.carrier.has_delivered();
        let guest = self.whereabouts();
        let relay = match self.carrier.outcome.take() {
            Some(Err(cause)) if self.carrier.has_begun => Some(cause),
            _ => None,
        };
        let said = status.error_desc.clone();
        // The relay's word decides where the guest is then.
        let words = match (&relay, guest) {
            (Some(cause), Whereabouts::Unknown) => {
                Some(format!("The relay says: {}", chain(cause)))
            }
            _ if is_delivered => Some(
                "The relay says: the destination has the guest, and the source was told".into(),
            ),
            _ => None,
        };
        let (cause, other) = match (self.course.stop(), relay) {
            (Some(Stop::Asked), _) => (Cause::Cancelled, words),
            (Some(Stop::Timeout), _) => (self.timeout(), words),
            (_, Some(cause)) => (
                cause,
                said.map(|words| format!("The source QEMU says: {words}")),
            ),
            (_, None) => {
                let end = "the source";
                let ended = || Cause::Ended(status.status.clone());
                (
                    said.map_or_else(ended, |words| Cause::Qemu { end, words }),
                    words,
                )
            }
        };
        let mut failure = Failure {
            guest,
            cancelled: self.course.stop() == Some(Stop::Asked),
            ..Failure::before(cause)
        };
        failure.advice.extend(other);
        if let Cause::Relay(cause) = &failure.cause {
            let is_far = matches!(cause.cause, RelayCause::Far(_));
            let advice = "`multifd accept` at the other host says more";
            failure.advice.extend(is_far.then(|| advice.to_owned()));
            // A destination with another number of channels breaks some, or does not begin.
            if self.carrier.not_begun.is_some() || (is_far && !self.has_switched) {
                failure.advice.push(format!(
                    "Both ends need the same --channels (here {})",
                    self.order.wish.channels
                ));
            }
        }
        self.look_after(failure)
    }

    /// Says where the guest is, after it was to run on here.
    fn look_after(&mut self, failure: Failure) -> Failure {
        if !self.ran {
            return failure;
        }
        match self.qemu.wait_running(RUN_LIMIT) {
            Ok(state) if state.running => match failure.guest {
                Whereabouts::Source => failure.advise("The guest runs on at the source"),
                _ => failure.advise(
                    "The guest runs on at the source; check that the destination does not run",
                ),
            },
            Ok(state) => failure.advise(format!(
                "The guest stands still at the source: its state is {state}. Check that the \
                 destination does not run, then `cont` lets it run on"
            )),
            Err(error) => Failure {
                guest: Whereabouts::Unknown,
                ..failure.advise(format!("The source's state is not known: {error}"))
            },
        }
    }

    fn timeout(&self) -> Cause {
        Cause::Timeout {
            limit: self.order.timeout.unwrap_or_default(),
            reason: why_not(&self.last),
        }
    }

    /// The monitor has gone, most often with its QEMU.
    fn gone(&mut self, error: QmpError, observe: &mut dyn FnMut(News)) -> Result<Moved, Failure> {
        if self.call_back(true) {
            self.carrier.cancel();
            self.wait_relay(observe);
            let failure = Failure {
                guest: self.whereabouts(),
                cancelled: self.course.stop() == Some(Stop::Asked),
                ..Failure::before(error)
            };
            let failure = match self.carrier.words() {
                Some(words) if failure.guest == Whereabouts::Unknown => {
                    failure.advise(format!("The relay says: {words}"))
                }
                _ => failure,
            };
            return Err(self.look_after(failure));
        }
        if !self.begins(observe) {
            self.carrier.cancel();
        }
        self.wait_relay(observe);
        if !self.carrier.has_delivered() {
            return Err(self.silent(&error));
        }
        observe(News::Note(format!(
            "the source QEMU has gone ({error}); the destination has said that it has the guest"
        )));
        Ok(Moved {
            qemu: self.last.clone(),
            report: self.report(),
            elapsed: self.begun.elapsed(),
        })
    }

    /// Cancels a migration that cannot be followed any more, as long as its guest was not let go:
    /// it would wait before its switch-over without end. QEMU's status says whether it still waits:
    /// a command to go on may have been lost. Returns whether the migration has ended so.
    fn call_back(&mut self, mut is_broken: bool) -> bool {
        let deadline = Instant::now() + CALL_BACK_LIMIT;
        while !self.carrier.has_delivered() && Instant::now() < deadline {
            // A monitor serves one client at a time.
            let connected = match is_broken {
                true => self.qemu.qmp().reconnect(),
                false => Ok(()),
            };
            let phase = connected.and_then(|()| Ok(self.qemu.migration()?.phase()));
            self.look_for_end();
            if let Some(ended) = &self.ended {
                // From here on QEMU may speak of another migration.
                return matches!(Phase::of(ended), Phase::Failed | Phase::Cancelled);
            }
            match phase {
                Ok(Phase::Failed | Phase::Cancelled) => return true,
                Ok(Phase::Setup | Phase::Active) if self.has_switched => return false,
                Ok(Phase::Setup | Phase::Active | Phase::PreSwitchover) => {
                    is_broken = self.qemu.cancel().is_err_and(|error| error.is_final());
                }
                Ok(Phase::Cancelling) => is_broken = false,
                // QEMU itself has gone, or another one has its guest.
                Ok(_) | Err(QmpError::Nobody { .. }) => return false,
                Err(error) => is_broken |= error.is_final(),
            }
            std::thread::sleep(CALL_BACK_PAUSE);
        }
        false
    }

    fn given_up(&mut self, observe: &mut dyn FnMut(News)) -> Result<Moved, Failure> {
        let is_called_back = self.course.stop().is_none() && self.call_back(false);
        self.carrier.cancel();
        self.wait_relay(observe);
        let why = format!("its last status is {}", self.told);
        let failure = self.unknown(why);
        if is_called_back {
            return Err(self.look_after(Failure {
                guest: self.whereabouts(),
                ..failure
            }));
        }
        if self.course.stop().is_some() && !self.carrier.has_delivered() {
            // A QEMU may stay in `cancelling`, while its guest runs.
            let running = self.qemu.run_state().is_ok_and(|state| state.running);
            return Err(Failure {
                guest: match running {
                    true => Whereabouts::Source,
                    false => Whereabouts::Unknown,
                },
                cancelled: running && self.course.stop() == Some(Stop::Asked),
                ..failure
            });
        }
        Err(failure)
    }

    /// QEMU speaks of a migration that did not come through here.
    fn not_ours(&self, status: String) -> Failure {
        let end = "the source";
        let failure = Failure {
            guest: Whereabouts::Unknown,
            ..Failure::before(Cause::NotOurs { end, status })
        };
        failure.advise(LOOK_AT_BOTH)
    }

    fn silent(&self, error: &QmpError) -> Failure {
        self.unknown(chain(error))
    }

    fn unknown(&self, why: String) -> Failure {
        let failure = Failure {
            guest: Whereabouts::Unknown,
            ..Failure::before(Cause::Silent {
                end: "the source",
                why,
            })
        };
        let failure = match self.carrier.words() {
            Some(words) => failure.advise(format!("The relay says: {words}")),
            None => failure,
        };
        failure.advise(LOOK_AT_BOTH)
    }

    fn report(&self) -> Option<MigrationReport> {
        match &self.carrier.outcome {
            Some(Ok(report)) => Some(MigrationReport::clone(report)),
            _ => None,
        }
    }
}

/// Why a migration has not ended, as far as QEMU's figures say.
fn why_not(status: &MigrationStatus) -> String {
    let ram = &status.ram;
    if ram.total == 0 || ram.transferred == 0 {
        return "no page was sent. Is `multifd accept` at the other end, with as many --channels?"
            .to_owned();
    }
    let (writes, sends) = (ram.dirty_rate(), ram.throughput());
    let figures = format!(
        "after {} rounds {:.1} MiB of {:.0} MiB remain; the guest writes to {:.1} MiB of pages a \
         second, and {:.1} MiB a second are sent, before compression",
        ram.dirty_sync_count,
        mebibytes(ram.remaining),
        mebibytes(ram.total),
        mebibytes(writes),
        mebibytes(sends)
    );
    // The first round says nothing about the guest.
    if ram.dirty_sync_count < 2 {
        return format!(
            "{figures}. The first round did not end: give it more --timeout, or a faster link or \
             --compression"
        );
    }
    format!(
        "{figures}. It would stop the guest for {} ms. Raise --downtime-limit or --timeout, choose a \
         stronger --compression, or say --postcopy-after S (and `multifd accept --postcopy`)",
        status.expected_downtime
    )
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_say_why_it_did_not_converge() {
        let nothing = why_not(&MigrationStatus::default());
        assert!(nothing.contains("--channels"), "{nothing}");
        let told = json!({"status": "active", "expected-downtime": 900, "ram": {"total": 1u64 << 30,
            "remaining": 64u64 << 20, "transferred": 1, "mbps": 1000.0, "dirty-sync-count": 3,
            "dirty-pages-rate": 51_200, "page-size": 4096}});
        let why = why_not(&MigrationStatus::read(&told));
        let expected = "after 3 rounds 64.0 MiB of 1024 MiB remain; the guest writes to 200.0 MiB of \
                        pages a second, and 119.2 MiB a second are sent";
        assert!(why.starts_with(expected), "{why}");
        assert!(why.contains("for 900 ms"), "{why}");
    }
}
