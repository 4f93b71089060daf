//! `cargo xtask check`: checks of the tree that run none of its code.

mod features;
mod files;
mod line;
mod map;
mod outside;
mod packages;
mod promises;
mod public;
mod trees;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Result, cargo, output, run as run_command, target_dir, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Instead: each crate alone with each feature off and on, and for other machines; takes
    /// minutes
    #[arg(long)]
    features: bool,
    /// Instead: count the public items of each published crate, here or in another checkout
    #[arg(long, value_name = "CHECKOUT", num_args = 0..=1, conflicts_with = "features")]
    public: Option<Option<PathBuf>>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(checkout) = &arguments.public {
        return public::run(checkout.as_deref().unwrap_or(&workspace()));
    }
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    if arguments.features {
        return features::run(&metadata);
    }
    let mut manifests = vec![workspace().join("Cargo.toml")];
    manifests.extend(Some(workspace().join("fuzz/Cargo.toml")).filter(|path| path.is_file()));

    for manifest in &manifests {
        step("formatting", manifest);
        run_command(
            cargo()
                .args(["fmt", "--all", "--check", "--manifest-path"])
                .arg(manifest),
        )?;
        step("clippy", manifest);
        run_command(
            cargo()
                .args([
                    "clippy",
                    "--quiet",
                    "--workspace",
                    "--all-targets",
                    "--manifest-path",
                ])
                .arg(manifest)
                // Reuse the dependencies of the fuzz targets.
                .arg("--target-dir")
                .arg(target_dir())
                .args(["--", "-D", "warnings"]),
        )?;
    }
    step("documentation", &manifests[0]);
    run_command(
        cargo()
            .args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;

    println!("== multifd-codec with fewer features");
    for features in ["", "qpl", "zstd"] {
        run_command(
            cargo()
                .args(["clippy", "--quiet", "--package", "multifd-codec"])
                .args(["--no-default-features", "--features", features])
                .args(["--", "-D", "warnings"]),
        )?;
    }

    println!("== the line of crates, the map, files, promises, packages");
    let mut faults = line::faults(&metadata);
    faults.extend(line::c_without_features()?);
    faults.extend(map::faults(&metadata)?);
    faults.extend(files::faults()?);
    faults.extend(promises::faults()?);
    faults.extend(packages::faults(&metadata)?);
    let packages = packages_of(&metadata).iter();
    let published: Vec<_> = packages
        .filter(|package| is_published(package))
        .map(name_of)
        .collect();
    faults.extend(trees::faults(&published)?);
    if !faults.is_empty() {
        return Err(faults.join("\n").into());
    }

    outside::dependencies()?;
    outside::interfaces(&published)
}

/// The crates of the workspace in the output of `cargo metadata`.
fn packages_of(metadata: &Value) -> &[Value] {
    metadata["packages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
}

fn name_of(value: &Value) -> String {
    value["name"].as_str().unwrap_or_default().to_owned()
}

fn is_published(package: &Value) -> bool {
    // Cargo writes `publish = false` as an empty list of registries.
    !package["publish"].as_array().is_some_and(Vec::is_empty)
}

fn step(what: &str, manifest: &Path) {
    let place = manifest.strip_prefix(workspace()).unwrap_or(manifest);
    println!("== {what} ({})", place.display());
}
