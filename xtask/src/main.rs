//! The workspace's tasks: `cargo xtask VERB`, one file per verb.

#![forbid(unsafe_code)]

mod multifd;
mod tools;
mod verbs;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// What went wrong, in words for the person at the terminal.
type Error = Box<dyn std::error::Error>;
type Result<T> = std::result::Result<T, Error>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The tasks of this workspace")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what this machine has: QEMUs, tools, rights
    Detect,
    /// Build multifd and multifd-bench for release, and say what it will use on this machine
    Build,
    /// Make manual pages, completions and a Debian package, in target/dist
    Dist(verbs::dist::Arguments),
    /// Fetch the real parts from Debian into target/parts; the system stays as it is
    Setup(verbs::setup::Arguments),
    /// Move a running guest through two relays, and check that it arrives whole
    Demo(verbs::demo::Arguments),
    /// Run every test, and list by name what could not run here
    Test,
    /// Measure, beside what it is to be compared with
    #[command(subcommand)]
    Bench(verbs::bench::Bench),
    /// Record anew the migration that demo replays where there is no QEMU
    Recording,
    /// Capture anew migrations between real QEMUs, for the tests
    Capture(verbs::capture::Arguments),
    /// Migrations with faults at random places, and a verdict on each
    Campaign(verbs::campaign::Arguments),
    /// Long runs and measurements of the engines
    Soak(verbs::soak::Arguments),
    /// Run the fuzzers
    Fuzz(verbs::fuzz::Arguments),
    /// Formatting, lints, documentation, the line of crates, packages, licences
    Check(verbs::check::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Detect => verbs::detect::run(),
        Verb::Build => verbs::build::run(),
        Verb::Dist(arguments) => verbs::dist::run(&arguments),
        Verb::Setup(arguments) => verbs::setup::run(&arguments),
        Verb::Demo(arguments) => verbs::demo::run(&arguments),
        Verb::Bench(bench) => verbs::bench::run(&bench),
        Verb::Recording => verbs::recording::run(),
        Verb::Capture(arguments) => verbs::capture::run(&arguments),
        Verb::Campaign(arguments) => verbs::campaign::run(&arguments),
        Verb::Soak(arguments) => verbs::soak::run(&arguments),
        Verb::Fuzz(arguments) => verbs::fuzz::run(&arguments),
        Verb::Test => verbs::test::run(),
        Verb::Check(arguments) => verbs::check::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The top folder of the workspace.
fn workspace() -> PathBuf {
    // The manifest's parent exists by construction; a path without one would only make the commands
    // below fail.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// The cargo which runs this task, in the workspace's top folder.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Where cargo builds: the fuzz targets' workspace shares it with this one.
fn target_dir() -> std::path::PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR");
    named.map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// Runs a command with its output on the terminal.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?} ended with {status}").into())
    }
}

/// Runs a command quietly and gives what it printed.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{command:?} ended with {}:\n{}",
            output.status,
            said.trim_end()
        )
        .into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
