//! Real QEMUs, a tiny guest and QMP, for this workspace's tests, demo and benches.

#![forbid(unsafe_code)]

mod binary;
mod chain;
mod firmware;
mod guest;
mod memory;
mod migration;
mod parts;
mod qemu;
mod qmp;

pub use binary::QemuBinary;
pub use chain::{Chain, Hop, HopReport};
pub use guest::{Guest, MemoryFault, PAGE, Progress};
pub use memory::{Ram, compare_ram};
pub use migration::{MigrationStatus, Parameters, RamStatus};
pub use parts::{MISSING_LOG, Part, Root, SETUP_COMMAND, Version, parts_dir, require};
pub use qemu::{Config, LabError, Qemu};
pub use qmp::{Qmp, QmpError};
