//! What both ends hold and allocate.

use testkit::allocations::{measure, on_this_thread};

use super::*;

/// A round of 128 pages, changed in a few places.
fn change(random: &mut Random, pages: &mut [u8]) {
    pages.chunks_mut(4096).for_each(|page| touch(random, page));
}

#[test]
fn a_channel_allocates_nothing_after_its_first_packets() {
    for method in [Method::None, Method::Zlib, Method::Qpl] {
        let (sent, kept) = ends(2 << 20);
        let (mut encoder, mut decoder) = (writer(method, &sent), reader(method, &kept));
        let mut random = Random::new(1);
        let mut content: Vec<u8> = (0..128).flat_map(|number| page(number, 4096)).collect();
        let numbers: Vec<u64> = (0..128).collect();
        let mut packet = packet("ram", PageSize::K4, &numbers, &[]);
        let (mut pages, mut arrived) = (PageBuffer::default(), PageBuffer::default());
        let mut payload = Vec::with_capacity(1 << 20);
        let mut before = 0;
        for round in 0..40 {
            if round == 20 {
                before = on_this_thread();
            }
            match round % 5 {
                // Then the payload is long.
                4 => content.iter_mut().for_each(|byte| *byte = random.byte()),
                _ => change(&mut random, &mut content),
            }
            pages.space(content.len()).copy_from_slice(&content);
            encoder.push(pages, 0, packet);
            (pages, packet) = encoder.pop(&mut payload).unwrap().unwrap();
            arrived.space(content.len());
            let outcome = decoder.decode(&mut payload, &packet, &mut arrived, &|| false);
            outcome.unwrap();
            assert!(arrived.as_ref() == content);
        }
        assert_eq!(on_this_thread() - before, 0, "{method}");
    }
}

/// Both ends fill their slots, with pages in no order, and neither has more than its share.
#[test]
fn neither_end_has_more_than_its_share() {
    for page_size in [PageSize::MIN, PageSize::K4, PageSize::MAX] {
        let bytes = 12_345_678;
        let share = || Share::take(bytes);
        let size = page_size.bytes();
        let numbers = |packet: u64| -> Vec<u64> {
            let most = page_size.pages_per_packet() as u64;
            (0..most)
                .map(|page| (packet * most + page) * 77 % 100_003)
                .collect()
        };
        let (mut sent, mut kept) = (None, None);
        let mut payloads = Vec::new();
        let (most, _) = measure(|| {
            let store = Arc::new(Sent::new(share()));
            let mut encoder = writer(Method::None, &store);
            let mut payload = Vec::with_capacity(1 << 20);
            let mut pages = PageBuffer::default();
            for number in 0..40 {
                let packet = packet("ram", page_size, &numbers(number % 35), &[]);
                let len = packet.normal().len() * size;
                pages.space(len).fill(number as u8);
                encoder.push(pages, 0, packet);
                pages = encoder.pop(&mut payload).unwrap().unwrap().0;
            }
            sent = Some(store);
        });
        // Buffers of one packet, and the payload.
        let buffers = 3 << 20;
        assert!(
            most as u64 <= bytes + buffers,
            "{page_size:?}: {most} bytes"
        );
        let sent = sent.unwrap();
        assert_eq!(sent.counts().slots_in_use, sent.counts().slots);

        let sent = Arc::new(Sent::new(share()));
        let mut encoder = writer(Method::None, &sent);
        for number in 0..30 {
            let packet = packet("ram", page_size, &numbers(number), &[]);
            let pages = vec![number as u8; packet.normal().len() * size];
            payloads.push(encode(&mut encoder, packet, &pages, 0));
        }
        let (most, _) = measure(|| {
            let store = Arc::new(Kept::new(share()));
            let mut decoder = reader(Method::None, &store);
            for (packet, payload) in &payloads {
                decode(&mut decoder, packet, payload).unwrap();
            }
            kept = Some(store);
        });
        assert!(
            most as u64 <= bytes + buffers,
            "{page_size:?}: {most} bytes"
        );
    }
}

/// Slots take memory once they are used.
#[test]
fn empty_slots_take_no_memory() {
    let (_, kept) = ends(256 << 20);
    let (sent, _) = ends(64 << 10);
    let packet = packet("ram", PageSize::K4, &[3], &[]);
    let (packet, payload) = encode(&mut writer(Method::None, &sent), packet, &page(1, 4096), 0);
    let (most, _) = measure(|| {
        decode(&mut reader(Method::None, &kept), &packet, &payload).unwrap();
    });
    assert!(most < 2 << 20, "{most} bytes");
}
