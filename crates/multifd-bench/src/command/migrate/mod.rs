//! `multifd-bench migrate`: measures the rows of the published table on this machine.

mod find;
mod html;
mod link;
mod mode;
mod run;
mod table;

pub(super) use link::Rate;
pub(super) use mode::Mode;

use std::fs;

use multifd_cli::process::Outcome;
use multifd_cli::say::{self, Progress};

use std::num::NonZeroU8;

use crate::command::args::MigrateArgs;
use crate::guests::Kind;
use link::Path;
use run::Run;
use table::{Machine, Report, Row};

/// Moves guests in every mode, in turn, and prints the results.
pub(super) fn run(args: &MigrateArgs) -> Outcome {
    let path = Path::new(args.link)?;
    say::note(format_args!("{path}"));
    if args.find_rate {
        return find::run(args, &path);
    }
    let mut rows: Vec<_> = combinations(args)
        .map(|(workload, channels, mode)| Row::new(workload, channels, mode))
        .collect();
    // Interleaving spreads a temporary disturbance over all modes.
    for number in 1..=args.runs {
        for row in &mut rows {
            if row.unavailable.is_none() {
                migrate(args, &path, number, row)?;
            }
        }
    }
    let report = Report {
        machine: Machine::this(),
        memory_bytes: args.memory,
        path: path.to_string(),
        runs: args.runs,
        timeout_s: args.timeout,
        downtime_limit_ms: args.downtime_limit,
        rows,
    };
    if let Some(file) = &args.json {
        write(file, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(file) = &args.report {
        write(file, &html::page(&report))?;
    }
    Ok(say::result(report)?)
}

/// The rows of a table.
fn combinations(args: &MigrateArgs) -> impl Iterator<Item = (&Kind, NonZeroU8, &Mode)> {
    args.workload.iter().flat_map(move |workload| {
        let channels = args.channels.iter();
        channels.flat_map(move |channels| {
            let modes = args.modes.iter();
            modes.map(move |mode| (workload, *channels, mode))
        })
    })
}

fn migrate(args: &MigrateArgs, path: &Path, number: u32, row: &mut Row) -> Outcome {
    let run = Run::new(args, &row.workload, row.channels, &row.mode);
    let mut progress = Progress::new();
    progress.show(format_args!("run {number} of {}: {row}", args.runs));
    let attempt = run.migrate(path)?;
    drop(progress);
    say::note(format_args!(
        "run {number} of {}: {row}: {attempt}",
        args.runs
    ));
    row.add(attempt);
    Ok(())
}

fn write(file: &std::path::Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))
}
