//! `cargo xtask bench instructions`: the deflate codec's instructions per page, beside those of the
//! committed baseline. A busy machine does not change these numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qemu_lab::{Part, Root, SETUP_COMMAND};

use super::stores;
use crate::multifd::release;
use crate::{Result, cargo, output, run as run_command, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Write a new baseline instead of comparing with the old one
    #[arg(long)]
    update: bool,
    /// Succeed where valgrind or objdump is missing
    #[arg(long)]
    allow_missing: bool,
}

/// The allowed increase over the baseline, as a part of it: compilers cause smaller changes.
const ALLOWED: f64 = 0.02;

/// Instructions and mispredicted branches of a page.
type Counts = [u64; 2];
/// A step and a kind of pages.
type Case = (String, String);

pub fn run(arguments: &Arguments) -> Result<()> {
    let is_here = |tool| Command::new(tool).arg("--version").output().is_ok();
    let tools = (
        valgrind(is_here("valgrind")),
        is_here("objdump").then_some(()),
    );
    let (Some(valgrind), Some(())) = tools else {
        let words = format!(
            "NOT COUNTED: this needs valgrind (`{SETUP_COMMAND} valgrind` installs it) and objdump \
             (of Debian's package binutils)."
        );
        if arguments.allow_missing {
            println!("{words}");
            return Ok(());
        }
        return Err(format!("{words} --allow-missing makes this a success.").into());
    };
    // Flags of this machine or its user would change the numbers.
    run_command(cargo().args(BUILD).env("CARGO_ENCODED_RUSTFLAGS", ""))?;
    let program = release("examples")?.join("instructions");
    check_stores(&program)?;

    let baseline_file = workspace().join(BASELINE);
    let baseline = match fs::read_to_string(&baseline_file) {
        Ok(text) => parse(&text)?,
        Err(_) if arguments.update => BTreeMap::new(),
        Err(error) => return Err(format!("{BASELINE}: {error}").into()),
    };
    println!("Instructions (and simulated branch misses) for a page of 4 KiB:");
    let mut counted = Vec::new();
    let mut faults = Vec::new();
    for case in output(&mut Command::new(&program))?.lines() {
        let words: Vec<_> = case.split(' ').collect();
        let [step, kind, pages] = *words else {
            return Err(format!("{case:?} is no case").into());
        };
        let pages: u64 = pages.parse()?;
        let counts = count(valgrind(), &program, step, kind)?.map(|count| count / pages);
        // The decoder has no work for noise, which is not compressed.
        if counts[0] == 0 {
            continue;
        }
        let before = baseline.get(&(step.to_owned(), kind.to_owned()));
        let change = before.map(|before| counts[0] as f64 / before[0] as f64 - 1.0);
        println!("{}", row(step, kind, counts, before, change));
        match change {
            Some(change) if change <= ALLOWED => {}
            Some(_) => faults.push(format!("{step} {kind} takes more instructions")),
            None => faults.push(format!("{step} {kind} has no baseline")),
        }
        counted.push(format!("{step} {kind} {} {}\n", counts[0], counts[1]));
    }
    if arguments.update {
        fs::write(&baseline_file, HEADER.to_owned() + &counted.concat())?;
        println!("{BASELINE} is written.");
        return Ok(());
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\nMore than {:.0} % over {BASELINE}. If the change is worth it, run with --update.",
        faults.join("\n"),
        ALLOWED * 100.0
    )
    .into())
}

/// Makes commands of valgrind: the system's one, or the part.
fn valgrind(of_system: bool) -> Option<Box<dyn Fn() -> Command>> {
    if of_system {
        return Some(Box::new(|| Command::new("valgrind")));
    }
    let root = Root::of(Part::Valgrind)?;
    Some(Box::new(move || {
        // `valgrind` itself is a script, for a system's own debugging libraries.
        let mut command = root.command(&root.dir().join("usr/bin/valgrind.bin"));
        command.env("VALGRIND_LIB", root.dir().join("usr/libexec/valgrind"));
        command
    }))
}

/// Checks the codec's functions in this program, and in the command if it was built.
fn check_stores(program: &Path) -> Result<()> {
    let command = Some(release("multifd")?).filter(|path| path.is_file());
    let programs: Vec<PathBuf> = [Some(program.to_owned()), command]
        .into_iter()
        .flatten()
        .collect();
    for program in programs {
        let (functions, faults) = stores::faults(&program)?;
        if !faults.is_empty() {
            return Err(faults.join("\n").into());
        }
        let name = program.display();
        println!("{name}: no store from a high byte in {functions} functions of ours");
    }
    Ok(())
}

/// Counts a case's instructions and mispredicted branches.
fn count(mut valgrind: Command, program: &Path, step: &str, kind: &str) -> Result<Counts> {
    // Callgrind prints its totals among its messages, and writes its details elsewhere.
    let output = valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*counted*"])
        .arg("--branch-sim=yes")
        .arg(program)
        .args([step, kind])
        // The C library copies memory in the same way on all processors.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS,-FSRM")
        .output()?;
    let messages = String::from_utf8_lossy(&output.stderr);
    let numbers: Vec<u64> = messages
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .filter(|_| output.status.success())
        .map(|(_, numbers)| numbers.split_whitespace().flat_map(str::parse).collect())
        .unwrap_or_default();
    // Instructions, then branches and misses, conditional and indirect. Zeros at the end are left
    // out.
    let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
    if numbers.is_empty() {
        return Err(format!("callgrind counts nothing in {step} {kind}:\n{messages}").into());
    }
    Ok([number(0), number(2) + number(4)])
}

fn row(
    step: &str,
    kind: &str,
    [instructions, misses]: Counts,
    before: Option<&Counts>,
    change: Option<f64>,
) -> String {
    let change = change.map_or_else(
        || "new".to_owned(),
        |share| format!("{:+.1} %", share * 100.0),
    );
    let before = before.map_or_else(String::new, |[instructions, misses]| {
        format!("was {instructions:>7} ({misses:>4})")
    });
    format!("{step:16} {kind:8} {instructions:>7} ({misses:>4})  {change:>8}  {before}")
}

fn parse(text: &str) -> Result<BTreeMap<Case, Counts>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let [step, kind, instructions, misses] = *words else {
                return Err(format!("{BASELINE}: {line:?} is no case").into());
            };
            let counts = [instructions.parse()?, misses.parse()?];
            Ok(((step.to_owned(), kind.to_owned()), counts))
        })
        .collect()
}

const BASELINE: &str = "benches/results/instructions.txt";

const HEADER: &str = "\
# Instructions and simulated branch misses for a page: step, kind of pages, and both numbers.
# `cargo xtask bench instructions --update` writes this file.
";

const BUILD: [&str; 7] = [
    "build",
    "--quiet",
    "--release",
    "--package",
    "page-deflate",
    "--example",
    "instructions",
];
