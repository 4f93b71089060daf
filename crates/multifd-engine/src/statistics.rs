//! Statistics of a migration, while it runs and at its end. The names are those of QEMU's
//! `query-migrate`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use multifd_codec::{Backend, PathCounts, auto, delta};

/// A migration as its source saw it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// From the first dial to the destination's word that the guest runs there, or to the failure.
    pub total_time: Duration,
    /// The downtime: from the request to stop the guest until the destination's word that it runs.
    /// Zero when it was never stopped.
    pub downtime: Duration,
    /// From the first dial until the first page could be sent.
    pub setup_time: Duration,
    /// Bits sent per second in millions, from the end of the setup to the end.
    pub mbps: f64,
    /// Pages sent per second, zero pages included, over the same time. (QEMU reports this of its
    /// last moments only.)
    pub pages_per_second: f64,
    /// Pages sent with their contents; a page that was sent twice counts twice.
    pub normal: u64,
    /// Pages sent as zero, counted likewise.
    pub duplicate: u64,
    /// Bytes sent, on all connections.
    pub transferred: u64,
    /// The number of times that the dirty log was read.
    pub dirty_sync_count: u64,
    /// Rounds of pages, the first included.
    pub rounds: u64,
    /// Channels opened.
    pub channels: usize,
    /// Pages by codec path, over all channels.
    pub path_counts: PathCounts,
    /// The backend of the first channel at the end; the others are alike.
    pub backend: Option<Backend>,
    /// Pages that went as differences and whole, if both ends had differences.
    pub differences: Option<delta::Counts>,
    /// The chosen efforts, with `auto`.
    pub auto: Option<auto::Summary>,
}

impl Statistics {
    /// Works out the rates. Times and counts are there.
    pub(crate) fn finish(&mut self) {
        let seconds = self
            .total_time
            .saturating_sub(self.setup_time)
            .as_secs_f64();
        if seconds > 0.0 {
            self.mbps = self.transferred as f64 * 8.0 / 1e6 / seconds;
            self.pages_per_second = self.normal.saturating_add(self.duplicate) as f64 / seconds;
        }
    }
}

/// A source's progress, reported twice a second and at each change of phase or round.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// The round, counted from 0, which is the one with all pages.
    pub round: u64,
    /// Pages of this round not yet handed to a channel.
    pub remaining_pages: u64,
    /// Pages sent with their contents so far.
    pub normal: u64,
    /// Pages sent as zero so far.
    pub duplicate: u64,
    /// Bytes sent so far.
    pub transferred: u64,
    /// Pages with contents sent per second, by the last rounds. `None` before the end of the first.
    pub normal_per_second: Option<f64>,
    /// QEMU's `dirty-pages-rate`: pages the guest has written per second. `None` before the log was
    /// read.
    pub dirty_pages_rate: Option<f64>,
    /// QEMU's `expected-downtime`, were the guest stopped now. `None` until a page with contents
    /// has been sent in a whole round: the guest is not stopped before.
    pub expected_downtime: Option<Duration>,
}

/// The phases of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Connects and agrees with the destination.
    Setup,
    /// Sends all pages.
    Bulk,
    /// Sends again what was written meanwhile.
    Dirty,
    /// The guest is stopped.
    SwitchOver,
}

/// Totals of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrived {
    /// Pages with contents.
    pub normal: u64,
    /// Zero pages.
    pub duplicate: u64,
    /// Bytes read, of packets; those of the main connection are few and not among them.
    pub bytes: u64,
}

/// Pages and bytes while all channels count them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    normal: AtomicU64,
    duplicate: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    pub(crate) fn pages(&self, normal: usize, duplicate: usize) {
        self.normal.fetch_add(normal as u64, Ordering::Relaxed);
        self.duplicate
            .fetch_add(duplicate as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self, count: u64) {
        self.bytes.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn so_far(&self) -> Arrived {
        Arrived {
            normal: self.normal.load(Ordering::Relaxed),
            duplicate: self.duplicate.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
