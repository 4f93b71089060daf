//! Cargo's manually installed subcommands, and the message if one is missing.

use std::process::Command;

use crate::cargo;

/// A subcommand of cargo from a separate crate.
pub struct Tool {
    /// The crate.
    package: &'static str,
    subcommand: &'static str,
}

impl Tool {
    pub const DEB: Self = Self::new("cargo-deb", "deb");
    pub const DENY: Self = Self::new("cargo-deny", "deny");
    pub const SEMVER: Self = Self::new("cargo-semver-checks", "semver-checks");

    const fn new(package: &'static str, subcommand: &'static str) -> Self {
        Self {
            package,
            subcommand,
        }
    }

    /// Returns the subcommand, ready for its arguments, if it is installed.
    pub fn command(&self) -> Option<Command> {
        let version = cargo().args([self.subcommand, "--version"]).output();
        version.ok().filter(|output| output.status.success())?;
        let mut command = cargo();
        command.arg(self.subcommand);
        Some(command)
    }

    /// The message for a machine without the tool.
    pub fn missing(&self, what: &str) -> String {
        let package = self.package;
        format!(
            "NOT RUN, for lack of {package} (to have it: cargo install --locked {package}): {what}"
        )
    }
}
