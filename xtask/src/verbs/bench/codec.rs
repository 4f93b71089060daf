//! `cargo xtask bench codec`: every codec this machine has, beside what stock QEMUs have.

use std::ffi::OsString;
use std::process::Command;

use qemu_lab::{Part, Root};

use crate::multifd::release;
use crate::{Result, cargo, run as run_command};

#[derive(clap::Args)]
pub struct Arguments {
    /// What the measuring program takes: --pages FILE --json OUT --streams 1,2,4 --rounds N; --help
    /// tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The program is not linked into this one, because it has to be built with optimisation, and
/// because with libqpl or ISA-L from Debian it runs on that release's C library.
pub fn run(arguments: &Arguments) -> Result<()> {
    run_command(cargo().args(BUILD))?;
    let program = release("codec")?;
    let mut command = match Root::of(Part::Qpl).or_else(|| Root::of(Part::IsaL)) {
        Some(root) => root.command(&program),
        None => Command::new(program),
    };
    run_command(command.args(&arguments.rest))
}

const BUILD: [&str; 7] = [
    "build",
    "--quiet",
    "--release",
    "--package",
    "multifd-benches",
    "--bin",
    "codec",
];
