//! Auto: how much effort each packet is worth, decided while a migration runs.
//!
//! The best effort depends on the link, the processors and the pages, and all of them change during
//! a migration. So a migration that is asked to find out has one [`Auto`], which all its channels
//! share, and each channel has a [`Lane`]. A lane says with which [`Step`] the next packet is
//! encoded, and is told how long this took, how small the packet became, and how full the
//! connection was.
//!
//! The steps of a method are all read by one reader of the method, a stock QEMU included, and can
//! change from packet to packet:
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
//! with the size as a part of the page; and, where encoding has a budget of processors, no less
//! than the encoding of all channels takes of these. The step with the least time is the right one.
//! Encoding and size are measured for each step, reading and copying for the channel. The rate can
//! be measured while bytes are always waiting in the connection: then the connection is what
//! limits, be it the link, the other end's processors or its guest. While none are waiting, it is
//! only known that the rate is not lower than what was written.
//!
//! Steps that are not in use are tried now and then, with one packet each, for at most a fiftieth
//! of the time in all. A step that is as good as another within 2 % gives way to the cheaper one:
//! processors belong to guests first.
//!
//! Nothing here has a clock: the caller says how late it is.

mod controller;
mod lane;

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

/// How a packet is encoded: one of the steps of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    method: Method,
    index: u8,
}

/// What all channels of a migration know about its steps.
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
    /// Its place among the steps of its method: 0 leaves the pages as they are.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The method that it is a step of.
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
    /// The steps of a method. None if there is no choice: the method has one way only, several
    /// [streams](Settings::streams) are asked for, or an accelerator writes it.
    #[must_use]
    pub fn new(method: Method, settings: &Settings) -> Option<Arc<Self>> {
        Self::within(method, settings, None)
    }

    /// The same with a budget of so many processors for encoding on all lanes together, such as
    /// 1.5. A step that would need more is slower by that, and its lanes [pause](Lane::pause).
    #[must_use]
    pub fn within(
        method: Method,
        settings: &Settings,
        processors: Option<f64>,
    ) -> Option<Arc<Self>> {
        let is_own = match method {
            Method::Zlib => settings.accel == Accel::Software,
            Method::Zstd => cfg!(feature = "zstd"),
            _ => false,
        };
        (is_own && settings.streams.value() == 1).then(|| {
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

    /// The time on the clock of all lanes.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What was chosen when, and why.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.with(|controller| controller.summary(self.method))
    }

    /// The changes from the one with this number on, as far as a [`Summary`] has them.
    #[must_use]
    pub fn changes(&self, from: usize) -> Vec<Change> {
        self.with(|controller| controller.changes(self.method, from))
    }

    fn with<R>(&self, work: impl FnOnce(&mut Controller) -> R) -> R {
        // A panic leaves estimates, and any estimates will do.
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
