//! Why the hardware is not in use.

use std::fmt;

use super::facts::{DeviceId, NodeAccess, PciFunction, QueueId, Version};

/// The first obstacle between libqpl and an IAA, in the order in which obstacles hide each other.
///
/// Each variant has the data that proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "cause"))]
pub(crate) enum Cause {
    /// No IAA is on the PCI bus: the processor has none, or firmware or hypervisor hides it.
    NoDevice {
        /// This is a virtual machine.
        virtual_machine: bool,
    },
    /// The machine has an IAA, but it is not bound to the idxd driver.
    DriverNotBound {
        /// The driver is loaded.
        loaded: bool,
        /// The IAA functions on the bus.
        functions: Vec<PciFunction>,
    },
    /// No device supports shared virtual memory.
    NoSharedVirtualMemory {
        /// The devices.
        devices: Vec<DeviceId>,
        /// The parameter missing from the kernel's command line. `None` leaves the firmware.
        lacks: Option<KernelParameter>,
    },
    /// libqpl finds devices through libaccel-config, which is not usable.
    NoAccelConfig {
        /// The problem.
        #[cfg_attr(feature = "serde", serde(flatten))]
        problem: AccelConfigProblem,
    },
    /// libqpl is not usable.
    NoQpl {
        /// The loader's message.
        error: String,
    },
    /// No device is enabled.
    DevicesDisabled {
        /// The devices.
        devices: Vec<DeviceId>,
    },
    /// No work queue of an enabled device is enabled.
    QueuesDisabled {
        /// The devices.
        devices: Vec<DeviceId>,
    },
    /// All enabled user work queues are dedicated; libqpl needs shared ones.
    OnlyDedicatedQueues {
        /// The queues.
        queues: Vec<QueueId>,
    },
    /// The kernel owns all enabled work queues.
    HeldByKernel {
        /// The queues.
        queues: Vec<QueueId>,
        /// The module `iaa_crypto` is loaded. It takes every IAA it finds.
        iaa_crypto: bool,
    },
    /// No node of a suitable work queue opens.
    NodesNotOpened {
        /// The queues and the results of opening them.
        nodes: Vec<RefusedNode>,
        /// The effective user of this process.
        user: Option<u32>,
    },
    /// No portal can be mapped, and this libqpl has no other way to submit.
    PortalsRefused {
        /// The queues.
        queues: Vec<QueueId>,
        /// libqpl's version.
        qpl: Version,
    },
    /// The usable work queues are on other sockets than this process, and libqpl was told to stay
    /// on its socket. Only visible at run time.
    OtherSocket {
        /// The queues.
        queues: Vec<QueueId>,
        /// Nodes that this process may run on, and from which libqpl finds no queue.
        nodes: Vec<u32>,
    },
    /// The work queues are configured not to compress or not to decompress.
    OperationsDisabled {
        /// The queues.
        queues: Vec<QueueId>,
    },
    /// The work queues refuse transfers of the required size.
    TransfersTooSmall {
        /// The queues.
        queues: Vec<QueueId>,
        /// The largest limit among them.
        allowed_bytes: u64,
    },
    /// The device does not answer although its node opens. Only visible at run time.
    SubmissionFails {
        /// libqpl's status.
        status: u32,
        /// The running kernel, if it is older than the first one known to work with these devices.
        kernel: Option<Version>,
    },
    /// Everything is ready now but was not when libqpl looked, which it does once per process. Only
    /// visible at run time.
    EnabledTooLate {
        /// The queues.
        queues: Vec<QueueId>,
    },
}

/// The problem with libaccel-config.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case", tag = "problem"))]
pub(crate) enum AccelConfigProblem {
    /// It cannot be loaded.
    Missing {
        /// The loader's message.
        error: String,
    },
    /// It lacks a function that libqpl needs for these devices.
    TooOld,
}

/// A parameter of the kernel's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) enum KernelParameter {
    /// Enables the IOMMU's scalable mode, which shared virtual memory needs.
    #[cfg_attr(feature = "serde", serde(rename = "intel_iommu=on,sm_on"))]
    ScalableMode,
    /// Limits page tables to four levels, for an IOMMU that supports no more.
    #[cfg_attr(feature = "serde", serde(rename = "no5lvl"))]
    FourLevels,
}

impl fmt::Display for KernelParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KernelParameter::ScalableMode => "intel_iommu=on,sm_on",
            KernelParameter::FourLevels => "no5lvl",
        })
    }
}

/// A queue whose node does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub(crate) struct RefusedNode {
    /// The queue.
    pub(crate) queue: QueueId,
    /// The reason.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub(crate) access: NodeAccess,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NoDevice { .. } => f.write_str("none on the PCI bus"),
            Cause::DriverNotBound { loaded: false, .. } => f.write_str("idxd module not loaded"),
            Cause::DriverNotBound { functions, .. } => match other_driver(functions) {
                Some(driver) => write!(f, "device bound to {driver}"),
                None => f.write_str("idxd driver not bound to the device"),
            },
            Cause::NoSharedVirtualMemory { lacks, .. } => match lacks {
                Some(parameter) => {
                    write!(f, "no shared virtual memory, kernel lacks {parameter}")
                }
                None => f.write_str("no shared virtual memory"),
            },
            Cause::NoAccelConfig { problem } => match problem {
                AccelConfigProblem::Missing { .. } => f.write_str("libaccel-config does not load"),
                AccelConfigProblem::TooOld => f.write_str("libaccel-config too old"),
            },
            Cause::NoQpl { .. } => f.write_str("libqpl does not load"),
            Cause::DevicesDisabled { devices } => write!(f, "{} disabled", few(devices, "devices")),
            Cause::QueuesDisabled { devices } => {
                write!(f, "no work queue of {} enabled", few(devices, "devices"))
            }
            Cause::OnlyDedicatedQueues { queues } => {
                write!(f, "{} dedicated", few(queues, "work queues"))
            }
            Cause::HeldByKernel {
                iaa_crypto: true, ..
            } => f.write_str("held by iaa_crypto"),
            Cause::HeldByKernel { queues, .. } => {
                write!(f, "{} held by the kernel", few(queues, "work queues"))
            }
            Cause::NodesNotOpened { nodes, .. } => match nodes.first() {
                Some(node) => write!(f, "{}: {}", node.queue.node(), node.access),
                None => f.write_str("no node opens"),
            },
            Cause::PortalsRefused { qpl, .. } => {
                write!(f, "portal mapping refused, libqpl {qpl} needs it")
            }
            Cause::OtherSocket { nodes, .. } => {
                write!(f, "no work queue on the socket of node {}", list(nodes))
            }
            Cause::OperationsDisabled { queues } => {
                write!(
                    f,
                    "op_config of {} excludes deflate",
                    few(queues, "work queues")
                )
            }
            Cause::TransfersTooSmall { allowed_bytes, .. } => {
                write!(f, "work queues limit transfers to {allowed_bytes} bytes")
            }
            Cause::SubmissionFails {
                kernel: Some(kernel),
                ..
            } => write!(f, "kernel {kernel} too old"),
            Cause::SubmissionFails { status, .. } => {
                write!(f, "submission fails with status {status}")
            }
            Cause::EnabledTooLate { .. } => f.write_str("enabled after this process looked for it"),
        }
    }
}

impl Cause {
    /// The name, as the feature `serde` writes it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Cause::NoDevice { .. } => "no-device",
            Cause::DriverNotBound { .. } => "driver-not-bound",
            Cause::NoSharedVirtualMemory { .. } => "no-shared-virtual-memory",
            Cause::NoAccelConfig { .. } => "no-accel-config",
            Cause::NoQpl { .. } => "no-qpl",
            Cause::DevicesDisabled { .. } => "devices-disabled",
            Cause::QueuesDisabled { .. } => "queues-disabled",
            Cause::OnlyDedicatedQueues { .. } => "only-dedicated-queues",
            Cause::HeldByKernel { .. } => "held-by-kernel",
            Cause::NodesNotOpened { .. } => "nodes-not-opened",
            Cause::PortalsRefused { .. } => "portals-refused",
            Cause::OtherSocket { .. } => "other-socket",
            Cause::OperationsDisabled { .. } => "operations-disabled",
            Cause::TransfersTooSmall { .. } => "transfers-too-small",
            Cause::SubmissionFails { .. } => "submission-fails",
            Cause::EnabledTooLate { .. } => "enabled-too-late",
        }
    }

    /// Returns one sentence: the observation and why it matters.
    pub(crate) fn explanation(&self) -> String {
        match self {
            Cause::NoDevice {
                virtual_machine: true,
            } => "This virtual machine has no PCI function of an IAA; its host may have one to pass through.".into(),
            Cause::NoDevice { .. } => {
                "No PCI function of an IAA: this processor has none, or the firmware hides it.".into()
            }
            Cause::DriverNotBound {
                loaded: false,
                functions,
            } => format!(
                "{} IAA on the PCI bus, but the idxd driver is not loaded.",
                functions.len()
            ),
            Cause::DriverNotBound { functions, .. } => match other_driver(functions) {
                Some(driver) => format!("Not idxd but {driver} has the IAA."),
                None => "The idxd driver is loaded and has not taken the IAA; the kernel log says why.".into(),
            },
            Cause::NoSharedVirtualMemory { devices, lacks } => match lacks {
                Some(parameter) => format!(
                    "{} without shared virtual memory (pasid_enabled is 0), and the kernel was booted without {parameter}.",
                    list(devices)
                ),
                None => format!(
                    "{} without shared virtual memory (pasid_enabled is 0) although the kernel's command line asks for it; the firmware remains.",
                    list(devices)
                ),
            },
            Cause::NoAccelConfig { problem } => match problem {
                AccelConfigProblem::Missing { error } => {
                    format!("libqpl finds devices through libaccel-config, which does not load: {error}.")
                }
                AccelConfigProblem::TooOld => {
                    "libaccel-config does not know the second IAA generation, which all devices here are.".into()
                }
            },
            Cause::NoQpl { error } => format!("libqpl does not load: {error}."),
            Cause::DevicesDisabled { devices } => {
                format!("Devices are there but not enabled: {}.", list(devices))
            }
            Cause::QueuesDisabled { devices } => {
                format!("Devices are enabled but none of their work queues is: {}.", list(devices))
            }
            Cause::OnlyDedicatedQueues { queues } => format!(
                "libqpl takes shared work queues, but the enabled ones are dedicated: {}.",
                list(queues)
            ),
            Cause::HeldByKernel { queues, iaa_crypto } => {
                let holder = if *iaa_crypto { "iaa_crypto" } else { "the kernel" };
                format!("All enabled work queues belong to {holder}: {}.", list(queues))
            }
            Cause::NodesNotOpened { nodes, .. } => {
                let nodes: Vec<String> = nodes
                    .iter()
                    .map(|node| format!("{} ({})", node.queue.node(), node.access))
                    .collect();
                format!("Work queues are enabled but their nodes do not open: {}.", list(&nodes))
            }
            Cause::PortalsRefused { queues, qpl } => format!(
                "The kernel lets only CAP_SYS_RAWIO map portals ({}), and libqpl {qpl} cannot submit otherwise; 1.6 can.",
                list(queues)
            ),
            Cause::OtherSocket { queues, nodes } => format!(
                "Work queues are ready ({}), but a thread on node {} is told to use its own socket and finds none there.",
                list(queues),
                list(nodes)
            ),
            Cause::OperationsDisabled { queues } => format!(
                "Work queues are ready, but op_config lacks compression (0x43) or decompression (0x42): {}.",
                list(queues)
            ),
            Cause::TransfersTooSmall {
                queues,
                allowed_bytes,
            } => format!(
                "Work queues are ready, but max_transfer_size refuses the transfers needed (at most {allowed_bytes} bytes): {}.",
                list(queues)
            ),
            Cause::SubmissionFails {
                status,
                kernel: Some(kernel),
            } => format!(
                "Nodes open but submission fails with status {status}, and kernel {kernel} is older than the first that serves these devices."
            ),
            Cause::SubmissionFails { status, .. } => format!(
                "Nodes open but submission fails with status {status}; the kernel log may say why."
            ),
            Cause::EnabledTooLate { queues } => format!(
                "Work queues are ready now ({}), but libqpl looks once in a process and found none then.",
                list(queues)
            ),
        }
    }
}

/// The driver, other than idxd, that is bound to a function.
pub(super) fn other_driver(functions: &[PciFunction]) -> Option<&str> {
    functions
        .iter()
        .filter_map(|function| function.driver.as_deref())
        .find(|driver| *driver != "idxd")
}

/// Joins items for a sentence.
pub(super) fn list(things: &[impl fmt::Display]) -> String {
    let things: Vec<String> = things.iter().map(ToString::to_string).collect();
    things.join(", ")
}

/// Joins items for a phrase, or counts them if there are more than [`FEW`].
pub(super) fn few(things: &[impl fmt::Display], name: &str) -> String {
    match things.len() {
        ..=FEW => list(things),
        many => format!("{many} {name}"),
    }
}

/// Most items that a phrase lists by name.
pub(super) const FEW: usize = 2;
