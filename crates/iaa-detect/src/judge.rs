//! Derives the verdict from the facts.
//!
//! A chain of filters from devices to queues: each removes those that one obstacle blocks. The
//! first filter that removes all of them is the cause. Only an observed fact blocks a device or
//! queue; an unreadable one does not. But a queue is ready only if it was seen to be enabled and
//! shared.

use super::cause::{AccelConfigProblem, Cause, KernelParameter, RefusedNode};
use super::facts::{
    AccelConfig, Device, Facts, Mode, NodeAccess, Portal, Qpl, Queue, QueueId, QueueType, State,
    Version,
};
use super::status::Status;

/// Returns the queues that libqpl can use, at least one, or the obstacle.
pub(super) fn ready_queues(facts: &Facts) -> Result<Vec<QueueId>, Cause> {
    let devices = working_devices(facts)?;
    check_libraries(facts, &devices)?;
    let devices = keep(
        devices,
        |device| device.state == Some(State::Enabled),
        |devices| Cause::DevicesDisabled {
            devices: ids(devices, |device| device.id),
        },
    )?;
    let queues = keep(
        shared_queues(facts, &devices)?,
        |queue| matches!(queue.node, NodeAccess::Opened { .. }),
        |queues| Cause::NodesNotOpened {
            nodes: ids(queues, |queue| RefusedNode {
                queue: queue.id,
                access: queue.node.clone(),
            }),
            user: facts.process.user,
        },
    )?;
    let queues = reachable_queues(facts, queues)?;
    let queues = keep(queues, allows_deflate, operations_disabled)?;
    let queues = keep(
        queues,
        |queue| allows_transfers(queue, PAGE_BYTES),
        transfers_too_small,
    )?;
    Ok(ids(&queues, |queue| queue.id))
}

/// Explains a status of libqpl, given the ready queues or the obstacle.
pub(super) fn explain(
    facts: &Facts,
    ready: Result<&[QueueId], &Cause>,
    status: Status,
) -> Option<Cause> {
    let opened: Vec<&Queue> = facts
        .devices
        .iter()
        .flat_map(|device| &device.queues)
        .filter(|queue| matches!(queue.node, NodeAccess::Opened { .. }))
        .collect();
    let among_opened = |allowed: &dyn Fn(&Queue) -> bool, cause: fn(&[&Queue]) -> Cause| {
        let refusing: Vec<&Queue> = opened
            .iter()
            .copied()
            .filter(|queue| !allowed(queue))
            .collect();
        (!refusing.is_empty()).then(|| cause(&refusing))
    };
    match status {
        Status::NOT_SUPPORTED_BY_WQ => among_opened(&allows_deflate, operations_disabled),
        Status::TRANSFER_SIZE_INVALID => {
            let allowed = |queue: &Queue| allows_transfers(queue, LARGEST_JOB_BYTES);
            among_opened(&allowed, transfers_too_small)
        }
        Status(FIRST_REFUSAL..) => match ready {
            Err(cause) => Some(cause.clone()),
            Ok(queues) => explain_refusal(facts, queues, status),
        },
        _ => None,
    }
}

/// Nodes that this process may run on and whose socket has none of the queues.
pub(super) fn nodes_without(facts: &Facts, queues: &[QueueId]) -> Vec<u32> {
    let sockets: Option<Vec<u32>> = facts
        .devices
        .iter()
        .filter(|device| queues.iter().any(|queue| queue.device == device.id))
        .map(|device| socket_of(facts, device))
        .collect();
    // A device on an unknown socket may be on any socket.
    let Some(sockets) = sockets else {
        return Vec::new();
    };
    let may_run_on = |cpus: &Option<_>| match (cpus, &facts.process.cpus) {
        (Some(cpus), Some(allowed)) => allowed.overlaps(cpus),
        _ => false,
    };
    facts
        .nodes
        .iter()
        .filter(|node| may_run_on(&node.cpus))
        .filter(|node| node.socket.is_some_and(|socket| !sockets.contains(&socket)))
        .map(|node| node.id)
        .collect()
}

/// The socket of a device.
pub(super) fn socket_of(facts: &Facts, device: &Device) -> Option<u32> {
    let id = u32::try_from(device.numa_node?).ok()?;
    facts.nodes.iter().find(|node| node.id == id)?.socket
}

/// Devices that are bound to the driver and support shared virtual memory.
fn working_devices(facts: &Facts) -> Result<Vec<&Device>, Cause> {
    if facts.devices.is_empty() {
        return Err(if facts.functions.is_empty() {
            Cause::NoDevice {
                virtual_machine: facts.cpu.hypervisor,
            }
        } else {
            Cause::DriverNotBound {
                loaded: facts.kernel.idxd,
                functions: facts.functions.clone(),
            }
        });
    }
    keep(
        facts.devices.iter().collect(),
        |device| device.pasid_enabled != Some(false),
        |devices| Cause::NoSharedVirtualMemory {
            devices: ids(devices, |device| device.id),
            lacks: lacking_parameter(facts),
        },
    )
}

fn lacking_parameter(facts: &Facts) -> Option<KernelParameter> {
    let parameters = || {
        let line = facts.kernel.command_line.as_deref().unwrap_or_default();
        line.split_ascii_whitespace()
    };
    let iommu: Vec<&str> = parameters()
        .filter_map(|parameter| parameter.strip_prefix("intel_iommu="))
        .flat_map(|settings| settings.split(','))
        .collect();
    if !iommu.contains(&"on") || !iommu.contains(&"sm_on") {
        Some(KernelParameter::ScalableMode)
    } else if facts.cpu.la57 && !parameters().any(|parameter| parameter == "no5lvl") {
        Some(KernelParameter::FourLevels)
    } else {
        None
    }
}

fn check_libraries(facts: &Facts, devices: &[&Device]) -> Result<(), Cause> {
    let problem = match &facts.accel_config {
        AccelConfig::Missing { error } => Some(AccelConfigProblem::Missing {
            error: error.clone(),
        }),
        AccelConfig::Loaded { iaa_cap: false }
            if devices.iter().all(|device| is_second_generation(device)) =>
        {
            Some(AccelConfigProblem::TooOld)
        }
        AccelConfig::Loaded { .. } => None,
    };
    if let Some(problem) = problem {
        return Err(Cause::NoAccelConfig { problem });
    }
    match &facts.qpl {
        Qpl::Missing { error } => Err(Cause::NoQpl {
            error: error.clone(),
        }),
        Qpl::Loaded { .. } => Ok(()),
    }
}

/// Enabled queues of the mode that libqpl requires.
fn shared_queues<'f>(facts: &Facts, devices: &[&'f Device]) -> Result<Vec<&'f Queue>, Cause> {
    let queues: Vec<&Queue> = devices.iter().flat_map(|device| &device.queues).collect();
    let queues = keep(
        queues,
        |queue| queue.state == Some(State::Enabled),
        |_| Cause::QueuesDisabled {
            devices: ids(devices, |device| device.id),
        },
    )?;
    // The kernel's queues are dedicated as well. If no others exist, the mode is not the obstacle.
    let queues = keep(
        queues,
        |queue| queue.kind != Some(QueueType::Kernel),
        |queues| Cause::HeldByKernel {
            queues: ids(queues, |queue| queue.id),
            iaa_crypto: facts.kernel.iaa_crypto,
        },
    )?;
    keep(
        queues,
        |queue| queue.mode == Some(Mode::Shared),
        |queues| Cause::OnlyDedicatedQueues {
            queues: ids(queues, |queue| queue.id),
        },
    )
}

/// Queues that this libqpl can submit to.
fn reachable_queues<'f>(facts: &Facts, queues: Vec<&'f Queue>) -> Result<Vec<&'f Queue>, Cause> {
    let Some(qpl) = facts.qpl.version() else {
        return Ok(queues);
    };
    keep(
        queues,
        |queue| {
            let portal = Portal::Mapped;
            qpl >= FIRST_QPL_THAT_WRITES || queue.node == NodeAccess::Opened { portal }
        },
        |queues| Cause::PortalsRefused {
            queues: ids(queues, |queue| queue.id),
            qpl,
        },
    )
}

/// Explains a refusal on a machine where everything is ready.
fn explain_refusal(facts: &Facts, queues: &[QueueId], status: Status) -> Option<Cause> {
    match status {
        Status::INIT_HW_NOT_SUPPORTED => {
            let used = |device: &&Device| queues.iter().any(|queue| queue.device == device.id);
            let second = facts.devices.iter().filter(used).any(is_second_generation);
            let needed = if second {
                FIRST_KERNEL_FOR_SECOND_GENERATION
            } else {
                FIRST_KERNEL
            };
            Some(Cause::SubmissionFails {
                status: status.0,
                kernel: facts.kernel.version.filter(|version| *version < needed),
            })
        }
        // The library loads, so it must lack one of the functions that libqpl looks up.
        Status::INIT_LIBACCEL_NOT_FOUND => Some(Cause::NoAccelConfig {
            problem: AccelConfigProblem::TooOld,
        }),
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE => {
            let (queues, nodes) = (queues.to_vec(), nodes_without(facts, queues));
            Some(if nodes.is_empty() {
                Cause::EnabledTooLate { queues }
            } else {
                Cause::OtherSocket { queues, nodes }
            })
        }
        _ => None,
    }
}

fn operations_disabled(queues: &[&Queue]) -> Cause {
    Cause::OperationsDisabled {
        queues: ids(queues, |queue| queue.id),
    }
}

fn transfers_too_small(queues: &[&Queue]) -> Cause {
    Cause::TransfersTooSmall {
        queues: ids(queues, |queue| queue.id),
        allowed_bytes: queues
            .iter()
            .filter_map(|queue| queue.max_transfer_bytes)
            .max()
            .unwrap_or_default(),
    }
}

fn allows_deflate(queue: &Queue) -> bool {
    queue
        .op_config
        .is_none_or(|config| DEFLATE_OPCODES.iter().all(|opcode| config.allows(*opcode)))
}

fn allows_transfers(queue: &Queue, len_bytes: u64) -> bool {
    queue
        .max_transfer_bytes
        .is_none_or(|most| most >= len_bytes)
}

fn is_second_generation(device: &Device) -> bool {
    device.version.is_some_and(|version| version >= 0x200)
}

/// Returns the items that pass, or the cause if none does.
fn keep<'f, T>(
    mut things: Vec<&'f T>,
    passes: impl Fn(&T) -> bool,
    cause: impl FnOnce(&[&'f T]) -> Cause,
) -> Result<Vec<&'f T>, Cause> {
    if !things.iter().any(|thing| passes(thing)) {
        return Err(cause(&things));
    }
    things.retain(|thing| passes(thing));
    Ok(things)
}

fn ids<T, I>(things: &[&T], id: impl Fn(&T) -> I) -> Vec<I> {
    things.iter().map(|thing| id(thing)).collect()
}

/// The opcodes of decompress and compress.
pub(super) const DEFLATE_OPCODES: [u8; 2] = [0x42, 0x43];

/// The smallest transfer limit that is usable: a page.
const PAGE_BYTES: u64 = 4096;
/// The largest job: 128 pages. A queue with a lower limit refuses such jobs.
const LARGEST_JOB_BYTES: u64 = 128 * PAGE_BYTES;

/// Statuses from this one on say that libqpl cannot begin to use a device.
const FIRST_REFUSAL: u32 = 500;

/// The first release that submits through `write` if a portal cannot be mapped.
const FIRST_QPL_THAT_WRITES: Version = Version { major: 1, minor: 6 };

/// The kernels that libqpl's documentation requires. Distributions backport drivers, so a lower
/// number alone is no obstacle.
const FIRST_KERNEL: Version = Version {
    major: 5,
    minor: 18,
};
const FIRST_KERNEL_FOR_SECOND_GENERATION: Version = Version { major: 6, minor: 3 };
