//! Checks by tools that are installed by hand. Where one is missing, a line says so and names the
//! remedy.

use std::process::Command;

use crate::tools::Tool;
use crate::{Result, output, run as run_command, workspace};

/// Licences, sources, versions and known faults of the dependencies, by cargo-deny and `deny.toml`.
pub fn dependencies() -> Result<()> {
    println!("== dependencies: licences, sources, versions, advisories");
    let deny = |arguments: &[&str]| {
        let mut command = Tool::DENY.command()?;
        command.args(arguments);
        Some(command)
    };
    let Some(mut rules) = deny(&["--log-level=error", "check", "bans", "licenses", "sources"])
    else {
        println!("{}", Tool::DENY.missing("dependencies"));
        return Ok(());
    };
    run_command(&mut rules)?;
    // The database is another repository. A machine without the network goes on without it.
    let fetched = deny(&["fetch", "db"]).map(|mut fetch| output(&mut fetch));
    if let Some(Err(error)) = fetched {
        println!(
            "NOT RUN, for lack of the advisory database (to have it: a network that lets `cargo deny fetch db` \
             through): advisories\n{}",
            indented(&error.to_string())
        );
        return Ok(());
    }
    let checked = deny(&[
        "--log-level=error",
        "check",
        "--disable-fetch",
        "advisories",
    ]);
    checked.map_or(Ok(()), |mut check| run_command(&mut check))
}

/// Changes that break users of the published crates, by cargo-semver-checks, against the last
/// release.
pub fn interfaces(published: &[String]) -> Result<()> {
    println!("== public interfaces, beside those of the last release");
    let Some(mut semver) = Tool::SEMVER.command() else {
        println!("{}", Tool::SEMVER.missing("public interfaces"));
        return Ok(());
    };
    let Some(release) = last_release() else {
        println!(
            "NOT RUN, for lack of a release (to have one: git tag v0.1.0, or git fetch --tags): public interfaces"
        );
        return Ok(());
    };
    semver.args(["check-release", "--baseline-rev", &release]);
    semver.args(published.iter().map(|name| format!("--package={name}")));
    run_command(&mut semver)
}

/// The newest tag of a version before this commit.
fn last_release() -> Option<String> {
    let mut describe = Command::new("git");
    describe.args(["describe", "--tags", "--abbrev=0", "--match=v[0-9]*"]);
    let tag = output(describe.current_dir(workspace())).ok()?;
    Some(tag.trim().to_owned()).filter(|tag| !tag.is_empty())
}

fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("    {line}"));
    lines.collect::<Vec<_>>().join("\n")
}
