//! A plan: predicts time, downtime and bytes of a migration with each method, before it begins.
//!
//! - [`model`] computes the prediction from figures, without looking at this machine.
//! - [`pages`] supplies pages like the guest's.
//! - [`rates`] measures codecs and sockets of this machine with these pages.
//! - [`costs`] has constants for the costs that are not measured, and their sources.
//! - [`process`] and [`qmp`] measure a running guest.
//! - [`published`] compares the model with published measurements.

pub(crate) mod clock;
pub(crate) mod costs;
pub(crate) mod model;
pub(crate) mod pages;
pub(crate) mod process;
pub(crate) mod published;
pub(crate) mod qmp;
pub(crate) mod rates;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use multifd_wire::Method;

use costs::{Host, IAA_BYTES_PER_S, IAA_JOB_BYTE, Topology};
use model::{Codec, Conditions, Guest, Prediction, Way};
use rates::{Measured, Sample, StepRate};

/// A method to plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The method with its default effort.
    Fixed(Method),
    /// `auto` over a trunk, which chooses a level of zstd for each packet.
    Auto,
}

/// The input of a prediction.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The guest.
    pub guest: Guest,
    /// The conditions of the migration.
    pub conditions: Conditions,
    /// Pages like the guest's.
    pub sample: Sample,
    /// How pages change, to plan with differences too.
    pub differences: Option<Rewriting>,
    /// The number of accelerators of each host, if there are any.
    pub iaa_devices: Option<u32>,
}

/// How pages change before they are sent again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewriting {
    /// Bytes that change in a page.
    pub bytes: usize,
    /// The share of written pages whose former content the relays have kept.
    pub hits: f64,
}

/// A way to move the guest, and the prediction for it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Method, effort and differences, for people.
    pub name: String,
    /// The options of `multifd relay`. None without relays.
    pub options: Option<String>,
    /// The codec of the first round.
    pub codec: Codec,
    /// The prediction.
    pub prediction: Prediction,
    /// The highest dirty rate at which the migration converges. None if it converges at any rate.
    pub highest_dirty_rate: Option<f64>,
}

impl Choice {
    /// All choices.
    pub(crate) const ALL: [Self; 6] = [
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
pub(crate) fn host() -> std::io::Result<Host> {
    Ok(Host {
        socket: rates::socket(SOCKET_TIME)?,
        zero_test: rates::zero_test(),
    })
}

/// Measures a method with the plan's pages, and predicts a migration with it. If the plan has
/// differences and the method allows them, a second candidate has differences.
///
/// # Errors
///
/// If this build or this machine cannot do the method.
pub(crate) fn candidates(plan: &Plan, host: &Host, choice: Choice) -> Measured<Vec<Candidate>> {
    let conditions = &plan.conditions;
    let threads = conditions.channels.min(conditions.processors.ceil()) as usize;
    let threads = threads.clamp(1, MOST_THREADS);
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
            let best = conditions.best(&moving, &codecs);
            let StepRate { name, codec } = steps.get(best).ok_or("auto has no steps")?.clone();
            (format!("auto ({name})"), codec, best > 0)
        }
    };
    let way = Way::new(moving, codec);
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
            later: seen.later.mixed(rewriting.hits, codec),
            is_second_like_first: !keeps_first,
            ..way
        };
        let name = format!("{name} + differences");
        found.push(Candidate::new(plan, name, options(choice, true), &with));
    }
    Ok(found)
}

/// The method's name and codec, on accelerators if the plan has some and the method can use them.
fn accelerated(plan: &Plan, method: Method, codec: Codec) -> (String, Codec) {
    match (plan.iaa_devices, method) {
        (Some(devices), Method::Qpl | Method::Canned) => {
            let on_device = Codec {
                encoding: IAA_JOB_BYTE,
                decoding: IAA_JOB_BYTE,
                device_rate: Some(f64::from(devices) * IAA_BYTES_PER_S),
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
            prediction: plan.conditions.predict(&plan.guest, way),
            highest_dirty_rate: plan.conditions.highest_dirty_rate(&plan.guest, way),
        }
    }

    /// Whether this one is the better choice: it converges and the other one does not, or it is
    /// clearly faster.
    #[must_use]
    pub(crate) fn is_better_than(&self, other: &Self) -> bool {
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

/// The best candidate. Of equal ones it is the first.
#[must_use]
pub(crate) fn best(candidates: &[Candidate]) -> Option<&Candidate> {
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

/// The time of a measurement of a step.
const STEP_TIME: Duration = Duration::from_millis(60);
const SOCKET_TIME: Duration = Duration::from_millis(200);
/// The most threads of a measurement: more would not change its result.
const MOST_THREADS: usize = 64;
/// A candidate is clearly faster if it takes less than this part of the other one's time.
const CLEARLY_LESS: f64 = 0.97;
