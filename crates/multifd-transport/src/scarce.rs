//! Why this host gives no thread: its memory or its number of threads is used up, and a limit says
//! so as a rule. The system's own error tells neither.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Component, Path};

use rustix::process::{Resource, getrlimit, getuid};

/// The address space that a thread takes: its stack, and allocations of other threads at the same
/// time.
const THREAD_BYTES: u64 = 8 << 20;

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// This host gave no thread.
#[derive(Debug, thiserror::Error)]
#[error("this host gives no thread: {found}")]
pub struct NoThread {
    /// In a box, as failures are small.
    found: Box<Found>,
    source: io::Error,
}

impl NoThread {
    /// Looks for the limit that was reached.
    pub fn new(source: io::Error) -> Self {
        let found = Box::new(Found::look());
        Self { found, source }
    }

    /// The same, as an error of the system's.
    pub fn io(source: io::Error) -> io::Error {
        io::Error::new(source.kind(), Self::new(source))
    }
}

/// The limits of this process.
#[derive(Debug, Default)]
struct Found {
    /// The bytes of its address space, and their limit.
    address_space: Option<(u64, u64)>,
    /// The most threads of its user.
    processes: Option<u64>,
    /// The control group with the fewest threads left: its name, its threads and their limit.
    group: Option<(String, u64, u64)>,
}

impl Found {
    fn look() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let used = status.lines().find_map(|line| {
            let text = line.strip_prefix("VmSize:")?.trim().strip_suffix("kB")?;
            text.trim().parse::<u64>().ok()?.checked_mul(1024)
        });
        let limit = getrlimit(Resource::As).current;
        // The system lets root have any number.
        let is_root = getuid().is_root();
        let processes = getrlimit(Resource::Nproc).current;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            address_space: used.zip(limit),
            processes: processes.filter(|_| !is_root),
            group: fullest(Path::new(GROUPS), &groups),
        }
    }

    fn lacks_memory(&self) -> bool {
        let lacks = |(used, limit): (u64, u64)| limit.saturating_sub(used) < THREAD_BYTES;
        self.address_space.is_some_and(lacks)
    }

    fn is_group_full(&self) -> bool {
        let is_full = |(_, threads, most): &(String, u64, u64)| threads >= most;
        self.group.as_ref().is_some_and(is_full)
    }
}

/// Of this process's groups, whose names `lines` has (/proc/self/cgroup), and those above them, the
/// one that has the fewest threads left.
fn fullest(root: &Path, lines: &str) -> Option<(String, u64, u64)> {
    let paths = lines.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let top = match controllers {
            "" => root.to_owned(),
            _ if controllers.split(',').any(|name| name == "pids") => root.join("pids"),
            _ => return None,
        };
        let path = Path::new(path.trim_start_matches('/'));
        let is_below = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        Some((top, if is_below { path } else { Path::new("") }))
    });
    let groups = paths.flat_map(|(top, path)| {
        path.ancestors().filter_map(move |path| {
            let number = |name: &str| -> Option<u64> {
                let text = fs::read_to_string(top.join(path).join(name)).ok()?;
                // A group without a limit says "max".
                text.trim().parse().ok()
            };
            let (threads, most) = (number("pids.current")?, number("pids.max")?);
            Some((format!("/{}", path.display()), threads, most))
        })
    });
    groups.min_by_key(|(_, threads, most)| most.saturating_sub(*threads))
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address_space, self.processes, &self.group) {
            (Some((used, limit)), ..) if self.lacks_memory() => write!(
                f,
                "its memory is used up ({} of {} MiB of address space, RLIMIT_AS); raise the limit \
                 (ulimit -v, or the service's LimitAS=)",
                used >> 20,
                limit >> 20
            ),
            (_, _, Some((name, _, most))) if self.is_group_full() => write!(
                f,
                "its threads are used up (pids.max {most} of the control group {}); raise the limit \
                 (the service's TasksMax=)",
                crate::escape::printable(name)
            ),
            (_, Some(most), _) => write!(
                f,
                "its threads are used up ({most} for this user, RLIMIT_NPROC); raise the limit \
                 (ulimit -u, or the service's LimitNPROC=)"
            ),
            (space, None, group) => {
                f.write_str("threads or memory are used up")?;
                if let Some((_, limit)) = space {
                    write!(f, "; RLIMIT_AS is {} MiB (ulimit -v)", limit >> 20)?;
                }
                if let Some((_, threads, most)) = group {
                    write!(f, "; pids.max is {most}, {threads} are taken (TasksMax=)")?;
                }
                if space.is_none() && group.is_none() {
                    f.write_str(
                        ", and no limit of this process says so: see `free` and `sysctl kernel.threads-max`",
                    )?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limit_that_was_reached_is_named_with_its_remedy() {
        let group = |threads| Some(("/a/b".to_owned(), threads, 50));
        let space = |used| Some((used * MIB, 150 * MIB));
        for (address_space, processes, group, words) in [
            (space(149), Some(9), group(50), ["RLIMIT_AS", "ulimit -v"]),
            (space(20), Some(9), group(50), ["pids.max 50", "TasksMax="]),
            (space(20), Some(9), group(4), ["RLIMIT_NPROC", "ulimit -u"]),
            (
                space(20),
                None,
                group(4),
                ["RLIMIT_AS", "pids.max is 50, 4"],
            ),
            (None, None, None, ["threads or memory", "no limit"]),
        ] {
            let found = Box::new(Found {
                address_space,
                processes,
                group,
            });
            let source = io::Error::from_raw_os_error(11);
            let text = NoThread { found, source }.to_string();
            assert!(text.contains("this host"), "{text}");
            for word in words {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
        let _ = Found::look().to_string();
    }

    #[test]
    fn the_fullest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (path, threads, most) in [
            ("a", "7", "9"),
            ("a/b", "7", "max"),
            ("pids/c", "8", "9"),
            ("d", "9", "9"),
        ] {
            let folder = root.join(path);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("pids.current"), format!("{threads}\n")).unwrap();
            fs::write(folder.join("pids.max"), format!("{most}\n")).unwrap();
        }
        let found = fullest(root, "0::/a/b\n");
        assert_eq!(found, Some(("/a".to_owned(), 7, 9)));
        let found = fullest(root, "4:memory:/d\n3:cpu,pids:/c\n0::/a/b\n");
        assert_eq!(found, Some(("/c".to_owned(), 8, 9)));
        assert_eq!(fullest(root, "0::/a/../d\n"), None);
    }
}
