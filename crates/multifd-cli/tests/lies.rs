//! Migrations with one lie in them, told over sockets: whoever takes them says what is wrong on
//! which channel, ends with a failure, leaves nothing behind and never hangs.

mod support;

use std::path::Path;
use std::thread;

use multifd_codec::{Pages, Settings};
use multifd_wire::Method;
use serde_json::Value;
use support::made::{
    self, BLOCK, BLOCK_BYTES, Channel, FLUSH, Main, PAGE, PAGE_BYTES, sound, zero_record,
};
use support::peers::{Destination, SHUT_WELL};
use support::{Ended, Migration, Multifd, files, receive, record, send};

/// Who can know that it is a lie.
#[derive(Clone, Copy, PartialEq)]
enum Knows {
    /// Everybody who follows the channels.
    All,
    /// Whoever decodes pages.
    Decoders,
    /// Whoever brings channels, rounds and RAM blocks together.
    Takers,
    /// Whoever has the RAM blocks.
    Receive,
}

struct Lie {
    knows: Knows,
    migration: Migration,
    /// What the error has to say, in this order.
    says: &'static [&'static str],
}

const MALFORMED: &str = "channel 1, source side: the stream is malformed";

// Where the first packet with pages stands in a channel: after the hello and a SYNC.
const PACKET: usize = 64 + 1344;
const VERSION: usize = PACKET + 4;
const FLAGS: usize = PACKET + 8;
const PAGES_ALLOC: usize = PACKET + 12;
const NORMAL_PAGES: usize = PACKET + 16;
const NEXT_PACKET_SIZE: usize = PACKET + 20;
const ZERO_PAGES: usize = PACKET + 32;
const OFFSETS: usize = PACKET + 320;

#[rustfmt::skip] // One lie, one line.
fn lies() -> Vec<Lie> {
    use Knows::{All, Decoders, Receive, Takers};
    vec![
        // Packets.
        patched(All, PACKET, b"\x51", &[MALFORMED, "0x51223344"]),
        patched(All, VERSION, b"\0\0\0\x02", &[MALFORMED, "version 2"]),
        patched(All, FLAGS, b"\0\0\0\x41", &[MALFORMED, "0x41"]),
        patched(All, PAGES_ALLOC, b"\0\0\0\x81", &[MALFORMED, "129"]),
        patched(All, PAGES_ALLOC, b"\xff\xff\xff\xff", &[MALFORMED, "4294967295"]),
        patched(All, NORMAL_PAGES, b"\0\0\0\x81", &[MALFORMED, "129"]),
        patched(All, NORMAL_PAGES, b"\xff\xff\xff\xff", &[MALFORMED, "4294967295"]),
        patched(All, ZERO_PAGES, b"\0\0\0\x80", &[MALFORMED, "128"]),
        patched(All, OFFSETS, b"\xff\xff\xff\xff\xff\xff\xf0\0", &[MALFORMED, "0xfffffffffffff000"]),
        patched(All, OFFSETS + 6, b"\x38", &[MALFORMED, "0x3800"]),
        patched(All, NEXT_PACKET_SIZE, b"\0\0\x0f\xff", &[MALFORMED, "4095"]),
        patched(All, NEXT_PACKET_SIZE, b"\0\0\x10\x01", &[MALFORMED, "4097"]),
        patched(All, NEXT_PACKET_SIZE, b"\xff\xff\xff\xff", &[MALFORMED, "4294967295"]),
        with(All, Method::Zlib, |migration| patch(migration, NEXT_PACKET_SIZE, b"\0\x10\0\x01"), &[MALFORMED, "1048577"]),
        with(All, Method::Zlib, |migration| patch(migration, NEXT_PACKET_SIZE, b"\0\0\0\0"), &[MALFORMED, "0"]),
        with(All, Method::None, |migration| { migration.channels[1] = two_pages(); patch(migration, OFFSETS + 8 + 6, b"\x10") }, &[MALFORMED, "0x1000"]),
        // Payloads.
        patched(Decoders, FLAGS, b"\0\0\0\x3a", &["channel 1, source side, block pc.ram", "0x3a"]),
        patched(Decoders, FLAGS, b"\0\0\0\x02", &["channel 1, source side, block pc.ram", "cannot be decoded"]),
        payload(Decoders, 2, 1, &["channel 1, source side, block pc.ram", "cannot be decoded"]),
        payload(Decoders, 1, 2, &["channel 1, source side, block pc.ram", "cannot be decoded"]),
        with(Decoders, Method::Zlib, |migration| { migration.channels[1].truncate(PACKET); migration.channels[1].extend_from_slice(&pages_behind(&[Method::Zlib, Method::Zstd])); }, &["channel 1", "changed from zlib to zstd"]),
        // Ends.
        cut(All, PACKET + 100, &[MALFORMED, "ends"]),
        cut(All, OFFSETS + 1024 + 100, &["channel 1, source side, block pc.ram", "ends"]),
        cut(Takers, PACKET, &["channel 1", "ended after 1 SYNC packets"]),
        // It is taken and ends too early, or it is closed before it is taken and carries nothing.
        cut(Takers, 64, &["channel"]),
        // Blocks.
        patched(Takers, OFFSETS, &BLOCK_BYTES.to_be_bytes(), &["channel 1, source side, block pc.ram", "0x6000"]),
        channel(Takers, Channel::new(1, Method::None).sync().packet("pc.rom", &[0], &[], &[1; PAGE_BYTES]), &["channel 1, source side, block pc.rom", "did not announce"]),
        // The main channel.
        main(Takers, |main| { let end = main.len() - 1; main.truncate(end) }, &["main channel", "before it was complete"]),
        main(Takers, |main| replace(main, b"\x06pc.ram\0\0\0\0\0\0\x60\0", b"\x06pc.ram\xff\xff\xff\xff\xff\xf0\0\0"), &["main channel", "malformed"]),
        main(Receive, |main| replace(main, b"\x06pc.ram\0\0\0\0\0\0\x60\0", b"\x06../../\0\0\0\0\0\0\x60\0"), &["pc.ram"]),
        main(Receive, |main| replace(main, b"\x06pc.ram\0\0\0\0\0\0\x60\0", b"\x06\x1b[31m\x07\0\0\0\0\0\0\x60\0"), &["cannot become a file"]),
        Lie {
            knows: Takers,
            migration: Migration { main: Main { machine: "none", return_path: false, bodies: &[&FLUSH, &zero_record(BLOCK_BYTES), &FLUSH] }.bytes(), ..sound(Method::None, false) },
            says: &["main channel", "malformed", "0x6000"],
        },
    ]
}

/// Tells all lies that `who` can know of, at once.
fn tell(who: &[Knows], tell: impl Fn(Lie) + Sync) {
    let tell = &tell;
    thread::scope(|scope| {
        for lie in lies().into_iter().filter(|lie| who.contains(&lie.knows)) {
            scope.spawn(move || tell(lie));
        }
    });
}

#[test]
fn receive_says_what_is_wrong() {
    let who = [Knows::All, Knows::Decoders, Knows::Takers, Knows::Receive];
    tell(&who, |lie| {
        let folder = tempfile::tempdir().expect("a folder");
        let images = folder.path().join("ram");
        let mut receiving = receive(&images);
        let back = send(&lie.migration, &receiving.address());
        assert!(!back.ends_with(&SHUT_WELL), "{:?}: {back:?}", lie.says);
        fails_with(receiving.end(), lie.says);
        assert!(files(&images).is_empty(), "{:?}", lie.says);
    });
}

#[test]
fn record_says_what_is_wrong() {
    tell(&[Knows::All, Knows::Takers], |lie| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut recording = record(&folder.path().join("recording"));
        let back = send(&lie.migration, &recording.address());
        assert!(!back.ends_with(&SHUT_WELL), "{:?}: {back:?}", lie.says);
        fails_with(recording.end(), lie.says);
        assert!(files(folder.path()).is_empty(), "{:?}", lie.says);
    });
}

/// A relay that writes a method which the lies are not told in, so that all are decoded, and a
/// destination that takes everything and has no last word.
fn relay(folder: &Path, migration: &Migration) -> (Multifd, Destination) {
    let listen = format!("unix:{}", folder.join("s").display());
    let destination = Destination::new(folder, migration.channels.len());
    let connect = destination.address.to_string();
    let way = [
        "relay",
        "--once",
        "--json",
        "--listen",
        &listen,
        "--connect",
        &connect,
    ];
    let relay = Multifd::start([&way[..], &["--compression", "zstd"]].concat());
    (relay, destination)
}

#[test]
fn relay_says_what_is_wrong() {
    tell(&[Knows::All, Knows::Decoders], |lie| {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut relay, _destination) = relay(folder.path(), &lie.migration);
        let back = send(&lie.migration, &relay.address());
        assert!(!back.ends_with(&SHUT_WELL), "{:?}: {back:?}", lie.says);
        let ended = relay.end();
        let failed: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!(failed["confirmed"], false, "{failed}");
        fails_with(ended, lie.says);
    });
}

/// What a relay does not understand of main is for the destination to judge.
#[test]
fn relay_passes_on_what_is_wrong_on_main_and_remarks_it() {
    let on_main = |lie: &Lie| {
        let ordinary = [false, true].map(|return_path| sound(Method::None, return_path).main);
        !ordinary.contains(&lie.migration.main)
    };
    let lies: Vec<_> = lies().into_iter().filter(on_main).collect();
    assert!(lies.len() >= 5, "{}", lies.len());
    for Lie {
        migration, knows, ..
    } in lies
    {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut relay, destination) = relay(folder.path(), &migration);
        thread::scope(|scope| {
            let address = relay.address();
            scope.spawn(|| destination.take_packets(&migration));
            send(&migration, &address);
        });
        let seen = destination.seen();
        assert!(seen.main().bytes == migration.main);
        assert_eq!(seen.connections.len(), 1 + migration.channels.len());
        let ended = relay.end();
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!(report["confirmed"], Value::Null, "{report}");
        // A block may be called as it likes.
        let is_followed = knows == Knows::Receive;
        let remarks = report["remarks"].as_array().expect("a list");
        assert_eq!(remarks.is_empty(), is_followed, "{report}");
        assert_eq!(ended.status.code(), Some(0));
    }
}

/// Who begins as a main channel and is none is a stranger, and no migration that fails.
#[test]
fn a_main_channel_of_the_future_is_passed_over_by_name() {
    let mut future = sound(Method::None, true);
    future.main[7] = 2;
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("ram");
    let mut receiving = receive(&images);
    let mut recording = record(&folder.path().join("recording"));
    let (mut relay, destination) = relay(folder.path(), &future);
    for multifd in [&mut receiving, &mut recording, &mut relay] {
        let address = multifd.address();
        assert!(send(&future, &address).is_empty());
        let note = multifd.complaint();
        let (at, words) = (note.find("a migration that had not begun"), "version 2");
        assert!(at.is_some_and(|at| note[at..].contains(words)), "{note}");
        let sound = sound(Method::None, true);
        thread::scope(|scope| {
            let is_relay = address.to_string().ends_with("/s");
            if is_relay {
                scope.spawn(|| destination.take_packets(&sound));
            }
            let back = send(&sound, &address);
            assert!(back.ends_with(&SHUT_WELL), "{back:?}");
        });
    }
    for multifd in [receiving, recording, relay] {
        multifd.end().well();
    }
}

fn fails_with(ended: Ended, says: &[&str]) {
    assert!(!ended.status.success(), "{says:?}: {ended:?}");
    assert_eq!(ended.status.code(), Some(1), "{says:?}: {ended:?}");
    assert!(
        ended.stdout.is_empty() || ended.stdout.contains("\"error\":"),
        "{ended:?}"
    );
    let mut rest = ended.stderr.as_str();
    for word in says {
        let at = rest
            .find(word)
            .unwrap_or_else(|| panic!("{word:?} is not said: {}", ended.stderr));
        rest = &rest[at + word.len()..];
    }
}

fn with(
    knows: Knows,
    method: Method,
    lie: impl FnOnce(&mut Migration),
    says: &'static [&'static str],
) -> Lie {
    let mut migration = sound(method, false);
    lie(&mut migration);
    Lie {
        knows,
        migration,
        says,
    }
}

/// Bytes of channel 1 changed.
fn patched(knows: Knows, at: usize, bytes: &[u8], says: &'static [&'static str]) -> Lie {
    with(
        knows,
        Method::None,
        |migration| patch(migration, at, bytes),
        says,
    )
}

fn patch(migration: &mut Migration, at: usize, bytes: &[u8]) {
    migration.channels[1][at..at + bytes.len()].copy_from_slice(bytes);
}

/// Another channel 1.
fn channel(knows: Knows, channel: Channel, says: &'static [&'static str]) -> Lie {
    with(
        knows,
        Method::None,
        |migration| migration.channels[1] = channel.bytes(),
        says,
    )
}

/// Channel 1 ends early, and all others stay open.
fn cut(knows: Knows, len: usize, says: &'static [&'static str]) -> Lie {
    let mut migration = sound(Method::None, true);
    migration.channels[1].truncate(len);
    migration.closed = Some(1);
    Lie {
        knows,
        migration,
        says,
    }
}

/// The bytes of main changed.
fn main(knows: Knows, lie: impl FnOnce(&mut Vec<u8>), says: &'static [&'static str]) -> Lie {
    with(
        knows,
        Method::None,
        |migration| lie(&mut migration.main),
        says,
    )
}

/// A zlib payload of `inflated` pages in a packet of `stated`.
fn payload(knows: Knows, inflated: usize, stated: usize, says: &'static [&'static str]) -> Lie {
    let contents = vec![1; inflated * PAGE_BYTES];
    let mut encoder = multifd_codec::encoder(Method::Zlib, &Settings::default()).expect("a method");
    let mut payload = Vec::new();
    encoder
        .encode(
            &Pages::private(&contents, PAGE).expect("pages"),
            &mut payload,
        )
        .expect("a payload");
    let offsets: Vec<u64> = (0..stated as u64)
        .map(|page| page * PAGE_BYTES as u64)
        .collect();
    let sound_channel = Channel::new(1, Method::Zlib).sync().packet(
        BLOCK,
        &offsets,
        &[],
        &vec![0; stated * PAGE_BYTES],
    );
    let mut bytes = sound_channel.bytes();
    bytes.truncate(PACKET + 1344);
    bytes[NEXT_PACKET_SIZE..][..4].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&payload);
    with(
        knows,
        Method::Zlib,
        |migration| migration.channels[1] = bytes,
        says,
    )
}

/// One packet of pages in each of `methods`, without what stands before them on a channel.
fn pages_behind(methods: &[Method]) -> Vec<u8> {
    methods
        .iter()
        .flat_map(|&method| {
            Channel::new(1, method)
                .sync()
                .pages(&[(0, 1)], &[])
                .bytes()
                .split_off(PACKET)
        })
        .collect()
}

/// A channel 1 whose first packet has pages at 0x1000 and 0x2000.
fn two_pages() -> Vec<u8> {
    Channel::new(1, Method::None)
        .sync()
        .pages(&[(0x1000, 1)], &[0x2000])
        .bytes()
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let at = bytes
        .windows(old.len())
        .position(|window| window == old)
        .expect("the old bytes");
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// The table above tells the truth about what is no lie.
#[test]
fn without_a_lie_it_goes_through() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("ram");
    let mut receiving = receive(&images);
    send(&sound(Method::None, false), &receiving.address());
    receiving.end().well();
    assert_eq!(
        made::pages(&images.join("pc.ram.ram"), 6),
        made::SOUND_PAGES
    );
}
