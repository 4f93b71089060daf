//! Encoders and decoders hold as much memory as documented, and allocate no more.

use page_deflate::{Deflater, Effort, PageDeflater, PageInflater, StreamInflater, WindowSize};
use testkit::allocations::{Counting, live_bytes, on_this_thread};
use testkit::pages::{Random, packet};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KIB: usize = 1024;

/// Makes a value and counts the bytes that this allocates.
fn held<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = live_bytes();
    let made = make();
    (made, live_bytes() - before)
}

#[test]
fn sizes_are_as_documented() {
    let pages = packet(&mut Random::new(1), 256, 4096);
    let mut out = Vec::with_capacity(2 * pages.len());
    let mut arrived = vec![0; pages.len()];
    for window in WindowSize::ALL {
        for effort in Effort::ALL {
            let (mut deflater, bytes) = held(|| Deflater::new(window, effort));
            assert!(bytes <= 1300 * KIB, "{effort} {window}: {bytes}");
            out.clear();
            out.extend(window.zlib_header());
            let before = on_this_thread();
            deflater.compress(&pages, &mut out);
            assert_eq!(on_this_thread(), before, "{effort} {window}");
        }
        let (mut inflater, bytes) = held(StreamInflater::new);
        assert!(bytes <= 64 * KIB, "{bytes}");
        // The tables of the fixed code belong to the process.
        inflater.inflate(&out, &mut arrived).unwrap();
        assert!(arrived == pages);
    }
    for effort in Effort::ALL {
        let (mut deflater, bytes) = held(|| PageDeflater::new(effort));
        assert!(bytes <= 128 * KIB, "{effort}: {bytes}");
        for page in pages.chunks(4096).take(9) {
            out.clear();
            if deflater.dynamic_page(page, &mut out) {
                PageInflater::new()
                    .inflate(&out, &mut arrived[..4096])
                    .unwrap();
            }
        }
    }
}
