//! `cargo xtask soak`: long runs and measurements of the engines, and guests of real libvirtd. They
//! need more time, memory or parts than a test run has.

mod libvirt;

use crate::{Result, cargo, run as run_command};

#[derive(clap::Args)]
pub struct Arguments {
    /// Sizes of guests in MiB; a large guest takes twice its size
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    mib: Vec<usize>,
    /// Only these: many-writes, large-guests, cost-by-memory, downtime-by-limit or libvirt
    runs: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let is_libvirt = |run: &&String| *run == "libvirt";
    if arguments.runs.iter().any(|run| is_libvirt(&run)) {
        libvirt::run()?;
        if arguments.runs.iter().all(|run| is_libvirt(&run)) {
            return Ok(());
        }
    }
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
        .args(arguments.runs.iter().filter(|run| !is_libvirt(run)));
    if !arguments.mib.is_empty() {
        let sizes: Vec<_> = arguments.mib.iter().map(ToString::to_string).collect();
        command.env("MULTIFD_SOAK_MIB", sizes.join(","));
    }
    run_command(&mut command)
}
