//! What the engines cost.

use std::fs;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multifd_engine::dirty::{DirtyBitmap, DirtyLog, PagemapLog};
use multifd_engine::{Parameters, Statistics};
use multifd_wire::{Method, PageSize};

use testkit::engine::{MIB, Place, TestGuest, memory, migrate};
use testkit::pages::Random;

use crate::sizes;

/// A guest of which every page is there, and whose pages are all zero or all noise.
fn filled(mib: usize, noise: bool) -> TestGuest {
    let guest = TestGuest::of_untouched(memory(&[("ram", mib * MIB)]));
    let range = guest.memory.mappings()[0].1.range();
    let mut random = Random::new(1);
    let mut piece: Vec<u8> = (0..MIB).map(|_| random.byte()).collect();
    if !noise {
        piece.fill(0);
    }
    (0..mib).for_each(|at| range.write((at * MIB) as u64, &piece).unwrap());
    guest
}

/// The private memory of this process, in KiB: not the guests', which is shared.
fn private_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let words = line.unwrap().split_whitespace();
    words.filter_map(|word| word.parse().ok()).next().unwrap()
}

/// What `run` answers, and by how much private memory grew at the most.
fn with_peak<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let before = private_kib();
        let sampler = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = private_kib().max(most);
                thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let answer = run();
        over.store(true, Ordering::Relaxed);
        (answer, sampler.join().unwrap().saturating_sub(before))
    })
}

/// Scans and migrations of guests of several sizes.
pub fn cost_by_memory() {
    println!(
        "| memory | scan, nothing written | scan, all written | zero pages | peak | noise | peak |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for mib in sizes("1024,2048,4096") {
        let (clean, all) = {
            let guest = filled(mib, false);
            let range = guest.memory.mappings()[0].1.range();
            let mut log = PagemapLog::of_memory(&guest.memory).unwrap();
            log.start().unwrap();
            let mut dirty = [DirtyBitmap::new(mib * MIB, PageSize::K4)];
            let mut scan = || {
                let begun = Instant::now();
                log.fetch(&mut dirty).unwrap();
                begun.elapsed()
            };
            scan();
            let clean = scan();
            let words = (0..mib * MIB).step_by(4096);
            words.for_each(|at| range.write(at as u64, &[1; 8]).unwrap());
            (clean, scan())
        };
        let send = |noise| {
            let guest = filled(mib, noise);
            let place = Place::unix();
            let (outcome, peak) = with_peak(|| migrate(&guest, &place, &Parameters::default()));
            let statistics = outcome.source.unwrap();
            let pages = (mib * MIB / 4096) as u64;
            assert_eq!(
                if noise {
                    statistics.normal
                } else {
                    statistics.duplicate
                },
                pages
            );
            (statistics.total_time, peak)
        };
        let (zero, zero_peak) = send(false);
        let (noise, noise_peak) = send(true);
        println!(
            "| {mib} MiB | {:.1} ms | {:.1} ms | {:.0} ms | {zero_peak} KiB | {:.0} ms | {noise_peak} KiB |",
            clean.as_secs_f64() * 1e3,
            all.as_secs_f64() * 1e3,
            zero.as_secs_f64() * 1e3,
            noise.as_secs_f64() * 1e3,
        );
    }
}

/// A guest that writes this many pages per second, each time another one.
fn writing_guest(mib: usize, pages_per_second: u64) -> TestGuest {
    let mut guest = filled(mib, true);
    let mut random = Random::new(7);
    let started = Instant::now();
    let mut written = 0;
    guest.run(move |memory| {
        let due = (started.elapsed().as_secs_f64() * pages_per_second as f64) as u64;
        let range = memory.mappings()[0].1.range();
        while written < due {
            let page = random.below(range.len_bytes() / 4096);
            range
                .write(page as u64 * 4096, &random.next().to_ne_bytes())
                .unwrap();
            written += 1;
        }
        thread::sleep(Duration::from_millis(1));
    });
    guest
}

/// The downtime that comes of a limit, for several guests and links.
pub fn downtime_by_limit() {
    println!("| method | link | guest writes | downtime-limit | downtime | rounds | total |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let row = |method: Method, bytes_per_second: u64, pages: u64, limit: u64| {
        let guest = writing_guest(256, pages);
        let mut parameters = Parameters::default();
        parameters.multifd_compression = method;
        parameters.max_bandwidth = NonZeroU64::new(bytes_per_second);
        parameters.downtime_limit = Duration::from_millis(limit);
        let outcome = migrate(&guest, &Place::tcp(), &parameters);
        let link = match bytes_per_second {
            0 => "none".to_owned(),
            rate => format!("{} MB/s", rate / 1_000_000),
        };
        match outcome.source {
            Ok(Statistics {
                downtime,
                rounds,
                total_time,
                ..
            }) => println!(
                "| {method} | {link} | {pages}/s | {limit} ms | {:.1} ms | {rounds} | {:.2} s |",
                downtime.as_secs_f64() * 1e3,
                total_time.as_secs_f64()
            ),
            Err(failure) => println!(
                "| {method} | {link} | {pages}/s | {limit} ms | {} | | |",
                failure.failure.explain()
            ),
        }
    };
    for limit in [20, 100, 300, 1000] {
        for (method, rate, pages) in [
            (Method::None, 125_000_000, 10_000),
            (Method::None, 125_000_000, 25_000),
            (Method::None, 0, 50_000),
            (Method::Zlib, 0, 4_000),
            (Method::Zstd, 125_000_000, 10_000),
        ] {
            row(method, rate, pages, limit);
        }
    }
}
