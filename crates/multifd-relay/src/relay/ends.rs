//! Chooses the failure to report, if a migration has several.

use std::io;

use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::hung_up;

use super::outline::Seen;
use crate::failure::{Cause, Channel, Failure, Leg, Unheard};

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
        Cause::Far(_) | Cause::RelayGone | Cause::Unknown | Cause::Unheard { .. }
            if is_of_leg && is_an_end(&first.cause) =>
        {
            then
        }
        _ => first,
    }
}

/// The failure as it is reported. A connection to a destination that breaks without a close of its
/// peer leaves open what has become of the last bytes, and of the destination's word.
pub(super) fn as_known(mut failure: Failure, seen: &Seen) -> Failure {
    let Cause::Transport(TransportCause::Io(error)) = &failure.cause else {
        return failure;
    };
    if failure.leg != Leg::Destination || hung_up(error) || seen.confirmed {
        return failure;
    }
    let why = Unheard::Broken(error.kind());
    match () {
        () if error.kind() == io::ErrorKind::UnexpectedEof => {}
        () if seen.postcopy => failure.cause = Cause::PostcopyBroke,
        () if seen.return_path && seen.may_be_whole() => {
            failure.cause = Cause::Unheard { why };
        }
        () => {}
    }
    failure
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_dies_behind_the_last_byte_leaves_it_open_who_has_the_guest() {
        let failed = |leg, kind: io::ErrorKind, change: fn(&mut Seen)| {
            let mut seen = Seen::default();
            change(&mut seen);
            let failure = Failure {
                channel: Channel::Main,
                leg,
                block: None,
                cause: io::Error::from(kind).into(),
            };
            as_known(failure, &seen).cause
        };
        let whole: fn(&mut Seen) = |seen| (seen.complete, seen.return_path) = (true, true);
        let there = Leg::Destination;
        for kind in [io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable] {
            let cause = failed(there, kind, whole);
            assert!(matches!(cause, Cause::Unheard { .. }), "{cause}");
            let cause = failed(there, kind, |seen| seen.postcopy = true);
            assert!(matches!(cause, Cause::PostcopyBroke), "{cause}");
            // Without everything that makes a guest no destination can have it.
            for (leg, change) in [(there, (|_| ()) as fn(&mut Seen)), (Leg::Source, whole)] {
                let cause = failed(leg, kind, change);
                assert!(is_an_end(&cause), "{cause}");
            }
        }
        // A destination that closes has failed: a QEMU says its word first.
        let cause = failed(there, io::ErrorKind::ConnectionReset, whole);
        assert!(is_an_end(&cause), "{cause}");
    }
}
