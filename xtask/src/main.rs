//! The workspace's tasks: `cargo xtask VERB`.
fn main() {}
