//! Real QEMUs, a tiny guest and QMP, for this workspace's tests, demo and benches.

#![forbid(unsafe_code)]

mod binary;
mod parts;

pub use binary::QemuBinary;
pub use parts::{MISSING_LOG, Part, Root, SETUP_COMMAND, Version, parts_dir, require};
