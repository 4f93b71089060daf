//! `cargo xtask test`: runs all tests and a minute of the campaign, and lists by name the tests
//! that could not run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use qemu_lab::{MISSING_LOG, Part, Root, SETUP_COMMAND};

use super::campaign;
use crate::{Result, cargo, run as run_command, target_dir, workspace};

/// The crates with tests that open libqpl. (Those of `multifd-cli` start relays that do, and run
/// with everything else.)
const USE_QPL: [&str; 5] = [
    "qpl-sys",
    "iaa-detect",
    "iaa-sim",
    "multifd-codec",
    "multifd-relay",
];

/// Crates among them that must also work without libqpl.
const WORK_WITHOUT_QPL: [&str; 3] = ["iaa-detect", "multifd-codec", "multifd-relay"];

/// Most long tests wait: for guests, for time limits, for slow links. So more of them run at once
/// than there are processors. Those with libqpl do not wait: the simulated device would be late.
const THREADS: &str = "6";
/// The test harness's variable for that.
const TEST_THREADS: &str = "RUST_TEST_THREADS";

/// Runs each test program under coreutils' `timeout`, which ends one after that many seconds (exit
/// status 124): a test that waits for ever is a failure, and its name stands above it in the output
/// ("has been running for over 60 seconds"). The longest takes four minutes on two processors.
const TIMEOUT: [&str; 3] = ["timeout", "--kill-after=10", "900"];

pub fn run() -> Result<()> {
    let log = workspace().join("target/tests-not-run");
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let mut outcome = Ok(());
    let mut everything = cargo();
    everything
        .args(["test", "--workspace", "--no-fail-fast"])
        .arg(limited())
        .env(TEST_THREADS, THREADS)
        .env(MISSING_LOG, &log);
    match Root::of(Part::Qpl) {
        None => outcome = outcome.and(run_command(&mut everything)),
        Some(root) => {
            everything.args(USE_QPL.map(|name| format!("--exclude={name}")));
            outcome = outcome.and(run_command(&mut everything));
            // Simulates a machine without libqpl. Tests that need it run below, so none is missing.
            let mut without = cargo();
            without
                .args(["test", "--no-fail-fast"])
                .arg(limited())
                .args(WORK_WITHOUT_QPL.map(|name| format!("--package={name}")))
                .env(TEST_THREADS, THREADS)
                .env_remove("CI");
            outcome = outcome.and(run_command(&mut without));
            println!("\n== with libqpl from {}\n", root.dir().display());
            outcome = outcome.and(run_command(&mut with_qpl(&root, &log)));
        }
    }
    let fuzz = workspace().join("fuzz/Cargo.toml");
    if fuzz.is_file() {
        let fuzz_outcome = run_command(
            cargo()
                .arg("test")
                .arg(limited())
                .arg("--manifest-path")
                .arg(fuzz)
                .arg("--target-dir")
                .arg(target_dir())
                .env(MISSING_LOG, &log),
        );
        outcome = outcome.and(fuzz_outcome);
    }
    // It judges by time limits, so nothing else runs beside it.
    println!("\n== a minute of the campaign\n");
    outcome = outcome.and(campaign::minute());
    let not_run = fs::read_to_string(&log).unwrap_or_default();
    print!("{}", summary(&not_run));
    outcome
}

/// Cargo's option for [`TIMEOUT`].
fn limited() -> String {
    format!("--config=target.'cfg(unix)'.runner={TIMEOUT:?}")
}

/// Runs test programs with the root's loader and libraries, including libqpl.
fn with_qpl(root: &Root, log: &Path) -> Command {
    let loader = root.loader();
    let runner = format!(
        "{} {} --library-path {}",
        TIMEOUT.join(" "),
        loader.display(),
        root.library_path()
    );
    let mut command = cargo();
    command
        .args(["test", "--no-fail-fast", "--tests"])
        .args(USE_QPL.map(|name| format!("--package={name}")))
        .env(RUNNER, runner)
        .env("QPL_INCLUDE", root.dir().join("usr/include"))
        .env(MISSING_LOG, log);
    command
}

/// Cargo's variable for the runner of test programs. libqpl exists only for this target.
const RUNNER: &str = "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER";

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
        let remedy = if Part::ALL.iter().any(|known| known.name() == part) {
            format!(" (to have it: {SETUP_COMMAND} {part})")
        } else {
            String::new()
        };
        text.push_str(&format!("\nNOT RUN, for lack of {part}{remedy}:\n"));
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
        let log = "the right to make network namespaces\tc.rs: three\n";
        let expected =
            "\nNOT RUN, for lack of the right to make network namespaces:\n    c.rs: three\n";
        assert_eq!(summary(log), expected);
        assert_eq!(summary(""), "\nEvery test ran.\n");
    }
}
