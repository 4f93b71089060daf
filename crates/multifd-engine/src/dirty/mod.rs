//! Dirty bitmaps, and the logs that fill them.

mod bitmap;
mod marks;
mod pagemap;
#[cfg(feature = "vm-memory")]
mod vm_memory;

use std::error::Error;
use std::io;

pub use bitmap::DirtyBitmap;
pub use marks::{MarkedLog, Marks};
pub(crate) use pagemap::ResidentPages;
pub use pagemap::{PagemapLog, WriteTracking};
#[cfg(feature = "vm-memory")]
pub use vm_memory::AtomicBitmapLog;

/// A record of what changes in guest memory. The kernel, a hypervisor or the VMM keeps it.
///
/// A page that is written between two fetches must be in the second, whatever else happens at the
/// time. A page that is written during a fetch must be in that fetch or in the next. A page that is
/// reported without a write costs only time.
///
/// # What each log sees
///
/// Guest memory changes in more ways than any one log sees. A page that no log reports is old at
/// the destination; only [`Parameters::digest`](crate::Parameters::digest) would notice, and then
/// the migration fails.
///
/// | change | [`PagemapLog`] | `AtomicBitmapLog` | a hypervisor's log (KVM) |
/// | --- | --- | --- | --- |
/// | write through the tracked mapping, by a thread, a virtual CPU or the kernel | yes | no | by a virtual CPU |
/// | write through the `vm-memory` crate | yes | yes | no |
/// | write through another mapping of the same file: vhost-user, another process | no | no | no |
/// | `pwrite(2)` to the file behind the memory | no | no | no |
/// | page discarded in private memory (`MADV_DONTNEED`) | yes | by the engine | by the engine |
/// | page discarded in shared memory (`FALLOC_FL_PUNCH_HOLE`, `MADV_REMOVE`) | by the engine | by the engine | by the engine |
///
/// The VMM reports **writes** that the log does not see with [`Marks`], which any of its threads
/// may hold.
///
/// **Discarded pages** are those that the guest gives back and the VMM frees: by a balloon, by
/// virtio-mem, by free page reporting. They read as zero from then on, without a write. Unless the
/// log [reports them](Self::reports_discards), the source engine looks for them after every fetch,
/// in the page tables of its own process: where a page was sent with contents and is not mapped any
/// more, it looks whether the page is zero now. One kind escapes it: a page of *shared* memory that
/// was discarded and then *read* before the next fetch, through the same mapping that the engine
/// reads. It is mapped again and nothing tells it from the page before. A VMM whose guest runs on
/// the mapping that the engine reads therefore marks what it discards. A VMM whose guest runs in
/// another process than the engine need not.
pub trait DirtyLog: Send {
    /// Starts recording writes. Earlier writes need not be reported.
    ///
    /// # Errors
    ///
    /// When this machine or this guest cannot be tracked.
    fn start(&mut self) -> Result<(), DirtyLogError>;

    /// Adds what was written since the last fetch to `dirty`, which has one bitmap for each RAM
    /// block, in the order of [`GuestMemory::blocks`](crate::memory::GuestMemory::blocks), and
    /// forgets it.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError>;

    /// Stops recording writes. Called once after each `start` that went well, however the migration
    /// ended. A guest that stays is running again by then.
    fn stop(&mut self);

    /// Whether `fetch` also reports every page that was discarded. The source engine then does not
    /// look for them, and needs no `/proc`.
    fn reports_discards(&self) -> bool {
        false
    }
}

impl<L: DirtyLog + ?Sized> DirtyLog for &mut L {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        (**self).start()
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        (**self).fetch(dirty)
    }

    fn stop(&mut self) {
        (**self).stop();
    }

    fn reports_discards(&self) -> bool {
        (**self).reports_discards()
    }
}

/// A log that cannot be kept or read.
///
/// A log of the caller's makes one from any error: `Box<dyn Error + Send + Sync>` becomes it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DirtyLogError(#[from] LogFault);

impl From<Box<dyn Error + Send + Sync>> for DirtyLogError {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        Self(LogFault::Other(error))
    }
}

#[derive(Debug, thiserror::Error)]
enum LogFault {
    /// The kernel is too old, or was built without something.
    #[error("{what} needs Linux {since} or later, with {config}; this is {found}")]
    Kernel {
        /// The missing feature.
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
        /// The operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The log is kept of other blocks than the guest has.
    #[error("the log is of {found} blocks, the guest has {expected}")]
    Blocks {
        /// The number of blocks in the log.
        found: usize,
        /// The number of the guest's blocks.
        expected: usize,
    },
    /// A log of the caller's failed.
    #[error("the dirty log failed")]
    Other(#[source] Box<dyn Error + Send + Sync>),
}
