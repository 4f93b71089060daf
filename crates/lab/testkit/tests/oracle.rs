//! The judge must let pass what zlib makes within the rules, and refuse what zlib refuses.

use testkit::iterations;
use testkit::oracle::{Ending, Oracle, Violation};
use testkit::pages::{Random, packet, push_page};
use testkit::zlib::{Deflate, Inflate};

const PAGE: usize = 4096;

#[test]
fn reads_what_zlib_writes() {
    let mut random = Random::new(1);
    for level in [0, 1, 6, 9] {
        let mut deflate = Deflate::new(level, -12);
        for _ in 0..60 {
            let mut page = Vec::new();
            push_page(&mut random, PAGE, &mut page);
            let mut stream = Vec::new();
            deflate.whole(&page, &mut stream);
            assert_eq!(Oracle::IAA.decode(&stream, PAGE).unwrap().output, page);
        }
    }
}

#[test]
fn reads_a_run_with_its_window_only() {
    let pages = packet(&mut Random::new(2), 40, PAGE);
    let mut run = Vec::new();
    Deflate::new(6, -15).packet(&pages, PAGE, &mut run);
    let mut inflated = vec![0; pages.len()];
    assert!(Inflate::new(-15).packet(&run, PAGE, &mut inflated));
    assert_eq!(inflated, pages);
    let decoded = Oracle::new(32 * 1024, Ending::SyncFlush)
        .decode(&run, pages.len())
        .unwrap();
    assert_eq!(decoded.output, pages);
    assert!(decoded.tokens.farthest_bytes > 4096);
    assert!(matches!(
        Oracle::new(4096, Ending::SyncFlush).decode(&run, pages.len()),
        Err(Violation::DistanceBeyondWindow { .. })
    ));
}

/// Whatever happens to a stream, both readers come to the same end, and to the same bytes where it
/// is a good one.
#[test]
fn agrees_with_zlib_on_damaged_streams() {
    let mut random = Random::new(3);
    let mut deflate = Deflate::new(6, -12);
    let mut inflate = Inflate::new(-12);
    let mut good = 0;
    for _ in 0..iterations(3000) {
        let mut page = Vec::new();
        push_page(&mut random, 512, &mut page);
        let mut stream = Vec::new();
        deflate.whole(&page, &mut stream);
        for _ in 0..1 + random.below(2) {
            let place = random.below(stream.len());
            match random.below(3) {
                0 => stream[place] ^= 1 << random.below(8),
                1 => stream[place] = random.byte(),
                _ => stream.truncate(place.max(1)),
            }
        }
        let (out, ended) = inflate.whole(&stream, 512);
        match Oracle::IAA.decode(&stream, 512) {
            Ok(decoded) => {
                assert!(ended);
                assert_eq!(decoded.output, out);
                good += 1;
            }
            Err(violation) => {
                assert!(
                    !ended || out.len() < 512,
                    "zlib reads what is refused with {violation:?}"
                );
            }
        }
    }
    assert!(good > 0);
}
