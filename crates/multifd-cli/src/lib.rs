//! The command `multifd`: flags and words for people. The work is done in the crates below.
//!
//! The library exists for the command `multifd-bench`. Both commands share [options of the
//! codec](CodecArgs), the [frame of a process](process), [output](say), [signals], and the
//! [receiver](receive) of a guest. It changes with the commands, and promises nothing to other
//! programs.

#![warn(unreachable_pub)]
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
mod codec;
mod config;
mod detect;
mod doctor;
mod inspect;
mod json;
mod operate;
mod out;
mod pace;
mod page;
pub mod process;
pub mod receive;
mod record;
mod relay;
mod replay;
mod sandbox;
pub mod say;
pub mod signals;
#[cfg(feature = "tls")]
mod tls;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
pub use crate::args::{CodecArgs, ReceiveArgs, address};

/// The command `multifd`.
pub fn main() -> ExitCode {
    let args = config::expand(&Cli::command(), std::env::args_os().collect());
    let args = args.unwrap_or_else(|fault| {
        let kind = clap::error::ErrorKind::ValueValidation;
        clap::Error::raw(kind, format_args!("{fault}\n")).exit()
    });
    match Cli::parse_from(args).command {
        Command::Relay(args) => {
            // Threads would be outside of a sandbox that comes after them.
            let confined = relay::confine(&args);
            run(|| relay::run(&args, confined))
        }
        Command::Accept(args) => {
            let sandbox = sandbox::Sandbox::calls();
            run(|| operate::accept(&args, &sandbox))
        }
        Command::Migrate(args) => {
            let sandbox = sandbox::Sandbox::calls();
            run(|| operate::migrate(&args, &sandbox))
        }
        Command::Receive(args) => run(|| receive::run(&args)),
        Command::Record(args) => run(|| record::run(&args)),
        Command::Replay(args) => run(|| replay::run(&args)),
        Command::Inspect(args) => run(|| inspect::run(&args)),
        Command::Detect(args) => run(|| detect::run(&args)),
        Command::Doctor(args) => run(|| doctor::run(&args)),
        #[cfg(feature = "tls")]
        Command::Tls(args) => run(|| tls::run(&args)),
    }
}

fn run(command: impl FnOnce() -> process::Outcome) -> ExitCode {
    process::run("multifd", command)
}

/// The command line, as clap has it: man pages and completions are made from this.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
