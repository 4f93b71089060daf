//! What this process knows of itself.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

/// A command that starts this program once more: with the same dynamic loader, if it was started by one by name.
///
/// # Errors
///
/// When the system does not tell how this process was started.
pub fn command() -> io::Result<Command> {
    let line = fs::read("/proc/self/cmdline")?;
    let mut words: Vec<OsString> = line
        .strip_suffix(b"\0")
        .unwrap_or(&line)
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    // The system's list begins with a loader and what it was told, which the program itself does not see.
    words.truncate((words.len() + 1).saturating_sub(std::env::args_os().count()));
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words.into_iter().skip(1));
    Ok(command)
}

/// The processor time that this process has used, with all its threads.
///
/// # Errors
///
/// When the system does not tell.
pub fn cpu_seconds() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may hold anything. What follows it is counted from field 3 (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(UTIME - 3).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

const UTIME: usize = 14;
/// What Linux shows to programs, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_started_without_its_arguments() {
        let command = command().unwrap();
        assert_eq!(command.get_program(), std::env::current_exe().unwrap());
        assert_eq!(command.get_args().count(), 0);
    }

    #[test]
    fn work_takes_time() {
        let before = cpu_seconds().unwrap();
        let mut sum = 0_u64;
        while cpu_seconds().unwrap() < before + 0.02 {
            sum = (0..1_000_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
    }
}
