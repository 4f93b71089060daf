//! Which of several failures tells what became of a migration.

use std::io;

use multifd_transport::failure::Cause as TransportCause;

use crate::failure::{Cause, Channel, Failure};

/// The failure to keep: the first one, unless another says that the guest may run twice, or why the
/// connections were closed whose end is the first.
pub(super) fn worse(first: Option<Failure>, then: Failure) -> Failure {
    let Some(first) = first else {
        return then;
    };
    // What the other leg says then may come of this end.
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

/// Whether it is what became of the destination's word.
pub(super) fn is_a_word(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::NotTold | Cause::Refused { .. })
}

/// Whether it is the end of a connection, of which another one may tell why.
pub(super) fn is_an_end(cause: &Cause) -> bool {
    match cause {
        Cause::TakenBack | Cause::Incomplete | Cause::Transport(TransportCause::Io(_)) => true,
        // A relay that has ended the migration knows it no more when its next channel calls.
        Cause::Dial { source, .. } => source.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// Whether a failure leaves a destination that has everything time to say its word. A channel's
/// does so where a word comes, and marks have shown that the channel's pages have gone out.
pub(super) fn can_wait(failure: &Failure, has_word_and_marks: bool) -> bool {
    match (&failure.cause, failure.channel) {
        (Cause::Transport(TransportCause::Cancelled), _) => true,
        (_, Channel::Multifd(_)) => has_word_and_marks,
        _ => false,
    }
}
