//! Pages that are each made from another by a few changes, through every encoder and past every
//! reader. By default there are a few thousand of them; for a long run say how many:
//!
//! `MULTIFD_PAGES=10000000 cargo test --release -p page-deflate --test deflate -- --nocapture
//! long`

use std::thread;
use std::time::Instant;

use page_deflate::{
    Deflater, Effort, Histogram, PageDeflater, PageInflater, SharedCode, SharedInflater,
    StreamInflater, WindowSize,
};
use testkit::oracle::Oracle;
use testkit::pages::{Random, push_page};
use testkit::zlib::Inflate;

const PAGE: usize = 4096;
/// As many as take a second or two.
const PAGES: usize = 5000;

#[test]
fn pages_that_are_changed_a_little() {
    let wanted = match std::env::var("MULTIFD_PAGES") {
        Ok(pages) => pages.parse().expect("a number of pages"),
        Err(_) => PAGES,
    };
    let begun = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let pages: usize = thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(thread as u64, wanted.div_ceil(threads))))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    println!("{pages} pages in {:.0?}", begun.elapsed());
    assert!(pages >= wanted);
}

/// One channel of each kind.
struct Channel {
    window: WindowSize,
    deflater: Deflater,
    zlib: Inflate,
    own: StreamInflater,
    is_started: bool,
}

fn channels() -> Vec<Channel> {
    let mut all = Vec::new();
    for window in WindowSize::ALL {
        for effort in Effort::ALL {
            all.push(Channel {
                window,
                deflater: Deflater::new(window, effort),
                zlib: Inflate::new(15),
                own: StreamInflater::new(),
                is_started: false,
            });
        }
    }
    all
}

/// Sends at least so many pages in packets of random size, each over a random channel; how many
/// they were.
fn run(seed: u64, least: usize) -> usize {
    let mut random = Random::new(1000 + seed);
    let mut memory = Vec::new();
    for _ in 0..256 {
        push_page(&mut random, PAGE, &mut memory);
    }
    let mut channels = channels();
    let mut alone = Alone::new(&memory);
    let (mut payload, mut arrived) = (Vec::new(), Vec::new());
    let mut sent = 0;
    while sent < least {
        // Now and then a channel is closed, and another opened.
        if random.below(5000) == 0 {
            channels = self::channels();
        }
        let count = 1 + random.below(128);
        let start = random.below(256 - count) * PAGE;
        let pages = start..start + count * PAGE;
        for page in memory[pages.clone()].chunks_mut(PAGE) {
            change(&mut random, page);
        }
        let pages = &memory[pages];
        let which = random.below(channels.len());
        let channel = &mut channels[which];
        payload.clear();
        if !std::mem::replace(&mut channel.is_started, true) {
            payload.extend(channel.window.zlib_header());
        }
        channel.deflater.compress(pages, &mut payload);
        arrived.clear();
        arrived.resize(pages.len(), 0xaa);
        assert!(channel.zlib.packet(&payload, PAGE, &mut arrived));
        assert!(arrived == pages);
        arrived.fill(0xaa);
        assert_eq!(channel.own.inflate(&payload, &mut arrived), Ok(()));
        assert!(arrived == pages);
        alone.check(&mut random, &pages[..PAGE]);
        sent += count;
    }
    sent
}

/// Changes a page a little, or a lot, or makes another of it.
fn change(random: &mut Random, page: &mut [u8]) {
    match random.below(16) {
        0 => {
            let mut new = Vec::with_capacity(PAGE);
            push_page(random, PAGE, &mut new);
            page.copy_from_slice(&new);
        }
        1 | 2 => {
            let (from, len) = (random.below(PAGE), random.below(600));
            let end = PAGE.min(from + len);
            page.copy_within(from..end, random.below(PAGE - (end - from)));
        }
        3 => {
            let (from, len) = (random.below(PAGE), random.below(600));
            page[from..PAGE.min(from + len)].fill_with(|| random.byte());
        }
        4 => page.rotate_left(1 + random.below(8)),
        _ => {
            for _ in 0..1 + random.below(12) {
                page[random.below(PAGE)] = random.byte();
            }
        }
    }
}

/// Pages by themselves.
struct Alone {
    deflaters: [PageDeflater; 3],
    inflater: PageInflater,
    code: SharedCode,
    shared: SharedInflater,
}

impl Alone {
    fn new(sample: &[u8]) -> Self {
        let mut deflaters = Effort::ALL.map(PageDeflater::new);
        let mut histogram = Histogram::new();
        for page in sample.chunks(PAGE) {
            deflaters[1].count(page, &mut histogram);
        }
        let lengths = histogram.code_lengths();
        Self {
            deflaters,
            inflater: PageInflater::new(),
            code: SharedCode::new(&lengths),
            shared: SharedInflater::new(&lengths),
        }
    }

    fn check(&mut self, random: &mut Random, page: &[u8]) {
        let deflater = &mut self.deflaters[random.below(3)];
        let mut out = Vec::new();
        let mut arrived = vec![0xaa; PAGE];
        for is_fixed in [true, false] {
            out.clear();
            let is_smaller = if is_fixed {
                deflater.fixed_page(page, &mut out)
            } else {
                deflater.dynamic_page(page, &mut out)
            };
            if is_smaller {
                assert!(Oracle::IAA.decode(&out, PAGE).unwrap().output == page);
                assert_eq!(self.inflater.inflate(&out, &mut arrived), Ok(()));
                assert!(arrived == page);
            }
        }
        out.clear();
        if deflater.body(page, &self.code, &mut out) {
            assert_eq!(self.shared.inflate(&out, &mut arrived), Ok(()));
            assert!(arrived == page);
        }
    }
}
