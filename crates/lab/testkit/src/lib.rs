//! Helpers that the tests of several crates share.
//!
//! - [`pages`] makes random numbers and pages with the texture of memory.
//! - [`oracle`] judges deflate data by the rules of the format and of Intel's IAA.
//! - [`allocations`] is an allocator that counts.
//! - [`process`] starts a command, and tells what it prints and how it ends.
//!
//! - [`plain`] is a second decoder of multifd channels.
//!
//! With the feature `wire`: `wire` cuts streams, takes them apart, and reads the vectors of
//! `testdata/wire`.
//!
//! With the feature `zlib`: `zlib` drives the C zlib as a reference.
//!
//! With the feature `engine`: `engine` has guests that are threads, and migrates them.
//!
//! With the feature `codec`:
//!
//! - `suite` has the tests that every codec must pass.
//! - `canned` takes a payload of the method `canned` apart.
//! - `libqpl` gives libqpl, a simulated device under it, and channels that use them.
//!
//! This crate depends on no crate that uses it without the last two, so the unit tests of
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

/// How many random cases a test tries: `usual`, or `MULTIFD_LONG_TESTS` times as many.
#[must_use]
pub fn iterations(usual: usize) -> usize {
    let factor = std::env::var("MULTIFD_LONG_TESTS")
        .ok()
        .and_then(|n| n.parse().ok());
    usual * factor.unwrap_or(1)
}
