//! Faults in a peer's bytes, and mistakes of a caller.

use crate::page_size::PageSize;

/// A peer's bytes break a rule of the format or a limit. Each variant has the value found and, if
/// there is a choice, the allowed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A wrong magic number.
    #[error("magic number {found:#010x} instead of {allowed:#010x}")]
    Magic {
        /// The number found.
        found: u32,
        /// The only number allowed.
        allowed: u32,
    },
    /// A version that this crate does not support.
    #[error("version {found} instead of {allowed}")]
    Version {
        /// The version stated.
        found: u32,
        /// The only version allowed.
        allowed: u32,
    },
    /// The stream ends in the middle of an element.
    #[error("the stream ends at least {missing} bytes early")]
    Truncated {
        /// Bytes missing for the next step.
        missing: usize,
    },
    /// A packet has both the SYNC and the device-state flag.
    #[error("flags {flags:#x} mark both a synchronisation and device state")]
    SyncWithDeviceState {
        /// The flag word.
        flags: u32,
    },
    /// The table of the first packet with pages has a length that matches no page size.
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
    /// A required name is empty.
    #[error("an empty name")]
    EmptyName,
    /// A name fills its field without a NUL, or has a NUL within its stated length.
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
    /// The length of a page in a length table is not between 1 and the page size.
    #[error("page {page} is stated to have {found} bytes, 1 to {most} are allowed")]
    PageLength {
        /// The page's index in the packet, from 0.
        page: usize,
        /// The length stated.
        found: usize,
        /// The longest allowed: the page size.
        most: usize,
    },
    /// The sum of a length table differs from the length of the data after the table.
    #[error("the pages of a length table have {found} bytes together, {allowed} follow the table")]
    LengthSum {
        /// The sum of the table.
        found: usize,
        /// The bytes after the table.
        allowed: usize,
    },
    /// A name is too long.
    #[error("a name of {found} bytes, {allowed} are allowed")]
    NameLength {
        /// Bytes stated.
        found: usize,
        /// Most bytes allowed.
        allowed: usize,
    },
    /// The configuration has a subsection that this crate does not know, so its length is unknown.
    #[error("an unknown subsection in the configuration")]
    UnknownSubsection,
    /// The configuration states a page size that this crate does not accept.
    #[error("pages of {found} address bits, {least} to {most} are allowed")]
    PageBits {
        /// Bits stated.
        found: u32,
        /// Bits of the smallest page.
        least: u32,
        /// Bits of the largest page.
        most: u32,
    },
    /// The configuration lists more capabilities than allowed.
    #[error("{found} capabilities in the configuration, {allowed} are allowed")]
    Capabilities {
        /// Number stated.
        found: u32,
        /// Most allowed.
        allowed: u32,
    },
    /// The main stream is a `mapped-ram` file, which has no multifd channels.
    #[error("the stream is in the mapped-ram layout")]
    MappedRam,
    /// The main stream continues with a byte that begins no element allowed here.
    #[error("no element of the main stream begins with {found:#04x} here")]
    Element {
        /// The byte.
        found: u8,
    },
    /// A section continues that has not begun, or begins a second time.
    #[error("section {found} is out of turn")]
    SectionId {
        /// The section's number.
        found: u32,
    },
    /// More live sections have begun than allowed.
    #[error("more than {allowed} live sections")]
    LiveSections {
        /// Most allowed.
        allowed: usize,
    },
    /// A section's footer has the number of another section.
    #[error("the footer of section {found} ends section {allowed}")]
    Footer {
        /// The number in the footer.
        found: u32,
        /// The section's number.
        allowed: u32,
    },
    /// A command of the main stream has an invalid length.
    #[error("command {command} with {found} bytes")]
    CommandLength {
        /// The command's number.
        command: u16,
        /// The length stated.
        found: u16,
    },
    /// A word of the RAM section is no record allowed here.
    #[error("{found:#x} is no record of the RAM section here")]
    Record {
        /// The word.
        found: u64,
    },
    /// The main stream lists more RAM blocks than allowed.
    #[error("more than {allowed} RAM blocks")]
    Blocks {
        /// Most allowed.
        allowed: usize,
    },
    /// A RAM block is longer than allowed, or than the list's total leaves for it.
    #[error("a RAM block of {found:#x} bytes, {allowed:#x} are allowed")]
    BlockLength {
        /// The length stated.
        found: u64,
        /// The longest allowed.
        allowed: u64,
    },
    /// The list of RAM blocks has the same name twice.
    #[error("RAM block {index} has the name of one before it")]
    BlockRepeated {
        /// The block's index in the list, from 0.
        index: usize,
    },
    /// A record of the RAM section names an unlisted block, or none at all.
    #[error("a record of a RAM block which is not in the list")]
    UnknownBlock,
    /// The fill byte of a zero page's record is not zero.
    #[error("a zero page filled with {found:#04x}")]
    ZeroFill {
        /// The byte.
        found: u8,
    },
    /// Postcopy is on and the blocks have pages of several sizes: the layout of the list of blocks
    /// is then ambiguous.
    #[error("postcopy with host page sizes {found:#x}")]
    PostcopyPageSizes {
        /// All page sizes, one bit each.
        found: u64,
    },
    /// Bytes follow the end of the main stream.
    #[error("bytes after the end of the main stream")]
    AfterEnd,
    /// A message on the return path has an unknown type.
    #[error("return path message of type {found}")]
    MessageType {
        /// The type.
        found: u16,
    },
    /// A message on the return path has an invalid length for its type.
    #[error("return path message of type {message} with {found} bytes")]
    MessageLength {
        /// The type.
        message: u16,
        /// The length stated.
        found: u16,
    },
    /// A bitmap on the return path does not end with its mark.
    #[error("a bitmap ends with {found:#018x} instead of {allowed:#018x}")]
    BitmapEnd {
        /// The word found.
        found: u64,
        /// The only word allowed.
        allowed: u64,
    },
}

/// The caller made a call out of turn. A bug of the program, not of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A channel begins with one hello, and only one.
    #[error("a channel begins with one hello, and only one")]
    Hello,
    /// A packet was to be sent before the payload of the preceding one was complete.
    #[error("{remaining} bytes of the packet before are still to be sent")]
    PayloadOwed {
        /// Remaining bytes of payload.
        remaining: u32,
    },
    /// More payload was sent or taken than the packet has left.
    #[error("{found} bytes of payload where the packet has {remaining} left")]
    PayloadExceeded {
        /// Bytes sent or taken.
        found: usize,
        /// Bytes left in the packet.
        remaining: u32,
    },
    /// A packet's table of offsets differs in length from the channel's, or would do so with the
    /// padding.
    #[error("a table of {found} offsets does not fit this channel")]
    TableLength {
        /// Entries of the packet's table, including padding.
        found: usize,
    },
}
