//! Methods that compress every page by itself: `qpl`, and `canned` between two ends of our own.
//!
//! - [`write`] makes the list of pages, which both have in common;
//! - [`read`] reads it, on an IAA (`device`) or in software;
//! - [`in_software`] compresses pages in software, `crate::qpl` by libqpl;
//! - [`qpl`] and [`canned`] are the two methods.

pub(crate) mod canned;
#[cfg(feature = "qpl")]
mod device;
mod in_software;
pub(crate) mod qpl;
mod read;
pub(crate) mod write;

pub(crate) use in_software::{Code, OwnPages};
pub(crate) use read::PageReader;
#[cfg(feature = "qpl")]
pub(crate) use write::{CompressPages, WritePages};
