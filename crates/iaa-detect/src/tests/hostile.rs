//! Trees that no kernel has: detection still reports, and names the oddities.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::facts::{Oddity, Problem};
use crate::host::System;
use crate::{Verdict, detect_on};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::machine::{Machine, device_path, queue_path};

/// Every file that the report on the first device depends on.
fn files() -> Vec<String> {
    let mut files: Vec<String> = [
        "proc/sys/kernel/osrelease",
        "proc/cmdline",
        "sys/bus/pci/devices/0000:6a:02.0/vendor",
        "sys/bus/pci/devices/0000:6a:02.0/device",
        "sys/bus/dsa/devices/engine1.0/group_id",
        "sys/devices/system/node/node0/cpulist",
        "sys/devices/system/cpu/cpu0/topology/physical_package_id",
    ]
    .map(str::to_owned)
    .into();
    for attribute in [
        "state",
        "numa_node",
        "pasid_enabled",
        "max_transfer_size",
        "max_work_queues_size",
        "version",
        "cmd_status",
    ] {
        files.push(device_path(1, attribute));
    }
    for attribute in [
        "state",
        "mode",
        "type",
        "name",
        "driver_name",
        "size",
        "threshold",
        "block_on_fault",
        "max_transfer_size",
        "group_id",
    ] {
        files.push(queue_path(1, 0, attribute));
    }
    files
}

/// Replaces each file in turn and returns the report's entries for that file.
fn problems(spoil: impl Fn(&Machine, &str)) -> Vec<(String, Option<Problem>)> {
    let machine = Machine::single();
    let spoiled = |file: String| {
        let before = fs::read(machine.path(&file)).unwrap();
        machine.remove(&file);
        spoil(&machine, &file);
        let report = machine.detect();
        // The report can be printed and serialised in any case.
        assert!(report.to_string().contains("verdict"));
        serde_json::to_string(&report).unwrap();
        let problem = report
            .facts
            .oddities
            .into_iter()
            .find(|oddity| oddity.path == file)
            .map(|oddity| oddity.problem);
        if fs::symlink_metadata(machine.path(&file)).is_ok() {
            machine.remove(&file);
        }
        machine.write(&file, &before);
        (file, problem)
    };
    let problems = files().into_iter().map(spoiled).collect();
    assert!(matches!(machine.detect().verdict, Verdict::Ready { .. }));
    problems
}

#[track_caller]
fn assert_each(problems: Vec<(String, Option<Problem>)>, expected: impl Fn(&Problem) -> bool) {
    for (file, problem) in problems {
        assert!(
            problem.as_ref().is_some_and(&expected),
            "{file}: {problem:?}"
        );
    }
}

#[test]
fn missing_files_are_no_oddity() {
    for (file, problem) in problems(|_, _| {}) {
        assert_eq!(problem, None, "{file}");
    }
}

#[test]
fn bytes_that_are_no_text() {
    let spoiled = problems(|machine, file| machine.write(file, b"enabled\xff\xfe\n"));
    assert_each(spoiled, |problem| *problem == Problem::NotText);
}

/// Values found end up on a terminal.
#[test]
fn control_characters() {
    let spoiled = problems(|machine, file| machine.write(file, b"a\x1b[2Jb\n"));
    assert_each(spoiled, |problem| *problem == Problem::NotText);
}

#[test]
fn huge_files() {
    let spoiled = problems(|machine, file| machine.write(file, &[b'1'; 1 << 20]));
    assert_each(spoiled, |problem| {
        *problem
            == Problem::TooLong {
                allowed_bytes: 4096,
            }
    });
}

/// Reading `/dev/zero` as a file would never end, and reading a pipe would never begin.
#[test]
fn devices_and_pipes() {
    let spoiled = problems(|machine, file| machine.link(file, "/dev/zero"));
    assert_each(spoiled, |problem| *problem == Problem::NotAFile);
    let spoiled = problems(|machine, file| {
        mknodat(CWD, machine.path(file), FileType::Fifo, Mode::RWXU, 0).unwrap();
    });
    assert_each(spoiled, |problem| *problem == Problem::NotAFile);
}

#[test]
fn directories_in_place_of_files() {
    let spoiled = problems(|machine, file| fs::create_dir(machine.path(file)).unwrap());
    assert_each(spoiled, |problem| *problem == Problem::NotAFile);
}

#[test]
fn links_that_lead_to_themselves() {
    let spoiled = problems(|machine, file| {
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        machine.link(file, name);
    });
    assert_each(spoiled, |problem| {
        matches!(problem, Problem::Unreadable { .. })
    });
}

#[test]
fn values_that_are_none_of_the_attribute() {
    // Any text is valid as a name, a release or a command line.
    let free = ["osrelease", "cmdline", "/name", "/driver_name"];
    for value in ["", "unheard of", "-", "99999999999999999999999", "0x"] {
        for (file, problem) in problems(|machine, file| machine.set(file, value)) {
            let is_free = free.iter().any(|name| file.ends_with(name));
            let empty_list = file.ends_with("cpulist") && value.is_empty();
            let expected = (!is_free && !empty_list).then(|| Problem::Malformed {
                found: value.to_owned(),
            });
            assert_eq!(problem, expected, "{file} with {value:?}");
        }
    }
}

#[test]
fn a_quoted_value_is_short() {
    let machine = Machine::single();
    machine.set(&device_path(1, "numa_node"), &"x".repeat(4000));
    let oddities = machine.detect().facts.oddities;
    assert_eq!(
        oddities,
        [Oddity {
            path: device_path(1, "numa_node"),
            problem: Problem::Malformed {
                found: "x".repeat(64)
            },
        }]
    );
}

#[test]
fn files_in_place_of_directories() {
    for directory in [
        "sys",
        "proc",
        "etc",
        "usr",
        "dev",
        "sys/bus",
        "sys/bus/pci/devices",
        "sys/bus/dsa",
        "sys/bus/dsa/devices",
        "sys/devices/system/node",
        "sys/devices/system/cpu",
        "proc/4242",
    ] {
        let machine = Machine::single();
        machine.remove(directory);
        machine.write(directory, b"no directory\n");
        let report = machine.detect();
        assert!(report.to_string().contains("verdict"), "{directory}");
    }
}

#[test]
fn no_root_at_all() {
    let machine = Machine::empty();
    machine.write("file", b"");
    for root in [
        machine.path("nowhere"),
        machine.path("file"),
        machine.root().to_owned(),
    ] {
        let report = detect_on(&root, &machine);
        assert_eq!(report.verdict.to_string(), "no IAA: none on the PCI bus");
    }
}

/// A directory of the bus that links to itself yields names, but no device with attributes.
#[test]
fn a_directory_within_itself() {
    let machine = Machine::healthy();
    machine.remove("sys/bus/dsa/devices/iax1");
    machine.link("sys/bus/dsa/devices/iax1", ".");
    let report = machine.detect();
    assert_eq!(report.facts.devices[0].state, None);
    assert!(matches!(report.verdict, Verdict::Ready { queues, .. } if queues.len() == 7));
}

#[test]
fn names_that_are_no_devices() {
    let machine = Machine::single();
    for name in [
        "iax",
        "iax-1",
        "iax1x",
        "iax01",
        "iax99999999999999999999",
        "iax 2",
        "wq1.",
        "wq1.00",
        "wq1.-1",
        "wq1.0.0",
        "wq1.99999999999999999999",
        "engine1.x",
    ] {
        machine.set(&format!("sys/bus/dsa/devices/{name}/state"), "enabled");
    }
    let odd_name = OsStr::from_bytes(b"iax\xff");
    fs::create_dir(machine.path("sys/bus/dsa/devices").join(odd_name)).unwrap();
    machine.set("sys/bus/pci/devices/$(reboot):00/vendor", "0x8086");
    machine.set("sys/bus/pci/devices/$(reboot):00/device", "0x0cfe");
    let facts = machine.detect().facts;
    assert_eq!(facts.devices.len(), 1);
    assert_eq!(facts.devices[0].queues.len(), 8);
    assert_eq!(facts.devices[0].engines.len(), 8);
    assert_eq!(facts.functions.len(), 1);
}

/// A driver's name becomes part of a sentence, but not of a command.
#[test]
fn a_strange_driver() {
    let machine = Machine::single();
    machine.remove("sys/bus/dsa");
    let driver = "sys/bus/pci/devices/0000:6a:02.0/driver";
    machine.remove(driver);
    machine.link(driver, "../drivers/a; reboot");
    let Verdict::NotReady { mend, .. } = machine.detect().verdict else {
        panic!("no driver");
    };
    assert!(
        !mend.iter().any(|line| line.contains("a; reboot")),
        "{mend:?}"
    );
}

#[test]
fn more_devices_than_any_machine_has() {
    let machine = Machine::empty();
    for device in 0..300 {
        machine.set(&device_path(device, "state"), "neither");
    }
    let report = machine.detect();
    assert_eq!(report.facts.devices.len(), 64);
    assert_eq!(report.facts.oddities.len(), Oddity::MOST);
    assert!(report.to_string().contains("odd                 56 more"));
}

/// Only observed facts count: no queue is ready without a state and a mode; a limit is optional.
#[test]
fn what_cannot_be_read_makes_nothing_ready() {
    for file in [
        device_path(1, "state"),
        queue_path(1, 0, "state"),
        queue_path(1, 0, "mode"),
    ] {
        let machine = Machine::single();
        machine.set(&file, "?");
        let verdict = machine.detect().verdict;
        assert!(matches!(verdict, Verdict::NotReady { .. }), "{file}");
    }
    for file in [
        device_path(1, "pasid_enabled"),
        device_path(1, "version"),
        device_path(1, "numa_node"),
        queue_path(1, 0, "type"),
        queue_path(1, 0, "op_config"),
        queue_path(1, 0, "max_transfer_size"),
    ] {
        let machine = Machine::single();
        machine.set(&file, "?");
        let verdict = machine.detect().verdict;
        assert!(matches!(verdict, Verdict::Ready { .. }), "{file}");
    }
}

/// The host's checks also work on a strange machine.
#[test]
fn nodes_that_are_no_devices() {
    let machine = Machine::single();
    let node = machine.path("dev/iax/wq1.0");
    for spoil in [
        (|_| ()) as fn(&Path),
        |node| {
            fs::remove_file(node).unwrap();
            mknodat(CWD, node, FileType::Fifo, Mode::RWXU, 0).unwrap();
        },
        |node| {
            fs::remove_file(node).unwrap();
            fs::create_dir(node).unwrap();
        },
    ] {
        spoil(&node);
        let report = detect_on(machine.root(), &System);
        let access = &report.facts.devices[0].queues[0].node;
        assert_eq!(access.to_string(), "is not a device");
    }
}
