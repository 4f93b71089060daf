//! Says whether an Intel IAA can be used on this machine, or on the one whose files are below a folder, and if not, what
//! removes the first obstacle.
//!
//! `cargo run -p iaa-detect --example why -- [FOLDER]`

use std::path::PathBuf;

use iaa_detect::{System, Verdict, detect};

fn main() {
    let root = std::env::args_os().nth(1).unwrap_or_else(|| "/".into());
    let report = detect(&PathBuf::from(root), &System);
    match &report.verdict {
        Verdict::Ready { queues, .. } => println!("ready: {} work queues", queues.len()),
        Verdict::NotReady {
            summary,
            explanation,
            mend,
            ..
        } => {
            println!("not ready: {summary}\n{explanation}\nAs root:");
            mend.iter().for_each(|line| println!("  {line}"));
        }
    }
}
