//! Streams that lie. Each is a sound vector with a few bytes changed, and has exactly one answer,
//! in whatever cut it comes.

use multifd_wire::lengths::{self, PageData};
use multifd_wire::main_stream::MainReceiver;
use multifd_wire::return_path::ReturnPathReceiver;
use multifd_wire::{
    ChannelReceiver, DeviceStatePacket, Event, Fault, IdStr, Limits, MAGIC, Method, PageSize,
    RamPacket,
};
use testkit::wire::{CUTS, pieces, vector};

/// Bytes to change: where, and to what.
type Patch = (usize, &'static [u8]);

// Where the fields of a packet stand.
const VERSION: usize = 4;
const FLAGS: usize = 8;
const PAGES_ALLOC: usize = 12;
const NORMAL_PAGES: usize = 16;
const NEXT_PACKET_SIZE: usize = 20;
const ZERO_PAGES: usize = 32;
const RAMBLOCK: usize = 64;
const OFFSETS: usize = 320;
const IDSTR: usize = 12;
const DEVICE_NEXT_PACKET_SIZE: usize = 272;

#[test]
fn packets() {
    let page_size = PageSize::K4;
    let payload = |found, least, most| Fault::PayloadLength { found, least, most };
    let none = "ram-none.txt";
    let zlib = "sync-data-8.2.txt";
    let device = "device-state.txt";
    #[rustfmt::skip] // One lie, one line.
    let lies: &[(&str, &[Patch], Fault)] = &[
        (none, &[(0, b"\x51")], Fault::Magic { found: 0x5122_3344, allowed: MAGIC }),
        (none, &[(VERSION, b"\0\0\0\x02")], Fault::Version { found: 2, allowed: 1 }),
        (none, &[(FLAGS, b"\0\0\0\x41")], Fault::SyncWithDeviceState { flags: 0x41 }),
        (device, &[(FLAGS, b"\0\0\0\x41")], Fault::SyncWithDeviceState { flags: 0x41 }),
        // Room for pages.
        (none, &[(PAGES_ALLOC, b"\0\0\0\x81")], Fault::PagesPerPacket { found: 129 }),
        (none, &[(PAGES_ALLOC, b"\0\0\0\x04")], Fault::PagesPerPacket { found: 4 }),
        (none, &[(PAGES_ALLOC, b"\0\0\x04\0")], Fault::PagesPerPacket { found: 1024 }),
        (none, &[(PAGES_ALLOC, b"\xff\xff\xff\xff")], Fault::PagesPerPacket { found: u32::MAX as usize }),
        // Pages beyond it.
        (none, &[(PAGES_ALLOC, b"\0\0\0\0")], Fault::NormalPages { found: 2, allowed: 0 }),
        (none, &[(NORMAL_PAGES, b"\0\0\0\x81")], Fault::NormalPages { found: 129, allowed: 128 }),
        (none, &[(NORMAL_PAGES, b"\xff\xff\xff\xff")], Fault::NormalPages { found: u32::MAX, allowed: 128 }),
        (none, &[(ZERO_PAGES, b"\0\0\0\x7f")], Fault::ZeroPages { found: 127, allowed: 126 }),
        (none, &[(ZERO_PAGES, b"\xff\xff\xff\xff")], Fault::ZeroPages { found: u32::MAX, allowed: 126 }),
        // Names.
        (none, &[(RAMBLOCK, b"\0")], Fault::EmptyName),
        (none, &[(RAMBLOCK, b"\0"), (NORMAL_PAGES, b"\0\0\0\0")], Fault::EmptyName),
        (device, &[(IDSTR, b"\0")], Fault::EmptyName),
        (device, &[(IDSTR, &[b'x'; 256])], Fault::UnterminatedName),
        // Offsets.
        (none, &[(OFFSETS + 7, b"\x01")], Fault::OffsetUnaligned { found: 0x3001, page_size }),
        (none, &[(OFFSETS + 16 + 6, b"\x28")], Fault::OffsetUnaligned { found: 0x2800, page_size }),
        (none, &[(OFFSETS + 8 + 6, b"\x30")], Fault::OffsetRepeated { found: 0x3000 }),
        (none, &[(OFFSETS + 16 + 6, b"\x10")], Fault::OffsetRepeated { found: 0x1000 }),
        (none, &[(OFFSETS, b"\xff\xff\xff\xff\xff\xff\xf0\0")], Fault::OffsetOutside { found: 0xffff_ffff_ffff_f000, allowed: (1 << 52) - 0x1000 }),
        (none, &[(OFFSETS, b"\0\x10\0\0\0\0\0\0")], Fault::OffsetOutside { found: 1 << 52, allowed: (1 << 52) - 0x1000 }),
        // Payloads.
        (none, &[(NEXT_PACKET_SIZE, b"\0\0\x1f\xff")], payload(8191, 8192, 8192)),
        (none, &[(NEXT_PACKET_SIZE, b"\0\0\x20\x01")], payload(8193, 8192, 8192)),
        (none, &[(NEXT_PACKET_SIZE, b"\0\0\0\0")], payload(0, 8192, 8192)),
        (zlib, &[(NEXT_PACKET_SIZE, b"\0\0\0\0")], payload(0, 1, 1 << 20)),
        (zlib, &[(NEXT_PACKET_SIZE, b"\0\x10\0\x01")], payload((1 << 20) + 1, 1, 1 << 20)),
        (zlib, &[(NEXT_PACKET_SIZE, b"\xff\xff\xff\xff")], payload(u32::MAX, 1, 1 << 20)),
        (zlib, &[(FLAGS, b"\0\0\0\x04"), (NEXT_PACKET_SIZE, b"\0\0\0\0")], payload(0, 1, 1 << 20)),
        (zlib, &[(FLAGS, b"\0\0\0\x20"), (NEXT_PACKET_SIZE, b"\0\0\0\0")], payload(0, 1, 1 << 20)),
        (zlib, &[(FLAGS, b"\0\0\0\x3c"), (NEXT_PACKET_SIZE, b"\0\0\0\0")], payload(0, 1, 1 << 20)),
        (zlib, &[(FLAGS, b"\0\0\0\x3e"), (NEXT_PACKET_SIZE, b"\0\0\0\x03")], payload(3, 4, 4 + 4096 + 512)),
        (zlib, &[(FLAGS, b"\0\0\0\x3e"), (NEXT_PACKET_SIZE, b"\0\0\x12\x05")], payload(4613, 4, 4 + 4096 + 512)),
        (zlib, &[(FLAGS, b"\0\0\0\x08"), (NEXT_PACKET_SIZE, b"\0\0\0\x03")], payload(3, 4, 4 + 4096)),
        (zlib, &[(FLAGS, b"\0\0\0\x10"), (NEXT_PACKET_SIZE, b"\0\0\x10\x05")], payload(4101, 4, 4 + 4096)),
        (device, &[(DEVICE_NEXT_PACKET_SIZE, b"\0\0\0\0")], payload(0, 1, u32::MAX)),
    ];
    for (file, patches, fault) in lies {
        let header = patched(file, patches);
        for cut in CUTS {
            let mut receiver = after_hello(Limits::default());
            assert_eq!(
                first_fault(&mut receiver, &header, cut),
                Some(*fault),
                "{file} {patches:?} cut {cut:?}"
            );
            assert_eq!(
                receiver.push(&mut &[][..]),
                Err(*fault),
                "a machine stays at its fault"
            );
            assert_eq!(receiver.finish(), Err(*fault));
            assert_eq!(receiver.wanted(), 0);
        }
    }
}

/// What is just not a lie.
#[test]
fn packets_with_the_largest_numbers_allowed() {
    let (none, zlib) = ("ram-none.txt", "sync-data-8.2.txt");
    #[rustfmt::skip] // One packet, one line.
    let cases: &[(&str, &[Patch])] = &[
        (none, &[(OFFSETS, b"\0\x0f\xff\xff\xff\xff\xf0\0")]),
        (none, &[(PAGES_ALLOC, b"\0\0\0\x80"), (ZERO_PAGES, b"\0\0\0\x02")]),
        (none, &[(RAMBLOCK, &[b'x'; 256])]),
        (zlib, &[(NEXT_PACKET_SIZE, b"\0\0\0\x01")]),
        (zlib, &[(NEXT_PACKET_SIZE, b"\0\x10\0\0")]),
        (zlib, &[(FLAGS, b"\0\0\0\x08"), (NEXT_PACKET_SIZE, b"\0\0\0\x04")]),
        (zlib, &[(FLAGS, b"\0\0\0\x10"), (NEXT_PACKET_SIZE, b"\0\0\x10\x04")]),
        (zlib, &[(FLAGS, b"\xff\xff\xff\xbf")]),
        ("device-state.txt", &[(DEVICE_NEXT_PACKET_SIZE, b"\xff\xff\xff\xff")]),
    ];
    for (file, patches) in cases {
        let header = patched(file, patches);
        let mut receiver = after_hello(Limits::default());
        let event = receiver.push(&mut header.as_slice());
        let Ok(Some(Event::Packet(packet))) = event else {
            panic!("{file} {patches:?}: {event:?}");
        };
        let mut rebuilt = Vec::new();
        packet.encode(&mut rebuilt);
        assert_eq!(rebuilt, header, "{file} {patches:?}");
    }
}

#[test]
fn packets_against_limits() {
    let strict = Limits::default()
        .with_compressed_payload_bytes(63)
        .with_device_state_bytes(15)
        .with_block_bytes(0x3fff);
    let too_long = |found, most| Fault::PayloadLength {
        found,
        least: 1,
        most,
    };
    let outside = Fault::OffsetOutside {
        found: 0x3000,
        allowed: 0x2fff,
    };
    #[rustfmt::skip] // One lie, one line.
    let cases = [
        ("ram-none.txt", strict, outside),
        ("sync-data-8.2.txt", strict, too_long(64, 63)),
        ("device-state.txt", strict, too_long(16, 15)),
        // A block smaller than a page has no page at all.
        ("sync-data-8.2.txt", Limits::default().with_block_bytes(1), Fault::OffsetOutside { found: 0, allowed: 0 }),
    ];
    for (file, limits, fault) in cases {
        let mut receiver = after_hello(limits);
        assert_eq!(
            first_fault(&mut receiver, &vector(file), &[usize::MAX]),
            Some(fault),
            "{file}"
        );
    }
}

#[test]
fn a_page_size_which_is_known_binds_all_packets() {
    let eight_kib = PageSize::new(8192).expect("a page size");
    let too_many = Fault::PagesAllocated {
        found: 128,
        allowed: 64,
    };
    let mut receiver = after_hello(Limits::default().with_page_size(eight_kib));
    assert_eq!(
        first_fault(&mut receiver, &vector("ram-none.txt"), &[usize::MAX]),
        Some(too_many)
    );

    // The same after a packet that made it known.
    let mut receiver = after_hello(Limits::default());
    let stream = [
        vector("empty-8.2.txt"),
        patched("ram-none.txt", &[(PAGES_ALLOC, b"\0\0\x01\0")]),
    ]
    .concat();
    let too_many = Fault::PagesAllocated {
        found: 256,
        allowed: 128,
    };
    assert_eq!(
        first_fault(&mut receiver, &stream, &[usize::MAX]),
        Some(too_many)
    );
}

#[test]
fn first_tables_of_no_page_size() {
    let sync = vector("sync-9.0.txt");
    let next = vector("ram-none.txt");
    let entries = |entries: usize| [&sync[..OFFSETS + 8 * entries], &next].concat();
    #[rustfmt::skip] // One lie, one line.
    let cases = [
        (9, Fault::PagesPerPacket { found: 9 }),
        (127, Fault::PagesPerPacket { found: 127 }),
        // A table of 64 entries says 8 KiB, and the next packet has room for 128 pages.
        (64, Fault::PagesAllocated { found: 128, allowed: 64 }),
    ];
    for (count, fault) in cases {
        for cut in CUTS {
            let mut receiver = after_hello(Limits::default());
            assert_eq!(
                first_fault(&mut receiver, &entries(count), cut),
                Some(fault),
                "{count} entries, cut {cut:?}"
            );
        }
    }
    let mut receiver = after_hello(Limits::default());
    let endless = [&sync[..OFFSETS], &[0; 8 * 513]].concat();
    assert_eq!(first_fault(&mut receiver, &endless, &[usize::MAX]), None);
    assert_eq!(
        receiver.page_size(),
        Some(PageSize::MIN),
        "no table is longer than 512 entries"
    );
    let mut receiver = after_hello(Limits::default());
    let junk = [&sync[..OFFSETS + 64], &[0, 0, 0, 0, 0, 0, 0, 1]].concat();
    assert_eq!(
        first_fault(&mut receiver, &junk, &[1]),
        Some(Fault::Magic {
            found: 0,
            allowed: MAGIC
        })
    );
}

#[test]
fn streams_cut_short() {
    let stream = [
        vector("hello.txt"),
        vector("sync-9.0.txt"),
        vector("ram-none.txt"),
        vec![0; 8192],
        vector("device-state.txt"),
        vec![0; 16],
    ]
    .concat();
    // The first table may be over at each power of two.
    let sync = [8, 16, 32, 64, 128].map(|entries| 64 + OFFSETS + 8 * entries);
    let whole = [
        &[64],
        sync.as_slice(),
        &[64 + 2 * 1344 + 8192, stream.len()],
    ]
    .concat();
    for len in 0..=stream.len() {
        let (_, end) = testkit::wire::channel_events(&stream[..len], &[usize::MAX]);
        if whole.contains(&len) {
            assert_eq!(end, Ok(()), "{len} bytes");
        } else {
            assert!(
                matches!(end, Err(Fault::Truncated { missing: 1.. })),
                "{len} bytes: {end:?}"
            );
        }
    }
}

#[test]
fn length_tables() {
    let page = |page, found| Fault::PageLength {
        page,
        found,
        most: 4096,
    };
    #[rustfmt::skip] // One lie, one line.
    let lies: &[(&[u8], usize, Fault)] = &[
        (b"", 1, Fault::LengthTable { found: 0, needed: 4 }),
        (b"\0\0\0", 1, Fault::LengthTable { found: 3, needed: 4 }),
        (b"\0\0\0\x01x", 2, Fault::LengthTable { found: 5, needed: 8 }),
        (b"\0\0\0\x01x", usize::MAX, Fault::LengthTable { found: 5, needed: usize::MAX }),
        (b"\0\0\0\0", 1, page(0, 0)),
        (b"\0\0\0\x01\0\0\x10\x01x", 2, page(1, 4097)),
        (b"\xff\xff\xff\xff", 1, page(0, u32::MAX as usize)),
        (b"\0\0\0\x02x", 1, Fault::LengthSum { found: 2, allowed: 1 }),
        (b"\0\0\0\x02xyz", 1, Fault::LengthSum { found: 2, allowed: 3 }),
        (b"x", 0, Fault::LengthSum { found: 0, allowed: 1 }),
    ];
    for (payload, pages, fault) in lies {
        assert_eq!(
            lengths::parse(payload, *pages, PageSize::K4).err(),
            Some(*fault),
            "{payload:?}"
        );
    }

    let mut out = Vec::new();
    let raw_page = [0; 4096];
    #[rustfmt::skip] // One lie, one line.
    let lies = [
        (PageData::Raw(&raw_page[1..]), page(1, 4095)),
        (PageData::Compressed(&raw_page), page(1, 4096)),
        (PageData::Compressed(&[]), page(1, 0)),
    ];
    for (lie, fault) in lies {
        let pages = [PageData::Raw(&raw_page), lie];
        assert_eq!(lengths::write(&pages, PageSize::K4, &mut out), Err(fault));
        assert!(out.is_empty());
    }
}

#[test]
fn packets_of_our_own() {
    let pc_ram = || IdStr::try_from("pc.ram").expect("a name");
    let ram = |normal: &[u64], zero: &[u64]| {
        RamPacket::new(PageSize::K4, pc_ram(), normal, zero, 0).err()
    };
    let many: Vec<_> = (0..129).map(|page| page * 4096).collect();
    assert_eq!(
        ram(&many, &[]),
        Some(Fault::NormalPages {
            found: 129,
            allowed: 128
        })
    );
    assert_eq!(
        ram(&many[..100], &many[100..]),
        Some(Fault::ZeroPages {
            found: 29,
            allowed: 28
        })
    );
    assert_eq!(ram(&[0], &[0]), Some(Fault::OffsetRepeated { found: 0 }));
    assert_eq!(
        ram(&[1], &[]),
        Some(Fault::OffsetUnaligned {
            found: 1,
            page_size: PageSize::K4
        })
    );
    assert_eq!(
        ram(&[u64::MAX - 4095], &[]).map(|_| ()),
        Some(()),
        "the page would end beyond all numbers"
    );
    assert_eq!(
        RamPacket::new(PageSize::K4, IdStr::EMPTY, &[0], &[], 0),
        Err(Fault::EmptyName)
    );
    assert_eq!(
        DeviceStatePacket::new(IdStr::EMPTY, 0, 1),
        Err(Fault::EmptyName)
    );
    let empty = Fault::PayloadLength {
        found: 0,
        least: 1,
        most: u32::MAX,
    };
    assert_eq!(DeviceStatePacket::new(pc_ram(), 0, 0), Err(empty));

    let mut packet = RamPacket::new(PageSize::K4, pc_ram(), &[0, 4096], &[], 0).expect("a packet");
    let before = packet.clone();
    for (method, len, least, most) in [
        (Method::None, 8191, 8192, 8192),
        (Method::Zlib, 0, 1, 1 << 20),
        (Method::Zstd, (1 << 20) + 1, 1, 1 << 20),
        (Method::Qpl, 7, 8, 8200),
        (Method::Uadk, 8201, 8, 8200),
        (Method::Canned, 8713, 8, 8712),
    ] {
        let fault = Fault::PayloadLength {
            found: len,
            least,
            most,
        };
        assert_eq!(packet.set_payload(method, len), Err(fault));
        assert_eq!(packet, before, "a packet refused is as before");
    }
    let no_payload = Fault::PayloadLength {
        found: 1,
        least: 0,
        most: 0,
    };
    assert_eq!(
        RamPacket::sync(PageSize::K4, 0).set_payload(Method::Zlib, 1),
        Err(no_payload)
    );
}

#[test]
fn main_streams() {
    use Fault::*;
    let q35 = "main-10.0.txt";
    let arm = "main-7.2.txt";
    let outside = |found| OffsetOutside {
        found,
        allowed: 0xf000,
    };
    // Bytes of a vector, what to put in their place, and the answer.
    #[rustfmt::skip] // One lie, one line.
    let lies: &[(&str, &[u8], &[u8], Fault)] = &[
        (q35, b"QEVM", b"\x11\x22\x33\x44", Magic { found: 0x1122_3344, allowed: 0x5145_564d }),
        (q35, b"QEVM\0\0\0\x03", b"QEVM\0\0\0\x02", Version { found: 2, allowed: 3 }),
        // Configuration.
        (q35, b"\x07\0\0\0\x0b", b"\x07\0\0\x01\0", NameLength { found: 256, allowed: 255 }),
        (q35, b"\x07\0\0\0\x0b", b"\x07\xff\xff\xff\xff", NameLength { found: u32::MAX as usize, allowed: 255 }),
        (q35, b"\x07\0\0\0\x0b", b"\x07\0\0\0\0", EmptyName),
        (q35, b"pc-q35-10.0", b"pc-q35\x0010.0", UnterminatedName),
        (q35, b"configuration/uuid", b"configuration/uid!", UnknownSubsection),
        (q35, b"configuration/uuid\0\0\0\x01", b"configuration/uuid\0\0\0\x02", Version { found: 2, allowed: 1 }),
        (q35, b"\0\0\0\x01\x0fx-ign", b"\0\0\0\x41\x0fx-ign", Capabilities { found: 65, allowed: 64 }),
        (q35, b"\x0fx-ignore-shared", b"\x0amapped-ram", MappedRam),
        (arm, b"\0\0\0\x0c\x01", b"\0\0\0\x09\x01", PageBits { found: 9, least: 10, most: 16 }),
        (arm, b"\0\0\0\x0c\x01", b"\0\0\0\x20\x01", PageBits { found: 32, least: 10, most: 16 }),
        // Elements.
        (q35, b"\x08\0\x01\0\0", b"\x09\0\x01\0\0", Element { found: 9 }),
        (q35, b"\x08\0\x02\0\x04", b"\x08\0\x02\0\x05", CommandLength { command: 2, found: 5 }),
        (arm, b"\x02\0\0\0\x02", b"\x02\0\0\0\x09", SectionId { found: 9 }),
        (q35, b"\x10\x7e\0\0\0\x01\x04", b"\x10\x7e\0\0\0\x01\x02\0\0\0\x01", SectionId { found: 1 }),
        (q35, b"\x10\x7e\0\0\0\x01\x04", b"\x10\x7e\0\0\0\x01\x01\0\0\0\x05\x03ram\0\0\0\0\0\0\0\x04", SectionId { found: 5 }),
        (q35, b"\x01\0\0\0\x02", b"\x01\0\0\0\x01", SectionId { found: 1 }),
        (q35, b"\x0e0000:00:02.0/x", b"\x03ram", SectionId { found: 2 }),
        (q35, b"\x03ram\0\0\0\0\0\0\0\x04", b"\x03ram\0\0\0\0\0\0\0\x03", Version { found: 3, allowed: 4 }),
        (q35, b"\x10\x7e\0\0\0\x01", b"\x10\x7e\0\0\0\x02", Footer { found: 2, allowed: 1 }),
        (q35, b"\x10\x7e\0\0\0\x01", b"\x10\x7f\0\0\0\x01", Element { found: 0x7f }),
        (q35, b"\0\x06\0\0\0\x02{}", b"\0\x06\0\0\0\x01{}", AfterEnd),
        // The list of blocks.
        (q35, b"\0\x03\0\x04", b"\0\x03\0\x06", Record { found: 0x30006 }),
        (q35, b"\0\x03\0\x04", b"\0\x01\0\x04", BlockLength { found: 0x20000, allowed: 0x10000 }),
        (q35, b"\0\0\0\0\0\0\x02\x00", b"\0\0\0\0\0\0\x04\x04", Record { found: 0x404 }),
        (q35, b"\x07pc.bios", b"\x06pc.ram", BlockRepeated { index: 1 }),
        // Records.
        (arm, b"\x10\x02\x0dmach", b"\x10\x02\x0dmuch", UnknownBlock),
        (arm, b"\x30\x22\0", b"\x34\x22\0", OffsetUnaligned { found: 0x3400, page_size: PageSize::K4 }),
        (arm, b"\xf0\x28", b"\xf8\x28", OffsetUnaligned { found: 0xf800, page_size: PageSize::K4 }),
        (arm, b"\0\0\xf0\x28", b"\0\x01\0\x28", outside(0x1_0000)),
        (arm, b"\0\0\0\0\0\0\x30\x22", b"\xff\xff\xff\xff\xff\xff\xf0\x22", outside(0xffff_ffff_ffff_f000)),
        (arm, b"\x30\x22\0", b"\x30\x22\x01", ZeroFill { found: 1 }),
        (arm, b"\xf0\x28", b"\xf0\x48", Record { found: 0xf048 }),
        (arm, b"\0\0\x10\x02", b"\0\x04\0\x22", UnknownBlock),
        (arm, b"\0\0\x30\x22", b"\0\0\x30\x26", Record { found: 0x3026 }),
    ];
    for (file, from, to, fault) in lies {
        let bytes = replaced(&vector(file), from, to);
        for cut in CUTS {
            let (_, end) = testkit::wire::main_events(&bytes, cut);
            assert_eq!(end, Err(*fault), "{file} {} cut {cut:?}", to.escape_ascii());
        }
    }
}

#[test]
fn main_streams_against_limits() {
    let stream = vector("main-10.0.txt");
    let blocks = Limits::default().with_blocks(1);
    let bytes = Limits::default().with_block_bytes(0x1ffff);
    let huge_pages = replaced(
        &stream,
        b"\x08\0\x02\0\x04\0\0\0\x01",
        b"\x08\0\x03\0\x10\0\0\0\0\0\x20\x10\0\0\0\0\0\0\0\x10\0",
    );
    #[rustfmt::skip] // One lie, one line.
    let cases = [
        (&stream, blocks, Fault::Blocks { allowed: 1 }),
        (&stream, bytes, Fault::BlockLength { found: 0x20000, allowed: 0x1ffff }),
        (&huge_pages, Limits::default(), Fault::PostcopyPageSizes { found: 0x0020_1000 }),
    ];
    for (stream, limits, fault) in cases {
        let mut receiver = MainReceiver::new(limits);
        let mut rest = stream.as_slice();
        let found = loop {
            match receiver.push(&mut rest) {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(fault) => break Some(fault),
            }
        };
        assert_eq!(found, Some(fault));
        assert_eq!(
            receiver.finish(),
            Err(fault),
            "a machine stays at its fault"
        );
        assert_eq!(receiver.push(&mut rest), Err(fault));
    }
}

#[test]
fn main_streams_cut_short() {
    // A device's state can look like the end: a footer with its section's id, and the EOF byte.
    let likenesses = [
        ("main-10.0.txt", 2),
        ("main-7.2.txt", 0),
        ("main-postcopy.txt", 0),
    ];
    for (file, likenesses) in likenesses {
        let stream = vector(file);
        let mut ends = Vec::new();
        for len in 0..=stream.len() {
            let (_, end) = testkit::wire::main_events(&stream[..len], &[usize::MAX]);
            match end {
                Ok(()) => ends.push(len),
                Err(fault) => {
                    let truncated = matches!(fault, Fault::Truncated { missing: 1.. });
                    assert!(truncated, "{file}, {len} bytes: {fault:?}");
                }
            }
        }
        let has_description = !stream.ends_with(b"\x7e\0\0\0\x07\0");
        let all = likenesses + 1 + usize::from(has_description);
        assert_eq!(ends.len(), all, "{file}: {ends:?}");
        assert_eq!(ends.last(), Some(&stream.len()));
        let ends_so = |&len: &usize| {
            let end = &stream[len - 6..len];
            end.starts_with(b"\x7e") && end.ends_with(b"\0")
        };
        assert!(ends[..=likenesses].iter().all(ends_so), "{file}: {ends:?}");
    }
}

#[test]
fn return_paths() {
    let length = |message, found| Fault::MessageLength { message, found };
    #[rustfmt::skip] // One lie, one line.
    let lies: &[(&[u8], Fault)] = &[
        (b"\0\0\0\0", Fault::MessageType { found: 0 }),
        (b"\0\x08\0\0", Fault::MessageType { found: 8 }),
        (b"\0\x01\0\x03\0\0\0", length(1, 3)),
        (b"\0\x02\0\x05\0\0\0\0\0", length(2, 5)),
        (b"\0\x07\0\x01\0", length(7, 1)),
        (b"\0\x04\0\x08\0\0\0\0\0\0\0\0", length(4, 8)),
        (b"\0\x01\x02\x01", length(1, 513)),
        (b"\0\x03\xff\xff", length(3, 0xffff)),
        (b"\0\x03\0\x0d\0\0\0\0\0\0\0\0\0\0\0\0\0", Fault::EmptyName),
        (b"\0\x05\0\x03\x01ab", length(5, 3)),
        (b"\0\x05\0\x02\x02a", length(5, 2)),
        (b"\0\x05\0\x02\x01\0", Fault::UnterminatedName),
        (b"\0\x05\0\x02\x01a\0\0\0\0\0\0\0\x01\xff\x01\x23\x45\x67\x89\xab\xcd\xee", Fault::BitmapEnd { found: 0x0123_4567_89ab_cdee, allowed: 0x0123_4567_89ab_cdef }),
    ];
    for (bytes, fault) in lies {
        for cut in CUTS {
            let mut receiver = ReturnPathReceiver::new();
            let found = pieces(bytes, cut).find_map(|mut piece| {
                loop {
                    match receiver.push(&mut piece) {
                        Ok(Some(_)) => {}
                        Ok(None) => return None,
                        Err(fault) => return Some(fault),
                    }
                }
            });
            assert_eq!(found, Some(*fault), "{}", bytes.escape_ascii());
            assert_eq!(receiver.finish(), Err(*fault));
        }
    }
    let mut receiver = ReturnPathReceiver::new();
    assert_eq!(receiver.push(&mut &b"\0\x02\0"[..]), Ok(None));
    assert_eq!(receiver.finish(), Err(Fault::Truncated { missing: 1 }));
}

fn after_hello(limits: Limits) -> ChannelReceiver {
    let mut receiver = ChannelReceiver::new(limits);
    let hello = receiver
        .push(&mut vector("hello.txt").as_slice())
        .map(|event| matches!(event, Some(Event::Hello(_))));
    assert_eq!(hello, Ok(true));
    receiver
}

fn first_fault(receiver: &mut ChannelReceiver, bytes: &[u8], cut: &[usize]) -> Option<Fault> {
    pieces(bytes, cut).find_map(|mut piece| {
        loop {
            match receiver.push(&mut piece) {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(fault) => return Some(fault),
            }
        }
    })
}

fn patched(file: &str, patches: &[Patch]) -> Vec<u8> {
    let mut bytes = vector(file);
    for (at, patch) in patches {
        bytes[*at..at + patch.len()].copy_from_slice(patch);
    }
    bytes
}

/// `bytes` with the first `from` in them replaced.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .expect("bytes to replace");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}
