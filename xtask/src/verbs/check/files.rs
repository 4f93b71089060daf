//! What every Rust file of the tree keeps to: its length.

use std::fs;
use std::process::Command;

use crate::{Result, output, workspace};

/// A Rust file longer than this holds more than one idea, unless it is listed in `LONG_FILES`.
const LINES_PER_FILE: usize = 800;

/// Files that are longer for a reason.
const LONG_FILES: [&str; 0] = [];

/// The faults of all files that git knows.
pub fn faults() -> Result<Vec<String>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "*.rs"])
            .current_dir(workspace()),
    )?;
    let mut faults = Vec::new();
    for file in listed.lines() {
        // A file that is deleted but not yet committed is still listed.
        let Ok(text) = fs::read_to_string(workspace().join(file)) else {
            continue;
        };
        let lines = text.lines().count();
        if lines > LINES_PER_FILE && !LONG_FILES.contains(&file) {
            faults.push(format!(
                "{file} has {lines} lines, more than {LINES_PER_FILE}"
            ));
        }
    }
    Ok(faults)
}
