//! The `multifd` command: flags and words for people. What it does is in `multifd-transport`.

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
mod bench;
mod codec;
mod detect;
mod guest;
mod inspect;
mod own;
mod receive;
mod record;
mod relay;
mod replay;
mod say;
mod send;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{BenchCommand, Cli, Command};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Relay(args) => relay::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Bench(BenchCommand::Migrate(args)) => bench::run(&args),
        Command::Receive(args) => receive::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Detect(args) => detect::run(&args),
        Command::Guest => guest::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say::note(say::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// What a command comes to; its error is printed with all its causes.
type Outcome = Result<(), Box<dyn Error>>;
