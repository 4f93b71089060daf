//! Guests without a hypervisor, for measuring and testing live migration.
//!
//! A guest is a shared mapping of a chosen size in a process of its own. Its memory is filled like
//! a real guest's, and written at a configurable rate while the guest runs:
//!
//! | kind | memory | writes |
//! | --- | --- | --- |
//! | `idle` | a booted Linux: four fifths zero, the rest like code, pointers, text | hardly any |
//! | `redis` | a third in use, most of it records as YCSB loads them into Redis | YCSB's workload B |
//! | `image:FILE` | the content of a file | some words of random pages |
//!
//! The initial content depends only on the [`Spec`], so the same seed gives the same memory
//! everywhere.
//!
//! There are two sides. [`serve`] is the guest's process; the calling program provides the mapping
//! and makes it trackable from outside ([`Ram`]). [`Guest`] starts such a process, provides its
//! memory as a file to be mapped, and stops and resumes it like a VMM does with a VM. They exchange
//! lines of JSON over the process's standard input and output.

mod content;
mod image;
mod linux;
mod pace;
mod process;
mod protocol;
mod random;
mod redis;
mod serve;
mod spec;

pub use process::{Guest, GuestError};
#[cfg(feature = "command")]
pub(crate) use random::Random;
pub use serve::{Ram, fill_memory, serve};
pub use spec::{Kind, Spec, SpecError};

/// The page size of these guests, which are PCs. Memory is filled in such pages, independent of the
/// host's page size.
const PAGE_BYTES: usize = 4096;
