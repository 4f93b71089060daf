//! Support for tests with the simulated machine.
//!
//! libqpl looks for devices once per process, so a test that needs another machine than other tests
//! needs a process of its own. A process that finds libqpl may have been started through an
//! explicit dynamic loader, which its children need too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

/// Runs `body` in a process of its own: starts this test program again for this one test.
///
/// `test` is the name of the calling test as the test program knows it.
///
/// # Panics
///
/// If the other process fails, with its output.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    if std::env::var_os(VARIABLE).is_some_and(|running| running == test) {
        return body();
    }
    let program = std::env::args_os().next().expect("a program has a name");
    let output = launch(&program)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, test)
        .output()
        .expect("this program has been started once already");
    let [words, complaints] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(
        output.status.success(),
        "{test} in its own process: {}\n{words}{complaints}",
        output.status
    );
    // With a name that no test has, the harness runs nothing, successfully.
    assert!(
        words.contains("1 passed"),
        "there is no test {test}:\n{words}"
    );
}

/// A command that starts `program` in the same way as this process: through the same dynamic
/// loader.
pub fn launch(program: &OsStr) -> Command {
    let mut words = loader().into_iter().chain([program.to_owned()]);
    let mut command = Command::new(words.next().expect("the program at least"));
    command.args(words);
    command
}

/// The loader's arguments before the program's name, if there was an explicit loader.
fn loader() -> Vec<OsString> {
    // The kernel has the whole command line; the program only sees its own part.
    let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let words: Vec<&[u8]> = line.split_inclusive(|byte| *byte == 0).collect();
    let own = std::env::args_os().count();
    let words = words.iter().take(words.len().saturating_sub(own));
    words
        .map(|word| OsStr::from_bytes(&word[..word.len() - 1]).to_owned())
        .collect()
}

/// Names the test for which the process was started.
const VARIABLE: &str = "IAA_SIM_TEST";
