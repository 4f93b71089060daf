//! `cargo xtask fuzz`: cargo-fuzz on every target, on the pinned toolchain.

use std::fs;

use qemu_lab::{Part, SETUP_COMMAND};

use crate::{Result, cargo, run as run_command, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Time for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Only these targets; all of them if none is named
    targets: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let known = targets()?;
    let wanted = if arguments.targets.is_empty() {
        &known
    } else {
        &arguments.targets
    };
    if let Some(unknown) = wanted.iter().find(|target| !known.contains(target)) {
        return Err(format!(
            "there is no target {unknown}; there are {}",
            known.join(", ")
        )
        .into());
    }
    for target in wanted {
        println!("{target}: {} s", arguments.seconds);
        fuzz(target, arguments.seconds)?;
    }
    println!("No target found anything.");
    Ok(())
}

/// The names of the files in `fuzz/fuzz_targets`, in order.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.extend(name.map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn fuzz(target: &str, seconds: u64) -> Result<()> {
    let corpus = format!("fuzz/corpus/{target}");
    fs::create_dir_all(workspace().join(&corpus))?;
    let mut command = cargo();
    // The stable compiler accepts the sanitizers' flags if this variable allows it.
    command.env("RUSTC_BOOTSTRAP", "1");
    if Part::CargoFuzz.is_set_up() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = Part::CargoFuzz.dir().join("bin");
        let all = std::iter::once(own).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all)?);
    }
    command
        .args([
            "fuzz",
            "run",
            "--fuzz-dir",
            "fuzz",
            "--features",
            "libfuzzer",
            target,
        ])
        .args([&corpus, &format!("fuzz/seeds/{target}")])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg("-print_final_stats=1");
    run_command(&mut command).map_err(|error| {
        format!(
            "{error} (cargo-fuzz comes with `{SETUP_COMMAND} {}`)",
            Part::CargoFuzz.name()
        )
        .into()
    })
}
