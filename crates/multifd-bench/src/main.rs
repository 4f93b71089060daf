//! The command `multifd-bench`; its code is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    multifd_bench::command::main()
}
