//! The source engine: sends a guest to a [`destination`](crate::destination).
//!
//! First all pages, then again and again those that were written meanwhile, until what is left can
//! be sent within `downtime-limit`; then the guest is stopped, the rest follows, and the
//! destination starts it. Until the source has said that it gives the guest away, any failure
//! leaves it here, running.

mod convergence;
mod discards;
mod pacing;
mod round;
mod session;
mod watch;

use std::fmt;

use multifd_transport::{Address, Cancel};

use crate::VmError;
use crate::dirty::DirtyLog;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::memory::GuestMemory;
use crate::parameters::Parameters;
use crate::statistics::{Progress, Statistics};
use crate::vm::VmHandle;

/// A guest that is to be sent.
#[expect(
    clippy::exhaustive_structs,
    reason = "a VMM must know of every part that it has to lend"
)]
pub struct Guest<'a> {
    /// The VM's uuid, for people to recognise it by.
    pub uuid: [u8; 16],
    /// Its memory.
    pub memory: &'a dyn GuestMemory,
    /// The log of the guest's writes.
    pub dirty: &'a mut dyn DirtyLog,
    /// The rest of it.
    pub vm: &'a mut dyn VmHandle,
}

/// A migration that failed, and what became of the guest.
#[derive(Debug, thiserror::Error)]
#[error("the migration failed; {guest}")]
#[non_exhaustive]
pub struct SourceFailure {
    /// The first thing that went wrong.
    #[source]
    pub failure: Failure,
    /// The state of the guest.
    pub guest: GuestState,
    /// The figures up to the failure.
    pub statistics: Box<Statistics>,
}

/// The state of the guest after a failed migration.
#[derive(Debug)]
#[non_exhaustive]
pub enum GuestState {
    /// It runs here, as before.
    Runs,
    /// It is here, and would not be resumed.
    Stopped(VmError),
    /// The source had given it away, and the destination has not said whether it runs there. It
    /// stands still here: resume it only after having seen that it does not run there.
    Unknown,
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs => f.write_str("the guest runs on here"),
            Self::Stopped(error) => {
                write!(f, "the guest is here and could not be resumed: {error}")
            }
            Self::Unknown => f.write_str(
                "the guest stands still here, and the destination has not said whether it runs there",
            ),
        }
    }
}

/// Sends `guest` to the destination that listens at `address`. Blocks until it runs there, or has
/// failed.
///
/// `observe` is called from this thread. When this returns, no thread and no connection is left.
///
/// # Errors
///
/// [`SourceFailure`], which says where the guest is.
pub fn send(
    address: &Address,
    guest: Guest<'_>,
    parameters: &Parameters,
    cancel: &Cancel,
    observe: &mut dyn FnMut(&Progress),
) -> Result<Statistics, SourceFailure> {
    session::run(address, guest, parameters, cancel, observe)
}

/// A failure that is of no channel in particular.
fn on_main(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Main,
        leg: Leg::Destination,
        block: None,
        cause,
    }
}
