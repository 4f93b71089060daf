//! Checks the packages to publish: manifests, and the files of each package.

use serde_json::Value;

use super::{is_published, name_of, packages_of};
use crate::{Result, cargo, output};

/// Required files of a package besides its code.
const FILES: [&str; 3] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// The limits of a registry for keywords and for categories.
const MOST_WORDS: usize = 5;

/// Makes the packages, without building them, and returns their faults.
pub fn faults(metadata: &Value) -> Result<Vec<String>> {
    let packages = packages_of(metadata);
    let published = packages.iter().filter(|package| is_published(package));
    let mut faults = Vec::new();
    let mut package_all = cargo();
    // Uncommitted changes are checked too.
    package_all.args(["package", "--quiet", "--no-verify", "--allow-dirty"]);
    for package in published {
        let name = name_of(package);
        faults.extend(manifest_faults(package));
        let option = format!("--package={name}");
        let files = output(cargo().args(["package", "--list", "--allow-dirty", &option]))?;
        let is_there = |file: &&str| files.lines().any(|line| line == *file);
        let missing = FILES.iter().filter(|file| !is_there(file));
        faults.extend(missing.map(|file| format!("the package {name} has no {file}")));
        package_all.arg(option);
    }
    // All at once: unpublished packages find each other.
    output(&mut package_all)?;
    Ok(faults)
}

fn manifest_faults(package: &Value) -> Vec<String> {
    let name = name_of(package);
    let mut faults = Vec::new();
    for field in ["description", "license", "readme", "rust_version"] {
        if package[field].as_str().is_none_or(str::is_empty) {
            faults.push(format!("the manifest of {name} has no {field}"));
        }
    }
    for field in ["keywords", "categories"] {
        let words = package[field].as_array().map_or(0, Vec::len);
        if !(1..=MOST_WORDS).contains(&words) {
            faults.push(format!(
                "the manifest of {name} has {words} {field}; 1 to {MOST_WORDS} are right"
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_says_what_a_registry_asks() {
        let whole = json!({
            "name": "one", "description": "does", "license": "MIT", "readme": "README.md", "rust_version": "1.95",
            "keywords": ["a"], "categories": ["b"],
        });
        assert_eq!(manifest_faults(&whole), [""; 0]);
        for field in [
            "description",
            "license",
            "readme",
            "rust_version",
            "keywords",
            "categories",
        ] {
            let mut lacking = whole.clone();
            lacking[field] = Value::Null;
            let faults = manifest_faults(&lacking);
            assert_eq!(faults.len(), 1, "{field}: {faults:?}");
        }
    }
}
