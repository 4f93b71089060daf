//! The pieces of a packet on the device: all submitted before the first is awaited.

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

/// A packet's pieces, as the device is given them and gives them back.
pub(crate) trait Batch {
    type Error;

    /// How many pieces there are.
    fn len(&self) -> usize;

    /// Fills `input`, which is empty, with a piece, and says what to do with it and how long the
    /// result may be. `None` for a piece which is not for the device.
    fn fill(&self, piece: usize, input: &mut Vec<u8>) -> Option<(Work, usize)>;

    /// Takes a piece back. Pieces come back in their order.
    fn take(&mut self, piece: usize, landed: Landed<'_>) -> Result<(), Self::Error>;
}

/// How a piece comes back from the device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Landed<'a> {
    /// The device says that it has done the work.
    Done(Product<'a>),
    /// The device says that the result of this input does not fit.
    NoRoom(&'a [u8]),
    /// The device has not done it, for one reason or another.
    NotDone,
}

/// A channel's jobs on the device.
#[derive(Debug)]
pub(crate) struct Hardware {
    library: &'static Library,
    idle: Vec<Job>,
    /// Jobs made so far. One that was abandoned is not replaced.
    made: usize,
    pending: VecDeque<Pending>,
    numa: NumaId,
    /// Why this channel does without the device from now on.
    given_up: Option<Arc<str>>,
    /// Why the device has not done the last of the pieces that it should have done and has not.
    missed: Option<Missed>,
}

#[derive(Debug)]
enum Pending {
    Flying(Flight),
    /// The queues are full.
    Full,
    /// Not for the device, or not to be had from it.
    Refused,
}

/// Why the device has not done a piece.
#[derive(Debug)]
enum Missed {
    Full,
    /// This became of the job.
    Ended(Status),
    /// Nobody asked it, for this reason.
    Unasked(Arc<str>),
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("its queues were full"),
            Self::Ended(status) => status.fmt(f),
            // It has passed by now.
            Self::Unasked(reason) => f.write_str(reason.strip_prefix(PAUSED).unwrap_or(reason)),
        }
    }
}

impl Hardware {
    /// Without a job yet.
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

    /// What does the work, unless it is this device that has done all which it could do: `instead`
    /// while the device is not asked.
    pub(crate) fn backend(&self, instead: BackendKind) -> Option<Backend> {
        if let Some(reason) = self.refused() {
            return Some(Backend::because(instead, reason));
        }
        let missed = self.missed.as_ref()?;
        let reason = format!("not all of it: {missed}");
        Some(Backend::because(BackendKind::QplHardware, reason))
    }

    /// Why the device is not asked at present, if it is not.
    fn refused(&self) -> Option<Arc<str>> {
        self.given_up.clone().or_else(|| BREAKER.open())
    }

    /// Has the device work on the pieces, as many at once as there are jobs.
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
            // The queues may be full of our own jobs. Each that has ended makes room, and is sooner
            // done than a piece in software.
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
                // No device on this thread's socket. One elsewhere is slower, and faster than none.
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

    /// Waits for the piece that was launched first and gives it back.
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

    /// Notes what has become of a job, and makes it fit for the next run.
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

    /// A job that no device has; `None` when all have been abandoned, or there is no memory for
    /// more.
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

/// Sees to it that no job is in flight when a run is over.
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

/// Waits for a job's end. One that lasts too long is abandoned, and with it the device: `None`.
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
        // Of those which were in flight together with a lost one, the good ones have ended long
        // since.
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

/// Jobs in flight at once in one channel. A device has 128 places for all; a job takes 190 KB.
const JOBS: usize = 64;

/// After so many refusals a page is done sooner in software.
const BUSY_RETRIES: u32 = 3;

/// A page takes the device some microseconds; a page request of the device's up to a millisecond; a
/// queue full of the largest pieces some milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_AFTER_LOSS: Duration = Duration::from_millis(20);
const SPINS: u64 = 1 << 10;
const YIELDING: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);
