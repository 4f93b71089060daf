//! The rows and columns of the published table, and some further columns.

use std::fmt;
use std::fs;
use std::num::NonZeroU8;

use crate::guests::Kind;
use multifd_cli::say;
use serde::{Serialize, Serializer};

use super::mode::Mode;
use super::run::Attempt;
use crate::command::send::Summary;

/// All measurements.
#[derive(Serialize)]
pub(super) struct Report {
    pub machine: Machine,
    pub memory_bytes: u64,
    /// The path between source and destination.
    pub path: String,
    /// The number of runs of each row.
    pub runs: u32,
    pub timeout_s: u64,
    pub downtime_limit_ms: u64,
    pub rows: Vec<Row>,
}

/// The machine measured on.
#[derive(Serialize)]
pub(super) struct Machine {
    processor: String,
    processors: usize,
    kernel: String,
}

/// Repeated migrations of one guest in one mode.
#[derive(Serialize)]
pub(super) struct Row {
    #[serde(serialize_with = "as_text")]
    pub workload: Kind,
    pub channels: NonZeroU8,
    #[serde(serialize_with = "as_text")]
    pub mode: Mode,
    /// The reason if this machine lacks the mode.
    pub unavailable: Option<String>,
    pub attempts: u32,
    /// The number of timeouts.
    pub timed_out: u32,
    /// The error of each other failure.
    pub errors: Vec<String>,
    /// Means of the successful runs, if any.
    pub means: Option<Means>,
    #[serde(skip)]
    moved: Vec<(Summary, f64)>,
}

/// Means over some migrations.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Means {
    pub total_time_ms: f64,
    pub total_time_ms_least: f64,
    pub total_time_ms_most: f64,
    pub downtime_ms: f64,
    pub mbps: f64,
    pub pages_per_second: f64,
    pub rounds: f64,
    pub transferred: f64,
    pub ratio: f64,
    /// CPU time of source and destination together, without the guest's.
    pub cpu_seconds: f64,
    /// The guest's operations per second until it was stopped.
    pub guest_rate: f64,
    /// The backend of the last run, and its counts of pages.
    pub backend: String,
    pub hardware: f64,
    pub software: f64,
    pub raw: f64,
}

impl Row {
    pub(super) fn new(workload: &Kind, channels: NonZeroU8, mode: &Mode) -> Self {
        Self {
            workload: workload.clone(),
            channels,
            mode: mode.clone(),
            unavailable: mode.missing(),
            attempts: 0,
            timed_out: 0,
            errors: Vec::new(),
            means: None,
            moved: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, attempt: Attempt) {
        self.attempts += 1;
        match attempt {
            Attempt::Moved { sent, cpu_seconds } => self.moved.push((*sent, cpu_seconds)),
            Attempt::TimedOut => self.timed_out += 1,
            Attempt::Failed(why) => self.errors.push(why),
        }
        self.means = Means::of(&self.moved);
    }

    /// The number of failures, and of attempts.
    pub(super) fn failures(&self) -> String {
        let failures = self.timed_out as usize + self.errors.len();
        format!("{failures} of {}", self.attempts)
    }
}

impl Means {
    fn of(moved: &[(Summary, f64)]) -> Option<Self> {
        let (last, _) = moved.last()?;
        let mean = |figure: &dyn Fn(&Summary) -> f64, decimals| {
            let sum: f64 = moved.iter().map(|(summary, _)| figure(summary)).sum();
            say::rounded(sum / moved.len() as f64, decimals)
        };
        let totals = moved.iter().map(|(summary, _)| summary.total_time_ms);
        let cpu: f64 = moved.iter().map(|(_, cpu)| cpu).sum();
        Some(Self {
            total_time_ms: mean(&|summary| summary.total_time_ms, 1),
            total_time_ms_least: totals.clone().fold(f64::INFINITY, f64::min),
            total_time_ms_most: totals.fold(0.0, f64::max),
            downtime_ms: mean(&|summary| summary.downtime_ms, 1),
            mbps: mean(&|summary| summary.mbps, 1),
            pages_per_second: mean(&|summary| summary.pages_per_second, 0),
            rounds: mean(&|summary| summary.rounds as f64, 1),
            transferred: mean(&|summary| summary.transferred as f64, 0),
            ratio: mean(&|summary| summary.ratio, 3),
            cpu_seconds: say::rounded(cpu / moved.len() as f64, 2),
            guest_rate: mean(&|summary| summary.guest_rate.unwrap_or(0.0), 0),
            backend: last.backend.clone(),
            hardware: mean(&|summary| summary.hardware as f64, 0),
            software: mean(&|summary| summary.software as f64, 0),
            raw: mean(&|summary| summary.raw as f64, 0),
        })
    }

    /// The backends of the pages, and the reason.
    pub(super) fn compressed_by(&self) -> String {
        let ways = [
            (self.hardware, "hardware"),
            (self.software, "software"),
            (self.raw, "raw"),
        ];
        let ways: Vec<_> = ways
            .iter()
            .filter(|(pages, _)| *pages > 0.0)
            .map(|(pages, way)| format!("{way} {pages:.0}"))
            .collect();
        format!("{}: {}", self.backend, ways.join(", "))
    }
}

impl Machine {
    /// Identifies this machine.
    pub(super) fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let name = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
        Self {
            processor: name.unwrap_or("unknown processor").to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processors ({}), Linux {}",
            self.processors, self.processor, self.kernel
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} channels, {}",
            self.workload, self.channels, self.mode
        )
    }
}

impl Report {
    /// The conditions of the measurement in one line.
    pub(super) fn conditions(&self) -> String {
        format!(
            "{}; guests of {}; {}; means of {} runs; downtime limit {} ms, time limit {} s",
            self.machine,
            say::size(self.memory_bytes),
            self.path,
            self.runs,
            self.downtime_limit_ms,
            self.timeout_s
        )
    }
}

/// Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.conditions())?;
        let mut workload = None;
        for row in &self.rows {
            if workload != Some(&row.workload) {
                workload = Some(&row.workload);
                writeln!(f, "\n{}:\n\n{HEADER}", row.workload)?;
            }
            write!(f, "| {} | {} |", row.channels, row.mode)?;
            match (&row.means, &row.unavailable) {
                (Some(means), _) => writeln!(
                    f,
                    " {:.0} | {:.0} | {:.0} | {:.0} | {} | {:.1} | {:.2} | {:.0} | {} |",
                    means.total_time_ms,
                    means.downtime_ms,
                    means.mbps,
                    means.pages_per_second,
                    row.failures(),
                    means.cpu_seconds,
                    means.ratio,
                    means.guest_rate,
                    means.compressed_by()
                )?,
                (None, Some(why)) => writeln!(f, " not here | | | | | | | | {why} |")?,
                (None, None) => writeln!(f, " | | | | {} | | | | |", row.failures())?,
            }
        }
        for row in &self.rows {
            for error in &row.errors {
                writeln!(f, "\n{row} failed: {error}")?;
            }
        }
        Ok(())
    }
}

const HEADER: &str = "\
| channels | mode | total time (ms) | downtime (ms) | network bandwidth (mbps) | pages per second | failed | CPU (s) | ratio | guest's ops/s | compressed by, pages |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |";

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
