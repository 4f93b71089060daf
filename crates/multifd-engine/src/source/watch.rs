//! A watch on the time limit and on cancellation, which also reports progress.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use multifd_transport::Cancel;
use multifd_transport::failure::Cause as TransportCause;

use super::convergence::Convergence;
use crate::engine_fault::EngineFault;
use crate::failure::Cause;
use crate::parameters::Parameters;
use crate::statistics::{Arrived, Phase, Progress};

/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The conditions that a source checks whenever it waits.
pub(super) struct Watch<'a> {
    cancel: &'a Cancel,
    started: Instant,
    timeout: Duration,
    progress: Cell<Progress>,
    told: Cell<Instant>,
    observe: RefCell<&'a mut dyn FnMut(&Progress)>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        parameters: &Parameters,
        cancel: &'a Cancel,
        observe: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        let started = Instant::now();
        let progress = Progress {
            phase: Phase::Setup,
            round: 0,
            remaining_pages: 0,
            normal: 0,
            duplicate: 0,
            transferred: 0,
            normal_per_second: None,
            dirty_pages_rate: None,
            expected_downtime: None,
        };
        Self {
            cancel,
            started,
            timeout: parameters.timeout,
            progress: Cell::new(progress),
            told: Cell::new(started),
            observe: RefCell::new(observe),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The remaining time.
    pub(super) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.elapsed())
    }

    /// Whether to go on.
    pub(super) fn check(&self) -> Result<(), Cause> {
        if self.cancel.is_cancelled() {
            return Err(TransportCause::Cancelled.into());
        }
        let progress = self.progress.get();
        if self.left().is_zero() {
            return Err(EngineFault::Timeout {
                timeout: self.timeout,
                round: progress.round,
                remaining_pages: progress.remaining_pages,
                normal_per_second: progress.normal_per_second,
                dirty_pages_rate: progress.dirty_pages_rate,
            }
            .into());
        }
        if self.told.get().elapsed() >= PROGRESS_INTERVAL {
            self.tell();
        }
        Ok(())
    }

    /// A round begins.
    pub(super) fn enter(&self, phase: Phase, round: u64, pages: u64) {
        self.update(|progress| {
            progress.phase = phase;
            progress.round = round;
            progress.remaining_pages = pages;
        });
        self.tell();
    }

    /// Channels have sent something.
    pub(super) fn sent(&self, remaining_pages: u64, so_far: Arrived) {
        self.update(|progress| {
            progress.remaining_pages = remaining_pages;
            progress.normal = so_far.normal;
            progress.duplicate = so_far.duplicate;
            progress.transferred = so_far.bytes;
        });
    }

    /// A round has ended, or the log was read.
    pub(super) fn learned(&self, convergence: &Convergence, remaining_pages: u64) {
        self.update(|progress| {
            progress.remaining_pages = remaining_pages;
            progress.normal_per_second = convergence.normal_per_second();
            progress.dirty_pages_rate = convergence.dirty_rate();
            progress.expected_downtime = convergence.expected_downtime(remaining_pages);
        });
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.get();
        change(&mut progress);
        self.progress.set(progress);
    }

    fn tell(&self) {
        self.told.set(Instant::now());
        // The observer is not given this, so it cannot be asked for twice at a time.
        if let Ok(mut observe) = self.observe.try_borrow_mut() {
            observe(&self.progress.get());
        }
    }
}
