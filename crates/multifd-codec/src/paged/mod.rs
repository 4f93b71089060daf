//! Methods that compress every page by itself: `qpl`, and `canned` between two ends of our own.
//!
//! - [`write`] makes the list of pages that both have in common;
//! - [`read`] reads it, by an IAA (`device`) or here;
//! - [`in_software`] compresses pages here, libqpl does it in `crate::qpl`;
//! - [`qpl`] is the one method, [`canned`] the other.

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
