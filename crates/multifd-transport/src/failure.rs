//! What went wrong, and where: the error of a migration.

use std::fmt;
use std::io;
use std::time::Duration;

use multifd_codec::{DecodeError, EncodeError, PagesError, Unsupported};
use multifd_wire::{BlockName, Fault, Method, Misuse, UnknownMethod};

use crate::coverage::CoverageFault;
use crate::image::ImageError;
use crate::recording::RecordingError;
use crate::{Address, Circle, EngineFault, FileError, RoundFault};

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
    /// This host: what it lacks is no fault of a peer's.
    Here,
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
    /// The destination is the relay itself.
    #[error(transparent)]
    Circle(#[from] Circle),
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
    /// The source closed before the destination had said that it has the guest, so the guest runs on at the source.
    #[error(
        "the source closed before the destination had said that it has the guest, and goes on with its guest; \
         the destination was cut off, see that it does not run"
    )]
    TakenBack,
    /// The destination has the guest, and the source could not be told.
    #[error(
        "the destination has the guest, but the source closed before it was told: \
         the guest may run at both ends, stop one of them now"
    )]
    NotTold,
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
    /// A stream without the description of devices, whose end cannot be told from a pause.
    #[error(
        "the stream has no description of devices (suppress-vmdesc), so its end cannot be told: \
         record from a machine type with it, or without return path"
    )]
    NoEnd,
    /// Pages are missing, or do not fit to the list of blocks.
    #[error(transparent)]
    Coverage(#[from] CoverageFault),
    /// No thread could be had.
    #[error(
        "cannot start a thread; raise the limit of threads (ulimit -u, or the service's TasksMax)"
    )]
    Thread(#[source] io::Error),
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
    /// A connection said nothing for as long as it may.
    #[error("a connection stayed silent for {} s", within.as_secs())]
    Silent {
        /// How long that is.
        within: Duration,
    },
    /// A source engine where a QEMU was awaited.
    #[error("the peer is a source engine of this project and not a QEMU")]
    Engine,
    /// This program was told to end, and takes no new migrations.
    #[error("this multifd is ending and takes no new migrations")]
    Ending,
    /// Another migration is being taken, and only one is.
    #[error("another migration is under way here, which takes only one")]
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
        /// How many channels there are.
        channels: usize,
    },
    /// Migrations that run at once at one address, and whose connections cannot be told apart.
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
        /// How many multifd channels the source has.
        channels: usize,
        /// How long was waited for it.
        within: Duration,
    },
    /// A main channel says that it has multifd channels, and they do not come.
    #[error("its set-up says multifd, but {} within {} s", Missing(.missing), within.as_secs())]
    ChannelsMissing {
        /// The id of the first channel that is missing between others; none when not one came.
        missing: Option<u8>,
        /// How long was waited for it.
        within: Duration,
    },
}

impl Failure {
    /// A failure of this host, which no connection is to blame for.
    pub fn here(cause: Cause) -> Self {
        Self {
            channel: Channel::Main,
            leg: Leg::Here,
            block: None,
            cause,
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
