//! Pages that are sent again, as differences: a layer over every method.
//!
//! A guest dirties pages while it moves, and a page that is sent again differs little from what was
//! sent before. So both ends of a migration keep pages in *slots*, and a page that the sender finds
//! in a slot goes as the runs of bytes that changed.
//!
//! The sender alone decides which page is in which slot ([`Sent`]); the receiver ([`Kept`]) does
//! what the packets say. Both have the same number of slots ([`slots`]). A slot has a version, 0
//! while it is empty. Each operation on a slot names the version that it expects, and makes it one
//! higher. So the operations on a slot have one order, whatever channels carry them, and a receiver
//! that gets one too early waits for those before it ([`Decoder`]).
//!
//! | operation | the packet has | afterwards the slot has |
//! | --- | --- | --- |
//! | pass | the whole page | (there is no slot) |
//! | keep | the whole page | the page |
//! | same | nothing of the page | what it had, which is the page |
//! | difference | the changed bytes | the page |
//!
//! # Waiting ends
//!
//! The sender gives out versions in the order in which it processes pages, and each channel sends
//! in this order. So the oldest operation that the receiver has not done is always the next one of
//! its channel, and can be done. One thing could keep that channel from coming so far: a
//! destination QEMU reads nothing behind a channel's SYNC before all channels have had theirs.
//! Therefore a channel's packets carry its *epoch*, the number of its SYNCs before them, and a
//! packet leaves alone a slot that a packet of a later epoch has used: its page is passed.
//!
//! # Payload
//!
//! A packet with N normal pages, at least 1, has this payload. Numbers are big-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | any | the channel's method applied to N' pages: the whole pages of the packet, in order, and then the *area*, filled up with zero bytes to whole pages. With N' = 0 there are none |
//! | D | the directory |
//! | 8 | digest |
//! | 4 | length of the area in bytes |
//! | 2 | N' |
//! | 2 | D |
//! | 1 | layout, 16, plus the method's code: 0 none, 1 zlib, 2 zstd, 3 qpl, 4 canned |
//!
//! With the method `none` the area is not filled up. The method stands here because most methods
//! have rules for the length of their packets, which these payloads do not keep: the packet's
//! header states a method without such a rule ([`Encoder::packet_method`]).
//!
//! N' is at most N: a difference has at most half the bytes of a page, and takes the place of one
//! whole page.
//!
//! The area has the differences of the packet, one after the other in the order of their pages. A
//! difference is a list of runs, each a length of at least 1, the number of unchanged bytes between
//! the end of the run before and this one, and the bytes; a length of 0 ends the list. All numbers
//! in area and directory are varints: seven bits a byte, the low ones first, and the top bit set in
//! all bytes but the last; at most 5 bytes.
//!
//! The directory has the operations on the N pages, in order, as items:
//!
//! | field | what |
//! | --- | --- |
//! | tag | `count << 4 \| each << 3 \| step << 2 \| operation`, with 0 pass, 1 keep, 2 same, 3 difference |
//! | slot | only if `step`: the first page's slot less the predicted one, zigzag |
//! | version | the version that the first page's operation expects, less that of the page before, zigzag |
//! | versions | only if `each`: the same for each further page. Otherwise their versions are the first one's |
//!
//! An item of passed pages is only its tag, with both bits 0. The predicted slot of a page is the
//! slot of the page before plus the difference of their page numbers (offset by page size); items
//! of passed pages are skipped. Before the packet's first operation on a slot, slot and version are
//! 0, and so is the predicted slot. All further pages of an item are in their predicted slots.
//!
//! The digest is XXH3-64 folded over the pages whose operation is *same* or *difference*, in order:
//! it begins as 0, and each page is hashed with the digest before it as the seed. The receiver
//! compares it before it gives out any page. So it proves the kept page, the difference and the
//! codec at once.

pub mod memory;

mod decoder;
mod difference;
mod directory;
mod encoder;
mod error;
mod foot;
mod kept;
mod places;
mod room;
mod sent;
mod shard;
mod sketch;
mod varint;

pub use decoder::Decoder;
pub use encoder::Encoder;
pub use error::{DeltaError, DirectoryFault};
pub use foot::payload_method;
pub use kept::{Kept, KeptCounts};
pub use sent::{Counts, Misses, Sent};

use multifd_wire::PageSize;
use twox_hash::XxHash3_64;

/// The number of slots in a budget of `bytes`. Both ends of a migration have to agree on it.
///
/// An end may need up to [`SLOT_BYTES`] for a slot, in addition to its page.
#[must_use]
pub fn slots(bytes: u64, page_size: PageSize) -> u32 {
    let slots = bytes / (page_size.bytes() as u64 + SLOT_BYTES);
    u32::try_from(slots).unwrap_or(MAX_SLOTS).min(MAX_SLOTS)
}

/// What a slot takes in addition to its page: the sender's entry of 24 bytes, its places in a table
/// with at least twice as many, and counters of pages that were sent.
pub const SLOT_BYTES: u64 = 64;

/// Far more than any budget has, and few enough that sums of them cannot overflow.
const MAX_SLOTS: u32 = 1 << 30;

/// One step of a packet's digest.
fn fold(digest: u64, page: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(digest, page)
}
