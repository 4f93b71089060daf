//! The forms for people and for programs.

use crate::facts::Qpl;
use serde_json::{Value, json};

use super::machine::{Machine, device_path, queue_path};

fn json(machine: &Machine) -> Value {
    serde_json::to_value(machine.detect()).unwrap()
}

#[test]
fn a_ready_machine_in_words() {
    let machine = Machine::single();
    assert_eq!(
        machine.detect().to_string(),
        "\
processor           Intel(R) Xeon(R) Platinum 8490H; enqcmd yes, movdir64b yes
kernel              6.12.43+deb13-amd64, intel_iommu=on,sm_on, idxd
libqpl              1.9.0
libaccel-config     loads, knows the first IAA generation only
process             user 1000, CAP_SYS_RAWIO no, processors 0-239
nodes               0 (processors 0-59,120-179, socket 0), 1 (processors 60-119,180-239, socket 1)
PCI                 1 IAA with idxd
iax1                enabled, node 0, shared virtual memory yes, version 0x100, 8 engines
                    iax1/wq1.0 enabled, shared, user, size 128, multifd; /dev/iax/wq1.0 opens, portal refused
                    7 queues not configured
verdict             IAA ready: iax1/wq1.0
                    none on the socket of node 1
"
    );
}

#[test]
fn a_machine_without_the_driver_in_words() {
    let mut machine = Machine::single();
    machine.remove("sys/bus/dsa");
    machine.remove("sys/bus/pci/devices/0000:6a:02.0/driver");
    machine.qpl = Qpl::Missing {
        error: "libqpl.so.1: cannot open shared object file: No such file or directory".into(),
    };
    assert_eq!(
        machine.detect().to_string(),
        "\
processor           Intel(R) Xeon(R) Platinum 8490H; enqcmd yes, movdir64b yes
kernel              6.12.43+deb13-amd64, intel_iommu=on,sm_on, no idxd
libqpl              libqpl.so.1: cannot open shared object file: No such file or directory
libaccel-config     loads, knows the first IAA generation only
process             user 1000, CAP_SYS_RAWIO no, processors 0-239
nodes               0 (processors 0-59,120-179, socket 0), 1 (processors 60-119,180-239, socket 1)
PCI                 0000:6a:02.0 with no driver
verdict             no IAA: idxd module not loaded
                    1 IAA on the PCI bus, but the idxd driver is not loaded.
as root:
  modprobe idxd
"
    );
}

#[test]
fn the_largest_healthy_machine_fits_a_screen() {
    let report = Machine::healthy().detect().to_string();
    assert!(report.lines().count() <= 40, "{report}");
    assert!(report.lines().all(|line| line.len() <= 120), "{report}");
}

#[test]
fn an_error_of_the_last_command_is_named() {
    let machine = Machine::single();
    machine.set(&device_path(1, "cmd_status"), "0x800c0000");
    let report = machine.detect().to_string();
    assert!(
        report.contains(
            "last command failed with 0x800c0000: the platform has no shared work queues"
        ),
        "{report}"
    );
}

#[test]
fn a_ready_machine_in_json() {
    let machine = Machine::single();
    machine.set(&queue_path(1, 0, "op_config"), "ff");
    machine.set(&queue_path(1, 0, "op_config"), "c,00000000,0000000d");
    let report = json(&machine);
    assert_eq!(
        report["verdict"],
        json!({"state": "ready", "queues": ["iax1/wq1.0"], "nodes_without": [1]})
    );
    let facts = &report["facts"];
    assert_eq!(facts["kernel"]["version"], "6.12");
    assert_eq!(facts["qpl"], json!({"state": "loaded", "version": "1.9.0"}));
    assert_eq!(
        facts["functions"],
        json!([{"address": "0000:6a:02.0", "id": "0xcfe", "driver": "idxd"}])
    );
    let device = &facts["devices"][0];
    assert_eq!(device["id"], "iax1");
    assert_eq!(device["version"], "0x100");
    assert_eq!(
        device["queues"][0],
        json!({
            "id": "iax1/wq1.0",
            "state": "enabled",
            "mode": "shared",
            "type": "user",
            "name": "multifd",
            "driver_name": "user",
            "size": 128,
            "threshold": 128,
            "block_on_fault": true,
            "max_transfer_bytes": 2147483648_u32,
            "op_config": "00000000,00000000,00000000,00000000,00000000,0000000c,00000000,0000000d",
            "group": 0,
            "node": {
                "access": "opened",
                "portal": {"portal": "refused", "error": "Operation not permitted (os error 1)"},
            },
        })
    );
}

#[test]
fn a_cause_in_json() {
    let machine = Machine::single();
    machine.set(&queue_path(1, 0, "state"), "disabled");
    assert_eq!(
        json(&machine)["verdict"],
        json!({
            "state": "not-ready",
            "cause": "queues-disabled",
            "devices": ["iax1"],
            "summary": "no work queue of iax1 enabled",
            "explanation": "Devices are enabled but none of their work queues is: iax1.",
            "mend": ["accel-config enable-wq iax1/wq1.0"],
        })
    );
}

#[test]
fn an_oddity_in_json() {
    let machine = Machine::single();
    machine.set(&device_path(1, "numa_node"), "here");
    assert_eq!(
        json(&machine)["facts"]["oddities"],
        json!([{
            "path": "sys/bus/dsa/devices/iax1/numa_node",
            "problem": "malformed",
            "found": "here",
        }])
    );
}
