//! `cargo xtask test`: everything, and by name what could not run.

use std::collections::BTreeMap;
use std::fs;

use qemu_lab::{MISSING_LOG, SETUP_COMMAND};

use crate::{Result, cargo, run as run_command, workspace};

pub fn run() -> Result<()> {
    let log = workspace().join("target/tests-not-run");
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let mut outcome = run_command(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            .env(MISSING_LOG, &log),
    );
    let fuzz = workspace().join("fuzz/Cargo.toml");
    if fuzz.is_file() {
        let fuzz_outcome = run_command(
            cargo()
                .arg("test")
                .arg("--manifest-path")
                .arg(fuzz)
                .env(MISSING_LOG, &log),
        );
        outcome = outcome.and(fuzz_outcome);
    }
    let not_run = fs::read_to_string(&log).unwrap_or_default();
    print!("{}", summary(&not_run));
    outcome
}

/// One paragraph per missing part: the tests that need it and the command that brings it.
fn summary(not_run: &str) -> String {
    let mut by_part: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (part, test) in not_run.lines().filter_map(|line| line.split_once('\t')) {
        by_part.entry(part).or_default().push(test);
    }
    if by_part.is_empty() {
        return "\nEvery test ran.\n".to_owned();
    }
    let mut text = String::new();
    for (part, mut tests) in by_part {
        tests.sort_unstable();
        tests.dedup();
        text.push_str(&format!(
            "\nNOT RUN, for lack of {part} (to have it: {SETUP_COMMAND} {part}):\n"
        ));
        for test in tests {
            text.push_str(&format!("    {test}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn what_did_not_run_is_named_once_under_its_part() {
        let log = "qpl\tb.rs: two\nqemu-7.2\ta.rs: one\nqpl\tb.rs: two\n";
        let expected = "\nNOT RUN, for lack of qemu-7.2 (to have it: cargo xtask setup qemu-7.2):\n    a.rs: one\n\
                        \nNOT RUN, for lack of qpl (to have it: cargo xtask setup qpl):\n    b.rs: two\n";
        assert_eq!(summary(log), expected);
        assert_eq!(summary(""), "\nEvery test ran.\n");
    }
}
