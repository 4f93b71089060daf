//! Every vector in `testdata/wire`, taken apart field by field and rebuilt to the byte.

use multifd_wire::lengths::{self, PageData};
use multifd_wire::main_stream::{Block, Command, Configuration, MainEvent, Section};
use multifd_wire::return_path::{Message, ReturnPathReceiver};
use multifd_wire::{
    ChannelReceiver, Event, Flags, Hello, IdStr, Limits, Method, Packet, PageSize, RamPacket,
    UnknownMethod,
};
use testkit::wire::{CUTS, main_events, vector};

#[test]
fn hello() {
    let bytes: [u8; Hello::LEN] = vector("hello.txt").try_into().expect("64 bytes");
    let hello = Hello::parse(&bytes).expect("a sound hello");
    assert_eq!(
        hello.uuid,
        0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes()
    );
    assert_eq!(hello.channel, 1);
    assert_eq!(hello.to_bytes(), bytes);
}

#[test]
fn ram_none() {
    let packet = ram("ram-none.txt");
    assert_eq!(packet.flags(), Flags::default());
    assert_eq!(packet.method(), Ok(Method::None));
    assert_eq!(packet.packet_num(), 7);
    assert_eq!(packet.block().as_bytes(), b"pc.ram");
    assert_eq!(packet.page_size(), Some(PageSize::K4));
    assert_eq!(packet.normal(), [0x3000, 0x1000]);
    assert_eq!(packet.zero(), [0x2000]);
    assert_eq!(packet.payload_len(), 8192);
    assert!(!packet.is_sync());

    let built = RamPacket::new(
        PageSize::K4,
        name("pc.ram"),
        &[0x3000, 0x1000],
        &[0x2000],
        7,
    );
    assert_eq!(built, Ok(packet), "a packet of our own is what QEMU sends");
}

#[test]
fn sync_of_qemu_9_0() {
    let limits = Limits::default().with_page_size(PageSize::K4);
    let packet = header(&vector("sync-9.0.txt"), limits);
    assert_eq!(
        packet,
        Packet::Ram(RamPacket::sync(PageSize::K4, 3)),
        "a SYNC of our own is what QEMU sends"
    );
    assert_eq!(packet.payload_len(), 0);
}

#[test]
fn sync_with_data_of_qemu_7_2() {
    let packet = ram("sync-data-8.2.txt");
    assert!(packet.is_sync());
    assert_eq!(packet.method(), Ok(Method::Zlib));
    assert_eq!(packet.normal(), [0]);
    assert!(packet.zero().is_empty());
    assert_eq!(packet.payload_len(), 64);
}

#[test]
fn empty_packet_of_qemu_7_2() {
    let mut packet = ram("empty-8.2.txt");
    assert!(!packet.is_sync());
    assert!(packet.normal().is_empty() && packet.zero().is_empty());
    assert_eq!(packet.payload_len(), 0, "the stated length is left over");

    packet
        .set_payload(Method::Zstd, packet.payload_len())
        .expect("no payload fits no pages");
    let mut expected = vector("empty-8.2.txt");
    expected[20..24].fill(0);
    assert_eq!(
        encoded(&Packet::Ram(packet)),
        expected,
        "no method without pages, and the length is mended"
    );
}

#[test]
fn ram_of_64_kib_pages() {
    let packet = ram("ram-64k.txt");
    assert_eq!(packet.page_size().map(PageSize::bytes), Some(65536));
    assert_eq!(packet.method(), Ok(Method::Zstd));
    assert_eq!(packet.block().as_bytes(), b"mach-virt.ram");
    assert_eq!(packet.normal().len(), 8);
    assert_eq!(packet.payload_len(), 0x123);
}

#[test]
fn a_relay_changes_method_and_length_only() {
    let mut packet = ram("ram-64k.txt");
    packet
        .set_payload(Method::Qatzip, 0x4567)
        .expect("a fitting length");
    let mut expected = vector("ram-64k.txt");
    expected[8..12].copy_from_slice(&0xa0_u32.to_be_bytes());
    expected[20..24].copy_from_slice(&0x4567_u32.to_be_bytes());
    assert_eq!(encoded(&Packet::Ram(packet.clone())), expected);

    packet
        .set_payload(Method::None, 8 << 16)
        .expect("a fitting length");
    assert_eq!(
        packet.flags(),
        Flags::from_bits(0x80),
        "bits we do not know stay"
    );
}

#[test]
fn a_method_we_do_not_know_is_no_fault() {
    let mut bytes = vector("ram-64k.txt");
    bytes[11] = 0x06;
    let Packet::Ram(packet) = header(&bytes, Limits::default()) else {
        panic!("a RAM packet");
    };
    assert_eq!(packet.method(), Err(UnknownMethod { bits: 0x06 }));
    assert_eq!(packet.payload_len(), 0x123);
}

#[test]
fn device_state() {
    let Packet::DeviceState(packet) = header(&vector("device-state.txt"), Limits::default()) else {
        panic!("a device-state packet");
    };
    assert_eq!(packet.idstr().as_bytes(), b"0000:00:02.0/vfio");
    assert_eq!(packet.instance_id(), 1);
    assert_eq!(packet.payload_len(), 16);
    assert_eq!(packet.flags(), Flags::DEVICE_STATE);
}

#[test]
fn qpl_payload() {
    let payload = vector("qpl-payload.txt");
    let pages = lengths::parse(&payload, 3, PageSize::K4).expect("a sound table");
    assert_eq!(pages.len(), 3);
    let pages: Vec<_> = pages.collect();
    let raw = [0x5a; 4096];
    assert_eq!(
        pages,
        [
            PageData::Compressed(&[0xde, 0xad, 0xbe, 0xef]),
            PageData::Raw(&raw),
            PageData::Compressed(&[3])
        ]
    );
    let mut rebuilt = Vec::new();
    lengths::write(&pages, PageSize::K4, &mut rebuilt).expect("sound pages");
    assert_eq!(rebuilt, payload);
}

#[test]
fn main_stream_of_qemu_10_0() {
    let mut configuration = Configuration::new(name("pc-q35-10.0"));
    configuration.capabilities = vec![name("x-ignore-shared")];
    configuration.uuid = Some(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes());
    let expected = [
        MainEvent::Header { version: 3 },
        MainEvent::Configuration(configuration),
        MainEvent::Command(Command::OpenReturnPath),
        MainEvent::Command(Command::Ping(1)),
        MainEvent::Command(Command::Other { id: 6, len: 3 }),
        MainEvent::SectionStart(section(1, "ram", 4)),
        MainEvent::RamBlocks(vec![block("pc.ram", 0x20000), block("pc.bios", 0x10000)]),
        MainEvent::Flush,
        MainEvent::RamEndOfSection,
        MainEvent::SectionStart(section(2, "0000:00:02.0/x", 1)),
        MainEvent::SectionPart { id: 1 },
        MainEvent::RamEndOfSection,
        MainEvent::SectionEnd { id: 2 },
        MainEvent::Command(Command::SwitchoverStart),
        MainEvent::Flush,
        MainEvent::RamEndOfSection,
        MainEvent::SectionEnd { id: 1 },
        MainEvent::Opaque(section(0, "timer", 2)),
        MainEvent::Opaque(section(7, "cpu", 12)),
        MainEvent::Eof,
        MainEvent::VmDescription { len: 2 },
        MainEvent::End,
    ];
    check_main("main-10.0.txt", &expected);
}

#[test]
fn main_stream_of_qemu_7_2() {
    let mut configuration = Configuration::new(name("virt-7.2"));
    configuration.page_size = Some(PageSize::K4);
    let expected = [
        MainEvent::Header { version: 3 },
        MainEvent::Configuration(configuration),
        MainEvent::SectionStart(section(2, "ram", 4)),
        MainEvent::RamBlocks(vec![block("mach-virt.ram", 0x10000)]),
        MainEvent::RamEndOfSection,
        MainEvent::SectionPart { id: 2 },
        MainEvent::ZeroPage {
            block: 0,
            offset: 0x1000,
        },
        MainEvent::ZeroPage {
            block: 0,
            offset: 0x3000,
        },
        MainEvent::Page {
            block: 0,
            offset: 0xf000,
        },
        MainEvent::RamEndOfSection,
        MainEvent::ZeroPage {
            block: 0,
            offset: 0x2000,
        },
        MainEvent::RamEndOfSection,
        MainEvent::SectionEnd { id: 2 },
        MainEvent::Opaque(section(3, "cpu", 12)),
        MainEvent::Eof,
        MainEvent::VmDescription { len: 18 },
        MainEvent::End,
    ];
    check_main("main-7.2.txt", &expected);
}

#[test]
fn main_stream_of_postcopy_with_huge_pages() {
    let expected = [
        MainEvent::Header { version: 3 },
        MainEvent::Configuration(Configuration::new(name("pc-q35-10.0"))),
        MainEvent::Command(Command::OpenReturnPath),
        MainEvent::Command(Command::Ping(1)),
        MainEvent::Command(Command::PostcopyAdvise),
        MainEvent::SectionStart(section(2, "ram", 4)),
        MainEvent::RamBlocks(vec![
            block("pc.ram", 0x8000_0000),
            block("pc.bios", 0x4_0000),
            block("dm0", 0x20_0000),
            block("vram", 0x1_0000),
        ]),
        MainEvent::Flush,
        MainEvent::RamEndOfSection,
        MainEvent::SectionPart { id: 2 },
        MainEvent::RamEndOfSection,
        MainEvent::Command(Command::Other { id: 6, len: 3 }),
        MainEvent::Command(Command::Packaged { len: 10 }),
        MainEvent::Command(Command::PostcopyListen),
        MainEvent::Command(Command::PostcopyRun),
        MainEvent::Command(Command::PostcopyResume),
        MainEvent::Command(Command::EnableColo),
        MainEvent::RamEndOfSection,
        MainEvent::SectionEnd { id: 2 },
        MainEvent::Opaque(section(7, "cpu", 12)),
    ];
    check_main("main-postcopy.txt", &expected);
}

/// The page size of the last block is told from the records behind the list.
#[test]
fn a_list_whose_last_block_has_huge_pages() {
    let bytes = vector("main-postcopy.txt");
    let vram = b"\x04vram\0\0\0\0\0\x01\0\0";
    let place = bytes.windows(vram.len()).position(|part| part == vram);
    let place = place.expect("the last block");
    let mut without = bytes.clone();
    without.drain(place..place + vram.len());
    // Its total.
    let total = without
        .windows(8)
        .position(|part| part == b"\0\0\0\0\x80\x25\0\x04");
    without[total.expect("a total") + 5] = 0x24;
    for cut in CUTS {
        let (events, end) = main_events(&without, cut);
        assert_eq!(end, Ok(()), "cut {cut:?}");
        let names = events.iter().find_map(|event| match event {
            MainEvent::RamBlocks(blocks) => Some(blocks.len()),
            _ => None,
        });
        assert_eq!(names, Some(3), "cut {cut:?}");
        assert!(events.contains(&MainEvent::Flush));
    }
}

/// Without the description of devices a stream ends at its EOF byte, and there alone.
#[test]
fn a_stream_without_a_description_may_end() {
    for (file, description) in [
        ("main-10.0.txt", 7),
        ("main-7.2.txt", 23),
        ("main-postcopy.txt", 0),
    ] {
        let bytes = vector(file);
        let whole = &bytes[..bytes.len() - description];
        for cut in CUTS {
            let (_, end) = main_events(whole, cut);
            assert_eq!(end, Ok(()), "{file}, cut {cut:?}");
            let (_, end) = main_events(&whole[..whole.len() - 1], cut);
            assert!(end.is_err(), "{file}, cut {cut:?}");
        }
    }
}

#[test]
fn return_path() {
    let bytes = vector("return-path.txt");
    let block = name("pc.ram");
    let expected = [
        Message::SwitchoverAck,
        Message::Pong(1),
        Message::RequestPagesOf {
            block,
            start: 0x10_0000,
            len: 0x1000,
        },
        Message::RequestPages {
            start: 0x20_0000,
            len: 0x2000,
        },
        Message::ResumeAck(1),
        Message::Shut(0),
    ];
    let mut rebuilt = Vec::new();
    for message in &expected {
        message.encode(&mut rebuilt);
    }
    assert_eq!(rebuilt, bytes);
    for cut in CUTS {
        let mut receiver = ReturnPathReceiver::new();
        let mut messages = Vec::new();
        for mut piece in testkit::wire::pieces(&bytes, cut) {
            while let Some(message) = receiver.push(&mut piece).expect("a sound return path") {
                messages.push(message);
            }
        }
        assert_eq!(receiver.finish(), Ok(()));
        assert_eq!(messages, expected, "cut {cut:?}");
    }
}

fn check_main(file: &str, expected: &[MainEvent]) {
    let bytes = vector(file);
    for cut in CUTS {
        let (events, end) = main_events(&bytes, cut);
        assert_eq!(events, expected, "cut {cut:?}");
        assert_eq!(end, Ok(()), "cut {cut:?}");
    }
}

fn ram(file: &str) -> RamPacket {
    match header(&vector(file), Limits::default()) {
        Packet::Ram(packet) => packet,
        Packet::DeviceState(_) => panic!("a RAM packet"),
    }
}

/// Takes a header apart, and checks that it is rebuilt to the byte.
fn header(bytes: &[u8], limits: Limits) -> Packet {
    let mut receiver = ChannelReceiver::new(limits);
    assert!(matches!(
        receiver.push(&mut vector("hello.txt").as_slice()),
        Ok(Some(Event::Hello(_)))
    ));
    let mut rest = bytes;
    let event = receiver.push(&mut rest);
    let Ok(Some(Event::Packet(packet))) = event else {
        panic!("{event:?} instead of a packet");
    };
    assert!(rest.is_empty());
    assert_eq!(encoded(&packet), bytes);
    packet
}

fn encoded(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(&mut bytes);
    bytes
}

fn name(name: &str) -> IdStr {
    IdStr::try_from(name).expect("a name")
}

fn section(id: u32, name: &str, version: u32) -> Section {
    let name = IdStr::try_from(name).expect("a name");
    Section {
        id,
        name,
        instance: 0,
        version,
    }
}

fn block(name: &str, used_length: u64) -> Block {
    let name = IdStr::try_from(name).expect("a name");
    Block { name, used_length }
}
