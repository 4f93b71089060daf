//! The command that starts this program again.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

/// A command that starts this program again, through the same dynamic loader if it was started
/// through an explicit one.
///
/// # Errors
///
/// If the system does not report how this process was started.
pub(super) fn command() -> io::Result<Command> {
    let line = fs::read("/proc/self/cmdline")?;
    let mut words: Vec<OsString> = line
        .strip_suffix(b"\0")
        .unwrap_or(&line)
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    // The system's list may begin with the loader and its arguments. The program's own list does
    // not have them.
    words.truncate((words.len() + 1).saturating_sub(std::env::args_os().count()));
    let mut command = Command::new(std::env::current_exe()?);
    command.args(words.into_iter().skip(1));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_started_without_its_arguments() {
        let command = command().unwrap();
        assert_eq!(command.get_program(), std::env::current_exe().unwrap());
        assert_eq!(command.get_args().count(), 0);
    }
}
