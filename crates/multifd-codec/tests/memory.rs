//! The memory of a decoder for any input: for each channel, and for all channels of the process.
//!
//! Each test has the process to itself. Rust's allocator is counted; libzstd has its own, so there
//! the process's resident memory counts.

use std::sync::{Mutex, MutexGuard, PoisonError};

use multifd_codec::window_memory;
use multifd_codec::{
    Accel, DecodeError, Decoder, PageBuffer, Pages, Settings, Streams, ZstdLevel, decoder, encoder,
};
use multifd_wire::{Method, PageSize};
use testkit::allocations::{Counting, live_bytes};
use testkit::pages::{Random, packet};
use zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

/// The largest window that a decoder accepts.
const MAX_WINDOW_BYTES: u64 = 1 << 25;
/// The limit of a process that has set none.
const DEFAULT_LIMIT: u64 = 1280 << 20;

const PACKET: usize = 512 << 10;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time, with the default limit.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    window_memory::set_limit(DEFAULT_LIMIT);
    alone
}

fn zstd() -> Box<dyn Decoder> {
    decoder(Method::Zstd, &Settings::default()).unwrap()
}

/// Resident memory of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<usize>().unwrap() << 10
}

/// The payloads of a stock sender's packets, with a window of `1 << bits`.
fn stock_payloads(bits: u32, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut stream = CCtx::create();
    stream
        .set_parameter(CParameter::CompressionLevel(1))
        .unwrap();
    stream.set_parameter(CParameter::WindowLog(bits)).unwrap();
    let payload = |bytes: &Vec<u8>| {
        let mut out = Vec::with_capacity(1 << 20);
        let mut input = InBuffer::around(bytes);
        let mut output = OutBuffer::around(&mut out);
        let left = stream.compress_stream2(&mut output, &mut input, ZSTD_e_flush);
        assert_eq!((left, input.pos()), (Ok(0), bytes.len()));
        out
    };
    packets.iter().map(payload).collect()
}

/// Reads all payloads and returns the first error.
fn read(decoder: &mut dyn Decoder, payloads: &[Vec<u8>]) -> Result<(), DecodeError> {
    let mut pages = vec![0; PACKET];
    payloads
        .iter()
        .try_for_each(|payload| decoder.decode(payload, PageSize::K4, &mut pages))
}

#[test]
fn windows_of_all_channels_together_are_bounded() {
    const LIMIT: u64 = 200 << 20;
    let _alone = alone();
    window_memory::set_limit(LIMIT);
    // Slightly more than fills a window.
    let packets = vec![vec![7; PACKET]; (MAX_WINDOW_BYTES as usize / PACKET) + 2];
    let payloads = stock_payloads(MAX_WINDOW_BYTES.ilog2(), &packets);
    let before = resident();
    let mut served = Vec::new();
    let mut refused = 0;
    for _ in 0..32 {
        let mut decoder = zstd();
        match read(&mut *decoder, &payloads) {
            Ok(()) => served.push(decoder),
            Err(error) => {
                let said = error.to_string();
                let left = said
                    .strip_prefix("a zstd frame asks for a window of 33554432 bytes, but ")
                    .and_then(|rest| rest.split_once(" are left of the 209715200 "))
                    .map(|(left, _)| left.parse::<u64>().unwrap());
                let left = left.unwrap_or_else(|| panic!("{said}"));
                assert!(left < MAX_WINDOW_BYTES + (1 << 20), "{left}");
                refused += 1;
            }
        }
    }
    assert_eq!((served.len(), refused), (6, 26));
    assert!(window_memory::held() <= LIMIT);
    let grown = resident().saturating_sub(before) as u64;
    assert!(grown < LIMIT + (32 << 20), "{grown} bytes");
    // They are really in use; otherwise this would prove nothing.
    assert!(grown > 6 * MAX_WINDOW_BYTES, "{grown} bytes");
    // A channel that ends makes room for another, and one with a small window fits into the
    // remainder.
    served.pop();
    read(&mut *zstd(), &payloads).unwrap();
    let level_1 = stock_payloads(19, &packets[..3]);
    read(&mut *zstd(), &level_1).unwrap();
    served.clear();
    assert_eq!(window_memory::held(), 0);
}

#[test]
fn as_many_channels_as_there_can_be_at_level_1_are_no_trouble() {
    let _alone = alone();
    let mut random = Random::new(7);
    let packets: Vec<_> = (0..3).map(|_| packet(&mut random, 128, 4096)).collect();
    let mut settings = Settings::default();
    settings.zstd_level = ZstdLevel::new(1).unwrap();
    let mut sender = encoder(Method::Zstd, &settings).unwrap();
    let before = resident();
    let mut channels: Vec<_> = (0..255).map(|_| zstd()).collect();
    let mut pages = PageBuffer::from(vec![0; PACKET]);
    for bytes in &packets {
        let mut payload = Vec::new();
        sender
            .encode(&Pages::private(bytes, PageSize::K4).unwrap(), &mut payload)
            .unwrap();
        for channel in &mut channels {
            channel
                .decode_owned(&mut payload, PageSize::K4, &mut pages)
                .unwrap();
            assert!(pages.as_ref() == bytes);
        }
    }
    // Five such migrations at once.
    assert!(window_memory::held() * 5 < DEFAULT_LIMIT);
    let grown = resident().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown} bytes");
    drop(channels);
    assert_eq!(window_memory::held(), 0);
}

#[test]
fn the_highest_level_of_sixteen_channels_is_within_the_default_twice() {
    let _alone = alone();
    let packets = [vec![7; PACKET]];
    let mut settings = Settings::default();
    settings.zstd_level = ZstdLevel::MAX;
    let mut sender = encoder(Method::Zstd, &settings).unwrap();
    let mut payload = Vec::new();
    let pages = Pages::private(&packets[0], PageSize::K4).unwrap();
    sender.encode(&pages, &mut payload).unwrap();
    let mut channels: Vec<_> = (0..32).map(|_| zstd()).collect();
    for channel in &mut channels {
        read(&mut **channel, std::slice::from_ref(&payload)).unwrap();
    }
    // This test is about the window.
    assert!(window_memory::held() > 32 * MAX_WINDOW_BYTES);
}

/// A frame header with a window descriptor, and one raw block with a page.
fn one_page(descriptor: u8) -> Vec<u8> {
    let block = (4096_u32 << 3).to_le_bytes();
    [
        &[0x28, 0xb5, 0x2f, 0xfd, 0, descriptor][..],
        &block[..3],
        &[9; 4096],
    ]
    .concat()
}

#[test]
fn a_window_larger_than_any_levels_is_refused_by_its_size() {
    let _alone = alone();
    let mut page = vec![0; 4096];
    let exponent = |bits: u8| (bits - 10) << 3;
    zstd()
        .decode(&one_page(exponent(25)), PageSize::K4, &mut page)
        .unwrap();
    for (descriptor, found) in [
        (exponent(25) + 1, (1_u64 << 25) + (1 << 22)),
        (exponent(27), 1 << 27),
        (0xff, (1 << 41) + 7 * (1 << 38)),
    ] {
        let error = zstd()
            .decode(&one_page(descriptor), PageSize::K4, &mut page)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "a zstd frame asks for a window of {found} bytes, but at most 33554432 are taken"
            )
        );
    }
}

/// Every frame's window is checked: in the first packet and in later ones, between pages and after
/// the last, after skipped frames, and where frames are read in parallel.
#[test]
fn no_frame_gets_past_the_limit() {
    let _alone = alone();
    let small = || {
        let mut frame = one_page((20 - 10) << 3);
        // Its block is the last.
        frame[6] |= 1;
        frame
    };
    let large = one_page((26 - 10) << 3);
    let large_and_known = {
        // Content size in eight bytes, the window being all of it.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        frame.extend((1_u64 << 26).to_le_bytes());
        frame.extend_from_slice(&large[6..]);
        frame
    };
    let empty_and_large = [&large[..6], &[1, 0, 0]].concat();
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let cases: [(&str, Vec<Vec<u8>>); 6] = [
        ("first", vec![[&large[..], &small()].concat()]),
        (
            "known content",
            vec![[&large_and_known[..], &small()].concat()],
        ),
        ("between pages", vec![[&small()[..], &large].concat()]),
        (
            "second packet",
            vec![
                [small(), small()].concat(),
                [large.clone(), small()].concat(),
            ],
        ),
        (
            "behind the last page",
            vec![[small(), small(), empty_and_large.clone()].concat()],
        ),
        (
            "behind what is skipped",
            vec![[small(), small(), skipped, empty_and_large].concat()],
        ),
    ];
    for accel in [Accel::None, Accel::Software] {
        let mut settings = Settings::default();
        settings.accel = accel;
        for (name, payloads) in &cases {
            let mut decoder = decoder(Method::Zstd, &settings).unwrap();
            let mut pages = vec![0; 2 * 4096];
            let outcome = payloads
                .iter()
                .try_for_each(|payload| decoder.decode(payload, PageSize::K4, &mut pages));
            let said = outcome.unwrap_err().to_string();
            let words = "a zstd frame asks for a window of 67108864 bytes, but at most ";
            assert!(said.starts_with(words), "{name}: {said}");
        }
    }
    assert_eq!(window_memory::held(), 0);
}

/// The numbers at `ZstdLevel`, which an operator multiplies with channels.
#[test]
fn an_encoder_holds_no_more_than_it_says() {
    const MIB: usize = 1 << 20;
    let _alone = alone();
    for (level, allowed) in [
        (1, 2 * MIB),
        (3, 4 * MIB),
        (9, 16 * MIB),
        (18, 60 * MIB),
        (20, 200 * MIB),
    ] {
        let mut stream = CCtx::create();
        stream
            .set_parameter(CParameter::CompressionLevel(level))
            .unwrap();
        let mut out = Vec::with_capacity(PACKET);
        let mut input = InBuffer::around(&[7; PACKET]);
        let mut output = OutBuffer::around(&mut out);
        stream
            .compress_stream2(&mut output, &mut input, ZSTD_e_flush)
            .unwrap();
        println!("level {level}: {} bytes", stream.sizeof());
        assert!(
            stream.sizeof() <= allowed,
            "level {level}: {}",
            stream.sizeof()
        );
    }
}

/// The table in `window_memory`.
#[test]
fn a_channel_holds_no_more_than_it_says() {
    const KIB: usize = 1 << 10;
    let _alone = alone();
    let helpers = std::thread::available_parallelism().unwrap().get().min(8) - 1;
    for (method, accel, own, of_helper) in [
        (Method::None, Accel::None, 0, 0),
        (Method::Zlib, Accel::None, 64 * KIB, 0),
        (Method::Zlib, Accel::Software, 128 * KIB, 128 * KIB),
        (Method::Qpl, Accel::Software, 128 * KIB, 128 * KIB),
        (Method::Canned, Accel::Software, 128 * KIB, 128 * KIB),
    ] {
        let mut settings = Settings::default();
        settings.accel = accel;
        let mut random = Random::new(5);
        let mut arrived = PageBuffer::from(vec![0; PACKET]);
        // All shared objects exist by now.
        drop(decoder(method, &settings).unwrap());
        let mut senders = [1, 16].map(|streams| {
            let mut settings = settings;
            settings.streams = Streams::new(streams).unwrap();
            encoder(method, &settings).unwrap()
        });
        let sent: Vec<_> = (0..4).map(|_| packet(&mut random, 128, 4096)).collect();
        for sender in &mut senders {
            let mut payloads: Vec<Vec<u8>> = sent
                .iter()
                .map(|bytes| {
                    let mut payload = Vec::new();
                    let pages = Pages::private(bytes, PageSize::K4).unwrap();
                    sender.encode(&pages, &mut payload).unwrap();
                    payload
                })
                .collect();
            let before = live_bytes();
            let mut receiver = decoder(method, &settings).unwrap();
            for payload in &mut payloads {
                receiver
                    .decode_owned(payload, PageSize::K4, &mut arrived)
                    .unwrap();
            }
            let held = live_bytes() - before;
            println!("{method} {accel}: {held} bytes with {helpers} helpers");
            // The box and its lists are small.
            let allowed = own + helpers * of_helper + 8 * KIB;
            assert!(held <= allowed, "{method} {accel}: {held}, {allowed}");
        }
    }
}
