//! `cargo xtask dist`: manual pages, completions and a Debian package, from what clap and
//! Cargo.toml say.

mod pages;

use std::fs;
use std::path::Path;

use clap_complete::{Shell, generate_to};

use crate::tools::Tool;
use crate::{Result, multifd, run as run_command, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Make pages and completions only: build no command and no package
    #[arg(long)]
    pages: bool,
}

/// The shells that Debian has a folder of completions for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

pub fn run(arguments: &Arguments) -> Result<()> {
    // Not below CARGO_TARGET_DIR: the list of the package's files names this folder.
    let dist = workspace().join("target/dist");
    // A page of a subcommand that is gone would go into the package.
    if dist.exists() {
        fs::remove_dir_all(&dist)?;
    }
    write_pages(&dist.join("man"))?;
    write_completions(&dist.join("completions"))?;
    if arguments.pages {
        return Ok(());
    }

    multifd::build()?;
    multifd::build_bench()?;
    let Some(mut deb) = Tool::DEB.command() else {
        println!("{}", Tool::DEB.missing("the Debian package is NOT BUILT"));
        return Ok(());
    };
    // Quiet: it warns of each file in target/ that cargo has not built, and prints the package's
    // name all the same.
    deb.args(["--quiet", "--package", "multifd-cli", "--no-build"])
        .args(["--strip", "--output"])
        .arg(&dist);
    run_command(&mut deb)
}

/// Both commands, as clap has them.
fn definitions() -> [clap::Command; 2] {
    [
        multifd_cli::definition(),
        multifd_bench::command::definition(),
    ]
}

fn write_pages(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut written = 0;
    for definition in definitions() {
        for page in pages::of(definition)? {
            fs::write(folder.join(page.file), page.text)?;
            written += 1;
        }
    }
    say(&format!("{written} manual pages"), folder);
    Ok(())
}

fn write_completions(folder: &Path) -> Result<()> {
    for shell in SHELLS {
        let folder = folder.join(shell.to_string());
        fs::create_dir_all(&folder)?;
        for mut definition in definitions() {
            let name = definition.get_name().to_owned();
            let file = generate_to(shell, &mut definition, &name, &folder)?;
            // Debian's bash looks for the command's name, and clap adds an ending.
            if shell == Shell::Bash {
                fs::rename(file, folder.join(name))?;
            }
        }
    }
    say("completions for bash, zsh and fish", folder);
    Ok(())
}

fn say(what: &str, folder: &Path) {
    let place = folder.strip_prefix(workspace()).unwrap_or(folder);
    println!("{what}: {}", place.display());
}
