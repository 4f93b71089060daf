//! libqpl and one simulated device, shared by the tests of a program.

// Each test program has its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::io::Read as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use flate2::read::DeflateDecoder;
use iaa_sim::settings::Fault;
use iaa_sim::{Counters, Settings, Simulator};
use qpl_sys::{Flags, Library, Operation, Status};

use super::{HardwareJob, PATIENCE, library};

/// libqpl and the device, for one test at a time.
pub struct Bench {
    pub library: &'static Library,
    pub device: &'static Simulator,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    /// Uses a device with these settings. Returns `None`, after a report, if libqpl is missing.
    pub fn new(test: &str, settings: &Settings) -> Option<Bench> {
        static TURN: Mutex<()> = Mutex::new(());
        static DEVICE: OnceLock<Simulator> = OnceLock::new();

        let library = library(test)?;
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let healthy = Settings {
            depth: DEPTH,
            ..Settings::default()
        };
        let device = DEVICE.get_or_init(|| {
            let device = Simulator::load(&healthy).expect("Cargo builds the shared object");
            // Make libqpl open the queue now, and not in the middle of a test's counts.
            assert_eq!(super::init_status(library), Status::OK);
            device
        });
        let bench = Bench {
            library,
            device,
            _turn: turn,
        };
        // A failed test may have left descriptors in the queue.
        device.configure(&Settings::default());
        bench.wait_until_free();
        device.configure(settings);
        Some(bench)
    }

    /// On a healthy device.
    pub fn healthy(test: &str) -> Option<Bench> {
        Bench::new(test, &Settings::default())
    }

    /// On a device with this fault.
    pub fn faulty(test: &str, fault: Fault) -> Option<Bench> {
        Bench::new(test, &with_fault(fault))
    }

    /// A fresh job.
    pub fn job(&self) -> HardwareJob {
        HardwareJob::new(self.library).expect("the device was there before")
    }

    /// Waits until the device's counters reach a state.
    pub fn wait_until(&self, mut reached: impl FnMut(&Counters) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(&self.device.counters()) {
            assert!(Instant::now() < deadline, "{:?}", self.device.counters());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until others' descriptors have left the queue.
    pub fn wait_until_free(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut job = self.job();
        job.prepare_compress(Flags::NONE, &[0]);
        while job.run() == Status::QUEUES_ARE_BUSY {
            assert!(Instant::now() < deadline, "the queue stays full");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Decompresses a page.
    pub fn decompress(&self, flags: Flags, packed: &[u8]) -> (Status, Vec<u8>) {
        let mut job = self.job();
        job.prepare(Operation::DECOMPRESS, flags, packed, PAGE);
        (job.run(), job.output().to_vec())
    }
}

/// Places of the device's queue.
pub const DEPTH: u32 = 128;
/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A device that is healthy except for this fault.
pub fn with_fault(fault: Fault) -> Settings {
    Settings {
        faults: vec![fault],
        ..Settings::default()
    }
}

/// Decompresses with an inflate independent of libqpl.
pub fn inflate(packed: &[u8]) -> Vec<u8> {
    let mut unpacked = Vec::new();
    let read = DeflateDecoder::new(packed).read_to_end(&mut unpacked);
    read.expect("a deflate stream");
    unpacked
}
