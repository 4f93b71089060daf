//! `cargo xtask check --public`: the number of public items of each published crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{is_published, name_of, packages_of};
use crate::{Result, output, run as run_command};

/// Prints a table: a line per crate, with a column per kind of item. Hidden items count too; those
/// behind a feature `unstable-*` do not.
///
/// `workspace` may be another checkout, so that two commits are counted alike.
pub fn run(workspace: &Path) -> Result<()> {
    let cargo = || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(workspace);
        command
    };
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str().unwrap_or_default();

    let packages = packages_of(&metadata).iter();
    let mut lines = Vec::new();
    let mut total = Counts::new();
    for package in packages.filter(|package| is_published(package)) {
        let Some(library) = library(package) else {
            continue;
        };
        run_command(
            cargo()
                .args(["rustdoc", "--quiet", "--lib", "--features"])
                .arg(stable_features(package).join(","))
                .args(["--package", &name_of(package), "--"])
                .args(["-Z", "unstable-options", "--output-format", "json"])
                .args(["--document-hidden-items", "--cap-lints", "allow"])
                // The pinned compiler accepts unstable options if this variable allows it.
                .env("RUSTC_BOOTSTRAP", "1"),
        )?;
        let path = Path::new(target).join(format!("doc/{}.json", library.replace('-', "_")));
        let document = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let counts = count(&serde_json::from_slice(&document)?);
        for (kind, number) in &counts {
            *total.entry(kind).or_default() += number;
        }
        lines.push((name_of(package), counts));
    }
    lines.push(("total".to_owned(), total.clone()));

    print!("{:18}{:>10}", "crate", "items");
    total.keys().for_each(|kind| print!("{kind:>10}"));
    println!();
    for (name, counts) in lines {
        print!("{name:18}{:>10}", counts.values().sum::<usize>());
        for kind in total.keys() {
            print!("{:>10}", counts.get(kind).unwrap_or(&0));
        }
        println!();
    }
    Ok(())
}

type Counts = BTreeMap<&'static str, usize>;

/// The name of a package's library target, if it has one.
fn library(package: &Value) -> Option<String> {
    let is_library = |target: &&Value| {
        let kinds = target["kind"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "lib"))
    };
    let targets = package["targets"].as_array()?;
    targets.iter().find(is_library).map(name_of)
}

/// All features but those that promise nothing, by their name.
fn stable_features(package: &Value) -> Vec<&str> {
    let features = package["features"].as_object();
    let names = features.into_iter().flat_map(|features| features.keys());
    names
        .map(String::as_str)
        .filter(|name| !name.starts_with("unstable-"))
        .collect()
}

/// Counts the items that a path from the crate's root reaches, each once. Trait implementations
/// and the fields of variants do not count.
fn count(document: &Value) -> Counts {
    let mut counts = Counts::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![document["root"].clone()];
    while let Some(id) = open.pop() {
        if !seen.insert(id.to_string()) {
            continue;
        }
        let item = &document["index"][id.to_string()];
        let Some((kind, inner)) = item["inner"]
            .as_object()
            .and_then(|inner| inner.iter().next())
        else {
            // An item of another crate, which is exported here.
            *counts.entry("foreign").or_default() += 1;
            continue;
        };
        let (column, below): (_, &[&str]) = match kind.as_str() {
            "module" => ("modules", &["/items"]),
            "struct" | "union" => (
                "structs",
                &["/kind/plain/fields", "/kind/tuple", "/fields", "/impls"],
            ),
            "enum" => ("enums", &["/variants", "/impls"]),
            "trait" => ("traits", &["/items"]),
            "use" => ("", &["/id"]),
            "impl" if inner["trait"].is_null() => ("", &["/items"]),
            "impl" => continue,
            "struct_field" => ("fields", &[]),
            "variant" => ("variants", &[]),
            "function" => ("functions", &[]),
            "constant" | "assoc_const" | "static" => ("consts", &[]),
            "type_alias" | "assoc_type" => ("types", &[]),
            _ => ("others", &[]),
        };
        if !column.is_empty() {
            *counts.entry(column).or_default() += 1;
        }
        for place in below {
            match inner.pointer(place) {
                // A private tuple field stands as null.
                Some(Value::Array(ids)) => {
                    open.extend(ids.iter().filter(|id| !id.is_null()).cloned());
                }
                Some(id @ Value::Number(_)) => open.push(id.clone()),
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_each_reachable_item_once() {
        let document = json!({"root": 0, "index": {
            "0": {"inner": {"module": {"items": [1, 2, 3]}}},
            // Two exports of one struct, and one of another crate's item.
            "1": {"inner": {"use": {"id": 4, "is_glob": false}}},
            "2": {"inner": {"use": {"id": 4, "is_glob": false}}},
            "3": {"inner": {"use": {"id": 9, "is_glob": false}}},
            "4": {"inner": {"struct": {"kind": {"tuple": [5, null]}, "impls": [6, 7]}}},
            "5": {"inner": {"struct_field": {}}},
            "6": {"inner": {"impl": {"trait": null, "items": [8]}}},
            "7": {"inner": {"impl": {"trait": {"path": "Debug"}, "items": [10]}}},
            "8": {"inner": {"function": {}}},
            "10": {"inner": {"function": {}}},
            "11": {"inner": {"function": {}}},
        }});
        let expected = [
            ("fields", 1),
            ("foreign", 1),
            ("functions", 1),
            ("modules", 1),
            ("structs", 1),
        ];
        assert_eq!(count(&document), Counts::from(expected));
    }
}
