//! Auto: chooses the effort of each packet while a migration runs.
//!
//! The best effort depends on the link, the processors and the pages, and all of them change during
//! a migration. So a migration with auto has one [`Auto`], which all its channels share, and each
//! channel has a [`Lane`]. The lane chooses the [`Step`] of the next packet. Its caller reports the
//! time that the packet took, the length of its payload, and the bytes that wait in the connection.
//!
//! Every reader of a method, a stock QEMU included, reads all its steps, and the step can change
//! from packet to packet:
//!
//! | method | steps, the cheapest first |
//! | --- | --- |
//! | `zlib` | stored blocks, [`Effort::Fast`](crate::Effort), `Balanced`, `Dense` |
//! | `zstd` | raw blocks, levels -1, 1, 3, 6 |
//!
//! # The model
//!
//! A channel encodes a packet and writes it, one after the other; meanwhile the connection drains
//! what was written before. So a byte of pages takes a channel
//!
//! ```text
//! time = max(reading + encoding + size * copying, size / rate of the connection)
//! ```
//!
//! with the size as a part of the page. If encoding has a budget of processors, the time is at
//! least `encoding * channels / processors`. The step with the least time is the best one.
//!
//! Encoding and size are measured for each step, reading and copying for all channels together. The
//! rate is measured only while bytes always wait in the connection: then the connection is the
//! limit, because of the link, or of the other end's processors or guest. While no bytes wait, the
//! rate is at least the rate of the writes.
//!
//! A connection that is the limit may be slow because the other end takes so long to decode: then
//! pages pass faster as they are. Nothing but an attempt shows this, which the module `probe`
//! makes where it is possible.
//!
//! The controller tries each other step now and then with one packet. All trials together take at
//! most a fiftieth of the time. Of two steps within 2 % of each other the cheaper one is chosen:
//! processors belong to guests first.
//!
//! Lane and controller have no clock: the caller passes the time.

mod controller;
mod lane;
mod probe;

#[cfg(test)]
mod simulation;

pub use controller::{Change, StepTotals, Summary};
pub use lane::Lane;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use multifd_wire::Method;

use crate::{Accel, Settings};
use controller::Controller;

/// One of the efforts with which a method can encode a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    method: Method,
    index: u8,
}

/// The measurements of all channels of a migration, and the step that follows from them.
pub struct Auto {
    method: Method,
    began: Instant,
    controller: Mutex<Controller>,
}

/// The names of the steps of `zlib`.
const ZLIB: [&str; 4] = ["stored", "fast", "balanced", "dense"];
/// The names of the steps of `zstd`. Higher levels are slower than any link that needs them.
const ZSTD: [&str; 5] = ["raw", "level -1", "level 1", "level 3", "level 6"];

impl Step {
    /// The index among the steps of the method, from 0, which leaves pages as they are.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The step's method.
    #[must_use]
    pub const fn method(self) -> Method {
        self.method
    }

    /// The step with this index.
    pub(crate) fn of(method: Method, index: usize) -> Self {
        let index = u8::try_from(index).unwrap_or(u8::MAX);
        Self { method, index }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(names(self.method).get(self.index()).unwrap_or(&"?"))
    }
}

/// The names of a method's steps.
const fn names(method: Method) -> &'static [&'static str] {
    match method {
        Method::Zlib => &ZLIB,
        Method::Zstd => &ZSTD,
        _ => &[],
    }
}

impl Auto {
    /// Auto over the steps of a method. None if there is no choice: the method has one step only,
    /// the settings ask for several [streams](Settings::streams), or an accelerator encodes.
    #[must_use]
    pub fn new(method: Method, settings: &Settings) -> Option<Arc<Self>> {
        Self::within(method, settings, None)
    }

    /// As [`new`](Self::new), with a budget of processors, such as 1.5, for the encoding of all
    /// lanes together. A step that needs more counts as slower, and its lanes
    /// [pause](Lane::pause).
    #[must_use]
    pub fn within(
        method: Method,
        settings: &Settings,
        processors: Option<f64>,
    ) -> Option<Arc<Self>> {
        let has_steps = match method {
            Method::Zlib => settings.accel == Accel::Software,
            Method::Zstd => cfg!(feature = "zstd"),
            _ => false,
        };
        (has_steps && settings.streams.value() == 1).then(|| {
            Arc::new(Self {
                method,
                began: Instant::now(),
                controller: Mutex::new(Controller::new(names(method).len(), processors)),
            })
        })
    }

    /// The method of the steps.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.method
    }

    /// The steps, the cheapest first.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let method = self.method;
        (0..names(method).len()).map(move |index| Step::of(method, index))
    }

    /// The time since this auto was made: the clock of all its lanes.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The totals of each step, and the changes from step to step.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.with(|controller| controller.summary(self.method))
    }

    /// The changes of the [summary](Self::summary), from the index `from` on.
    #[must_use]
    pub fn changes(&self, from: usize) -> Vec<Change> {
        self.with(|controller| controller.changes(self.method, from))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Controller) -> R) -> R {
        // After a panic the estimates may be wrong, and the controller corrects wrong estimates.
        let mut controller = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        work(&mut controller)
    }
}

impl fmt::Debug for Auto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auto")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}
