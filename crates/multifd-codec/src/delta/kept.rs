//! The receiver's slots.

use std::collections::TryReserveError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use multifd_wire::PageSize;

use super::DeltaError;
use super::memory::{Share, Used};
use super::sent::lock;
use crate::delta::error::DeltaFault;

/// The pages that one end of a migration has received: shared by the [decoders](super::Decoder) of
/// all its channels.
///
/// A slot's memory is allocated at its first use, and all slots never exceed the share.
#[derive(Debug)]
pub struct Kept {
    share: Share,
    patience: Duration,
    /// Made at the first page for a slot, for its page size.
    slots: OnceLock<Slots>,
    used: Used,
    /// Packets that were decoded: a wait goes on as long as this number grows.
    decoded: AtomicU64,
    operations: AtomicU64,
    waits: AtomicU64,
}

#[derive(Debug)]
struct Slots {
    page_size: PageSize,
    count: u32,
    chunks: Box<[Chunk]>,
}

/// Some slots under one lock.
#[derive(Debug, Default)]
struct Chunk {
    slots: Mutex<ChunkSlots>,
    /// A version has changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ChunkSlots {
    /// Empty until a slot of the chunk is used, like `pages`.
    versions: Vec<u32>,
    pages: Vec<u8>,
    /// The number of threads that wait for a version.
    waiting: usize,
}

/// Numbers of operations received so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptCounts {
    /// Operations on slots.
    pub operations: u64,
    /// Operations that had to wait for earlier ones.
    pub waits: u64,
}

impl Kept {
    /// Slots for the pages of a migration. Both ends must have agreed on the share's bytes.
    #[must_use]
    pub fn new(share: Share) -> Self {
        Self {
            share,
            patience: PATIENCE,
            slots: OnceLock::new(),
            used: Used::default(),
            decoded: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// Sets the time limit for waits in which no channel decodes a packet, instead of 50 s.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The numbers of operations received so far.
    #[must_use]
    pub fn counts(&self) -> KeptCounts {
        KeptCounts {
            operations: self.operations.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
        }
    }

    /// Notes that a packet is decoded.
    pub(crate) fn packet_decoded(&self, operations: u64) {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(operations, Ordering::Relaxed);
    }

    /// Waits until a slot has the version `wanted`, operates on its page, and adds one to the
    /// version. `given_up` ends the wait.
    pub(crate) fn operate(
        &self,
        slot: u32,
        wanted: u32,
        page_size: PageSize,
        given_up: &dyn Fn() -> bool,
        operation: impl FnOnce(&mut [u8]) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        let slots = self.slots(page_size)?;
        let each = chunk_slots(page_size.bytes());
        let (chunk, index) = (slot as usize / each, slot as usize % each);
        let found = (slot < slots.count).then(|| slots.chunks.get(chunk));
        let Some(chunk) = found.flatten() else {
            let allowed = slots.count;
            return Err(DeltaError(DeltaFault::Slot {
                found: slot,
                allowed,
            }));
        };
        let mut all = lock(&chunk.slots);
        if all.versions.is_empty() {
            let first = slot - index as u32;
            let count = each.min((slots.count - first) as usize);
            let no_memory = |_| DeltaError(DeltaFault::NoMemory);
            let bytes = count * page_size.bytes();
            if !self.used.try_grow(bytes as u64) {
                return Err(DeltaError(DeltaFault::NoMemory));
            }
            all.pages = zeros(bytes).map_err(no_memory)?;
            all.versions = zeros(count).map_err(no_memory)?;
        }
        let mut waiter = Waiter::new(self, given_up);
        loop {
            let found = all.versions.get(index).copied().unwrap_or_default();
            if found == wanted {
                break;
            }
            if found > wanted {
                return Err(DeltaError(DeltaFault::Gone {
                    slot,
                    found,
                    wanted,
                }));
            }
            match waiter.goes_on() {
                Verdict::Wait => {}
                Verdict::GivenUp => {
                    return Err(DeltaError(DeltaFault::GivenUp {
                        slot,
                        found,
                        wanted,
                    }));
                }
                Verdict::TooLong => {
                    return Err(DeltaError(DeltaFault::Missing {
                        slot,
                        found,
                        wanted,
                    }));
                }
            }
            all.waiting += 1;
            let slept = chunk.changed.wait_timeout(all, SLICE);
            (all, _) = slept.unwrap_or_else(PoisonError::into_inner);
            all.waiting -= 1;
        }
        let start = index * page_size.bytes();
        let page = all.pages.get_mut(start..start + page_size.bytes());
        operation(page.unwrap_or_default())?;
        if let Some(version) = all.versions.get_mut(index) {
            // The directory refuses the highest version, so this never saturates.
            *version = wanted.saturating_add(1);
        }
        if all.waiting > 0 {
            chunk.changed.notify_all();
        }
        Ok(())
    }

    fn slots(&self, page_size: PageSize) -> Result<&Slots, DeltaError> {
        let slots = self.slots.get_or_init(|| {
            let count = super::slots(self.share.bytes(), page_size);
            let chunks = (count as usize).div_ceil(chunk_slots(page_size.bytes()));
            Slots {
                page_size,
                count,
                chunks: (0..chunks).map(|_| Chunk::default()).collect(),
            }
        });
        if slots.page_size != page_size {
            return Err(DeltaError(DeltaFault::PageSize {
                found: page_size.bytes(),
                allowed: slots.page_size.bytes(),
            }));
        }
        Ok(slots)
    }
}

/// A wait for another channel.
struct Waiter<'a> {
    kept: &'a Kept,
    given_up: &'a dyn Fn() -> bool,
    /// The number of decoded packets, and the time until which it has to grow. `None` before the
    /// wait.
    seen: Option<(u64, Instant)>,
}

enum Verdict {
    Wait,
    GivenUp,
    TooLong,
}

impl<'a> Waiter<'a> {
    const fn new(kept: &'a Kept, given_up: &'a dyn Fn() -> bool) -> Self {
        Self {
            kept,
            given_up,
            seen: None,
        }
    }

    fn goes_on(&mut self) -> Verdict {
        if (self.given_up)() {
            return Verdict::GivenUp;
        }
        let now = Instant::now();
        let decoded = self.kept.decoded.load(Ordering::Relaxed);
        match self.seen {
            Some((before, until)) if before == decoded => {
                if now >= until {
                    return Verdict::TooLong;
                }
            }
            seen => {
                if seen.is_none() {
                    self.kept.waits.fetch_add(1, Ordering::Relaxed);
                }
                self.seen = Some((decoded, now + self.kept.patience));
            }
        }
        Verdict::Wait
    }
}

/// Zeros, or an error where the process has no memory for them.
fn zeros<T: Clone + Default>(count: usize) -> Result<Vec<T>, TryReserveError> {
    let mut all = Vec::new();
    all.try_reserve_exact(count)?;
    all.resize(count, T::default());
    Ok(all)
}

/// The number of slots in a chunk of 1 MiB.
const fn chunk_slots(page_bytes: usize) -> usize {
    (1 << 20) / page_bytes
}

/// The usual time limit for a wait. It is longer than any pause of a network that a migration
/// survives, and shorter than a minute, after which other parts give a migration up.
const PATIENCE: Duration = Duration::from_secs(50);
/// The time between two calls of `given_up`.
const SLICE: Duration = Duration::from_millis(50);
