//! Runs that take too long, or too much memory, for every test run. `cargo xtask soak` starts them.

mod measure;

use std::env;
use std::fs;
use std::num::NonZeroU8;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use multifd_engine::Parameters;
use testkit::engine::{MIB, Place, memory, migrates_whole, no_write_is_lost};

/// The runs, by name.
const RUNS: [(&str, fn()); 4] = [
    ("many-writes", many_writes),
    ("large-guests", large_guests),
    ("cost-by-memory", measure::cost_by_memory),
    ("downtime-by-limit", measure::downtime_by_limit),
];

fn main() -> ExitCode {
    // `cargo bench` adds a word of its own.
    let wanted: Vec<_> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let names = RUNS.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|word| !names.contains(&word.as_str())) {
        eprintln!("there is no run {unknown}; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    for (name, run) in RUNS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!("== {name}");
            let begun = Instant::now();
            // A broken promise panics, and so ends all of it.
            run();
            println!("{name}: {:.0} s\n", begun.elapsed().as_secs_f64());
        }
    }
    ExitCode::SUCCESS
}

/// The kernel's dirty log under a hundred times as many writes as the tests make.
fn many_writes() {
    no_write_is_lost(&memory(&[("ram", 256 * MIB)]), 2000, false);
}

/// Guests that are larger than a test may have, compared page by page at both ends.
fn large_guests() {
    for mib in sizes("1024,8192") {
        // Both ends have the guest's memory.
        let needs = 2 * mib;
        if available_mib().is_some_and(|available| available < needs) {
            println!("NOT RUN, for lack of {needs} MiB of free memory: a guest of {mib} MiB");
            continue;
        }
        let mut parameters = Parameters::default();
        parameters.multifd_channels = NonZeroU8::new(4).unwrap();
        parameters.downtime_limit = Duration::from_secs(2);
        migrates_whole(&Place::unix(), mib * MIB, &parameters);
        println!("{mib} MiB: equal");
    }
}

/// The sizes of guests in MiB: `cargo xtask soak --mib` names them in the environment.
fn sizes(usual: &str) -> Vec<usize> {
    let named = env::var("MULTIFD_SOAK_MIB");
    let sizes = named.as_deref().unwrap_or(usual).split(',');
    sizes.map(|mib| mib.parse().expect("MiB")).collect()
}

fn available_mib() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}
