//! The command `multifd-bench`: flags, output and tables.

mod args;
mod guest;
mod migrate;
mod plan;
mod send;
mod this_program;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use multifd_cli::process;
use rustix::process::{Signal, set_parent_process_death_signal};

use self::args::{Cli, Command};

/// The command `multifd-bench`.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        // A guest's standard input and output carry orders, so it prints nothing for people.
        Command::Guest => guest::run(NAME),
        Command::Migrate(args) => process::run(NAME, || migrate::run(&args)),
        Command::Plan(args) => process::run(NAME, || plan::run(&args)),
        Command::Send(args) => process::run(NAME, || send::run(&args)),
        Command::Receive(args) => process::run(NAME, || {
            // It waits for a source that only `migrate` starts, and so must end together with it.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            multifd_cli::receive::run(&args)
        }),
    }
}

/// The command line as clap's definition, from which man pages and completions are made.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// The prefix of each note.
const NAME: &str = "multifd-bench";
