//! The real libqpl on a simulated device that is slow, busy or faulty.

mod support;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use iaa_sim::Settings;
use iaa_sim::settings::{Fault, FaultKind, Order};
use qpl_sys::{Flags, Path, Status};

use support::bench::{Bench, DEPTH, inflate, with_fault};
use support::{HardwareJob, PATIENCE, pages};

#[test]
fn a_job_takes_as_long_as_its_latency() {
    let latency = Duration::from_millis(30);
    let settings = Settings {
        latency,
        ..Settings::default()
    };
    let Some(bench) = Bench::new("a_job_takes_as_long_as_its_latency", &settings) else {
        return;
    };
    let mut job = bench.job();
    job.prepare_compress(Flags::NONE, &pages()[0]);
    let start = Instant::now();
    assert_eq!(job.run(), Status::OK);
    assert!(start.elapsed() >= latency);
}

#[test]
fn a_job_is_being_processed_until_the_device_takes_it() {
    let paused = Settings {
        paused: true,
        ..Settings::default()
    };
    let test = "a_job_is_being_processed_until_the_device_takes_it";
    let Some(bench) = Bench::new(test, &paused) else {
        return;
    };
    let mut job = bench.job();
    job.prepare_compress(Flags::NONE, &pages()[0]);
    assert_eq!(job.submit(), Status::OK);
    assert_eq!(job.check(), Status::BEING_PROCESSED);
    bench.device.configure(&Settings::default());
    assert_eq!(job.outcome(PATIENCE), Status::OK);
}

#[test]
fn a_full_queue_is_busy_until_it_is_served() {
    let paused = Settings {
        paused: true,
        ..Settings::default()
    };
    let Some(bench) = Bench::new("a_full_queue_is_busy_until_it_is_served", &paused) else {
        return;
    };
    let mut jobs: Vec<HardwareJob> = (0..=DEPTH).map(|_| bench.job()).collect();
    let (refused, accepted) = jobs.split_last_mut().expect("one more than places");
    for job in accepted.iter_mut() {
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.submit(), Status::OK);
    }
    refused.prepare_compress(Flags::NONE, &pages()[0]);
    assert_eq!(refused.submit(), Status::QUEUES_ARE_BUSY);
    assert_eq!(refused.check(), Status::JOB_NOT_SUBMITTED);

    bench.device.configure(&Settings::default());
    for job in accepted.iter_mut() {
        assert_eq!(job.outcome(PATIENCE), Status::OK);
    }
    assert_eq!(refused.run(), Status::OK, "as it was");
}

#[test]
fn a_queue_that_others_fill_is_busy() {
    let busy = Settings {
        busy: true,
        ..Settings::default()
    };
    let Some(bench) = Bench::new("a_queue_that_others_fill_is_busy", &busy) else {
        return;
    };
    let mut job = bench.job();
    job.prepare_compress(Flags::NONE, &pages()[0]);
    assert_eq!(job.submit(), Status::QUEUES_ARE_BUSY);
    assert_eq!(job.execute(), Status::QUEUES_ARE_BUSY);
    bench.device.configure(&Settings::default());
    bench.wait_until_free();
    assert_eq!(job.run(), Status::OK);
}

/// The second descriptor of a dynamic job is submitted from within the check. If this finds the
/// queue busy, libqpl 1.9.0 gets stuck: every further check reports a busy queue again, and a
/// second submission repeats the first pass for ever. Only a fresh job helps.
#[test]
fn a_dynamic_job_that_finds_the_queue_busy_half_way_is_spoilt() {
    let Some(bench) = Bench::healthy("a_dynamic_job_that_finds_the_queue_busy_half_way_is_spoilt")
    else {
        return;
    };
    let busy = Settings {
        busy: true,
        ..Settings::default()
    };
    let half_done = || {
        bench.device.configure(&Settings::default());
        let mut job = bench.job();
        job.prepare_compress(Flags::DYNAMIC_HUFFMAN, &pages()[0]);
        assert_eq!(job.submit(), Status::OK);
        bench.wait_until(|counters| counters.successes == 1);
        bench.device.configure(&busy);
        assert_eq!(job.outcome(PATIENCE), Status::QUEUES_ARE_BUSY);
        bench.device.configure(&Settings::default());
        bench.wait_until_free();
        bench.device.configure(&Settings::default());
        job
    };
    let mut job = half_done();
    job.reinit();
    job.prepare_compress(Flags::DYNAMIC_HUFFMAN, &pages()[0]);
    assert_eq!(job.run(), Status::OK);
    assert_eq!(inflate(job.output()), pages()[0]);

    let mut job = half_done();
    assert_eq!(job.check(), Status::QUEUES_ARE_BUSY);
    assert_eq!(job.submit(), Status::OK);
    bench.wait_until(|counters| {
        assert_eq!(job.check(), Status::BEING_PROCESSED);
        assert_eq!(counters.compressions, 0);
        counters.statistics > 10
    });
}

#[test]
fn jobs_may_complete_out_of_order() {
    let paused = Settings {
        paused: true,
        ..Settings::default()
    };
    let Some(bench) = Bench::new("jobs_may_complete_out_of_order", &paused) else {
        return;
    };
    let mut jobs: Vec<HardwareJob> = (0..4).map(|_| bench.job()).collect();
    for job in &mut jobs {
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.submit(), Status::OK);
    }
    // The first job's turn is the fourth.
    let fourth = Fault {
        kind: FaultKind::Lost,
        every: NonZeroU32::new(4).expect("four"),
        limit: 1,
    };
    bench.device.configure(&Settings {
        order: Order::Reversed,
        ..with_fault(fourth)
    });
    let (first, others) = jobs.split_first_mut().expect("four jobs");
    for job in others {
        assert_eq!(job.outcome(PATIENCE), Status::OK);
    }
    bench.wait_until(|counters| counters.lost == 1);
    assert_eq!(first.check(), Status::BEING_PROCESSED);
}

#[test]
fn one_page_fault_is_mended_and_a_second_is_not() {
    for (kind, status) in [
        (FaultKind::ReadPage, Status::INTL_PAGE_FAULT),
        (FaultKind::WritePage, Status::INTL_W_PAGE_FAULT),
    ] {
        let once = Fault {
            limit: 1,
            ..Fault::always(kind)
        };
        let Some(bench) = Bench::faulty("one_page_fault_is_mended_and_a_second_is_not", once)
        else {
            return;
        };
        let mut job = bench.job();
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.run(), Status::OK);
        let counters = bench.device.counters();
        assert_eq!(counters.read_faults + counters.write_faults, 1);
        assert_eq!(counters.compressions, 2, "submitted again");

        // The same job again: libqpl has used up its only retry.
        bench.device.configure(&with_fault(once));
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.run(), status);
        assert_eq!(bench.device.counters().compressions, 1);

        // A fresh one that faults twice.
        bench.device.configure(&with_fault(Fault::always(kind)));
        let mut job = bench.job();
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.run(), status);
        assert_eq!(bench.device.counters().compressions, 2);
    }
}

#[test]
fn a_page_fault_without_address_is_not_mended() {
    for (kind, status) in [
        (FaultKind::ReadPageNowhere, Status::INTL_PAGE_FAULT),
        (FaultKind::WritePageNowhere, Status::INTL_W_PAGE_FAULT),
    ] {
        let Some(bench) = Bench::faulty(
            "a_page_fault_without_address_is_not_mended",
            Fault::always(kind),
        ) else {
            return;
        };
        let mut job = bench.job();
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.run(), status);
        assert_eq!(bench.device.counters().compressions, 1);
    }
}

#[test]
fn every_error_record_has_its_status() {
    // Status byte and error byte, and libqpl's status for them when compressing.
    let by_error_byte = (1..=36)
        .filter(|error| *error != 25)
        .map(|error| (0x0a, error, 200 + u32::from(error)));
    let by_status_byte = [
        0x04, 0x0a, 0x0b, 0x10, 0x11, 0x12, 0x13, 0x16, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
        0x20, 0x21, 0x22, 0x23, 0x24, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x30, 0x31, 0x32,
        0x84, 0x9a,
    ]
    .map(|status| (status, 0, 300 + u32::from(status)));
    for (status, error, expected) in by_error_byte.chain(by_status_byte) {
        let record = Fault::always(FaultKind::Record { status, error });
        let Some(bench) = Bench::faulty("every_error_record_has_its_status", record) else {
            return;
        };
        for mode in [Flags::NONE, Flags::DYNAMIC_HUFFMAN] {
            let mut job = bench.job();
            job.prepare_compress(mode, &pages()[0]);
            assert_eq!(job.run(), Status(expected), "{status:#x} {error} {mode:?}");
        }
        assert_eq!(bench.device.counters().records, 2);
    }
}

#[test]
fn error_records_of_a_decompression_have_their_status() {
    for (status, error, expected) in [
        (0x0a, 19, Status::TIMEOUT),
        (0x22, 0, Status::INTL_HARDWARE_TIMEOUT),
    ] {
        let record = Fault::always(FaultKind::Record { status, error });
        let Some(bench) =
            Bench::faulty("error_records_of_a_decompression_have_their_status", record)
        else {
            return;
        };
        let (outcome, _) = bench.decompress(Flags::NONE, &[3, 0]);
        assert_eq!(outcome, expected);
    }
}

#[test]
fn a_fault_may_befall_every_third_job() {
    let every = NonZeroU32::new(3).expect("three");
    let fault = Fault {
        kind: FaultKind::Record {
            status: 0x0a,
            error: 19,
        },
        every,
        limit: 2,
    };
    let Some(bench) = Bench::faulty("a_fault_may_befall_every_third_job", fault) else {
        return;
    };
    let mut job = bench.job();
    let outcomes: Vec<bool> = (0..12)
        .map(|_| {
            job.prepare_compress(Flags::NONE, &pages()[0]);
            job.run() == Status::OK
        })
        .collect();
    let failed: Vec<usize> = (0..12).filter(|index| !outcomes[*index]).collect();
    assert_eq!(failed, [2, 5]);
    assert_eq!(bench.device.counters().records, 2);
}

#[test]
fn a_lost_job_never_completes() {
    let lost = Fault {
        limit: 1,
        ..Fault::always(FaultKind::Lost)
    };
    let Some(bench) = Bench::faulty("a_lost_job_never_completes", lost) else {
        return;
    };
    let mut lost = bench.job();
    lost.prepare_compress(Flags::NONE, &pages()[0]);
    assert_eq!(lost.submit(), Status::OK);
    assert_eq!(
        lost.outcome(Duration::from_millis(200)),
        Status::BEING_PROCESSED
    );
    assert_eq!(bench.device.counters().lost, 1);
    // The device itself continues.
    let mut job = bench.job();
    job.prepare_compress(Flags::NONE, &pages()[0]);
    assert_eq!(job.run(), Status::OK);
}

#[test]
fn a_late_job_holds_up_nobody() {
    let late = Fault {
        limit: 1,
        ..Fault::always(FaultKind::Late(Duration::from_millis(300)))
    };
    let settings = Settings {
        healthy_for: 1,
        ..with_fault(late)
    };
    let Some(bench) = Bench::new("a_late_job_holds_up_nobody", &settings) else {
        return;
    };
    let mut jobs: Vec<HardwareJob> = (0..3).map(|_| bench.job()).collect();
    for job in &mut jobs {
        job.prepare_compress(Flags::NONE, &pages()[0]);
        assert_eq!(job.submit(), Status::OK);
    }
    for index in [0, 2] {
        assert_eq!(jobs[index].outcome(PATIENCE), Status::OK);
    }
    let counters = bench.device.counters();
    assert_eq!((counters.late, counters.successes), (1, 2));
    assert_eq!(jobs[1].check(), Status::BEING_PROCESSED);
    assert_eq!(jobs[1].outcome(PATIENCE), Status::OK);
    assert_eq!(inflate(jobs[1].output()), pages()[0]);
}

#[test]
fn the_auto_path_hides_what_the_device_says() {
    let record = Fault::always(FaultKind::Record {
        status: 0x0a,
        error: 19,
    });
    let Some(bench) = Bench::faulty("the_auto_path_hides_what_the_device_says", record) else {
        return;
    };
    let mut job = HardwareJob::on(bench.library, Path::AUTO).expect("with or without device");
    assert_eq!(job.fields().data_ptr.path, Path::AUTO);
    job.prepare_compress(Flags::NONE, &pages()[0]);
    assert_eq!(job.run(), Status::OK);
    assert_eq!(bench.device.counters().records, 1);
    assert_eq!(inflate(job.output()), pages()[0]);
}
