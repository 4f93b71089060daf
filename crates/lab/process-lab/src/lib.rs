//! A running process as a guest, without its knowledge: a workload that nobody made for the
//! purpose.
//!
//! A process's private memory cannot be mapped elsewhere. So there is a copy of it ([`Captive`]),
//! which the source engine sends: all of it when the tracking begins, and afterwards each page
//! again that the kernel says was written. Tracking takes a userfaultfd in the process itself,
//! which is made there by `ptrace(2)` while the process stands still for a moment. Only on x86-64.
#![deny(unsafe_code)]
#![cfg(target_arch = "x86_64")]

mod captive;
mod injection;
mod ranges;

pub use captive::{Captive, CopyLog, Freezer};
