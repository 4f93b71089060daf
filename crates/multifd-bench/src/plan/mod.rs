//! A plan: what a migration will take with each method, before it begins.
//!
//! - [`model`] computes it from figures, and knows nothing of this machine.
//! - [`rates`] measures codecs and sockets of this machine on pages like the guest's.
//! - [`costs`] has what cannot be measured in two seconds, with the measurements that it is from.
//! - [`pages`] brings these pages.
//! - [`process`] and [`qmp`] learn about a running guest.
//! - [`published`] compares the model with published measurements.

pub mod clock;
pub mod costs;
pub mod model;
pub mod pages;
pub mod process;
pub mod published;
pub mod qmp;
pub mod rates;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use multifd_wire::Method;

use costs::{Host, IAA_BYTES_PER_S, IAA_JOB_BYTE, Topology};
use model::{Codec, Guest, Path, Prediction, Way};
use rates::{Measured, Sample, StepRate};

/// A method to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A method with its usual effort.
    Fixed(Method),
    /// `auto` over a trunk, which chooses a level of zstd for each packet.
    Auto,
}

/// What is planned.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guest.
    pub guest: Guest,
    /// Between its places.
    pub path: Path,
    /// Pages like the guest's.
    pub sample: Sample,
    /// Differences, if they are wanted.
    pub differences: Option<Rewriting>,
    /// Accelerators of each host.
    pub iaa: Option<u32>,
}

/// How pages change that are sent again.
#[derive(Clone, Copy, Debug)]
pub struct Rewriting {
    /// Bytes of a page that change before it is sent again.
    pub bytes: usize,
    /// The share of written pages that are still in the relays' memory.
    pub hits: f64,
}

/// A way to move the guest, and what it will take.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Method, effort and layer, for people.
    pub name: String,
    /// The options of `multifd relay`, or none without relays.
    pub options: Option<String>,
    /// The codec of the first round.
    pub codec: Codec,
    /// What it will take.
    pub prediction: Prediction,
    /// The most distinct pages that the guest may write in a second. None if any rate will do.
    pub highest_dirty_rate: Option<f64>,
}

impl Choice {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Fixed(Method::None),
        Self::Fixed(Method::Zlib),
        Self::Fixed(Method::Zstd),
        Self::Fixed(Method::Qpl),
        Self::Fixed(Method::Canned),
        Self::Auto,
    ];

    const fn topology(self) -> Topology {
        match self {
            Self::Fixed(Method::None) => Topology::Direct,
            _ => Topology::Relays,
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let method = text.parse::<Method>().ok();
        method
            .map(Self::Fixed)
            .filter(|choice| Self::ALL.contains(choice))
            .ok_or_else(|| "methods are none, zlib, zstd, qpl, canned and auto".to_owned())
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(method) => method.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// Measures this host's sockets.
///
/// # Errors
///
/// If the system has no loopback.
pub fn host() -> std::io::Result<Host> {
    Ok(Host {
        socket: rates::socket(SOCKET_TIME)?,
        zero_test: rates::zero_test(),
    })
}

/// Measures a method on the plan's pages, and predicts what it will take: without differences, and
/// with them if the plan has any and the method can have them.
///
/// # Errors
///
/// If this build or this machine cannot do the method.
pub fn candidates(plan: &Plan, host: &Host, choice: Choice) -> Measured<Vec<Candidate>> {
    let threads =
        (plan.path.channels.min(plan.path.processors.ceil()) as usize).clamp(1, MOST_THREADS);
    let moving = choice.topology().moving(host);
    let (name, codec, keeps_first) = match choice {
        Choice::Fixed(method) => {
            let codec = rates::fixed(method, &plan.sample, threads, STEP_TIME)?;
            let (name, codec) = accelerated(plan, method, codec);
            (name, codec, true)
        }
        Choice::Auto => {
            let steps = rates::steps(Method::Zstd, &plan.sample, threads, STEP_TIME)?;
            let codecs: Vec<Codec> = steps.iter().map(|step| step.codec).collect();
            let best = plan.path.best(&moving, &codecs);
            let StepRate { name, codec } = steps.get(best).ok_or("auto has no steps")?.clone();
            (format!("auto ({name})"), codec, best > 0)
        }
    };
    let way = Way {
        moving,
        first: codec,
        again: codec,
        is_again_late: false,
    };
    let mut found = vec![Candidate::new(
        plan,
        name.clone(),
        options(choice, false),
        &way,
    )];
    if let (Some(rewriting), Topology::Relays) = (plan.differences, choice.topology()) {
        let method = match choice {
            Choice::Fixed(method) => method,
            Choice::Auto => Method::Zstd,
        };
        let seen = rates::differences(method, &plan.sample, rewriting.bytes, STEP_TIME)?;
        let keeping = (seen.first.encoding - way.first.encoding).max(0.0);
        let first = Codec {
            encoding: codec.encoding + if keeps_first { keeping } else { 0.0 },
            ..codec
        };
        let with = Way {
            first,
            again: seen.again.mixed(rewriting.hits, codec),
            is_again_late: !keeps_first,
            ..way
        };
        let name = format!("{name} + differences");
        found.push(Candidate::new(plan, name, options(choice, true), &with));
    }
    Ok(found)
}

/// The codec on a device, where there are any and the method is for them.
fn accelerated(plan: &Plan, method: Method, codec: Codec) -> (String, Codec) {
    match (plan.iaa, method) {
        (Some(devices), Method::Qpl | Method::Canned) => {
            let on_device = Codec {
                encoding: IAA_JOB_BYTE,
                decoding: IAA_JOB_BYTE,
                device: Some(f64::from(devices) * IAA_BYTES_PER_S),
                ..codec
            };
            (format!("{method} ({devices} IAA)"), on_device)
        }
        _ => (method.to_string(), codec),
    }
}

fn options(choice: Choice, has_differences: bool) -> Option<String> {
    let memory = if has_differences {
        ""
    } else {
        " --delta-memory 0"
    };
    match choice {
        Choice::Fixed(Method::None) => None,
        choice => Some(format!("--compression {choice}{memory}")),
    }
}

impl Candidate {
    fn new(plan: &Plan, name: String, options: Option<String>, way: &Way) -> Self {
        Self {
            name,
            options,
            codec: way.first,
            prediction: plan.path.predict(&plan.guest, way),
            highest_dirty_rate: plan.path.highest_dirty_rate(&plan.guest, way),
        }
    }

    /// Whether this one is the better choice: convergence first, then time, and of times that are
    /// as good as equal the one before.
    #[must_use]
    pub fn is_better_than(&self, other: &Self) -> bool {
        let (own, others) = (&self.prediction, &other.prediction);
        match (own.converges, others.converges) {
            (true, true) => own.total_s < others.total_s * CLEARLY_LESS,
            (false, false) => {
                let rate = |of: &Self| of.highest_dirty_rate.unwrap_or(f64::INFINITY);
                rate(self) > rate(other)
            }
            (converges, _) => converges,
        }
    }
}

/// The best candidate.
#[must_use]
pub fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    let mut all = candidates.iter();
    let first = all.next()?;
    Some(all.fold(first, |best, other| {
        if other.is_better_than(best) {
            other
        } else {
            best
        }
    }))
}

/// Measuring takes so long for each step of a method.
const STEP_TIME: Duration = Duration::from_millis(60);
const SOCKET_TIME: Duration = Duration::from_millis(200);
/// More threads would measure nothing else.
const MOST_THREADS: usize = 64;
/// Predictions that are closer are equal; then the simpler way comes first.
const CLEARLY_LESS: f64 = 0.97;
