//! A report for a person: facts, then the verdict and the commands.

use std::fmt::{self, Display, Formatter};

use super::cause::{FEW, few, list};
use super::facts::{
    AccelConfig, Device, Facts, NodeAccess, PciFunction, Process, Qpl, Queue, State,
};
use super::{Report, Verdict};

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Ready { queues, .. } => {
                write!(f, "IAA ready: {}", few(queues, "work queues"))
            }
            Verdict::NotReady { summary, .. } => write!(f, "no IAA: {summary}"),
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        fact(f, "processor", processor(facts))?;
        fact(f, "kernel", kernel(facts))?;
        fact(f, "libqpl", qpl(&facts.qpl))?;
        fact(f, "libaccel-config", accel_config(&facts.accel_config))?;
        fact(f, "process", process(&facts.process))?;
        fact(f, "nodes", nodes(facts))?;
        fact(f, "PCI", functions(&facts.functions))?;
        for device in &facts.devices {
            self::device(f, device)?;
        }
        for oddity in facts.oddities.iter().take(SHOWN_ODDITIES) {
            fact(f, "odd", oddity)?;
        }
        let more = facts.oddities.len().saturating_sub(SHOWN_ODDITIES);
        if more > 0 {
            fact(f, "odd", format_args!("{more} more"))?;
        }
        fact(f, "verdict", &self.verdict)?;
        match &self.verdict {
            Verdict::Ready {
                queues,
                nodes_without,
            } => {
                if queues.len() > FEW {
                    fact(f, "", list(queues))?;
                }
                if nodes_without.is_empty() {
                    return Ok(());
                }
                let nodes = list(nodes_without);
                fact(f, "", format_args!("none on the socket of node {nodes}"))
            }
            Verdict::NotReady {
                explanation, mend, ..
            } => {
                fact(f, "", explanation)?;
                writeln!(f, "as root:")?;
                mend.iter().try_for_each(|line| writeln!(f, "  {line}"))
            }
        }
    }
}

fn processor(facts: &Facts) -> String {
    let cpu = &facts.cpu;
    let virtual_machine = if cpu.hypervisor {
        ", a virtual machine"
    } else {
        ""
    };
    format!(
        "{}{virtual_machine}; enqcmd {}, movdir64b {}",
        cpu.model.as_deref().unwrap_or("unknown"),
        yes_no(cpu.enqcmd),
        yes_no(cpu.movdir64b)
    )
}

fn kernel(facts: &Facts) -> String {
    let kernel = &facts.kernel;
    let command_line = kernel.command_line.as_deref().unwrap_or_default();
    let mut parts = vec![kernel.release.as_deref().unwrap_or("unknown")];
    // Of a long line, only the part about the IOMMU.
    parts.extend(
        command_line
            .split_ascii_whitespace()
            .filter(|parameter| parameter.contains("iommu") || *parameter == "no5lvl"),
    );
    parts.push(if kernel.idxd { "idxd" } else { "no idxd" });
    if kernel.iaa_crypto {
        parts.push("iaa_crypto");
    }
    list(&parts)
}

fn qpl(qpl: &Qpl) -> &str {
    match qpl {
        Qpl::Loaded { version } => version,
        Qpl::Missing { error } => error,
    }
}

fn accel_config(accel_config: &AccelConfig) -> &str {
    match accel_config {
        AccelConfig::Loaded { iaa_cap: true } => "loads",
        AccelConfig::Loaded { iaa_cap: false } => "loads, knows the first IAA generation only",
        AccelConfig::Missing { error } => error,
    }
}

fn process(process: &Process) -> String {
    format!(
        "user {}, CAP_SYS_RAWIO {}, processors {}",
        or_unknown(process.user.as_ref()),
        process.raw_io.map_or("unknown", yes_no),
        or_unknown(process.cpus.as_ref())
    )
}

fn nodes(facts: &Facts) -> String {
    let nodes: Vec<String> = facts
        .nodes
        .iter()
        .map(|node| {
            let (cpus, socket) = (node.cpus.as_ref(), node.socket.as_ref());
            let (cpus, socket) = (or_unknown(cpus), or_unknown(socket));
            format!("{} (processors {cpus}, socket {socket})", node.id)
        })
        .collect();
    list(&nodes)
}

/// Functions bound to idxd appear as devices below, so their number is enough.
fn functions(functions: &[PciFunction]) -> String {
    let (bound, others): (Vec<&PciFunction>, Vec<&PciFunction>) = functions
        .iter()
        .partition(|function| function.driver.as_deref() == Some("idxd"));
    if functions.is_empty() {
        return "no IAA".to_owned();
    }
    let mut parts = Vec::new();
    if !bound.is_empty() {
        parts.push(format!("{} IAA with idxd", bound.len()));
    }
    parts.extend(others.iter().map(|function| {
        let driver = function.driver.as_deref().unwrap_or("no driver");
        format!("{} with {driver}", function.address)
    }));
    list(&parts)
}

fn device(f: &mut Formatter<'_>, device: &Device) -> fmt::Result {
    let version = device.version.map(|version| format!("{version:#x}"));
    fact(
        f,
        &device.id.to_string(),
        format_args!(
            "{}, node {}, shared virtual memory {}, version {}, {} engines",
            or_unknown(device.state.as_ref()),
            or_unknown(device.numa_node.as_ref()),
            device.pasid_enabled.map_or("unknown", yes_no),
            or_unknown(version.as_ref()),
            device.engines.len()
        ),
    )?;
    if let Some(error) = device.cmd_status.filter(|error| *error != 0) {
        let meaning = command_error(error);
        fact(
            f,
            "",
            format_args!("last command failed with {error:#x}: {meaning}"),
        )?;
    }
    let is_idle = |queue: &&Queue| queue.state == Some(State::Disabled) && queue.size == Some(0);
    for queue in device.queues.iter().filter(|queue| !is_idle(queue)) {
        fact(f, "", self::queue(queue))?;
    }
    match device.queues.iter().filter(is_idle).count() {
        0 => Ok(()),
        idle => fact(f, "", format_args!("{idle} queues not configured")),
    }
}

fn queue(queue: &Queue) -> String {
    let mut text = format!(
        "{} {}, {}, {}, size {}",
        queue.id,
        or_unknown(queue.state.as_ref()),
        or_unknown(queue.mode.as_ref()),
        or_unknown(queue.kind.as_ref()),
        or_unknown(queue.size.as_ref())
    );
    if let Some(name) = queue.name.as_deref().filter(|name| !name.is_empty()) {
        text.push_str(&format!(", {name}"));
    }
    if queue.node != NodeAccess::NotTried {
        text.push_str(&format!("; {} {}", queue.id.node(), queue.node));
    }
    text
}

/// The meaning of `cmd_status` after a failure to enable a device or a queue.
fn command_error(error: u32) -> &'static str {
    match error {
        0x8000_0020 => "the device is not enabled",
        0x8003_0000 => "the queue has no group",
        0x8004_0000 => "the queue has no name",
        0x8005_0000 => "no shared virtual memory for a shared queue",
        0x8006_0000 => "the threshold is 0",
        0x800c_0000 => "the platform has no shared work queues",
        0x800d_0000 => "no queue is configured",
        0x800e_0000 => "the queue has no size",
        0x8011_0000 => "no shared virtual memory for a queue for programs",
        0x8020_0000 => "the driver's name does not fit",
        _ => "see the kernel log",
    }
}

fn fact(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:<19} {value}")
}

fn yes_no(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

fn or_unknown(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// A screen has room for this many besides the facts.
const SHOWN_ODDITIES: usize = 8;
