//! Connections of QEMU's multifd migration: addresses, listening, inlets and outlets.
//!
//! All calls block, and every channel has its own bounded buffers, so back-pressure reaches the
//! source. A failure names the channel and the cause. This crate never looks inside a payload and
//! never buffers without bound.
//!
//! One channel, written by an [`Outlet`] and read by an [`Inlet`]. An
//! [`Acceptor`](incoming::Acceptor) gives the channels of real migrations.
//!
//! ```
//! use std::io::Read;
//! use std::net::Shutdown;
//! use std::os::unix::net::UnixStream;
//!
//! use multifd_codec::{Encoder, Settings};
//! use multifd_transport::Stream;
//! use multifd_transport::{Inlet, Item};
//! use multifd_transport::Outlet;
//! use multifd_wire::{BlockName, Hello, Limits, Method, Packet, PageSize, RamPacket};
//!
//! let (near, far) = UnixStream::pair()?;
//! let (near, far) = (Stream::from(near), Stream::from(far));
//!
//! // A packet with one page of sevens and one zero page.
//! let encoder = Encoder::new(Method::Zlib, &Settings::default())?;
//! let mut outlet = Outlet::open(&near, &Hello::new([0; 16], 0), encoder)?;
//! let block = BlockName::new(b"pc.ram")?;
//! let packet = RamPacket::new(PageSize::K4, block, &[0], &[4096], 0)?;
//! let mut pages = outlet.page_buffer();
//! pages.space(4096).fill(7);
//! outlet.push(packet, pages);
//! outlet.pop_and_write().map_err(|unwritten| unwritten.cause)?;
//! near.shutdown(Shutdown::Write)?;
//!
//! let mut hello = [0; Hello::LEN];
//! (&far).read_exact(&mut hello)?;
//! let hello = Hello::parse(&hello)?;
//! let mut inlet = Inlet::new(&far, &hello, Limits::default(), Settings::default())?;
//! let Item::Packet(Packet::Ram(packet)) = inlet.next_item()? else {
//!     panic!("no packet of pages");
//! };
//! assert_eq!(packet.zero(), [4096]);
//! assert_eq!(inlet.read_pages(&packet)?, [7; 4096]);
//! assert!(matches!(inlet.next_item()?, Item::End));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

mod address;
mod cancel;
pub mod circle;
pub mod cleanup;
mod clock;
mod dial;
mod escape;
pub mod failure;
pub mod incoming;
mod inlet;
mod listener;
mod moment;
mod outlet;
mod rate;
mod resolve;
mod rounds;
mod scarce;
mod splice;
mod stop;
mod stream;
mod supervise;
mod unsent;

pub use address::{Address, AddressError};
pub use cancel::Cancel;
pub use circle::Circle;
pub use clock::{Clock, Doing, Spent};
pub use dial::{DIAL_TIMEOUT, DialError, Target, is_ours};
pub use escape::{printable, printable_bytes, printable_path};
pub use failure::Failure;
pub use inlet::{Inlet, Item};
pub use listener::{ListenOptions, Listener, asks_for_socket};
pub use moment::Moment;
pub use outlet::{Outlet, Unwritten, Written, block_of};
pub use rate::{RateError, RateLimit};
pub use rounds::{Entry, RoundFault, Rounds};
pub use stop::Stop;
pub use stream::{Backlog, Layer, Stream, hung_up};
pub use supervise::report_end;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
