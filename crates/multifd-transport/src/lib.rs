//! QEMU multifd migration: inlets, outlets, the relay, the receiver, recordings.
//!
//! Blocking threads, one per channel and direction; every channel has its own bounded buffers, so back-pressure reaches the source. The first
//! failure of any channel stops everything, names the channel and the cause, and closes all connections, so that the source's guest runs on.
//! This crate never looks inside a payload and never buffers without bound.

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
mod answers;
mod buffer;
mod circle;
pub mod cleanup;
mod connections;
mod control_link;
mod coverage;
pub mod destination;
pub mod dial;
mod digest;
pub mod dirty;
mod endings;
mod engine_fault;
pub mod escape;
pub mod failure;
pub mod image;
pub mod incoming;
pub mod inlet;
pub mod inspect;
mod listener;
mod marks;
pub mod memory;
mod numbers;
pub mod outlet;
mod parameters;
mod partial;
pub mod receive;
pub mod record;
pub mod recording;
pub mod relay;
pub mod replay;
mod resolve;
mod rounds;
pub mod source;
mod statistics;
mod stop;
mod stream;
mod taking;
mod unsent;
mod verbatim;
mod vm;

pub use address::{Address, AddressError};
pub use circle::Circle;
pub use coverage::CoverageFault;
pub use dial::{DialError, Target};
pub use engine_fault::EngineFault;
pub use failure::Failure;
pub use listener::{ListenError, ListenOptions, Listener};
pub use parameters::{Cancel, Parameters, UnknownZeroPageDetection, ZeroPageDetection};
pub use partial::FileError;
pub use resolve::ResolveError;
pub use rounds::RoundFault;
pub use statistics::{Arrived, Phase, Progress, Statistics};
pub use stop::Stop;
pub use stream::Stream;
pub use taking::SourceSettings;
pub use vm::{VmError, VmHandle};
