//! Real QEMUs, a tiny guest and QMP, for this workspace's tests, demo and benches.
//!
//! A [`Guest`] runs in a [`Qemu`] which a [`Config`] starts; a [`Chain`] moves it from QEMU to
//! QEMU, plainly or through something in between, and checks it after every [`Hop`]. QEMUs come
//! from `target/parts`, which `cargo xtask setup` fills; a test that finds none says so through
//! [`require`](require()).
//!
//! ```no_run
//! use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};
//!
//! # fn start_relay(to: &str) -> String { to.to_owned() }
//! let Some(qemu) = QemuBinary::require(Version::V10_0) else { return };
//! let mut chain = Chain::start(&qemu, &Guest::default(), "pc-q35-10.0").unwrap();
//! let hop = Hop::to(&qemu, &Parameters::multifd(4, "none"));
//! chain.hop(&hop).unwrap();
//! chain.hop_via(&hop, |destination| start_relay(destination)).unwrap();
//! ```
//!
//! # What plain migrations do
//!
//! Seen with QEMU 7.2.22, 10.0.2 and 11.1.3 under TCG, and relied upon here:
//!
//! - After a plain migration of this guest no page of its memory differs, stopped or running: the
//!   guest has no firmware and no tables which the machine itself would write to. So each hop
//!   compares every byte of both ends.
//! - A source whose guest has gone (`postmigrate`) refuses to send it again. Two ways of travelling
//!   are compared by going them one after the other with a stopped guest, whose memory stays as it
//!   is.
//! - A hop costs 0.12 s with an otherwise idle processor, of which starting a QEMU takes 0.03 s.
//! - 7.2 loses writes of a guest under TCG, with and without multifd, unless the guest does what
//!   this one does (see `firmware.rs`).
//! - 7.2 as a source of zlib or zstd calls about one migration in a hundred failed ("Broken pipe")
//!   after the destination has it complete: it writes a last, empty packet to a channel that the
//!   destination has closed.

#![forbid(unsafe_code)]

mod binary;
mod capture;
mod chain;
mod firmware;
mod guest;
mod memory;
mod migration;
mod pages;
mod parts;
mod qemu;
mod qmp;
mod tee;

pub use binary::QemuBinary;
pub use capture::{Capture, CaptureConfig};
pub use chain::{Chain, Hop, HopReport};
pub use guest::{Content, Guest, MemoryFault, PAGE, Progress};
pub use memory::{Ram, compare_ram};
pub use migration::{MigrationStatus, Parameters, RamStatus};
pub use pages::guest_pages;
pub use parts::{
    MISSING_LOG, Part, Root, SETUP_COMMAND, Version, not_run, parts_dir, require, require_opened,
};
pub use qemu::{Config, LabError, Qemu, cpu_time};
pub use qmp::{Qmp, QmpError};
pub use tee::Connection;
