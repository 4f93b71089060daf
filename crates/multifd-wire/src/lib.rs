//! QEMU multifd migration: the bytes on the wire, without IO.
//!
//! A QEMU that migrates a VM with `multifd` sends the guest's memory over several connections, the
//! *channels*, and everything else over one more, the *main channel*. This crate parses and writes
//! these streams. It has no socket, no thread, no clock and no `unsafe`; it needs `alloc` and not
//! `std`.
//!
//! # A channel
//!
//! ```text
//! hello   packet [payload]   packet [payload]   packet   ...
//! ```
//!
//! A [`ChannelReceiver`] gets a channel's bytes in any cut and returns [`Event`]s: the [`Hello`],
//! each [`Packet`]'s header, pieces of its payload. The content of a payload depends on its
//! [`Method`]; [`lengths`] reads the table of lengths that begins the payloads of two methods. A
//! [`ChannelSender`] is the counterpart.
//!
//! ```
//! use multifd_wire::{ChannelReceiver, ChannelSender, Event, Fault, Hello, Limits, Packet};
//! use multifd_wire::{BlockName, PageSize, RamPacket};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A channel of our own: a hello, a packet with two pages, a SYNC.
//! let mut bytes = Vec::new();
//! let mut sender = ChannelSender::new();
//! let hello = Hello::new([0; 16], 0);
//! sender.hello(&hello, &mut bytes)?;
//! let pages = RamPacket::new(PageSize::K4, BlockName::try_from("pc.ram")?, &[0, 4096], &[], 0)?;
//! sender.packet(&pages.into(), &mut bytes)?;
//! bytes.extend([0x5a; 2 * 4096]);
//! sender.payload_sent(2 * 4096)?;
//! sender.packet(&RamPacket::sync(PageSize::K4, 1).into(), &mut bytes)?;
//!
//! // Taken apart again, in pieces of 1000 bytes.
//! let mut receiver = ChannelReceiver::new(Limits::default());
//! let mut payload = Vec::new();
//! let mut syncs = 0;
//! for mut piece in bytes.chunks(1000) {
//!     while let Some(event) = receiver.push(&mut piece)? {
//!         match event {
//!             Event::Hello(hello) => assert_eq!(hello.channel, 0),
//!             Event::Packet(Packet::Ram(packet)) if packet.is_sync() => syncs += 1,
//!             Event::Packet(Packet::Ram(packet)) => {
//!                 assert_eq!(packet.block().as_bytes(), b"pc.ram");
//!                 assert_eq!(packet.normal(), [0, 4096]);
//!             }
//!             Event::Packet(Packet::DeviceState(_)) | Event::Padding { .. } => {}
//!             Event::Payload(piece) => payload.extend_from_slice(piece),
//!         }
//!     }
//! }
//! receiver.finish()?;
//! assert_eq!(payload, [0x5a; 2 * 4096]);
//! assert_eq!(syncs, 1);
//!
//! // A lie has a name.
//! bytes[64] = 0;
//! let mut receiver = ChannelReceiver::new(Limits::default());
//! let mut rest = bytes.as_slice();
//! receiver.push(&mut rest)?;
//! let fault = Fault::Magic { found: 0x0022_3344, allowed: 0x1122_3344 };
//! assert_eq!(receiver.push(&mut rest), Err(fault));
//! # Ok(())
//! # }
//! ```
//!
//! # The main channel
//!
//! [`main_stream`] reads it along with the destination, as far as that is possible without
//! knowledge of every device: the RAM blocks, the marks at which the channels synchronise, the end.
//! [`return_path`] reads the destination's answers.
//!
//! # Hostile peers
//!
//! A peer can only be refused. Every number from the wire is compared with a limit of the format or
//! of [`Limits`] before it is used; a violation is a [`Fault`] with the value found and the allowed
//! one. No such number sizes an allocation: a machine holds one header at most, and the reader of
//! the main channel also the list of RAM blocks.
//!
//! # Versions
//!
//! Streams of QEMU 4.0 to 11 are read, with the peculiarities of each. Statements about a version
//! were observed on running QEMUs (7.2 and 10.0 in most cases) and their streams.

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod channel;
mod escape;
mod fault;
mod flags;
mod hello;
mod idstr;
pub mod lengths;
mod limits;
pub mod main_stream;
mod packet;
mod page_size;
mod reader;
pub mod return_path;

pub use channel::{ChannelReceiver, ChannelSender, Event};
pub use escape::Printable;
pub use fault::{Fault, Misuse};
pub use flags::{Flags, Method, UnknownMethod, UnknownMethodName};
pub use hello::{Hello, MAGIC, MAX_CHANNELS, VERSION};
pub use idstr::{BlockName, IdStr, IdStrError};
pub use limits::Limits;
pub use packet::{DeviceStatePacket, Packet, RamPacket};
pub use page_size::{PACKET_BYTES, PageSize, PageSizeError};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
