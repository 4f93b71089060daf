//! Several channels: packets overtake one another, and everything arrives.

use std::sync::Barrier;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::*;

/// What is on its way in a channel.
enum Item {
    Packet(Box<RamPacket>, Vec<u8>, Vec<u8>),
    Sync,
    End,
}

const PACKETS: usize = 150;

/// Sends packets of pages that all channels share, with a SYNC now and then; all channels have the
/// same number of them.
fn send(mut encoder: Encoder, seed: u64, to: &SyncSender<Item>) {
    let mut random = Random::new(seed);
    let mut epoch = 0;
    for number in 0..PACKETS {
        if number % 25 == 24 {
            epoch += 1;
            to.send(Item::Sync).unwrap();
        }
        let (first, step) = (random.below(64) as u64, 1 + random.below(3) as u64);
        let count = 1 + random.below(20) as u64;
        let mut numbers: Vec<u64> = (0..count).map(|at| (first + at * step) % 64).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut zero = vec![];
        if random.below(3) == 0 {
            zero.extend(numbers.pop());
        }
        let mut pages = Vec::new();
        for &number in &numbers {
            let mut page = page(number, 4096);
            match random.below(16) {
                0 => page.fill(random.byte()),
                _ => touch(&mut random, &mut page),
            }
            pages.extend(page);
        }
        let packet = packet("ram", PageSize::K4, &numbers, &zero);
        let (packet, payload) = encode(&mut encoder, packet, &pages, epoch);
        if random.below(10) == 0 {
            thread::sleep(Duration::from_micros(random.below(3000) as u64));
        }
        let packet = Box::new(packet);
        to.send(Item::Packet(packet, payload, pages)).unwrap();
    }
    to.send(Item::End).unwrap();
}

/// Reads a channel as a destination QEMU does: nothing after a SYNC before all have theirs.
fn receive(mut decoder: Decoder, seed: u64, from: &Receiver<Item>, all: &Barrier) {
    let mut random = Random::new(seed);
    while let Ok(item) = from.recv() {
        if random.below(10) == 0 {
            thread::sleep(Duration::from_micros(random.below(3000) as u64));
        }
        match item {
            Item::Packet(packet, payload, pages) => {
                assert!(decode(&mut decoder, &packet, &payload).unwrap() == pages);
            }
            Item::Sync => {
                all.wait();
            }
            Item::End => return,
        }
    }
}

fn migrate(channels: usize, slots: u32, queue: usize, seed: u64) -> (Counts, u64) {
    let bytes = budget(slots, PageSize::K4);
    let sent = Arc::new(Sent::new(Share::take(bytes)));
    // A fault is better than a test without end.
    let kept = Kept::new(Share::take(bytes)).with_patience(Duration::from_secs(20));
    let kept = Arc::new(kept);
    let all = Barrier::new(channels);
    thread::scope(|threads| {
        for channel in 0..channels {
            let seed = seed * 1000 + channel as u64;
            let (to, from) = sync_channel(queue);
            let method = METHODS[(seed as usize + channel) % METHODS.len()];
            let encoder = writer(method, &sent);
            let decoder = reader(method, &kept);
            let all = &all;
            threads.spawn(move || send(encoder, seed, &to));
            threads.spawn(move || receive(decoder, seed, &from, all));
        }
    });
    (sent.counts(), kept.counts().waits)
}

#[test]
fn channels_wait_for_one_another_and_never_for_ever() {
    let (mut waits, mut overtaken) = (0, 0);
    for (seed, channels) in [1, 2, 3, 4, 8, 8, 5, 2].into_iter().enumerate() {
        for slots in [1, 9, 40, 64] {
            let queue = seed % 3;
            let (counts, waited) = migrate(channels, slots, queue, seed as u64);
            assert!(counts.differences > 0 || slots < 40, "{slots}: {counts:?}");
            waits += waited;
            overtaken += counts.misses.overtaken;
        }
    }
    assert!(
        waits > 0 && overtaken > 0,
        "{waits} waits, {overtaken} overtaken"
    );
}

/// Two channels, whose packets arrive in the other order.
#[test]
fn a_packet_waits_for_the_one_before() {
    let (sent, kept) = ends(1 << 20);
    let [mut first, mut second] = [(); 2].map(|()| writer(Method::Zlib, &sent));
    let [mut first_there, mut second_there] = [(); 2].map(|()| reader(Method::Zlib, &kept));
    let old = page(1, 4096);
    let mut new = old.clone();
    new[77] ^= 1;
    let packet = packet("ram", PageSize::K4, &[3], &[]);
    let (header, kept_first) = encode(&mut first, packet.clone(), &old, 0);
    let (_, difference) = encode(&mut second, packet.clone(), &new, 0);
    thread::scope(|threads| {
        let early = threads.spawn(|| decode(&mut second_there, &header, &difference).unwrap());
        thread::sleep(Duration::from_millis(20));
        assert!(!early.is_finished());
        assert!(decode(&mut first_there, &header, &kept_first).unwrap() == old);
        assert!(early.join().unwrap() == new);
    });
    assert_eq!((kept.counts().waits, kept.counts().operations), (1, 2));
}

#[test]
fn a_wait_ends() {
    let (sent, _) = ends(1 << 20);
    let mut encoder = writer(Method::Zlib, &sent);
    let packet = packet("ram", PageSize::K4, &[3], &[]);
    let mut later = writer(Method::Zlib, &sent);
    encode(&mut encoder, packet.clone(), &page(1, 4096), 0);
    let (packet, payload) = encode(&mut later, packet, &page(1, 4096), 0);

    let kept = Kept::new(Share::take(1 << 20)).with_patience(Duration::from_millis(120));
    let kept = Arc::new(kept);
    let mut decoder = reader(Method::Zlib, &kept);
    let error = decode(&mut decoder, &packet, &payload).unwrap_err();
    assert_eq!(
        error.to_string(),
        "slot 0 has version 0, and version 1 did not come in time"
    );
    let error = decode(&mut decoder, &packet, &payload).unwrap_err();
    assert_eq!(error.to_string(), POISONED);

    let (_, kept) = ends(1 << 20);
    let mut decoder = reader(Method::Zlib, &kept);
    let mut pages = PageBuffer::from(vec![0; 4096]);
    let outcome = decoder.decode(&mut payload.clone(), &packet, &mut pages, &|| true);
    assert_eq!(
        outcome.unwrap_err().to_string(),
        "the wait for version 1 of slot 0 was given up at version 0"
    );
}

/// A packet after fewer SYNCs than an operation on its slot is passed.
#[test]
fn a_packet_of_an_earlier_epoch_leaves_the_slot_alone() {
    let (sent, kept) = ends(1 << 20);
    let [mut ahead, mut behind] = [(); 2].map(|()| writer(Method::Zlib, &sent));
    let [mut ahead_there, mut behind_there] = [(); 2].map(|()| reader(Method::Zlib, &kept));
    let packet = packet("ram", PageSize::K4, &[3], &[]);
    let (header, first) = encode(&mut ahead, packet.clone(), &page(1, 4096), 1);
    let (_, second) = encode(&mut behind, packet.clone(), &page(1, 4096), 0);
    let (_, third) = encode(&mut behind, packet.clone(), &page(1, 4096), 1);
    assert_eq!(sent.counts().misses.overtaken, 1);
    assert_eq!(sent.counts().differences, 1);
    decode(&mut behind_there, &header, &second).unwrap();
    decode(&mut ahead_there, &header, &first).unwrap();
    decode(&mut behind_there, &header, &third).unwrap();
}
