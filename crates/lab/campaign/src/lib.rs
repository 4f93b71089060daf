//! Runs migrations with faults at random places, and gives a verdict on each.
#![forbid(unsafe_code)]

pub mod around;
pub mod campaign;
pub mod codec;
pub mod destination;
pub mod ends;
pub mod engines;
pub mod fault;
pub mod kind;
pub mod link;
pub mod net;
mod placing;
pub mod plan;
pub mod pool;
pub mod preface;
pub mod process;
pub mod qemu;
pub mod random;
pub mod receivers;
pub mod relays;
pub mod scenario;
pub mod source;
pub mod stranger;
pub mod verdict;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also after a panic of another holder.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
