//! The number of outside crates that each published crate brings with it.

use std::collections::BTreeSet;

use crate::{Result, cargo, output};

/// The most outside crates in the whole tree of each published crate, with all its features, and
/// procedural macros counted: today's number and a little, so that a tree grows by decision only.
///
/// `toml` of `relay --config` brings five: a parser of our own would have the same faults to find,
/// and no other format has comments and a line for each fault.
const MOST: [(&str, usize); 11] = [
    ("multifd-wire", 6),
    ("page-deflate", 6),
    ("iaa-detect", 13),
    ("qpl-sys", 9),
    ("multifd-codec", 18),
    ("multifd-transport", 28),
    ("multifd-relay", 35),
    ("multifd-operate", 38),
    ("multifd-engine", 32),
    ("multifd-cli", 81),
    ("multifd-bench", 81),
];

/// Prints the numbers, and returns those that are too large.
pub fn faults(published: &[String]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for name in published {
        let tree = output(cargo().args([
            "tree",
            "--locked",
            &format!("--package={name}"),
            "--all-features",
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
        ]))?;
        let found = outside(&tree).len();
        println!("    {name}: {found} outside crates");
        faults.extend(fault(name, found));
    }
    Ok(faults)
}

fn fault(name: &str, found: usize) -> Option<String> {
    match MOST.iter().find(|(known, _)| *known == name) {
        None => Some(format!("{name} has no place in the table of trees")),
        Some(&(_, most)) if found > most => Some(format!(
            "{name} brings {found} outside crates, {most} are allowed: `cargo tree -p {name}` shows \
             them; raise the table in xtask only for a crate that ARCHITECTURE.md gives a reason for"
        )),
        Some(_) => None,
    }
}

/// The outside crates in the output of `cargo tree`. Those of this workspace have a path.
fn outside(tree: &str) -> BTreeSet<&str> {
    let lines = tree.lines().map(|line| line.trim_end_matches(" (*)"));
    lines
        .filter(|line| !line.is_empty() && !line.contains(" (/"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outside_crate_counts_once() {
        let tree = "multifd-cli v0.1.0 (/src/multifd)\nclap v4.6.9\nlibc v0.2.1\n\
                    derive v1.0.0 (proc-macro)\nlibc v0.2.1 (*)\n\n";
        let expected = BTreeSet::from(["clap v4.6.9", "derive v1.0.0 (proc-macro)", "libc v0.2.1"]);
        assert_eq!(outside(tree), expected);
    }

    #[test]
    fn a_tree_that_has_grown_is_a_fault() {
        assert_eq!(fault("multifd-wire", 6), None);
        assert!(fault("multifd-wire", 7).is_some_and(|fault| fault.contains("6 are allowed")));
        assert!(fault("unknown", 0).is_some());
    }
}
