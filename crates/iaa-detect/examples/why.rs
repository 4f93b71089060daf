//! Reports whether an Intel IAA can be used on this machine, and if not, how to remove the first
//! obstacle. With FOLDER it examines the machine whose files are below that folder.
//!
//! `cargo run -p iaa-detect --example why -- [FOLDER]`

use std::path::PathBuf;

use iaa_detect::detect;

fn main() {
    let root = std::env::args_os().nth(1).unwrap_or_else(|| "/".into());
    let report = detect(&PathBuf::from(root));
    println!("{}", report.verdict());
    if let Some(obstacle) = report.obstacle() {
        println!("{}\nAs root:", obstacle.explanation());
        obstacle.mend().iter().for_each(|line| println!("  {line}"));
    }
}
