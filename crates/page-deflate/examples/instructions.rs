//! Does one step of the codec over generated pages, so that its instructions can be counted: `cargo
//! xtask bench instructions` runs this under callgrind, which counts only inside [`counted`].
//!
//! Without arguments it lists the steps, the kinds of pages and the number of pages.

#![expect(clippy::expect_used, reason = "a measurement may stop at once")]

use page_deflate::{Deflater, Effort, PageDeflater, PageInflater, StreamInflater, WindowSize};
use testkit::pages::{Random, packet};

const PAGE_BYTES: usize = 4096;
/// A few blocks, and a survey before the last of them.
const PAGES: usize = 192;
const WINDOW: WindowSize = WindowSize::ThirtyTwoKiB;
const KINDS: [&str; 6] = ["mixed", "words", "objects", "records", "header", "noise"];

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [step, kind] => {
            assert!(
                has_usual_vectors(),
                "this machine has no AVX2: counts would differ"
            );
            run(step, &pages(kind));
        }
        _ => {
            for step in steps() {
                for kind in KINDS {
                    println!("{step} {kind} {PAGES}");
                }
            }
        }
    }
}

/// Counts are compared between machines, so all of them have to run the same loops. Valgrind shows
/// a program AVX2 where the processor has it, and never AVX-512.
fn has_usual_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn steps() -> Vec<String> {
    let efforts = Effort::ALL.map(|effort| format!("encode-{effort}"));
    let others = ["encode-page", "decode", "decode-page"];
    efforts
        .into_iter()
        .chain(others.map(str::to_owned))
        .collect()
}

/// Appends a part of a page.
type Piece = dyn FnMut(&mut Random, &mut Vec<u8>);

/// Pages of a kind, the same on every machine.
fn pages(kind: &str) -> Vec<u8> {
    let mut random = Random::new(31);
    let mut page = |piece: &mut Piece| {
        let mut page = Vec::with_capacity(2 * PAGE_BYTES);
        while page.len() < PAGE_BYTES {
            piece(&mut random, &mut page);
        }
        page.truncate(PAGE_BYTES);
        page
    };
    let mut number = 0;
    let mut piece: Box<Piece> = match kind {
        "mixed" => return packet(&mut Random::new(32), PAGES, PAGE_BYTES),
        "words" => Box::new(|random, page| {
            // Common words more often than others, and sometimes a number.
            let rank = random.below(80) * random.below(80) / 80;
            let letters = b"etaoinshrdlu".iter().cycle().skip(rank % 12 * 5 + rank);
            page.extend(letters.step_by(1 + rank % 7).take(2 + rank % 9));
            if rank > 60 {
                page.extend(random.below(100_000).to_string().bytes());
            }
            page.push(b' ');
        }),
        "objects" => Box::new(|random, page| {
            let heap = 0x7f3a_4000_0000;
            let rare = if random.below(4) == 0 {
                random.next()
            } else {
                0
            };
            let words = [
                heap + random.below(1 << 16) as u64 * 64,
                heap + random.below(1 << 8) as u64 * 64,
                random.below(200) as u64,
                rare,
            ];
            page.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }),
        // A log: records of some kinds and lengths, with a number that grows.
        "records" => Box::new(move |random, page| {
            number += 1 + random.below(3) as u64;
            let sort = random.below(6);
            page.extend((number * 56).to_le_bytes());
            page.extend([sort as u8, 0, 0x7f, 1, 0, 0, (random.below(9) * 4) as u8, 0]);
            page.extend((0..8 + sort * 12).map(|at| (at * sort) as u8));
            page.extend((random.next() as u32).to_le_bytes());
        }),
        "header" => Box::new(move |random, page| {
            number += 1;
            page.extend(number.to_le_bytes());
            page.extend([0, 16, 0, 0, 7, 0, 0, 0]);
            page.extend((0..PAGE_BYTES).map(|_| random.byte()));
        }),
        "noise" => Box::new(|random, page| page.push(random.byte())),
        kind => panic!("{kind} is none of {KINDS:?}"),
    };
    (0..PAGES).flat_map(|_| page(&mut *piece)).collect()
}

fn run(step: &str, pages: &[u8]) {
    let mut out = Vec::with_capacity(2 * pages.len());
    let mut arrived = vec![0; pages.len()];
    match step {
        "decode" => {
            out.extend(WINDOW.zlib_header());
            Deflater::new(WINDOW, Effort::Balanced).compress(pages, &mut out);
            let mut inflater = StreamInflater::new();
            counted(|| inflater.inflate(&out, &mut arrived)).expect("our own stream");
        }
        "encode-page" => {
            let mut deflater = PageDeflater::new(Effort::Balanced);
            counted(|| {
                for page in pages.chunks(PAGE_BYTES) {
                    if !deflater.fixed_page(page, &mut out) {
                        out.extend(page);
                    }
                }
            });
        }
        "decode-page" => {
            let mut deflater = PageDeflater::new(Effort::Balanced);
            let streams: Vec<Vec<u8>> = pages
                .chunks(PAGE_BYTES)
                .filter_map(|page| {
                    let mut out = Vec::new();
                    deflater.fixed_page(page, &mut out).then_some(out)
                })
                .collect();
            let mut inflater = PageInflater::new();
            counted(|| {
                for (stream, page) in streams.iter().zip(arrived.chunks_mut(PAGE_BYTES)) {
                    inflater.inflate(stream, page).expect("our own page");
                }
            });
        }
        step => {
            let effort = step.trim_start_matches("encode-").parse().expect("a step");
            let mut deflater = Deflater::new(WINDOW, effort);
            counted(|| deflater.compress(pages, &mut out));
        }
    }
}

/// Callgrind counts inside the function of this name.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}
