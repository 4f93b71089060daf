//! The memory that a relay spends on pages that may be sent again.

use std::fs;

use multifd_codec::delta::memory;
use multifd_relay::leg::{LegAddress, Protocol};
use multifd_wire::Method;

use super::Route;
use crate::say;

/// The part of the available memory that is taken unless something else is asked for. The host is
/// there for its guests: one that is full of them has little to spare, and says so in this figure.
pub(crate) const SHARE: u64 = 4;

/// Sets the bound of this process: `asked`, or a part of what is available now. A note says it
/// where a trunk makes use of it. `method` is what this relay writes to a trunk.
pub(crate) fn bound(asked: Option<u64>, routes: &[Route], method: Method) -> Result<(), String> {
    // The files that say how much is left are opened now: the sandbox opens no others.
    memory::left();
    let is_trunk = |leg: &LegAddress| leg.protocol == Protocol::Trunk;
    let receives = routes.iter().any(|route| is_trunk(&route.listen));
    let calls = routes.iter().any(|route| is_trunk(&route.connect));
    let sends = calls && method != Method::None;
    if !receives && !sends {
        return match asked {
            None => Ok(()),
            Some(0) if calls => Ok(()),
            Some(_) if calls => Err(
                "--delta-memory has no effect with --compression none: leave out one of them"
                    .to_owned(),
            ),
            Some(_) => Err(
                "--delta-memory has no effect here: only a trunk carries pages as differences"
                    .to_owned(),
            ),
        };
    }
    let bytes = asked.unwrap_or_else(|| available().map_or(0, |bytes| bytes / SHARE));
    memory::set_limit(bytes);
    match bytes {
        0 => say::note("pages that are sent again go whole: no memory is set apart for them"),
        bytes => say::note(format_args!(
            "up to {} MiB of memory hold pages, so that pages sent again go as differences \
             (--delta-memory)",
            bytes >> 20
        )),
    }
    Ok(())
}

/// The memory that this process can have without swapping, in bytes, as far as the system says so.
pub(crate) fn available() -> Option<u64> {
    let of_system = of_system()?;
    Some(memory::left().map_or(of_system, |left| left.min(of_system)))
}

/// The memory of the whole system (proc(5)).
fn of_system() -> Option<u64> {
    let facts = fs::read_to_string("/proc/meminfo").ok()?;
    let line = facts
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_how_much_is_available() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
