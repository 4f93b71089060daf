//! Live migration measured on hosts of one's own, without a hypervisor.
//!
//! - [`guests`] are processes whose memory is filled and written as a real guest's is.
//! - [`links`] makes what two hosts have between them, on one machine.
//!
//! The command `multifd-bench` moves such guests over such links. It is the module `command`,
//! behind the feature `command`, which is on by default; the rest of the library needs little else.

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
