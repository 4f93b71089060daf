//! The healthy machine: every fact, and the ready queues.

use crate::Verdict;
use crate::facts::{DeviceId, Mode, NodeAccess, QueueId, QueueType, State};

use super::machine::{DEVICES, Machine};

#[test]
fn every_queue_is_ready() {
    let report = Machine::healthy().detect();
    let queues: Vec<QueueId> = DEVICES
        .iter()
        .map(|device| QueueId {
            device: DeviceId(*device),
            index: 0,
        })
        .collect();
    assert_eq!(
        report.verdict,
        Verdict::Ready {
            queues,
            nodes_without: vec![],
        }
    );
    assert_eq!(report.verdict.to_string(), "IAA ready: 8 work queues");
    assert_eq!(report.facts.oddities, []);
}

#[test]
fn every_fact_is_found() {
    let machine = Machine::healthy();
    let facts = machine.detect().facts;

    assert_eq!(
        facts.cpu.model.as_deref(),
        Some("Intel(R) Xeon(R) Platinum 8490H")
    );
    assert!(facts.cpu.enqcmd && facts.cpu.movdir64b && facts.cpu.la57);
    assert!(!facts.cpu.hypervisor);

    let kernel = &facts.kernel;
    assert_eq!(kernel.release.as_deref(), Some("6.12.43+deb13-amd64"));
    assert_eq!(kernel.version.unwrap().to_string(), "6.12");
    assert!(
        kernel
            .command_line
            .as_deref()
            .unwrap()
            .ends_with("intel_iommu=on,sm_on")
    );
    assert!(kernel.idxd && !kernel.iaa_crypto);

    assert_eq!(facts.process.user, Some(1000));
    assert_eq!(facts.process.groups, [27, 1000, 1001]);
    assert_eq!(facts.process.raw_io, Some(false));
    assert_eq!(facts.process.cpus.as_ref().unwrap().to_string(), "0-239");

    let nodes: Vec<_> = facts
        .nodes
        .iter()
        .map(|node| {
            (
                node.id,
                node.cpus.as_ref().unwrap().to_string(),
                node.socket,
            )
        })
        .collect();
    assert_eq!(
        nodes,
        [
            (0, "0-59,120-179".to_owned(), Some(0)),
            (1, "60-119,180-239".to_owned(), Some(1))
        ]
    );

    let functions: Vec<_> = facts
        .functions
        .iter()
        .map(|function| function.address.as_str())
        .collect();
    assert_eq!(
        functions,
        [
            "0000:6a:02.0",
            "0000:6f:02.0",
            "0000:74:02.0",
            "0000:79:02.0",
            "0000:e7:02.0",
            "0000:ec:02.0",
            "0000:f1:02.0",
            "0000:f6:02.0"
        ]
    );
    assert!(
        facts
            .functions
            .iter()
            .all(|function| function.id == Some(0x0cfe)
                && function.driver.as_deref() == Some("idxd"))
    );

    let device = &facts.devices[4];
    assert_eq!(device.id.to_string(), "iax9");
    assert_eq!(device.state, Some(State::Enabled));
    assert_eq!(device.numa_node, Some(1));
    assert_eq!(device.pasid_enabled, Some(true));
    assert_eq!(device.max_transfer_bytes, Some(2 << 30));
    assert_eq!(device.max_queue_entries, Some(128));
    assert_eq!(device.version, Some(0x100));
    assert_eq!(device.cmd_status, Some(0));
    assert_eq!(device.engines.len(), 8);
    assert!(device.engines.iter().all(|engine| engine.group == Some(0)));
    assert_eq!(device.queues.len(), 8);

    let queue = &device.queues[0];
    assert_eq!(queue.id.to_string(), "iax9/wq9.0");
    assert_eq!(queue.state, Some(State::Enabled));
    assert_eq!(queue.mode, Some(Mode::Shared));
    assert_eq!(queue.kind, Some(QueueType::User));
    assert_eq!(queue.name.as_deref(), Some("multifd"));
    assert_eq!(queue.driver_name.as_deref(), Some("user"));
    assert_eq!((queue.size, queue.threshold), (Some(128), Some(128)));
    assert_eq!(queue.block_on_fault, Some(true));
    assert_eq!(queue.max_transfer_bytes, Some(2 << 30));
    assert_eq!(queue.op_config, None);
    assert_eq!(queue.group, Some(0));
    assert_eq!(queue.node, machine.node);

    let idle = &device.queues[7];
    assert_eq!(idle.state, Some(State::Disabled));
    assert_eq!(idle.kind, Some(QueueType::None));
    assert_eq!(idle.group, Some(-1));
    assert_eq!(idle.name.as_deref(), Some(""));
    assert_eq!(idle.node, NodeAccess::NotTried);
}

/// Opening a node binds this process's memory to a device, so only the necessary nodes are opened.
#[test]
fn only_nodes_of_enabled_shared_user_queues_are_opened() {
    let machine = Machine::healthy();
    machine.set("sys/bus/dsa/devices/wq1.0/state", "disabled");
    machine.set("sys/bus/dsa/devices/wq3.0/mode", "dedicated");
    machine.set("sys/bus/dsa/devices/wq5.0/type", "kernel");
    machine.detect();
    let opened: Vec<_> = machine
        .opened
        .borrow()
        .iter()
        .map(|path| path.strip_prefix(machine.root()).unwrap().to_owned())
        .collect();
    let expected: Vec<_> = [7, 9, 11, 13, 15]
        .iter()
        .map(|device| std::path::PathBuf::from(format!("dev/iax/wq{device}.0")))
        .collect();
    assert_eq!(opened, expected);
}

/// A function with an id newer than this program counts if the driver names its device an IAA.
#[test]
fn an_unknown_function_is_known_by_its_device() {
    let machine = Machine::healthy();
    machine.set("sys/bus/pci/devices/0000:6a:02.0/device", "0xbeef");
    let functions = machine.detect().facts.functions;
    assert_eq!(functions.len(), 8);
    assert_eq!(functions[0].id, Some(0xbeef));
}

#[test]
fn newer_ids_are_known() {
    for id in ["0x1216", "0xb02d", "0xfd2d"] {
        let machine = Machine::empty();
        machine.set("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086");
        machine.set("sys/bus/pci/devices/0000:00:02.0/device", id);
        assert_eq!(machine.detect().facts.functions.len(), 1, "{id}");
    }
    let machine = Machine::empty();
    machine.set("sys/bus/pci/devices/0000:00:02.0/vendor", "0x1af4");
    machine.set("sys/bus/pci/devices/0000:00:02.0/device", "0x0cfe");
    assert_eq!(machine.detect().facts.functions.len(), 0);
}
