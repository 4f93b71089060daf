//! `multifd-bench migrate --find-rate`: the highest rate of a guest at which it still moves.

use std::fmt;
use std::num::NonZeroU8;

use multifd_cli::process::Outcome;
use multifd_cli::say::{self, Progress};
use serde::Serialize;

use super::link::Path;
use super::mode::Mode;
use super::run::{Attempt, Run};
use super::table::Machine;
use crate::command::args::MigrateArgs;
use crate::guests::Kind;

/// Finds the rate of each row, and prints all of them.
pub(super) fn run(args: &MigrateArgs, path: &Path) -> Outcome {
    let mut rows = Vec::new();
    for (workload, channels, mode) in super::combinations(args) {
        let outcome = match mode.missing() {
            Some(why) => Found::Unavailable { why },
            None => find(args, path, workload, channels, mode)?,
        };
        rows.push(Row {
            workload: workload.to_string(),
            channels,
            mode: mode.to_string(),
            outcome,
        });
    }
    let report = Report {
        machine: Machine::this(),
        memory_bytes: args.memory,
        delta_memory_bytes: args.delta_memory.unwrap_or(args.memory),
        path: path.to_string(),
        timeout_s: args.timeout,
        downtime_limit_ms: args.downtime_limit,
        rows,
    };
    if let Some(file) = &args.json {
        super::write(file, &serde_json::to_string_pretty(&report)?)?;
    }
    Ok(say::result(report)?)
}

fn find(
    args: &MigrateArgs,
    path: &Path,
    workload: &Kind,
    channels: NonZeroU8,
    mode: &Mode,
) -> Result<Found, Box<dyn std::error::Error>> {
    let mut run = Run::new(args, workload, channels, mode);
    let mut search = Search::new(args.guest_rate.unwrap_or_else(|| workload.usual_rate()));
    let mut best = None;
    while let Some(rate) = search.next() {
        run.guest_rate = Some(rate);
        let mut progress = Progress::new();
        progress.show(format_args!(
            "{workload}, {channels} channels, {mode}: {rate}/s"
        ));
        let attempt = run.migrate(path)?;
        drop(progress);
        say::note(format_args!(
            "{workload}, {channels} channels, {mode}: {rate}/s: {attempt}"
        ));
        match attempt {
            Attempt::Moved { sent, .. } => {
                let reached = sent.guest_rate.unwrap_or(0.0);
                let is_slower = reached < rate as f64 * LEAST_REACHED;
                search.moved(rate, is_slower);
                best = Some(Found::Rate {
                    guest_rate: reached,
                    dirty_pages_rate: sent.dirty_pages_rate,
                    total_time_ms: sent.total_time_ms,
                    downtime_ms: sent.downtime_ms,
                    is_guest_limit: is_slower,
                });
            }
            Attempt::TimedOut => search.stayed(rate),
            Attempt::Failed(why) => return Ok(Found::Failed { why }),
        }
    }
    Ok(best.unwrap_or(Found::Never))
}

/// Chooses the rates to try: each step doubles or halves the rate until one moves and a higher one
/// does not. Then each step is in the middle.
struct Search {
    first: u64,
    /// The highest rate that moved.
    moves: Option<u64>,
    /// The lowest rate that did not.
    stays: Option<u64>,
    /// The guest cannot do more.
    is_over: bool,
}

impl Search {
    const fn new(first: u64) -> Self {
        Self {
            // Some guests usually write nothing.
            first: if first == 0 { 1 } else { first },
            moves: None,
            stays: None,
            is_over: false,
        }
    }

    /// The next rate to try.
    fn next(&self) -> Option<u64> {
        if self.is_over {
            return None;
        }
        match (self.moves, self.stays) {
            (None, None) => Some(self.first),
            (Some(moves), None) => moves.checked_mul(2),
            (None, Some(stays)) => Some(stays / 2).filter(|rate| *rate > 0),
            (Some(moves), Some(stays)) => {
                let left = stays.saturating_sub(moves);
                let is_close = left <= 1 || left as f64 <= moves as f64 * PRECISION;
                (!is_close).then_some(moves + left / 2)
            }
        }
    }

    fn moved(&mut self, rate: u64, is_guest_limit: bool) {
        self.moves = Some(self.moves.map_or(rate, |moves| moves.max(rate)));
        self.is_over = is_guest_limit;
    }

    fn stayed(&mut self, rate: u64) {
        self.stays = Some(self.stays.map_or(rate, |stays| stays.min(rate)));
    }
}

/// A guest that reaches less of its rate is at its own limit.
const LEAST_REACHED: f64 = 0.8;
/// The largest step that is left open.
const PRECISION: f64 = 0.1;

#[derive(Serialize)]
struct Report {
    machine: Machine,
    memory_bytes: u64,
    delta_memory_bytes: u64,
    path: String,
    timeout_s: u64,
    downtime_limit_ms: u64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    workload: String,
    channels: NonZeroU8,
    mode: String,
    #[serde(flatten)]
    outcome: Found,
}

/// The result for a row.
#[derive(Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Found {
    /// The highest rate that moved.
    Rate {
        /// The rate that the guest had.
        guest_rate: f64,
        /// The pages that it wrote per second, as the source saw it last.
        dirty_pages_rate: Option<f64>,
        total_time_ms: f64,
        downtime_ms: f64,
        /// The guest did not reach the rate asked for: it moves whatever it does.
        is_guest_limit: bool,
    },
    /// It never moved.
    Never,
    /// The mode is not available here.
    Unavailable { why: String },
    /// An attempt failed for another reason than time.
    Failed { why: String },
}

/// Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}; guests of {}, up to {} for differences; {}; highest rate that moves within {} s, downtime limit {} ms\n\n{HEADER}",
            self.machine,
            say::size(self.memory_bytes),
            say::size(self.delta_memory_bytes),
            self.path,
            self.timeout_s,
            self.downtime_limit_ms
        )?;
        for row in &self.rows {
            write!(f, "| {} | {} | {} |", row.workload, row.channels, row.mode)?;
            match &row.outcome {
                Found::Rate {
                    guest_rate,
                    dirty_pages_rate,
                    total_time_ms,
                    downtime_ms,
                    is_guest_limit,
                } => writeln!(
                    f,
                    " {}{guest_rate:.0} | {:.0} | {total_time_ms:.0} | {downtime_ms:.0} |",
                    if *is_guest_limit { "at least " } else { "" },
                    dirty_pages_rate.unwrap_or(0.0)
                )?,
                Found::Never => writeln!(f, " none | | | |")?,
                Found::Unavailable { why } => writeln!(f, " not here: {why} | | | |")?,
                Found::Failed { why } => writeln!(f, " failed: {why} | | | |")?,
            }
        }
        Ok(())
    }
}

const HEADER: &str = "\
| guest | channels | mode | guest's ops/s | pages written per second | total time (ms) | downtime (ms) |
| --- | ---: | --- | ---: | ---: | ---: | ---: |";

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for a guest that moves up to `limit`, and cannot do more than `most`.
    fn found(first: u64, limit: u64, most: u64) -> (Option<u64>, usize) {
        let mut search = Search::new(first);
        let mut tries = 0;
        while let Some(rate) = search.next() {
            tries += 1;
            assert!(tries < 100, "{first} {limit} {most}");
            match rate.min(most) <= limit {
                true => search.moved(rate, rate > most),
                false => search.stayed(rate),
            }
        }
        (search.moves, tries)
    }

    #[test]
    fn the_limit_is_found_from_both_sides() {
        for limit in [1, 7, 1000, 49_999, 50_000, 50_001, 3_000_000] {
            for first in [1, 50_000, 10_000_000] {
                let (rate, tries) = found(first, limit, u64::MAX);
                let rate = rate.unwrap();
                assert!(
                    rate <= limit && rate * 11 / 10 + 1 >= limit,
                    "{first}: {rate} of {limit}"
                );
                assert!(tries <= 32, "{tries}");
            }
        }
    }

    #[test]
    fn a_search_ends_at_the_ends() {
        assert_eq!(found(50_000, 0, u64::MAX).0, None);
        // The guest's own limit.
        assert_eq!(found(50_000, u64::MAX, 70_000), (Some(100_000), 2));
        assert_eq!(found(0, u64::MAX, u64::MAX).0, Some(1 << 63));
    }
}
