//! Control messages: what two ends of our own say to each other on their main connection.
//!
//! No QEMU speaks this. A source engine and a destination engine move pages over ordinary multifd
//! channels; their main connection carries messages instead of QEMU's main stream.
//!
//! # On the wire
//!
//! Each direction begins with a [`Preamble`] of [`Preamble::LEN`] bytes, whose shape never changes.
//! Its first word tells it from the main stream of a QEMU. After it come messages:
//!
//! ```text
//! kind u16 | length u32 | body          both numbers big-endian, the body in postcard's encoding
//! ```
//!
//! # Messages of each end
//!
//! ```text
//! source                                   destination
//! Preamble, Hello                     ->
//!                                     <-   Preamble, Accepted (what both ends have) or Refused
//! (opens the channels)  Blocks        ->
//!                                     <-   Ack(Blocks), when every channel is there
//! (SYNC on every channel) RoundMark   ->
//!                                     <-   Ack(Round), when all pages before it are in place
//! ... more rounds; the guest is stopped; the last round ...
//! DeviceState ..., Completion         ->
//!                                     <-   Ack(Completion): all is there and right, nothing runs
//! Start                               ->   the source gives the guest away
//!                                     <-   Ack(Start): the guest runs
//! ```
//!
//! Either end may say [`Message::Failure`] instead of what is due, and closes after it. The guest
//! belongs to the source until it has sent [`Message::Start`].
//!
//! # Versions
//!
//! The preamble states which versions of the messages an end speaks. The newest that both have is
//! spoken; when there is none, both ends know it and can say so. What can be added without another
//! version is a bit of [`Capabilities`]: unknown ones are not accepted, and so not used.

mod body;
mod fault;
mod receiver;

use multifd_transport::incoming::ENGINE_MAGIC;
use multifd_wire::{BlockName, Fault, Method, PageSize, UnknownMethod};

pub use self::fault::ControlFault;
pub use self::receiver::{ControlReceiver, Event};

/// The first word of either direction: "MFDC".
pub const MAGIC: u32 = ENGINE_MAGIC;

/// The first bytes of each direction, in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the protocol fixes its fields")]
pub struct Preamble {
    /// The oldest version of the messages that this end speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl Preamble {
    /// Bytes of a preamble: the magic number and the two versions, big-endian.
    pub const LEN: usize = 8;

    /// The versions that this crate speaks.
    pub const OURS: Self = Self {
        oldest: 1,
        newest: 1,
    };

    /// Takes a preamble apart. A range that is empty is no fault: it has nothing in common with
    /// ours.
    ///
    /// # Errors
    /// [`Fault::Magic`] when this is something else.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, ControlFault> {
        let [m0, m1, m2, m3, o0, o1, n0, n1] = *bytes;
        let found = u32::from_be_bytes([m0, m1, m2, m3]);
        if found != MAGIC {
            let allowed = MAGIC;
            return Err(Fault::Magic { found, allowed }.into());
        }
        Ok(Self {
            oldest: u16::from_be_bytes([o0, o1]),
            newest: u16::from_be_bytes([n0, n1]),
        })
    }

    /// The bytes of the preamble.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [m0, m1, m2, m3] = MAGIC.to_be_bytes();
        let [o0, o1] = self.oldest.to_be_bytes();
        let [n0, n1] = self.newest.to_be_bytes();
        [m0, m1, m2, m3, o0, o1, n0, n1]
    }

    /// The newest version that both ends speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// Abilities of an end beyond the messages of its version, one bit each. Unknown bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// [`Completion::digest`] is sent and compared.
    pub const DIGEST: Self = Self(1);

    /// Payloads of pages have the form of [`multifd_codec::delta`], with bases in place: a page
    /// that is sent again may be a difference to what the destination has at its offset. Headers
    /// state `zlib` or `zstd` then, and each payload ends with the method of
    /// [`Hello::method_bits`].
    pub const DELTA: Self = Self(1 << 1);

    /// Makes a set from its bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// One bit for each.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The capabilities of both sets.
    #[must_use]
    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The capabilities of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// The source's first: what it wants.
    Hello(Hello),
    /// The destination takes the guest, in this way.
    Accepted(Accepted),
    /// The destination does not take the guest; why, in words for people.
    Refused(String),
    /// The guest's RAM blocks.
    Blocks(Vec<Block>),
    /// Every page of this round, counted from 0, has been sent, and a SYNC after it on every
    /// channel.
    RoundMark(u64),
    /// The next piece of the devices' state: at most [`MAX_PIECE_LEN`] bytes.
    DeviceState(Vec<u8>),
    /// Everything has been sent.
    Completion(Completion),
    /// The guest is the destination's from now on.
    Start,
    /// The destination has got something and done with it what is to be done.
    Ack(Acked),
    /// The sender of this gives up; why, in words for people.
    Failure(String),
}

/// A source's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the protocol fixes its fields")]
pub struct Hello {
    /// The capabilities that it would use.
    pub capabilities: Capabilities,
    /// The VM.
    pub vm: [u8; 16],
    /// A random number of this attempt, which its channels state in the uuid field of their hellos.
    pub session: [u8; 16],
    /// The guest's page size.
    pub page_size: PageSize,
    /// The number of channels it would open, 1 to [`MAX_CHANNELS`].
    pub channels: u16,
    /// The method in which it will compress, as in a packet's [`Flags`](multifd_wire::Flags). A
    /// number, because a destination that does not know it is to refuse it, and no fault.
    pub method_bits: u32,
}

impl Hello {
    /// The method in which the source will compress.
    ///
    /// # Errors
    /// When it is none that this crate knows.
    pub fn method(&self) -> Result<Method, UnknownMethod> {
        let bits = self.method_bits;
        let mut all = Method::ALL.into_iter();
        all.find(|method| method.bits() == bits)
            .ok_or(UnknownMethod { bits })
    }
}

/// The terms that a destination agrees to: never more than it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the protocol fixes its fields")]
pub struct Accepted {
    /// The capabilities in use.
    pub capabilities: Capabilities,
    /// The number of channels to open, 1 to [`MAX_CHANNELS`].
    pub channels: u16,
}

/// One RAM block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the protocol fixes its fields")]
pub struct Block {
    /// Its name.
    pub name: BlockName,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// The end of everything that makes up the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the protocol fixes its fields")]
pub struct Completion {
    /// The length of the devices' state, in bytes.
    pub device_state_bytes: u64,
    /// The digest of the guest's memory, with [`Capabilities::DIGEST`].
    pub digest: Option<[u8; 32]>,
}

/// A destination's acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acked {
    /// Compared the blocks with its own, and identified all channels.
    Blocks,
    /// Put all pages up to the mark of this round in their places.
    Round(u64),
    /// Got everything, and loaded the devices' state.
    Completion,
    /// Started the guest.
    Start,
}

impl Message {
    /// Appends the message's bytes to `out`.
    ///
    /// # Errors
    /// When it is longer than a receiver takes, or breaks one of its rules; nothing is written
    /// then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ControlFault> {
        body::write(self, out)
    }
}

/// Words for people as a message can carry them: cut after [`MAX_REASON_LEN`] bytes.
#[must_use]
pub fn reason(words: &str) -> String {
    let mut end = words.len().min(MAX_REASON_LEN);
    while !words.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    words.get(..end).unwrap_or_default().into()
}

/// [`multifd_wire::MAX_CHANNELS`], as messages state it.
pub const MAX_CHANNELS: u16 = multifd_wire::MAX_CHANNELS as u16;
/// The most of the devices' state in one message: large enough that its header costs nothing.
pub const MAX_PIECE_LEN: usize = 64 << 10;
/// The longest words for people: a chain of causes with a path in it.
pub const MAX_REASON_LEN: usize = 1024;
