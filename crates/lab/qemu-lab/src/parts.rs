//! The real parts (`target/parts`), and the report of a missing one.
//!
//! `cargo xtask setup` unpacks Debian packages into one *root* per suite, each with its own C
//! library, so that programs of several releases run side by side and the system is unchanged. A
//! part is present if its stamp is.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variable: a file for the names of tests that could not run, one `part<TAB>test` per
/// line. In place of a part it may have the argument of [`not_run`].
pub const MISSING_LOG: &str = "QEMU_LAB_MISSING";

/// The command that installs every part.
pub const SETUP_COMMAND: &str = "cargo xtask setup";

/// A QEMU release used by tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 7.2 of Debian 12: SYNC packets with data and stale fields, no zero-page detection in
    /// multifd.
    V7_2,
    /// 10.0 of Debian 12's backports.
    V10_0,
    /// 11.1 of Debian unstable.
    V11_1,
}

impl Version {
    /// Every release, oldest first.
    pub const ALL: [Version; 3] = [Version::V7_2, Version::V10_0, Version::V11_1];

    /// Major and minor number.
    #[must_use]
    pub fn number(self) -> (u32, u32) {
        match self {
            Version::V7_2 => (7, 2),
            Version::V10_0 => (10, 0),
            Version::V11_1 => (11, 1),
        }
    }
}

/// A real program or library that tests and benches use and a checkout does not contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A QEMU that emulates an x86-64 PC.
    Qemu(Version),
    /// Intel's Query Processing Library, with its headers.
    Qpl,
    /// Intel's Intelligent Storage Acceleration Library: a reference for measurements.
    IsaL,
    /// A Redis server.
    Redis,
    /// Valgrind, which counts instructions.
    Valgrind,
    /// libvirt with a QEMU of its own, for `cargo xtask soak libvirt`.
    Libvirt,
    /// The `cargo fuzz` command.
    CargoFuzz,
}

impl Part {
    /// Every part.
    pub const ALL: [Part; 9] = [
        Part::Qemu(Version::V7_2),
        Part::Qemu(Version::V10_0),
        Part::Qemu(Version::V11_1),
        Part::Qpl,
        Part::IsaL,
        Part::Redis,
        Part::Valgrind,
        Part::Libvirt,
        Part::CargoFuzz,
    ];

    /// The name on command lines and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Part::Qemu(Version::V7_2) => "qemu-7.2",
            Part::Qemu(Version::V10_0) => "qemu-10.0",
            Part::Qemu(Version::V11_1) => "qemu-11.1",
            Part::Qpl => "qpl",
            Part::IsaL => "isa-l",
            Part::Redis => "redis",
            Part::Valgrind => "valgrind",
            Part::Libvirt => "libvirt",
            Part::CargoFuzz => "cargo-fuzz",
        }
    }

    /// Returns whether `cargo xtask setup` brings the part only if it is named: no test needs it.
    #[must_use]
    pub fn is_on_request(self) -> bool {
        self == Part::Libvirt
    }

    /// The folder with the part; parts of one Debian suite share theirs.
    #[must_use]
    pub fn dir(self) -> PathBuf {
        parts_dir().join(match self {
            Part::Qemu(Version::V7_2) | Part::Redis | Part::Valgrind => "bookworm",
            Part::Qemu(Version::V10_0) => "bookworm-backports",
            Part::Qemu(Version::V11_1) | Part::Qpl | Part::IsaL => "sid",
            Part::Libvirt => "trixie",
            Part::CargoFuzz => "cargo-fuzz",
        })
    }

    /// The file whose presence shows that the part is complete. Its text gives the part's origin.
    #[must_use]
    pub fn stamp(self) -> PathBuf {
        parts_dir().join(format!("{}.stamp", self.name()))
    }

    /// Returns whether `cargo xtask setup` has installed this part.
    #[must_use]
    pub fn is_set_up(self) -> bool {
        self.stamp().is_file()
    }
}

/// A folder of unpacked Debian packages with their own C library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    dir: PathBuf,
}

impl Root {
    /// The root with `part`, if it is set up.
    #[must_use]
    pub fn of(part: Part) -> Option<Root> {
        part.is_set_up().then(|| Root { dir: part.dir() })
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The root's own dynamic loader: nothing in the root uses the system's C library.
    #[must_use]
    pub fn loader(&self) -> PathBuf {
        // Newer releases have all of /lib under /usr; older packages still unpack into /lib.
        let merged = self
            .dir
            .join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        if merged.exists() {
            merged
        } else {
            self.dir.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
        }
    }

    /// The argument of the loader's `--library-path`.
    #[must_use]
    pub fn library_path(&self) -> String {
        let dir = self.dir.display();
        format!("{dir}/usr/lib/x86_64-linux-gnu:{dir}/lib/x86_64-linux-gnu")
    }

    /// A command that runs `program` (any x86-64 binary, in the root or not) with the root's
    /// libraries.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(self.loader());
        command
            .arg("--library-path")
            .arg(self.library_path())
            .arg(program);
        command
    }
}

/// `target/parts` of this workspace.
#[must_use]
pub fn parts_dir() -> PathBuf {
    // This crate is three folders below the top.
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3);
    top.map(|top| top.join("target/parts")).unwrap_or_default()
}

/// Returns whether a test that needs `part` can run. If not, it records the test's name; with
/// `CI=true` that is a failure.
///
/// ```no_run
/// # use qemu_lab::{Part, Version, require};
/// if !require(Part::Qemu(Version::V10_0)) {
///     return;
/// }
/// ```
///
/// # Panics
/// If the part is missing and the environment has `CI=true`.
#[must_use]
#[track_caller]
pub fn require(part: Part) -> bool {
    let there = match part {
        Part::Qemu(version) => crate::QemuBinary::find(version).is_some(),
        _ => part.is_set_up(),
    };
    if !there {
        report_missing(part, &test_name(Location::caller()));
    }
    there
}

/// The same as [`require()`], for a part that the test's own process opens with the result
/// `opened`.
///
/// A part may be set up outside the dynamic loader's search path. Then the test is reported but not
/// recorded, because `cargo xtask test` runs its program a second time with the part's libraries.
///
/// # Panics
/// If the part cannot be opened and the environment has `CI=true`.
#[track_caller]
pub fn require_opened<T>(part: Part, opened: Result<T, impl Display>) -> Option<T> {
    let error = match opened {
        Ok(opened) => return Some(opened),
        Err(error) => error,
    };
    let caller = Location::caller();
    if part.is_set_up() {
        let test = test_name(caller);
        eprintln!("NOT RUN: {test}: {error}");
        fail_in_ci(part, &test);
    } else {
        report_missing(part, &test_name(caller));
    }
    None
}

/// Records that a test cannot run here because it needs a right or a kind of machine, which no
/// command can install.
///
/// With `CI=true` this is no failure, because it cannot be fixed there.
///
/// # Panics
/// If it cannot be recorded.
#[track_caller]
pub fn not_run(lacks: &str) {
    let test = test_name(Location::caller());
    eprintln!("NOT RUN: {test}: needs {lacks}");
    record(lacks, &test);
}

/// The running test as `file: path::of::test`. The harness names the thread after the test, unless
/// it runs tests on its main thread.
fn test_name(caller: &Location<'_>) -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => format!("{}: {name}", caller.file()),
        _ => format!("{}:{}", caller.file(), caller.line()),
    }
}

fn report_missing(part: Part, test: &str) {
    eprintln!(
        "NOT RUN: {test}: needs {}, which `{SETUP_COMMAND} {0}` brings",
        part.name()
    );
    record(part.name(), test);
    fail_in_ci(part, test);
}

/// Writes one line to the log, if there is one.
fn record(lacks: &str, test: &str) {
    if let Some(path) = std::env::var_os(MISSING_LOG) {
        let line = format!("{lacks}\t{test}\n");
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            panic!(
                "cannot record a test that did not run in {}: {error}",
                path.display()
            );
        }
    }
}

fn fail_in_ci(part: Part, test: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{test} needs {}, and CI=true",
        part.name()
    );
}
