//! Sends a page again as the difference to its former content: a layer over every method.
//!
//! A guest dirties pages while it moves, and a page that is sent again usually differs in few
//! bytes. So both ends of a migration keep pages in *slots*. For a page that is in a slot, the
//! sender sends the runs of bytes that changed.
//!
//! The sender alone decides which page is in which slot ([`Sent`]). The receiver ([`Kept`]) carries
//! out the operations in the packets. Both have the same number of slots ([`slots`]). A slot has a
//! version, 0 while it is empty. Each operation on a slot names the version that it expects, and
//! adds one to it. So the operations on a slot have one order, even over several channels. A
//! receiver that reads an operation too early waits for the earlier ones ([`Decoder`]).
//!
//! | operation | content in the packet | content of the slot afterwards |
//! | --- | --- | --- |
//! | pass | the whole page | (there is no slot) |
//! | keep | the whole page | the page |
//! | same | none | unchanged: the page |
//! | difference | the changed bytes | the page |
//!
//! A receiver that holds all pages in place, and to which nobody else writes, needs no slots: the
//! base of a page is the page that came last at the same offset ([`Decoder::in_place`]). The sender
//! has slots for its own copies only ([`Sent::in_place`]), so its budget is its own decision. Such
//! a sender must not send a page again before the receiver has confirmed the first time. So
//! operations need no order, and their receiver never waits.
//!
//! # Waiting ends
//!
//! The sender gives out versions in the order in which it processes pages, and each channel sends
//! in this order. So the oldest operation that the receiver has not done is always the next one of
//! its channel, and needs no other. But a destination QEMU reads a channel only as far as its SYNC
//! until all channels have reached theirs. So before its SYNC a channel must not need an operation
//! that stands behind the SYNC of another channel. Therefore each packet has an *epoch*, the number
//! of SYNCs before it in its channel. If a packet of a later epoch has used a page's slot, the page
//! is passed.
//!
//! # Payload
//!
//! A packet with N normal pages, at least 1, has this payload. Numbers are big-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | any | N' pages in the channel's method: the whole pages of the packet, in order, and then the *area*, filled up with zero bytes to whole pages. Nothing if N' = 0 |
//! | D | the directory |
//! | 8 | digest |
//! | 4 | length of the area in bytes |
//! | 2 | N' |
//! | 2 | D |
//! | 1 | layout, 16 for slots or 32 for pages in place, plus the method's code: 0 none, 1 zlib, 2 zstd, 3 qpl, 4 canned |
//!
//! With the method `none` the area is not filled up. The last byte names the method because the
//! packet's header cannot: most methods have rules for the length of a packet, and these payloads
//! do not keep them. So the header states a method without such a rule
//! ([`Encoder::packet_method`]).
//!
//! N' is at most N: a difference has at most half the bytes of a page, and takes the place of one
//! whole page.
//!
//! The area has the packet's differences, in the order of their pages. A difference is a list of
//! runs. A run is its length (at least 1), the number of unchanged bytes since the end of the run
//! before, and its bytes. A length of 0 ends the list. All numbers in area and directory are
//! varints of at most 5 bytes: seven bits in each byte, the low ones first, and the top bit set in
//! all bytes but the last.
//!
//! The directory has the operations on the N pages, in order, as items:
//!
//! | field | content |
//! | --- | --- |
//! | tag | `count << 4 \| each << 3 \| step << 2 \| operation`, with 0 pass, 1 keep, 2 same, 3 difference |
//! | slot | only if `step`: the first page's slot less the predicted one, zigzag |
//! | version | the version that the first page's operation expects, less that of the page before, zigzag |
//! | versions | only if `each`: the same for each further page. Otherwise further pages have the first page's version |
//!
//! An item of passed pages is only its tag, with both bits 0. The predicted slot of a page is the
//! slot of the page before plus the difference of their page numbers (offset by page size). "The
//! page before" is never a passed one. Before the packet's first operation on a slot, slot, version
//! and predicted slot are 0. All further pages of an item are in their predicted slots.
//!
//! With pages in place an item is only its tag, with both bits 0, and no page is kept: *pass*,
//! *same* and *difference* are left.
//!
//! The digest is XXH3-64 over the pages whose operation is *same* or *difference*, in order: each
//! page is hashed with the digest so far as the seed, and the first seed is 0. The receiver
//! compares it before it gives out any page. So it checks kept page, difference and codec at once.

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
pub use error::DeltaError;
pub use foot::payload_method;
pub use kept::{Kept, KeptCounts};
pub use sent::{Counts, Misses, Sent};

use multifd_wire::PageSize;
use twox_hash::XxHash3_64;

/// The place where a receiver has the pages that differences are made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bases {
    /// [`Kept`] has copies of them.
    Slots,
    /// They are the pages themselves.
    InPlace,
}

/// The number of slots in a budget of `bytes`. Both ends of a migration have to agree on it.
///
/// An end may need up to 64 bytes for a slot, in addition to its page.
#[must_use]
pub fn slots(bytes: u64, page_size: PageSize) -> u32 {
    let slots = bytes / (page_size.bytes() as u64 + SLOT_BYTES);
    u32::try_from(slots).unwrap_or(MAX_SLOTS).min(MAX_SLOTS)
}

/// Bytes that a slot takes in addition to its page: the sender's entry of 24 bytes, its share of
/// the table of places, and counters of sent pages.
const SLOT_BYTES: u64 = 64;

/// The most slots: far more than any budget has, and few enough that their sums cannot overflow.
const MAX_SLOTS: u32 = 1 << 30;

/// The digest with one more page.
fn fold(digest: u64, page: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(digest, page)
}
