//! The failures of a driven migration, and the place of the guest after each.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use multifd_relay::failure::Cause as RelayCause;
use multifd_transport::failure::{Cause as TransportCause, Leg};
use multifd_transport::printable_path;

use crate::qmp::QmpError;
use crate::settings::PlanError;

/// The place of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Whereabouts {
    /// The source.
    Source,
    /// The destination.
    Destination,
    /// It is unknown here.
    Unknown,
    /// Nothing was begun, so it is where it was. This QEMU may have none.
    Unchanged,
}

impl Whereabouts {
    /// As one word, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Unknown => "unknown",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A migration that did not come to its good end. [`Display`](fmt::Display) says what happened,
/// where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{cause}{}", Follows(.advice))]
#[non_exhaustive]
pub struct Failure {
    /// The place of the guest.
    pub guest: Whereabouts,
    /// It was cancelled, as the caller wished.
    pub cancelled: bool,
    pub(crate) cause: Cause,
    /// The remedy, and other facts that are known.
    pub(crate) advice: Vec<String>,
}

struct Follows<'a>(&'a [String]);

impl fmt::Display for Follows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, ". {line}"))
    }
}

impl Failure {
    /// A failure after which the source has its guest as before, or after which no QEMU was asked
    /// for anything.
    pub(crate) fn before(cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        let guest = match cause {
            // This QEMU has no guest to send, or waits for none.
            Cause::NoGuest(_) | Cause::NotIncoming(_) | Cause::Busy(_) => Whereabouts::Unchanged,
            _ => Whereabouts::Source,
        };
        Self {
            guest,
            cancelled: false,
            cause,
            advice: Vec::new(),
        }
    }

    /// The failure of the relay in this process, if that is the cause.
    #[must_use]
    pub fn relay(&self) -> Option<&multifd_relay::Failure> {
        match &self.cause {
            Cause::Relay(failure) => Some(failure),
            _ => None,
        }
    }

    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

/// The reason.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    /// The monitor failed, or QEMU refused a command.
    #[error("{}", chain(.0))]
    Qmp(#[from] QmpError),
    /// QEMU cannot be set as is needed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// QEMU says that its machine cannot migrate.
    #[error("QEMU says that this guest cannot migrate: {}", .0.join("; "))]
    Blocked(Vec<String>),
    /// The source has no guest to send.
    #[error("the source QEMU has no guest to send: its state is {0}")]
    NoGuest(String),
    /// A migration is under way at this QEMU.
    #[error("a migration is under way at this QEMU already: its status is {0}")]
    Busy(String),
    /// The destination does not wait for a guest.
    #[error(
        "the destination QEMU does not wait for a guest: its state is {0}. Start it with -incoming \
         defer"
    )]
    NotIncoming(String),
    /// The private folder cannot be made.
    #[error("cannot make a folder for a socket in {}: {source}", printable_path(.parent))]
    Folder {
        /// The folder above it.
        parent: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The relay cannot listen.
    #[error("cannot listen on {address}: {}", chain(.source))]
    Listen {
        /// The address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The relay failed.
    #[error("{}", chain(.0))]
    Relay(Box<multifd_relay::Failure>),
    /// The relay panicked.
    #[error("a defect of this program ended the migration")]
    Defect,
    /// The two ends have different numbers of channels.
    #[error(
        "the source has {}{channels} channels, and this destination waits for {own}: say the same \
         --channels to both ends",
        if *.more { "at least " } else { "" }
    )]
    Channels {
        /// The source's.
        channels: usize,
        /// It may have more.
        more: bool,
        /// The destination's.
        own: u8,
    },
    /// QEMU says why.
    #[error("{end} QEMU says: {words}")]
    Qemu {
        /// `the source` or `the destination`.
        end: &'static str,
        /// QEMU's words.
        words: String,
    },
    /// QEMU has ended the migration without a reason.
    #[error("the migration ended with status {0} at the source, without a reason")]
    Ended(String),
    /// It took longer than it might.
    #[error("the migration did not end within {} s: {reason}", .limit.as_secs())]
    Timeout {
        /// The time limit.
        limit: Duration,
        /// Why, as far as figures say.
        reason: String,
    },
    /// The caller asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// A connection broke in postcopy.
    #[error(
        "a connection broke in postcopy: the guest stands still, and its memory is at both ends. \
         End neither QEMU, and recover it (docs/operators.md, After a migration)"
    )]
    PostcopyBroke,
    /// QEMU says that the guest has moved, and not through here.
    #[error(
        "{end} QEMU says `{status}`, and the relay beside it has carried no migration to its end"
    )]
    NotOurs {
        /// `the source`.
        end: &'static str,
        /// QEMU's status.
        status: String,
    },
    /// QEMU does not say how the migration ended.
    #[error("{end} QEMU does not say how the migration ended ({why})")]
    Silent {
        /// `the source` or `the destination`.
        end: &'static str,
        /// The known facts.
        why: String,
    },
}

impl From<multifd_relay::Failure> for Cause {
    fn from(failure: multifd_relay::Failure) -> Self {
        Self::Relay(Box::new(failure))
    }
}

/// The place of the guest after the source's relay failed during the switch-over.
pub(crate) fn whereabouts(failure: &multifd_relay::Failure) -> Whereabouts {
    match failure.cause {
        RelayCause::RelayGone
        | RelayCause::Unknown
        | RelayCause::NotTold
        | RelayCause::NoWord { .. }
        | RelayCause::Unheard { .. }
        | RelayCause::Untold { .. }
        | RelayCause::TakenBack
        | RelayCause::PostcopyBroke => Whereabouts::Unknown,
        RelayCause::Far(ref far) if far.may_have_guest() => Whereabouts::Unknown,
        // The destination's word may have been lost on the way.
        RelayCause::Transport(TransportCause::Io(_)) if failure.leg == Leg::Destination => {
            Whereabouts::Unknown
        }
        _ => Whereabouts::Source,
    }
}

/// Whether the relay has seen that its destination may have everything that makes the guest.
pub(crate) fn has_everything(failure: &multifd_relay::Failure) -> bool {
    match failure.cause {
        RelayCause::NotTold
        | RelayCause::NoWord { .. }
        | RelayCause::Unheard { .. }
        | RelayCause::Untold { .. }
        | RelayCause::TakenBack
        | RelayCause::PostcopyBroke => true,
        RelayCause::Far(ref far) => far.may_have_guest(),
        _ => false,
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that has sent its guest away does not get it back by a command that is refused.
    #[test]
    fn a_refusal_at_the_start_says_nothing_about_the_source() {
        let state = || "postmigrate".to_owned();
        for cause in [
            Cause::NoGuest(state()),
            Cause::NotIncoming(state()),
            Cause::Busy(state()),
        ] {
            assert_eq!(Failure::before(cause).guest, Whereabouts::Unchanged);
        }
        let blocked = Failure::before(Cause::Blocked(vec!["a device".to_owned()]));
        assert_eq!(blocked.guest, Whereabouts::Source);
    }

    #[test]
    fn a_lost_word_leaves_it_open_who_has_the_guest() {
        let failed = |leg, cause| {
            let mut failure = multifd_relay::Failure::here(cause);
            failure.leg = leg;
            whereabouts(&failure)
        };
        let broken = || RelayCause::from(io::Error::other("cut"));
        assert_eq!(failed(Leg::Destination, broken()), Whereabouts::Unknown);
        assert_eq!(failed(Leg::Source, broken()), Whereabouts::Source);
        // Its destination had everything.
        assert_eq!(
            failed(Leg::Source, RelayCause::TakenBack),
            Whereabouts::Unknown
        );
        assert_eq!(
            failed(Leg::Here, RelayCause::RelayGone),
            Whereabouts::Unknown
        );
        let refused = RelayCause::Refused { status: 1 };
        assert_eq!(failed(Leg::Destination, refused), Whereabouts::Source);
    }
}
