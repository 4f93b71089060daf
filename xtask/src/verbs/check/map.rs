//! The map in ARCHITECTURE.md is the code's: what it names exists, and every crate is named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{name_of, packages_of};
use crate::{Result, workspace};

const DOCUMENT: &str = "ARCHITECTURE.md";

/// The sections with a table that is checked.
const CRATES: &str = "## Code map";
const PLACES: &str = "## To change X, start at";

/// What is wrong with the map of this workspace.
pub fn faults(metadata: &Value) -> Result<Vec<String>> {
    let text = fs::read_to_string(workspace().join(DOCUMENT))?;
    let crates = crates_of(metadata);
    let mut faults = crate_faults(&text, &crates, &workspace());
    faults.extend(place_faults(&text, &crates));
    faults.extend(link_faults(&text, &workspace()));
    for fault in &mut faults {
        fault.insert_str(0, &format!("{DOCUMENT}: "));
    }
    Ok(faults)
}

/// The folder of each crate, by name.
type Crates = BTreeMap<String, PathBuf>;

fn crates_of(metadata: &Value) -> Crates {
    let folder = |package: &Value| {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        manifest.parent().unwrap_or(manifest).to_path_buf()
    };
    let packages = packages_of(metadata).iter();
    packages
        .map(|package| (name_of(package), folder(package)))
        .collect()
}

/// The first column names crates or folders of the top. `crates/lab/*` stands for the crates in its
/// row.
fn crate_faults(text: &str, crates: &Crates, top: &Path) -> Vec<String> {
    let mut named = Vec::new();
    let mut faults = Vec::new();
    for row in rows(text, CRATES) {
        let [first, second, ..] = row.as_slice() else {
            continue;
        };
        let mut names = quoted(first);
        if names.iter().any(|name| name.ends_with("/*")) {
            names = quoted(second);
        }
        for name in names {
            if !crates.contains_key(name) && !top.join(name).join("Cargo.toml").is_file() {
                faults.push(format!("there is no crate {name}"));
            }
            named.push(name.to_owned());
        }
    }
    for (name, folder) in crates {
        let is_named = named
            .iter()
            .any(|known| known == name || folder == &top.join(known));
        if !is_named {
            faults.push(format!("the code map does not name the crate {name}"));
        }
    }
    faults
}

/// The third column names modules of the crates in the second and third; of any crate where there
/// is none.
fn place_faults(text: &str, crates: &Crates) -> Vec<String> {
    let mut faults = Vec::new();
    for row in rows(text, PLACES) {
        let [subject, owner, places] = row.as_slice() else {
            continue;
        };
        let (named, modules): (Vec<_>, Vec<_>) = quoted(owner)
            .into_iter()
            .chain(quoted(places))
            .partition(|name| crates.contains_key(*name));
        for name in quoted(owner) {
            if !crates.contains_key(name) {
                faults.push(format!("there is no crate {name} (to change {subject})"));
            }
        }
        let is_searched = |name: &str| named.is_empty() || named.contains(&name);
        for module in modules {
            let mut searched = crates.iter().filter(|(name, _)| is_searched(name));
            if !searched.any(|(_, folder)| has_module(&folder.join("src"), module)) {
                let place = match named.is_empty() {
                    true => "any crate".to_owned(),
                    false => named.join(", "),
                };
                faults.push(format!(
                    "there is no module {module} in {place} (to change {subject})"
                ));
            }
        }
    }
    faults
}

/// Whether a module has a file at any depth; `relay/report` is `report` below `relay`.
fn has_module(folder: &Path, module: &str) -> bool {
    if folder.join(format!("{module}.rs")).is_file() || folder.join(module).join("mod.rs").is_file()
    {
        return true;
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    folders.any(|folder| has_module(&folder, module))
}

/// Files that the document refers to.
fn link_faults(text: &str, top: &Path) -> Vec<String> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let files = targets
        .filter(|target| !target.contains("://"))
        .filter_map(|target| target.split('#').next())
        .filter(|file| !file.is_empty());
    files
        .filter(|file| !top.join(file).exists())
        .map(|file| format!("there is no file {file}"))
        .collect()
}

/// The cells of the tables in a section, without those of the head.
fn rows<'a>(text: &'a str, section: &str) -> Vec<Vec<&'a str>> {
    let lines = text.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("## "));
    let rows = lines.filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect());
    // The head and the line below it.
    rows.skip(2).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
## Code map

| crate | does |
| --- | --- |
| `one` | `not` a crate |
| `lab/*` | `two`, for tests |

## To change X, start at

| X | crate | module |
| --- | --- | --- |
| this | `one` | `part`, `deep/er`; `part` in `two` |
| that | each crate | `part` |

## After

| `no` | crate |
";

    fn made() -> (tempfile::TempDir, Crates) {
        let top = tempfile::tempdir().unwrap();
        for file in [
            "one/src/part.rs",
            "one/src/a/deep/er/mod.rs",
            "two/src/lib.rs",
        ] {
            let file = top.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let crates = ["one", "two"].map(|name| (name.to_owned(), top.path().join(name)));
        (top, crates.into())
    }

    #[test]
    fn a_map_of_what_is_there_has_no_faults() {
        let (top, crates) = made();
        assert_eq!(crate_faults(MAP, &crates, top.path()), [""; 0]);
        assert_eq!(place_faults(MAP, &crates), [""; 0]);
    }

    #[test]
    fn each_lie_is_a_fault() {
        let (top, mut crates) = made();
        let lie = MAP.replace("`one` | `not`", "`gone` | `not`");
        let faults = crate_faults(&lie, &crates, top.path());
        assert_eq!(
            faults,
            [
                "there is no crate gone",
                "the code map does not name the crate one"
            ]
        );
        let lie = MAP.replace("`deep/er`", "`deep/est`");
        let fault = "there is no module deep/est in one, two (to change this)";
        assert_eq!(place_faults(&lie, &crates), [fault]);
        let lie = MAP.replace("| each crate | `part`", "| each crate | `gone`");
        let fault = "there is no module gone in any crate (to change that)";
        assert_eq!(place_faults(&lie, &crates), [fault]);
        let lie = MAP.replace("| this | `one`", "| this | `won`");
        assert!(place_faults(&lie, &crates)[0].starts_with("there is no crate won"));
        crates.insert("three".to_owned(), top.path().join("three"));
        let faults = crate_faults(MAP, &crates, top.path());
        assert_eq!(faults, ["the code map does not name the crate three"]);
    }

    #[test]
    fn links_lead_to_files() {
        let (top, _) = made();
        let text = "[a](one/src/part.rs#x) [b](#here) [c](https://example.org) [d](gone.md)";
        assert_eq!(link_faults(text, top.path()), ["there is no file gone.md"]);
    }
}
