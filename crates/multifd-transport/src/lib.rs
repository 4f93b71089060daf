//! QEMU multifd migration: inlets, outlets, the relay, the receiver, recordings.
//!
//! Blocking threads, one per channel and direction; every channel has its own bounded buffers, so back-pressure reaches the source. The first
//! failure of any channel stops everything, names the channel and the cause, and closes all connections, so that the source's guest runs on.
//! This crate never looks inside a payload and never buffers without bound.

mod address;
mod buffer;
pub mod failure;
pub mod incoming;
pub mod inlet;
pub mod outlet;
pub mod relay;
mod stream;
mod verbatim;

pub use address::{Address, AddressError};
pub use failure::Failure;
pub use stream::{Listener, Stream};
