//! The built command.

use std::ffi::OsStr;
use std::process::Command;

use testkit::process::Tested;

/// Starts `multifd-bench`.
pub fn bench<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Tested {
    Tested::spawn(Command::new(env!("CARGO_BIN_EXE_multifd-bench")).args(args))
}
