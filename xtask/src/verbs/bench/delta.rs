//! `cargo xtask bench delta`: differences between pages, beside whole pages.

use std::ffi::OsString;
use std::process::Command;

use crate::multifd::{build_bench, release};
use crate::{Result, cargo, run as run_command};

#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments of the measuring program, such as --rounds N --seconds S; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The program is separate because it must be built with optimisation.
pub fn run(arguments: &Arguments) -> Result<()> {
    let guest = build_bench()?;
    run_command(cargo().args(BUILD))?;
    let mut command = Command::new(release("delta")?);
    run_command(command.arg("--guest").arg(guest).args(&arguments.rest))
}

const BUILD: [&str; 7] = [
    "build",
    "--quiet",
    "--release",
    "--package",
    "multifd-benches",
    "--bin",
    "delta",
];
