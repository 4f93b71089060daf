//! Tells why an Intel IAA can or cannot be used on a machine, and how to remove the obstacle.
//!
//! Intel's In-Memory Analytics Accelerator compresses and decompresses deflate, and programs reach
//! it through the library libqpl.
//!
//! libqpl answers eight different causes with one status. [`detect`] looks where each of them
//! shows: sysfs, `/dev/iax`, `/proc`, the two libraries. It gives a [`Report`]: the [`Facts`], and
//! a [`Verdict`] with the first [`Cause`] that holds, in the order in which causes hide one
//! another, and the commands that remove it.
//!
//! A few causes only show when libqpl is asked for a job. [`Report::explain_status`] puts its
//! status and the facts together.
//!
//! Everything read is below a root that is a parameter, and what is not a file is behind [`Host`],
//! so that tests can have any machine. Nothing is written or configured, no job is submitted, and
//! whatever the files hold, detection ends with a report.
//!
//! ```
//! use std::path::Path;
//! use iaa_detect::{System, detect};
//!
//! let report = detect(Path::new("/"), &System);
//! println!("{}", report.verdict); // no IAA: idxd module not loaded
//! ```
//!
//! # Features
//!
//! `serde`: [`Report`] and everything in it can be serialised. The words in it are part of the
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

pub use cause::{AccelConfigProblem, Cause, KernelParameter, RefusedNode};
pub use facts::{
    AccelConfig, Cpu, CpuSet, Device, DeviceId, Distribution, Engine, Facts, Kernel, Mode, Node,
    NodeAccess, Oddity, OpConfig, PciFunction, Portal, Problem, Process, Qpl, Queue, QueueId,
    QueueType, State, Version,
};
pub use host::{Host, System};

/// Looks at the machine whose files are below `root`.
///
/// A root other than `/` is for a tree that was captured elsewhere or mounted into a container.
/// Relative symbolic links in it are followed, as sysfs has them; an absolute one leads to this
/// machine.
pub fn detect(root: &Path, host: &dyn Host) -> Report {
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

/// What was found and what it means. [`Display`](std::fmt::Display) prints all of it for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// What it means.
    pub verdict: Verdict,
    /// What was found.
    pub facts: Facts,
}

impl Report {
    /// What a status means that libqpl returned on this machine: by `qpl_init_job` for the hardware
    /// path, by a submission or by a finished job. The report has to be made after that, or it
    /// tells of another machine than the one libqpl met.
    ///
    /// If the verdict already names what keeps libqpl from the hardware, a refusal by
    /// `qpl_init_job` (500 to 503) means that. Where all is ready it means one of the causes which
    /// files do not show:
    ///
    /// - 500: [`Cause::SubmissionFails`], submitting through the node fails as well;
    /// - 501: [`Cause::NoAccelConfig`], the library lacks a function;
    /// - 503: [`Cause::OtherSocket`] if this process may run on a socket without a ready queue, or
    ///   else [`Cause::EnabledTooLate`].
    ///
    /// 8 and 319 come with jobs: [`Cause::OperationsDisabled`] and [`Cause::TransfersTooSmall`],
    /// for queues which are configured so while others may be ready. Any other status is
    /// [`Cause::Unexplained`].
    pub fn explain_status(&self, status: u32) -> Cause {
        let ready = match &self.verdict {
            Verdict::Ready { queues, .. } => Ok(queues.as_slice()),
            Verdict::NotReady { cause, .. } => Err(cause),
        };
        judge::explain(&self.facts, ready, status::Status(status))
            .unwrap_or(Cause::Unexplained { status })
    }

    /// The lines for a root shell that remove a cause on this machine. Those that begin with `#`
    /// are for the person: what no command can do.
    pub fn mend(&self, cause: &Cause) -> Vec<String> {
        remedy::mend(&self.facts, cause)
    }
}

/// Whether libqpl can use an IAA. [`Display`](std::fmt::Display) is short enough for a part of a
/// line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "state"))]
#[expect(clippy::exhaustive_enums, reason = "an IAA can be used or it cannot")]
pub enum Verdict {
    /// It can.
    Ready {
        /// The queues it can use, at least one.
        queues: Vec<QueueId>,
        /// NUMA nodes this process may run on in whose socket none of the queues is. A thread there
        /// gets no hardware unless its jobs may go to any node.
        nodes_without: Vec<u32>,
    },
    /// It cannot.
    NotReady {
        /// The first obstacle.
        #[cfg_attr(feature = "serde", serde(flatten))]
        cause: Cause,
        /// It in a phrase.
        summary: String,
        /// It in a sentence.
        explanation: String,
        /// What removes it; see [`Report::mend`].
        mend: Vec<String>,
    },
}
