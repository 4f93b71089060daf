//! Debian packages with all their dependencies, unpacked into a root of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qemu_lab::parts_dir;

use super::mirror;
use crate::{Result, output};

/// The keys of Debian's own archives; part of every Debian system.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The waits before further attempts: a mirror or a network can fail for a moment.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(15)];

/// A Debian suite as a source of packages.
pub struct Suite {
    pub name: &'static str,
    /// A suite that `name` extends.
    base: Option<&'static str>,
}

pub const BOOKWORM: Suite = Suite {
    name: "bookworm",
    base: None,
};
pub const BOOKWORM_BACKPORTS: Suite = Suite {
    name: "bookworm-backports",
    base: Some("bookworm"),
};
pub const TRIXIE: Suite = Suite {
    name: "trixie",
    base: None,
};
pub const SID: Suite = Suite {
    name: "sid",
    base: None,
};

/// Downloads `packages` with their dependencies and unpacks all into `root`. Returns the packages'
/// versions as text.
pub fn unpack(part: &str, suite: &Suite, packages: &[&str], root: &Path) -> Result<String> {
    for tool in ["apt-get", "dpkg-deb"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return Err(format!(
                "the real parts are Debian packages, and there is no {tool} here; a QEMU of your own serves too: MULTIFD_QEMU=PATH"
            )
            .into());
        }
    }
    let state = State::create(part, suite)?;
    let mut retries = RETRY_AFTER.into_iter();
    while let Err(error) = state.download(part, suite, packages) {
        let Some(wait) = retries.next() else {
            return Err(error);
        };
        println!(
            "{part:<11} failed, and is tried again in {} s: {error}",
            wait.as_secs()
        );
        std::thread::sleep(wait);
    }
    let archives = state.archives()?;
    println!("{part:<11} unpacking {} packages", archives.len());
    fs::create_dir_all(root)?;
    for archive in &archives {
        output(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(archive)
                .arg(root),
        )?;
    }
    // As root, this could unpack programs that are set-user-id root into a world-readable folder.
    output(
        Command::new("chmod")
            .args(["--recursive", "ug-s"])
            .arg(root),
    )?;
    let versions = versions(&archives, packages)?;
    state.remove()?;
    Ok(versions)
}

/// The versions of the requested packages.
fn versions(archives: &[PathBuf], packages: &[&str]) -> Result<String> {
    let mut found = Vec::new();
    for package in packages {
        let prefix = format!("{package}_");
        let archive = archives
            .iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            })
            .ok_or_else(|| format!("apt-get fetched no {package}"))?;
        let version = output(
            Command::new("dpkg-deb")
                .arg("--field")
                .arg(archive)
                .arg("Version"),
        )?;
        found.push(format!("{package} {}", version.trim()));
    }
    Ok(found.join(", "))
}

/// An apt that ignores the system's packages and writes only inside its folder.
struct State {
    dir: PathBuf,
}

impl State {
    fn create(part: &str, suite: &Suite) -> Result<State> {
        let mirror = mirror::of_this_machine()?;
        if !Path::new(KEYRING).is_file() {
            return Err(format!("{KEYRING} is missing (package debian-archive-keyring)").into());
        }
        let state = State {
            dir: std::path::absolute(parts_dir().join(format!(".apt-{part}")))?,
        };
        for folder in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.dir.join(folder))?;
        }
        fs::write(state.dir.join("status"), "")?;
        let sources: String = suite
            .base
            .iter()
            .chain([&suite.name])
            .map(|name| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {name} main\n"))
            .collect();
        fs::write(state.dir.join("sources.list"), sources)?;
        fs::write(state.dir.join("apt.conf"), state.configuration())?;
        Ok(state)
    }

    /// Changes to the system's own settings, which apt-get reads first: a proxy stays.
    fn configuration(&self) -> String {
        let dir = self.dir.display();
        format!(
            r#"Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Dir::Log "{dir}";
// The roots are for this architecture whatever else the machine is set up for.
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
// As root, apt-get would download as another user, who cannot write here.
APT::Sandbox::User "root";
// Hooks of the system are for the system's packages.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
// Otherwise `update` tells of unreachable mirrors and still ends well.
APT::Update::Error-Mode "any";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Debug::NoLocking "true";
"#
        )
    }

    fn download(&self, part: &str, suite: &Suite, packages: &[&str]) -> Result<()> {
        println!("{part:<11} reading the package list of {}", suite.name);
        self.apt_get(&["update"])?;
        println!(
            "{part:<11} fetching {} and all they need",
            packages.join(", ")
        );
        let install = [
            "--yes",
            "--download-only",
            "--target-release",
            suite.name,
            "install",
        ];
        self.apt_get(&[&install, packages].concat())
    }

    fn apt_get(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("apt-get")
            .arg("--quiet")
            .arg("--config-file")
            .arg(self.dir.join("apt.conf"))
            .args(arguments)
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("E: "))
            .collect();
        Err(format!("apt-get {}:\n{}", arguments.join(" "), errors.join("\n")).into())
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let mut archives = Vec::new();
        for entry in fs::read_dir(self.dir.join("archives"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                archives.push(path);
            }
        }
        archives.sort();
        Ok(archives)
    }

    /// Removes a suite's lists, which are large, and stale by the next use.
    fn remove(self) -> Result<()> {
        fs::remove_dir_all(self.dir)?;
        Ok(())
    }
}
