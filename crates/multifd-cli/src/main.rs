//! The `multifd` command.
fn main() {}
