//! Finds this machine's Debian mirror in its apt sources.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// A Debian mirror's names for its releases, besides the machine's own code name.
const SUITES: [&str; 5] = ["stable", "testing", "unstable", "sid", "oldstable"];

/// The first mirror in the machine's sources that has a release of Debian itself.
pub fn of_this_machine() -> Result<String> {
    let codename = fs::read_to_string("/etc/os-release").ok().and_then(|text| {
        Some(
            text.lines()
                .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?
                .to_owned(),
        )
    });
    let mut names: Vec<&str> = SUITES.to_vec();
    names.extend(codename.as_deref());
    for path in source_files() {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let sources = if path
            .extension()
            .is_some_and(|extension| extension == "sources")
        {
            stanzas(&text)
        } else {
            one_line_entries(&text)
        };
        let found = sources.into_iter().find(|source| {
            source
                .suites
                .iter()
                .any(|suite| names.contains(&suite.as_str()))
        });
        if let Some(source) = found {
            return Ok(source.uri);
        }
    }
    Err("no apt source of this machine names a Debian mirror (looked in /etc/apt/sources.list and sources.list.d)".into())
}

fn source_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sources" || extension == "list")
        })
        .collect();
    files.sort();
    files.insert(0, Path::new("/etc/apt/sources.list").to_path_buf());
    files
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
}

/// Reads the format of `*.list`: `deb [option=value ...] uri suite component ...`.
fn one_line_entries(text: &str) -> Vec<Source> {
    let entry = |line: &str| {
        let rest = line
            .trim()
            .strip_prefix("deb")?
            .strip_prefix([' ', '\t'])?
            .trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some(Source {
            uri: words.next()?,
            suites: vec![words.next()?],
        })
    };
    text.lines().filter_map(entry).collect()
}

/// Reads the format of `*.sources`: stanzas of `Field: values`, continued on indented lines.
fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .chain([""])
    {
        if line.trim().is_empty() {
            sources.extend(source_of(&stanza));
            stanza.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push_str(line);
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.push((field.to_ascii_lowercase(), value.to_owned()));
        }
    }
    sources
}

fn source_of(stanza: &[(String, String)]) -> Option<Source> {
    let values = |name: &str| -> Vec<String> {
        let value = stanza
            .iter()
            .find(|(field, _)| field == name)
            .map_or("", |(_, value)| value.as_str());
        value.split_whitespace().map(str::to_owned).collect()
    };
    let enabled = !values("enabled")
        .iter()
        .any(|value| value.eq_ignore_ascii_case("no"));
    if !enabled || !values("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    Some(Source {
        uri: values("uris").into_iter().next()?,
        suites: values("suites"),
    })
}

#[cfg(test)]
mod tests {
    use super::{Source, one_line_entries, stanzas};

    fn source(uri: &str, suites: &[&str]) -> Source {
        Source {
            uri: uri.to_owned(),
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
        }
    }

    #[test]
    fn one_line_sources_are_read_with_and_without_options() {
        let text = "# deb http://commented.example/debian bookworm main\n\
                    deb-src http://source.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib\n\
                    deb http://b.example/debian\ttrixie main\n";
        let expected = [
            source("http://a.example/debian", &["bookworm"]),
            source("http://b.example/debian", &["trixie"]),
        ];
        assert_eq!(one_line_entries(text), expected);
    }

    #[test]
    fn stanzas_are_read_with_comments_and_continued_lines() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://a.example/debian\nSuites: bookworm\n bookworm-updates\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.example/\nSuites: sid\n\n\
                    types: deb\nuris: http://b.example/debian\nsuites: sid";
        let expected = [
            source("http://a.example/debian", &["bookworm", "bookworm-updates"]),
            source("http://b.example/debian", &["sid"]),
        ];
        assert_eq!(stanzas(text), expected);
    }
}
