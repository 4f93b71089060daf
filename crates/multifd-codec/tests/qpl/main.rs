//! The codecs that libqpl makes, on its software path and on its hardware path with a simulated
//! device.
//!
//! They need libqpl, and say so by name where it is missing.

mod canned;
mod choice;
mod conformance;
mod faults;
mod reading;
