//! libqpl at work: Intel's IAA where there is one, libqpl's software path where there is none.
//!
//! - [`job`] owns libqpl's jobs and is the only file that calls the library;
//! - [`hardware`] keeps the device busy with a packet's pieces and brings all of them back;
//! - [`breaker`] ends the use of a device that fails;
//! - [`compressor`] makes pieces by hardware, by software or not at all, whichever works;
//! - [`probe`] finds out what there is, with reasons;
//! - [`method`] is the `qpl` method, [`zlib`] the `zlib` method made by libqpl.

mod breaker;
mod compressor;
mod hardware;
mod job;
mod method;
mod outcome;
mod probe;
mod zlib;

pub(crate) use compressor::Compressor;
pub(crate) use method::{ReadPages, WritePages};
pub(crate) use probe::{Direction, hardware, software};
pub(crate) use zlib::Deflate;

use probe::explain;
