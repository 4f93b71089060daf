//! `cargo xtask soak`: long runs and measurements of the engines, which no test run has the time or
//! the memory for.

use crate::{Result, cargo, run as run_command};

#[derive(clap::Args)]
pub struct Arguments {
    /// Sizes of guests in MiB; a large guest takes twice its size
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    mib: Vec<usize>,
    /// Only these: many-writes, large-guests, cost-by-memory or downtime-by-limit
    runs: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = cargo();
    command
        .args([
            "bench",
            "--package",
            "multifd-engine",
            "--bench",
            "soak",
            "--",
        ])
        .args(&arguments.runs);
    if !arguments.mib.is_empty() {
        let sizes: Vec<_> = arguments.mib.iter().map(ToString::to_string).collect();
        command.env("MULTIFD_SOAK_MIB", sizes.join(","));
    }
    run_command(&mut command)
}
