//! Relays between a source and a destination made here: real sockets, bytes that a QEMU could have
//! sent.
//!
//! What real QEMUs make of relays is tested beside the `multifd` command.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::{Accel, BackendKind, Encoder, Huffman, Pages, Settings, Streams};
use multifd_relay::Failure;
use multifd_relay::failure::Cause;
use multifd_relay::relay::{MigrationReport, Relay, RelayConfig, Work};
use multifd_transport::failure::{Cause as TransportCause, Channel, Leg};
use multifd_transport::incoming::{Acceptor, Arrival, Incoming, IncomingChannel};
use multifd_transport::{Address, Cancel, Stream};
use multifd_wire::return_path::{Message, ReturnPathReceiver};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, PageSize, RamPacket};
use qemu_lab::{Part, require_opened};

mod confirmed;
mod flows;
mod settled;
mod told;
mod wish;

const PAGE: PageSize = PageSize::K4;

/// One channel's bytes: hello, a SYNC, `packets` packets of pages that compress about 2:1, zero
/// pages, a SYNC.
fn channel_bytes(id: u8, packets: usize, method: Method) -> Vec<u8> {
    let mut encoder = multifd_codec::encoder(method, &Settings::default()).unwrap();
    let (mut sender, mut bytes) = begin_channel(id);
    let mut payload = Vec::new();
    for number in 0..packets as u64 {
        let pages = PAGE.pages_per_packet() as u64 / 2;
        let start = number * pages * 2;
        let offsets =
            |range: std::ops::Range<u64>| range.map(|page| page * 4096).collect::<Vec<u64>>();
        let (normal, zero) = (
            offsets(start..start + pages),
            offsets(start + pages..start + 2 * pages),
        );
        let mut packet = RamPacket::new(
            PAGE,
            BlockName::new(b"pc.ram").unwrap(),
            &normal,
            &zero,
            number,
        )
        .unwrap();
        encode(
            &mut encoder,
            &contents(id, number, normal.len()),
            &mut payload,
        );
        packet.set_payload(method, payload.len() as u32).unwrap();
        sender.packet(&Packet::Ram(packet), &mut bytes).unwrap();
        bytes.extend_from_slice(&payload);
        sender.payload_sent(payload.len()).unwrap();
    }
    sender
        .packet(&Packet::Ram(RamPacket::sync(PAGE, 99)), &mut bytes)
        .unwrap();
    bytes
}

/// A channel's hello and its first SYNC.
fn begin_channel(id: u8) -> (ChannelSender, Vec<u8>) {
    let mut sender = ChannelSender::new();
    let mut bytes = Vec::new();
    let hello = Hello::new([0; 16], id);
    sender.hello(&hello, &mut bytes).unwrap();
    let sync = RamPacket::sync(PAGE, 0);
    sender.packet(&Packet::Ram(sync), &mut bytes).unwrap();
    (sender, bytes)
}

fn encode(encoder: &mut Encoder, pages: &[u8], payload: &mut Vec<u8>) {
    encoder
        .encode(&Pages::private(pages, PAGE).unwrap(), payload)
        .unwrap();
}

/// Half noise, half a count.
fn contents(id: u8, packet: u64, pages: usize) -> Vec<u8> {
    let mut state = packet * 256 + u64::from(id) + 1;
    let mut bytes = vec![id; pages * PAGE.bytes()];
    for (index, byte) in bytes.iter_mut().enumerate() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if index % 128 < 64 {
            *byte = (state >> 56) as u8;
        }
    }
    bytes
}

/// The main channel of a migration of one block, as QEMU 10.0 sends it; with the commands that open
/// the return path if asked for.
fn main_bytes(return_path: bool) -> Vec<u8> {
    let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x04none".to_vec();
    if return_path {
        bytes.extend(b"\x08\0\x01\0\0" as &[u8]);
        bytes.extend(b"\x08\0\x02\0\x04\0\0\0\x01" as &[u8]);
    }
    let (flush, eos) = (0x200_u64.to_be_bytes(), 0x10_u64.to_be_bytes());
    let footer = b"\x7e\0\0\0\x02";
    let start = b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04";
    let memory = (16_u64 << 20).to_be_bytes();
    let total = (16_u64 << 20 | 0x04).to_be_bytes();
    for part in [
        start as &[u8],
        &total,
        b"\x06pc.ram",
        &memory,
        &flush,
        &eos,
        footer,
    ] {
        bytes.extend_from_slice(part);
    }
    bytes.extend(END);
    bytes
}

/// The same of a source without multifd, which has no channels to flush, and its pages on main.
fn without_flush(main: &[u8]) -> Vec<u8> {
    let mut main = main.to_vec();
    let flush = 0x200_u64.to_be_bytes();
    let page = [
        &0x08_u64.to_be_bytes(),
        b"\x06pc.ram".as_slice(),
        &[7; 4096],
    ]
    .concat();
    for record in [&[], page.as_slice()] {
        let place = main.windows(flush.len()).position(|part| part == flush);
        let place = place.expect("two marks");
        main.splice(place..place + flush.len(), record.iter().copied());
    }
    main
}

/// What follows the setup on the main channel: the RAM section's end, and the description.
const END: &[u8] = b"\x03\0\0\0\x02\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\
    \0\x06\0\0\0\x02{}";

fn config(connect: &Address, compression: Method) -> RelayConfig {
    RelayConfig::new(connect.clone(), compression)
}

fn unix(folder: &Path, name: &str) -> Address {
    Address::Unix(folder.join(name))
}

/// What the source sends: main, then the channels.
struct Sent {
    main: Vec<u8>,
    channels: Vec<Vec<u8>>,
}

/// Dials `address` and sends everything, each connection from a thread of its own, then
/// half-closes; with a return path only once the destination has said its last word. Returns what
/// came back on main.
fn send(address: &Address, sent: &Sent) -> Vec<u8> {
    let main = Stream::connect(address).unwrap();
    let channels: Vec<_> = sent
        .channels
        .iter()
        .map(|_| Stream::connect(address).unwrap())
        .collect();
    let has_return_path = sent
        .main
        .windows(OPEN_RETURN_PATH.len())
        .any(|part| part == OPEN_RETURN_PATH);
    thread::scope(|scope| {
        for (stream, bytes) in channels.iter().zip(&sent.channels) {
            scope.spawn(move || {
                // A broken connection is for the relay to tell of.
                let _ = (&mut &*stream).write_all(bytes);
                if !has_return_path {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            });
        }
        let _ = (&main).write_all(&sent.main);
        let mut back = Vec::new();
        if has_return_path {
            let mut piece = [0; 64];
            while !has_last_word(&back) {
                match main.read_some(&mut piece) {
                    Ok(count @ 1..) => back.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
        }
        for stream in channels.iter().filter(|_| has_return_path).chain([&main]) {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = (&main).read_to_end(&mut back);
        back
    })
}

const OPEN_RETURN_PATH: &[u8] = b"\x08\0\x01\0\0";

/// What a destination answers as soon as it loads.
const PONG: &[u8] = b"\0\x02\0\x04\0\0\0\x01";

/// Whether a return path has come to its SHUT.
fn has_last_word(mut back: &[u8]) -> bool {
    let mut receiver = ReturnPathReceiver::new();
    while let Ok(Some(message)) = receiver.push(&mut back) {
        if matches!(message, Message::Shut(_)) {
            return true;
        }
    }
    false
}

/// A migration with its channels, of which it has `count`.
struct Whole {
    incoming: Incoming,
    channels: Vec<IncomingChannel>,
}

fn accept(acceptor: &mut Acceptor, count: usize) -> Whole {
    let incoming = acceptor.accept(&Cancel::new()).unwrap();
    let mut channels = Vec::new();
    while channels.len() < count {
        match incoming.channels.next_within(Duration::from_secs(60)) {
            Some(Arrival::Channel(channel)) => channels.push(channel),
            other => panic!("{other:?} instead of channel {} of {count}", channels.len()),
        }
    }
    channels.sort_by_key(|channel| channel.hello.channel);
    Whole { incoming, channels }
}

/// Takes a migration, says `answer` on main when all has been read, and returns the bytes of main
/// and of each channel.
fn take(acceptor: &mut Acceptor, channels: usize, answer: &[u8]) -> Sent {
    let Whole { incoming, channels } = accept(acceptor, channels);
    thread::scope(|scope| {
        let readers: Vec<_> = channels
            .iter()
            .map(|channel| {
                scope.spawn(|| {
                    let mut bytes = channel.hello.to_bytes().to_vec();
                    (&channel.stream).read_to_end(&mut bytes).unwrap();
                    bytes
                })
            })
            .collect();
        // With an answer to give, the source keeps main open until it has it.
        let len = match channels.is_empty() {
            true => without_flush(&main_bytes(false)).len(),
            false => main_bytes(!answer.is_empty()).len(),
        };
        if !answer.is_empty() {
            (&*incoming.main).write_all(PONG).unwrap();
        }
        let mut main = incoming.main_start;
        let mut rest = vec![0; len - main.len()];
        (&*incoming.main).read_exact(&mut rest).unwrap();
        main.append(&mut rest);
        (&*incoming.main).write_all(answer).unwrap();
        Sent {
            main,
            channels: readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .collect(),
        }
    })
}

fn through_two(
    sent: &Sent,
    between: Method,
    listen: [&Address; 3],
    answer: &[u8],
) -> (Sent, Vec<u8>, [MigrationReport; 2]) {
    through_two_with(sent, between, Settings::default(), listen, answer)
}

fn through_two_with(
    sent: &Sent,
    between: Method,
    settings: Settings,
    listen: [&Address; 3],
    answer: &[u8],
) -> (Sent, Vec<u8>, [MigrationReport; 2]) {
    let mut destination = Acceptor::bind(listen[2]).unwrap();
    let mut far = Relay::bind(listen[1], config(destination.address(), Method::None)).unwrap();
    let mut near = config(far.address(), between);
    near.settings = settings;
    let mut near = Relay::bind(listen[0], near).unwrap();
    thread::scope(|scope| {
        let taken = scope.spawn(|| take(&mut destination, sent.channels.len(), answer));
        let far = scope.spawn(|| far.serve_one(&mut |_| {}));
        let near_address = near.address().clone();
        let back = scope.spawn(move || send(&near_address, sent));
        let near = near.serve_one(&mut |_| {}).unwrap();
        (
            taken.join().unwrap(),
            back.join().unwrap(),
            [near, far.join().unwrap().unwrap()],
        )
    })
}

#[test]
fn what_goes_in_comes_out_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["near", "far", "destination"].map(|name| unix(folder.path(), name));
    let tcp: Address = "tcp:127.0.0.1:0".parse().unwrap();
    let addresses = [[&names[0], &names[1], &names[2]], [&tcp, &tcp, &tcp]];
    for listen in addresses {
        for between in [
            Method::None,
            Method::Zlib,
            Method::Zstd,
            Method::Qpl,
            Method::Canned,
        ] {
            for channels in [0, 1, 4] {
                let channels = (0..channels)
                    .map(|id| channel_bytes(id, 5, Method::None))
                    .collect();
                let channels: Vec<_> = channels;
                let main = match channels.is_empty() {
                    true => without_flush(&main_bytes(false)),
                    false => main_bytes(false),
                };
                let sent = Sent { main, channels };
                let (taken, back, [near, far]) = through_two(&sent, between, listen, b"");
                assert!(
                    taken.main == sent.main && taken.channels == sent.channels,
                    "{between} changed something"
                );
                assert!(back.is_empty());
                let pages = sent.channels.len() as u64 * 5 * 64;
                assert_eq!((near.totals.pages, near.totals.zero_pages), (pages, pages));
                assert_eq!(near.totals.bytes_in, far.totals.bytes_out);
                assert_eq!(near.totals.bytes_out, far.totals.bytes_in);
                let compressed = near.totals.bytes_out < near.totals.bytes_in * 3 / 4;
                assert_eq!(compressed, between != Method::None && pages > 0, "{near:?}");
            }
        }
    }
}

/// Carries a migration through two relays with these settings of the first; what that one's
/// encoders did.
fn computed(method: Method, settings: Settings) -> Work {
    let folder = tempfile::tempdir().unwrap();
    let names = ["near", "far", "destination"].map(|name| unix(folder.path(), name));
    let channels = (0..4).map(|id| channel_bytes(id, 5, Method::None));
    let sent = Sent {
        main: main_bytes(false),
        channels: channels.collect(),
    };
    let (taken, _, [near, far]) = through_two_with(&sent, method, settings, names.each_ref(), b"");
    assert!(taken.channels == sent.channels, "{method}, {settings:?}");
    let [encoded, decoded] = [near.encoded, far.decoded].map(Option::unwrap);
    assert_eq!((encoded.method, decoded.method), (method, method));
    assert_eq!(encoded.pages.total(), near.totals.pages);
    assert_eq!(decoded.pages.total(), near.totals.pages);
    assert!(encoded.pages.raw < near.totals.pages / 10, "{encoded:?}");
    encoded
}

/// Settings with this accelerator: one stream and several, both Huffman codes.
fn all_settings(accel: Accel) -> impl Iterator<Item = Settings> {
    let huffman = [Huffman::Fixed, Huffman::Dynamic];
    let each = [1, 16].map(|streams| Streams::new(streams).unwrap());
    each.into_iter().flat_map(move |streams| {
        huffman.map(|huffman| {
            let mut settings = Settings::default();
            settings.accel = accel;
            settings.streams = streams;
            settings.huffman = huffman;
            settings
        })
    })
}

#[test]
fn software_computes() {
    for method in [Method::Zlib, Method::Zstd] {
        for accel in [Accel::None, Accel::Software, Accel::Auto] {
            for settings in all_settings(accel) {
                let done = computed(method, settings);
                assert!(done.pages.software > 0, "{done:?}");
            }
        }
    }
}

/// Needs libqpl: `cargo xtask test` runs this program without it and with it.
#[test]
fn libqpl_computes() {
    let mut software = Settings::default();
    software.accel = Accel::QplSoftware;
    let opened = multifd_codec::encoder(Method::Qpl, &software);
    if require_opened(Part::Qpl, opened).is_none() {
        return;
    }
    for method in [Method::Zlib, Method::Qpl] {
        for settings in all_settings(Accel::QplSoftware) {
            let done = computed(method, settings);
            assert_eq!(done.backend.kind(), BackendKind::QplSoftware);
            assert_eq!(done.backend.reason(), None);
            assert!(done.pages.software > 0, "{done:?}");
        }
        for settings in all_settings(Accel::Qpl) {
            let done = computed(method, settings);
            // On the machine's IAA, if it has one; if not, the reason is told.
            let by_software = done.backend.kind() == BackendKind::QplSoftware;
            assert_eq!(done.backend.reason().is_some(), by_software, "{done:?}");
        }
    }
}

#[test]
fn a_method_that_arrives_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["near", "far", "destination"].map(|name| unix(folder.path(), name));
    let plain = vec![channel_bytes(0, 3, Method::None)];
    for arriving in [Method::Zlib, Method::Zstd] {
        for between in [Method::None, Method::Zlib, Method::Zstd] {
            let sent = Sent {
                main: main_bytes(false),
                channels: vec![channel_bytes(0, 3, arriving)],
            };
            let (taken, _, _) = through_two(&sent, between, [&names[0], &names[1], &names[2]], b"");
            assert!(taken.channels == plain, "{arriving}, then {between}");
        }
    }
}

#[test]
fn the_return_path_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["near", "far", "destination"].map(|name| unix(folder.path(), name));
    let answer = b"\0\x01\0\x04\0\0\0\0";
    let sent = Sent {
        main: main_bytes(true),
        channels: vec![channel_bytes(0, 1, Method::None)],
    };
    let (_, back, _) = through_two(
        &sent,
        Method::Zlib,
        [&names[0], &names[1], &names[2]],
        answer,
    );
    assert_eq!(back, [PONG, answer].concat());
}

/// A relay between `source` and `destination`, of which one spoils the migration: the failure. Then
/// a sound migration must go through.
fn fails_and_recovers(
    source: impl FnOnce(&Address) + Send,
    destination: impl FnOnce(&mut Acceptor) + Send,
) -> Failure {
    let folder = tempfile::tempdir().unwrap();
    let mut acceptor = Acceptor::bind(&unix(folder.path(), "destination")).unwrap();
    let mut relay = Relay::bind(
        unix(folder.path(), "relay"),
        config(acceptor.address(), Method::Zlib),
    )
    .unwrap();
    // Told from the spoiled one by its description.
    let mut main = main_bytes(false);
    main.splice(main.len() - 2.., *b"[]");
    let channels = vec![channel_bytes(0, 2, Method::None)];
    let sound = Sent { main, channels };
    thread::scope(|scope| {
        scope.spawn(|| {
            destination(&mut acceptor);
            take_until_whole(&mut acceptor, &sound.main);
        });
        let address = relay.address().clone();
        scope.spawn(move || source(&address));
        let failure = relay.serve_one(&mut |_| {}).unwrap_err();
        let address = relay.address().clone();
        let sound = &sound;
        scope.spawn(move || send(&address, sound));
        relay
            .serve_one(&mut |_| {})
            .expect("the next migration goes through");
        failure
    })
}

/// Takes migrations until one brings all of `main`. One that failed early may not even be seen
/// here.
fn take_until_whole(acceptor: &mut Acceptor, main: &[u8]) {
    loop {
        let incoming = acceptor.accept(&Cancel::new()).unwrap();
        let mut bytes = incoming.main_start;
        let (channels, is_over) = (incoming.channels, AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    if let Some(Arrival::Channel(channel)) =
                        channels.next_within(Duration::from_millis(10))
                    {
                        scope.spawn(move || (&channel.stream).read_to_end(&mut Vec::new()));
                    }
                }
            });
            // Whether the migration is whole or not, both legs of all channels end: this returns.
            let _ = (&*incoming.main).read_to_end(&mut bytes);
            is_over.store(true, Ordering::SeqCst);
        });
        if bytes == main {
            return;
        }
    }
}

#[test]
fn a_source_that_gives_up_is_no_success() {
    let source = |address: &Address| {
        let mut main = main_bytes(false);
        main.truncate(main.len() - END.len() / 2);
        let mut channel = channel_bytes(0, 2, Method::None);
        channel.truncate(channel.len() - 5000);
        send(
            address,
            &Sent {
                main,
                channels: vec![channel],
            },
        );
    };
    let failure = fails_and_recovers(source, |_| ());
    assert_eq!(failure.leg, Leg::Source);
    assert!(
        matches!(failure.cause, Cause::Incomplete),
        "{}",
        failure.explain()
    );
}

#[test]
fn a_malformed_packet_closes_both_legs_and_is_named() {
    let source = |address: &Address| {
        let mut channels: Vec<_> = (0..4)
            .map(|id| channel_bytes(id, 2, Method::None))
            .collect();
        // The magic of the packet after the hello.
        channels[2][Hello::LEN] ^= 1;
        let back = send(
            address,
            &Sent {
                main: main_bytes(false),
                channels,
            },
        );
        assert!(back.is_empty());
    };
    let failure = fails_and_recovers(source, |_| ());
    assert_eq!(
        (failure.channel, failure.leg),
        (Channel::Multifd(2), Leg::Source)
    );
    assert!(
        matches!(failure.cause, Cause::Transport(TransportCause::Wire(_))),
        "{}",
        failure.explain()
    );
}

#[test]
fn a_destination_that_dies_ends_it() {
    let source = |address: &Address| {
        let channels = vec![channel_bytes(0, 200, Method::None)];
        send(
            address,
            &Sent {
                main: main_bytes(true),
                channels,
            },
        );
    };
    let destination = |acceptor: &mut Acceptor| {
        let Whole { incoming, channels } = accept(acceptor, 1);
        (&*incoming.main).write_all(PONG).unwrap();
        (&channels[0].stream).read_exact(&mut [0; 1 << 20]).unwrap();
    };
    let failure = fails_and_recovers(source, destination);
    assert_eq!(failure.leg, Leg::Destination);
    assert!(
        matches!(
            failure.cause,
            Cause::Transport(TransportCause::Io(_)) | Cause::Unconfirmed
        ),
        "{}",
        failure.explain()
    );
}

#[test]
fn a_refusal_reaches_the_source_and_is_a_failure() {
    let refusal = b"\0\x01\0\x04\0\0\0\x07";
    let source = |address: &Address| {
        let sent = Sent {
            main: main_bytes(true),
            channels: vec![channel_bytes(0, 1, Method::None)],
        };
        assert_eq!(send(address, &sent), [PONG, refusal].concat());
    };
    let failure = fails_and_recovers(source, |acceptor| drop(take(acceptor, 1, refusal)));
    assert_eq!(
        (failure.channel, failure.leg),
        (Channel::Main, Leg::Destination)
    );
    assert!(
        matches!(failure.cause, Cause::Refused { status: 7 }),
        "{}",
        failure.explain()
    );
}

#[test]
fn nobody_at_the_destination_closes_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let mut relay = Relay::bind(
        unix(folder.path(), "relay"),
        config(&unix(folder.path(), "nobody"), Method::None),
    )
    .unwrap();
    thread::scope(|scope| {
        let sent = Sent {
            main: main_bytes(false),
            channels: vec![channel_bytes(0, 1, Method::None)],
        };
        let address = relay.address().clone();
        let back = scope.spawn(move || send(&address, &sent));
        let failure = relay.serve_one(&mut |_| {}).unwrap_err();
        assert!(
            matches!(failure.cause, Cause::Dial { .. }),
            "{}",
            failure.explain()
        );
        back.join().unwrap();
    });
}

/// The destination stops reading a channel at its SYNC until main has come as far. So nothing may
/// wait for a channel that stalls, and the first SYNC must pass before the page size is known.
#[test]
fn a_stalled_channel_stalls_no_other_and_a_sync_passes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut destination = Acceptor::bind(&unix(folder.path(), "destination")).unwrap();
    let mut relay = Relay::bind(
        unix(folder.path(), "relay"),
        config(destination.address(), Method::None),
    )
    .unwrap();
    let main = main_bytes(false);
    let source_main = Stream::connect(relay.address()).unwrap();
    let [stalled, only_sync] = [0, 1].map(|_| Stream::connect(relay.address()).unwrap());
    let big = channel_bytes(0, 100, Method::None);
    thread::scope(|scope| {
        scope.spawn(|| relay.serve_one(&mut |_| {}).unwrap());
        scope.spawn(|| {
            (&stalled).write_all(&big).unwrap();
            stalled.shutdown(Shutdown::Write).unwrap();
        });
        // Hello and SYNC, and no more for now.
        let small = channel_bytes(1, 0, Method::None);
        let sync_end = Hello::LEN + 320 + 8 * PAGE.pages_per_packet();
        (&only_sync).write_all(&small[..sync_end]).unwrap();
        // Main waits at the end of a round only.
        let (main_start, main_rest) = main.split_at(main.len() - END.len());
        (&source_main).write_all(main_start).unwrap();

        let Whole { incoming, channels } = accept(&mut destination, 2);
        let deadline = Some(Duration::from_secs(10));
        let mut sync = vec![0; sync_end - Hello::LEN];
        let sync_reader = &channels[1].stream;
        sync_reader.set_read_timeout(deadline).unwrap();
        (&mut &*sync_reader)
            .read_exact(&mut sync)
            .expect("the SYNC passes although channel 0 stalls");
        assert!(sync == small[Hello::LEN..sync_end]);
        let mut rest = vec![0; main_start.len() - incoming.main_start.len()];
        incoming.main.set_read_timeout(deadline).unwrap();
        (&*incoming.main)
            .read_exact(&mut rest)
            .expect("main passes although channel 0 stalls");

        let begun = Instant::now();
        (&source_main).write_all(main_rest).unwrap();
        source_main.shutdown(Shutdown::Write).unwrap();
        (&only_sync).write_all(&small[sync_end..]).unwrap();
        only_sync.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        (&channels[0].stream).read_to_end(&mut rest).unwrap();
        assert!(rest == big[Hello::LEN..]);
        assert!(begun.elapsed() < Duration::from_secs(60));
    });
}
