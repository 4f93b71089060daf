//! A campaign: many runs, several at a time, and a summary of their verdicts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::engines;
use crate::fault::Fault;
use crate::locked;
use crate::pool::Pool;
use crate::qemu;
use crate::receivers;
use crate::relays;
use crate::scenario::{Kind, Scenario};
use crate::verdict::Class;

/// The options of a campaign.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `multifd` under test.
    pub program: PathBuf,
    /// The `multifd-bench` that sends guests to it.
    pub sender: PathBuf,
    /// The time after which no run begins.
    pub time: Duration,
    /// The most runs.
    pub runs: Option<u64>,
    /// The seed of the first run. Each further run has the next number.
    pub seed: u64,
    /// The kinds of runs.
    pub kinds: Vec<Kind>,
    /// The only fault to run, if one is given.
    pub fault: Option<Fault>,
    /// The number of runs at a time.
    pub workers: usize,
    /// Time after which a run counts as hanging.
    pub limit: Duration,
}

/// The result of a campaign.
#[derive(Debug, Default)]
pub struct Summary {
    /// The number of runs of each kind and class.
    pub classes: BTreeMap<(Kind, Class), u64>,
    /// The number of runs of each kind that broke a promise.
    pub broken: BTreeMap<Kind, u64>,
    /// The seeds of the runs that broke a promise, by promise and fault.
    pub promises: BTreeMap<(String, &'static str), Vec<u64>>,
    /// The time of the longest run.
    pub longest: Duration,
    /// The time of the campaign.
    pub took: Duration,
}

impl Summary {
    /// The number of runs.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.classes.values().sum::<u64>() + self.failures()
    }

    /// The number of runs that broke a promise.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.broken.values().sum()
    }

    /// The summary in words.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut kinds: Vec<Kind> = self.classes.keys().map(|(kind, _)| *kind).collect();
        kinds.extend(self.broken.keys());
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            let ends = self.classes.iter().filter(|((of, _), _)| *of == kind);
            let ends: Vec<_> = ends
                .map(|((_, class), runs)| format!("{class} {runs}"))
                .collect();
            let broken = self.broken.get(&kind).copied().unwrap_or(0);
            let runs = broken
                + self
                    .classes
                    .iter()
                    .filter(|((of, _), _)| *of == kind)
                    .map(|(_, runs)| runs)
                    .sum::<u64>();
            let ends = ends.join(", ");
            let _ = writeln!(
                text,
                "{kind:<8} {runs:>6} runs: {ends}; broken promises: {broken}"
            );
        }
        let _ = writeln!(
            text,
            "{} runs in {:.0} s, the longest {:.1} s",
            self.runs(),
            self.took.as_secs_f64(),
            self.longest.as_secs_f64()
        );
        for ((promise, fault), seeds) in &self.promises {
            let some: Vec<_> = seeds.iter().take(4).map(u64::to_string).collect();
            let _ = writeln!(
                text,
                "  {promise} with {fault}: {} (seeds {} ...)",
                seeds.len(),
                some.join(", ")
            );
        }
        text
    }
}

/// Resources that all runs of a worker share.
#[derive(Debug)]
pub struct Bench {
    /// The `multifd` under test.
    pub program: PathBuf,
    /// The `multifd-bench` that sends guests to it.
    pub sender: PathBuf,
    /// Time after which a run counts as hanging.
    pub limit: Duration,
    base: PathBuf,
    folders: AtomicUsize,
    certificates: OnceLock<Result<PathBuf, String>>,
}

impl Bench {
    /// Resources for `multifd` and `multifd-bench`. The runs' files are below `base`.
    #[must_use]
    pub fn new([program, sender]: [&Path; 2], base: &Path, limit: Duration) -> Self {
        Self {
            program: program.to_owned(),
            sender: sender.to_owned(),
            limit,
            base: base.to_owned(),
            folders: AtomicUsize::new(0),
            certificates: OnceLock::new(),
        }
    }

    /// The folder with certificates for encrypted trunks.
    pub fn certificates(&self) -> Result<PathBuf, String> {
        let made = self.certificates.get_or_init(|| {
            let folder = self.folder()?.join("tls");
            let mut command = Command::new(&self.program);
            command.args(["tls", "init"]).arg(&folder);
            let output = command.args(["--host", "127.0.0.1"]).output();
            let output = output.map_err(|error| format!("multifd tls init: {error}"))?;
            match output.status.success() {
                true => Ok(folder),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        });
        made.clone()
    }

    /// A new, empty folder.
    pub fn folder(&self) -> Result<PathBuf, String> {
        let number = self.folders.fetch_add(1, Ordering::SeqCst);
        let folder = self.base.join(format!("{number}"));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(folder)
    }
}

/// Runs a campaign, and calls `tell` with a line for each broken promise.
pub fn run(options: &Options, tell: &(dyn Fn(&str) + Sync)) -> Result<Summary, String> {
    let base = tempfile::Builder::new().prefix("campaign").tempdir();
    let base = base.map_err(|error| format!("no temporary folder: {error}"))?;
    let text = |error: std::io::Error| error.to_string();
    // The copies stay if the programs are built anew, and other users can run them.
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).map_err(text)?;
    let [program, sender] = ["multifd", "multifd-bench"].map(|name| base.path().join(name));
    for (from, to) in [(&options.program, &program), (&options.sender, &sender)] {
        fs::copy(from, to).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for worker in 0..options.workers.max(1) {
            let folder = base.path().join(format!("w{worker}"));
            let bench = Bench::new([&program, &sender], &folder, options.limit);
            let (next, summary) = (&next, &summary);
            scope.spawn(move || {
                let mut pool = Pool::default();
                while begun.elapsed() < options.time {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if options.runs.is_some_and(|runs| index >= runs) {
                        break;
                    }
                    let seed = options.seed.wrapping_add(index);
                    one(&bench, &mut pool, seed, options, summary, tell);
                }
                let left = pool.end();
                let mut summary = locked(summary);
                for fault in left {
                    tell(&format!("at the end: {fault}"));
                    *summary.broken.entry(Kind::Relay).or_default() += 1;
                    summary
                        .promises
                        .entry((promise(&fault), "the end"))
                        .or_default()
                        .push(0);
                }
            });
        }
    });
    let mut summary = summary
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.took = begun.elapsed();
    Ok(summary)
}

/// Does the run of a seed.
fn one(
    bench: &Bench,
    pool: &mut Pool,
    seed: u64,
    options: &Options,
    summary: &Mutex<Summary>,
    tell: &(dyn Fn(&str) + Sync),
) {
    let begun = Instant::now();
    let (scenario, plan) = Scenario::new(seed, &options.kinds);
    if options.fault.is_some_and(|fault| fault != scenario.fault) {
        return;
    }
    let outcome = match scenario.kind {
        Kind::Relay | Kind::Relays | Kind::Trunks | Kind::Tls => {
            relays::run(bench, pool, &scenario, &plan)
        }
        Kind::Receive | Kind::Record => receivers::run(bench, &scenario, &plan),
        Kind::Engines => engines::run(bench, &scenario, &plan),
        Kind::Qemu => qemu::run(bench, pool, &scenario, &plan),
    };
    let took = begun.elapsed();
    let mut summary = locked(summary);
    summary.longest = summary.longest.max(took);
    match outcome {
        Ok(class) => *summary.classes.entry((scenario.kind, class)).or_default() += 1,
        Err(faults) => {
            *summary.broken.entry(scenario.kind).or_default() += 1;
            for fault in faults.iter().filter(|fault| !fault.starts_with(' ')) {
                let key = (promise(fault), scenario.fault.name());
                summary.promises.entry(key).or_default().push(seed);
            }
            let only: Vec<_> = options
                .kinds
                .iter()
                .map(|kind| format!(" --only {kind}"))
                .collect();
            let only = if options.kinds.len() < Kind::ALL.len() - 1 {
                only.concat()
            } else {
                String::new()
            };
            tell(&format!(
                "seed {seed}: {}, {}: {:.1} s (--seed {seed} --runs 1{only})\n  {}\n    {}",
                scenario.kind,
                scenario.fault,
                took.as_secs_f64(),
                faults.join("\n  "),
                scenario.brief()
            ));
        }
    }
}

/// The promise that a fault breaks: the text before its colon.
fn promise(fault: &str) -> String {
    fault.split(':').next().unwrap_or_default().to_owned()
}
