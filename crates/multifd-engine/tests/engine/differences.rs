//! Pages that are sent again as differences to what the destination has.

use std::num::{NonZeroU8, NonZeroU64};

use multifd_engine::dirty::{DirtyBitmap, DirtyLog, DirtyLogError, PagemapLog};
use multifd_engine::{Parameters, ZeroPageDetection};
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use multifd_wire::{Method, PageSize};

use testkit::engine::{
    MIB, Outcome, Place, TestGuest, assert_equal, memory, migrate_with, migrates_whole,
};
use testkit::pages::Random;

const PAGE: u64 = 4096;
const PAGES: u64 = 512;

/// A log that makes the guest's writes itself, so that each round has the ones of its script.
struct Scripted<'a> {
    log: PagemapLog,
    guest: &'a TestGuest,
    random: Random,
    rounds: u32,
}

impl Scripted<'_> {
    fn write(&mut self) {
        let range = self.guest.memory.mappings()[0].1.range();
        let random = &mut self.random;
        for _ in 0..PAGES / 2 {
            let offset = random.below(PAGES as usize) as u64 * PAGE;
            match random.below(16) {
                0 => range.clear(offset, PAGE as usize).unwrap(),
                1 => {
                    let page: Vec<u8> = (0..PAGE).map(|_| random.byte()).collect();
                    range.write(offset, &page).unwrap();
                }
                _ => {
                    let word = random.below(512) as u64 * 8;
                    let bytes = random.next().to_ne_bytes();
                    range.write(offset + word, &bytes).unwrap();
                }
            }
        }
    }
}

impl DirtyLog for Scripted<'_> {
    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.log.start()
    }

    fn fetch(&mut self, dirty: &mut [DirtyBitmap]) -> Result<(), DirtyLogError> {
        if self.rounds > 0 {
            self.rounds -= 1;
            self.write();
        }
        self.log.fetch(dirty)
    }

    fn stop(&mut self) {
        self.log.stop();
    }
}

/// Moves a guest that is written in five rounds and the last one.
fn moved(parameters: &Parameters, seed: u64) -> Outcome {
    let guest = TestGuest::of(memory(&[("ram", (PAGES * PAGE) as usize), ("rom", MIB)]));
    let mut log = Scripted {
        log: PagemapLog::of_memory(&guest.memory).unwrap(),
        guest: &guest,
        random: Random::new(seed),
        rounds: 6,
    };
    let mut parameters = parameters.clone();
    // It stops once nothing is left.
    parameters.downtime_limit = std::time::Duration::ZERO;
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let (cancel, none) = (Cancel::new(), &mut |_: &_| {});
    let outcome = migrate_with(&guest, &mut acceptor, &parameters, &mut log, &cancel, none);
    if let Ok(received) = &outcome.destination {
        assert_equal(&guest.memory, &received.memory);
    }
    outcome
}

fn parameters(delta_memory: u64) -> Parameters {
    let mut parameters = Parameters::default();
    parameters.delta_memory = delta_memory;
    parameters.digest = true;
    parameters
}

#[test]
fn rounds_go_as_differences_in_every_method_and_budget() {
    let methods = [
        Method::None,
        Method::Zlib,
        Method::Zstd,
        Method::Qpl,
        Method::Canned,
    ];
    for (seed, method) in (1..).zip(methods) {
        // All pages of the guest, some, a single one.
        for bytes in [16 << 20, 1 << 20, 5000] {
            let mut parameters = parameters(bytes);
            parameters.multifd_compression = method;
            parameters.multifd_channels = NonZeroU8::new(1 + seed as u8 % 4).unwrap();
            parameters.zero_page_detection = ZeroPageDetection::ALL[seed as usize % 3];
            if multifd_codec::encoder(method, &parameters.codec).is_err() {
                parameters.codec.accel = multifd_codec::Accel::Software;
            }
            let statistics = moved(&parameters, seed).source.unwrap();
            let counts = statistics.differences.unwrap();
            assert!(statistics.rounds > 6);
            assert_eq!(counts.slots > 1, bytes > 5000);
            assert_eq!(
                counts.kept + counts.passed + counts.differences,
                statistics.normal,
                "{counts:?}"
            );
            if bytes == 16 << 20 {
                // Fourteen of sixteen writes are small ones.
                let again = statistics.normal - counts.misses.new;
                assert!(counts.differences > again / 2, "{method}: {counts:?}");
            }
        }
    }
}

#[test]
fn differences_are_off_unless_there_is_memory_for_them() {
    assert_eq!(Parameters::default().delta_memory, 0);
    let statistics = moved(&parameters(0), 9).source.unwrap();
    assert_eq!(statistics.differences, None);
}

#[test]
fn fewer_bytes_are_sent_with_them() {
    let bytes = |delta_memory| {
        let outcome = moved(&parameters(delta_memory), 5);
        outcome.source.unwrap().transferred
    };
    let (with, without) = (bytes(16 << 20), bytes(0));
    // All pages are sent once in both.
    assert!(with < without * 3 / 4, "{with} of {without} bytes");
}

#[test]
fn a_guest_that_writes_all_the_time_arrives_whole() {
    for page_bytes in [4 << 10, 64 << 10] {
        let mut parameters = parameters(64 << 20);
        parameters.page_size = PageSize::new(page_bytes).unwrap();
        parameters.multifd_compression = Method::Zstd;
        parameters.max_bandwidth = NonZeroU64::new(400 << 20);
        migrates_whole(&Place::tcp(), 16 * MIB, &parameters);
    }
    // Efforts that are found out, packet by packet.
    let mut parameters = parameters(8 << 20);
    parameters.multifd_compression = Method::Zlib;
    parameters.codec.accel = multifd_codec::Accel::Software;
    parameters.auto = true;
    migrates_whole(&Place::unix(), 16 * MIB, &parameters);
}
