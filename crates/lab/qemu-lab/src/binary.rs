//! Finding a QEMU to run.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::parts::{Part, Root, Version};

const PROGRAM: &str = "qemu-system-x86_64";

/// Environment variable: a `qemu-system-x86_64` to use besides those of `target/parts`.
const EXTRA: &str = "MULTIFD_QEMU";

/// A `qemu-system-x86_64` on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuBinary {
    path: PathBuf,
    root: Option<Root>,
    version: (u32, u32, u32),
}

impl QemuBinary {
    /// The QEMU of a release: from `target/parts`, else one of that release named by `MULTIFD_QEMU`
    /// or found in `PATH`.
    #[must_use]
    pub fn find(version: Version) -> Option<Self> {
        Self::from_parts(version)
            .or_else(|| Self::from_system().filter(|found| found.release() == version.number()))
    }

    /// The QEMU of a release, for a test that cannot do without it: see
    /// [`require`](crate::require()).
    #[must_use]
    #[track_caller]
    pub fn require(version: Version) -> Option<Self> {
        crate::require(Part::Qemu(version)).then(|| Self::find(version))?
    }

    /// Every QEMU of this machine, oldest release first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Version::ALL
            .into_iter()
            .filter_map(Self::from_parts)
            .chain(Self::from_system())
            .collect();
        all.sort_by_key(|binary| binary.version);
        all
    }

    /// Asks a program for its version.
    fn probe(path: PathBuf, root: Option<Root>) -> Option<Self> {
        let mut binary = QemuBinary {
            path,
            root,
            version: (0, 0, 0),
        };
        let output = binary.command().arg("--version").output().ok()?;
        binary.version = parse_version(std::str::from_utf8(&output.stdout).ok()?)?;
        Some(binary)
    }

    fn from_parts(version: Version) -> Option<Self> {
        let root = Root::of(Part::Qemu(version))?;
        Self::probe(root.dir().join("usr/bin").join(PROGRAM), Some(root))
    }

    fn from_system() -> Option<Self> {
        let named = std::env::var_os(EXTRA).map(PathBuf::from);
        Self::probe(named.or_else(|| in_path(&std::env::var_os("PATH")?))?, None)
    }

    /// Where the program lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major, minor and patch number, as the program itself says.
    #[must_use]
    pub fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// Major and minor number.
    #[must_use]
    pub fn release(&self) -> (u32, u32) {
        (self.version.0, self.version.1)
    }

    /// A command that starts this QEMU, with what an unpacked one needs to find its libraries and
    /// firmware.
    #[must_use]
    pub fn command(&self) -> Command {
        let Some(root) = &self.root else {
            return Command::new(&self.path);
        };
        let mut command = root.command(&self.path);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.dir().join(firmware));
        }
        command.env(
            "QEMU_MODULE_DIR",
            root.dir().join("usr/lib/x86_64-linux-gnu/qemu"),
        );
        command
    }
}

impl fmt::Display for QemuBinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "QEMU {major}.{minor}.{patch}")
    }
}

fn in_path(path: &OsString) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(PROGRAM))
        .find(|candidate| candidate.is_file())
}

/// Takes the number from `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let word = text.split_once("version ")?.1.split_whitespace().next()?;
    let mut numbers = word.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn the_version_line_of_debian_is_read() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(parse_version(text), Some((10, 0, 2)));
        assert_eq!(parse_version("no number here"), None);
    }
}
