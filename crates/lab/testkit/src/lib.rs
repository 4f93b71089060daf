//! Test helpers shared by several crates.
//!
//! - [`pages`] makes random numbers and pages with the texture of memory.
//! - [`oracle`] judges deflate data by the rules of the format and of Intel's IAA.
//! - [`allocations`] is an allocator that counts.
//! - [`process`] starts a command, and reports its output and its end.
//! - [`plain`] is a second decoder of multifd channels.
//!
//! With the feature `wire`: `wire` cuts and parses streams, and reads the vectors of
//! `testdata/wire`.
//!
//! With the feature `zlib`: `zlib` drives the C zlib as a reference.
//!
//! With the feature `engine`: `engine` has guests made of threads, and migrates them.
//!
//! With the feature `codec`:
//!
//! - `suite` has the tests that every codec must pass.
//! - `canned` parses a payload of the method `canned`.
//! - `libqpl` provides libqpl, a simulated device under it, and channels that use them.
//!
//! Without the last two features, this crate depends on none of its users, so the unit tests of
//! `page-deflate` can use it too.

pub mod allocations;
pub mod oracle;
pub mod pages;
pub mod plain;
pub mod process;

#[cfg(feature = "codec")]
pub mod canned;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "codec")]
pub mod libqpl;
#[cfg(feature = "codec")]
pub mod suite;
#[cfg(feature = "wire")]
pub mod wire;
#[cfg(feature = "zlib")]
pub mod zlib;

mod rfc1951;

/// The number of random cases of a test: `usual`, times `MULTIFD_LONG_TESTS` if set.
#[must_use]
pub fn iterations(usual: usize) -> usize {
    let factor = std::env::var("MULTIFD_LONG_TESTS")
        .ok()
        .and_then(|n| n.parse().ok());
    usual * factor.unwrap_or(1)
}
