//! Measures live migration on your own hosts, without a hypervisor.
//!
//! - [`guests`] are processes whose memory is filled and written like a real guest's.
//! - [`links`] simulates the network between two hosts on one machine.
//!
//! The command `multifd-bench` moves such guests over such links, and predicts migrations. It is
//! the module `command`, behind the default feature `command`; the rest of the library has few
//! dependencies.

#![warn(unreachable_pub)]
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

#[cfg(feature = "command")]
pub mod command;
pub mod guests;
pub mod links;
#[cfg(feature = "command")]
mod plan;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
