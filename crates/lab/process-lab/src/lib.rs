//! Uses a running process as a guest, without its knowledge: a workload not made for tests.
//!
//! A process's private memory cannot be mapped elsewhere. So the source engine sends a copy of it
//! ([`Captive`]): all of it when the tracking begins, and then each page again that the kernel
//! reports as written. Tracking needs a userfaultfd inside the process, which `ptrace(2)` creates
//! there while the process is stopped for a moment. Only on x86-64.
#![deny(unsafe_code)]
#![cfg(target_arch = "x86_64")]

mod captive;
mod injection;
mod ranges;

pub use captive::{Captive, CopyLog, Freezer};
