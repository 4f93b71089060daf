//! Runs the pieces of a packet on the device: all are submitted before the first is awaited.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use qpl_sys::{Library, NumaId, Path, Status};

use super::breaker::{BREAKER, PAUSED};
use super::job::{Flight, Job, Product, Work};
use super::outcome::Outcome;
use crate::{Backend, BackendKind};

/// A packet's pieces, submitted to the device and returned by it.
pub(crate) trait Batch {
    type Error;

    /// The number of pieces.
    fn len(&self) -> usize;

    /// Fills `input`, which is empty, with a piece, and returns its work and the maximum length of
    /// the result. Returns `None` for a piece that is not for the device.
    fn fill(&self, piece: usize, input: &mut Vec<u8>) -> Option<(Work, usize)>;

    /// Takes a piece back. Pieces come back in order.
    fn take(&mut self, piece: usize, landed: Landed<'_>) -> Result<(), Self::Error>;
}

/// The result of a piece.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Landed<'a> {
    /// The device reports success.
    Done(Product<'a>),
    /// The device reports that the result of this input does not fit.
    NoRoom(&'a [u8]),
    /// The device has not done it, for any reason.
    NotDone,
}

/// A channel's jobs on the device.
#[derive(Debug)]
pub(crate) struct Hardware {
    library: &'static Library,
    idle: Vec<Job>,
    /// Jobs made so far. An abandoned job is not replaced.
    made: usize,
    pending: VecDeque<Pending>,
    numa: NumaId,
    /// Why this channel no longer uses the device.
    given_up: Option<Arc<str>>,
    /// Why the device did not finish the most recent piece that fell back to software.
    missed: Option<Missed>,
}

#[derive(Debug)]
enum Pending {
    Flying(Flight),
    /// The queues are full.
    Full,
    /// Not for the device, or refused by it.
    Refused,
}

/// Why the device has not done a piece.
#[derive(Debug)]
enum Missed {
    Full,
    /// The job ended with this status.
    Ended(Status),
    /// The device was not asked, for this reason.
    Unasked(Arc<str>),
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("its queues were full"),
            Self::Ended(status) => status.fmt(f),
            // The pause is over by now.
            Self::Unasked(reason) => f.write_str(reason.strip_prefix(PAUSED).unwrap_or(reason)),
        }
    }
}

impl Hardware {
    /// No job exists yet.
    pub(crate) const fn new(library: &'static Library) -> Self {
        Self {
            library,
            idle: Vec::new(),
            made: 0,
            pending: VecDeque::new(),
            numa: NumaId::SOCKET,
            given_up: None,
            missed: None,
        }
    }

    /// The backend, unless the device has done everything it could. It is `instead` while the
    /// device is not used.
    pub(crate) fn backend(&self, instead: BackendKind) -> Option<Backend> {
        if let Some(reason) = self.refused() {
            return Some(Backend::because(instead, reason));
        }
        let missed = self.missed.as_ref()?;
        let reason = format!("not all of it: {missed}");
        Some(Backend::because(BackendKind::QplHardware, reason))
    }

    /// Why the device is not used at present, if so.
    fn refused(&self) -> Option<Arc<str>> {
        self.given_up.clone().or_else(|| BREAKER.open())
    }

    /// Runs the pieces on the device, as many in parallel as there are jobs.
    ///
    /// No job is in flight afterwards, whether this returns, fails or unwinds: each was awaited or
    /// abandoned.
    ///
    /// # Errors
    /// The batch's own.
    pub(crate) fn run<B: Batch>(&mut self, batch: &mut B) -> Result<(), B::Error> {
        let flying = Airborne(self);
        let mut landed = 0;
        for piece in 0..batch.len() {
            if flying.0.pending.len() == JOBS {
                flying.0.land(landed, batch)?;
                landed += 1;
            }
            let mut pending = flying.0.launch(piece, batch);
            // The queues may be full of our own jobs. Waiting for one of them is faster than doing
            // a piece in software.
            while matches!(pending, Pending::Full) && flying.0.is_flying() {
                flying.0.land(landed, batch)?;
                landed += 1;
                pending = flying.0.launch(piece, batch);
            }
            if let Pending::Full = pending {
                BREAKER.submitted(false);
                flying.0.missed = Some(Missed::Full);
            }
            flying.0.pending.push_back(pending);
        }
        for piece in landed..batch.len() {
            flying.0.land(piece, batch)?;
        }
        Ok(())
    }

    fn is_flying(&self) -> bool {
        let mut pending = self.pending.iter();
        pending.any(|pending| matches!(pending, Pending::Flying(_)))
    }

    fn launch<B: Batch>(&mut self, piece: usize, batch: &B) -> Pending {
        if let Some(reason) = self.refused() {
            self.missed = Some(Missed::Unasked(reason));
            return Pending::Refused;
        }
        let Some(mut job) = self.job() else {
            return Pending::Refused;
        };
        job.input().clear();
        let Some((work, room)) = batch.fill(piece, job.input()) else {
            self.idle.push(job);
            return Pending::Refused;
        };
        let mut attempts = 0;
        loop {
            match job.submit(&work, room, self.numa) {
                Ok(flight) => {
                    BREAKER.submitted(true);
                    return Pending::Flying(flight);
                }
                Err((back, Status::QUEUES_ARE_BUSY)) => {
                    job = back;
                    if attempts == BUSY_RETRIES {
                        self.idle.push(job);
                        return Pending::Full;
                    }
                    attempts += 1;
                }
                // No device on this thread's socket. A remote one is slower, but faster than none.
                Err((back, Status::INIT_WORK_QUEUES_NOT_AVAILABLE))
                    if self.numa == NumaId::SOCKET =>
                {
                    job = back;
                    self.numa = NumaId::ANY;
                }
                Err((back, status)) => {
                    job = back;
                    self.note(&mut job, status);
                    break;
                }
            }
        }
        self.idle.push(job);
        Pending::Refused
    }

    /// Waits for the oldest launched piece and returns it.
    fn land<B: Batch>(&mut self, piece: usize, batch: &mut B) -> Result<(), B::Error> {
        let Some(Pending::Flying(flight)) = self.pending.pop_front() else {
            return batch.take(piece, Landed::NotDone);
        };
        let Some((mut job, status)) = await_end(flight) else {
            return batch.take(piece, Landed::NotDone);
        };
        let landed = match Outcome::of(status) {
            Outcome::Done => job.product().map_or(Landed::NotDone, Landed::Done),
            Outcome::NoRoom => Landed::NoRoom(job.last_input()),
            _ => Landed::NotDone,
        };
        let taken = batch.take(piece, landed);
        self.note(&mut job, status);
        self.idle.push(job);
        taken
    }

    /// Records a job's outcome, and prepares it for the next run.
    fn note(&mut self, job: &mut Job, status: Status) {
        let outcome = Outcome::of(status);
        BREAKER.ended(outcome);
        match outcome {
            Outcome::Done | Outcome::NoRoom => return,
            // The second half of a dynamic compression.
            Outcome::Busy => {
                BREAKER.submitted(false);
                self.missed = Some(Missed::Full);
            }
            Outcome::Config => {
                self.given_up.get_or_insert_with(|| super::explain(status));
            }
            _ => self.missed = Some(Missed::Ended(status)),
        }
        let reset = job.reset();
        if reset != Status::OK {
            self.given_up.get_or_insert_with(|| super::explain(reset));
        }
    }

    /// A job that is not with a device; `None` if all have been abandoned, or there is no memory
    /// for more.
    fn job(&mut self) -> Option<Job> {
        if let Some(job) = self.idle.pop() {
            return Some(job);
        }
        if self.made == JOBS {
            return None;
        }
        match Job::new(self.library, Path::HARDWARE) {
            Ok(job) => {
                self.made += 1;
                Some(job)
            }
            Err(status) => {
                self.given_up = Some(super::explain(status));
                None
            }
        }
    }
}

/// Ensures that no job is in flight when a run ends.
struct Airborne<'h>(&'h mut Hardware);

impl Drop for Airborne<'_> {
    fn drop(&mut self) {
        for pending in self.0.pending.drain(..) {
            if let Pending::Flying(flight) = pending
                && let Some((mut job, _)) = await_end(flight)
                && job.reset() == Status::OK
            {
                self.0.idle.push(job);
            }
        }
    }
}

/// Waits for a job's end. After too long it abandons the job and the device, and returns `None`.
pub(super) fn await_end(mut flight: Flight) -> Option<(Job, Status)> {
    let mut started = None;
    for round in 0_u64.. {
        flight = match flight.check() {
            Ok(ended) => return Some(ended),
            Err(flight) => flight,
        };
        if round < SPINS {
            std::hint::spin_loop();
            continue;
        }
        let waited = started.get_or_insert_with(Instant::now).elapsed();
        // Good jobs that were in flight together with a lost one have ended long ago.
        if waited >= PATIENCE || (waited >= PATIENCE_AFTER_LOSS && BREAKER.has_lost()) {
            break;
        }
        if waited < YIELDING {
            thread::yield_now();
        } else {
            thread::sleep(NAP);
        }
    }
    BREAKER.lost();
    None
}

/// Jobs in flight at once in one channel. A device has 128 entries in total; a job takes 190 KB.
const JOBS: usize = 64;

/// After this many refusals, software is faster for a page.
const BUSY_RETRIES: u32 = 3;

/// A page takes the device a few microseconds; a page request by the device up to a millisecond; a
/// queue full of the largest pieces a few milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_AFTER_LOSS: Duration = Duration::from_millis(20);
const SPINS: u64 = 1 << 10;
const YIELDING: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);
