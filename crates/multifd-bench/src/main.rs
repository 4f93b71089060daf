//! The command `multifd-bench`: flags, words and tables. The guests and the links are in the library.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

mod args;
mod guest;
mod migrate;
mod own;
mod send;

use std::process::ExitCode;

use clap::Parser;
use multifd_cli::process;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        // A guest reads and writes its orders, and prints nothing for people.
        Command::Guest => guest::run(NAME),
        Command::Migrate(args) => process::run(NAME, || migrate::run(&args)),
        Command::Send(args) => process::run(NAME, || send::run(&args)),
        Command::Receive(args) => process::run(NAME, || {
            // It waits for a source that comes from `migrate` alone, and so ends with that.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            multifd_cli::receive::run(&args)
        }),
    }
}

/// The name that stands before each note.
const NAME: &str = "multifd-bench";
