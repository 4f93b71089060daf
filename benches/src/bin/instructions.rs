//! One step of the deflate codec, over and over its made-up pages, to have its instructions
//! counted: `cargo xtask bench instructions` runs this under callgrind, which counts inside
//! [`counted`] only.

use multifd_benches::corpora;
use page_deflate::{Deflater, Effort, PageDeflater, PageInflater, StreamInflater, WindowSize};

const PAGE_BYTES: usize = multifd_benches::PAGE_SIZE.bytes();
const WINDOW: WindowSize = WindowSize::ThirtyTwoKiB;

fn main() {
    let mut words = std::env::args().skip(1);
    let (Some(step), Some(kind), None) = (words.next(), words.next(), words.next()) else {
        for step in steps() {
            for corpus in corpora() {
                println!("{step} {} {}", corpus.name, corpus.bytes.len() / PAGE_BYTES);
            }
        }
        return;
    };
    let pages = corpora().into_iter().find(|corpus| corpus.name == kind);
    run(&step, &pages.expect("a kind of pages").bytes);
}

fn steps() -> Vec<String> {
    let efforts = Effort::ALL.map(|effort| format!("encode-{effort}"));
    let others = ["encode-page", "decode", "decode-page"];
    efforts
        .into_iter()
        .chain(others.map(str::to_owned))
        .collect()
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

/// Its name tells callgrind when to count.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}
