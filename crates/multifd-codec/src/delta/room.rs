//! The memory that the limits of this process leave to it.
//!
//! A failed allocation ends the whole process, and the kernel kills processes of a full control
//! group. So kept pages leave a reserve for everything else.
//!
//! The files that tell limits and usage stay open, because a process may give up its right to open
//! files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes that kept pages leave free, in addition to a part of the limit. A connection with its
/// thread takes some MiB, and so does a helper of the codec.
const RESERVE_BYTES: u64 = 64 << 20;

/// The reciprocal of the part of a limit that stays free, too.
const RESERVE_PART: u64 = 16;

/// A control group without a limit may state a number from here on.
const NO_LIMIT: u64 = 1 << 60;

/// More bytes than any file here has.
const MOST_BYTES: usize = 16 << 10;

/// The limits of a process.
#[derive(Debug, Default)]
struct Room {
    /// The process's usage.
    status: Option<File>,
    /// Its limits.
    address_space: Option<u64>,
    data: Option<u64>,
    groups: Vec<Group>,
}

/// A control group with a limit.
#[derive(Debug)]
struct Group {
    limits: Vec<File>,
    usage: File,
    stat: Option<File>,
    /// The name of the statistic of memory that the kernel can reclaim at once.
    cache: &'static str,
}

/// The names of a version of control groups.
struct Version {
    limits: &'static [&'static str],
    usage: &'static str,
    cache: &'static str,
}

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};

const V2: Version = Version {
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    cache: "inactive_file",
};

/// The bytes that a limit leaves, and the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    bytes: u64,
    limit: u64,
}

impl Left {
    /// The part of these bytes that kept pages may have.
    const fn spare(self) -> u64 {
        let part = self.limit / RESERVE_PART;
        self.bytes.saturating_sub(RESERVE_BYTES + part)
    }
}

static ROOM: OnceLock<Room> = OnceLock::new();

fn room() -> &'static Room {
    ROOM.get_or_init(|| Room::open(Path::new("/")))
}

/// The bytes that the limits of this process leave to it, if it has any: the limits of its address
/// space and its data (setrlimit(2)), and those of its control groups (cgroups(7)). The first call
/// opens the files that tell them.
pub fn left() -> Option<u64> {
    room().left().map(|left| left.bytes).min()
}

/// The further bytes that kept pages may take, if there are any limits: [`left`] without a reserve.
pub(super) fn spare() -> Option<u64> {
    room().left().map(Left::spare).min()
}

impl Room {
    /// Opens the files below `root`, which is `/` outside of tests.
    fn open(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let limits = read("proc/self/limits");
        let mut groups = Vec::new();
        let paths = read("proc/self/cgroup");
        for line in read("proc/self/mountinfo").lines() {
            let found = Mount::parse(line).and_then(|mount| Some((mount.path(&paths)?, mount)));
            if let Some((path, mount)) = found {
                let top = root.join(mount.at.trim_start_matches('/'));
                groups.extend(Group::chain(&top, &path, &mount.version));
            }
        }
        let address_space = limit_of(&limits, "Max address space");
        let data = limit_of(&limits, "Max data size");
        // A process without limits needs no descriptor for its usage.
        let status = address_space.or(data).and_then(|_| {
            let path = root.join("proc/self/status");
            File::open(path).ok()
        });
        Self {
            status,
            address_space,
            data,
            groups,
        }
    }

    fn left(&self) -> impl Iterator<Item = Left> {
        let status = self.status.as_ref().map(text).unwrap_or_default();
        let of_process = [(self.address_space, "VmSize:"), (self.data, "VmData:")];
        let of_process = of_process.into_iter().filter_map(move |(limit, name)| {
            let (limit, used) = (limit?, kibibytes(&status, name)?);
            let bytes = limit.saturating_sub(used);
            Some(Left { bytes, limit })
        });
        of_process.chain(self.groups.iter().filter_map(Group::left))
    }
}

/// A mount of control groups.
struct Mount<'a> {
    /// The group at the mount's root.
    group: &'a str,
    at: &'a str,
    version: Version,
}

impl<'a> Mount<'a> {
    /// A line of /proc/self/mountinfo (proc(5)), if it is the mount of groups for memory.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (group, at) = (fields.next()?, fields.next()?);
        let mut fields = kind.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let version = match kind {
            "cgroup2" => V2,
            "cgroup" if options.split(',').any(|option| option == "memory") => V1,
            _ => return None,
        };
        Some(Self { group, at, version })
    }

    /// The path of this process's group below the mount, from the lines of /proc/self/cgroup.
    fn path(&self, lines: &str) -> Option<PathBuf> {
        let is_v1 = self.version.usage == V1.usage;
        let path = lines.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let mut controllers = controllers.split(',');
            let is_here = match is_v1 {
                true => controllers.any(|controller| controller == "memory"),
                false => controllers.eq([""]),
            };
            is_here.then_some(path)
        })?;
        // In a container the mount may begin at its group.
        let below = Path::new(path)
            .strip_prefix(self.group)
            .unwrap_or(Path::new(""));
        Some(below.strip_prefix("/").unwrap_or(below).to_owned())
    }
}

impl Group {
    /// A group and its ancestors that have limits.
    fn chain(top: &Path, path: &Path, version: &Version) -> Vec<Self> {
        let is_below = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        let path = if is_below { path } else { Path::new("") };
        let folders = path.ancestors().map(|path| top.join(path));
        folders
            .filter_map(|folder| Self::open(&folder, version))
            .collect()
    }

    fn open(folder: &Path, version: &Version) -> Option<Self> {
        let limits = version.limits.iter();
        let limits = limits.filter_map(|name| File::open(folder.join(name)).ok());
        let group = Self {
            limits: limits.collect(),
            usage: File::open(folder.join(version.usage)).ok()?,
            stat: File::open(folder.join("memory.stat")).ok(),
            cache: version.cache,
        };
        group.left().is_some().then_some(group)
    }

    fn left(&self) -> Option<Left> {
        // A group without a limit says "max", or a very high number.
        let limits = self.limits.iter().filter_map(number);
        let limit = limits.filter(|&limit| limit < NO_LIMIT).min()?;
        let stat = self.stat.as_ref().map(text).unwrap_or_default();
        let cache = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            (name == self.cache).then(|| bytes.trim().parse().ok())?
        });
        let used = number(&self.usage)?.saturating_sub(cache.unwrap_or(0));
        let bytes = limit.saturating_sub(used);
        Some(Left { bytes, limit })
    }
}

/// A limit in the table of /proc/self/limits.
fn limit_of(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A line of /proc/self/status in kB, in bytes.
fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

fn number(file: &File) -> Option<u64> {
    text(file).trim().parse().ok()
}

/// The present content of a file; empty if it cannot be read.
fn text(file: &File) -> String {
    let mut bytes = vec![0; MOST_BYTES];
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..) {
        match file.read_at(rest, len as u64) {
            Ok(0) | Err(_) => break,
            Ok(count) => len += count,
        }
    }
    bytes.truncate(len);
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn tree(cgroup: &str, mountinfo: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", cgroup);
        write(root.path(), "proc/self/mountinfo", mountinfo);
        root
    }

    fn group(root: &Path, folder: &str, version: &Version, [limit, used, cache]: [u64; 3]) {
        let folder = |name: &str| format!("{folder}/{name}");
        let limit = match limit {
            0 if version.usage == V2.usage => "max\n".to_owned(),
            0 => format!("{}\n", 0x7FFF_FFFF_FFFF_F000_u64),
            mib => format!("{}\n", mib * MIB),
        };
        write(root, &folder(version.limits[0]), &limit);
        write(root, &folder(version.usage), &format!("{}\n", used * MIB));
        let stat = format!("anon 7\n{} {}\nfile 9\n", version.cache, cache * MIB);
        write(root, &folder("memory.stat"), &stat);
    }

    fn left(root: &Path) -> Option<u64> {
        let room = Room::open(root);
        room.left().map(|left| left.bytes / MIB).min()
    }

    #[test]
    fn the_smallest_rest_of_all_groups_counts() {
        let mount = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let root = tree("0::/machine.slice/vm.scope\n", mount);
        let root = root.path();
        assert_eq!(left(root), None);
        group(
            root,
            "sys/fs/cgroup/machine.slice/vm.scope",
            &V2,
            [0, 50, 0],
        );
        assert_eq!(left(root), None);
        group(root, "sys/fs/cgroup/machine.slice", &V2, [500, 420, 20]);
        assert_eq!(left(root), Some(100));
        group(
            root,
            "sys/fs/cgroup/machine.slice/vm.scope",
            &V2,
            [90, 50, 0],
        );
        assert_eq!(left(root), Some(40));
        let high = (60 * MIB).to_string();
        write(
            root,
            "sys/fs/cgroup/machine.slice/vm.scope/memory.high",
            &high,
        );
        assert_eq!(left(root), Some(10));
    }

    #[test]
    fn groups_of_both_versions_count() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      40 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let root = tree("5:cpu:/other\n4:memory:/a/b\n0::/\n", mounts);
        let root = root.path();
        group(root, "sys/fs/cgroup/memory/a", &V1, [300, 100, 0]);
        group(root, "sys/fs/cgroup/memory/a/b", &V1, [0, 100, 0]);
        group(root, "sys/fs/cgroup/cpu/other", &V1, [10, 9, 0]);
        assert_eq!(left(root), Some(200));
    }

    #[test]
    fn a_mount_may_begin_at_a_containers_group() {
        let mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for path in ["/docker/abc", "/../../elsewhere"] {
            let root = tree(&format!("4:memory:{path}\n"), mount);
            let root = root.path();
            group(root, "sys/fs/cgroup/memory", &V1, [300, 100, 50]);
            assert_eq!(left(root), Some(250), "{path}");
        }
    }

    #[test]
    fn limits_of_the_process_count() {
        let root = tree("", "");
        let root = root.path();
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max data size             unlimited            unlimited            bytes\n\
                      Max address space         314572800            unlimited            bytes\n";
        write(root, "proc/self/limits", limits);
        write(
            root,
            "proc/self/status",
            "Name:\tx\nVmSize:\t  102400 kB\nVmData:\t 9 kB\n",
        );
        assert_eq!(left(root), Some(200));
    }

    #[test]
    fn a_rest_stays_free() {
        let spare = |bytes, limit| {
            let (bytes, limit) = (bytes * MIB, limit * MIB);
            Left { bytes, limit }.spare() / MIB
        };
        assert_eq!(spare(200, 320), 116);
        assert_eq!(spare(84, 320), 0);
    }

    #[test]
    fn this_hosts_files_can_be_read() {
        let room = Room::open(Path::new("/"));
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(kibibytes(&status, "VmSize:").is_some_and(|bytes| bytes > MIB));
        for left in room.left() {
            assert!(left.bytes <= left.limit);
        }
    }
}
