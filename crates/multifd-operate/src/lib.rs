//! Drives the two QEMUs of a live migration over QMP, with a relay beside each of them.
//!
//! [`destination::accept`] makes a QEMU wait for a guest behind a trunk. [`source::migrate`] sends
//! a guest to such a trunk. Each of them sets what its own QEMU needs, and puts the former values
//! back, whatever the outcome is. Each runs its relay in threads of this process.
//!
//! QEMU is not trusted: its lines have a length limit, its answers a time limit, and unknown
//! states, events and fields change nothing.

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![forbid(unsafe_code)]
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

mod carrier;
mod course;
pub mod destination;
mod failure;
mod folder;
mod news;
pub mod qemu;
pub mod qmp;
pub mod settings;
pub mod source;

pub use failure::{Failure, Whereabouts};
pub use news::{News, Progress};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
