//! What can be wrong with a peer's bytes, and what a caller can do wrong.

use crate::page_size::PageSize;

/// A peer's bytes break a rule of the format or a limit. Each variant says what was found and, where there is a choice,
/// what was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Another magic number than the one which must stand here.
    #[error("magic number {found:#010x} instead of {allowed:#010x}")]
    Magic {
        /// The number which stands there.
        found: u32,
        /// The only number allowed.
        allowed: u32,
    },
    /// Another version than the one this crate speaks.
    #[error("version {found} instead of {allowed}")]
    Version {
        /// The version stated.
        found: u32,
        /// The only version allowed.
        allowed: u32,
    },
    /// The stream ends in the middle of something.
    #[error("the stream ends at least {missing} bytes early")]
    Truncated {
        /// Bytes that were still needed for the next step.
        missing: usize,
    },
    /// A packet has both the SYNC and the device-state flag.
    #[error("flags {flags:#x} mark both a synchronisation and device state")]
    SyncWithDeviceState {
        /// The flag word.
        flags: u32,
    },
    /// The table of the first packet with pages has a length which no page size explains.
    #[error("{found} pages per packet fit no page size: it must be a power of two from 8 to 512")]
    PagesPerPacket {
        /// Entries stated or counted.
        found: usize,
    },
    /// A packet states more room for pages than fit in a packet.
    #[error("room for {found} pages in a packet, {allowed} are allowed")]
    PagesAllocated {
        /// Pages stated.
        found: u32,
        /// Most pages allowed.
        allowed: u32,
    },
    /// A packet states more normal pages than it has room for.
    #[error("{found} normal pages in a packet, {allowed} are allowed")]
    NormalPages {
        /// Pages stated.
        found: u32,
        /// Most pages allowed.
        allowed: u32,
    },
    /// A packet states more zero pages than the normal ones leave room for.
    #[error("{found} zero pages in a packet, {allowed} are allowed")]
    ZeroPages {
        /// Pages stated.
        found: u32,
        /// Most pages allowed.
        allowed: u32,
    },
    /// A name is empty where something must be named.
    #[error("an empty name")]
    EmptyName,
    /// A name fills its field without an end, or has its end inside its stated length.
    #[error("a name without its end in place")]
    UnterminatedName,
    /// A page does not start at a multiple of the page size.
    #[error("page offset {found:#x} is not a multiple of the page size {page_size}")]
    OffsetUnaligned {
        /// The offset in the RAM block.
        found: u64,
        /// The page size.
        page_size: PageSize,
    },
    /// A page ends beyond its RAM block, or beyond the largest block allowed.
    #[error("page offset {found:#x} is beyond {allowed:#x}")]
    OffsetOutside {
        /// The offset in the RAM block.
        found: u64,
        /// The last offset allowed.
        allowed: u64,
    },
    /// A packet has the same page twice.
    #[error("page offset {found:#x} twice in one packet")]
    OffsetRepeated {
        /// The offset in the RAM block.
        found: u64,
    },
    /// A payload is longer or shorter than the packet's method and pages allow.
    #[error("payload of {found} bytes, {least} to {most} are allowed")]
    PayloadLength {
        /// The length stated.
        found: u32,
        /// The shortest allowed.
        least: u32,
        /// The longest allowed.
        most: u32,
    },
    /// A payload is too short for its table of page lengths.
    #[error("payload of {found} bytes is too short for a length table of {needed}")]
    LengthTable {
        /// The payload's length.
        found: usize,
        /// The table's length.
        needed: usize,
    },
    /// The length of one page in a length table is not between 1 and the page size.
    #[error("page {page} is stated to have {found} bytes, 1 to {most} are allowed")]
    PageLength {
        /// The page's place in the packet, from 0.
        page: usize,
        /// The length stated.
        found: usize,
        /// The longest allowed: the page size.
        most: usize,
    },
    /// The pages of a length table are together longer or shorter than what follows the table.
    #[error("the pages of a length table have {found} bytes together, {allowed} follow the table")]
    LengthSum {
        /// The sum of the table.
        found: usize,
        /// The bytes which follow it.
        allowed: usize,
    },
}

/// The caller asked for something out of turn. A defect of the program, not of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A channel begins with one hello, and only one.
    #[error("a channel begins with one hello, and only one")]
    Hello,
    /// A packet was to be sent while the one before still lacks payload.
    #[error("{remaining} bytes of the packet before are still to be sent")]
    PayloadOwed {
        /// Bytes of payload still to come.
        remaining: u32,
    },
    /// More payload was given or taken than the packet has left.
    #[error("{found} bytes of payload where the packet has {remaining} left")]
    PayloadExceeded {
        /// Bytes given or taken.
        found: usize,
        /// Bytes the packet has left.
        remaining: u32,
    },
    /// A packet's table of offsets has another length than the channel's, or padding would make it so.
    #[error("a table of {found} offsets does not fit this channel")]
    TableLength {
        /// Entries of the packet's table, with padding.
        found: usize,
    },
}
