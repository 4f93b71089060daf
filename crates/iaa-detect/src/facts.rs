//! The facts found: plain values, each as the kernel or a library states it.

use std::fmt;

#[cfg(feature = "serde")]
use serde::{Serialize, Serializer};

/// All facts that detection collects. `None` means absent, or listed among the oddities.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Facts {
    /// The processor.
    pub(crate) cpu: Cpu,
    /// The running kernel.
    pub(crate) kernel: Kernel,
    /// The family of distributions, for the names of packages.
    pub(crate) distribution: Distribution,
    /// This process: its rights and its processors.
    pub(crate) process: Process,
    /// NUMA nodes, in rising order.
    pub(crate) nodes: Vec<Node>,
    /// IAA functions on the PCI bus, with or without a driver.
    pub(crate) functions: Vec<PciFunction>,
    /// IAA devices of the idxd driver, in rising order.
    pub(crate) devices: Vec<Device>,
    /// libqpl.
    pub(crate) qpl: Qpl,
    /// libaccel-config, which libqpl uses to find devices.
    pub(crate) accel_config: AccelConfig,
    /// The command `accel-config` is installed.
    pub(crate) accel_config_tool: bool,
    /// Files that differ from the kernel's documentation. At most [`Oddity::MOST`] are kept.
    pub(crate) oddities: Vec<Oddity>,
}

/// The processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Cpu {
    /// The model's name.
    pub(crate) model: Option<String>,
    /// The instruction that submits to a shared work queue. The kernel hides the flag if shared
    /// virtual memory is not possible.
    pub(crate) enqcmd: bool,
    /// The instruction that submits to a dedicated work queue.
    pub(crate) movdir64b: bool,
    /// Five-level page tables.
    pub(crate) la57: bool,
    /// This is a virtual machine.
    pub(crate) hypervisor: bool,
}

/// The running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Kernel {
    /// Its full release, as `uname -r` prints it.
    pub(crate) release: Option<String>,
    /// The numbers at the start of the release.
    pub(crate) version: Option<Version>,
    /// The kernel's command line.
    pub(crate) command_line: Option<String>,
    /// The idxd driver's bus `dsa` exists: the driver is loaded or built in.
    pub(crate) idxd: bool,
    /// The module `iaa_crypto` is loaded.
    pub(crate) iaa_crypto: bool,
}

/// The first two numbers of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// The first.
    pub(crate) major: u32,
    /// The second.
    pub(crate) minor: u32,
}

impl Version {
    /// Reads `6.12` from the start of `6.12.9-amd64`.
    pub(super) fn parse(text: &str) -> Option<Version> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Version { major, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A family of distributions, from `/etc/os-release`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub(crate) enum Distribution {
    /// Debian, Ubuntu and their derivatives.
    Debian,
    /// Fedora, RHEL and their derivatives.
    Fedora,
    /// Another one.
    #[default]
    Other,
}

/// This process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Process {
    /// The effective user.
    pub(crate) user: Option<u32>,
    /// The effective group and the supplementary ones.
    pub(crate) groups: Vec<u32>,
    /// `CAP_SYS_RAWIO` is effective. Kernels since mid-2024 require it to map a portal of the first
    /// IAA generation.
    pub(crate) raw_io: Option<bool>,
    /// The processors that it may run on.
    pub(crate) cpus: Option<CpuSet>,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Node {
    /// Its number.
    pub(crate) id: u32,
    /// Its processors.
    pub(crate) cpus: Option<CpuSet>,
    /// The socket of these processors. Sub-NUMA clustering puts several nodes into one socket.
    pub(crate) socket: Option<u32>,
}

/// An IAA function on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct PciFunction {
    /// The address, for example `0000:6a:02.0`.
    pub(crate) address: String,
    /// The PCI device id; the vendor is always 8086.
    #[cfg_attr(feature = "serde", serde(serialize_with = "hexadecimal"))]
    pub(crate) id: Option<u16>,
    /// The driver it is bound to.
    pub(crate) driver: Option<String>,
}

/// An IAA device of the idxd driver.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Device {
    /// Its name.
    pub(crate) id: DeviceId,
    /// Enabled or not. Queues and engines can be configured only while the device is disabled.
    pub(crate) state: Option<State>,
    /// The NUMA node; -1 if the firmware does not report it.
    pub(crate) numa_node: Option<i32>,
    /// Shared virtual memory works for this device.
    pub(crate) pasid_enabled: Option<bool>,
    /// The largest transfer of any of its queues, in bytes.
    pub(crate) max_transfer_bytes: Option<u64>,
    /// Entries for all its queues together.
    pub(crate) max_queue_entries: Option<u32>,
    /// The generation: 0x100, 0x200, ...
    #[cfg_attr(feature = "serde", serde(serialize_with = "hexadecimal"))]
    pub(crate) version: Option<u32>,
    /// The last command's error; 0 is none.
    #[cfg_attr(feature = "serde", serde(serialize_with = "hexadecimal"))]
    pub(crate) cmd_status: Option<u32>,
    /// The numbers of its engines, in rising order.
    pub(crate) engines: Vec<Engine>,
    /// Its work queues, in rising order.
    pub(crate) queues: Vec<Queue>,
}

/// An engine of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Engine {
    /// The number after the dot of `engine1.0`.
    pub(crate) index: u32,
    /// The group that it works for; -1 is none.
    pub(crate) group: Option<i32>,
}

/// A work queue of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Queue {
    /// Its name.
    pub(crate) id: QueueId,
    /// Enabled or not.
    pub(crate) state: Option<State>,
    /// Shared or dedicated.
    pub(crate) mode: Option<Mode>,
    /// The intended users.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub(crate) kind: Option<QueueType>,
    /// The name its owner gave it; may be empty.
    pub(crate) name: Option<String>,
    /// The intended driver; may be empty. Kernels before 6.7 have no such attribute.
    pub(crate) driver_name: Option<String>,
    /// Entries.
    pub(crate) size: Option<u32>,
    /// Entries available without privilege.
    pub(crate) threshold: Option<u32>,
    /// The device waits for pages that are not resident.
    pub(crate) block_on_fault: Option<bool>,
    /// The largest transfer, in bytes.
    pub(crate) max_transfer_bytes: Option<u64>,
    /// The operations it accepts. Absent if the device cannot restrict them.
    pub(crate) op_config: Option<OpConfig>,
    /// The group it belongs to; -1 is none.
    pub(crate) group: Option<i32>,
    /// The result of opening its node.
    pub(crate) node: NodeAccess,
}

/// A device's name: `iax1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceId(pub(crate) u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iax{}", self.0)
    }
}

/// A work queue's name, as accel-config spells it: `iax1/wq1.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueId {
    /// The device.
    pub(crate) device: DeviceId,
    /// The number after the dot.
    pub(crate) index: u32,
}

impl QueueId {
    /// The path of its node: `/dev/iax/wq1.0`.
    pub(crate) fn node(self) -> String {
        format!("/dev/iax/wq{}.{}", self.device.0, self.index)
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/wq{}.{}", self.device, self.device.0, self.index)
    }
}

/// The state of a device or queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub(crate) enum State {
    /// In use; its configuration is fixed.
    Enabled,
    /// Out of use.
    Disabled,
}

/// The mode of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub(crate) enum Mode {
    /// Any number of processes may submit. libqpl requires this mode.
    Shared,
    /// One process owns it.
    Dedicated,
}

/// The users of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub(crate) enum QueueType {
    /// No user: it is not configured.
    None,
    /// The kernel.
    Kernel,
    /// User programs, through a node.
    User,
}

macro_rules! display_as_the_kernel_does {
    ($($type:ident: $($variant:ident $word:literal)*;)*) => {
        $(impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$variant => $word),* })
            }
        })*
    };
}

display_as_the_kernel_does! {
    State: Enabled "enabled" Disabled "disabled";
    Mode: Shared "shared" Dedicated "dedicated";
    QueueType: None "none" Kernel "kernel" User "user";
}

/// The result of opening a queue's node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "access"))]
pub(crate) enum NodeAccess {
    /// Not tried: it is not an enabled, shared user queue. Opening a dedicated queue would take it
    /// away from others.
    NotTried,
    /// It opens.
    Opened {
        /// Whether its portal can be mapped.
        portal: Portal,
    },
    /// There is no such file.
    Missing,
    /// The file is not a character device.
    NotADevice,
    /// Permission denied.
    Denied,
    /// Opening fails for another reason.
    Failed {
        /// The system's message.
        error: String,
    },
}

impl fmt::Display for NodeAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeAccess::NotTried => f.write_str("not tried"),
            NodeAccess::Opened { portal } => write!(f, "opens, {portal}"),
            NodeAccess::Missing => f.write_str("is missing"),
            NodeAccess::NotADevice => f.write_str("is not a device"),
            NodeAccess::Denied => f.write_str("permission denied"),
            NodeAccess::Failed { error } => f.write_str(error),
        }
    }
}

/// Whether a queue's portal can be mapped. Descriptors are submitted to this page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "portal"))]
pub(crate) enum Portal {
    /// It can be mapped.
    Mapped,
    /// It cannot be mapped. libqpl 1.6 and later writes descriptors to the node instead.
    Refused {
        /// The system's message.
        error: String,
    },
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Portal::Mapped => "portal maps",
            Portal::Refused { .. } => "portal refused",
        })
    }
}

/// libqpl, opened by the dynamic loader's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "state"))]
pub(crate) enum Qpl {
    /// It loads.
    Loaded {
        /// The version it reports: `1.9.0`.
        version: String,
    },
    /// It does not load.
    Missing {
        /// The loader's message.
        error: String,
    },
}

impl Qpl {
    /// The loaded library's version, if it reports one.
    pub(crate) fn version(&self) -> Option<Version> {
        match self {
            Qpl::Loaded { version } => Version::parse(version),
            Qpl::Missing { .. } => None,
        }
    }
}

/// libaccel-config, opened in the same way as by libqpl.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "state"))]
pub(crate) enum AccelConfig {
    /// It loads. It has no function that reports its version.
    Loaded {
        /// It supports the capabilities of the second IAA generation, which libqpl requires for
        /// such devices.
        iaa_cap: bool,
    },
    /// It does not load.
    Missing {
        /// The loader's message.
        error: String,
    },
}

/// A file that differs from the kernel's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct Oddity {
    /// Its path below the root.
    pub(crate) path: String,
    /// The problem.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub(crate) problem: Problem,
}

impl Oddity {
    /// The most oddities kept. A healthy machine has none, and more than this is unreadable.
    pub(crate) const MOST: usize = 64;
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// The problem with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "problem"))]
pub(crate) enum Problem {
    /// It cannot be read.
    Unreadable {
        /// The system's message.
        error: String,
    },
    /// It is a directory, a pipe, ...
    NotAFile,
    /// It is longer than any attribute.
    TooLong {
        /// The limit.
        allowed_bytes: usize,
    },
    /// A directory has more entries than the limit.
    TooMany {
        /// The limit.
        allowed: usize,
    },
    /// It is not printable UTF-8.
    NotText,
    /// It is text, but not a valid value of this attribute.
    Malformed {
        /// The text, or its start.
        found: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreadable { error } => f.write_str(error),
            Problem::NotAFile => f.write_str("not a regular file"),
            Problem::TooLong { allowed_bytes } => write!(f, "longer than {allowed_bytes} bytes"),
            Problem::TooMany { allowed } => write!(f, "more than {allowed} entries"),
            Problem::NotText => f.write_str("not printable text"),
            Problem::Malformed { found } => write!(f, "unexpected value {found:?}"),
        }
    }
}

/// The operations that a queue accepts, one bit for each opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpConfig {
    /// 32 bits each, the lowest opcodes first.
    words: [u32; OpConfig::WORDS],
}

impl OpConfig {
    /// Words for 256 opcodes.
    const WORDS: usize = 8;

    /// Parses the kernel's format: hexadecimal words of 32 bits, the highest first, separated by
    /// commas.
    pub(super) fn parse(text: &str) -> Option<OpConfig> {
        let mut words = [0; OpConfig::WORDS];
        let mut left = words.iter_mut();
        for digits in text.trim().rsplit(',') {
            *left.next()? = u32::from_str_radix(digits, 16).ok()?;
        }
        Some(OpConfig { words })
    }

    /// Whether the queue accepts this opcode.
    pub(crate) fn allows(&self, opcode: u8) -> bool {
        let (word, bit) = (opcode / 32, opcode % 32);
        self.words
            .get(usize::from(word))
            .is_some_and(|word| word & (1 << bit) != 0)
    }

    /// Returns a copy with one more opcode.
    #[must_use]
    pub(super) fn with(mut self, opcode: u8) -> OpConfig {
        let (word, bit) = (opcode / 32, opcode % 32);
        if let Some(word) = self.words.get_mut(usize::from(word)) {
            *word |= 1 << bit;
        }
        self
    }
}

impl fmt::Display for OpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, word) in self.words.iter().rev().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{word:08x}")?;
        }
        Ok(())
    }
}

/// A set of processors, in the kernel's notation: `0-55,112-167`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuSet {
    /// The first and last processor of each run.
    runs: Vec<(u32, u32)>,
}

impl CpuSet {
    pub(super) fn parse(text: &str) -> Option<CpuSet> {
        let run = |run: &str| {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        };
        let text = text.trim();
        // A memory-only node has an empty list.
        let runs = if text.is_empty() {
            Some(Vec::new())
        } else {
            text.split(',').map(run).collect()
        };
        Some(CpuSet { runs: runs? })
    }

    /// The lowest processor.
    pub(super) fn first(&self) -> Option<u32> {
        self.runs.iter().map(|&(first, _)| first).min()
    }

    /// Returns whether the sets have a processor in common.
    pub(crate) fn overlaps(&self, other: &CpuSet) -> bool {
        self.runs.iter().any(|&(first, last)| {
            other
                .runs
                .iter()
                .any(|&(other_first, other_last)| first <= other_last && other_first <= last)
        })
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.runs.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
fn hexadecimal<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
where
    T: fmt::LowerHex,
    S: Serializer,
{
    match value {
        Some(value) => serializer.collect_str(&format_args!("{value:#x}")),
        None => serializer.serialize_none(),
    }
}

macro_rules! serialize_as_displayed {
    ($($type:ty),*) => {
        $(#[cfg(feature = "serde")]
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        })*
    };
}

serialize_as_displayed!(Version, DeviceId, QueueId, OpConfig, CpuSet);

#[cfg(test)]
mod tests {
    use super::{CpuSet, OpConfig, Version};

    #[test]
    fn versions() {
        let parse = |text| Version::parse(text).map(|version| version.to_string());
        assert_eq!(parse("6.12.9-amd64").as_deref(), Some("6.12"));
        assert_eq!(parse("1.9").as_deref(), Some("1.9"));
        assert!(Version::parse("1.10") > Version::parse("1.9"));
        for text in ["", "6", "6.", "v6.12", "6.99999999999"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn op_configs() {
        let full = "00000000,00000000,00000000,00000000,00000000,007f331c,00000000,0000000d";
        let config = OpConfig::parse(full).unwrap();
        assert_eq!(config.to_string(), full);
        let allowed: Vec<u8> = (0..=255).filter(|opcode| config.allows(*opcode)).collect();
        assert_eq!(
            allowed,
            [
                0, 2, 3, 0x42, 0x43, 0x44, 0x48, 0x49, 0x4c, 0x4d, 0x50, 0x51, 0x52, 0x53, 0x54,
                0x55, 0x56
            ]
        );
        let highest = OpConfig::parse("80000000,0,0,0,0,0,0,0").unwrap();
        assert!(highest.allows(255) && !highest.allows(254));
        assert_eq!(OpConfig::parse("0").unwrap().with(255), highest);
        for text in ["", ",", "1,,0", "0,0,0,0,0,0,0,0,0", "100000000", "g"] {
            assert_eq!(OpConfig::parse(text), None, "{text}");
        }
    }

    #[test]
    fn cpu_sets() {
        for text in ["", "0", "0-3", "0-3,8,10-11"] {
            assert_eq!(CpuSet::parse(text).unwrap().to_string(), text);
        }
        for text in [",", "3-1", "1-", "-1", "a", "0-3-5", "0 1"] {
            assert_eq!(CpuSet::parse(text), None, "{text}");
        }
        let set = |text| CpuSet::parse(text).unwrap();
        assert!(set("0-3,8").overlaps(&set("8-9")));
        assert!(set("5").overlaps(&set("0-10")));
        assert!(!set("0-3,8").overlaps(&set("4-7,9")));
        assert!(!set("").overlaps(&set("0-10")));
        assert_eq!(set("8,0-3").first(), Some(0));
    }
}
