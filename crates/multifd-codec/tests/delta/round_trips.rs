//! One channel: what arrives is what was sent.

use super::*;

/// Changes of a small guest's pages, round by round, and all that can happen to a page.
fn migrate(method: Method, page_size: PageSize, bytes: u64, seed: u64) -> Counts {
    let mut random = Random::new(seed);
    let (sent, kept) = ends(bytes);
    let (mut encoder, mut decoder) = (writer(method, &sent), reader(method, &kept));
    let size = page_size.bytes();
    let most = page_size.pages_per_packet().min(24);
    let mut guest: Vec<_> = (0..60).map(|number| page(number, size)).collect();
    let mut total = 0;
    for round in 0..40 {
        let (mut normal, mut zero, mut pages) = (vec![], vec![], vec![]);
        let first = random.below(guest.len());
        for number in 0..random.below(most + 1) {
            let number = (first + number * (1 + round % 3)) % guest.len();
            if normal.contains(&(number as u64)) || zero.contains(&(number as u64)) {
                continue;
            }
            let page = &mut guest[number];
            match random.below(20) {
                0 => page.fill(0),
                1 => *page = super::page(random.next() >> 1, size),
                2 => {}
                3 => page[random.below(size)..].fill(random.byte()),
                _ => touch(&mut random, page),
            }
            match page.iter().all(|byte| *byte == 0) {
                true => zero.push(number as u64),
                false => {
                    normal.push(number as u64);
                    pages.extend_from_slice(page);
                }
            }
        }
        total += normal.len() as u64;
        let packet = packet("pc.ram", page_size, &normal, &zero);
        let (packet, payload) = encode(&mut encoder, packet, &pages, round as u64 / 10);
        assert_eq!(payload.is_empty(), normal.is_empty());
        let arrived = decode(&mut decoder, &packet, &payload);
        assert!(
            arrived.unwrap() == pages,
            "{method}, {page_size:?}, {bytes}, {seed}"
        );
    }
    let counts = sent.counts();
    assert_eq!(whole(&counts) + counts.differences, total);
    let misses = counts.misses;
    let missed = misses.new + misses.lost + misses.changed;
    let missed = missed + misses.overtaken + misses.skipped + misses.foreign;
    assert_eq!(missed, whole(&counts));
    assert!(counts.slots_in_use <= counts.slots);
    counts
}

#[test]
fn pages_arrive_in_every_method_size_and_budget() {
    for (number, method) in METHODS.into_iter().enumerate() {
        for page_size in [
            PageSize::MIN,
            PageSize::K4,
            PageSize::new(16 << 10).unwrap(),
            PageSize::MAX,
        ] {
            for count in [0, 1, 2, 7, 30, 60, 1000] {
                let bytes = budget(count, page_size);
                let counts = migrate(method, page_size, bytes, number as u64);
                assert_eq!(
                    counts.slots,
                    if counts.slots == 0 { 0 } else { count.into() }
                );
                match count {
                    0 => assert_eq!(whole(&counts), counts.misses.foreign),
                    60.. => assert!(counts.differences > whole(&counts), "{counts:?}"),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn many_sequences_arrive() {
    for seed in 0..150 {
        let count = [1, 5, 20, 60][seed as usize % 4];
        migrate(
            Method::None,
            PageSize::K4,
            budget(count, PageSize::K4),
            seed,
        );
    }
}

/// Without a store, payloads are those of the method.
#[test]
fn without_a_store_nothing_is_different() {
    for method in METHODS {
        let settings = Settings::default();
        let mut plain = multifd_codec::Encoder::new(method, &settings).unwrap();
        let inner = multifd_codec::Encoder::new(method, &settings).unwrap();
        let mut encoder = Encoder::new(inner, None);
        assert_eq!(encoder.packet_method(), method);
        let mut decoder = Decoder::new(super::decoder(method, &settings).unwrap(), None);
        for round in 0..3 {
            let pages = [page(1, 4096), page(round, 4096)].concat();
            let (packet, payload) = encode(
                &mut encoder,
                packet("ram", PageSize::K4, &[5, 6], &[9]),
                &pages,
                0,
            );
            let mut expected = Vec::new();
            plain.push(pages.clone().into(), PageSize::K4, ());
            plain.pop(&mut expected).unwrap();
            assert_eq!(payload, expected);
            assert_eq!(decode(&mut decoder, &packet, &payload).unwrap(), pages);
        }
    }
}

/// A packet whose pages are all as they were has nothing for the method.
#[test]
fn unchanged_pages_take_a_few_bytes() {
    for method in METHODS {
        let (sent, kept) = ends(1 << 20);
        let (mut encoder, mut decoder) = (writer(method, &sent), reader(method, &kept));
        let pages: Vec<u8> = (0..128).flat_map(|number| page(number, 4096)).collect();
        let numbers: Vec<u64> = (1000..1128).collect();
        for round in 0..3 {
            let packet = packet("ram", PageSize::K4, &numbers, &[]);
            let (packet, payload) = encode(&mut encoder, packet, &pages, 0);
            assert!(decode(&mut decoder, &packet, &payload).unwrap() == pages);
            assert!(round == 0 || payload.len() <= 20, "{} bytes", payload.len());
        }
        assert_eq!(sent.counts().same, 256);
    }
}

/// Pages of another size than the first, of too many blocks, and far behind any block's end go
/// whole and are not kept.
#[test]
fn what_cannot_be_kept_goes_whole() {
    let (sent, kept) = ends(4 << 20);
    let (mut encoder, mut decoder) = (writer(Method::Zlib, &sent), reader(Method::Zlib, &kept));
    let mut send = |block: &str, page_size: PageSize, number: u64| {
        let page = page(number, page_size.bytes());
        let packet = packet(block, page_size, &[number], &[]);
        let (packet, payload) = encode(&mut encoder, packet, &page, 0);
        assert!(decode(&mut decoder, &packet, &payload).unwrap() == page);
    };
    send("first", PageSize::K4, 1);
    send("first", PageSize::MAX, 1);
    send("first", PageSize::K4, (1 << 52) - 2);
    assert_eq!(sent.counts().misses.foreign, 1);
    for number in 0..300 {
        send(&format!("block {number}"), PageSize::K4, 1);
    }
    assert_eq!(sent.counts().misses.foreign, 1 + 300 - 254);
}

/// The first round of a guest that is larger than the budget leaves the slots alone; pages that
/// come again get them.
#[test]
fn pages_that_come_again_displace_those_that_do_not() {
    let (sent, kept) = ends(budget(50, PageSize::K4));
    let (mut encoder, mut decoder) = (writer(Method::None, &sent), reader(Method::None, &kept));
    let mut random = Random::new(1);
    let mut send = |numbers: std::ops::Range<u64>| {
        let mut pages: Vec<u8> = numbers
            .clone()
            .flat_map(|number| page(number, 4096))
            .collect();
        pages
            .chunks_mut(4096)
            .for_each(|page| touch(&mut random, page));
        let numbers: Vec<u64> = numbers.collect();
        let packet = packet("ram", PageSize::K4, &numbers, &[]);
        let (packet, payload) = encode(&mut encoder, packet, &pages, 0);
        assert!(decode(&mut decoder, &packet, &payload).unwrap() == pages);
        sent.counts()
    };
    let counts = send(0..100);
    // A page may share its counters with others.
    assert!(counts.kept <= 60 && counts.misses.new >= 90, "{counts:?}");
    let counts = send(0..50);
    assert!(counts.differences >= 48, "{counts:?}");
    // The others come again, and again, and the first ones do not.
    for _ in 0..10 {
        send(50..90);
    }
    let before = sent.counts();
    let counts = send(50..90);
    assert!(counts.differences - before.differences >= 38, "{counts:?}");
}
