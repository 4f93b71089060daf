//! Connections of QEMU's multifd migration: addresses, listening, inlets and outlets.
//!
//! All calls block, and every channel has its own bounded buffers, so back-pressure reaches the
//! source. A failure names the channel and the cause. This crate never looks inside a payload and
//! never buffers without bound.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod address;
mod buffer;
mod cancel;
pub mod circle;
pub mod cleanup;
pub mod dial;
pub mod endings;
pub mod escape;
pub mod failure;
pub mod incoming;
pub mod inlet;
mod listener;
pub mod outlet;
mod resolve;
pub mod rounds;
mod stop;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;
mod unsent;
mod verbatim;

pub use address::{Address, AddressError};
pub use cancel::Cancel;
pub use circle::Circle;
pub use dial::{DialError, Target};
pub use failure::Failure;
pub use listener::{ListenError, ListenOptions, Listener};
pub use resolve::ResolveError;
pub use rounds::RoundFault;
pub use stop::Stop;
pub use stream::{Connection, Stream, hung_up};
