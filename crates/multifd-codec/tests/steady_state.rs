//! A channel that has carried a few packets allocates nothing for the packets that follow.
//!
//! Counted is what goes through Rust's allocator, which includes zlib-rs. libzstd has an allocator
//! of its own.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use multifd_codec::{
    Accel, Effort, Encoder, GuestPage, PageBuffer, Pages, Settings, Streams, decoder,
};
use multifd_wire::{Method, PageSize};
use testkit::allocations::{Counting, on_this_thread};
use testkit::libqpl;
use testkit::pages::{Random, packet};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn carries_without_allocating(method: Method, settings: Settings) {
    let late = late_allocations(method, settings, 20);
    assert_eq!(late, (0, 0), "one by one, and several at a time");
}

/// What this thread has allocated in as many packets one by one, and in as many turns of packets in
/// work at the same time, each behind the first ones.
fn late_allocations(method: Method, settings: Settings, rounds: usize) -> (usize, usize) {
    let page_size = PageSize::K4;
    let count = page_size.pages_per_packet();
    let mut random = Random::new(1);
    let packets: Vec<Vec<u8>> = (0..4)
        .map(|_| packet(&mut random, count, page_size.bytes()))
        .collect();
    let guest: Vec<AtomicU64> = packets[0]
        .as_chunks()
        .0
        .iter()
        .map(|word| AtomicU64::new(u64::from_ne_bytes(*word)))
        .collect();
    let handles: Vec<GuestPage<'_>> = guest
        .chunks(page_size.bytes() / 8)
        .map(|page| {
            // SAFETY: a page of atomics which outlives the handle.
            unsafe { GuestPage::new(NonNull::from(page).cast(), page_size) }
        })
        .collect();
    let mut encoder = Encoder::new(method, &settings).unwrap();
    let mut decoder = decoder(method, &settings).unwrap();
    let mut payload = Vec::new();
    let mut arrived = PageBuffer::from(vec![0; page_size.bytes() * count]);
    let mut late = (0, 0);
    for round in 0..rounds {
        let before = on_this_thread();
        let pages = if round % 2 == 0 {
            Pages::guest(&handles, page_size).unwrap()
        } else {
            Pages::private(&packets[round % packets.len()], page_size).unwrap()
        };
        encoder.encode(&pages, &mut payload).unwrap();
        decoder
            .decode_owned(&mut payload, page_size, &mut arrived)
            .unwrap();
        if round >= 4 {
            late.0 += on_this_thread() - before;
        }
    }
    let mut idle: VecDeque<PageBuffer> = packets.into_iter().map(PageBuffer::from).collect();
    for round in 0..rounds {
        let before = on_this_thread();
        // Now one packet, as after a pause, now more than are in work at once.
        let mut left = 1 + round % 2 * 8;
        loop {
            while left > 0
                && encoder.room() > 0
                && let Some(pages) = idle.pop_front()
            {
                encoder.push(pages, page_size, ());
                left -= 1;
            }
            let Some((pages, ())) = encoder.pop(&mut payload).unwrap() else {
                break;
            };
            idle.push_back(pages);
        }
        if round >= 8 {
            late.1 += on_this_thread() - before;
        }
    }
    late
}

#[test]
fn none() {
    carries_without_allocating(Method::None, Settings::default());
}

#[test]
fn zlib() {
    carries_without_allocating(Method::Zlib, Settings::default());
}

#[test]
fn own_deflate() {
    let mut settings = Settings::default();
    settings.accel = Accel::Software;
    for effort in Effort::ALL {
        settings.effort = effort;
        carries_without_allocating(Method::Zlib, settings);
    }
}

#[test]
fn qpl() {
    carries_without_allocating(Method::Qpl, libqpl::with(Accel::Software));
}

/// Each buffer is made by the first thread that needs it, and which thread that is, and when, is a
/// matter of time. So a few allocations may be late, and one for each packet or turn may not be.
#[test]
fn several_streams() {
    const ROUNDS: usize = 100;
    const FEW: usize = ROUNDS / 4;
    let mut settings = libqpl::with(Accel::Software);
    for streams in [2, 16, 128] {
        settings.streams = Streams::new(streams).unwrap();
        for method in [Method::Zlib, Method::Qpl, Method::Zstd] {
            let (packets, turns) = late_allocations(method, settings, ROUNDS);
            assert!(packets + turns <= FEW, "{method}: {packets}, {turns}");
        }
    }
}

#[test]
fn zstd() {
    carries_without_allocating(Method::Zstd, Settings::default());
}

/// libqpl has an allocator of its own too, and does not use it for a job that is there.
#[test]
fn libqpl() {
    for accel in [Accel::QplSoftware, Accel::QplHardware] {
        if !libqpl::libqpl() {
            return;
        }
        let _device = libqpl::healthy_device();
        for method in [Method::Qpl, Method::Zlib] {
            carries_without_allocating(method, libqpl::with(accel));
        }
    }
}
