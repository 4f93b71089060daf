//! `cargo xtask setup`: the real parts, from Debian, under `target/parts`.
//!
//! Nothing is installed: apt-get works on a state of its own and only downloads, and the packages
//! are unpacked into one root per suite with all their dependencies, including the C library. This
//! needs no rights and no particular release of Debian on the machine.

mod apt;
mod mirror;

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use clap::Args;
use qemu_lab::{Part, QemuBinary, SETUP_COMMAND, Version, parts_dir};

use crate::Result;
use apt::Suite;

/// The version of cargo-fuzz required by the fuzz targets.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

#[derive(Args)]
pub struct Arguments {
    /// Parts to bring; all that tests use when none is named
    #[arg(value_name = "PART", value_parser = part)]
    parts: Vec<Part>,
    /// List the parts and whether they are there
    #[arg(long)]
    list: bool,
}

/// libvirt, its QEMU, and the programs of a system to run both in.
const LIBVIRT: [&str; 7] = [
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "qemu-system-x86",
    "coreutils",
    "bash",
    "hostname",
];

/// The way in which `setup` gets a part.
enum Recipe {
    Debian {
        suite: &'static Suite,
        packages: &'static [&'static str],
    },
    Cargo {
        package: &'static str,
        version: &'static str,
    },
}

impl Recipe {
    fn of(part: Part) -> Recipe {
        let (suite, packages): (_, &[_]) = match part {
            Part::Qemu(Version::V7_2) => (&apt::BOOKWORM, &["qemu-system-x86"]),
            Part::Qemu(Version::V10_0) => (&apt::BOOKWORM_BACKPORTS, &["qemu-system-x86"]),
            Part::Qemu(Version::V11_1) => (&apt::SID, &["qemu-system-x86"]),
            Part::Qpl => (&apt::SID, &["libqpl1", "libqpl-dev"]),
            Part::IsaL => (&apt::SID, &["libisal2"]),
            Part::Redis => (&apt::BOOKWORM, &["redis-server"]),
            Part::Valgrind => (&apt::BOOKWORM, &["valgrind"]),
            Part::Libvirt => (&apt::TRIXIE, &LIBVIRT),
            Part::CargoFuzz => {
                return Recipe::Cargo {
                    package: "cargo-fuzz",
                    version: CARGO_FUZZ_VERSION,
                };
            }
        };
        Recipe::Debian { suite, packages }
    }

    /// The first line of a stamp. A part with a changed recipe is fetched again.
    fn line(&self) -> String {
        match self {
            Recipe::Debian { suite, packages } => format!("{}: {}", suite.name, packages.join(" ")),
            Recipe::Cargo { package, version } => format!("cargo install {package} {version}"),
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let parts = if arguments.parts.is_empty() {
        &Part::ALL
    } else {
        arguments.parts.as_slice()
    };
    if arguments.list {
        for &part in parts {
            println!(
                "{:<11} {}",
                part.name(),
                contents(part).as_deref().unwrap_or("not here")
            );
        }
        return Ok(());
    }

    fs::create_dir_all(parts_dir())?;
    let lock = File::create(parts_dir().join(".lock"))?;
    if lock.try_lock().is_err() {
        println!("waiting for another `{SETUP_COMMAND}` to end");
        lock.lock()?;
    }
    for &part in parts {
        let is_here = contents(part).is_some();
        if !is_here && arguments.parts.is_empty() && part.is_on_request() {
            continue;
        }
        if !is_here {
            bring(part).map_err(|error| {
                format!(
                    "{error}\n{} is not here; to try again: {SETUP_COMMAND} {0}",
                    part.name()
                )
            })?;
        }
        println!("{:<11} {}", part.name(), contents(part).unwrap_or_default());
    }
    Ok(())
}

fn part(name: &str) -> std::result::Result<Part, String> {
    Part::ALL
        .into_iter()
        .find(|part| part.name() == name)
        .ok_or_else(|| {
            let names: Vec<_> = Part::ALL.iter().map(|part| part.name()).collect();
            format!("the parts are {}", names.join(", "))
        })
}

/// The content from the stamp: `None` if the part is missing or from another recipe.
fn contents(part: Part) -> Option<String> {
    let stamp = fs::read_to_string(part.stamp()).ok()?;
    let (recipe, contents) = stamp.split_once('\n')?;
    (recipe == Recipe::of(part).line()).then(|| contents.trim_end().to_owned())
}

fn bring(part: Part) -> Result<()> {
    let begun = Instant::now();
    let name = part.name();
    let recipe = Recipe::of(part);
    let contents = match &recipe {
        Recipe::Debian { suite, packages } => apt::unpack(name, suite, packages, &part.dir())?,
        Recipe::Cargo { package, version } => install_with_cargo(package, version, &part.dir())?,
    };
    write_stamp(&part.stamp(), &format!("{}\n{contents}\n", recipe.line()))?;
    if let Part::Qemu(version) = part {
        check_qemu(part, version)?;
    }
    println!(
        "{name:<11} brought in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Writes a stamp atomically.
fn write_stamp(stamp: &Path, text: &str) -> Result<()> {
    let unfinished = stamp.with_extension("new");
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, stamp)?;
    Ok(())
}

/// An unpacked QEMU must run here, and should be of the release used by the tests.
fn check_qemu(part: Part, version: Version) -> Result<()> {
    let Some(binary) = QemuBinary::find(version) else {
        fs::remove_file(part.stamp())?;
        return Err(format!(
            "the QEMU unpacked into {} does not run here",
            part.dir().display()
        )
        .into());
    };
    if binary.release() != version.number() {
        let (major, minor) = version.number();
        println!(
            "{:<11} note: Debian now has {binary} where the tests expect {major}.{minor}",
            part.name()
        );
    }
    Ok(())
}

fn install_with_cargo(package: &str, version: &str, root: &Path) -> Result<String> {
    println!("{package:<11} building {version}");
    let mut command = crate::cargo();
    command
        .args([
            "install",
            package,
            "--version",
            version,
            "--locked",
            "--quiet",
            "--force",
            "--root",
        ])
        .arg(root);
    crate::run(&mut command)?;
    Ok(format!("{package} {version}"))
}
