//! The memory that a process can write.

use std::fs;
use std::io;
use std::ops::Range;

/// The writable private mappings of a process, in the order of their addresses.
pub fn writable(pid: u32) -> io::Result<Vec<Range<u64>>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps.lines().filter_map(of_line).collect())
}

/// Reads a line such as `7f00-7f10 rw-p 00000000 00:00 0 [heap]` (proc_pid_maps(5)).
fn of_line(line: &str) -> Option<Range<u64>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    (permissions.starts_with("rw") && permissions.ends_with('p')).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_private_mappings_count() {
        let heap =
            "55d0c8f2a000-55d0c8f4b000 rw-p 00000000 00:00 0                          [heap]";
        assert_eq!(of_line(heap), Some(0x55d0_c8f2_a000..0x55d0_c8f4_b000));
        for other in [
            "1000-2000 r-xp 0 00:00 0 /a",
            "1000-2000 rw-s 0 00:00 0",
            "",
            "x-y rw-p",
        ] {
            assert_eq!(of_line(other), None, "{other}");
        }
        let own = writable(std::process::id()).unwrap();
        let local = 0;
        let address = std::ptr::from_ref(&local).addr() as u64;
        assert!(own.iter().any(|range| range.contains(&address)));
    }
}
