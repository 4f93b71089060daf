//! `cargo xtask bench migrate`: `multifd-bench migrate`, with libqpl if it has been set up.

use std::ffi::OsString;
use std::process::Command;

use qemu_lab::{Part, Root};

use crate::{Result, multifd, run as run_command};

#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments of `multifd-bench migrate`; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let program = multifd::build_bench()?;
    let mut command = match Root::of(Part::Qpl) {
        Some(root) => root.command(&program),
        None => Command::new(program),
    };
    run_command(command.arg("migrate").args(&arguments.rest))
}
