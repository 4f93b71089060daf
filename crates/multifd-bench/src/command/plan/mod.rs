//! `multifd-bench plan`: predicts a migration before it begins.

mod args;
mod print;

pub(super) use args::PlanArgs;

use std::path::Path;
use std::time::Duration;

use multifd_cli::process::Outcome;
use multifd_cli::say;
use multifd_wire::{Method, PageSize};

use crate::plan::clock::share_of_processors;
use crate::plan::model::{Conditions, Guest};
use crate::plan::pages::{Source, source};
use crate::plan::published;
use crate::plan::rates::{Sample, processors_of_chains};
use crate::plan::{Candidate, Choice, Plan, Rewriting, candidates, costs, host, process, qmp};
use print::Report;

/// Measures, predicts and prints.
pub(super) fn run(args: &PlanArgs) -> Outcome {
    if args.published {
        return print_published(args);
    }
    let (plan, mut notes) = prepare(args)?;
    say::note("measuring codecs and sockets of this host for about two seconds");
    let host = host()?;
    let mut found: Vec<Candidate> = Vec::new();
    for choice in choices(args) {
        match candidates(&plan, &host, choice) {
            Ok(more) => found.extend(more),
            Err(error) => notes.push(format!("no plan with {choice}: {error}")),
        }
    }
    let report = Report::new(plan, found, notes);
    if args.json {
        say::json(&report.json())?;
    } else {
        say::result(report)?;
    }
    Ok(())
}

fn print_published(args: &PlanArgs) -> Outcome {
    let rows = published::compare(args.iaa.unwrap_or(PUBLISHED_DEVICES));
    let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
    let (header, unknown) = (published::HEADER, published::UNKNOWN);
    Ok(say::result(format_args!(
        "{header}\n{}\n\n{unknown}",
        lines.join("\n")
    ))?)
}

fn choices(args: &PlanArgs) -> Vec<Choice> {
    match (args.all, args.method.as_slice()) {
        (true, _) => Choice::ALL.to_vec(),
        (false, []) if args.iaa.is_some() => Choice::ALL.to_vec(),
        (false, []) => USUAL.to_vec(),
        (false, methods) => methods.to_vec(),
    }
}

/// The figures that a running guest has given.
#[derive(Default)]
struct Known {
    memory: Option<u64>,
    used: Option<u64>,
    dirty_rate: Option<f64>,
    working_set: Option<f64>,
    rewrite: Option<usize>,
    sample: Option<Sample>,
    channels: Option<u64>,
    downtime_limit_ms: Option<u64>,
    max_bandwidth: Option<u64>,
}

fn prepare(args: &PlanArgs) -> Result<(Plan, Vec<String>), Box<dyn std::error::Error>> {
    let mut notes = Vec::new();
    let mut known = learn(args, &mut notes)?;
    let Source { sample, used } = match known.sample.take() {
        Some(sample) => Source { sample, used: 1.0 },
        None => {
            let name = &args.pages;
            notes.push(format!(
                "sizes and speeds are measured with pages like {name}; --pages changes this"
            ));
            source(name)?
        }
    };
    let page = PageSize::K4.bytes() as f64;
    let memory = args.memory.or(known.memory);
    let memory = memory.ok_or("the guest's size is missing: give --memory or --from")?;
    let used_bytes = args.used.or(known.used);
    let used_bytes = used_bytes.map_or_else(
        || {
            notes.push(format!(
                "assumed: {:.0} % of the memory is nonzero, as in such guests; --used changes this",
                used * 100.0
            ));
            memory as f64 * used
        },
        |bytes| bytes.min(memory) as f64,
    );
    let used_pages = used_bytes / page;
    let dirty_rate = args.dirty_rate.or(known.dirty_rate);
    let dirty_rate = dirty_rate.ok_or("the dirty rate is missing: give --dirty-rate or --from")?;
    let working_set = args.working_set.map(|bytes| bytes as f64 / page);
    let working_set_pages = working_set.or(known.working_set).unwrap_or(used_pages);
    let guest = Guest {
        page_bytes: page,
        memory_pages: memory as f64 / page,
        used_pages,
        dirty_rate,
        working_set_pages: working_set_pages.min(memory as f64 / page),
    };
    let conditions = conditions(args, &known, &mut notes);
    notes.push("assumed: the other host is like this one".to_owned());
    let bytes = args.rewrite.or(known.rewrite).unwrap_or(USUAL_REWRITE);
    let plan = Plan {
        guest,
        conditions,
        sample,
        differences: args.delta.then_some(Rewriting { bytes, hits: 1.0 }),
        iaa_devices: args.iaa,
    };
    Ok((plan, notes))
}

/// The conditions of the migration: options first, then the guest's figures, then QEMU's defaults.
fn conditions(args: &PlanArgs, known: &Known, notes: &mut Vec<String>) -> Conditions {
    let channels = args.channels.map(|channels| u64::from(channels.get()));
    let channels = channels.or(known.channels).unwrap_or(USUAL_CHANNELS) as f64;
    let downtime_limit = args.downtime_limit.or(known.downtime_limit_ms);
    let limit = args.max_bandwidth.map(std::num::NonZeroU64::get);
    Conditions {
        channels,
        processors: processors(args, channels, notes),
        is_one_host: args.same_host,
        link: args
            .link
            .map(|rate| rate.bits_per_s() as f64 / 8.0 * costs::PAYLOAD_OF_LINK),
        max_bandwidth: limit.or(known.max_bandwidth).map(|limit| limit as f64),
        downtime_limit: downtime_limit.unwrap_or(USUAL_DOWNTIME_MS) as f64 / 1e3,
    }
}

/// Measures the running guest, if there is one.
fn learn(args: &PlanArgs, notes: &mut Vec<String>) -> Result<Known, Box<dyn std::error::Error>> {
    let Some(from) = &args.from else {
        return Ok(Known::default());
    };
    Ok(match from.parse::<u32>() {
        Ok(pid) => {
            let seen = process::look(pid, Duration::from_secs(args.for_seconds))?;
            Known::of_process(pid, seen, notes)
        }
        Err(_) => Known::of_monitor(&qmp::ask(Path::new(from), args.for_seconds)?, notes),
    })
}

impl Known {
    fn of_process(pid: u32, seen: process::Running, notes: &mut Vec<String>) -> Self {
        notes.push(format!(
            "process {pid}: {} in {} mappings, {} nonzero; {:.0} pages change in a second (error below {:.0} in 19 of \
             20 cases), measured with {} random pages that were read twice; writes that change nothing, or are undone \
             meanwhile, do not count",
            say::size(seen.memory_bytes),
            seen.mappings,
            say::size(seen.used_bytes),
            seen.dirty_rate,
            seen.dirty_rate_error,
            seen.compared_pages,
        ));
        notes.push(match seen.rewrite {
            Some(bytes) => format!("a changed page differs in {bytes} bytes (median)"),
            None => "no page has changed".to_owned(),
        });
        Self {
            memory: Some(seen.memory_bytes),
            used: Some(seen.used_bytes),
            dirty_rate: Some(seen.dirty_rate),
            working_set: seen.working_set_pages,
            rewrite: seen.rewrite,
            sample: Sample::new(seen.content, PageSize::K4),
            ..Self::default()
        }
    }

    fn of_monitor(figures: &qmp::Figures, notes: &mut Vec<String>) -> Self {
        notes.push(format!(
            "QEMU: {}, {:.0} pages change in a second (its page sampling counts in MiB); a monitor does not show \
             memory, so content and zero pages are those of --pages and --used",
            say::size(figures.memory_bytes),
            figures.dirty_rate,
        ));
        if let Some(limit) = figures.max_bandwidth {
            notes.push(format!(
                "QEMU's max-bandwidth is {} a second, of pages before relays compress them; 0 removes it",
                say::size(limit)
            ));
        }
        Self {
            memory: Some(figures.memory_bytes),
            dirty_rate: Some(figures.dirty_rate),
            channels: figures.channels,
            downtime_limit_ms: figures.downtime_limit_ms,
            max_bandwidth: figures.max_bandwidth,
            ..Self::default()
        }
    }
}

/// The processors of each host: --cpus, or those that other work leaves free now.
fn processors(args: &PlanArgs, channels: f64, notes: &mut Vec<String>) -> f64 {
    if let Some(processors) = args.cpus {
        return processors;
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    // A relay and a QEMU have a thread for each channel, and so does the other end on the same
    // host.
    let each = if args.same_host { 4.0 } else { 2.0 };
    let threads = ((channels * each) as usize).clamp(all, MOST_THREADS.max(all));
    let computing = share_of_processors(threads) * threads as f64;
    // If the loopback is missing, `host` has reported it.
    let waiting = processors_of_chains(channels as usize, CHAINS_TIME).unwrap_or(0.0);
    let free = computing.max(waiting).min(all as f64);
    notes.push(format!(
        "{free:.1} of {all} processors are free for {threads} threads now; --cpus changes this"
    ));
    free
}

/// The methods without --method and --all.
const USUAL: [Choice; 4] = [
    Choice::Fixed(Method::None),
    Choice::Fixed(Method::Zlib),
    Choice::Fixed(Method::Zstd),
    Choice::Auto,
];
const USUAL_CHANNELS: u64 = 2;
const USUAL_DOWNTIME_MS: u64 = 300;
/// A counter or a pointer has 8 bytes.
const USUAL_REWRITE: usize = 8;
/// The number of devices at each end in the published rows.
const PUBLISHED_DEVICES: u32 = 4;
/// The time of a measurement: long in comparison with a time slice of the scheduler.
const CHAINS_TIME: Duration = Duration::from_millis(400);
/// The most threads of the measurement: more would not change its result.
const MOST_THREADS: usize = 64;
