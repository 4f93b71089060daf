//! Uses libqpl: Intel's IAA if available, else libqpl's software path.
//!
//! - [`job`] owns libqpl's jobs and [`table`] its Huffman tables; no other file calls the library;
//! - [`hardware`] keeps the device busy with a packet's pieces and brings all of them back;
//! - [`breaker`] ends the use of a device that fails;
//! - [`compressor`] compresses pieces by hardware or software, or leaves them raw;
//! - [`probe`] finds working backends, with reasons for the others;
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
