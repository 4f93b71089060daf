//! The failures of a migration that is relayed, kept or replayed.

use std::io;
use std::time::Duration;

use multifd_transport::failure::{Cause as TransportCause, Located};

use crate::atomic_file::FileError;
use crate::coverage::{CoverageFault, Gap};
use crate::image::ImageError;
use crate::leg::{FarFailure, LegAddress, LegAddressError};
use crate::recording::RecordingError;
use crate::relay::VerifyFault;

pub(crate) use multifd_transport::Circle;
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
    /// The destination cannot be reached.
    #[error("cannot connect to {address}")]
    Dial {
        /// The address that was called.
        address: LegAddress,
        /// Why not.
        source: io::Error,
    },
    /// The other relay has gone without a word, while the source waits for the destination's.
    #[error(
        "the other relay has gone, and did not say whether the destination has the guest. The source \
         goes on with its guest: check that the destination does not run"
    )]
    RelayGone,
    /// The other relay has gone without a word, and the source has not asked for the destination's.
    #[error(
        "the other relay has gone, and nobody can say here whether the destination has the guest: \
         look at it (info status) before you go on at the source"
    )]
    Unknown,
    /// The other relay has ended the migration.
    #[error(transparent)]
    Far(#[from] FarFailure),
    /// The source closed before the migration was complete: it was cancelled, or the source died.
    #[error("the source ended the migration before it was complete (cancelled there, or it died)")]
    Incomplete,
    /// The destination answered that it could not load the guest.
    #[error(
        "the destination could not load the guest (status {status}); see the destination's own log"
    )]
    Refused {
        /// The number that it gave; 0 would have been success.
        status: u32,
    },
    /// The source closed before the destination had said that it has the guest, so the guest runs
    /// on at the source.
    #[error(
        "the source closed before the destination had said that it has the guest, and goes on with its guest. \
         The destination was disconnected: check that it does not run"
    )]
    TakenBack,
    /// The destination has the guest, and the word did not reach the source.
    #[error(
        "the destination has the guest, but the source was not told: it had closed, or its host did not answer. \
         The guest may run at both ends, stop one of them now"
    )]
    NotTold,
    /// The migration was to end here, the destination may have had everything that makes the guest,
    /// and has not said in time whether it has it.
    #[error(
        "the destination may have got everything that makes the guest, and did not say within {within:?} whether it has it. \
         It was disconnected: check that it does not run before you go on at the source"
    )]
    NoWord {
        /// The time limit for its word.
        within: Duration,
    },
    /// The destination may have had everything that makes the guest, and has not been heard.
    #[error(
        "the destination may have got everything that makes the guest, and nobody can say here whether it has it: {why}. \
         Look at both ends (info status) before you end or start either"
    )]
    Unheard {
        /// Why not.
        why: Unheard,
    },
    /// The migration has failed, and its source has not asked for the destination's word.
    #[error(
        "the source has no return path and may have given its guest up, and nobody can say here whether the \
         destination has it: look at both (info status) before you go on"
    )]
    Untold {
        /// The failure.
        source: Box<Cause>,
    },
    /// A connection broke while the guest's memory was at both ends.
    #[error(
        "a connection broke in postcopy; the guest goes on once it is recovered \
         (at the destination migrate-recover, at the source migrate with resume)"
    )]
    PostcopyBroke,
    /// A migration that may switch to postcopy, where there is no guest to switch to.
    #[error(
        "the source may switch to postcopy, which needs a running destination: \
         switch it off at the source (migrate_set_capability postcopy-ram off)"
    )]
    Postcopy,
    /// The destination closed without the answer that the source had asked for.
    #[error(
        "the destination closed without saying that it has the guest; see the destination's own log"
    )]
    Unconfirmed,
    /// The destination of a replay neither took nor said anything within the time limit.
    #[error(
        "the destination took nothing and said nothing for {} s: look at its log and its state (info status), \
         then replay again",
        within.as_secs()
    )]
    Stalled {
        /// The time limit.
        within: Duration,
    },
    /// Any other cause.
    #[error(transparent)]
    Other(#[from] OtherCause),
}

/// A cause after which nothing else is to be done than after any failure. [`Display`] says what was
/// found and what is allowed.
///
/// [`Display`]: std::fmt::Display
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OtherCause(#[from] pub(crate) Other);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Other {
    /// The destination is the relay itself.
    #[error(transparent)]
    Circle(#[from] Circle),
    /// The destination has no address.
    #[error(transparent)]
    Leg(#[from] LegAddressError),
    /// Another migration has this destination.
    #[error("another migration to {address} is under way, and a destination takes one")]
    Taken {
        /// The destination.
        address: LegAddress,
    },
    /// This process has next to no memory left.
    #[error(
        "{left} bytes of memory are left to this process and {needed} are needed; raise its limit \
         (ulimit -v, or the service's MemoryMax), or lower --delta-memory"
    )]
    Memory {
        /// The bytes that are left.
        left: u64,
        /// The bytes that a migration needs to begin.
        needed: u64,
    },
    /// A RAM block cannot be written to its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The received pages cannot be written to their file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The recording cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The destination says that it has the guest, before all of its memory has come.
    #[error(
        "the destination says that it has the guest, but not all of its memory has come: it is no QEMU, or is broken"
    )]
    WordTooEarly,
    /// A stream without the description of devices, whose end cannot be distinguished from a pause.
    #[error(
        "the end of this stream cannot be detected, as the source leaves out its device description (suppress-vmdesc): \
         record from a machine type with it, or without return path"
    )]
    NoEnd,
    /// The pages that came are not those that went.
    #[error(transparent)]
    Verify(#[from] VerifyFault),
    /// Pages are missing, or do not fit to the list of blocks.
    #[error(transparent)]
    Coverage(#[from] CoverageFault),
}

/// Turns each error that an [`Other`] can hold into a [`Cause`].
macro_rules! other_causes {
    ($($error:ty,)*) => {
        $(impl From<$error> for Cause {
            fn from(error: $error) -> Self {
                Self::Other(OtherCause(error.into()))
            }
        })*
    };
}

other_causes! {
    Circle,
    CoverageFault,
    FileError,
    ImageError,
    LegAddressError,
    Other,
    RecordingError,
    VerifyFault,
}

/// Why a destination's word was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unheard {
    /// Its connection broke, and the destination had not closed it.
    #[error("the connection to it broke ({0})")]
    Broken(io::ErrorKind),
    /// Its return path was passed on, and could not be followed.
    #[error("its return path could not be followed, so its word to the source was not seen")]
    NotFollowed,
}

impl From<Gap> for Cause {
    fn from(gap: Gap) -> Self {
        CoverageFault::from(gap).into()
    }
}

impl Cause {
    /// Whether nobody can say here who has the guest.
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Unknown | Self::NoWord { .. } | Self::Untold { .. } | Self::Unheard { .. }
        )
    }

    /// The cause of a broken connection: the other relay's reason, if it has said one.
    pub(crate) fn of_connection(error: io::Error) -> Self {
        let inner = error.get_ref();
        let failure = inner.and_then(|inner| inner.downcast_ref::<FarFailure>());
        match failure.cloned() {
            Some(failure) => failure.into(),
            None => error.into(),
        }
    }
}

multifd_transport::nest_transport_causes!(Cause);

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_nested_cause_adds_no_words() {
        let broken = || io::Error::other("gone");
        let below = Located::here(TransportCause::Io(broken()));
        let words = "main channel, this host: the connection broke: gone";
        assert_eq!(below.explain(), words);
        assert_eq!(Failure::here(broken().into()).explain(), words);
        assert_eq!(below.widened::<Cause>().explain(), words);
    }
}
