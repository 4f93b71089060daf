//! Why a migration did not go through, and what that says of its guest.

use multifd_relay::Failure;
use multifd_relay::failure::Cause;
use multifd_transport::failure::Cause as TransportCause;

use crate::page::Ending;

/// Why a migration did not go through.
pub(super) enum Ended {
    Failed(Failure),
    /// The limit of concurrent migrations was reached.
    TooMany,
    /// A defect of this program, in this migration alone.
    Panicked,
}

impl Ended {
    /// The state of the guest, for the migration's page.
    pub(super) fn ending(&self) -> Ending {
        match self {
            Self::Failed(failure) => match failure.cause {
                Cause::Unknown
                | Cause::NoWord { .. }
                | Cause::Unheard { .. }
                | Cause::Untold { .. }
                | Cause::NotTold
                | Cause::PostcopyBroke
                | Cause::TakenBack
                | Cause::RelayGone => Ending::Unknown,
                Cause::Incomplete | Cause::Transport(TransportCause::Cancelled) => {
                    Ending::Cancelled
                }
                _ => Ending::Failed,
            },
            Self::TooMany | Self::Panicked => Ending::Failed,
        }
    }
}
