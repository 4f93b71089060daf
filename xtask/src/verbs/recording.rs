//! `cargo xtask recording`: records anew the migration that `cargo xtask demo` replays where there
//! is no QEMU.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use qemu_lab::{Config, Guest, Parameters, QemuBinary, SETUP_COMMAND, Version};
use sha2::{Digest, Sha256};

use crate::multifd::{self, Multifd};
use crate::{Result, workspace};

/// The recording, and beside it, as `.sha256`, the hash of the guest's memory.
pub fn path() -> PathBuf {
    workspace().join("testdata/recordings/none2-10.0.mfd")
}

/// No step takes nearly as long.
const LIMIT: Duration = Duration::from_secs(60);

pub fn run() -> Result<()> {
    let binary = QemuBinary::find(Version::V10_0)
        .ok_or_else(|| format!("needs QEMU 10.0; to have it: {SETUP_COMMAND}"))?;
    let program = multifd::build()?;
    // Little enough to lie in the repository.
    let guest = Guest {
        ram_mib: 4,
        counters: 40,
        blinkers: 20,
        still: 60,
        ..Guest::default()
    };
    let mut source = Config::new(&binary, &guest)
        .machine("pc-q35-10.0")
        .start()?;
    source.wait_for_pass(5, LIMIT)?;
    source.set_migration(&Parameters {
        return_path: true,
        ..Parameters::multifd(2, "none")
    })?;

    let file = path();
    fs::create_dir_all(file.parent().ok_or("a file without a folder")?)?;
    let _ = fs::remove_file(&file);
    let listen = format!("unix:{}", source.socket_path("record").display());
    let out = file.to_str().ok_or("the workspace's path is no text")?;
    let recorder = Multifd::start(&program, &["record", "--listen", &listen, "--out", out])?;
    source.migrate(&recorder.address()?)?;
    let status = source.wait_migration(LIMIT)?;
    if !status.is_completed() {
        return Err(format!("the migration ended as {}", status.status).into());
    }
    recorder.end()?;
    source.check_guest()?;

    let mut memory = vec![0; usize::try_from(source.ram().len_bytes())?];
    source.ram().read_at(&mut memory, 0)?;
    // As sha256sum writes it; the block is named after the machine's memory, the file after the
    // block.
    let line = format!("{:x}  pc.ram.ram\n", Sha256::digest(memory));
    fs::write(file.with_extension("sha256"), line)?;
    println!("{} of {} bytes", file.display(), fs::metadata(&file)?.len());
    Ok(())
}
