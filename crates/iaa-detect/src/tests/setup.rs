//! The healthy machine without one thing that a ready queue needs: causes 1 to 8, each with its
//! commands.

use crate::cause::{AccelConfigProblem, Cause, KernelParameter};
use crate::facts::{AccelConfig, PciFunction, Qpl};

use super::expect::{LIKEWISE, assert_cause, assert_ready, devices, queues};
use super::machine::{DEVICES, Machine, device_path, queue_path};

#[test]
fn cause_1_no_device() {
    let machine = Machine::healthy();
    for device in DEVICES {
        machine.pull(device);
    }
    assert_cause(
        &machine.detect(),
        &Cause::NoDevice {
            virtual_machine: false,
        },
        "none on the PCI bus",
        &["# firmware setup: enable the accelerators; without such an item there is no IAA"],
    );
    machine.replace("proc/cpuinfo", " fsrm", " fsrm hypervisor");
    assert_cause(
        &machine.detect(),
        &Cause::NoDevice {
            virtual_machine: true,
        },
        "none on the PCI bus",
        &["# on the host: pass an IAA function through to this machine"],
    );
}

/// The files before the driver is loaded: its bus and all devices are absent.
fn without_driver() -> Machine {
    let machine = Machine::single();
    machine.remove("sys/bus/dsa");
    machine.remove("sys/bus/pci/devices/0000:6a:02.0/driver");
    machine.remove("sys/bus/pci/devices/0000:6a:02.0/iax1");
    machine
}

fn function(driver: Option<&str>) -> PciFunction {
    let machine = without_driver();
    if let Some(driver) = driver {
        machine.link(
            "sys/bus/pci/devices/0000:6a:02.0/driver",
            &format!("../../../bus/pci/drivers/{driver}"),
        );
    }
    machine.detect().facts.functions.remove(0)
}

#[test]
fn cause_2_driver_not_loaded() {
    assert_cause(
        &without_driver().detect(),
        &Cause::DriverNotBound {
            loaded: false,
            functions: vec![function(None)],
        },
        "idxd module not loaded",
        &["modprobe idxd"],
    );
}

#[test]
fn cause_2_driver_loaded_without_taking_the_device() {
    let machine = without_driver();
    std::fs::create_dir_all(machine.path("sys/bus/dsa/drivers/idxd")).unwrap();
    assert_cause(
        &machine.detect(),
        &Cause::DriverNotBound {
            loaded: true,
            functions: vec![function(None)],
        },
        "idxd driver not bound to the device",
        &[
            "echo 0000:6a:02.0 > /sys/bus/pci/drivers/idxd/bind",
            "dmesg | grep -E 'idxd|DMAR'",
        ],
    );
}

#[test]
fn cause_2_another_driver_has_the_device() {
    let machine = without_driver();
    machine.link(
        "sys/bus/pci/devices/0000:6a:02.0/driver",
        "../../../bus/pci/drivers/vfio-pci",
    );
    let take_back = [
        "echo 0000:6a:02.0 > /sys/bus/pci/devices/0000:6a:02.0/driver/unbind",
        "echo > /sys/bus/pci/devices/0000:6a:02.0/driver_override",
        "echo 0000:6a:02.0 > /sys/bus/pci/drivers_probe",
    ];
    let functions = vec![function(Some("vfio-pci"))];
    assert_cause(
        &machine.detect(),
        &Cause::DriverNotBound {
            loaded: false,
            functions: functions.clone(),
        },
        "idxd module not loaded",
        &[&["modprobe idxd"], take_back.as_slice()].concat(),
    );
    std::fs::create_dir_all(machine.path("sys/bus/dsa/drivers/idxd")).unwrap();
    assert_cause(
        &machine.detect(),
        &Cause::DriverNotBound {
            loaded: true,
            functions,
        },
        "device bound to vfio-pci",
        &take_back,
    );
}

#[test]
fn cause_3_no_shared_virtual_memory() {
    let machine = Machine::healthy();
    machine.set_devices("pasid_enabled", "0");
    let firmware = "# firmware setup: Socket > IIO: VT-d on, PCIe ENQCMD/ENQCMDS on";
    let cause = |lacks| Cause::NoSharedVirtualMemory {
        devices: devices(&DEVICES),
        lacks,
    };

    // The command line is right, so the levels of page tables may be the cause, ...
    assert_cause(
        &machine.detect(),
        &cause(Some(KernelParameter::FourLevels)),
        "no shared virtual memory, kernel lacks no5lvl",
        &[
            "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&no5lvl /' /etc/default/grub",
            "update-grub",
            firmware,
            "reboot",
        ],
    );
    // ... and with only four levels, the firmware.
    machine.replace("proc/cpuinfo", " la57", "");
    assert_cause(
        &machine.detect(),
        &cause(None),
        "no shared virtual memory",
        &[firmware, "reboot"],
    );

    let scalable_mode = cause(Some(KernelParameter::ScalableMode));
    let short = "no shared virtual memory, kernel lacks intel_iommu=on,sm_on";
    for before in ["", "intel_iommu=on", "intel_iommu=sm_on,strict"] {
        machine.set("proc/cmdline", &format!("root=/dev/sda {before} quiet"));
        assert_cause(
            &machine.detect(),
            &scalable_mode,
            short,
            &[
                "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&intel_iommu=on,sm_on /' /etc/default/grub",
                "update-grub",
                firmware,
                "reboot",
            ],
        );
    }
    machine.set(
        "usr/lib/os-release",
        "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"",
    );
    assert_cause(
        &machine.detect(),
        &scalable_mode,
        short,
        &[
            "grubby --update-kernel=ALL --args=intel_iommu=on,sm_on",
            firmware,
            "reboot",
        ],
    );
    machine.remove("etc/os-release");
    assert_cause(
        &machine.detect(),
        &scalable_mode,
        short,
        &[
            "# add intel_iommu=on,sm_on to the kernel's command line",
            firmware,
            "reboot",
        ],
    );
}

#[test]
fn cause_4_no_accel_config() {
    let mut machine = Machine::single();
    let error = "libaccel-config.so.1: cannot open shared object file: No such file or directory";
    machine.accel_config = AccelConfig::Missing {
        error: error.into(),
    };
    let missing = Cause::NoAccelConfig {
        problem: AccelConfigProblem::Missing {
            error: error.into(),
        },
    };
    let short = "libaccel-config does not load";
    assert_cause(
        &machine.detect(),
        &missing,
        short,
        &["apt install libaccel-config1"],
    );
    machine.set("usr/lib/os-release", "ID=fedora");
    assert_cause(
        &machine.detect(),
        &missing,
        short,
        &["dnf install accel-config-libs"],
    );
}

#[test]
fn cause_4_accel_config_too_old_for_the_second_generation() {
    let mut machine = Machine::single();
    machine.set_devices("version", "0x200");
    assert_cause(
        &machine.detect(),
        &Cause::NoAccelConfig {
            problem: AccelConfigProblem::TooOld,
        },
        "libaccel-config too old",
        &[
            "apt install libaccel-config1",
            "# of a release after 3.5.3, which is too old",
        ],
    );
    machine.accel_config = AccelConfig::Loaded { iaa_cap: true };
    assert_ready(&machine.detect());
}

#[test]
fn without_libqpl_nothing_else_helps() {
    let mut machine = Machine::single();
    let error = "libqpl.so.1: cannot open shared object file: No such file or directory";
    machine.qpl = Qpl::Missing {
        error: error.into(),
    };
    assert_cause(
        &machine.detect(),
        &Cause::NoQpl {
            error: error.into(),
        },
        "libqpl does not load",
        &["apt install libqpl1"],
    );
}

/// All devices and queues after a boot: nothing configured.
fn unconfigured(machine: Machine) -> Machine {
    machine.set_devices("state", "disabled");
    for (attribute, value) in [
        ("state", "disabled"),
        ("type", "none"),
        ("size", "0"),
        ("threshold", "0"),
        ("group_id", "-1"),
        ("name", ""),
        ("driver_name", ""),
    ] {
        machine.set_queues(attribute, value);
    }
    for device in &machine.devices {
        for engine in 0..8 {
            let group = format!("sys/bus/dsa/devices/engine{device}.{engine}/group_id");
            machine.set(&group, "-1");
        }
        machine.remove(&format!("dev/iax/wq{device}.0"));
    }
    machine
}

const CONFIGURE: [&str; 8] = [
    "for e in 0 1 2 3 4 5 6 7; do accel-config config-engine iax1/engine1.$e -g 0; done",
    "accel-config config-wq iax1/wq1.0 -g 0 -s 128 -p 10 -b 1 -t 128 -m shared -y user -n multifd -d user",
    "accel-config enable-device iax1",
    "accel-config enable-wq iax1/wq1.0",
    "for e in 0 1 2 3 4 5 6 7; do accel-config config-engine iax9/engine9.$e -g 0; done",
    "accel-config config-wq iax9/wq9.0 -g 0 -s 128 -p 10 -b 1 -t 128 -m shared -y user -n multifd -d user",
    "accel-config enable-device iax9",
    "accel-config enable-wq iax9/wq9.0",
];

#[test]
fn cause_5_devices_disabled() {
    let machine = unconfigured(Machine::healthy());
    let cause = Cause::DevicesDisabled {
        devices: devices(&DEVICES),
    };
    let short = "8 devices disabled";
    let commands = [CONFIGURE.as_slice(), &[LIKEWISE]].concat();
    assert_cause(&machine.detect(), &cause, short, &commands);

    machine.remove("usr/bin/accel-config");
    assert_cause(
        &machine.detect(),
        &cause,
        short,
        &[&["apt install accel-config"], commands.as_slice()].concat(),
    );
}

#[test]
fn cause_5_a_configured_device_is_only_enabled() {
    let machine = Machine::single();
    machine.set(&device_path(1, "state"), "disabled");
    machine.set(&queue_path(1, 0, "state"), "disabled");
    assert_cause(
        &machine.detect(),
        &Cause::DevicesDisabled {
            devices: devices(&[1]),
        },
        "iax1 disabled",
        &[
            "accel-config enable-device iax1",
            "accel-config enable-wq iax1/wq1.0",
        ],
    );
}

/// A queue gets the entries that the others of its device leave.
#[test]
fn cause_5_entries_of_other_queues_are_left_to_them() {
    let machine = unconfigured(Machine::single());
    machine.set(&queue_path(1, 0, "size"), "16");
    machine.set(&queue_path(1, 3, "size"), "32");
    // An older kernel has no names of drivers.
    machine.set("proc/sys/kernel/osrelease", "6.1.0-13-amd64");
    for index in 0..8 {
        machine.remove(&queue_path(1, index, "driver_name"));
    }
    assert_cause(
        &machine.detect(),
        &Cause::DevicesDisabled {
            devices: devices(&[1]),
        },
        "iax1 disabled",
        &[
            "for e in 0 1 2 3 4 5 6 7; do accel-config config-engine iax1/engine1.$e -g 0; done",
            "accel-config config-wq iax1/wq1.3 -g 0 -s 112 -p 10 -b 1 -t 112 -m shared -y user -n multifd",
            "accel-config enable-device iax1",
            "accel-config enable-wq iax1/wq1.3",
        ],
    );
}

#[test]
fn cause_6_queues_disabled() {
    let machine = Machine::healthy();
    machine.set_queues("state", "disabled");
    assert_cause(
        &machine.detect(),
        &Cause::QueuesDisabled {
            devices: devices(&DEVICES),
        },
        "no work queue of 8 devices enabled",
        &[
            "accel-config enable-wq iax1/wq1.0",
            "accel-config enable-wq iax9/wq9.0",
            LIKEWISE,
        ],
    );
}

#[test]
fn cause_6_an_enabled_device_has_to_be_disabled_to_configure_a_queue() {
    let machine = unconfigured(Machine::single());
    machine.set(&device_path(1, "state"), "enabled");
    assert_cause(
        &machine.detect(),
        &Cause::QueuesDisabled {
            devices: devices(&[1]),
        },
        "no work queue of iax1 enabled",
        &[&["accel-config disable-device iax1"], &CONFIGURE[..4]].concat(),
    );
}

#[test]
fn cause_7_only_dedicated_queues() {
    let machine = Machine::healthy();
    machine.set_queues("mode", "dedicated");
    machine.set_queues("threshold", "0");
    machine.set(&queue_path(1, 0, "size"), "64");
    assert_cause(
        &machine.detect(),
        &Cause::OnlyDedicatedQueues {
            queues: queues(&DEVICES),
        },
        "8 work queues dedicated",
        &[
            "accel-config disable-wq iax1/wq1.0",
            "accel-config config-wq iax1/wq1.0 -m shared -t 64",
            "accel-config enable-wq iax1/wq1.0",
            "accel-config disable-wq iax9/wq9.0",
            "accel-config config-wq iax9/wq9.0 -m shared -t 128",
            "accel-config enable-wq iax9/wq9.0",
            LIKEWISE,
        ],
    );
}

#[test]
fn cause_8_held_by_iaa_crypto() {
    let machine = Machine::healthy();
    machine.set("sys/module/iaa_crypto/initstate", "live");
    for (attribute, value) in [
        ("mode", "dedicated"),
        ("threshold", "0"),
        ("type", "kernel"),
        ("name", "iaa_crypto"),
        ("driver_name", "crypto"),
    ] {
        machine.set_queues(attribute, value);
    }
    let disable = [
        "accel-config disable-wq iax1/wq1.0",
        "accel-config disable-device iax1",
        "accel-config disable-wq iax9/wq9.0",
        "accel-config disable-device iax9",
        "rmmod iaa_crypto",
    ];
    assert_cause(
        &machine.detect(),
        &Cause::HeldByKernel {
            queues: queues(&DEVICES),
            iaa_crypto: true,
        },
        "held by iaa_crypto",
        &[disable.as_slice(), &CONFIGURE, &[LIKEWISE]].concat(),
    );
}
