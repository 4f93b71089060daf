//! For every fault of a device, the pages are right and the counts show it.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use iaa_sim::settings::{Fault, FaultKind, Order};
use iaa_sim::{Settings as Machine, Simulator};
use multifd_codec::{Accel, BackendKind, PathCounts, Settings};
use multifd_wire::Method;

use testkit::alone;
use testkit::libqpl::{Channel, PAGE, device, dynamic, streams, with};
use testkit::pages::{Random, packet};

/// Channels of both methods, with both codes and several streams.
fn channels() -> Vec<Channel> {
    let plain = Settings::default();
    let fixed = with(Accel::QplHardware);
    let dynamic = dynamic(Accel::QplHardware);
    vec![
        Channel::new(Method::Qpl, &fixed, &fixed),
        Channel::new(Method::Qpl, &dynamic, &fixed),
        Channel::new(Method::Canned, &fixed, &fixed),
        Channel::new(Method::Zlib, &streams(fixed, 16), &plain),
        Channel::new(Method::Zlib, &streams(dynamic, 128), &plain),
    ]
}

/// Carries packets through all channels on a machine that was healthy until now.
fn carry(device: &Simulator, machine: &Machine, packets: usize) -> Vec<Channel> {
    let mut channels = channels();
    let mut random = Random::new(11);
    device.configure(machine);
    for _ in 0..packets {
        let bytes = packet(&mut random, 100, PAGE);
        for channel in &mut channels {
            channel.carry(&bytes);
        }
    }
    for channel in &channels {
        let (encoded, decoded) = channel.counts();
        assert_eq!(encoded.total(), 100 * packets as u64);
        assert_eq!(decoded.total(), 100 * packets as u64);
    }
    channels
}

fn all(channels: &[Channel]) -> PathCounts {
    channels
        .iter()
        .map(Channel::counts)
        .fold(PathCounts::default(), |sum, (encoded, decoded)| {
            // The zlib decoders do not use the device.
            let of_device = decoded.hardware > 0;
            sum + encoded
                + if of_device {
                    decoded
                } else {
                    PathCounts::default()
                }
        })
}

fn faulty(kind: FaultKind, every: u32, limit: u32) -> Machine {
    Machine {
        faults: vec![Fault {
            kind,
            every: NonZeroU32::new(every).unwrap(),
            limit,
        }],
        ..Machine::default()
    }
}

#[test]
fn a_healthy_device_does_it_all() {
    alone!("faults::a_healthy_device_does_it_all", || {
        let device = device(&Machine::default());
        for machine in [
            Machine::default(),
            Machine {
                order: Order::Reversed,
                ..Machine::default()
            },
            Machine {
                latency: Duration::from_micros(300),
                ..Machine::default()
            },
            Machine {
                block_on_fault: true,
                ..Machine::default()
            },
        ] {
            let channels = carry(&device, &machine, 2);
            let counts = all(&channels);
            assert_eq!(counts.software, 0, "{counts:?}");
            assert!(counts.hardware > 0);
            for channel in &channels {
                assert_eq!(channel.encoder.backend().to_string(), "qpl-hardware");
            }
        }
    });
}

/// Each kind of fault at intervals: the device stays in use, and software does the pages that it
/// did not do.
#[test]
fn now_and_then() {
    alone!("faults::now_and_then", || {
        let device = device(&Machine::default());
        let kinds = [
            FaultKind::ReadPage,
            FaultKind::ReadPageNowhere,
            FaultKind::WritePage,
            FaultKind::WritePageNowhere,
            // A table without a code, output overflow, a refused descriptor, an unnamed error.
            record(0x0a, 30),
            record(0x0b, 0),
            record(0x10, 0),
            record(0x0a, 0),
        ];
        for kind in kinds {
            let channels = carry(&device, &faulty(kind, 7, 0), 2);
            let counts = all(&channels);
            assert!(counts.hardware > counts.software, "{kind:?}: {counts:?}");
            // libqpl repairs each job's one fault that has an address.
            if !matches!(kind, FaultKind::ReadPage | FaultKind::WritePage) {
                assert!(counts.software > 0, "{kind:?}: {counts:?}");
            }
            for channel in &channels {
                let (encoded, _) = channel.counts();
                let backend = channel.encoder.backend();
                assert_eq!(backend.kind(), BackendKind::QplHardware);
                let told = backend
                    .reason()
                    .map(|reason| reason.starts_with("not all of it: QPL_STS_"));
                assert!(told.unwrap_or(encoded.software == 0), "{backend}");
            }
        }
    });
}

/// Each kind of fault always: the device is no longer used, and software does everything.
#[test]
fn always_page_faults() {
    alone!("faults::always_page_faults", || {
        let fault = faulty(FaultKind::WritePageNowhere, 1, 0);
        given_up(&fault, "IAA not used for now: 32 page faults in a row");
    });
}

#[test]
fn always_other_errors() {
    alone!("faults::always_other_errors", || {
        let fault = faulty(record(0x10, 0), 1, 0);
        given_up(&fault, "IAA not used for now: 32 failures in a row");
    });
}

#[test]
fn a_device_that_stalls() {
    alone!("faults::a_device_that_stalls", || {
        let fault = faulty(record(0x0a, 19), 5, 2);
        given_up(&fault, "IAA given up: a job made no progress, again");
    });
}

#[test]
fn a_bus_that_fails() {
    alone!("faults::a_bus_that_fails", || {
        let fault = faulty(record(0x20, 0), 9, 4);
        given_up(&fault, "IAA given up: 4 failures of device or bus");
    });
}

#[test]
fn a_device_that_may_not() {
    alone!("faults::a_device_that_may_not", || {
        let fault = faulty(record(0x1d, 0), 1, 0);
        let device = device(&Machine::default());
        let mut channels = carry(&device, &fault, 1);
        let channel = channels.remove(0);
        let backend = channel.encoder.backend().to_string();
        assert!(backend.starts_with("qpl-software (no IAA: "), "{backend}");
        assert!(backend.contains("(329)"), "{backend}");
    });
}

fn given_up(fault: &Machine, reason: &str) {
    let device = device(&Machine::default());
    let channels = carry(&device, fault, 2);
    for channel in &channels {
        let backend = channel.encoder.backend();
        assert_eq!(backend.kind(), BackendKind::QplSoftware);
        assert_eq!(backend.reason(), Some(reason));
    }
    let counts = all(&channels);
    assert!(counts.software > counts.hardware, "{counts:?}");
    // New channels know it from the start.
    let before = device.counters();
    let fresh = carry(&device, fault, 1);
    assert_eq!(all(&fresh).hardware, 0);
    let after = device.counters();
    assert_eq!(
        (after.compressions, after.decompressions),
        (0, 0),
        "{before:?}"
    );
}

/// Jobs that never end: after the deadline the migration continues without the device and without
/// their memory.
#[test]
fn a_device_that_never_completes() {
    alone!("faults::a_device_that_never_completes", || {
        let started = Instant::now();
        let fault = faulty(FaultKind::Lost, 1, 0);
        given_up(&fault, "IAA given up: a job has not ended within 2 s");
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(2), "{took:?}");
        assert!(took < Duration::from_secs(15), "{took:?}");
    });
}

#[test]
fn one_job_of_many_never_completes() {
    alone!("faults::one_job_of_many_never_completes", || {
        let fault = faulty(FaultKind::Lost, 50, 1);
        let device = device(&Machine::default());
        let channels = carry(&device, &fault, 1);
        let counts = all(&channels);
        // The jobs in flight with it came back.
        assert!(counts.hardware > 0, "{counts:?}");
        for channel in &channels {
            assert_eq!(
                channel.encoder.backend().reason(),
                Some("IAA given up: a job has not ended within 2 s")
            );
        }
    });
}

/// A device that misses the deadline writes into the memory of abandoned jobs, which must still
/// exist.
#[test]
fn completions_that_come_too_late() {
    alone!("faults::completions_that_come_too_late", || {
        let device = device(&Machine::default());
        let mut channels = channels();
        let mut random = Random::new(13);
        device.configure(&Machine {
            latency: Duration::from_millis(2500),
            ..Machine::default()
        });
        for channel in &mut channels {
            channel.carry(&packet(&mut random, 3, PAGE));
        }
        drop(channels);
        // Late, and after the channels' end.
        device.configure(&Machine::default());
        let deadline = Instant::now() + Duration::from_secs(20);
        while device.counters().successes < 2 {
            assert!(Instant::now() < deadline, "{:?}", device.counters());
            std::thread::sleep(Duration::from_millis(20));
        }
        for channel in carry(&device, &Machine::default(), 1) {
            assert_eq!(channel.encoder.counts().hardware, 0);
        }
    });
}

/// Full queues: each page is tried a few times and then done in software; after a second of this
/// the device is not asked.
#[test]
fn busy_queues() {
    alone!("faults::busy_queues", || {
        let device = device(&Machine::default());
        let busy = Machine {
            busy: true,
            ..Machine::default()
        };
        let mut channels = channels();
        device.configure(&busy);
        let mut random = Random::new(12);
        let started = Instant::now();
        let reason = "IAA not used for now: its queues were full for 1 s";
        while channels[0].encoder.backend().reason() != Some(reason) {
            assert!(started.elapsed() < Duration::from_secs(30));
            for channel in &mut channels {
                channel.carry(&packet(&mut random, 20, PAGE));
            }
        }
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert_eq!(all(&channels).hardware, 0);
        // The condition ends.
        device.configure(&Machine::default());
        std::thread::sleep(Duration::from_secs(11));
        let counts = all(&carry(&device, &Machine::default(), 1));
        assert!(counts.hardware > 0, "{counts:?}");
    });
}

/// A queue with fewer entries than there are pages: a channel waits for an entry held by its own
/// jobs. But the second half of a dynamic compression may find none.
#[test]
fn a_small_queue() {
    alone!("faults::a_small_queue", || {
        let machine = Machine {
            depth: 4,
            latency: Duration::from_micros(200),
            ..Machine::default()
        };
        let device = device(&machine);
        let [fixed, dynamic, canned, fixed_zlib, dynamic_zlib] =
            carry(&device, &machine, 3).try_into().ok().unwrap();
        for channel in [fixed, canned, fixed_zlib] {
            let (encoded, _) = channel.counts();
            assert_eq!(encoded.software, 0, "{encoded:?}");
            assert_eq!(channel.encoder.backend().to_string(), "qpl-hardware");
        }
        for channel in [dynamic, dynamic_zlib] {
            let (encoded, _) = channel.counts();
            assert!(encoded.hardware > 0 && encoded.software > 0, "{encoded:?}");
            let told = "qpl-hardware (not all of it: its queues were full)";
            assert_eq!(channel.encoder.backend().to_string(), told);
        }
    });
}

/// Pages that the device refuses to decompress are refused here too, with the page's error, and do
/// not count against the device.
#[test]
fn damaged_pages_are_not_the_devices_fault() {
    alone!("faults::damaged_pages_are_not_the_devices_fault", || {
        let _device = device(&Machine::default());
        let hardware = with(Accel::QplHardware);
        let bytes = packet(&mut Random::new(4), 5, PAGE);
        let mut good = Channel::new(Method::Qpl, &hardware, &hardware);
        let payload = good.carry(&bytes).to_vec();
        let mut refused = 0;
        for round in 0..200 {
            let mut damaged = payload.clone();
            let at = 5 * 4 + (round * 31) % (payload.len() - 5 * 4);
            damaged[at] ^= 1 << (round % 8);
            let mut arrived = vec![0; bytes.len()];
            let page_size = multifd_wire::PageSize::K4;
            let mut strict = multifd_codec::decoder(Method::Qpl, &Settings::default()).unwrap();
            let expected = strict.decode(&damaged, page_size, &mut arrived);
            let mut by_device = vec![0; bytes.len()];
            let mut decoder = multifd_codec::decoder(Method::Qpl, &hardware).unwrap();
            let found = decoder.decode(&damaged, page_size, &mut by_device);
            assert_eq!(found.is_ok(), expected.is_ok(), "round {round}");
            match found {
                // Both readers agree on any result.
                Ok(()) => assert!(by_device == arrived, "round {round}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused >= 10, "{refused}");
        assert_eq!(good.encoder.backend().to_string(), "qpl-hardware");
        good.carry(&bytes);
    });
}

fn record(status: u8, error: u8) -> FaultKind {
    FaultKind::Record { status, error }
}
