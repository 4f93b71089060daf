//! The destination's side: makes a QEMU wait for a guest behind a trunk, and says whether it has
//! come.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use multifd_relay::failure::Cause as RelayCause;
use multifd_relay::leg::LegAddress;
use multifd_relay::relay::{MigrationReport, Relay, RelayConfig};
use multifd_transport::failure::{Channel, Leg};
use multifd_transport::{Address, Cancel, Listener};

use crate::carrier::Carrier;
use crate::failure::{Cause, Failure, Whereabouts};
use crate::folder::PrivateFolder;
use crate::news::{News, Progress};
use crate::qemu::{MigrationStatus, Phase, Qemu, RunState};
use crate::qmp::QmpError;
use crate::settings::{Plan, Wish};
use crate::source::{put_back, put_back_when_idle};

/// Time between two questions to QEMU about its progress.
const LOOK: Duration = Duration::from_millis(500);

/// Time limit for QEMU to report that it has the guest, once it has told the source.
const LOADED_LIMIT: Duration = Duration::from_secs(30);

/// Time limit for QEMU to report the reason of its failure.
const REASON_LIMIT: Duration = Duration::from_secs(5);

/// The order to a destination.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Order {
    /// The path of QEMU's monitor.
    pub qmp: PathBuf,
    /// The address for the other relay.
    pub listen: LegAddress,
    /// The relay. Its `connect` is replaced by QEMU's socket.
    pub relay: RelayConfig,
    /// The settings for QEMU.
    pub wish: Wish,
    /// As [`source::Order::socket_dir`](crate::source::Order::socket_dir).
    pub socket_dir: Option<PathBuf>,
}

impl Order {
    /// An order with the socket beside the monitor.
    #[must_use]
    pub fn new(qmp: PathBuf, listen: LegAddress, relay: RelayConfig, wish: Wish) -> Self {
        Self {
            qmp,
            listen,
            relay,
            wish,
            socket_dir: None,
        }
    }
}

/// A guest that has come.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Arrived {
    /// The state of its machine.
    pub state: RunState,
    /// QEMU's figures.
    pub qemu: MigrationStatus,
    /// The relay's figures.
    pub report: MigrationReport,
}

/// Checks the destination, and says what would be set. Changes nothing.
///
/// # Errors
/// When no guest can come.
pub fn plan(order: &Order) -> Result<Plan, Failure> {
    let mut qemu = Qemu::connect(&order.qmp).map_err(Failure::before)?;
    check(&mut qemu, &order.wish)
}

/// Takes one guest, unless `cancel` ends that before this QEMU has it.
///
/// # Errors
/// When the guest has not come. The failure says where it is.
pub fn accept(
    order: &Order,
    cancel: &Cancel,
    observe: &mut dyn FnMut(News),
) -> Result<Arrived, Failure> {
    let mut qemu = Qemu::connect(&order.qmp).map_err(Failure::before)?;
    let plan = check(&mut qemu, &order.wish)?;
    let user = qemu.qmp().user();
    let folder = PrivateFolder::beside(&order.qmp, order.socket_dir.as_deref(), user, observe)?;
    let address = Address::Unix(folder.socket());
    let mut config = order.relay.clone();
    config.connect = LegAddress::qemu(address.clone());
    // The guest runs here then, and has a part of its memory only there.
    config.stays_in_postcopy = true;
    let listen = |source| {
        Failure::before(Cause::Listen {
            address: order.listen.to_string(),
            source,
        })
    };
    let listener = Listener::bind(&order.listen.address).map_err(listen)?;
    let relay = Relay::on(listener, &order.listen, config).map_err(listen)?;
    let listens = plan
        .apply(&mut qemu)
        .and_then(|()| qemu.listen(&address.to_string()));
    if let Err(error) = listens {
        // Another client's migration may have begun meanwhile.
        put_back_when_idle(&plan, &mut qemu, observe);
        return Err(Failure::before(error));
    }
    let listening = relay.leg().to_string();
    let outcome = Carrier::start(relay)
        .map_err(Failure::before)
        .and_then(|carrier| {
            observe(News::Listening(listening));
            Wait {
                order,
                qemu: &mut qemu,
                carrier,
                begun: None,
                told: String::new(),
                was_too_late: false,
            }
            .go(cancel, observe)
        });
    // A recovery from a break in postcopy goes on without these settings (docs/qemu-notes.md).
    put_back(&plan, &mut qemu, observe);
    outcome
}

fn check(qemu: &mut Qemu, wish: &Wish) -> Result<Plan, Failure> {
    let state = qemu.run_state().map_err(Failure::before)?;
    if state.status != "inmigrate" {
        return Err(Failure::before(Cause::NotIncoming(state.to_string())));
    }
    let migration = qemu.migration().map_err(Failure::before)?;
    if migration.phase() != Phase::None {
        return Err(Failure::before(Cause::Busy(migration.status))
            .advise("Start the destination QEMU anew, with -incoming defer"));
    }
    let settings = qemu.settings().map_err(Failure::before)?;
    Plan::of(wish, &settings).map_err(Failure::before)
}

/// A failure in postcopy. Only the destination has a part of the guest.
fn in_postcopy(failure: Failure) -> Failure {
    let broke = Cause::PostcopyBroke;
    Failure {
        guest: Whereabouts::Unknown,
        cancelled: false,
        ..match failure.cause {
            Cause::Relay(ref cause) if matches!(cause.cause, RelayCause::PostcopyBroke) => {
                Failure::before(broke)
            }
            cause => Failure::before(broke).advise(crate::failure::chain(&cause)),
        }
    }
}

/// A destination that waits for a guest, or loads it.
struct Wait<'a> {
    order: &'a Order,
    qemu: &'a mut Qemu,
    carrier: Carrier,
    begun: Option<Instant>,
    /// The status that was reported last.
    told: String,
    /// A wish to end came too late.
    was_too_late: bool,
}

impl Wait<'_> {
    fn go(mut self, cancel: &Cancel, observe: &mut dyn FnMut(News)) -> Result<Arrived, Failure> {
        let mut broken = None;
        let mut asked = Instant::now();
        loop {
            self.carrier.look(observe);
            if let Some(outcome) = self.carrier.outcome.take() {
                return match outcome {
                    Ok(report) => self.delivered(*report, broken),
                    Err(cause) => Err(self.failed(cause, broken, cancel)),
                };
            }
            if self.carrier.has_begun {
                self.begun.get_or_insert_with(Instant::now);
            }
            if cancel.is_cancelled() {
                self.wish(observe);
            }
            if broken.is_some() {
                // There is no QEMU to load the guest.
                std::thread::sleep(LOOK / 10);
                continue;
            }
            let waited = self.qemu.qmp().wait_event(LOOK / 5).map(drop);
            let due = asked.elapsed() >= LOOK;
            let looked = waited.and_then(|()| match due {
                true => {
                    asked = Instant::now();
                    self.tell(observe)
                }
                false => Ok(()),
            });
            match looked {
                Err(error) if error.is_final() && self.qemu.connects_again(&error, observe) => {}
                Err(error) if error.is_final() => {
                    // It may have said that it has the guest before, or may run it in postcopy.
                    // Then cancelling does nothing.
                    self.carrier.cancel();
                    broken = Some(error);
                }
                // A destination may be silent while it loads.
                Err(_) | Ok(()) => {}
            }
        }
    }

    /// The caller wants the end. In postcopy the guest is here already, and would stand still.
    fn wish(&mut self, observe: &mut dyn FnMut(News)) {
        if !self.is_in_postcopy(Phase::None) {
            // The relay sees the beginning of postcopy first, and passes over the wish then.
            self.carrier.cancel();
        } else if !std::mem::replace(&mut self.was_too_late, true) {
            observe(News::Note(
                "the guest runs here, and its memory follows: it cannot be sent back, waiting for the end"
                    .to_owned(),
            ));
        }
    }

    fn tell(&mut self, observe: &mut dyn FnMut(News)) -> Result<(), QmpError> {
        let status = self.qemu.migration()?;
        if self.told != status.status {
            self.told.clone_from(&status.status);
            observe(News::Status(self.told.clone()));
        }
        if let Some(begun) = self.begun {
            observe(News::Progress(Box::new(Progress {
                elapsed: begun.elapsed(),
                qemu: status,
                traffic: self.carrier.traffic,
                waits: self.carrier.waits.clone(),
            })));
        }
        Ok(())
    }

    fn delivered(
        &mut self,
        report: MigrationReport,
        broken: Option<QmpError>,
    ) -> Result<Arrived, Failure> {
        let advice = match report.confirmed {
            Some(true) => "The destination had said to the source that it has the guest",
            _ => "No return path was used, so the source has given its guest up",
        };
        let silent = |why: String| {
            Failure {
                guest: Whereabouts::Unknown,
                ..Failure::before(Cause::Silent {
                    end: "the destination",
                    why,
                })
            }
            .advise(advice)
        };
        if let Some(error) = broken {
            return Err(silent(crate::failure::chain(&error)));
        }
        let qemu = self
            .qemu
            .ask_again(|qemu| qemu.wait_migration(LOADED_LIMIT));
        let qemu = qemu.map_err(|error| silent(crate::failure::chain(&error)))?;
        if !qemu.is_completed() {
            return Err(silent(format!("its status is {}", qemu.status)));
        }
        let state = match self.qemu.run_state() {
            // It has said that it has the guest.
            Err(error) if !error.is_final() => RunState::default(),
            state => state.map_err(|error| silent(crate::failure::chain(&error)))?,
        };
        Ok(Arrived {
            state,
            qemu,
            report,
        })
    }

    /// Why the guest has not come, in QEMU's words too.
    fn failed(&mut self, cause: Cause, broken: Option<QmpError>, cancel: &Cancel) -> Failure {
        let (guest, may_have_it) = match &cause {
            Cause::Relay(failure) => match failure.cause {
                RelayCause::NotTold | RelayCause::Unheard { .. } | RelayCause::PostcopyBroke => {
                    (Whereabouts::Unknown, true)
                }
                // QEMU had got everything that makes the guest.
                RelayCause::NoWord { .. } | RelayCause::TakenBack => (Whereabouts::Source, true),
                RelayCause::Untold { .. } => (Whereabouts::Unknown, true),
                _ => (Whereabouts::Source, false),
            },
            _ => (Whereabouts::Source, false),
        };
        let cancelled = cancel.is_cancelled();
        let begun = self.carrier.has_begun;
        let is_far = matches!(&cause, Cause::Relay(failure) if failure.leg == Leg::Destination);
        let cause = match cause {
            Cause::Relay(_) if cancelled => Cause::Cancelled,
            Cause::Relay(failure) => self.channels(&failure).unwrap_or(Cause::Relay(failure)),
            cause => cause,
        };
        let mut failure = Failure {
            guest,
            cancelled,
            ..Failure::before(cause)
        };
        let status = match broken {
            Some(error) => Err(error),
            None if begun => self.qemu.wait_migration(REASON_LIMIT),
            None => self.qemu.migration(),
        };
        match status {
            Ok(status) if status.is_completed() => {
                // The source has not got the word, and may go on with its guest.
                return Failure {
                    guest: Whereabouts::Unknown,
                    ..failure.advise(
                        "The destination QEMU says that it has the guest: look at the source, and \
                         stop one of them if both run",
                    )
                };
            }
            Ok(status) if self.is_in_postcopy(status.phase()) => return in_postcopy(failure),
            Ok(status) if may_have_it && !status.is_final() => {
                failure.guest = Whereabouts::Unknown;
                failure = failure.advise(format!(
                    "The destination QEMU says that its migration is {}: check that it does not run",
                    status.status
                ));
            }
            Err(_) if self.is_in_postcopy(Phase::None) => return in_postcopy(failure),
            Ok(MigrationStatus {
                error_desc: Some(words),
                ..
            }) => failure = failure.advise(format!("The destination QEMU says: {words}")),
            Ok(_) => {}
            Err(error) => {
                if may_have_it {
                    failure.guest = Whereabouts::Unknown;
                }
                let what = match error.is_final() {
                    true => "has gone",
                    false => "does not answer: check that it does not run",
                };
                let error = crate::failure::chain(&error);
                failure = failure.advise(format!(
                    "The destination QEMU {what} ({error}); see its own log"
                ));
            }
        }
        if is_far && matches!(failure.cause, Cause::Relay(_)) {
            failure = failure.advise(format!(
                "Both ends need the same machine and the same --channels (here {})",
                self.order.wish.channels
            ));
        }
        failure.advise("Before another try start the destination QEMU anew, with -incoming defer")
    }

    /// Whether QEMU has begun to run the guest while its memory follows: it is at both ends then.
    fn is_in_postcopy(&self, now: Phase) -> bool {
        let is_it = |phase: &Phase| matches!(phase, Phase::Postcopy | Phase::PostcopyPaused);
        self.carrier.is_in_postcopy || [now, Phase::of(&self.told)].iter().any(is_it)
    }

    /// The numbers of channels, if they are why it failed: a destination that waits for more does
    /// not begin, and one that waits for fewer closes those beyond.
    fn channels(&self, failure: &multifd_relay::Failure) -> Option<Cause> {
        let own = self.order.wish.channels;
        let (channels, more) = match (self.carrier.not_begun, failure.channel) {
            (Some(channels), _) => (channels, false),
            (None, Channel::Multifd(id)) if failure.leg == Leg::Destination => {
                (usize::from(id).saturating_add(1), true)
            }
            _ => return None,
        };
        let differs = match more {
            true => channels > usize::from(own),
            false => channels != usize::from(own),
        };
        differs.then_some(Cause::Channels {
            channels,
            more,
            own,
        })
    }
}
