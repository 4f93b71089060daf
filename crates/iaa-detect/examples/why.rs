//! Reports whether an Intel IAA can be used on this machine, and if not, how to remove the first
//! obstacle. With FOLDER it examines the machine whose files are below that folder.
//!
//! `cargo run -p iaa-detect --example why -- [FOLDER]`

use std::path::PathBuf;

use iaa_detect::{Verdict, detect};

fn main() {
    let root = std::env::args_os().nth(1).unwrap_or_else(|| "/".into());
    let report = detect(&PathBuf::from(root));
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
