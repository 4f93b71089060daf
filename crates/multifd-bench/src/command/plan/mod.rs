//! `multifd-bench plan`: what a migration will take, before it begins.

mod args;
mod print;

pub use args::PlanArgs;

use std::path::Path as FilePath;
use std::time::Duration;

use multifd_cli::process::Outcome;
use multifd_cli::say;
use multifd_wire::{Method, PageSize};

use crate::plan::clock::share_of_processors;
use crate::plan::model::{Guest, Path};
use crate::plan::pages::{Source, source};
use crate::plan::published;
use crate::plan::rates::{Sample, processors_of_chains};
use crate::plan::{Candidate, Choice, Plan, Rewriting, candidates, costs, host, process, qmp};
use print::Report;

/// Measures, predicts and prints.
pub fn run(args: &PlanArgs) -> Outcome {
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
            Err(error) => notes.push(format!("{choice} is left out: {error}")),
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

/// What is known of the guest before anything is predicted.
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
    let known = learn(args, &mut notes)?;
    let Source { sample, used } = match known.sample {
        Some(sample) => Source { sample, used: 1.0 },
        None => {
            let name = &args.pages;
            notes.push(format!("sizes and speeds are those of pages like {name}"));
            source(name)?
        }
    };
    let page = PageSize::K4.bytes() as f64;
    let memory = args.memory.or(known.memory);
    let memory = memory.ok_or("say how large the guest is, with --memory, or --from")?;
    let used_bytes = args.used.or(known.used);
    let used_bytes = used_bytes.map_or_else(
        || {
            notes.push(format!(
                "{:.0} % of the memory are taken to be in use, as in such guests; --used says better",
                used * 100.0
            ));
            memory as f64 * used
        },
        |bytes| bytes.min(memory) as f64,
    );
    let used_pages = used_bytes / page;
    let dirty_rate = args.dirty_rate.or(known.dirty_rate);
    let dirty_rate = dirty_rate.ok_or("say how many pages it writes, with --dirty-rate")?;
    let working_set = args.working_set.map(|bytes| bytes as f64 / page);
    let working_set_pages = working_set.or(known.working_set).unwrap_or(used_pages);
    let guest = Guest {
        page_bytes: page,
        memory_pages: memory as f64 / page,
        used_pages,
        dirty_rate,
        working_set_pages: working_set_pages.min(memory as f64 / page),
    };
    let channels = args.channels.map(|channels| u64::from(channels.get()));
    let channels = channels.or(known.channels).unwrap_or(USUAL_CHANNELS) as f64;
    let downtime_limit = args.downtime_limit.or(known.downtime_limit_ms);
    let limit = args.max_bandwidth.map(std::num::NonZeroU64::get);
    let path = Path {
        channels,
        processors: processors(args, channels, &mut notes),
        is_one_host: args.same_host,
        link: args
            .link
            .map(|rate| rate.bits_per_s() as f64 / 8.0 * costs::PAYLOAD_OF_LINK),
        max_bandwidth: limit.or(known.max_bandwidth).map(|limit| limit as f64),
        downtime_limit: downtime_limit.unwrap_or(USUAL_DOWNTIME_MS) as f64 / 1e3,
    };
    notes.push("the other host is taken to be like this one".to_owned());
    let bytes = args.rewrite.or(known.rewrite).unwrap_or(USUAL_REWRITE);
    let plan = Plan {
        guest,
        path,
        sample,
        differences: args.delta.then_some(Rewriting { bytes, hits: 1.0 }),
        iaa: args.iaa,
    };
    Ok((plan, notes))
}

/// Learns what a running guest can tell.
fn learn(args: &PlanArgs, notes: &mut Vec<String>) -> Result<Known, Box<dyn std::error::Error>> {
    let mut known = Known {
        memory: None,
        used: None,
        dirty_rate: None,
        working_set: None,
        rewrite: None,
        sample: None,
        channels: None,
        downtime_limit_ms: None,
        max_bandwidth: None,
    };
    let Some(from) = &args.from else {
        return Ok(known);
    };
    if let Ok(pid) = from.parse::<u32>() {
        let seen = process::look(pid, Duration::from_secs(args.for_seconds))?;
        notes.push(format!(
            "process {pid}: {} in {} mappings, {} in use; {:.0} pages change in a second (within {:.0} in 19 of 20 \
             cases), found by reading {} pages at random again: pages that are written without a change, and changes \
             that are undone, are not seen",
            say::size(seen.memory_bytes),
            seen.mappings,
            say::size(seen.used_bytes),
            seen.dirty_rate,
            seen.dirty_rate_error,
            seen.compared_pages,
        ));
        match seen.rewrite {
            Some(bytes) => notes.push(format!("a changed page differed in {bytes} bytes (median)")),
            None => notes.push("no page was seen to change".to_owned()),
        }
        known.memory = Some(seen.memory_bytes);
        known.used = Some(seen.used_bytes);
        known.dirty_rate = Some(seen.dirty_rate);
        known.working_set = seen.working_set_pages;
        known.rewrite = seen.rewrite;
        known.sample = Sample::new(seen.content, PageSize::K4);
    } else {
        let told = qmp::ask(FilePath::new(from), args.for_seconds)?;
        notes.push(format!(
            "QEMU: {}, {:.0} pages change in a second (its page sampling counts in MiB); a monitor does not show \
             memory, so content and zero pages are taken from --pages and --used",
            say::size(told.memory_bytes),
            told.dirty_rate,
        ));
        known.memory = Some(told.memory_bytes);
        known.dirty_rate = Some(told.dirty_rate);
        known.channels = told.channels;
        known.downtime_limit_ms = told.downtime_limit_ms;
        known.max_bandwidth = told.max_bandwidth;
        if let Some(limit) = told.max_bandwidth {
            notes.push(format!(
                "its max-bandwidth is {} a second, of pages before relays compress them; 0 removes it",
                say::size(limit)
            ));
        }
    }
    Ok(known)
}

/// The processors of each end: those that were given, or those that other work leaves now.
fn processors(args: &PlanArgs, channels: f64, notes: &mut Vec<String>) -> f64 {
    if let Some(processors) = args.cpus {
        return processors;
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    // A relay and a QEMU have a thread for each channel; so has the other end, if it is here.
    let each = if args.same_host { 4.0 } else { 2.0 };
    let threads = ((channels * each) as usize).clamp(all, MOST_THREADS.max(all));
    let computing = share_of_processors(threads) * threads as f64;
    // Without a loopback, `host` says so.
    let waiting = processors_of_chains(channels as usize, CHAINS_TIME).unwrap_or(0.0);
    let free = computing.max(waiting).min(all as f64);
    notes.push(format!(
        "{free:.1} of {all} processors are free for {threads} threads now; --cpus says otherwise"
    ));
    free
}

/// What a plan compares unless told otherwise.
const USUAL: [Choice; 4] = [
    Choice::Fixed(Method::None),
    Choice::Fixed(Method::Zlib),
    Choice::Fixed(Method::Zstd),
    Choice::Auto,
];
const USUAL_CHANNELS: u64 = 2;
const USUAL_DOWNTIME_MS: u64 = 300;
/// A counter or a pointer.
const USUAL_REWRITE: usize = 8;
/// Devices of the published rows at each end.
const PUBLISHED_DEVICES: u32 = 4;
/// Long beside a time slice of the scheduler.
const CHAINS_TIME: Duration = Duration::from_millis(400);
/// More threads would say nothing else about the load.
const MOST_THREADS: usize = 64;
