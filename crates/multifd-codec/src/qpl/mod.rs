//! libqpl at work: Intel's IAA where there is one, libqpl's software path where there is none.
//!
//! - [`job`] owns libqpl's jobs and [`table`] its Huffman tables; no other file calls the library;
//! - [`hardware`] keeps the device busy with a packet's pieces and brings all of them back;
//! - [`breaker`] ends the use of a device that fails;
//! - [`compressor`] makes pieces by hardware, by software or not at all, whichever works;
//! - [`probe`] finds out what there is, with reasons;
//! - [`pages`] compresses page by page, [`zlib`] is the `zlib` method made by libqpl.

mod bits;
mod breaker;
mod compressor;
mod hardware;
mod job;
mod outcome;
mod pages;
mod probe;
mod table;
mod zlib;

pub(crate) use compressor::Compressor;
pub(crate) use hardware::{Batch, Hardware, Landed};
pub(crate) use job::Work;
pub(crate) use pages::PageCompressor;
pub(crate) use probe::{Direction, hardware, software, software_bodies};
pub(crate) use zlib::Deflate;

use probe::explain;
