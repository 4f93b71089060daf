//! The commands that remove an obstacle.

use super::cause::{AccelConfigProblem, Cause, KernelParameter, RefusedNode, list, other_driver};
use super::facts::{
    Device, DeviceId, Distribution, Engine, Facts, Mode, NodeAccess, PciFunction, Queue, QueueId,
    QueueType, State, Version,
};
use super::judge::{DEFLATE_OPCODES, socket_of};

/// Returns lines for a root shell. Lines that begin with `#` are manual steps.
///
/// If several devices need the same change, the lines are for one device of each NUMA node. That is
/// enough for libqpl to find one from everywhere.
pub(super) fn mend(facts: &Facts, cause: &Cause) -> Vec<String> {
    let mut lines = remedy(facts, cause);
    if !facts.accel_config_tool && lines.iter().any(|line| line.contains("accel-config ")) {
        let package = install(facts.distribution, "accel-config", "accel-config");
        lines.insert(0, package);
    }
    lines
}

fn remedy(facts: &Facts, cause: &Cause) -> Vec<String> {
    match cause {
        Cause::NoDevice { virtual_machine } => vec![comment(if *virtual_machine {
            "on the host: pass an IAA function through to this machine"
        } else {
            "firmware setup: enable the accelerators; without such an item there is no IAA"
        })],
        Cause::DriverNotBound { loaded, functions } => bind_driver(*loaded, functions),
        Cause::NoSharedVirtualMemory { lacks, .. } => boot_with(facts.distribution, *lacks),
        Cause::NoAccelConfig { problem } => install_accel_config(facts.distribution, problem),
        Cause::NoQpl { .. } => vec![install_qpl(facts.distribution)],
        Cause::DevicesDisabled { devices } | Cause::QueuesDisabled { devices } => {
            for_one_per_node(facts, devices, |device| enable(facts, device))
        }
        Cause::OnlyDedicatedQueues { queues } => reconfigure(facts, queues, |_, queue| {
            let size = queue.size.unwrap_or(DEVICE_ENTRIES);
            Some(format!("-m shared -t {size}"))
        }),
        Cause::HeldByKernel { queues, iaa_crypto } => take_over(facts, queues, *iaa_crypto),
        Cause::NodesNotOpened { nodes, user } => open_nodes(nodes, *user),
        Cause::PortalsRefused { .. } => vec![
            install_qpl(facts.distribution),
            comment("or let the program map portals, with a capability that is as good as root:"),
            comment("(it also opens /dev/mem, I/O ports and model-specific registers)"),
            comment("setcap cap_sys_rawio+ep PROGRAM"),
        ],
        Cause::OtherSocket { nodes, .. } => serve_nodes(facts, nodes),
        Cause::OperationsDisabled { queues } => reconfigure(facts, queues, |_, queue| {
            let config = DEFLATE_OPCODES
                .iter()
                .fold(queue.op_config?, |config, opcode| config.with(*opcode));
            Some(format!("--op-config={config}"))
        }),
        Cause::TransfersTooSmall { queues, .. } => reconfigure(facts, queues, |device, _| {
            let most = device.max_transfer_bytes.unwrap_or(DEVICE_TRANSFER_BYTES);
            Some(format!("-x {most}"))
        }),
        Cause::SubmissionFails { kernel, .. } => {
            let mut lines = vec![KERNEL_LOG.to_owned()];
            if kernel.is_some() {
                lines.push(comment(
                    "boot a newer kernel: 5.18 or later, 6.3 for the second IAA generation",
                ));
            }
            lines
        }
        Cause::EnabledTooLate { .. } => vec![comment("restart this process")],
    }
}

fn bind_driver(loaded: bool, functions: &[PciFunction]) -> Vec<String> {
    let mut lines = Vec::new();
    if !loaded {
        lines.push("modprobe idxd".to_owned());
    }
    match other_driver(functions) {
        Some(driver) => {
            let taken = functions
                .iter()
                .filter(|function| function.driver.as_deref() == Some(driver));
            for PciFunction { address, .. } in taken {
                let function = format!("/sys/bus/pci/devices/{address}");
                lines.push(format!("echo {address} > {function}/driver/unbind"));
                lines.push(format!("echo > {function}/driver_override"));
                lines.push(format!("echo {address} > /sys/bus/pci/drivers_probe"));
            }
        }
        // Binding by hand repeats the driver's messages from load time in the log.
        None if loaded => {
            lines.extend(functions.iter().map(|function| {
                format!("echo {} > /sys/bus/pci/drivers/idxd/bind", function.address)
            }));
            lines.push(KERNEL_LOG.to_owned());
        }
        None => {}
    }
    lines
}

fn boot_with(distribution: Distribution, lacks: Option<KernelParameter>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(parameter) = lacks {
        match distribution {
            Distribution::Debian => {
                lines.push(format!(
                    "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{parameter} /' /etc/default/grub"
                ));
                lines.push("update-grub".to_owned());
            }
            Distribution::Fedora => {
                lines.push(format!("grubby --update-kernel=ALL --args={parameter}"));
            }
            Distribution::Other => {
                lines.push(comment(&format!(
                    "add {parameter} to the kernel's command line"
                )));
            }
        }
    }
    lines.push(comment(
        "firmware setup: Socket > IIO: VT-d on, PCIe ENQCMD/ENQCMDS on",
    ));
    lines.push("reboot".to_owned());
    lines
}

fn install_accel_config(distribution: Distribution, problem: &AccelConfigProblem) -> Vec<String> {
    let mut lines = vec![install(
        distribution,
        "libaccel-config1",
        "accel-config-libs",
    )];
    if *problem == AccelConfigProblem::TooOld {
        lines.push(comment("of a release after 3.5.3, which is too old"));
    }
    lines
}

fn install_qpl(distribution: Distribution) -> String {
    match distribution {
        Distribution::Debian => "apt install libqpl1".to_owned(),
        _ => comment("install libqpl.so.1 of release 1.6 or later"),
    }
}

fn install(distribution: Distribution, debian: &str, fedora: &str) -> String {
    match distribution {
        Distribution::Debian => format!("apt install {debian}"),
        Distribution::Fedora => format!("dnf install {fedora}"),
        Distribution::Other => comment(&format!("install {debian}")),
    }
}

/// Takes queues over from the kernel, in the order given by its documentation of `iaa_crypto`.
fn take_over(facts: &Facts, queues: &[QueueId], iaa_crypto: bool) -> Vec<String> {
    let (chosen, others) = one_per_node(facts, &devices_of(queues));
    let mut lines: Vec<String> = chosen.iter().flat_map(|device| disable(device)).collect();
    if iaa_crypto {
        lines.push("rmmod iaa_crypto".to_owned());
    }
    lines.extend(chosen.iter().flat_map(|device| configure(facts, device)));
    lines.extend(likewise(&others));
    lines
}

fn open_nodes(nodes: &[RefusedNode], user: Option<u32>) -> Vec<String> {
    let Some(first) = nodes.first() else {
        return Vec::new();
    };
    let paths: Vec<String> = nodes
        .iter()
        .filter(|node| node.access == first.access)
        .map(|node| node.queue.node())
        .collect();
    let paths = paths.join(" ");
    match (&first.access, user) {
        // Permissions do not stop root; device restrictions of a container do.
        (NodeAccess::Denied, Some(0)) | (NodeAccess::Missing, _) => vec![comment(&format!(
            "if this is a container, give it the device: {paths}"
        ))],
        (NodeAccess::Denied, user) => {
            let mut lines = vec![
                "groupadd -f dsadev".to_owned(),
                format!("chgrp dsadev {paths}"),
                format!("chmod 660 {paths}"),
            ];
            if let Some(user) = user {
                lines.push(format!("usermod -aG dsadev \"$(id -un {user})\""));
            }
            lines.push(comment("then log in again, or restart the service"));
            lines
        }
        _ => vec![KERNEL_LOG.to_owned()],
    }
}

/// Makes a queue ready on the socket of each of these nodes.
fn serve_nodes(facts: &Facts, nodes: &[u32]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut served = Vec::new();
    for node in facts.nodes.iter().filter(|node| nodes.contains(&node.id)) {
        if served.contains(&node.socket) {
            continue;
        }
        served.push(node.socket);
        let near = facts
            .devices
            .iter()
            .find(|device| node.socket.is_some() && socket_of(facts, device) == node.socket);
        match near {
            Some(device) => lines.extend(enable(facts, device)),
            None => lines.push(comment(&format!(
                "no IAA is on the socket of node {}",
                node.id
            ))),
        }
    }
    lines.push(comment(
        "or let every thread use every device: numa_id -3 in libqpl's jobs",
    ));
    lines
}

/// Changes the settings that only require a disabled queue.
fn reconfigure(
    facts: &Facts,
    queues: &[QueueId],
    options: impl Fn(&Device, &Queue) -> Option<String>,
) -> Vec<String> {
    for_one_per_node(facts, &devices_of(queues), |device| {
        let queue = device
            .queues
            .iter()
            .find(|queue| queues.contains(&queue.id));
        let change = |queue: &Queue| {
            let (id, options) = (queue.id, options(device, queue)?);
            Some(vec![
                format!("accel-config disable-wq {id}"),
                format!("accel-config config-wq {id} {options}"),
                format!("accel-config enable-wq {id}"),
            ])
        };
        queue.and_then(change).unwrap_or_default()
    })
}

/// Enables a device with a queue for libqpl, and configures both if necessary.
fn enable(facts: &Facts, device: &Device) -> Vec<String> {
    let Some(queue) = device
        .queues
        .iter()
        .find(|queue| is_configured(device, queue))
    else {
        let mut lines = disable(device);
        lines.extend(configure(facts, device));
        return lines;
    };
    let mut lines = Vec::new();
    if device.state != Some(State::Enabled) {
        lines.push(format!("accel-config enable-device {}", device.id));
    }
    lines.push(format!("accel-config enable-wq {}", queue.id));
    lines
}

/// Disables the enabled parts of a device, which configuration requires.
fn disable(device: &Device) -> Vec<String> {
    let mut lines: Vec<String> = device
        .queues
        .iter()
        .filter(|queue| queue.state == Some(State::Enabled))
        .map(|queue| format!("accel-config disable-wq {}", queue.id))
        .collect();
    if device.state == Some(State::Enabled) {
        lines.push(format!("accel-config disable-device {}", device.id));
    }
    lines
}

/// Configures and enables a disabled device: all engines and one shared queue in group 0.
fn configure(facts: &Facts, device: &Device) -> Vec<String> {
    let id = device.id;
    let mut lines = Vec::new();
    let engines: Vec<String> = device
        .engines
        .iter()
        .map(|engine| engine.index.to_string())
        .collect();
    if !engines.is_empty() {
        lines.push(format!(
            "for e in {}; do accel-config config-engine {id}/engine{}.$e -g 0; done",
            engines.join(" "),
            id.0
        ));
    }
    let (queue, size) = largest_queue(device);
    let driver = if needs_driver_name(facts, device) {
        " -d user"
    } else {
        ""
    };
    lines.push(format!(
        "accel-config config-wq {queue} -g 0 -s {size} -p 10 -b 1 -t {size} -m shared -y user -n multifd{driver}"
    ));
    lines.push(format!("accel-config enable-device {id}"));
    lines.push(format!("accel-config enable-wq {queue}"));
    lines
}

/// The queue with the most available entries, without taking any from another, and their number.
fn largest_queue(device: &Device) -> (QueueId, u32) {
    let entries = device.max_queue_entries.unwrap_or(DEVICE_ENTRIES);
    let taken: u32 = device
        .queues
        .iter()
        .filter_map(|queue| queue.size)
        .fold(0, u32::saturating_add);
    let free = entries.saturating_sub(taken);
    device
        .queues
        .iter()
        .map(|queue| {
            (
                queue.id,
                free.saturating_add(queue.size.unwrap_or_default()),
            )
        })
        // Select the first of several; `max_by_key` alone selects the last.
        .rev()
        .max_by_key(|(_, size)| *size)
        .unwrap_or_else(|| {
            let (device, index) = (device.id, 0);
            (QueueId { device, index }, entries)
        })
}

/// Returns whether this queue only has to be enabled.
fn is_configured(device: &Device, queue: &Queue) -> bool {
    queue.mode == Some(Mode::Shared)
        && queue.kind == Some(QueueType::User)
        && queue.size.is_some_and(|size| size > 0)
        && queue.threshold.is_some_and(|threshold| threshold > 0)
        && queue.name.as_deref().is_some_and(|name| !name.is_empty())
        && queue
            .driver_name
            .as_deref()
            .is_none_or(|driver| driver == "user")
        && queue.group.is_some_and(|group| {
            let in_group = |engine: &Engine| engine.group == Some(group);
            group >= 0 && device.engines.iter().any(in_group)
        })
}

/// Kernels from 6.7 on bind a queue to the driver it names; older ones have no such attribute.
fn needs_driver_name(facts: &Facts, device: &Device) -> bool {
    let attribute = device
        .queues
        .iter()
        .any(|queue| queue.driver_name.is_some());
    attribute || facts.kernel.version >= Some(FIRST_KERNEL_WITH_DRIVER_NAMES)
}

fn for_one_per_node(
    facts: &Facts,
    devices: &[DeviceId],
    lines: impl Fn(&Device) -> Vec<String>,
) -> Vec<String> {
    let (chosen, others) = one_per_node(facts, devices);
    chosen
        .into_iter()
        .flat_map(lines)
        .chain(likewise(&others))
        .collect()
}

/// The first device of each NUMA node, and the others.
fn one_per_node<'f>(facts: &'f Facts, ids: &[DeviceId]) -> (Vec<&'f Device>, Vec<DeviceId>) {
    let mut chosen: Vec<&Device> = Vec::new();
    let mut others = Vec::new();
    for device in facts
        .devices
        .iter()
        .filter(|device| ids.contains(&device.id))
    {
        if chosen
            .iter()
            .any(|other| other.numa_node == device.numa_node)
        {
            others.push(device.id);
        } else {
            chosen.push(device);
        }
    }
    (chosen, others)
}

fn likewise(others: &[DeviceId]) -> Option<String> {
    (!others.is_empty()).then(|| comment(&format!("likewise {}", list(others))))
}

fn devices_of(queues: &[QueueId]) -> Vec<DeviceId> {
    queues.iter().map(|queue| queue.device).collect()
}

fn comment(text: &str) -> String {
    format!("# {text}")
}

const KERNEL_LOG: &str = "dmesg | grep -E 'idxd|DMAR'";

/// Entries for all queues of a device of the first generation.
const DEVICE_ENTRIES: u32 = 128;

/// The largest transfer of the first generation: 2 GiB.
const DEVICE_TRANSFER_BYTES: u64 = 2 << 30;

const FIRST_KERNEL_WITH_DRIVER_NAMES: Version = Version { major: 6, minor: 7 };
