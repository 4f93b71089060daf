//! The page deflate codec against the C zlib, in both directions, and against its own judge.
//!
//! `MULTIFD_LONG_TESTS=N` multiplies the number of random cases by N.

mod encode;
mod inflate;
mod long;
mod oracle;
mod page;
mod pages;
mod zlib;

/// So many random cases, or more on demand.
fn iterations(usual: usize) -> usize {
    let factor = std::env::var("MULTIFD_LONG_TESTS")
        .ok()
        .and_then(|n| n.parse().ok());
    usual * factor.unwrap_or(1)
}
