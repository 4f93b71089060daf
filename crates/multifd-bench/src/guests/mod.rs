//! Guests without a hypervisor, to measure and test live migration with.
//!
//! A guest is a shared mapping of a chosen size in a process of its own. Its memory is filled as a
//! real guest's is, and written at a settable rate while the guest runs:
//!
//! | kind | memory | writes |
//! | --- | --- | --- |
//! | `idle` | a booted Linux: four fifths zero, the rest like code, pointers, text | hardly any |
//! | `redis` | a third in use, most of it records as YCSB loads them into Redis | YCSB's workload B |
//! | `image:FILE` | that of a file | some words of random pages |
//!
//! What is there at the start depends on nothing but the [`Spec`], so the same seed gives the same
//! memory everywhere.
//!
//! There are two sides. [`serve`] is the guest's process; how its memory is mapped, and made
//! trackable from outside, is up to the program that calls it ([`Ram`]). [`Guest`] starts such a
//! process, hands out its memory as a file to be mapped, and stops and resumes it as a VMM does
//! with a VM. They speak lines of JSON over the process's standard input and output.

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
pub use serve::{Ram, fill_memory, serve};
pub use spec::{Kind, Spec, SpecError};

/// The page size of these guests, which are PCs. Memory is filled in such pages, whatever the
/// host's are.
const PAGE_BYTES: usize = 4096;
