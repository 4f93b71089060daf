//! The speed of one core, and what incompressible pages cost.

use std::time::Duration;

use multifd_benches::PAGE_SIZE;
use multifd_codec::Settings;
use multifd_wire::Method;
use testkit::pages::Random;

use crate::sending::{Image, Sender, Total};

/// More than a processor's cache.
const PAGES: usize = 32 << 8;
const ROUNDS: usize = 9;

/// How a page is changed.
type Change = fn(&mut Random, &mut [u8]);

const CHANGES: [(&str, Change); 4] = [
    ("unchanged", |_, _| {}),
    ("8 bytes", |random, page| {
        let start = random.below(page.len() / 8) * 8;
        let word = random.next().to_le_bytes();
        page.iter_mut()
            .skip(start)
            .zip(word)
            .for_each(|(to, from)| *to = from);
    }),
    ("half", |random, page| {
        let half = page.len() / 2;
        fill(random, &mut page[..half]);
    }),
    ("random", fill),
];

fn fill(random: &mut Random, bytes: &mut [u8]) {
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next().to_le_bytes();
    }
}

pub fn measure() {
    println!("Rounds of {PAGES} random pages, changed, in one channel (medians of {ROUNDS}):");
    for (name, change) in CHANGES {
        for method in [Method::None, Method::Zstd] {
            let [plain, delta] = rounds(method, change);
            let speed =
                |total: Total| (PAGES * PAGE_SIZE.bytes()) as f64 / total.time.as_secs_f64() / 1e9;
            println!(
                "{name:10} {method:5} plain {:>6.2} GB/s {:>11} bytes; with differences {:>6.2} GB/s {:>11} bytes ({:+.2} %)",
                speed(plain),
                plain.bytes,
                speed(delta),
                delta.bytes,
                (delta.bytes as f64 / plain.bytes as f64 - 1.0) * 100.0,
            );
        }
    }
}

fn rounds(method: Method, change: Change) -> [Total; 2] {
    let settings = Settings::default();
    let budget = (PAGES as u64 + 100) * (PAGE_SIZE.bytes() as u64 + 64);
    let mut random = Random::new(1);
    let mut image: Image = vec![0; PAGES * PAGE_SIZE.bytes()];
    fill(&mut random, &mut image);
    let mut senders = [None, Some(budget)].map(|budget| Sender::new(method, &settings, budget));
    let mut times = [[Duration::ZERO; ROUNDS]; 2];
    let mut last = [Total::default(); 2];
    for round in 0..=ROUNDS {
        let totals = crate::sending::round(&image, &mut senders, round as u64);
        if let Some(index) = round.checked_sub(1) {
            for (times, total) in times.iter_mut().zip(&totals) {
                times[index] = total.time;
            }
            last = totals;
        }
        image
            .chunks_mut(PAGE_SIZE.bytes())
            .for_each(|page| change(&mut random, page));
    }
    for (total, times) in last.iter_mut().zip(&mut times) {
        times.sort_unstable();
        total.time = times[ROUNDS / 2];
    }
    last
}
