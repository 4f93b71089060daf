//! Checks of every Rust file, its length and the width of its comments, and of every document, the
//! width of its lines.

use std::fs;
use std::process::Command;

use crate::{Result, output, workspace};

/// A Rust file longer than this has more than one idea, unless `LONG_FILES` lists it.
const LINES_PER_FILE: usize = 800;

/// Files that are longer for a reason.
const LONG_FILES: [&str; 0] = [];

/// The width of a comment is rustfmt's for code. (Its own `comment_width` needs a nightly.)
const COMMENT_COLUMNS: usize = 100;

/// The width of a document's lines: two documents fit beside each other on a usual screen.
const DOCUMENT_COLUMNS: usize = 120;

/// Documents as a program printed them.
const PRINTED: &str = "benches/results/";

/// Returns the faults of all files tracked by git.
pub fn faults() -> Result<Vec<String>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "*.rs", "*.md"])
            .current_dir(workspace()),
    )?;
    let mut faults = Vec::new();
    for file in listed.lines() {
        // Git still lists a file whose deletion is not yet committed.
        let Ok(text) = fs::read_to_string(workspace().join(file)) else {
            continue;
        };
        if file.ends_with(".md") {
            let lines = if file.starts_with(PRINTED) { "" } else { &text };
            for (number, columns) in wide_lines(lines) {
                faults.push(format!(
                    "{file}:{number}: a line of {columns} columns, more than {DOCUMENT_COLUMNS}"
                ));
            }
            continue;
        }
        let lines = text.lines().count();
        if lines > LINES_PER_FILE && !LONG_FILES.contains(&file) {
            faults.push(format!(
                "{file} has {lines} lines, more than {LINES_PER_FILE}"
            ));
        }
        for (number, columns) in wide_comments(&text) {
            faults.push(format!(
                "{file}:{number}: a comment of {columns} columns, more than {COMMENT_COLUMNS}"
            ));
        }
    }
    Ok(faults)
}

/// The numbers and widths of lines whose comment should have been wrapped. Tables, code and
/// addresses of pages are exempt.
fn wide_comments(text: &str) -> Vec<(usize, usize)> {
    let mut wide = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        let Some(start) = comment_start(line) else {
            in_code = false;
            continue;
        };
        let comment = line.get(start..).unwrap_or_default();
        let words = comment.trim_start_matches('/');
        let words = words.strip_prefix('!').unwrap_or(words);
        if words.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let is_exempt = in_code
            || words.starts_with("     ")
            || words.trim_start().starts_with('|')
            || words.contains("://");
        let columns = line.chars().count();
        if columns > COMMENT_COLUMNS && !is_exempt {
            wide.push((index + 1, columns));
        }
    }
    wide
}

/// The numbers and widths of a document's lines that should have been wrapped. Tables, code and
/// lines of one word are exempt.
fn wide_lines(text: &str) -> Vec<(usize, usize)> {
    let mut wide = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        let words = line.trim_start();
        if words.starts_with("```") {
            in_code = !in_code;
        }
        let is_exempt = in_code
            || line.starts_with("     ")
            || words.starts_with('|')
            || words.split_whitespace().nth(1).is_none();
        let columns = line.chars().count();
        if columns > DOCUMENT_COLUMNS && !is_exempt {
            wide.push((index + 1, columns));
        }
    }
    wide
}

/// The start of a line's comment: `//` outside of a string. Strings over several lines are not
/// recognised.
fn comment_start(line: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    let mut in_string = false;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let is_after = |end: &[u8]| bytes.get(..at).is_some_and(|before| before.ends_with(end));
        match byte {
            b'\\' if in_string => at += 1,
            // A quote as a character, `'"'`, does not start a string.
            b'"' if !is_after(b"'") => in_string = !in_string,
            // `://` is an address, in a string that began on an earlier line.
            b'/' if !in_string && bytes.get(at + 1) == Some(&b'/') && !is_after(b":") => {
                return Some(at);
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_comment_is_found_wherever_it_stands() {
        let words = "word ".repeat(20);
        for begin in ["// ", "    /// ", "//! ", "let a = \"b\"; // ", "'\"'; // "] {
            let text = format!("fn f() {{}}\n{begin}{words}end\n");
            let columns = begin.len() + words.len() + 3;
            assert_eq!(wide_comments(&text), [(2, columns)], "{begin}");
        }
        assert!(wide_comments(&format!("// {}", "a".repeat(97))).is_empty());
        assert_eq!(wide_comments(&format!("// {}", "ä".repeat(98))), [(1, 101)]);
    }

    #[test]
    fn a_wide_line_of_a_document_is_found() {
        let words = "word ".repeat(25);
        for begin in ["", "- ", "  - "] {
            let text = format!("# Title\n\n{begin}{words}end\n");
            let columns = begin.len() + words.len() + 3;
            assert_eq!(wide_lines(&text), [(3, columns)], "{begin}");
        }
        for text in [
            format!("| {words}|"),
            format!("      {words}"),
            format!("```text\n{words}\n```"),
            "a".repeat(200),
            format!("{} end", "ä".repeat(116)),
        ] {
            assert!(wide_lines(&text).is_empty(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_wrapped_may_be_wide() {
        let words = "word ".repeat(20);
        for text in [
            format!("/// | {words}|"),
            format!("//     {words}"),
            format!("/// ```\n/// {words}\n/// ```"),
            format!("// https://example.org/{words}"),
            format!("let text = \"// {words}\";"),
            format!("deb http://example.org/ {words}\\n\\"),
        ] {
            assert!(wide_comments(&text).is_empty(), "{text}");
        }
    }
}
