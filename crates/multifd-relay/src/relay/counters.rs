//! The totals of a migration through a relay.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use multifd_codec::{Backend, BackendKind, PathCounts};
use multifd_transport::{Inlet, Outlet};
use multifd_wire::{Method, PageSize, RamPacket};

use super::{Traffic, Work};

/// Sums over all channels, counted as packets pass.
#[derive(Default)]
pub(super) struct Counters {
    pages: AtomicU64,
    zero_pages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Bytes of the main channel, read and written.
    main: [AtomicU64; 2],
    /// Pages on the main channel.
    main_pages: AtomicU64,
    /// The page size of the last packet; 0 before the first.
    page_bytes: AtomicU64,
    /// The guest's memory in bytes.
    memory: AtomicU64,
    rounds: AtomicU64,
    /// Whether the main channel waits for its source.
    main_idle: AtomicBool,
    decoded: Mutex<Option<Work>>,
    encoded: Mutex<Option<Work>>,
}

impl Counters {
    /// Counts bytes of the main channel that were passed on. For a leg that compresses them,
    /// `below` has the totals on the wire, read and written.
    pub(super) fn main(&self, passed: usize, below: [Option<u64>; 2]) {
        for (sum, below) in self.main.iter().zip(below) {
            match below {
                Some(all) => sum.store(all, Ordering::Relaxed),
                None => drop(sum.fetch_add(passed as u64, Ordering::Relaxed)),
            }
        }
    }

    /// A page on the main channel.
    pub(super) fn main_page(&self) {
        self.main_pages.fetch_add(1, Ordering::Relaxed);
    }

    /// The set-up has shown the size of the guest's memory.
    pub(super) fn memory(&self, bytes: u64) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    /// A round with pages has ended.
    pub(super) fn round_ended(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn main_idle(&self, idle: bool) {
        self.main_idle.store(idle, Ordering::Relaxed);
    }

    pub(super) fn is_main_idle(&self) -> bool {
        self.main_idle.load(Ordering::Relaxed)
    }

    /// Adds the work of a channel's codecs, at the channel's end. A codec without work adds
    /// nothing.
    pub(super) fn channel_ended(&self, inlet: &Inlet<'_>, outlet: &Outlet<'_>) {
        let encoder = outlet.encoder();
        add(
            &self.encoded,
            encoder.method(),
            encoder.backend(),
            outlet.counts(),
        );
        if let Some(decoder) = inlet.decoder() {
            add(
                &self.decoded,
                decoder.method(),
                decoder.backend(),
                decoder.counts(),
            );
        }
    }

    pub(super) fn totals(&self) -> Traffic {
        let main = self.main.each_ref();
        let [main_in, main_out] = main.map(|sum| sum.load(Ordering::Relaxed));
        let pages = self.pages.load(Ordering::Relaxed);
        let zero_pages = self.zero_pages.load(Ordering::Relaxed);
        let page_bytes = match self.page_bytes.load(Ordering::Relaxed) {
            // Without multifd no packet shows it, and most guests have the same.
            0 => PageSize::K4.bytes() as u64,
            bytes => bytes,
        };
        let all_pages = pages
            .saturating_add(zero_pages)
            .saturating_add(self.main_pages.load(Ordering::Relaxed));
        Traffic {
            memory: self.memory.load(Ordering::Relaxed),
            carried: all_pages.saturating_mul(page_bytes),
            rounds: self.rounds.load(Ordering::Relaxed),
            pages,
            zero_pages,
            bytes_in: self
                .bytes_in
                .load(Ordering::Relaxed)
                .saturating_add(main_in),
            bytes_out: self
                .bytes_out
                .load(Ordering::Relaxed)
                .saturating_add(main_out),
        }
    }

    pub(super) fn decoded(&self) -> Option<Work> {
        self.decoded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn encoded(&self) -> Option<Work> {
        self.encoded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Adds one channel's work. If channels used different backends, the weakest is reported.
fn add(sum: &Mutex<Option<Work>>, method: Method, backend: Backend, pages: PathCounts) {
    if pages.total() == 0 {
        return;
    }
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    let work = sum.get_or_insert_with(|| Work {
        method,
        backend: backend.clone(),
        pages: PathCounts::default(),
    });
    work.pages += pages;
    let falls_short = |backend: &Backend| match (backend.reason(), backend.kind()) {
        (None, _) => 0,
        (Some(_), BackendKind::QplHardware) => 1,
        (Some(_), _) => 2,
    };
    if falls_short(&backend) >= falls_short(&work.backend) {
        work.backend = backend;
    }
}

/// One channel's part of the counters.
pub(super) struct Tally<'c> {
    counters: &'c Counters,
    bytes_in: u64,
    bytes_out: u64,
}

impl<'c> Tally<'c> {
    pub(super) const fn new(counters: &'c Counters) -> Self {
        Self {
            counters,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    pub(super) fn pages(&self, packet: &RamPacket) {
        let counters = self.counters;
        let (normal, zero) = (packet.normal().len(), packet.zero().len());
        if let Some(size) = packet.page_size() {
            let bytes = size.bytes() as u64;
            counters.page_bytes.store(bytes, Ordering::Relaxed);
        }
        counters.pages.fetch_add(normal as u64, Ordering::Relaxed);
        counters
            .zero_pages
            .fetch_add(zero as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&mut self, inlet: &Inlet<'_>) {
        let more = inlet.bytes_in() - self.bytes_in;
        self.counters.bytes_in.fetch_add(more, Ordering::Relaxed);
        self.bytes_in += more;
    }

    /// Sets the total of `bytes_out`.
    pub(super) fn wrote(&mut self, bytes_out: u64) {
        let more = bytes_out - self.bytes_out;
        self.counters.bytes_out.fetch_add(more, Ordering::Relaxed);
        self.bytes_out += more;
    }
}
