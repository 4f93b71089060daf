//! Errors of a payload with differences.

use multifd_wire::Method;

use crate::DecodeError;

/// Why a payload with differences cannot be read. The decoder refuses all later packets, and the
/// content of the page buffer is meaningless.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DeltaError(#[from] pub(crate) DeltaFault);

impl From<DecodeError> for DeltaError {
    fn from(error: DecodeError) -> Self {
        Self(error.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DeltaFault {
    /// An earlier packet failed.
    #[error("the stream of differences ended at an earlier error")]
    Poisoned,
    /// The payload has no complete foot.
    #[error("a payload of {found} bytes has no foot")]
    Short {
        /// Length of the payload.
        found: usize,
    },
    /// The layout is unknown.
    #[error("the layout {found} is unknown")]
    Layout {
        /// The payload's layout.
        found: u8,
    },
    /// The payload is in a method that the channel does not have.
    #[error("a payload in {found}, but the channel has {allowed}")]
    Method {
        /// The payload's method.
        found: Method,
        /// The decoder's method.
        allowed: Method,
    },
    /// A number in the foot contradicts the payload's length, the directory, or the packet's pages.
    #[error("the payload's foot states {found} {what}, but there are {allowed}")]
    Part {
        /// The name of the number.
        what: &'static str,
        /// The foot's number.
        found: usize,
        /// The number that the rest of the packet allows.
        allowed: usize,
    },
    /// The directory is wrong.
    #[error("the directory is wrong at page {page} of the packet")]
    Directory {
        /// The index among the packet's normal pages, from 0.
        page: usize,
        /// The problem.
        source: DirectoryFault,
    },
    /// A difference is wrong: a run is cut off, or goes beyond the end of the page.
    #[error("the difference of page {page} of the packet is wrong")]
    Run {
        /// The index among the packet's normal pages, from 0.
        page: usize,
    },
    /// A page is a difference to a page that has not come.
    #[error("page {page} of the packet is a difference, but the page has not come before")]
    NoBase {
        /// The index among the packet's normal pages, from 0.
        page: usize,
    },
    /// A slot is beyond the number that both ends agreed on.
    #[error("slot {found}, but there are {allowed}")]
    Slot {
        /// The slot.
        found: u32,
        /// The number of slots.
        allowed: u32,
    },
    /// A page for a slot has another size than the first page for a slot.
    #[error("a page of {found} bytes for a slot of {allowed} bytes")]
    PageSize {
        /// The packet's page size.
        found: usize,
        /// The page size of all slots.
        allowed: usize,
    },
    /// An operation expects a version that the slot no longer has.
    #[error(
        "slot {slot} has version {found}, but the operation expects the older version {wanted}"
    )]
    Gone {
        /// The slot.
        slot: u32,
        /// The slot's version.
        found: u32,
        /// The version that the operation expects.
        wanted: u32,
    },
    /// The operations before this one did not come in time.
    #[error("slot {slot} has version {found}, and version {wanted} did not come in time")]
    Missing {
        /// The slot.
        slot: u32,
        /// The slot's version.
        found: u32,
        /// The version that the operation expects.
        wanted: u32,
    },
    /// The caller gave up waiting for the operations before this one.
    #[error("the wait for version {wanted} of slot {slot} was given up at version {found}")]
    GivenUp {
        /// The slot.
        slot: u32,
        /// The slot's version.
        found: u32,
        /// The version that the operation expects.
        wanted: u32,
    },
    /// The pages made from differences are not the sender's.
    #[error("the pages made from differences have digest {found:016x} instead of {wanted:016x}")]
    Digest {
        /// The digest of the pages.
        found: u64,
        /// The digest in the payload.
        wanted: u64,
    },
    /// This process has no memory for the slots that it has agreed to.
    #[error("this host has no memory for pages that it agreed to keep: agree to fewer")]
    NoMemory,
    /// The method cannot read its part of the payload.
    #[error(transparent)]
    Codec(#[from] DecodeError),
}

/// The fault of a wrong directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(crate) struct DirectoryFault(#[from] pub(super) ItemFault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ItemFault {
    /// It ends before the packet's last page, or a number in it is too long.
    #[error("the directory ends there")]
    Ends,
    /// An item counts no page, or more than are left.
    #[error("an item of {found} pages, but {allowed} are left")]
    Count {
        /// The item's count.
        found: u64,
        /// Pages left.
        allowed: usize,
    },
    /// An item of pages without slots has a slot or versions, or keeps pages.
    #[error("the tag {found:#x} has no meaning")]
    Tag {
        /// The tag.
        found: u64,
    },
    /// A slot's number is negative or too large.
    #[error("{found} is no number of a slot")]
    Slot {
        /// The slot.
        found: i64,
    },
    /// A version is negative or too large, or it is 0 and the operation needs a kept page.
    #[error("version {found} is impossible")]
    Version {
        /// The version.
        found: i64,
    },
    /// There are bytes behind the last page's operation.
    #[error("{found} bytes follow the last page's operation")]
    Trailing {
        /// Bytes left.
        found: usize,
    },
}
