//! Which pages a guest has written: bitmaps, and the logs that fill them.

mod bitmap;
mod pagemap;
#[cfg(feature = "vm-memory")]
mod vm_memory;

use std::error::Error;
use std::io;

pub use bitmap::DirtyBitmap;
pub use pagemap::{PagemapLog, WriteTracking};
#[cfg(feature = "vm-memory")]
pub use vm_memory::AtomicBitmapLog;

/// A record of what the guest writes, kept by someone: the kernel, a hypervisor, a VMM.
///
/// A page that is written between two fetches must be in the second, whatever else happens at the time; what is written
/// during a fetch must be in it or in the next. That a page is reported although nobody wrote it costs only time.
pub trait DirtyLog: Send {
    /// Begins to take notice. What was written before need not be reported.
    ///
    /// # Errors
    ///
    /// When this machine or this guest cannot be tracked.
    fn start(&mut self) -> Result<(), DirtyLogError>;

    /// Adds what was written since the last fetch to `dirty`, which has one bitmap for each RAM block, in the order of
    /// [`GuestMemory::blocks`](crate::memory::GuestMemory::blocks), and forgets it.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError>;

    /// Takes no more notice. Called once after each `start` that went well, however the migration ended.
    fn stop(&mut self);
}

/// A log that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyLogError {
    /// The kernel is too old, or was built without something.
    #[error("{what} needs Linux {since} or later, with {config}; this is {found}")]
    Kernel {
        /// What it lacks.
        what: &'static str,
        /// The first release that has it.
        since: &'static str,
        /// The options with which it is built.
        config: &'static str,
        /// The release that runs.
        found: String,
    },
    /// The system refused.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The log is kept of other blocks than the guest has.
    #[error("the log is of {found} blocks, the guest has {expected}")]
    Blocks {
        /// How many the log knows.
        found: usize,
        /// How many the guest has.
        expected: usize,
    },
    /// A log of the caller's failed.
    #[error("the dirty log failed")]
    Other(#[from] Box<dyn Error + Send + Sync>),
}
