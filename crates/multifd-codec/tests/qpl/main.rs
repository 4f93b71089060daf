//! The codecs that libqpl makes, on its software path and on its hardware path with a simulated device.
//!
//! They need libqpl, and say so by name where it is missing.

#[path = "../deflate/zlib.rs"]
#[allow(dead_code, reason = "shared with the deflate tests")]
mod c_zlib;
#[path = "../suite/canned.rs"]
mod canned_parts;
#[path = "../deflate/pages.rs"]
mod pages;
#[macro_use]
#[path = "../suite/mod.rs"]
mod suite;

mod canned;
mod choice;
mod conformance;
mod faults;
mod reading;
mod support;
