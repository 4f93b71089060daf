//! libqpl's reports on machines without an IAA, or with an unusable one.
//!
//! It looks once per process, so each test runs in its own.

mod support;

use std::process::Stdio;

use iaa_sim::settings::{AccelConfig, Access, Fault, FaultKind, Operations};
use iaa_sim::testing::{in_own_process, launch};
use iaa_sim::{Counters, Settings, Simulator, library_path};
use qpl_sys::{Flags, Library, NumaId, Operation, Path, Status};

use support::{HardwareJob, PACKED_ROOM, Table, init_status, library, not_run, pages};

/// Runs `body` with libqpl and a machine of these settings, in a process of its own.
fn on_machine(test: &str, settings: Settings, body: impl FnOnce(&'static Library, Simulator)) {
    let Some(library) = library(test) else { return };
    in_own_process(test, || {
        let machine = Simulator::load(&settings).expect("Cargo builds the shared object");
        body(library, machine);
    });
}

/// Asserts the status of initialisation on such a machine.
fn opening_gives(test: &str, settings: Settings, status: Status) {
    on_machine(test, settings, |library, machine| {
        assert_eq!(init_status(library), status);
        assert_eq!(init_status(library), status, "again");
        assert_eq!(machine.counters().compressions, 0);
    });
}

/// Submits one compression.
fn compress(library: &'static Library, numa_id: NumaId) -> Status {
    let mut job = HardwareJob::new(library).expect("a device");
    job.prepare_compress(Flags::NONE, &pages()[0]).numa_id = numa_id;
    job.run()
}

#[test]
fn no_library() {
    let Some(library) = library("no_library") else {
        return;
    };
    // SAFETY: a C library of plain functions, whose loading does nothing.
    if unsafe { libloading::Library::new("libaccel-config.so.1") }.is_ok() {
        return not_run("no_library", "this machine has libaccel-config");
    }
    in_own_process("no_library", || {
        assert_eq!(init_status(library), Status::INIT_LIBACCEL_NOT_FOUND);
    });
}

#[test]
fn no_device() {
    let settings = Settings {
        devices: 0,
        ..Settings::default()
    };
    opening_gives(
        "no_device",
        settings,
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE,
    );
}

#[test]
fn device_disabled() {
    let settings = Settings {
        device_enabled: false,
        ..Settings::default()
    };
    opening_gives(
        "device_disabled",
        settings,
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE,
    );
}

#[test]
fn queue_disabled() {
    let settings = Settings {
        queue_enabled: false,
        ..Settings::default()
    };
    opening_gives(
        "queue_disabled",
        settings,
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE,
    );
}

#[test]
fn queue_dedicated() {
    let settings = Settings {
        dedicated: true,
        ..Settings::default()
    };
    opening_gives(
        "queue_dedicated",
        settings,
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE,
    );
}

#[test]
fn no_rights() {
    let settings = Settings {
        access: Access::Denied,
        ..Settings::default()
    };
    opening_gives(
        "no_rights",
        settings,
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE,
    );
}

#[test]
fn descriptors_refused() {
    let settings = Settings {
        access: Access::Refused,
        ..Settings::default()
    };
    opening_gives(
        "descriptors_refused",
        settings,
        Status::INIT_WORK_QUEUES_NOT_AVAILABLE,
    );
}

#[test]
fn old_library() {
    let settings = Settings {
        library: AccelConfig::Old,
        ..Settings::default()
    };
    opening_gives("old_library", settings, Status::INIT_LIBACCEL_NOT_FOUND);
}

#[test]
fn old_kernel() {
    let settings = Settings {
        library: AccelConfig::OldKernel,
        ..Settings::default()
    };
    opening_gives("old_kernel", settings, Status::INIT_HW_NOT_SUPPORTED);
}

#[test]
fn broken_library() {
    let settings = Settings {
        library: AccelConfig::Broken,
        ..Settings::default()
    };
    opening_gives("broken_library", settings, Status::INIT_LIBACCEL_ERROR);
}

#[test]
fn several_devices_and_queues() {
    let settings = Settings {
        devices: 2,
        queues: 3,
        depth: 1,
        paused: true,
        ..Settings::default()
    };
    let healthy = Settings {
        paused: false,
        ..settings.clone()
    };
    on_machine("several_devices_and_queues", healthy, |library, machine| {
        assert_eq!(init_status(library), Status::OK);
        assert_eq!(machine.counters().probes, 6);
        // Each of the six queues accepts one descriptor.
        machine.configure(&settings);
        let mut jobs: Vec<HardwareJob> = (0..7)
            .map(|_| HardwareJob::new(library).expect("a device"))
            .collect();
        let outcomes: Vec<Status> = jobs
            .iter_mut()
            .map(|job| {
                job.prepare_compress(Flags::NONE, &pages()[0]);
                job.submit()
            })
            .collect();
        assert_eq!(outcomes[..6], [Status::OK; 6]);
        assert_eq!(outcomes[6], Status::QUEUES_ARE_BUSY);
    });
}

#[test]
fn wrong_numa_node() {
    // A node that no machine running this test has.
    let settings = Settings {
        numa_node: 4000,
        ..Settings::default()
    };
    on_machine("wrong_numa_node", settings, |library, machine| {
        // The default, the caller's socket, is left out: on processors that do not report their
        // socket, libqpl assumes that every node is on it.
        assert_eq!(
            compress(library, NumaId::CURRENT),
            Status::INIT_WORK_QUEUES_NOT_AVAILABLE
        );
        assert_eq!(
            compress(library, NumaId(3)),
            Status::INIT_WORK_QUEUES_NOT_AVAILABLE
        );
        assert_eq!(machine.counters().compressions, 0);
        assert_eq!(compress(library, NumaId::ANY), Status::OK);
        assert_eq!(compress(library, NumaId(4000)), Status::OK);
        // When it waits for the outcome within the call, libqpl ignores the node.
        let mut job = HardwareJob::new(library).expect("a device");
        job.prepare_compress(Flags::NONE, &pages()[0]).numa_id = NumaId(3);
        assert_eq!(job.execute(), Status::OK);
    });
}

#[test]
fn operation_not_permitted() {
    let settings = Settings {
        operations: Operations::Decompress,
        ..Settings::default()
    };
    on_machine("operation_not_permitted", settings, |library, _machine| {
        assert_eq!(
            compress(library, NumaId::SOCKET),
            Status::NOT_SUPPORTED_BY_WQ
        );
        let mut job = HardwareJob::new(library).expect("a device");
        job.prepare(Operation::DECOMPRESS, Flags::NONE, &[3, 0], PACKED_ROOM);
        assert_eq!(job.run(), Status::OK);
    });
}

#[test]
fn transfer_too_large() {
    let settings = Settings {
        max_transfer_bytes: 2048,
        ..Settings::default()
    };
    on_machine("transfer_too_large", settings, |library, machine| {
        assert_eq!(
            compress(library, NumaId::SOCKET),
            Status::TRANSFER_SIZE_INVALID
        );
        assert_eq!(
            machine.counters().compressions,
            0,
            "libqpl does not submit it"
        );
    });
}

#[test]
fn missing_pages_are_waited_for() {
    let settings = Settings {
        block_on_fault: true,
        faults: vec![
            Fault::always(FaultKind::ReadPage),
            Fault::always(FaultKind::WritePage),
        ],
        ..Settings::default()
    };
    on_machine(
        "missing_pages_are_waited_for",
        settings,
        |library, machine| {
            assert_eq!(compress(library, NumaId::SOCKET), Status::OK);
            assert_eq!(machine.counters().read_faults, 0);
        },
    );
}

/// libqpl waits for the answer to its probe without a time limit.
#[test]
fn faults_spare_the_opening() {
    let settings = Settings {
        faults: vec![Fault::always(FaultKind::Lost)],
        ..Settings::default()
    };
    opening_gives("faults_spare_the_opening", settings, Status::OK);
}

#[test]
fn a_busy_queue_opens() {
    let settings = Settings {
        busy: true,
        ..Settings::default()
    };
    on_machine("a_busy_queue_opens", settings, |library, _machine| {
        assert_eq!(compress(library, NumaId::SOCKET), Status::QUEUES_ARE_BUSY);
    });
}

#[test]
fn a_table_needs_the_device_for_its_state() {
    let settings = Settings {
        devices: 0,
        ..Settings::default()
    };
    on_machine(
        "a_table_needs_the_device_for_its_state",
        settings,
        |library, _machine| {
            let refused = Table::of(library, Path::HARDWARE, &pages()[0]).err();
            assert_eq!(refused, Some(Status::INIT_WORK_QUEUES_NOT_AVAILABLE));
            assert!(Table::of(library, Path::AUTO, &pages()[0]).is_ok());
        },
    );
}

/// Runs another program on the simulated machine: preloaded, with settings from the environment.
#[test]
fn another_program_may_have_the_machine() {
    let test = "another_program_may_have_the_machine";
    let Some(library) = library(test) else { return };
    const CHILD: &str = "IAA_SIM_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(compress(library, NumaId::SOCKET), Status::TIMEOUT);
        assert_eq!(compress(library, NumaId::SOCKET), Status::OK);
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let counters = folder.path().join("counters");
    let timeout = FaultKind::Record {
        status: 0x0a,
        error: 19,
    };
    let settings = Settings {
        faults: vec![Fault {
            limit: 1,
            ..Fault::always(timeout)
        }],
        counters: Some(counters.clone()),
        ..Settings::default()
    };
    let program = std::env::args_os().next().expect("a program has a name");
    let status = launch(&program)
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "")
        .env(
            "LD_PRELOAD",
            library_path().expect("Cargo builds the shared object"),
        )
        .env(iaa_sim::VARIABLE, settings.to_string())
        .stdout(Stdio::null())
        .status()
        .expect("this program has been started once already");
    assert!(status.success(), "{status}");
    let expected = Counters {
        probes: 1,
        compressions: 2,
        successes: 1,
        records: 1,
        ..Counters::default()
    };
    assert_eq!(
        Counters::read(&counters).expect("a file of counters"),
        expected
    );
}
