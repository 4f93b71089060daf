//! Finds stores from the second byte of a register (`mov %ah,(%rdi)`) in a built program. On some
//! faulty processors such a store may write another register's byte, so the codec avoids them.

use std::path::Path;
use std::process::Command;

use crate::{Result, output};

/// Disassembles a program. Returns the number of functions of this workspace's crates, and a line
/// for each such store in them.
pub fn faults(program: &Path) -> Result<(usize, Vec<String>)> {
    let mut objdump = Command::new("objdump");
    objdump.args(["--disassemble", "--demangle", "--no-show-raw-insn"]);
    let assembly = output(objdump.arg(program))?;
    let (mut functions, mut faults) = (0, Vec::new());
    let mut function = None;
    for line in assembly.lines() {
        if let Some((_, name)) = line
            .strip_suffix(">:")
            .and_then(|line| line.split_once(" <"))
        {
            function = Some(name).filter(|name| OURS.iter().any(|ours| name.contains(ours)));
            functions += usize::from(function.is_some());
        } else if let Some(name) = function
            && is_store_from_high_byte(line)
        {
            faults.push(format!("{name}: {}", line.trim()));
        }
    }
    if functions == 0 {
        return Err(format!("{}: no function of ours has a name", program.display()).into());
    }
    Ok((functions, faults))
}

/// Parts of the names of the functions that see every page. Others of ours, such as those that
/// write control messages, may have such a store.
const OURS: [&str; 4] = [
    "page_deflate",
    "multifd_codec",
    "multifd_wire",
    "instructions::",
];

/// Whether a line such as `  4a0: mov    %ah,0x8(%rdi)` writes such a byte to memory.
fn is_store_from_high_byte(line: &str) -> bool {
    let Some((_, instruction)) = line.split_once(':') else {
        return false;
    };
    let Some((_, operands)) = instruction.trim().split_once(' ') else {
        return false;
    };
    let from_high_byte = HIGH_BYTES
        .iter()
        .find_map(|register| operands.trim().strip_prefix(register));
    // A destination that is no register is memory.
    from_high_byte
        .is_some_and(|destination| !destination.starts_with(",%") || destination.contains('('))
}

const HIGH_BYTES: [&str; 4] = ["%ah", "%bh", "%ch", "%dh"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_told_from_other_instructions() {
        for store in [
            "    4a0:\tmov    %ah,0x8(%rdi)",
            "    4a0:\tmov    %dh,(%rax,%rbx,1)",
            "    4a0:\tor     %ch,0x1f(%rip)        # 700 <x>",
            "    4a0:\txchg   %bh,%fs:(%rdx)",
            "    4a0:\tmov    %bh,0x1234",
        ] {
            assert!(is_store_from_high_byte(store), "{store}");
        }
        for other in [
            "    4a0:\tmov    %ah,%al",
            "    4a0:\tmovzbl %ah,%eax",
            "    4a0:\tmov    %al,(%rdi)",
            "    4a0:\tmov    (%rdi),%ah",
            "    4a0:\tret",
            "00000000000004a0 <name>:",
        ] {
            assert!(!is_store_from_high_byte(other), "{other}");
        }
    }
}
