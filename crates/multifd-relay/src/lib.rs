//! QEMU's multifd migrations passed on, kept, replayed and looked into.
//!
//! [`relay`] stands between two QEMUs, [`receive`] writes a guest's memory to files, [`record`]
//! keeps a migration as its source sent it, [`replay`] sends it again, and [`inspect`] says what is
//! in it.
//!
//! Blocking threads, one per channel and direction; every channel has its own bounded buffers, so
//! back-pressure reaches the source. The first failure of any channel stops everything, names the
//! channel and the cause, and closes all connections, so that the source's guest runs on.

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod atomic_file;
mod connections;
mod coverage;
pub mod failure;
pub mod image;
mod ingest;
pub mod inspect;
mod keeper;
pub mod leg;
mod marks;
mod numbers;
pub mod receive;
pub mod record;
pub mod recording;
pub mod relay;
pub mod replay;
mod return_path;
mod supervise;
// The bytes between relays are no interface: docs/trunk.md describes them.
#[cfg(not(feature = "unstable-trunk"))]
#[allow(unreachable_pub, dead_code, unused_imports)]
mod trunk;
#[cfg(feature = "unstable-trunk")]
pub mod trunk;

pub use atomic_file::FileError;
pub use coverage::CoverageFault;
pub use failure::Failure;
pub use ingest::SourceSettings;
