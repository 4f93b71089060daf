//! Chooses the failure to report, if a migration has several.

use std::io;

use multifd_transport::failure::Cause as TransportCause;

use crate::failure::{Cause, Channel, Failure};

/// Keeps the first failure, with two exceptions: another one says that the guest may run at both
/// ends, or it explains why the connections were closed that failed first.
pub(super) fn worse(first: Option<Failure>, then: Failure) -> Failure {
    let Some(first) = first else {
        return then;
    };
    // A failure of the other leg may be a consequence of this end.
    let is_of_leg = then.leg == first.leg;
    match then.cause {
        Cause::NotTold => then,
        Cause::Refused { .. } if is_an_end(&first.cause) => then,
        Cause::Far(_) | Cause::RelayGone | Cause::Unknown
            if is_of_leg && is_an_end(&first.cause) =>
        {
            then
        }
        _ => first,
    }
}

/// Whether the failure concerns the destination's word.
pub(super) fn is_a_word(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::NotTold | Cause::Refused { .. })
}

/// Whether the failure is only the end of a connection. Another connection may have the reason.
pub(super) fn is_an_end(cause: &Cause) -> bool {
    match cause {
        Cause::TakenBack | Cause::Incomplete | Cause::Transport(TransportCause::Io(_)) => true,
        // A relay that has ended a migration does not know it any more when the next channel calls.
        Cause::Dial { source, .. } => source.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// Whether to wait for the word of a destination that has everything, after this failure. It is
/// worth waiting after a channel's failure, if the destination sends a word at all and marks have
/// shown that the channel's pages were passed on.
pub(super) fn can_wait(failure: &Failure, has_word_and_marks: bool) -> bool {
    match (&failure.cause, failure.channel) {
        (Cause::Transport(TransportCause::Cancelled), _) => true,
        (_, Channel::Multifd(_)) => has_word_and_marks,
        _ => false,
    }
}
