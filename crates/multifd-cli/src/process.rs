//! The frame of a command's process: what surrounds its work from start to exit status.

use std::error::Error;
use std::fs;
use std::io;
use std::process::ExitCode;

use multifd_transport::cleanup;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::signals::Signals;
use crate::{out, say};

/// A command's outcome. An error is printed with all its causes.
pub type Outcome = Result<(), Box<dyn Error>>;

/// A failure with an exit status of its own, which a signal does not change.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Told {
    /// The exit status.
    pub(crate) status: u8,
    /// The message.
    pub(crate) words: String,
}

/// Runs a command of the program with this name, and makes its outcome known: in words on stderr,
/// and as exit status.
pub fn run(program: &'static str, command: impl FnOnce() -> Outcome) -> ExitCode {
    say::set_program(program);
    prepare();
    let status = match command() {
        Ok(()) => ExitCode::SUCCESS,
        // Silently, as other commands in a pipe end.
        Err(failure) if say::reader_is_gone(failure.as_ref()) => ExitCode::SUCCESS,
        Err(failure) if failure.is::<Told>() => {
            say::note(&failure);
            let told = failure.downcast_ref::<Told>();
            told.map_or(ExitCode::FAILURE, |told| ExitCode::from(told.status))
        }
        Err(failure) => {
            let told = say::chain(failure.as_ref());
            match Signals::told() {
                Some(signal) => say::note(format_args!("{signal}: {told}")),
                None => say::note(told),
            }
            Signals::status().map_or(ExitCode::FAILURE, ExitCode::from)
        }
    };
    for path in cleanup::stayed() {
        say::note(format_args!(
            "{} stays, and is not whole: remove it",
            say::printable_path(&path)
        ));
    }
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
            "a signal ends multifd at once and may leave sockets behind: {error}"
        ));
    }
    if let Err(error) = raise_descriptors() {
        say::note(format_args!(
            "the limit of descriptors stays as it is: {error}"
        ));
    }
}

/// Takes all descriptors that the process may have: a migration through a relay needs four for each
/// channel, and the usual soft limit of 1024 is for programs that use select.
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

/// The processor time that this process has used, with all its threads.
///
/// # Errors
///
/// When the system does not tell.
pub fn cpu_seconds() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may hold anything. What follows it is counted from field 3
    // (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(UTIME - 3).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

const UTIME: usize = 14;
/// Linux reports times to programs at this rate, independent of its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time() {
        let before = cpu_seconds().unwrap();
        let mut sum = 0_u64;
        while cpu_seconds().unwrap() < before + 0.02 {
            sum = (0..1_000_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
    }
}
