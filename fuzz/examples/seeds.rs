//! Writes the seeds, `fuzz/seeds/TARGET/*`, from the vectors in `testdata/wire` and the captures in
//! `testdata/captures`:
//!
//!     cd fuzz && cargo run --example seeds

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use multifd_codec::delta::{Sent, memory::Share};
use multifd_codec::{Pages, Settings};
use multifd_relay::recording::{Role, Writer};
use multifd_relay::trunk::{Compression, Digest, FrameWriter};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, PageSize, RamPacket};
use page_deflate::{Deflater, Effort, Histogram, PageDeflater, SharedCode, WindowSize};
use testkit::plain::PlainChannel;
use testkit::wire::vector;

/// How `channel`, `control`, `main_stream` and `return_path` cut their stream: by one byte, by
/// headers, not at all.
const CUTS: [(&str, [u8; 8]); 3] = [
    ("bytes", [4; 8]),
    ("headers", [14, 70, 32, 4, 0, 90, 18, 150]),
    ("whole", [255; 8]),
];

/// Scripts of `acceptor`: what happens, to whom, and more of it with a pause after.
const ACCEPTOR: [(&str, &[[u8; 3]]); 6] = [
    (
        "one",
        &[
            [0, 1, 0],
            [2, 0, 4],
            [5, 0, 1],
            [5, 16, 1],
            [12, 0, 0],
            [11, 0, 0],
        ],
    ),
    (
        "alike",
        &[
            [0, 1, 0],
            [0, 1, 0],
            [2, 0, 4],
            [2, 1, 4],
            [5, 0, 1],
            [5, 0, 1],
        ],
    ),
    (
        "stated",
        &[
            [0, 1, 0],
            [0, 1, 0],
            [5, 2, 1],
            [2, 0, 21],
            [2, 1, 37],
            [5, 1, 1],
        ],
    ),
    (
        "peers",
        &[
            [0, 1, 0],
            [5, 0, 2],
            [2, 0, 4],
            [0, 2, 0],
            [2, 1, 4],
            [5, 16, 1],
        ],
    ),
    (
        "again",
        &[
            [0, 1, 0],
            [2, 0, 4],
            [5, 0, 1],
            [5, 0, 1],
            [10, 0, 0],
            [9, 0, 90],
            [0, 1, 0],
            [2, 1, 4],
        ],
    ),
    (
        "engine",
        &[
            [14, 3, 0],
            [0, 5, 0],
            [2, 1, 6],
            [5, 3, 0],
            [5, 0, 5],
            [13, 5, 0],
            [15, 0, 1],
        ],
    ),
];

fn main() -> io::Result<()> {
    write("hello", "qemu-10.0", &vector("hello.txt"))?;
    for packet in [
        "ram-none",
        "sync-9.0",
        "sync-data-8.2",
        "empty-8.2",
        "ram-64k",
        "device-state",
    ] {
        write("packet", packet, &vector(&format!("{packet}.txt")))?;
    }
    let payload = vector("qpl-payload.txt");
    write("lengths", "qpl", &[&[3, 2], payload.as_slice()].concat())?;
    for (name, script) in ACCEPTOR {
        write("acceptor", name, &script.concat())?;
    }
    write("lengths", "short", b"\x02\x00\0\0\0\x01\0\0\0\x02abc")?;
    let streams = [
        ("channel", "qemu-10.0", qemu_10_0()),
        ("channel", "qemu-7.2", qemu_7_2()),
        ("channel", "pages-64k", pages_64k()),
        ("control", "source", vector("control-source.txt")),
        ("control", "destination", vector("control-destination.txt")),
        ("main_stream", "qemu-10.0", vector("main-10.0.txt")),
        ("main_stream", "qemu-7.2", vector("main-7.2.txt")),
        ("main_stream", "postcopy", vector("main-postcopy.txt")),
        ("return_path", "qemu-10.0", vector("return-path.txt")),
        ("return_path", "bitmap", b"\0\x05\0\x07\x06pc.ram\0\0\0\0\0\0\0\x03abc\x01\x23\x45\x67\x89\xab\xcd\xef\0\x06\0\x04\0\0\0\x01".to_vec()),
    ];
    for (target, name, stream) in streams {
        for (cut, lengths) in CUTS {
            write(
                target,
                &format!("{name}-{cut}"),
                &[&lengths, stream.as_slice()].concat(),
            )?;
        }
    }
    deflate()?;
    canned()?;
    delta()?;
    inlet()?;
    trunk()?;
    recording()
}

/// Vectors, each as what it is; and scripts of frames with changes.
fn trunk() -> io::Result<()> {
    for (choice, name) in [
        (0, "preface-main"),
        (0, "preface-channel"),
        (1, "preface-preempt"),
        (1, "preface-strand"),
        (0, "preface-strands"),
        (2, "accepted"),
        (2, "refused"),
        (3, "failure"),
        (4, "frames"),
    ] {
        let bytes = vector(&format!("trunk-{name}.txt"));
        // The targets of bodies put the envelope around them.
        let bytes = match choice {
            1 | 2 => &bytes[6..],
            _ => &bytes,
        };
        let data = [&CUTS[1].1, &[choice][..], bytes].concat();
        write("trunk", name, &data)?;
    }
    let mut compressed = Vec::new();
    let mut writer = FrameWriter::new(Digest::None, Compression::Zstd).expect("built with zstd");
    let was_smaller = writer.compressed(&b"some text. ".repeat(20), &mut compressed);
    assert_eq!(was_smaller, Ok(true));
    compressed.extend(writer.end().expect("not ended"));
    for (choice, name) in [(3, "compressed"), (4, "compressed-checked")] {
        let data = [&CUTS[2].1, &[choice][..], &compressed].concat();
        write("trunk", name, &data)?;
    }
    for (name, changes) in [
        ("whole", b"".as_slice()),
        ("lost", b"\x00\x01\x00"),
        ("repeated", b"\x01\x00\x00"),
        ("swapped", b"\x02\x00\x01"),
        ("changed", b"\x03\x01\x10"),
    ] {
        // Data, begun, compressed, alive, end.
        let script = b"\x00\x04\x02\x00\x07\x08\x03\x00\x05\x00";
        let data = [&CUTS[0].1, b"\x05".as_slice(), script, changes].concat();
        write("trunk", name, &data)?;
    }
    Ok(())
}

/// The beginnings of captured channels, a few packets each, with pages in three methods.
fn inlet() -> io::Result<()> {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/captures");
    let channels = [
        ("none2-11.1", 0_u8),
        ("zlib2-10.0", 4),
        ("zlib2-7.2", 1),
        ("zlib2-live-11.1", 7),
        ("zstd2-10.0", 0),
        ("zstd2-7.2", 6),
        ("zstd2-11.1", 4),
    ];
    for (index, (name, choice)) in channels.into_iter().enumerate() {
        let bytes = fs::read(captures.join(name).join("mfd0.fwd"))?;
        let channel = PlainChannel::read(&bytes, 4096);
        // From the first packet with contents on, as many as make a small seed.
        let first = channel.packets.iter().position(|packet| packet.payload > 0);
        let first = first.expect("a packet with contents");
        let starts = channel.packets.iter().map(|packet| packet.at);
        let ends = starts.skip(1).chain([bytes.len()]);
        let end = ends
            .enumerate()
            .skip(first)
            .take_while(|(number, end)| {
                *number == first || *end - channel.packets[first].at < 12_000
            })
            .map(|(_, end)| end)
            .last()
            .expect("a packet");
        let (_, cut) = CUTS[1 + index % 2];
        let hello = &bytes[..Hello::LEN];
        let packets = &bytes[channel.packets[first].at..end];
        write(
            "inlet",
            name,
            &[&cut, &[choice][..], hello, packets].concat(),
        )?;
    }
    for (name, stream) in [("pages-64k", pages_64k()), ("device-state", qemu_10_0())] {
        for choice in 0..4 {
            let data = [&CUTS[1].1, &[choice][..], &stream].concat();
            write("inlet", &format!("{name}-{choice}"), &data)?;
        }
    }
    Ok(())
}

/// A migration with two channels; one without; one that ends before its streams do.
fn recording() -> io::Result<()> {
    let main = vector("main-10.0.txt");
    let mut writer = Writer::new(Vec::new())?;
    let streams = [
        (Role::Channel, qemu_7_2()),
        (Role::Main, main.clone()),
        (Role::Channel, pages_64k()),
    ];
    let mut numbers = Vec::new();
    for (role, _) in &streams {
        numbers.push(writer.open(*role)?);
    }
    for half in 0..2 {
        for (number, (_, bytes)) in numbers.iter().zip(&streams) {
            let (first, second) = bytes.split_at(bytes.len() / 2);
            writer.data(*number, [first, second][half])?;
        }
    }
    for number in numbers {
        writer.eof(number)?;
    }
    write("recording", "two-channels", &writer.finish()?)?;

    let mut writer = Writer::new(Vec::new())?;
    let number = writer.open(Role::Main)?;
    writer.data(number, &main)?;
    writer.eof(number)?;
    let whole = writer.finish()?;
    write("recording", "main", &whole)?;
    write("recording", "cut-short", &whole[..whole.len() - 40])
}

/// Something like memory, for the encoder; and what it makes of it, for the decoder.
fn deflate() -> io::Result<()> {
    let words: Vec<u8> = (0_u32..12)
        .flat_map(|word| (0x7f00_1000 + word % 5 * 24).to_le_bytes())
        .chain(*b"a line of text, and another line of text, ")
        .chain((0_u8..50).map(|byte| byte.wrapping_mul(151)))
        .collect();
    for (name, choice) in [
        ("fast", [0, 20, 40]),
        ("balanced", [17, 1, 9]),
        ("dense", [2, 255, 100]),
    ] {
        write("deflate", name, &[&choice, words.as_slice()].concat())?;
    }
    let memory = words.repeat(3);
    let size = (memory.len() as u16).to_le_bytes();
    let mut run = Vec::new();
    Deflater::new(WindowSize::ThirtyTwoKiB, Effort::Balanced).compress(&memory, &mut run);
    write("inflate", "run", &[&size, run.as_slice()].concat())?;
    let mut deflater = PageDeflater::new(Effort::Dense);
    let [mut fixed, mut dynamic, mut body] = [size; 3].map(Vec::from);
    let code = SharedCode::new(&Histogram::new().code_lengths());
    let smaller = [
        deflater.fixed_page(&memory, &mut fixed),
        deflater.dynamic_page(&memory, &mut dynamic),
        deflater.body(&memory, &code, &mut body),
    ];
    assert_eq!(smaller, [true; 3]);
    write("inflate", "fixed", &fixed)?;
    write("inflate", "dynamic", &dynamic)?;
    write("inflate", "shared", &body)
}

/// Two packets of two pages of 1 KiB: of one texture, so that the second goes on with the code of
/// the first; and of two.
fn canned() -> io::Result<()> {
    let page_size = PageSize::MIN;
    let pages = |kind: u32| -> Vec<u8> {
        let noise = (0..2 * page_size.bytes() as u32).map(|at| at.wrapping_mul(0x9e37_79b9) >> 27);
        noise.map(|bits| (bits * 3 + kind) as u8).collect()
    };
    for (name, kinds) in [("one-code", [0, 0]), ("two-codes", [0, 128])] {
        let mut encoder =
            multifd_codec::encoder(Method::Canned, &Settings::default()).expect("always there");
        let payloads = kinds.map(|kind| {
            let mut payload = Vec::new();
            let bytes = pages(kind);
            let pages = Pages::private(&bytes, page_size).expect("two pages");
            encoder.encode(&pages, &mut payload).expect("a payload");
            payload
        });
        let first = (payloads[0].len() as u16).to_be_bytes();
        let head = [1, 0, first[0], first[1]];
        let [first, second] = &payloads;
        write("canned", name, &[&head, first.as_slice(), second].concat())?;
    }
    Ok(())
}

/// Scripts of packets that are changed on their way, or not; and payloads as they were sent.
fn delta() -> io::Result<()> {
    // First page, pages, place, change.
    let script =
        b"\x00\x0b\x00\x00\x00\x0b\x05\x0c\x02\x05\x00\xff\x00\x0b\x11\x08\x03\x04\x00\x00";
    for (name, method) in [
        ("none", 1),
        ("zlib", 3),
        ("qpl", 5),
        ("none-in-place", 7),
        ("zlib-in-place", 9),
    ] {
        let whole = [&[method, 0, 0, 255][..], script].concat();
        write("delta", &format!("{name}-whole"), &whole)?;
        let changed = [&[method, 0x12, 0x34, 1][..], script].concat();
        write("delta", &format!("{name}-changed"), &changed)?;
    }
    // Two packets of three pages of the guest of the target.
    let page_size = PageSize::MIN;
    let offsets: Vec<u64> = (0..3).map(|page| page * page_size.bytes() as u64).collect();
    for (name, method, choice) in [
        ("payloads-none", Method::None, 0),
        ("payloads-zlib", Method::Zlib, 2),
        ("payloads-none-in-place", Method::None, 6),
    ] {
        let share = Share::take(64 << 10);
        let sent = Arc::new(match choice {
            0..6 => Sent::new(share),
            _ => Sent::in_place(share),
        });
        let inner = multifd_codec::Encoder::new(method, &Settings::default()).expect("a method");
        let mut encoder = multifd_codec::delta::Encoder::new(inner, Some(sent));
        let mut data = vec![choice];
        for round in 0..3_u8 {
            let block = BlockName::try_from("pc.ram").expect("a name");
            let packet = RamPacket::new(page_size, block, &offsets, &[], 0).expect("a packet");
            let mut pages = vec![7; 3 * page_size.bytes()];
            pages[9] = round;
            pages[1500] = round / 2;
            let mut payload = Vec::new();
            encoder.push(pages.into(), 0, packet);
            encoder.pop(&mut payload).expect("encoded");
            data.push(2);
            data.extend((payload.len() as u16).to_be_bytes());
            data.extend(payload);
        }
        write("delta", name, &data)?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

/// The SYNC which does not tell the page size, two packets with pages, the state of a device.
fn qemu_10_0() -> Vec<u8> {
    let mut packet = vector("ram-none.txt");
    packet[11] = 2;
    packet[20..24].copy_from_slice(&5_u32.to_be_bytes());
    [
        vector("hello.txt"),
        vector("sync-9.0.txt"),
        packet,
        b"zlib!".to_vec(),
        vector("sync-9.0.txt"),
        vector("device-state.txt"),
        vec![0xa5; 16],
    ]
    .concat()
}

/// A SYNC with a page, and the empty packet after it.
fn qemu_7_2() -> Vec<u8> {
    [
        vector("hello.txt"),
        vector("sync-data-8.2.txt"),
        vec![0xa5; 64],
        vector("empty-8.2.txt"),
    ]
    .concat()
}

/// The shortest headers, so that a fuzzer gets far.
fn pages_64k() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sender = ChannelSender::new();
    let hello = Hello::new([0; 16], 3);
    let block = BlockName::try_from("mach-virt.ram").expect("a name");
    let mut pages =
        RamPacket::new(PageSize::MAX, block, &[0x20000, 0x10000], &[0], 1).expect("a packet");
    pages.set_payload(Method::Zstd, 4).expect("a length");
    let sync = || Packet::Ram(RamPacket::sync(PageSize::MAX, 0));
    sender.hello(&hello, &mut bytes).expect("in turn");
    sender.packet(&sync(), &mut bytes).expect("in turn");
    sender
        .packet(&Packet::Ram(pages), &mut bytes)
        .expect("in turn");
    bytes.extend(b"zstd");
    sender.payload_sent(4).expect("in turn");
    sender.packet(&sync(), &mut bytes).expect("in turn");
    bytes
}
