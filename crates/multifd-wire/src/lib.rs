//! QEMU multifd migration: the bytes on the wire, without IO.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod channel;
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
pub use fault::{Fault, Misuse};
pub use flags::{Flags, Method, UnknownMethod, UnknownMethodName};
pub use hello::{Hello, MAGIC, VERSION};
pub use idstr::{BlockName, IdStr, IdStrError};
pub use limits::Limits;
pub use packet::{DeviceStatePacket, Packet, RamPacket};
pub use page_size::{PACKET_BYTES, PageSize, PageSizeError};
