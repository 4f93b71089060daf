//! `cargo xtask campaign`: migrations with faults at random places, and a verdict on each.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use campaign::campaign::{Options, run as run_campaign};
use campaign::fault::Fault;
use campaign::scenario::Kind;

use crate::multifd;
use crate::{Result, target_dir};

#[derive(clap::Args)]
pub struct Arguments {
    /// No run begins after so many seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Seed of the first run; each further run has the next. The default is the clock
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// No more runs than this
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Real QEMUs instead of made peers
    #[arg(long)]
    qemu: bool,
    /// Only this kind: relay, relays, receive, record, engines, qemu, trunks or tls; repeatable
    #[arg(long, value_name = "KIND", value_parser = kind)]
    only: Vec<Kind>,
    /// Only runs with this fault, as a line of a broken promise names it
    #[arg(long, value_name = "FAULT", value_parser = fault)]
    fault: Option<Fault>,
    /// Runs at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    workers: usize,
    /// Seconds after which a run counts as hanging
    #[arg(long, value_name = "S", default_value_t = 60)]
    limit: u64,
    /// A multifd that is built already, instead of this tree's for release
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// A multifd-bench that is built already, instead of this tree's for release
    #[arg(long, value_name = "FILE")]
    sender: Option<PathBuf>,
}

/// A minute of it, with the programs that the tests have built. No run begins in the last seconds
/// of that minute, so that most runs end in it.
pub fn minute() -> Result<()> {
    let built = |name: &str| target_dir().join("debug").join(name);
    run(&Arguments {
        seconds: 55,
        seed: None,
        runs: None,
        qemu: false,
        only: Vec::new(),
        fault: None,
        workers: 4,
        limit: 60,
        program: Some(built("multifd")),
        sender: Some(built("multifd-bench")),
    })
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => multifd::build()?,
    };
    let sender = match &arguments.sender {
        Some(sender) => sender.clone(),
        None => multifd::build_bench()?,
    };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let seed = arguments.seed.unwrap_or(clock);
    let mut kinds = arguments.only.clone();
    if kinds.is_empty() {
        kinds = Kind::ALL.to_vec();
        kinds.retain(|kind| (*kind == Kind::Qemu) == arguments.qemu);
    }
    let names: Vec<_> = kinds.iter().map(ToString::to_string).collect();
    println!("seed {seed}, {}", names.join(", "));
    let options = Options {
        program,
        sender,
        time: Duration::from_secs(arguments.seconds),
        runs: arguments.runs,
        seed,
        kinds,
        fault: arguments.fault,
        workers: arguments.workers,
        limit: Duration::from_secs(arguments.limit),
    };
    let summary = run_campaign(&options, &|line| println!("{line}"))?;
    print!("{}", summary.text());
    match (summary.runs(), summary.failures()) {
        (0, _) => Err("nothing was run".into()),
        (_, 0) => Ok(()),
        (_, failures) => Err(format!("{failures} runs broke a promise").into()),
    }
}

fn fault(name: &str) -> std::result::Result<Fault, String> {
    Fault::named(name).ok_or_else(|| {
        let names: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
        format!("there is no such fault; there are: {}", names.join(", "))
    })
}

fn kind(name: &str) -> std::result::Result<Kind, String> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| format!("{name} is none of {}", Kind::ALL.map(Kind::name).join(", ")))
}
