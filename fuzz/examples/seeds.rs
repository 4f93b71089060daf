//! Writes the seeds, `fuzz/seeds/TARGET/*`, from the vectors in `testdata/wire`:
//!
//!     cd fuzz && cargo run --example seeds

#[path = "../../crates/multifd-wire/tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::{fs, io};

use multifd_codec::deflate::{Deflater, Effort, Histogram, PageDeflater, SharedCode, WindowSize};
use multifd_codec::{Pages, Settings};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, PageSize, RamPacket};
use support::vector;

/// How `channel`, `control`, `main_stream` and `return_path` cut their stream: by one byte, by headers, not at all.
const CUTS: [(&str, [u8; 8]); 3] = [
    ("bytes", [4; 8]),
    ("headers", [14, 70, 32, 4, 0, 90, 18, 150]),
    ("whole", [255; 8]),
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
    write("lengths", "short", b"\x02\x00\0\0\0\x01\0\0\0\x02abc")?;
    let streams = [
        ("channel", "qemu-10.0", qemu_10_0()),
        ("channel", "qemu-7.2", qemu_7_2()),
        ("channel", "pages-64k", pages_64k()),
        ("control", "source", vector("control-source.txt")),
        ("control", "destination", vector("control-destination.txt")),
        ("main_stream", "qemu-10.0", vector("main-10.0.txt")),
        ("main_stream", "qemu-7.2", vector("main-7.2.txt")),
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
    canned()
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

/// Two packets of two pages of 1 KiB: of one texture, so that the second goes on with the code of the first; and of two.
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

/// A SYNC with a page, and the empty packet behind it.
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
    let hello = Hello {
        uuid: [0; 16],
        channel: 3,
        reserved: [0; 39],
    };
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
