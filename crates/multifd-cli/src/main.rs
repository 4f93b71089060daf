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
mod json;
mod out;
mod own;
mod receive;
mod record;
mod relay;
mod replay;
mod say;
mod send;
mod signals;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::args::{BenchCommand, Cli, Command};
use crate::signals::Signals;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Guest) {
        prepare();
    }
    let outcome = match command {
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
    let status = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let told = say::chain(failure.as_ref());
            match Signals::told() {
                Some(signal) => say::note(format_args!("{signal}: {told}")),
                None => say::note(told),
            }
            Signals::status().map_or(ExitCode::FAILURE, ExitCode::from)
        }
    };
    say::last_words();
    status
}

/// Makes the process ready for what may happen to it.
fn prepare() {
    // The system's own words about a panic would wait for the reader of stderr.
    std::panic::set_hook(Box::new(|panic| {
        say::note(format_args!("a defect of this program: {panic}"));
    }));
    out::STDERR.start();
    out::STDOUT.start();
    if let Err(error) = Signals::watch() {
        say::note(format_args!(
            "signals will end this at once, and sockets may stay: {error}"
        ));
    }
    if let Err(error) = raise_descriptors() {
        say::note(format_args!(
            "the limit of descriptors stays as it is: {error}"
        ));
    }
}

/// Takes all descriptors that the process may have: a migration through a relay needs four for each channel, and the usual
/// soft limit of 1024 is for programs that use select.
fn raise_descriptors() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    let most = limit.maximum;
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: most,
            maximum: most,
        },
    )?)
}

/// What a command comes to; its error is printed with all its causes.
type Outcome = Result<(), Box<dyn Error>>;
