//! The examples, run.
//!
//! Without a harness, because one of them starts this program a second time.

#[path = "../examples/offload.rs"]
mod offload;
#[path = "../examples/vmm.rs"]
mod vmm;

use std::env;
use std::process::Command;

use multifd_engine::VmError;

fn main() -> Result<(), VmError> {
    let mut arguments = env::args_os();
    // Not `current_exe`, which is the dynamic loader when that was told to start this program.
    let program = arguments.next().ok_or("this program has no name")?;
    if arguments.next().is_some_and(|word| word == offload::VMM) {
        return offload::vmm();
    }
    println!("example vmm");
    vmm::main()?;
    println!("example offload");
    let mut vmm = Command::new(program);
    vmm.arg(offload::VMM);
    offload::daemon(vmm)
}
