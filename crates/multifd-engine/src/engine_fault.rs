//! The failures between a source and a destination engine, beside those of any channel.

use std::io;
use std::time::Duration;

use multifd_wire::{BlockName, Method};

use crate::control::Preamble;
use crate::dirty::DirtyLogError;
use crate::memory::OutOfRange;
use crate::vm::VmError;

/// Why an engine ended a migration. [`Display`](std::fmt::Display) prints what was found and what
/// was allowed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(#[from] pub(crate) EngineFault);

impl EngineError {
    /// Whether the migration took longer than
    /// [`Parameters::timeout`](crate::Parameters::timeout).
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0, EngineFault::Timeout { .. })
    }

    /// Whether the other end closed the connection before the end.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.0, EngineFault::Closed)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineFault {
    /// The migration took longer than its time limit.
    #[error(
        "not done after {} s: {remaining_pages} pages left in round {round}{}", .timeout.as_secs_f64(), Rates(*.normal_per_second, *.dirty_pages_rate)
    )]
    Timeout {
        /// Its time limit.
        timeout: Duration,
        /// The round it was in.
        round: u64,
        /// Pages of that round that were not sent.
        remaining_pages: u64,
        /// Pages with contents that were sent per second, if a round was completed.
        normal_per_second: Option<f64>,
        /// Pages that the guest wrote per second, if the log was read.
        dirty_pages_rate: Option<f64>,
    },
    /// The two ends have no version of the control messages in common.
    #[error(
        "the peer speaks versions {} to {} of the control messages, and this end {} to {}",
        .theirs.oldest, .theirs.newest, Preamble::OURS.oldest, Preamble::OURS.newest
    )]
    Versions {
        /// The peer's versions.
        theirs: Preamble,
    },
    /// A message came where another one was due.
    #[error("{found} where {wanted} was due")]
    OutOfTurn {
        /// The message that came.
        found: &'static str,
        /// The expected messages.
        wanted: &'static str,
    },
    /// The destination does not take this guest.
    #[error("the destination refuses the guest: {}", .reason.escape_debug())]
    Refused {
        /// The peer's message.
        reason: String,
    },
    /// The peer gave up.
    #[error("the other end gave up: {}", .reason.escape_debug())]
    Peer {
        /// The peer's message.
        reason: String,
    },
    /// The other end closed before the end.
    #[error("the other end closed the connection")]
    Closed,
    /// The destination cannot do what the source cannot do without.
    #[error("the destination has no memory digest")]
    NoDigest,
    /// Not all channels came.
    #[error("{found} of {expected} channels came within {} s", .within.as_secs())]
    Channels {
        /// The number that came.
        found: usize,
        /// The agreed number.
        expected: usize,
        /// Their time limit.
        within: Duration,
    },
    /// A packet's pages are compressed in another way than was agreed upon.
    #[error("pages in method {found}, but {agreed} was agreed upon")]
    Method {
        /// The packet's.
        found: Method,
        /// The one agreed upon.
        agreed: Method,
    },
    /// A packet that an engine has no use for.
    #[error("a packet of device state, which no engine sends on a channel")]
    DevicePacket,
    /// A RAM block is not a whole number of pages.
    #[error("a block of {len_bytes:#x} bytes is not a whole number of pages of {page_bytes}")]
    NotWholePages {
        /// The block's length.
        len_bytes: u64,
        /// A page's length.
        page_bytes: usize,
    },
    /// The source has another number of RAM blocks.
    #[error("the source has {found} RAM blocks, this guest has {expected}")]
    BlockCount {
        /// The source's.
        found: usize,
        /// This end's.
        expected: usize,
    },
    /// There is no block of this name here.
    #[error("this guest has no block of that name")]
    UnknownBlock,
    /// A RAM block has another length here.
    #[error("the block has {found:#x} bytes at the source and {expected:#x} here")]
    BlockLength {
        /// At the source.
        found: u64,
        /// Here.
        expected: u64,
    },
    /// A page is not in its block.
    #[error("a page outside its block")]
    Memory(#[from] OutOfRange),
    /// More device state than this end takes.
    #[error("more than {allowed} bytes of device state")]
    DeviceStateTooLong {
        /// The destination's limit.
        allowed: usize,
    },
    /// The device state is not as long as the source says.
    #[error("{found} bytes of device state came, {expected} were sent")]
    DeviceStateLength {
        /// Bytes that came.
        found: u64,
        /// Bytes that the source says it sent.
        expected: u64,
    },
    /// The memory at the destination is not that of the source.
    #[error("the digests of the memory at both ends differ")]
    Digest,
    /// The guest's writes cannot be tracked.
    #[error("the guest's writes cannot be tracked")]
    DirtyLog(#[from] DirtyLogError),
    /// This machine has no thread for a channel.
    #[error("cannot start a thread")]
    Thread {
        /// The system's error.
        source: io::Error,
    },
    /// The other end has sent nothing for a while, although it was its turn.
    #[error("the other end has sent nothing for {} s", .within.as_secs())]
    Idle {
        /// Its time limit.
        within: Duration,
    },
    /// The source has ended without every page of the guest.
    #[error("{missing} of {pages} pages of block {block:?} never came, the first is at {first:#x}")]
    PagesMissing {
        /// The block they belong to.
        block: Box<BlockName>,
        /// The number of missing pages.
        missing: u64,
        /// The block's number of pages.
        pages: u64,
        /// The offset of the first missing page in bytes.
        first: u64,
    },
    /// The VM does not do what it should.
    #[error("the VM cannot {what}")]
    Vm {
        /// The operation.
        what: &'static str,
        /// The VMM's error.
        source: VmError,
    },
}

/// Why a migration does not end, in a half sentence.
struct Rates(Option<f64>, Option<f64>);

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(sent) = self.0 {
            write!(f, ", {sent:.0} sent per second")?;
        }
        if let Some(dirty) = self.1 {
            write!(f, ", {dirty:.0} written by the guest per second")?;
        }
        Ok(())
    }
}
