//! Shared by the test programs.

use std::io::Write as _;

/// Reports by name that a test does not run. In CI this is a failure.
pub fn not_run(test: &str, why: &str) {
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!in_ci, "{test} must run in CI: {why}");
    // Bypasses the harness, which captures the print macros' output. One write keeps the line whole
    // among those of other tests.
    let line = format!("not run: {test}: {why}\n");
    let written = std::io::stderr().write_all(line.as_bytes());
    written.expect("standard error is open");
}
