//! `cargo xtask bench codec`: every codec of this machine, and those of stock QEMUs.

use std::ffi::OsString;
use std::process::Command;

use qemu_lab::{Part, Root};

use crate::multifd::release;
use crate::{Result, cargo, run as run_command};

#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments of the measuring program, such as --pages FILE --json OUT --streams 1,2,4
    /// --rounds N; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The program is separate because it must be built with optimisation, and because with Debian's
/// libqpl or ISA-L it runs on that release's C library.
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
