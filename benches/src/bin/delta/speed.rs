//! The speed of one core, and what incompressible pages cost.

use std::time::Duration;

use multifd_benches::PAGE_SIZE;
use multifd_codec::Settings;
use multifd_wire::Method;
use testkit::pages::Random;

use crate::sending::{self, Image, Sender, Total};

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

/// What one channel took.
struct Figures {
    /// The first round, in which nothing is there to differ from.
    first: Total,
    /// A later round: medians.
    later: Total,
}

pub fn measure() {
    println!(
        "Rounds of {PAGES} random pages, in GB/s of pages without and with differences: the first, \
         later ones with changes, and those decoded (medians of {ROUNDS}); and bytes of a later one:"
    );
    for (name, change) in CHANGES {
        for method in [Method::None, Method::Zlib, Method::Zstd] {
            let [plain, delta] = rounds(method, change);
            let both = |time: fn(&Figures) -> Duration| {
                let [plain, delta] = [&plain, &delta].map(|figures| speed(time(figures)));
                format!("{plain:>6.2} {delta:>6.2}")
            };
            let [before, after] = [plain.later.bytes, delta.later.bytes];
            println!(
                "{name:10} {method:5} first {}   later {}   decoded {}   {before:>9} {after:>9} ({:+.2} %)",
                both(|figures| figures.first.time),
                both(|figures| figures.later.time),
                both(|figures| figures.later.reading),
                (after as f64 / before as f64 - 1.0) * 100.0,
            );
        }
    }
}

fn speed(time: Duration) -> f64 {
    (PAGES * PAGE_SIZE.bytes()) as f64 / time.as_secs_f64() / 1e9
}

fn rounds(method: Method, change: Change) -> [Figures; 2] {
    let settings = Settings::default();
    let budget = (PAGES as u64 + 100) * (PAGE_SIZE.bytes() as u64 + 64);
    let mut random = Random::new(1);
    let mut image: Image = vec![0; PAGES * PAGE_SIZE.bytes()];
    fill(&mut random, &mut image);
    let mut senders = [None, Some(budget)].map(|budget| Sender::new(method, &settings, budget));
    let mut figures = sending::round(&image, &mut senders, 0).map(|first| Figures {
        first,
        later: Total::default(),
    });
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let pages = image.chunks_mut(PAGE_SIZE.bytes());
        pages.for_each(|page| change(&mut random, page));
        rounds.push(sending::round(&image, &mut senders, round as u64));
    }
    for (index, figures) in figures.iter_mut().enumerate() {
        let median = |of: fn(&Total) -> Duration| {
            let mut all: Vec<_> = rounds.iter().map(|round| of(&round[index])).collect();
            all.sort_unstable();
            all[ROUNDS / 2]
        };
        figures.later = rounds[ROUNDS - 1][index];
        figures.later.time = median(|total| total.time);
        figures.later.reading = median(|total| total.reading);
    }
    figures
}
