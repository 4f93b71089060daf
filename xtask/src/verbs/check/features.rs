//! `cargo xtask check --features`: each crate alone, with each feature off and on, and on other
//! machines.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::{name_of, packages_of};
use crate::{Result, cargo, output, run as run_command, workspace};

/// Crates that keep to no machine's pointers and byte order.
const PORTABLE: [&str; 2] = ["multifd-wire", "page-deflate"];

/// A machine with pointers of 32 bits, and one whose numbers begin with the high byte.
const TARGETS: [&str; 2] = ["i686-unknown-linux-gnu", "s390x-unknown-linux-gnu"];

/// Builds every crate by itself. In a build of the whole workspace a crate also has the features
/// that others ask for.
pub fn run(metadata: &Value) -> Result<()> {
    for package in packages_of(metadata) {
        for choice in choices(package) {
            println!("== {} {}", name_of(package), choice.join(" "));
            run_command(&mut lint(package, &choice))?;
        }
    }
    for target in TARGETS {
        for name in PORTABLE {
            println!("== {name} for {target}");
            match standard_library(target)? {
                Std::Installed => run_command(&mut check_for(name, target))?,
                Std::Source => run_command(
                    check_for(name, target)
                        // The pinned compiler builds its own library when it is told that it may.
                        .env("RUSTC_BOOTSTRAP", "1")
                        .arg("-Zbuild-std=std"),
                )?,
                Std::Missing => println!(
                    "NOT RUN, for lack of a standard library (to have it: rustup target add {target}): {name}"
                ),
            }
        }
    }
    Ok(())
}

/// Lints of one package's library and programs, without what tests add. It may not warn.
fn lint(package: &Value, features: &[String]) -> Command {
    let mut command = cargo();
    command
        .args(["clippy", "--quiet", "--package", &name_of(package)])
        .args(features)
        .args(["--", "-D", "warnings"]);
    command
}

fn check_for(name: &str, target: &str) -> Command {
    let mut command = cargo();
    command.args(["check", "--quiet", "--package", name, "--target", target]);
    command
}

/// No feature, each one alone, and all.
fn choices(package: &Value) -> Vec<Vec<String>> {
    let none = || vec!["--no-default-features".to_owned()];
    let features = package["features"].as_object();
    let names = features.into_iter().flat_map(|features| features.keys());
    let names: Vec<_> = names.filter(|name| *name != "default").collect();
    if names.is_empty() {
        return vec![Vec::new()];
    }
    let mut choices = vec![none()];
    for name in &names {
        let mut choice = none();
        choice.push(format!("--features={name}"));
        choices.push(choice);
    }
    if names.len() > 1 {
        choices.push(vec!["--all-features".to_owned()]);
    }
    choices
}

/// Where a target's standard library comes from.
enum Std {
    Installed,
    Source,
    Missing,
}

fn standard_library(target: &str) -> Result<Std> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "sysroot"]).current_dir(workspace());
    let lib = PathBuf::from(output(&mut rustc)?.trim()).join("lib/rustlib");
    Ok(if lib.join(target).is_dir() {
        Std::Installed
    } else if lib.join("src/rust/library/std").is_dir() {
        Std::Source
    } else {
        Std::Missing
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_feature_is_chosen_alone() {
        let of = |features: Value| {
            let choices = choices(&json!({"name": "one", "features": features}));
            let choices: Vec<_> = choices.iter().map(|choice| choice.join(" ")).collect();
            choices.join("\n")
        };
        assert_eq!(of(json!({})), "");
        assert_eq!(
            of(json!({"default": ["a"], "a": []})),
            "--no-default-features\n--no-default-features --features=a"
        );
        assert_eq!(
            of(json!({"a": [], "b": []})),
            "--no-default-features\n--no-default-features --features=a\n--no-default-features --features=b\n\
             --all-features"
        );
    }
}
