//! The errors of connections, with their place.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use multifd_codec::delta::DeltaError;
use multifd_codec::{DecodeError, EncodeError, PagesError, Unsupported};
use multifd_wire::{BlockName, Fault, Method, Misuse, UnknownMethod};

pub use crate::scarce::NoThread;
use crate::{Address, RoundFault};

/// One connection of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "QEMU opens no other connections")]
pub enum Channel {
    /// The main channel.
    Main,
    /// The multifd channel of this id.
    Multifd(u8),
    /// A connection that had not said yet which one it is.
    Unnamed,
}

/// The side of us that the connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a failure is at the one end, at the other, or here"
)]
pub enum Leg {
    /// Towards the QEMU which sends its guest.
    Source,
    /// Towards the QEMU which takes the guest.
    Destination,
    /// This host: what it lacks is no fault of a peer's.
    Here,
}

/// A failure and its place. Each crate has causes of its own; the place is the same for all.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.place())]
#[expect(
    clippy::exhaustive_structs,
    reason = "a place has these parts, and each crate makes failures"
)]
pub struct Located<C: Error + 'static> {
    /// The connection it happened on.
    pub channel: Channel,
    /// The side it happened on.
    pub leg: Leg,
    /// The RAM block of the packet in hand, where there was one.
    pub block: Option<Box<BlockName>>,
    /// The cause.
    #[source]
    pub cause: C,
}

/// A failure of a connection.
pub type Failure = Located<Cause>;

/// The failures of a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The socket failed, or its peer is gone.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// Connections can no longer be accepted; nothing about one migration.
    #[error("cannot accept connections")]
    Listener(#[source] io::Error),
    /// The destination could not be reached.
    #[error("cannot connect to {address}")]
    Dial {
        /// The address of the destination.
        address: Address,
        /// The system's error.
        source: io::Error,
    },
    /// The peer breaks the rules of the format.
    #[error("the stream is malformed")]
    Wire(#[from] Fault),
    /// The connections of one migration do not fit together.
    #[error(transparent)]
    Setup(#[from] SetupFault),
    /// Pages that cannot be made a payload, or a payload that cannot be made pages.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The channels do not agree about the rounds of the migration.
    #[error(transparent)]
    Round(#[from] RoundFault),
    /// The caller asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// No thread could be had.
    #[error(transparent)]
    Thread(NoThread),
}

/// What goes wrong between pages and payloads on a channel. [`Display`](fmt::Display) and the
/// source say what was found and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CodecError(#[from] CodecFault);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecFault {
    /// A payload does not give the pages it promises.
    #[error("the payload cannot be decoded")]
    Decode(#[from] DecodeError),
    /// A payload with differences does not give the pages it promises.
    #[error("the payload with differences cannot be decoded")]
    Delta(#[from] DeltaError),
    /// Pages could not be turned into a payload.
    #[error("the pages cannot be encoded")]
    Encode(#[from] EncodeError),
    /// A method that this build cannot read or write.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Pages compressed with an unknown method.
    #[error(transparent)]
    UnknownMethod(#[from] UnknownMethod),
    /// Calls to the wire format's machines out of turn: a defect of this program.
    #[error("a defect of this program")]
    Misuse(#[from] Misuse),
    /// Pages that do not make a packet: a defect of this program.
    #[error("a defect of this program")]
    Pages(#[from] PagesError),
    /// A channel changed its method: the stream of the first one has no end, so no other can follow
    /// it.
    #[error("the channel changed from {first} to {then}, which no QEMU does")]
    MethodChanged {
        /// The method of the channel's earlier packets.
        first: Method,
        /// The method of this one.
        then: Method,
    },
}

impl Cause {
    /// The failure where no thread could be had, which says what this host lacks.
    pub fn thread(error: io::Error) -> Self {
        Self::Thread(NoThread::new(error))
    }
}

/// Turns each error that a [`CodecFault`] can hold into a [`Cause`].
macro_rules! codec_causes {
    ($($error:ty,)*) => {
        $(impl From<$error> for Cause {
            fn from(error: $error) -> Self {
                Self::Codec(CodecError(error.into()))
            }
        })*
    };
}

codec_causes! {
    CodecFault,
    DecodeError,
    DeltaError,
    EncodeError,
    Misuse,
    PagesError,
    UnknownMethod,
    Unsupported,
}

/// Turns each error that a transport [`Cause`] can hold into the cause of another crate, so that
/// `?` takes it there. That cause has a variant `Transport`. For the crates of this workspace
/// alone; they depend on `multifd-codec` and `multifd-wire` too.
#[doc(hidden)]
#[macro_export]
macro_rules! nest_transport_causes {
    ($cause:ty) => {
        $crate::nest_transport_causes! {
            $cause:
            ::std::io::Error,
            ::multifd_codec::DecodeError,
            ::multifd_codec::delta::DeltaError,
            ::multifd_codec::EncodeError,
            ::multifd_wire::Fault,
            ::multifd_wire::Misuse,
            ::multifd_codec::PagesError,
            ::multifd_wire::UnknownMethod,
            ::multifd_codec::Unsupported,
            $crate::failure::SetupFault,
            $crate::RoundFault,
        }
    };
    ($cause:ty: $($error:ty,)*) => {
        $(impl ::std::convert::From<$error> for $cause {
            fn from(error: $error) -> Self {
                Self::Transport(error.into())
            }
        })*
    };
}

/// Connections of one migration that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupFault {
    /// The connection begins with a TLS handshake.
    #[error("the peer uses TLS, which a relay cannot read: unset tls-creds in both QEMUs")]
    Tls,
    /// A connection said nothing within its time limit.
    #[error("a connection stayed silent for {} s", within.as_secs())]
    Silent {
        /// The time limit.
        within: Duration,
    },
    /// A source engine where a QEMU was awaited.
    #[error("the peer is a source engine of this project and not a QEMU")]
    Engine,
    /// This program was told to end, and takes no new migrations.
    #[error("this multifd is ending and takes no new migrations")]
    Ending,
    /// Another migration is being taken, and only one is.
    #[error("this address takes one migration at a time, and one is under way: try again later")]
    Busy,
    /// A QEMU where a source engine was awaited.
    #[error("the peer is a QEMU and not a source engine of this project")]
    Qemu,
    /// Two channels with one id.
    #[error("channel id {id} was used twice")]
    ChannelTwice {
        /// The id.
        id: u8,
    },
    /// Ids are to be 0 up to the number of channels, exclusive.
    #[error("channel id {found} was used with {channels} channels")]
    ChannelId {
        /// The id.
        found: u8,
        /// The number of channels.
        channels: usize,
    },
    /// Migrations that run at once at one address, and whose connections cannot be distinguished.
    #[error(
        "several migrations at once at one address, and a channel of VM {} may belong to any of them: \
         migrate one after another, or give each VM an address of its own, \
         or its own -uuid with the capability validate-uuid", Uuid(.uuid)
    )]
    Alike {
        /// The VM that the channel named.
        uuid: [u8; 16],
    },
    /// The destination has taken the connections, and does not load.
    #[error(
        "the destination did not begin to load within {} s: does it have multifd on, and {channels} channels as the source? \
         (migrate_set_parameter multifd-channels {channels})", within.as_secs()
    )]
    NotBegun {
        /// The number of the source's multifd channels.
        channels: usize,
        /// The time limit.
        within: Duration,
    },
    /// The source has sent its set-up and no round.
    #[error(
        "the source sent nothing after its set-up for {} s: it may have been cancelled, or its host stands still; \
         migrate again", within.as_secs()
    )]
    NothingFollows {
        /// The time limit.
        within: Duration,
    },
    /// A main channel says that it has multifd channels, and they do not come.
    #[error("its set-up says multifd, but {} within {} s", Missing(.missing), within.as_secs())]
    ChannelsMissing {
        /// The id of the first channel that is missing between others; none when not one came.
        missing: Option<u8>,
        /// The time limit.
        within: Duration,
    },
    /// Nothing shows whether a main channel has multifd channels, and none came.
    #[error(
        "its first round had no page with contents, and no multifd channel came within {} s: \
         a guest without multifd needs a return path here (at both ends: migrate_set_capability return-path on)",
        within.as_secs()
    )]
    NoPages {
        /// The time limit for a channel.
        within: Duration,
    },
}

impl<C: Error + 'static> Located<C> {
    /// A failure of this host, which no connection is to blame for.
    pub fn here(cause: C) -> Self {
        Self {
            channel: Channel::Main,
            leg: Leg::Here,
            block: None,
            cause,
        }
    }

    /// The same failure with its cause as one of another crate's.
    pub fn widened<D: From<C> + Error + 'static>(self) -> Located<D> {
        Located {
            channel: self.channel,
            leg: self.leg,
            block: self.block,
            cause: self.cause.into(),
        }
    }

    fn place(&self) -> String {
        let side = match self.leg {
            Leg::Source => "source",
            Leg::Destination => "destination",
            Leg::Here => return format!("{}, this host", self.channel),
        };
        match &self.block {
            Some(block) => format!("{}, {side} side, block {block}", self.channel),
            None => format!("{}, {side} side", self.channel),
        }
    }

    /// The whole chain of causes on one line, for logs.
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut next = Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Main => f.write_str("main channel"),
            Channel::Multifd(id) => write!(f, "channel {id}"),
            Channel::Unnamed => f.write_str("new connection"),
        }
    }
}

struct Missing<'a>(&'a Option<u8>);

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, "channel {id} did not come"),
            None => f.write_str("no channel came"),
        }
    }
}

/// A UUID in its usual form.
pub(crate) struct Uuid<'a>(pub(crate) &'a [u8; 16]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
