//! `cargo xtask bench instructions`: what the deflate codec executes for a page. A busy machine
//! does not change these numbers.

use std::process::Command;

use crate::multifd::release;
use crate::{Result, cargo, output, run as run_command};

pub fn run() -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!(
            "Not counted: there is no valgrind here. The Debian package `valgrind` brings it."
        );
        return Ok(());
    }
    run_command(cargo().args(BUILD))?;
    let program = release("instructions")?;
    println!("Instructions for a page of 4 KiB, of pages made up in benches/src/lib.rs:");
    for case in output(&mut Command::new(&program))?.lines() {
        let words: Vec<_> = case.split(' ').collect();
        let [step, kind, pages] = *words else {
            return Err(format!("{case:?} is no case").into());
        };
        let pages: u64 = pages.parse()?;
        // Callgrind tells its totals among its messages, and writes its details elsewhere.
        let messages = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .args(["--collect-atstart=no", "--toggle-collect=*counted*"])
            .arg(&program)
            .args([step, kind])
            .output()?;
        let messages = String::from_utf8_lossy(&messages.stderr);
        let collected = messages
            .lines()
            .find_map(|line| line.split_once("Collected : "))
            .ok_or_else(|| format!("callgrind says no total:\n{messages}"))?;
        let total: u64 = collected.1.trim().parse()?;
        // Noise has no compressed pages to decode.
        if total == 0 {
            continue;
        }
        println!("{step:16} {kind:10} {:>8}", total / pages);
    }
    Ok(())
}

const BUILD: [&str; 7] = [
    "build",
    "--quiet",
    "--release",
    "--package",
    "multifd-benches",
    "--bin",
    "instructions",
];
