//! Live migration for VMMs that are not QEMU: a source and a destination that move a running guest
//! over multifd channels.
//!
//! [`source`] sends a guest, [`destination`] takes it. A VMM lends its [`memory`], a log of what
//! its guest writes ([`dirty`]), and a [`VmHandle`] to stop, start, save and load the rest. On
//! their main connection the two ends exchange messages of their own; the channels are QEMU's.
//!
//! Blocking threads, one per channel; every channel has its own bounded buffers, so back-pressure
//! reaches the source. The first failure of any channel stops everything, names the channel and the
//! cause, and closes all connections, so that the source's guest runs on.

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

// No interface of this crate: the module's page describes the messages. Tests and fuzz
// targets see them.
#[cfg(not(feature = "unstable-formats"))]
#[allow(unreachable_pub, dead_code, unused_imports)]
mod control;
#[cfg(feature = "unstable-formats")]
pub mod control;
mod control_link;
pub mod destination;
mod digest;
pub mod dirty;
mod engine_fault;
pub mod failure;
pub mod memory;
mod parameters;
pub mod source;
mod statistics;
mod vm;

pub use engine_fault::EngineError;
pub use failure::Failure;
pub use parameters::{Parameters, UnknownZeroPageDetection, ZeroPageDetection};
pub use statistics::{Arrived, Phase, Progress, Statistics};
pub use vm::{VmError, VmHandle};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
