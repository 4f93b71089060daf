//! Explains why an Intel IAA can or cannot be used on a machine, and how to remove the obstacle.
//!
//! Intel's In-Memory Analytics Accelerator compresses and decompresses deflate, and programs reach
//! it through the library libqpl.
//!
//! libqpl reports eight different causes as one status. [`detect`] looks where each of them shows:
//! sysfs, `/dev/iax`, `/proc`, the two libraries. It returns a [`Report`]: the facts, and a
//! [`Verdict`] with the first [`Cause`] that applies, in the order in which causes hide one
//! another, and the commands that remove it.
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
//! println!("{}", report.verdict); // no IAA: idxd module not loaded
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

use std::path::Path;

mod cause;
mod facts;
mod gather;
mod host;
mod judge;
mod remedy;
mod status;
mod text;
mod tree;

#[cfg(test)]
mod tests;

pub use cause::{AccelConfigProblem, Cause, KernelParameter, RefusedNode};
pub use facts::{DeviceId, NodeAccess, PciFunction, Portal, QueueId, Version};

use facts::Facts;
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

/// The facts and their meaning. [`Display`](std::fmt::Display) prints all of it for a person, and
/// the feature `serde` writes all of it for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// The conclusion.
    pub verdict: Verdict,
    facts: Facts,
}

impl Report {
    /// Explains a status that libqpl returned on this machine: from `qpl_init_job` for the hardware
    /// path, from a submission or from a finished job. Make the report after that, or it may
    /// describe another state of the machine than the one that libqpl met.
    ///
    /// If the verdict already names an obstacle, a refusal by `qpl_init_job` (500 to 503) means
    /// that obstacle. If everything is ready, it means one of the causes that files do not show:
    ///
    /// - 500: [`Cause::SubmissionFails`], submitting through the node fails as well;
    /// - 501: [`Cause::NoAccelConfig`], the library lacks a function;
    /// - 503: [`Cause::OtherSocket`] if this process may run on a socket without a ready queue, or
    ///   else [`Cause::EnabledTooLate`].
    ///
    /// 8 and 319 come with jobs: [`Cause::OperationsDisabled`] and [`Cause::TransfersTooSmall`].
    /// Some queues are configured this way while others may be ready. Any other status is
    /// [`Cause::Unexplained`].
    pub fn explain_status(&self, status: u32) -> Cause {
        let ready = match &self.verdict {
            Verdict::Ready { queues, .. } => Ok(queues.as_slice()),
            Verdict::NotReady { cause, .. } => Err(cause),
        };
        judge::explain(&self.facts, ready, status::Status(status))
            .unwrap_or(Cause::Unexplained { status })
    }

    /// The lines for a root shell that remove a cause on this machine. Lines that begin with `#`
    /// are manual steps.
    pub fn mend(&self, cause: &Cause) -> Vec<String> {
        remedy::mend(&self.facts, cause)
    }
}

/// Whether libqpl can use an IAA. [`Display`](std::fmt::Display) fits into a part of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "state"))]
#[expect(clippy::exhaustive_enums, reason = "an IAA can be used or it cannot")]
pub enum Verdict {
    /// It can use one.
    Ready {
        /// The queues that it can use, at least one.
        queues: Vec<QueueId>,
        /// NUMA nodes that this process may run on and whose socket has none of the queues. A
        /// thread there gets no hardware unless its jobs may go to any node.
        nodes_without: Vec<u32>,
    },
    /// It cannot use one.
    NotReady {
        /// The first obstacle.
        #[cfg_attr(feature = "serde", serde(flatten))]
        cause: Cause,
        /// The cause as a phrase.
        summary: String,
        /// The cause as a sentence.
        explanation: String,
        /// The commands that remove the cause; see [`Report::mend`].
        mend: Vec<String>,
    },
}
