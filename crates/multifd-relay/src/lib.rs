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
        clippy::panic,
        clippy::unreachable
    )
)]

// Bytes are no interface of this crate: `docs` describes the trunk's, and `inspect` and `replay`
// read recordings. Tests and fuzz targets see them; tests also have the ends of TLS.
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
// Bytes are no interface of this crate, so `recording` and `trunk` are private: `docs` describes
// the trunk's bytes, and `inspect` and `replay` read recordings. Tests and fuzz targets see them.
#[cfg(not(feature = "unstable-formats"))]
#[allow(unreachable_pub, dead_code, unused_imports)]
mod recording;
#[cfg(feature = "unstable-formats")]
pub mod recording;
pub mod relay;
pub mod replay;
mod return_path;
mod supervise;
#[cfg(all(feature = "tls", not(feature = "unstable-formats")))]
#[allow(unreachable_pub, dead_code, unused_imports)]
mod tls;
#[cfg(all(feature = "tls", feature = "unstable-formats"))]
pub mod tls;
#[cfg(not(feature = "unstable-formats"))]
#[allow(unreachable_pub, dead_code, unused_imports)]
mod trunk;
#[cfg(feature = "unstable-formats")]
pub mod trunk;

pub use atomic_file::{FileError, write_new};
pub use failure::Failure;
pub use ingest::SourceSettings;
pub use recording::RecordingError;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
