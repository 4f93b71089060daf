//! Explains why an Intel IAA can or cannot be used on a machine, and how to remove the obstacle.
//!
//! Intel's In-Memory Analytics Accelerator compresses and decompresses deflate, and programs reach
//! it through the library libqpl.
//!
//! libqpl reports eight different causes as one status. [`detect`] looks where each of them shows:
//! sysfs, `/dev/iax`, `/proc`, the two libraries. It returns a [`Report`]: the facts, and the first
//! [`Obstacle`], in the order in which obstacles hide one another, with the commands that remove
//! it.
//!
//! A few causes show only when libqpl is given a job. [`Report::explain_status`] combines libqpl's
//! status with the facts.
//!
//! All files are read below a root that is a parameter. Detection writes and configures nothing and
//! submits no job. It ends with a report for any content of the files.
//!
//! ```
//! use std::path::Path;
//! use iaa_detect::detect;
//!
//! let report = detect(Path::new("/"));
//! println!("{}", report.verdict()); // no IAA: idxd module not loaded
//! ```
//!
//! # Features
//!
//! `serde`: [`Report`] and everything in it can be serialised. The serialised names are part of the
//! interface.

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, unreachable_pub)]
#![deny(unsafe_code)]
#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]
#![cfg_attr(
    test,
    allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)
)]

mod cause;
mod facts;
mod gather;
mod host;
mod judge;
mod remedy;
mod status;
mod text;
mod tree;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use cause::Cause;
use facts::{Facts, QueueId};
use host::{Host, System};

/// Examines the machine whose files are below `root`.
///
/// A root other than `/` is for a tree captured elsewhere or mounted into a container. Relative
/// symbolic links in it are followed, as sysfs has them; an absolute link leads to this machine.
pub fn detect(root: &Path) -> Report {
    detect_on(root, &System)
}

/// Examines a machine with its files below `root`, and libraries and device nodes from `host`.
fn detect_on(root: &Path, host: &dyn Host) -> Report {
    let facts = gather::gather(root, host);
    let verdict = match judge::ready_queues(&facts) {
        Ok(queues) => Verdict::Ready {
            nodes_without: judge::nodes_without(&facts, &queues),
            queues,
        },
        Err(cause) => Verdict::NotReady {
            summary: cause.to_string(),
            explanation: cause.explanation(),
            mend: remedy::mend(&facts, &cause),
            cause,
        },
    };
    Report { facts, verdict }
}

/// The facts and their meaning. [`Display`](fmt::Display) prints all of it for a person, and the
/// feature `serde` writes all of it for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    verdict: Verdict,
    facts: Facts,
}

impl Report {
    /// Whether libqpl can use an IAA.
    pub fn is_ready(&self) -> bool {
        matches!(self.verdict, Verdict::Ready { .. })
    }

    /// The conclusion as a phrase for a part of a line: the queues, or the obstacle.
    pub fn verdict(&self) -> impl fmt::Display {
        &self.verdict
    }

    /// The first obstacle, unless an IAA can be used.
    pub fn obstacle(&self) -> Option<Obstacle> {
        match &self.verdict {
            Verdict::Ready { .. } => None,
            Verdict::NotReady { cause, .. } => Some(self.obstacle_of(cause.clone())),
        }
    }

    /// Explains a status that libqpl returned on this machine: from `qpl_init_job` for the hardware
    /// path, from a submission or from a finished job. Returns `None` if no fact explains it. Make
    /// the report after that, or it may describe another state of the machine than the one that
    /// libqpl met.
    ///
    /// If the verdict already names an obstacle, a refusal by `qpl_init_job` (500 and above) means
    /// that obstacle. If everything is ready, it means one of those that files do not show:
    ///
    /// - 500: submitting through the node fails as well;
    /// - 501: libaccel-config lacks a function;
    /// - 503: the queues are on other sockets than this process, or were enabled after libqpl had
    ///   looked for them.
    ///
    /// 8 and 319 come with jobs: operations are disabled, or transfers are limited. Some queues are
    /// configured this way while others may be ready.
    pub fn explain_status(&self, status: u32) -> Option<Obstacle> {
        let ready = match &self.verdict {
            Verdict::Ready { queues, .. } => Ok(queues.as_slice()),
            Verdict::NotReady { cause, .. } => Err(cause),
        };
        let cause = judge::explain(&self.facts, ready, status::Status(status))?;
        Some(self.obstacle_of(cause))
    }

    fn obstacle_of(&self, cause: Cause) -> Obstacle {
        Obstacle {
            mend: remedy::mend(&self.facts, &cause),
            cause,
        }
    }
}

/// An obstacle between libqpl and an IAA. [`Display`](fmt::Display) is a phrase for a part of a
/// line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    cause: Cause,
    mend: Vec<String>,
}

impl Obstacle {
    /// The name for programs: `queues-disabled`. The feature `serde` writes the same one.
    pub fn name(&self) -> &'static str {
        self.cause.name()
    }

    /// One sentence: the observation and why it matters.
    pub fn explanation(&self) -> String {
        self.cause.explanation()
    }

    /// The lines for a root shell that remove the obstacle on this machine. Lines that begin with
    /// `#` are manual steps.
    pub fn mend(&self) -> &[String] {
        &self.mend
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

/// Whether libqpl can use an IAA.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "state"))]
enum Verdict {
    Ready {
        /// The queues that it can use, at least one.
        queues: Vec<QueueId>,
        /// NUMA nodes that this process may run on and whose socket has none of the queues. A
        /// thread there gets no hardware unless its jobs may go to any node.
        nodes_without: Vec<u32>,
    },
    NotReady {
        /// The first obstacle.
        #[cfg_attr(feature = "serde", serde(flatten))]
        cause: Cause,
        /// The cause as a phrase.
        summary: String,
        /// The cause as a sentence.
        explanation: String,
        /// The commands that remove the cause.
        mend: Vec<String>,
    },
}
