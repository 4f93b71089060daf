//! `cargo xtask detect`: reports the resources of this machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use iaa_detect::detect;
use qemu_lab::{Part, QemuBinary, SETUP_COMMAND};

use crate::Result;

pub fn run() -> Result<()> {
    let qemus = QemuBinary::all();
    for binary in &qemus {
        fact("qemu", &format!("{binary}, {}", binary.path().display()));
    }
    let missing: Vec<_> = Part::ALL
        .into_iter()
        .filter(|part| !part.is_set_up() && !part.is_on_request())
        .map(Part::name)
        .collect();
    for part in [Part::Qpl, Part::IsaL, Part::CargoFuzz] {
        if part.is_set_up() {
            fact(part.name(), &part.dir().display().to_string());
        }
    }
    if !missing.is_empty() {
        fact(
            "not here",
            &format!("{} (to have them: {SETUP_COMMAND})", missing.join(", ")),
        );
    }
    fact(
        "kernel",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
    );
    fact(
        "processors",
        &std::thread::available_parallelism()?.to_string(),
    );
    fact("root", yes_no(is_root()));
    fact(
        "network namespaces",
        yes_no(succeeds(Command::new("unshare").args(["--net", "true"]))),
    );
    fact(
        "user namespaces",
        yes_no(succeeds(Command::new("unshare").args([
            "--user",
            "--map-root-user",
            "--net",
            "true",
        ]))),
    );
    print!("\n{}", detect(Path::new("/")));
    Ok(())
}

fn fact(name: &str, value: &str) {
    println!("{name:<19} {value}");
}

fn yes_no(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The owner of a process's folder is its effective user.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
