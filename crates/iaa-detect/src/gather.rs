//! From a file tree to facts.
//!
//! The attributes of devices and queues are those of the kernel's
//! `Documentation/ABI/stable/sysfs-driver-dma-idxd`.

use std::path::Path;

use super::facts::{
    Cpu, CpuSet, Device, DeviceId, Distribution, Engine, Facts, Kernel, Mode, Node, NodeAccess,
    OpConfig, PciFunction, Process, Queue, QueueId, QueueType, State, Version,
};
use super::host::Host;
use super::tree::Tree;

pub(super) fn gather(root: &Path, host: &dyn Host) -> Facts {
    let mut tree = Tree::new(root);
    Facts {
        cpu: cpu(&mut tree),
        kernel: kernel(&mut tree),
        distribution: distribution(&mut tree),
        process: process(&mut tree),
        nodes: nodes(&mut tree),
        functions: functions(&mut tree),
        devices: devices(&mut tree, host),
        qpl: host.qpl(),
        accel_config: host.accel_config(),
        accel_config_tool: TOOL_PATHS.iter().any(|path| tree.exists(path)),
        oddities: tree.into_oddities(),
    }
}

fn cpu(tree: &mut Tree<'_>) -> Cpu {
    let lines = tree.head("proc/cpuinfo");
    let flags: Vec<&str> = field(&lines, "flags")
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    Cpu {
        model: field(&lines, "model name").map(str::to_owned),
        enqcmd: flags.contains(&"enqcmd"),
        movdir64b: flags.contains(&"movdir64b"),
        la57: flags.contains(&"la57"),
        hypervisor: flags.contains(&"hypervisor"),
    }
}

fn kernel(tree: &mut Tree<'_>) -> Kernel {
    let release = tree.text("proc/sys/kernel/osrelease");
    Kernel {
        version: release.as_deref().and_then(Version::parse),
        release,
        command_line: tree.text("proc/cmdline"),
        idxd: tree.exists(&format!("{BUS}/drivers/idxd")),
        iaa_crypto: tree.exists("sys/module/iaa_crypto"),
    }
}

fn distribution(tree: &mut Tree<'_>) -> Distribution {
    let lines = tree.head("etc/os-release");
    let names = lines
        .iter()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches('"').split_ascii_whitespace());
    for name in names {
        match name {
            "debian" | "ubuntu" => return Distribution::Debian,
            "fedora" | "rhel" => return Distribution::Fedora,
            _ => {}
        }
    }
    Distribution::Other
}

fn process(tree: &mut Tree<'_>) -> Process {
    let lines = tree.head("proc/self/status");
    // Real, effective, saved, file system.
    let effective = |key| {
        let ids = field(&lines, key)?;
        ids.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let supplementary = field(&lines, "Groups").unwrap_or_default();
    let mut groups: Vec<u32> = effective("Gid").into_iter().collect();
    groups.extend(
        supplementary
            .split_ascii_whitespace()
            .filter_map(|group| group.parse::<u32>().ok()),
    );
    groups.sort_unstable();
    groups.dedup();
    Process {
        user: effective("Uid"),
        groups,
        raw_io: field(&lines, "CapEff")
            .and_then(|set| u64::from_str_radix(set, 16).ok())
            .map(|set| set & (1 << CAP_SYS_RAWIO) != 0),
        cpus: field(&lines, "Cpus_allowed_list").and_then(CpuSet::parse),
    }
}

fn nodes(tree: &mut Tree<'_>) -> Vec<Node> {
    let ids = numbers(&tree.names(NODES), "node", MOST_NODES);
    let node = |id| {
        let cpus = tree.value(&format!("{NODES}/node{id}/cpulist"), CpuSet::parse);
        let first = cpus.as_ref().and_then(CpuSet::first);
        let socket = first.and_then(|cpu| {
            let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
            tree.value(&format!("{topology}/physical_package_id"), |id| {
                id.parse().ok()
            })
        });
        Node { id, cpus, socket }
    };
    ids.into_iter().map(node).collect()
}

fn functions(tree: &mut Tree<'_>) -> Vec<PciFunction> {
    let mut functions = Vec::new();
    for address in tree.names(PCI) {
        if !is_pci_address(&address) {
            continue;
        }
        let function = format!("{PCI}/{address}");
        let driver = tree.link(&format!("{function}/driver"));
        let id: Option<u16> = tree.value(&format!("{function}/device"), hexadecimal);
        let known = id.is_some_and(|id| IAA_IDS.contains(&id))
            && tree.value(&format!("{function}/vendor"), hexadecimal) == Some(INTEL);
        // A driver newer than the table above names what it has found.
        let named = driver.as_deref() == Some("idxd")
            && tree
                .names(&function)
                .iter()
                .any(|child| child.starts_with("iax"));
        if known || named {
            functions.push(PciFunction {
                address,
                id,
                driver,
            });
        }
    }
    functions
}

fn devices(tree: &mut Tree<'_>, host: &dyn Host) -> Vec<Device> {
    let names = tree.names(DEVICES);
    numbers(&names, "iax", MOST_DEVICES)
        .into_iter()
        .map(|id| device(tree, host, &names, DeviceId(id)))
        .collect()
}

fn device(tree: &mut Tree<'_>, host: &dyn Host, names: &[String], id: DeviceId) -> Device {
    let attribute = |name: &str| format!("{DEVICES}/{id}/{name}");
    let engines = numbers(names, &format!("engine{}.", id.0), MOST_CHILDREN)
        .into_iter()
        .map(|index| {
            let group = format!("{DEVICES}/engine{}.{index}/group_id", id.0);
            Engine {
                index,
                group: tree.value(&group, decimal),
            }
        })
        .collect();
    let queues = numbers(names, &format!("wq{}.", id.0), MOST_CHILDREN)
        .into_iter()
        .map(|index| queue(tree, host, QueueId { device: id, index }))
        .collect();
    Device {
        id,
        state: tree.value(&attribute("state"), state),
        numa_node: tree.value(&attribute("numa_node"), decimal),
        pasid_enabled: tree.value(&attribute("pasid_enabled"), boolean),
        max_transfer_bytes: tree.value(&attribute("max_transfer_size"), decimal),
        max_queue_entries: tree.value(&attribute("max_work_queues_size"), decimal),
        version: tree.value(&attribute("version"), hexadecimal),
        cmd_status: tree.value(&attribute("cmd_status"), hexadecimal),
        engines,
        queues,
    }
}

fn queue(tree: &mut Tree<'_>, host: &dyn Host, id: QueueId) -> Queue {
    let attribute = |name: &str| format!("{DEVICES}/wq{}.{}/{name}", id.device.0, id.index);
    let mut queue = Queue {
        id,
        state: tree.value(&attribute("state"), state),
        mode: tree.value(&attribute("mode"), |mode| match mode {
            "shared" => Some(Mode::Shared),
            "dedicated" => Some(Mode::Dedicated),
            _ => None,
        }),
        kind: tree.value(&attribute("type"), |kind| match kind {
            "none" => Some(QueueType::None),
            "kernel" => Some(QueueType::Kernel),
            "user" => Some(QueueType::User),
            _ => None,
        }),
        name: tree.text(&attribute("name")),
        driver_name: tree.text(&attribute("driver_name")),
        size: tree.value(&attribute("size"), decimal),
        threshold: tree.value(&attribute("threshold"), decimal),
        block_on_fault: tree.value(&attribute("block_on_fault"), boolean),
        max_transfer_bytes: tree.value(&attribute("max_transfer_size"), decimal),
        op_config: tree.value(&attribute("op_config"), OpConfig::parse),
        group: tree.value(&attribute("group_id"), decimal),
        node: NodeAccess::NotTried,
    };
    if queue.is_offered() {
        queue.node = host.node(&tree.locate(&id.node()));
    }
    queue
}

impl Queue {
    /// Enabled, shared and not the kernel's: what libqpl would open.
    fn is_offered(&self) -> bool {
        self.state == Some(State::Enabled)
            && self.mode == Some(Mode::Shared)
            && self.kind != Some(QueueType::Kernel)
    }
}

/// The lowest numbers N of the names `PREFIXN`, in rising order.
fn numbers(names: &[String], prefix: &str, most: usize) -> Vec<u32> {
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| name.strip_prefix(prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.truncate(most);
    numbers
}

/// The value of the first line `key: value`.
fn field<'l>(lines: &'l [String], key: &str) -> Option<&'l str> {
    lines
        .iter()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

fn state(text: &str) -> Option<State> {
    match text {
        "enabled" => Some(State::Enabled),
        "disabled" => Some(State::Disabled),
        _ => None,
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// As C's `%#x` prints it, which leaves the prefix off 0.
fn hexadecimal<T: TryFrom<u64>>(text: &str) -> Option<T> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    T::try_from(u64::from_str_radix(digits, 16).ok()?).ok()
}

/// As `0000:6a:02.0`, so that an address can stand in a shell command as it is.
fn is_pci_address(name: &str) -> bool {
    name.contains(':')
        && name
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'))
}

const BUS: &str = "sys/bus/dsa";
const DEVICES: &str = "sys/bus/dsa/devices";
const PCI: &str = "sys/bus/pci/devices";
const NODES: &str = "sys/devices/system/node";

/// Where packages and its own build put the command.
const TOOL_PATHS: [&str; 4] = [
    "usr/bin/accel-config",
    "usr/sbin/accel-config",
    "usr/local/bin/accel-config",
    "usr/local/sbin/accel-config",
];

const INTEL: u16 = 0x8086;

/// The devices which the idxd driver calls `iax`: server processors from Sapphire Rapids on,
/// Diamond Rapids, and two client ones.
const IAA_IDS: [u16; 4] = [0x0cfe, 0x1216, 0xb02d, 0xfd2d];

/// The capability's number in `linux/capability.h`.
const CAP_SYS_RAWIO: u32 = 17;

/// A socket has four devices, and nobody puts more than sixteen sockets into one machine.
const MOST_DEVICES: usize = 64;

/// Queues or engines of one device; it has eight of each.
const MOST_CHILDREN: usize = 64;

/// The most a Linux for this architecture is configured for.
const MOST_NODES: usize = 1024;
