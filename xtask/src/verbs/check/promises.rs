//! Checks docs/promises.md: each promise names tests, and each of these tests exists.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::{Result, output, workspace};

const DOCUMENT: &str = "docs/promises.md";

/// Returns the faults of the document.
pub fn faults() -> Result<Vec<String>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "crates/*.rs"])
            .current_dir(workspace()),
    )?;
    let mut tests = BTreeSet::new();
    for file in listed.lines() {
        // Git still lists a file whose deletion is not yet committed.
        if let Ok(text) = fs::read_to_string(workspace().join(file)) {
            tests.extend(tests_in(&text));
        }
    }
    let document = fs::read_to_string(workspace().join(DOCUMENT))?;
    Ok(faults_in(&document, &tests))
}

fn faults_in(document: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, line) in document.lines().enumerate() {
        let place = format!("{DOCUMENT}:{}", index + 1);
        let mut cells = line.split('|').map(str::trim);
        let (Some(""), Some(promise), Some(named)) = (cells.next(), cells.next(), cells.next())
        else {
            continue;
        };
        if named == "tests" || named.starts_with("---") {
            continue;
        }
        let mut named = named.split('`').skip(1).step_by(2).peekable();
        if named.peek().is_none() {
            faults.push(format!("{place}: no test holds \"{promise}\""));
        }
        let missing = named.filter(|name| !tests.contains(*name));
        faults.extend(missing.map(|name| format!("{place}: there is no test {name}")));
    }
    faults
}

/// The names of the functions that stand after `#[test]`.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if is_test && let Some((name, _)) = rest.split_once('(') {
                names.push(name.to_owned());
            }
            is_test = false;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "#[test]\n#[cfg(unix)]\nfn it_holds() {}\nfn helper() {}\n";

    #[test]
    fn a_promise_with_a_test_has_no_fault() {
        let tests = tests_in(CODE).into_iter().collect();
        let document = "| promise | tests |\n| --- | --- |\n| It holds | `it_holds` |\n";
        assert_eq!(faults_in(document, &tests), Vec::<String>::new());
    }

    #[test]
    fn a_promise_without_a_test_is_a_fault() {
        let tests = tests_in(CODE).into_iter().collect();
        let document = "| It holds | `it_holds`, `helper` |\n| So does this | later |\n";
        assert_eq!(
            faults_in(document, &tests),
            [
                "docs/promises.md:1: there is no test helper",
                "docs/promises.md:2: no test holds \"So does this\"",
            ]
        );
    }
}
