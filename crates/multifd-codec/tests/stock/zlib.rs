//! Method `zlib` against the C zlib: what each reads, and what neither reads.

use std::ffi::c_int;

use libz_sys::{
    Z_BLOCK, Z_FINISH, Z_FULL_FLUSH, Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END, Z_SYNC_FLUSH,
};
use multifd_codec::{
    Accel, DecodeError, Decoder, Effort, Pages, Settings, Streams, WindowSize, ZlibLevel, decoder,
    encoder,
};
use multifd_wire::{Method, PageSize};

use crate::STREAMS;
use testkit::pages::{Random, packet};
use testkit::zlib::{Deflate, Inflate};

const PAGE: usize = PageSize::K4.bytes();

/// An empty stored block at a byte boundary.
const EMPTY_BLOCK: &[u8] = &[0, 0, 0, 0xff, 0xff];

/// The end of a payload after a sync flush.
const SYNC_MARK: &[u8] = &[0, 0, 0xff, 0xff];

/// Our decoders: the ordinary library, and this crate.
const DECODERS: [Accel; 2] = [Accel::None, Accel::Software];

fn ours(accel: Accel) -> Box<dyn Decoder> {
    let mut settings = Settings::default();
    settings.accel = accel;
    decoder(Method::Zlib, &settings).unwrap()
}

fn page_size(bytes: u32) -> PageSize {
    PageSize::new(bytes).unwrap()
}

#[test]
fn a_stock_receiver_reads_our_payloads() {
    let mut random = Random::new(1);
    for level in 0..=9 {
        let page_size = page_size([4096, 8192, 65536][level % 3]);
        let mut settings = Settings::default();
        settings.zlib_level = ZlibLevel::new(level as u8).unwrap();
        let mut encoder = encoder(Method::Zlib, &settings).unwrap();
        let mut receiver = Inflate::new(15);
        let mut payload = Vec::new();
        for round in 0..12 {
            let count = 1 + random.below(page_size.pages_per_packet());
            let bytes = packet(&mut random, count, page_size.bytes());
            encoder
                .encode(&Pages::private(&bytes, page_size).unwrap(), &mut payload)
                .unwrap();
            let mut arrived = vec![0; bytes.len()];
            let left = receiver.stock_packet(&payload, page_size.bytes(), &mut arrived);
            assert_eq!(left, Some(0), "level {level}, packet {round}");
            assert!(arrived == bytes, "level {level}, packet {round}");
            // A zlib header, a multiple of 31, precedes only the first payload.
            let header = u16::from_be_bytes([payload[0], payload[1]]);
            assert_eq!(payload[0] == 0x78 && header % 31 == 0, round == 0);
            assert!(payload.ends_with(SYNC_MARK));
        }
    }
}

#[test]
fn a_stock_receiver_reads_all_streams_of_a_channel() {
    let mut random = Random::new(2);
    for streams in STREAMS {
        let mut settings = Settings::default();
        settings.streams = Streams::new(streams).unwrap();
        reads(&settings, &mut random, [0x78, 0x01]);
        settings.accel = Accel::Software;
        for effort in Effort::ALL {
            settings.effort = effort;
            settings.window = WindowSize::ThirtyTwoKiB;
            reads(&settings, &mut random, [0x78, 0x01]);
            settings.window = WindowSize::FourKiB;
            reads(&settings, &mut random, [0x48, 0x0d]);
        }
    }
}

fn reads(settings: &Settings, random: &mut Random, header: [u8; 2]) {
    let mut encoder = encoder(Method::Zlib, settings).unwrap();
    let mut receiver = Inflate::new(15);
    let mut payload = Vec::new();
    for (round, count) in [128, 3, 1, 128, 100].into_iter().enumerate() {
        let bytes = packet(random, count, PAGE);
        let pages = Pages::private(&bytes, PageSize::K4).unwrap();
        encoder.encode(&pages, &mut payload).unwrap();
        let mut arrived = vec![0; bytes.len()];
        let left = receiver.stock_packet(&payload, PAGE, &mut arrived);
        assert_eq!(left, Some(0), "{settings:?}, packet {round}");
        assert!(arrived == bytes, "{settings:?}, packet {round}");
        assert_eq!(payload.starts_with(&header), round == 0);
        assert!(payload.ends_with(SYNC_MARK));
    }
}

/// The payload is the same for any timing of the crew.
#[test]
fn streams_are_the_same_every_time() {
    let mut settings = Settings::default();
    settings.accel = Accel::Software;
    settings.streams = Streams::new(16).unwrap();
    let payloads = || {
        let mut random = Random::new(6);
        let mut encoder = encoder(Method::Zlib, &settings).unwrap();
        let mut all = Vec::new();
        for _ in 0..20 {
            let bytes = packet(&mut random, 128, PAGE);
            let mut payload = Vec::new();
            let pages = Pages::private(&bytes, PageSize::K4).unwrap();
            encoder.encode(&pages, &mut payload).unwrap();
            all.extend(payload);
        }
        all
    };
    let first = payloads();
    for _ in 0..5 {
        assert!(payloads() == first);
    }
}

/// Makes a payload with the pages of one packet; the index is the packet's number in the channel.
type Maker = fn(&mut Deflate, usize, &[u8], &mut Vec<u8>);

/// Streams that a stock receiver accepts, as tried on QEMU 10.0, besides those of stock senders.
const TAKEN: &[(&str, c_int, c_int, Maker)] = &[
    ("as a stock sender", 1, 15, stock),
    ("level 0", 0, 15, stock),
    ("level 6", 6, 15, stock),
    ("level 9", 9, 15, stock),
    ("window of 4 KiB", 1, 12, stock),
    (
        "sync flush after every page",
        1,
        15,
        |stream, _, bytes, out| {
            flushed(stream, bytes, Z_SYNC_FLUSH, Z_SYNC_FLUSH, out);
        },
    ),
    (
        "sync flush after every page, level 9",
        9,
        15,
        |stream, _, bytes, out| {
            flushed(stream, bytes, Z_SYNC_FLUSH, Z_SYNC_FLUSH, out);
        },
    ),
    (
        "full flush after every page",
        1,
        15,
        |stream, _, bytes, out| {
            flushed(stream, bytes, Z_FULL_FLUSH, Z_FULL_FLUSH, out);
        },
    ),
    (
        "a new block for every page",
        1,
        15,
        |stream, _, bytes, out| {
            flushed(stream, bytes, Z_BLOCK, Z_SYNC_FLUSH, out);
        },
    ),
    (
        "partial flush at the end",
        1,
        15,
        |stream, _, bytes, out| {
            flushed(stream, bytes, Z_NO_FLUSH, Z_PARTIAL_FLUSH, out);
        },
    ),
    (
        "partial flush after every page",
        1,
        15,
        |stream, _, bytes, out| {
            flushed(stream, bytes, Z_PARTIAL_FLUSH, Z_PARTIAL_FLUSH, out);
        },
    ),
    (
        "two sync flushes at the end",
        1,
        15,
        |stream, _, bytes, out| {
            stream.packet(bytes, PAGE, out);
            // zlib itself ignores a repeated flush.
            out.extend(EMPTY_BLOCK);
        },
    ),
    (
        "three empty blocks in front",
        1,
        15,
        |stream, index, bytes, out| {
            stream.packet(bytes, PAGE, out);
            let at = if index == 0 { 2 } else { 0 };
            out.splice(at..at, EMPTY_BLOCK.repeat(3));
        },
    ),
];

fn stock(stream: &mut Deflate, _: usize, bytes: &[u8], out: &mut Vec<u8>) {
    stream.packet(bytes, PAGE, out);
}

/// Compresses page by page, with one kind of flush between the pages and another at the end.
fn flushed(stream: &mut Deflate, bytes: &[u8], between: c_int, last: c_int, out: &mut Vec<u8>) {
    let (first_pages, last_page) = bytes.split_at(bytes.len() - PAGE);
    for page in first_pages.chunks(PAGE) {
        assert_eq!(stream.call(page, between, out), Z_OK);
    }
    assert_eq!(stream.call(last_page, last, out), Z_OK);
}

#[test]
fn we_take_what_a_stock_receiver_takes() {
    let cases = TAKEN
        .iter()
        .flat_map(|case| DECODERS.map(|accel| (case, accel)));
    for ((name, level, window_bits, make), accel) in cases {
        let mut random = Random::new(2);
        let mut sender = Deflate::new(*level, *window_bits);
        let mut stock = Inflate::new(15);
        let mut ours = ours(accel);
        for index in 0..8 {
            let count = 1 + random.below(40);
            let bytes = packet(&mut random, count, PAGE);
            let mut payload = Vec::new();
            make(&mut sender, index, &bytes, &mut payload);
            let mut arrived = vec![0; bytes.len()];
            assert_eq!(
                stock.stock_packet(&payload, PAGE, &mut arrived),
                Some(0),
                "{name}"
            );
            assert!(arrived == bytes, "{name}");
            arrived.fill(0);
            ours.decode(&payload, PageSize::K4, &mut arrived)
                .unwrap_or_else(|error| panic!("{name}, packet {index}: {error:?}"));
            assert!(arrived == bytes, "{name}, packet {index}");
        }
    }
}

/// Streams at which a stock receiver is known to fail, and the packet at which it shows.
const REFUSED: &[(&str, usize, Maker)] = &[
    ("a stream per packet", 0, |_, _, bytes, out| {
        Deflate::new(1, 15).whole(bytes, out);
    }),
    (
        "one stream, finished and begun again",
        0,
        |stream, _, bytes, out| {
            stream.whole(bytes, out);
        },
    ),
    (
        "a final block without its checksum",
        1,
        |stream, _, bytes, out| {
            assert_eq!(stream.call(bytes, Z_FINISH, out), Z_STREAM_END);
            out.truncate(out.len() - 4);
            *stream = Deflate::new(1, -15);
        },
    ),
    (
        "a stray byte behind the mark",
        1,
        |stream, _, bytes, out| {
            stream.packet(bytes, PAGE, out);
            out.push(0);
        },
    ),
    (
        "a stray byte that is no block",
        0,
        |stream, _, bytes, out| {
            stream.packet(bytes, PAGE, out);
            out.push(0xff);
        },
    ),
    ("no zlib header", 0, |stream, index, bytes, out| {
        stream.packet(bytes, PAGE, out);
        if index == 0 {
            out.drain(..2);
        }
    }),
    ("a gzip stream", 0, |stream, index, bytes, out| {
        if index == 0 {
            *stream = Deflate::new(1, 15 + 16);
        }
        stream.packet(bytes, PAGE, out);
    }),
];

#[test]
fn we_refuse_what_a_stock_receiver_refuses() {
    let cases = REFUSED
        .iter()
        .flat_map(|case| DECODERS.map(|accel| (case, accel)));
    for ((name, shows_at, make), accel) in cases {
        let mut random = Random::new(3);
        let mut sender = Deflate::new(1, 15);
        let mut stock = Inflate::new(15);
        let mut ours = ours(accel);
        for index in 0..=*shows_at {
            let bytes = packet(&mut random, 6, PAGE);
            let mut payload = Vec::new();
            make(&mut sender, index, &bytes, &mut payload);
            let mut arrived = vec![0; bytes.len()];
            let taken_by_stock = stock.stock_packet(&payload, PAGE, &mut arrived).is_some();
            let taken_by_us = ours.decode(&payload, PageSize::K4, &mut arrived);
            assert_eq!(taken_by_stock, index < *shows_at, "{name}, packet {index}");
            assert_eq!(
                taken_by_us.is_ok(),
                index < *shows_at,
                "{name}, packet {index}"
            );
        }
    }
}

/// A stream with more data than its packet's pages: a stock receiver drops the rest and loses its
/// place, or finds the data in the next packet. Nothing grows here, and nothing is lost silently.
#[test]
fn more_than_the_packets_pages() {
    let bytes = packet(&mut Random::new(4), 9, PAGE);
    let bomb = vec![0; 64 << 20];
    for (bytes, pages) in [(&bytes, 8), (&bomb, 1), (&bomb, 128)] {
        let mut payload = Vec::new();
        Deflate::new(9, 15).packet(bytes, bytes.len(), &mut payload);
        for accel in DECODERS {
            let mut room = vec![0; pages * PAGE];
            let error = ours(accel)
                .decode(&payload, PageSize::K4, &mut room)
                .unwrap_err();
            let words = "the payload holds more than the";
            let words = format!("{words} {} bytes of its pages", room.len());
            assert_eq!(error.to_string(), words);
            assert!(room == bytes[..room.len()]);
        }
    }
}

fn is_too_long(error: &DecodeError) -> bool {
    let words = "the payload holds more than the ";
    error.to_string().starts_with(words)
}

/// One excess byte, which inflate has already consumed when the last page is full.
#[test]
fn one_byte_more_than_the_packets_pages() {
    for extra in [1, 2, 257, 258] {
        let bytes = vec![7; PAGE + extra];
        let mut payload = Vec::new();
        Deflate::new(9, 15).packet(&bytes, bytes.len(), &mut payload);
        for accel in DECODERS {
            let outcome = ours(accel).decode(&payload, PageSize::K4, &mut [0; PAGE]);
            let error = outcome.unwrap_err();
            assert!(is_too_long(&error), "{error:?}");
        }
    }
}

#[test]
fn the_end_of_a_stream_is_named() {
    let mut payload = Vec::new();
    Deflate::new(1, 15).whole(&[1; PAGE], &mut payload);
    for accel in DECODERS {
        let outcome = ours(accel).decode(&payload, PageSize::K4, &mut [0; PAGE]);
        let error = outcome.unwrap_err();
        let words = "the zlib stream ends after 4096 bytes of pages, but must never end";
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn the_library_says_what_it_met() {
    for accel in DECODERS {
        let outcome = ours(accel).decode(b"no zlib stream", PageSize::K4, &mut [0; PAGE]);
        let error = outcome.unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(
            error.to_string(),
            "zlib decompression failed after 0 bytes of pages"
        );
        assert!(source.is_some_and(|words| words.contains("header")));
    }
}

/// Damaged streams: a stock receiver accepts everything that we accept, with the same pages. Only
/// data that it ignores is refused here and accepted there.
#[test]
fn damage_is_judged_as_a_stock_receiver_judges_it() {
    let mut random = Random::new(5);
    let mut taken = 0;
    for round in 0..3000 {
        let mut sender = Deflate::new([0, 1, 6][random.below(3)], 15);
        let mut stock = Inflate::new(15);
        let mut ours = ours(DECODERS[round % 2]);
        for _ in 0..3 {
            let bytes = packet(&mut random, 2, PAGE);
            let mut payload = Vec::new();
            sender.packet(&bytes, PAGE, &mut payload);
            match random.below(4) {
                0 => payload.truncate(payload.len() - random.below(payload.len().min(12))),
                1 => {
                    let at = random.below(payload.len());
                    payload[at] ^= 1 << random.below(8);
                }
                2 => {
                    let at = random.below(payload.len());
                    payload.insert(at, random.byte());
                }
                _ => {}
            }
            let (mut theirs, mut mine) = (vec![0; bytes.len()], vec![0; bytes.len()]);
            let left = stock.stock_packet(&payload, PAGE, &mut theirs);
            match (left, ours.decode(&payload, PageSize::K4, &mut mine)) {
                (Some(0), Ok(())) => {
                    assert!(mine == theirs);
                    taken += 1;
                }
                (_, Err(error)) if is_too_long(&error) => break,
                (None, Err(_)) => break,
                (left, verdict) => panic!("stock: {left:?}, we: {verdict:?}"),
            }
        }
    }
    assert!(taken > 1000, "{taken}");
}
