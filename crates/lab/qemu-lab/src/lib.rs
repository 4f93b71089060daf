//! Real QEMUs, a tiny guest and QMP for this workspace's tests, demo and benches.
//!
//! A [`Guest`] runs in a [`Qemu`], which a [`Config`] starts; a [`Chain`] moves it from QEMU to
//! QEMU, directly or through a relay, and checks it after every [`Hop`]. QEMUs come from
//! `target/parts`, which `cargo xtask setup` fills; a test without one reports so through
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
//! # Behaviour of plain migrations
//!
//! Observed with QEMU 7.2.22, 10.0.2 and 11.1.3 under TCG, and relied upon here:
//!
//! - After a plain migration of this guest, stopped or running, no page of its memory differs: the
//!   guest has no firmware and no tables that the machine itself would write to. So each hop
//!   compares every byte of both ends.
//! - A source whose guest has left (`postmigrate`) refuses to send it again. Two paths are compared
//!   by using them one after the other with a stopped guest, whose memory does not change.
//! - A hop costs 0.12 s with an otherwise idle processor; starting a QEMU takes 0.03 s of that.
//! - 7.2 loses writes of a guest under TCG, with and without multifd, without the workaround of
//!   this guest (see `firmware.rs`).
//! - 7.2 as a source of zlib or zstd reports about one migration in a hundred as failed ("Broken
//!   pipe") after the destination has completed it: it writes a last, empty packet to a channel
//!   that the destination has closed.

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
mod tee;

pub use binary::QemuBinary;
pub use capture::{Capture, CaptureConfig};
pub use chain::{Chain, Hop, HopReport};
pub use guest::{Content, Guest, MemoryFault, PAGE, Progress};
pub use memory::{Ram, compare_ram};
pub use migration::Parameters;
pub use multifd_operate::qemu::{MigrationStatus, RamStatus};
pub use multifd_operate::qmp::{Qmp, QmpError};
pub use pages::guest_pages;
pub use parts::{
    MISSING_LOG, Part, Root, SETUP_COMMAND, Version, not_run, parts_dir, require, require_opened,
};
pub use qemu::{Config, LabError, Qemu, cpu_time};
pub use tee::Connection;
