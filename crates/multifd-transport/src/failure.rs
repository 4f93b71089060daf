//! What went wrong, and where: the error of a migration.

use std::fmt;
use std::io;

use multifd_codec::{DecodeError, EncodeError, PagesError, Unsupported};
use multifd_wire::{BlockName, Fault, Method, Misuse, UnknownMethod};

use crate::image::ImageError;
use crate::recording::RecordingError;
use crate::{Address, EngineFault, FileError, RoundFault};

/// One connection of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The main channel.
    Main,
    /// The multifd channel of this id.
    Multifd(u8),
    /// A connection that had not said yet which one it is.
    Unnamed,
}

/// Which side of us the connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    /// Towards the QEMU which sends its guest.
    Source,
    /// Towards the QEMU which takes the guest.
    Destination,
}

/// The first thing that went wrong in a migration. Whatever failed afterwards failed because of it.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.place())]
pub struct Failure {
    /// The connection it happened on.
    pub channel: Channel,
    /// The side it happened on.
    pub leg: Leg,
    /// The RAM block of the packet in hand, where there was one.
    pub block: Option<Box<BlockName>>,
    /// What happened.
    #[source]
    pub cause: Cause,
}

/// What can go wrong on a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The socket failed, or its peer is gone.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// Connections can no longer be accepted; nothing about one migration.
    #[error("cannot accept connections")]
    Listener(#[source] io::Error),
    /// Nobody could be reached.
    #[error("cannot connect to {address}")]
    Dial {
        /// Who was to be reached.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The peer breaks the rules of the format.
    #[error("the stream is malformed")]
    Wire(#[from] Fault),
    /// The connections of one migration do not fit together.
    #[error(transparent)]
    Setup(#[from] SetupFault),
    /// A payload does not give the pages it promises.
    #[error("the payload cannot be decoded")]
    Decode(#[from] DecodeError),
    /// Pages could not be turned into a payload.
    #[error("the pages cannot be encoded")]
    Encode(#[from] EncodeError),
    /// A method that this build cannot read or write.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Pages compressed with a method that nobody here knows.
    #[error(transparent)]
    UnknownMethod(#[from] UnknownMethod),
    /// Calls to the wire format's machines out of turn: a defect of this program.
    #[error("a defect of this program")]
    Misuse(#[from] Misuse),
    /// Pages that do not make a packet: a defect of this program.
    #[error("a defect of this program")]
    Pages(#[from] PagesError),
    /// A channel changed its method: the stream of the first one has no end, so no other can follow it.
    #[error("the channel changed from {first} to {then}, which no QEMU does")]
    MethodChanged {
        /// The method of the channel's earlier packets.
        first: Method,
        /// The method of this one.
        then: Method,
    },
    /// The channels do not agree about the rounds of the migration.
    #[error(transparent)]
    Round(#[from] RoundFault),
    /// An engine ended the migration.
    #[error(transparent)]
    Engine(#[from] EngineFault),
    /// A RAM block cannot be written to its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What arrives cannot be written to its file.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is to be sent cannot be read from its recording.
    #[error(transparent)]
    Recording(#[from] RecordingError),
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
    /// The destination closed without the answer that the source had asked for.
    #[error(
        "the destination closed without saying that it has the guest; see the destination's own log"
    )]
    Unconfirmed,
}

/// Connections of one migration that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupFault {
    /// The connection begins with a TLS handshake.
    #[error(
        "the peer speaks TLS, which is not ended here: let the QEMUs migrate without tls-creds"
    )]
    Tls,
    /// A connection said nothing for [`crate::incoming::HELLO_TIMEOUT`].
    #[error("a connection stayed silent for {} s", crate::incoming::HELLO_TIMEOUT.as_secs())]
    Silent,
    /// The main channel goes on without its RAM section's setup.
    #[error("the RAM section's setup did not come within {limit_bytes} bytes of the main channel")]
    TooLong {
        /// How many bytes it may take.
        limit_bytes: usize,
    },
    /// A source engine where a QEMU was awaited.
    #[error("the peer is a source engine of this project and not a QEMU")]
    Engine,
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
        /// How many channels there are.
        channels: usize,
    },
    /// Channels of different VMs.
    #[error("the channel belongs to VM {}, the others to {}", Uuid(.found), Uuid(.expected))]
    Uuid {
        /// What this channel said.
        found: [u8; 16],
        /// What the channel before it said.
        expected: [u8; 16],
    },
}

impl Failure {
    fn place(&self) -> String {
        let side = match self.leg {
            Leg::Source => "source",
            Leg::Destination => "destination",
        };
        match &self.block {
            Some(block) => format!("{}, {side} side, block {block}", self.channel),
            None => format!("{}, {side} side", self.channel),
        }
    }

    /// The whole chain of causes on one line, for logs.
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
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

struct Uuid<'a>(&'a [u8; 16]);

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
