//! What the test programs share.

use std::io::Write as _;

/// Says by name that a test does not run. In CI that is a failure.
pub fn not_run(test: &str, why: &str) {
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!in_ci, "{test} must run in CI: {why}");
    // Past the harness, which captures what the print macros write, and whole, as other tests write
    // too.
    let line = format!("not run: {test}: {why}\n");
    let written = std::io::stderr().write_all(line.as_bytes());
    written.expect("standard error is open");
}
