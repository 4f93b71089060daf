//! The line of crates: the allowed dependencies of each published crate.

use serde_json::Value;

use super::{is_published, name_of, packages_of};
use crate::{Result, cargo, output};

/// The published crates, and the crates of this workspace that each may use.
const LINE: [(&str, &[&str]); 11] = [
    ("multifd-wire", &[]),
    ("page-deflate", &[]),
    ("iaa-detect", &[]),
    ("qpl-sys", &[]),
    (
        "multifd-codec",
        &["multifd-wire", "page-deflate", "iaa-detect", "qpl-sys"],
    ),
    ("multifd-transport", &["multifd-codec", "multifd-wire"]),
    (
        "multifd-relay",
        &["multifd-transport", "multifd-codec", "multifd-wire"],
    ),
    (
        "multifd-engine",
        &["multifd-transport", "multifd-codec", "multifd-wire"],
    ),
    (
        "multifd-operate",
        &[
            "multifd-relay",
            "multifd-transport",
            "multifd-codec",
            "multifd-wire",
        ],
    ),
    (
        "multifd-cli",
        &[
            "multifd-operate",
            "multifd-relay",
            "multifd-engine",
            "multifd-transport",
            "multifd-codec",
            "multifd-wire",
            "iaa-detect",
        ],
    ),
    (
        "multifd-bench",
        &[
            "multifd-cli",
            "multifd-engine",
            "multifd-transport",
            "multifd-codec",
            "multifd-wire",
        ],
    ),
];

/// Crates with a limited list of outside dependencies. `multifd-wire` uses no `std`; `page-deflate`
/// and `iaa-detect` must add little to their users' programs.
const OUTSIDE: [(&str, &[&str]); 3] = [
    ("multifd-wire", &["thiserror"]),
    ("page-deflate", &["thiserror"]),
    ("iaa-detect", &["libloading", "rustix", "serde"]),
];

/// Dependencies that are C or need a system library: each is behind a feature.
const OPTIONAL: [(&str, &str); 5] = [
    ("multifd-codec", "zstd-safe"),
    ("multifd-codec", "qpl-sys"),
    ("multifd-codec", "iaa-detect"),
    ("multifd-relay", "rustls"),
    ("multifd-cli", "rcgen"),
];

/// Checks the dependencies reported by `cargo metadata`.
pub fn faults(metadata: &Value) -> Vec<String> {
    let packages = packages_of(metadata);
    let own: Vec<String> = packages.iter().map(name_of).collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = name_of(package);
        if !is_published(package) {
            continue;
        }
        let Some((_, may_use)) = LINE.iter().find(|(crate_name, _)| *crate_name == name) else {
            faults.push(format!(
                "{name} is published but has no place in the line of crates"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = name_of(dependency);
            if dependency["kind"] == "dev" {
                // Cargo does not publish a development dependency without a version.
                if own.contains(&target)
                    && !may_use.contains(&target.as_str())
                    && dependency["req"] != "*"
                {
                    faults.push(format!(
                        "{name} would be published with {target} as a development dependency"
                    ));
                }
            } else if own.contains(&target) && !may_use.contains(&target.as_str()) {
                faults.push(format!(
                    "{name} depends on {target}, against the line of crates"
                ));
            } else if let Some(may_use) = outside(&name)
                && !own.contains(&target)
                && !may_use.contains(&target.as_str())
            {
                faults.push(format!(
                    "{name} depends on {target}; it may use {} only",
                    may_use.join(", ")
                ));
            } else if OPTIONAL.contains(&(name.as_str(), target.as_str()))
                && dependency["optional"] != true
            {
                faults.push(format!("{name} cannot be built without {target}"));
            }
        }
    }
    faults
}

/// Verifies that without its features the codec is pure Rust: no dependency calls a C compiler.
pub fn c_without_features() -> Result<Vec<String>> {
    let tree = output(cargo().args([
        "tree",
        "--package=multifd-codec",
        "--no-default-features",
        "--edges=normal,build",
        "--prefix=none",
        "--format={p}",
    ]))?;
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let c = names.filter(|name| *name == "cc" || name.ends_with("-sys"));
    Ok(
        c.map(|name| format!("multifd-codec without features builds {name}"))
            .collect(),
    )
}

/// The outside dependencies allowed for a crate, if they are limited.
fn outside(name: &str) -> Option<&'static [&'static str]> {
    let limited = OUTSIDE.iter().find(|(crate_name, _)| *crate_name == name);
    limited.map(|&(_, may_use)| may_use)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::faults as line_faults;

    fn workspace_where(name: &str, dependency: Value) -> Value {
        json!({"packages": [
            {"name": name, "publish": null, "dependencies": [dependency]},
            {"name": "multifd-transport", "publish": null, "dependencies": []},
            {"name": "multifd-engine", "publish": null, "dependencies": []},
            {"name": "qemu-lab", "publish": [], "dependencies": []},
        ]})
    }

    #[test]
    fn a_dependency_up_the_line_is_a_fault() {
        let upwards = json!({"name": "multifd-transport", "kind": null, "req": "^0.1"});
        assert_eq!(
            line_faults(&workspace_where("multifd-codec", upwards.clone())).len(),
            1
        );
        assert!(line_faults(&workspace_where("multifd-cli", upwards)).is_empty());
    }

    #[test]
    fn relay_and_engine_do_not_know_each_other() {
        let engine = json!({"name": "multifd-engine", "kind": null, "req": "^0.1"});
        assert_eq!(
            line_faults(&workspace_where("multifd-relay", engine.clone())).len(),
            1
        );
        assert!(line_faults(&workspace_where("multifd-cli", engine)).is_empty());
    }

    #[test]
    fn the_wire_crate_uses_only_what_needs_no_std() {
        let errors = json!({"name": "thiserror", "kind": null, "req": "^2"});
        assert!(line_faults(&workspace_where("multifd-wire", errors)).is_empty());
        for other in ["flate2", "serde", "postcard"] {
            let other = json!({"name": other, "kind": null, "req": "^1"});
            assert_eq!(
                line_faults(&workspace_where("multifd-wire", other)).len(),
                1
            );
        }
    }

    #[test]
    fn crates_for_others_bring_little_with_them() {
        for (name, allowed) in [("page-deflate", "thiserror"), ("iaa-detect", "libloading")] {
            for (target, expected) in [(allowed, 0), ("flate2", 1), ("multifd-transport", 1)] {
                let dependency = json!({"name": target, "kind": null, "req": "^1"});
                let faults = line_faults(&workspace_where(name, dependency));
                assert_eq!(faults.len(), expected, "{name} {target}: {faults:?}");
            }
        }
    }

    #[test]
    fn the_codec_can_be_built_without_c() {
        for (is_optional, expected) in [(true, 0), (false, 1)] {
            let libzstd =
                json!({"name": "zstd-safe", "kind": null, "req": "^8", "optional": is_optional});
            let faults = line_faults(&workspace_where("multifd-codec", libzstd));
            assert_eq!(faults.len(), expected, "{faults:?}");
        }
    }

    #[test]
    fn the_lab_may_only_be_an_unpublished_development_dependency() {
        let normal = json!({"name": "qemu-lab", "kind": null, "req": "*"});
        assert_eq!(
            line_faults(&workspace_where("multifd-transport", normal)).len(),
            1
        );
        let published = json!({"name": "qemu-lab", "kind": "dev", "req": "^0.1.0"});
        assert_eq!(
            line_faults(&workspace_where("multifd-transport", published)).len(),
            1
        );
        let stripped = json!({"name": "qemu-lab", "kind": "dev", "req": "*"});
        assert!(line_faults(&workspace_where("multifd-transport", stripped)).is_empty());
    }
}
