//! A peer's numbers never size an allocation: the machines stay small for any stream.

use multifd_wire::main_stream::MainReceiver;
use multifd_wire::return_path::ReturnPathReceiver;
use multifd_wire::{ChannelReceiver, Event, Limits, Packet, lengths};
use testkit::allocations::{Counting, measure};
use testkit::wire::{pieces, vector};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The limit of a single allocation: the longest table, or the list of blocks actually received.
const LARGEST_ALLOCATION: usize = 16 << 10;
/// The limit in total: one table being gathered, one in a packet just returned, and a margin.
const MOST_ALLOCATED: usize = 24 << 10;

fn assert_bounded(what: &str, run: impl FnOnce()) {
    let (most, largest) = measure(run);
    assert!(most <= MOST_ALLOCATED, "{what}: {most} bytes at a time");
    assert!(
        largest <= LARGEST_ALLOCATION,
        "{what}: {largest} bytes in one piece"
    );
}

#[test]
fn the_count_counts() {
    let (most, largest) = measure(|| drop(vec![0_u8; 100_000]));
    assert_eq!((most, largest), (100_000, 100_000));
}

#[test]
fn channels() {
    // Each number of a packet at its maximum, alone and all together.
    let fields = [12..16, 16..20, 20..24, 24..32, 32..36];
    let files = [
        "ram-none.txt",
        "sync-9.0.txt",
        "sync-data-8.2.txt",
        "ram-64k.txt",
        "device-state.txt",
    ];
    for file in files {
        let mut lies = vec![vector(file)];
        for field in fields.clone() {
            let mut lie = vector(file);
            lie[field].fill(0xff);
            lies.push(lie);
        }
        let mut lie = vector(file);
        lie[12..36].fill(0xff);
        lies.push(lie);
        let mut lie = vector(file);
        lie[272..276].fill(0xff);
        lies.push(lie);
        for lie in lies {
            let stream = [vector("hello.txt"), lie, vec![0; 100_000]].concat();
            for cut in [1, 100, 100_000] {
                assert_bounded(file, || channel(&stream, cut));
            }
        }
    }
}

#[test]
fn main_streams() {
    for file in ["main-10.0.txt", "main-7.2.txt"] {
        let stream = vector(file);
        for cut in [1, 100, usize::MAX] {
            assert_bounded(file, || main_stream(&stream, cut));
        }
        // Every four bytes at their maximum, including all lengths and counts of the stream.
        for at in 8..stream.len() - 4 {
            let mut lie = stream.clone();
            lie[at..at + 4].fill(0xff);
            lie.extend([0x7e; 10_000]);
            assert_bounded(file, || main_stream(&lie, 1000));
        }
    }
}

#[test]
fn return_paths() {
    let stream = vector("return-path.txt");
    for at in 0..stream.len() - 2 {
        let mut lie = stream.clone();
        lie[at..at + 2].fill(0xff);
        lie.extend([0; 100_000]);
        assert_bounded("return path", || {
            let mut receiver = ReturnPathReceiver::new();
            for mut piece in pieces(&lie, &[1000]) {
                while let Ok(Some(_)) = receiver.push(&mut piece) {}
            }
        });
    }
}

#[test]
fn length_tables() {
    let payload = vector("qpl-payload.txt");
    assert_bounded("length table", || {
        for pages in [0, 3, 1000, usize::MAX] {
            if let Ok(pages) = lengths::parse(&payload, pages, multifd_wire::PageSize::K4) {
                assert_eq!(pages.count(), 3);
            }
        }
    });
}

fn channel(stream: &[u8], cut: usize) {
    let mut receiver = ChannelReceiver::new(Limits::default());
    for mut piece in pieces(stream, &[cut]) {
        while let Ok(Some(event)) = receiver.push(&mut piece) {
            if let Event::Packet(Packet::Ram(packet)) = event {
                assert!(packet.normal().len() + packet.zero().len() <= 512);
            }
        }
    }
}

fn main_stream(stream: &[u8], cut: usize) {
    let mut receiver = MainReceiver::new(Limits::default());
    for mut piece in pieces(stream, &[cut]) {
        while let Ok(Some(_)) = receiver.push(&mut piece) {}
    }
}
