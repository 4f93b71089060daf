//! The healthy machine with ready queues that do not serve: causes 9 to 15, each with its commands,
//! and the order of all causes.

use crate::Verdict;
use crate::cause::{AccelConfigProblem, Cause, RefusedNode};
use crate::facts::{AccelConfig, NodeAccess, Portal, Qpl};

use super::expect::{assert_cause, assert_explained, assert_ready, explained, queue, queues};
use super::machine::{DEVICES, Machine, device_path, queue_path};

#[test]
fn cause_9_permission_denied() {
    let mut machine = Machine::single();
    machine.node = NodeAccess::Denied;
    let cause = |user| Cause::NodesNotOpened {
        nodes: vec![RefusedNode {
            queue: queue(1, 0),
            access: NodeAccess::Denied,
        }],
        user: Some(user),
    };
    let short = "/dev/iax/wq1.0: permission denied";
    assert_cause(
        &machine.detect(),
        &cause(1000),
        short,
        &[
            "groupadd -f dsadev",
            "chgrp dsadev /dev/iax/wq1.0",
            "chmod 660 /dev/iax/wq1.0",
            "usermod -aG dsadev \"$(id -un 1000)\"",
            "# then log in again, or restart the service",
        ],
    );
    machine.replace("proc/self/status", "1000\t1000", "0\t0");
    assert_cause(
        &machine.detect(),
        &cause(0),
        short,
        &["# if this is a container, give it the device: /dev/iax/wq1.0"],
    );
}

#[test]
fn cause_9_no_node() {
    let machine = Machine::healthy();
    machine.remove("dev/iax");
    let nodes = queues(&DEVICES)
        .into_iter()
        .map(|queue| RefusedNode {
            queue,
            access: NodeAccess::Missing,
        })
        .collect();
    assert_cause(
        &machine.detect(),
        &Cause::NodesNotOpened {
            nodes,
            user: Some(1000),
        },
        "/dev/iax/wq1.0: is missing",
        &[
            "# if this is a container, give it the device: /dev/iax/wq1.0 /dev/iax/wq3.0 /dev/iax/wq5.0 \
           /dev/iax/wq7.0 /dev/iax/wq9.0 /dev/iax/wq11.0 /dev/iax/wq13.0 /dev/iax/wq15.0",
        ],
    );
}

#[test]
fn cause_10_portal_refused_and_old_libqpl() {
    let mut machine = Machine::single();
    machine.qpl = Qpl::Loaded {
        version: "1.5.0".into(),
    };
    let report = machine.detect();
    assert_cause(
        &report,
        &Cause::PortalsRefused {
            queues: queues(&[1]),
            qpl: machine.qpl.version().unwrap(),
        },
        "portal mapping refused, libqpl 1.5 needs it",
        &[
            "apt install libqpl1",
            "# or let the program map portals, with a capability that is as good as root:",
            "# (it also opens /dev/mem, I/O ports and model-specific registers)",
            "# setcap cap_sys_rawio+ep PROGRAM",
        ],
    );
    // A newer libqpl needs no portal, and an older one accepts a portal that maps.
    machine.qpl = Qpl::Loaded {
        version: "1.6.0".into(),
    };
    assert_ready(&machine.detect());
    machine.qpl = Qpl::Loaded {
        version: "1.5.0".into(),
    };
    machine.node = NodeAccess::Opened {
        portal: Portal::Mapped,
    };
    assert_ready(&machine.detect());
}

#[test]
fn cause_11_other_socket() {
    let machine = Machine::healthy();
    for device in &DEVICES[4..] {
        machine.set(&device_path(*device, "state"), "disabled");
        machine.set(&queue_path(*device, 0, "state"), "disabled");
    }
    let ready = queues(&DEVICES[..4]);
    let report = machine.detect();
    // Files show that it may happen, ...
    assert_eq!(
        report.verdict,
        Verdict::Ready {
            queues: ready.clone(),
            nodes_without: vec![1],
        }
    );
    // ... and libqpl shows that it did.
    let cause = Cause::OtherSocket {
        queues: ready,
        nodes: vec![1],
    };
    let any = "# or let every thread use every device: numa_id -3 in libqpl's jobs";
    let short = "no work queue on the socket of node 1";
    assert_explained(
        &report,
        503,
        &cause,
        short,
        &[
            "accel-config enable-device iax9",
            "accel-config enable-wq iax9/wq9.0",
            any,
        ],
    );

    for device in &DEVICES[4..] {
        machine.pull(*device);
    }
    assert_explained(
        &machine.detect(),
        503,
        &cause,
        short,
        &["# no IAA is on the socket of node 1", any],
    );

    // A process that stays on the other socket never has this problem.
    machine.replace("proc/self/status", "0-239", "0-59");
    assert!(matches!(
        machine.detect().verdict,
        Verdict::Ready { nodes_without, .. } if nodes_without.is_empty()
    ));
}

/// Several nodes in one socket share its devices.
#[test]
fn cause_11_sockets_count_not_nodes() {
    let machine = Machine::healthy();
    for device in &DEVICES[4..] {
        machine.pull(*device);
    }
    machine.set(
        "sys/devices/system/cpu/cpu60/topology/physical_package_id",
        "0",
    );
    assert!(matches!(
        machine.detect().verdict,
        Verdict::Ready { nodes_without, .. } if nodes_without.is_empty()
    ));
}

#[test]
fn cause_12_operations_disabled() {
    let machine = Machine::single();
    // Compression is disabled, decompression is not.
    let config = queue_path(1, 0, "op_config");
    machine.set(
        &config,
        "00000000,00000000,00000000,00000000,00000000,007f3314,00000000,0000000d",
    );
    let cause = Cause::OperationsDisabled {
        queues: queues(&[1]),
    };
    let short = "op_config of iax1/wq1.0 excludes deflate";
    let commands = [
        "accel-config disable-wq iax1/wq1.0",
        "accel-config config-wq iax1/wq1.0 \
         --op-config=00000000,00000000,00000000,00000000,00000000,007f331c,00000000,0000000d",
        "accel-config enable-wq iax1/wq1.0",
    ];
    let report = machine.detect();
    assert_cause(&report, &cause, short, &commands);
    assert_explained(&report, 8, &cause, short, &commands);

    machine.set(
        &config,
        "00000000,00000000,00000000,00000000,00000000,007f331c,00000000,0000000d",
    );
    let report = machine.detect();
    assert_ready(&report);
    assert_eq!(report.explain_status(8), None);
}

/// Another queue is ready, but a job went to this one.
#[test]
fn cause_12_one_queue_of_several() {
    let machine = Machine::healthy();
    machine.set(&queue_path(3, 0, "op_config"), "0");
    let report = machine.detect();
    assert_ready(&report);
    assert_eq!(
        explained(&report, 8),
        Cause::OperationsDisabled {
            queues: queues(&[3]),
        }
    );
}

#[test]
fn cause_13_transfers_too_small() {
    let machine = Machine::single();
    let limit = queue_path(1, 0, "max_transfer_size");
    machine.set(&limit, "2048");
    let cause = |allowed_bytes| Cause::TransfersTooSmall {
        queues: queues(&[1]),
        allowed_bytes,
    };
    let commands = [
        "accel-config disable-wq iax1/wq1.0",
        "accel-config config-wq iax1/wq1.0 -x 2147483648",
        "accel-config enable-wq iax1/wq1.0",
    ];
    assert_cause(
        &machine.detect(),
        &cause(2048),
        "work queues limit transfers to 2048 bytes",
        &commands,
    );
    // Enough for a page, too little for a packet of pages.
    machine.set(&limit, "65536");
    let report = machine.detect();
    assert_ready(&report);
    assert_explained(
        &report,
        319,
        &cause(65536),
        "work queues limit transfers to 65536 bytes",
        &commands,
    );
}

#[test]
fn cause_14_submission_fails() {
    let mut machine = Machine::single();
    let report = machine.detect();
    assert_explained(
        &report,
        500,
        &Cause::SubmissionFails {
            status: 500,
            kernel: None,
        },
        "submission fails with status 500",
        &["dmesg | grep -E 'idxd|DMAR'"],
    );
    // The second generation needs a newer kernel than the first.
    machine.accel_config = AccelConfig::Loaded { iaa_cap: true };
    machine.set("proc/sys/kernel/osrelease", "6.1.0-13-amd64");
    for (version, too_old) in [("0x100", false), ("0x200", true)] {
        machine.set_devices("version", version);
        let report = machine.detect();
        assert_ready(&report);
        let obstacle = report.explain_status(500).unwrap();
        let kernel = report.facts.kernel.version.filter(|_| too_old);
        assert_eq!(
            obstacle.cause,
            Cause::SubmissionFails {
                status: 500,
                kernel
            }
        );
        assert_eq!(obstacle.mend().len(), if too_old { 2 } else { 1 });
    }
    assert_explained(
        &machine.detect(),
        500,
        &Cause::SubmissionFails {
            status: 500,
            kernel: machine.detect().facts.kernel.version,
        },
        "kernel 6.1 too old",
        &[
            "dmesg | grep -E 'idxd|DMAR'",
            "# boot a newer kernel: 5.18 or later, 6.3 for the second IAA generation",
        ],
    );
}

#[test]
fn cause_15_enabled_too_late() {
    assert_explained(
        &Machine::healthy().detect(),
        503,
        &Cause::EnabledTooLate {
            queues: queues(&DEVICES),
        },
        "enabled after this process looked for it",
        &["# restart this process"],
    );
}

#[test]
fn other_statuses_are_not_explained_away() {
    let report = Machine::single().detect();
    for status in [0, 5, 217, 502, u32::MAX] {
        assert_eq!(report.explain_status(status), None);
    }
    assert_eq!(
        explained(&report, 501),
        Cause::NoAccelConfig {
            problem: AccelConfigProblem::TooOld
        }
    );
}

/// Obstacles accumulate in reverse order: the first one is always named.
#[test]
fn the_first_cause_is_named() {
    let mut machine = Machine::single();
    let mut seen = Vec::new();
    let mut see = |machine: &Machine| match machine.detect().verdict {
        Verdict::NotReady { summary, .. } => seen.push(summary),
        Verdict::Ready { .. } => seen.push("ready".into()),
    };
    see(&machine);
    machine.set(&queue_path(1, 0, "max_transfer_size"), "1");
    see(&machine);
    machine.set(&queue_path(1, 0, "op_config"), "0");
    see(&machine);
    machine.qpl = Qpl::Loaded {
        version: "1.4.0".into(),
    };
    see(&machine);
    machine.node = NodeAccess::Denied;
    see(&machine);
    machine.set(&queue_path(1, 0, "mode"), "dedicated");
    see(&machine);
    machine.set(&queue_path(1, 0, "type"), "kernel");
    see(&machine);
    machine.set(&queue_path(1, 0, "state"), "disabled");
    see(&machine);
    machine.set(&device_path(1, "state"), "disabled");
    see(&machine);
    machine.qpl = Qpl::Missing {
        error: "not here".into(),
    };
    see(&machine);
    machine.accel_config = AccelConfig::Missing {
        error: "not here".into(),
    };
    see(&machine);
    machine.set(&device_path(1, "pasid_enabled"), "0");
    see(&machine);
    machine.remove("sys/bus/dsa");
    see(&machine);
    machine.remove("sys/bus/pci/devices/0000:6a:02.0");
    see(&machine);
    assert_eq!(
        seen,
        [
            "ready",
            "work queues limit transfers to 1 bytes",
            "op_config of iax1/wq1.0 excludes deflate",
            "portal mapping refused, libqpl 1.4 needs it",
            "/dev/iax/wq1.0: permission denied",
            "iax1/wq1.0 dedicated",
            "iax1/wq1.0 held by the kernel",
            "no work queue of iax1 enabled",
            "iax1 disabled",
            "libqpl does not load",
            "libaccel-config does not load",
            "no shared virtual memory, kernel lacks no5lvl",
            "idxd module not loaded",
            "none on the PCI bus",
        ]
    );
}
