//! The encoders and decoders against the C zlib, in both directions, and against the judge.
//!
//! `MULTIFD_LONG_TESTS=N` multiplies the number of random cases by N.

mod encode;
mod inflate;
mod long;
mod page;
mod several;
