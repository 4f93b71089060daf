//! The failures of a migration between two engines.

use multifd_transport::failure::{Cause as TransportCause, Located};

use crate::control::ControlFault;
use crate::engine_fault::{EngineError, EngineFault};

pub(crate) use multifd_transport::failure::{Channel, Leg, SetupFault};

/// The first thing that went wrong in a migration. Whatever failed afterwards failed because of it.
pub type Failure = Located<Cause>;

/// The cause of a failed migration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// A connection failed.
    #[error(transparent)]
    Transport(#[from] TransportCause),
    /// An engine ended the migration.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The peer breaks the rules of the control messages.
    #[error("the stream is malformed")]
    Control(#[source] MessageError),
}

/// A control message that breaks the rules.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MessageError(pub(crate) ControlFault);

impl From<EngineFault> for Cause {
    fn from(fault: EngineFault) -> Self {
        Self::Engine(fault.into())
    }
}

impl From<ControlFault> for Cause {
    fn from(fault: ControlFault) -> Self {
        Self::Control(MessageError(fault))
    }
}

multifd_transport::nest_transport_causes!(Cause);

#[cfg(test)]
mod tests {
    use multifd_wire::Fault;

    use super::*;

    #[test]
    fn a_nested_cause_adds_no_words() {
        let words = |cause: Cause| Failure::here(cause).explain();
        let cancelled = words(TransportCause::Cancelled.into());
        assert_eq!(cancelled, "main channel, this host: cancelled");
        let malformed = "main channel, this host: the stream is malformed: ";
        let ended = Fault::Truncated { missing: 3 };
        assert_eq!(words(ended.into()), format!("{malformed}{ended}"));
        let ended = ControlFault::from(ended);
        assert_eq!(words(ended.into()), format!("{malformed}{ended}"));
        let unknown = ControlFault::Kind { found: 11 };
        assert_eq!(
            words(unknown.into()),
            format!("{malformed}control message of kind 11")
        );
    }
}
