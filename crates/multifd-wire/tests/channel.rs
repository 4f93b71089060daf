//! The machines of a channel: every state with every kind of input, and the order of calls.

use Outcome::{Failed, Hello as Greeted, Packet as Header, Padding, Payload, Wants};
use multifd_wire::{
    ChannelReceiver, ChannelSender, DeviceStatePacket, Event, Fault, Hello, IdStr, Limits, MAGIC,
    Method, Misuse, Packet, PageSize, RamPacket,
};
use testkit::wire::vector;

/// What a push leads to: an event, or how many bytes are wanted after it, or a fault.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Hello,
    Packet,
    Padding(usize),
    Payload(usize),
    Wants(usize),
    Failed(Fault),
}

/// A state, and what each input leads to.
struct Row {
    state: &'static str,
    /// What brings a machine to the state.
    before: Vec<u8>,
    wanted: usize,
    /// What the state waits for, as many bytes as wanted.
    right: Vec<u8>,
    right_outcome: Outcome,
    /// All but the last byte of it.
    short_outcome: Outcome,
    zeros_outcome: Outcome,
    ones_outcome: Outcome,
    end: Result<(), Fault>,
    taken: Result<(), Misuse>,
}

#[test]
fn every_state_with_every_input() {
    let hello = vector("hello.txt");
    let ram = vector("ram-none.txt");
    let sync = vector("sync-9.0.txt");
    let device = vector("device-state.txt");
    let magic = |found| {
        Failed(Fault::Magic {
            found,
            allowed: MAGIC,
        })
    };
    let early = |missing| Err(Fault::Truncated { missing });
    let no_payload = Err(Misuse::PayloadExceeded {
        found: 1,
        remaining: 0,
    });
    let before = |bytes: &[u8]| [&hello, bytes].concat();
    let row = |state, before, right: &[u8]| Row {
        state,
        before,
        wanted: right.len(),
        right: right.to_vec(),
        right_outcome: Header,
        short_outcome: Wants(1),
        zeros_outcome: magic(0),
        ones_outcome: magic(u32::MAX),
        end: early(right.len()),
        taken: no_payload,
    };
    let no_page_size = |found| Failed(Fault::PagesPerPacket { found });
    let rows = [
        Row {
            right_outcome: Greeted,
            ..row("Hello", vec![], &hello)
        },
        Row {
            right_outcome: Wants(308),
            end: Ok(()),
            ..row("Boundary", before(&[]), &ram[..12])
        },
        Row {
            right_outcome: Wants(264),
            zeros_outcome: Failed(Fault::Version {
                found: 0,
                allowed: 1,
            }),
            ones_outcome: Failed(Fault::Version {
                found: u32::MAX,
                allowed: 1,
            }),
            ..row("Boundary, begun", before(&device[..4]), &device[4..12])
        },
        Row {
            zeros_outcome: Failed(Fault::EmptyName),
            ones_outcome: Failed(Fault::UnterminatedName),
            ..row("Device", before(&device[..12]), &device[12..])
        },
        Row {
            right_outcome: Wants(1024),
            // A packet with nothing stated may be a SYNC, or empty.
            zeros_outcome: Wants(64),
            ones_outcome: no_page_size(u32::MAX as usize),
            ..row("RamFixed", before(&ram[..12]), &ram[12..320])
        },
        Row {
            zeros_outcome: Failed(Fault::OffsetRepeated { found: 0 }),
            ones_outcome: Failed(Fault::OffsetUnaligned {
                found: u64::MAX,
                page_size: PageSize::K4,
            }),
            ..row("RamTable", before(&ram[..320]), &ram[320..])
        },
        Row {
            zeros_outcome: Header,
            // Left-over offsets have no meaning, whatever they are.
            ones_outcome: Header,
            ..row(
                "RamTable, page size not known",
                before(&sync[..320]),
                &sync[320..384],
            )
        },
        Row {
            right_outcome: Padding(1),
            zeros_outcome: Padding(1),
            end: Ok(()),
            ..row(
                "Padding, where a table may end",
                before(&sync[..384]),
                &[0; 8],
            )
        },
        Row {
            // Four more bytes tell the packet's kind.
            right_outcome: Wants(4),
            zeros_outcome: Padding(1),
            end: Ok(()),
            ..row(
                "Padding, at the next packet",
                before(&sync[..384]),
                &ram[..8],
            )
        },
        Row {
            right_outcome: Padding(7),
            zeros_outcome: Padding(7),
            ones_outcome: no_page_size(9),
            ..row("Padding, within a table", before(&sync[..392]), &[0; 56])
        },
        Row {
            right_outcome: Payload(8192),
            short_outcome: Payload(8191),
            zeros_outcome: Payload(8192),
            ones_outcome: Payload(8192),
            taken: Ok(()),
            ..row("Payload", before(&ram), &[0x5a; 8192])
        },
        Row {
            right_outcome: magic(0),
            short_outcome: magic(0),
            ones_outcome: magic(0),
            end: Err(Fault::Magic {
                found: 0,
                allowed: MAGIC,
            }),
            ..row("Failed", before(&[0; 12]), &[])
        },
    ];
    for row in rows {
        let state = row.state;
        let at = || {
            let mut receiver = ChannelReceiver::new(Limits::default());
            let mut before = row.before.as_slice();
            while let Ok(Some(_)) = receiver.push(&mut before) {}
            receiver
        };
        assert_eq!(at().wanted(), row.wanted, "{state}: wanted");
        let nothing = outcome(&mut at(), &[]);
        let failed = matches!(nothing, Failed(_));
        assert!(
            failed || nothing == Wants(row.wanted),
            "{state}: nothing pushed, nothing changed"
        );

        assert_eq!(
            outcome(&mut at(), &row.right),
            row.right_outcome,
            "{state}: what it waits for"
        );
        let short = row.right.len().saturating_sub(1);
        assert_eq!(
            outcome(&mut at(), &row.right[..short]),
            row.short_outcome,
            "{state}: one byte less"
        );
        assert_eq!(
            outcome(&mut at(), &vec![0; row.wanted]),
            row.zeros_outcome,
            "{state}: zeros"
        );
        assert_eq!(
            outcome(&mut at(), &vec![0xff; row.wanted]),
            row.ones_outcome,
            "{state}: ones"
        );

        assert_eq!(at().finish(), row.end, "{state}: end of stream");
        let mut receiver = at();
        assert_eq!(receiver.payload_taken(0), Ok(()), "{state}: nothing taken");
        assert_eq!(
            receiver.payload_taken(1),
            row.taken,
            "{state}: payload taken"
        );
        let wanted = row.wanted - usize::from(row.taken.is_ok());
        assert_eq!(
            receiver.wanted(),
            wanted,
            "{state}: wanted after payload taken"
        );
    }
}

fn outcome(receiver: &mut ChannelReceiver, mut input: &[u8]) -> Outcome {
    match receiver.push(&mut input) {
        Ok(Some(Event::Hello(_))) => Greeted,
        Ok(Some(Event::Packet(_))) => Header,
        Ok(Some(Event::Padding { entries })) => Padding(entries),
        Ok(Some(Event::Payload(piece))) => Payload(piece.len()),
        Ok(None) => Wants(receiver.wanted()),
        Err(fault) => Failed(fault),
    }
}

/// Reading exactly what is wanted never reads into the next packet, and never comes to a halt.
#[test]
fn reading_what_is_wanted_reads_all() {
    let stream = [
        vector("hello.txt"),
        vector("sync-9.0.txt"),
        vector("ram-none.txt"),
        vec![0x5a; 8192],
        vector("sync-data-8.2.txt"),
        vec![0xa5; 64],
        vector("empty-8.2.txt"),
        vector("device-state.txt"),
        vec![1; 16],
    ]
    .concat();
    let mut receiver = ChannelReceiver::new(Limits::default());
    let mut rest = stream.as_slice();
    let mut packets = 0;
    while !rest.is_empty() {
        let wanted = receiver.wanted();
        if receiver.payload_remaining() != 0 {
            // As a caller does who reads a payload straight to where it belongs, in two pieces.
            assert_eq!(receiver.payload_remaining() as usize, wanted);
            rest = &rest[wanted..];
            receiver
                .payload_taken(wanted / 2)
                .expect("within the payload");
            let excess = receiver.payload_taken(wanted);
            let remaining = receiver.payload_remaining();
            assert_eq!(
                excess,
                Err(Misuse::PayloadExceeded {
                    found: wanted,
                    remaining
                })
            );
            receiver
                .payload_taken(wanted - wanted / 2)
                .expect("within the payload");
            continue;
        }
        let (mut step, after) = rest.split_at(wanted);
        rest = after;
        while let Some(event) = receiver.push(&mut step).expect("a sound stream") {
            packets += usize::from(matches!(event, Event::Packet(_)));
        }
        assert!(step.is_empty());
    }
    assert_eq!(receiver.finish(), Ok(()));
    assert_eq!(packets, 5);
    assert_eq!(receiver.page_size(), Some(PageSize::K4));
}

#[test]
fn a_sender_keeps_the_order_of_the_wire() {
    let hello = Hello::new([0; 16], 0);
    let block = || IdStr::try_from("pc.ram").expect("a name");
    let sync = Packet::Ram(RamPacket::sync(PageSize::K4, 0));
    let pages =
        Packet::Ram(RamPacket::new(PageSize::K4, block(), &[0], &[4096], 1).expect("a packet"));
    let device = Packet::DeviceState(DeviceStatePacket::new(block(), 0, 5).expect("a packet"));
    let mut out = Vec::new();
    let mut sender = ChannelSender::new();
    assert!(!sender.is_at_boundary(), "a channel begins with a hello");
    assert_eq!(sender.packet(&sync, &mut out), Err(Misuse::Hello));
    assert_eq!(sender.hello(&hello, &mut out), Ok(()));
    assert_eq!(sender.hello(&hello, &mut out), Err(Misuse::Hello));
    assert!(sender.is_at_boundary());

    assert_eq!(sender.packet(&device, &mut out), Ok(()));
    assert!(!sender.is_at_boundary());
    assert_eq!(
        sender.packet(&sync, &mut out),
        Err(Misuse::PayloadOwed { remaining: 5 })
    );
    assert_eq!(sender.payload_sent(2), Ok(()));
    assert_eq!(
        sender.packet(&sync, &mut out),
        Err(Misuse::PayloadOwed { remaining: 3 })
    );
    assert_eq!(
        sender.payload_sent(4),
        Err(Misuse::PayloadExceeded {
            found: 4,
            remaining: 3
        })
    );
    assert_eq!(sender.payload_sent(3), Ok(()));
    assert_eq!(
        sender.payload_sent(1),
        Err(Misuse::PayloadExceeded {
            found: 1,
            remaining: 0
        })
    );

    assert_eq!(sender.packet(&sync, &mut out), Ok(()));
    assert_eq!(
        sender.padding(1, &mut out),
        Err(Misuse::TableLength { found: 129 })
    );
    assert_eq!(sender.packet(&pages, &mut out), Ok(()));
    assert_eq!(sender.payload_sent(4096), Ok(()));
    let other = Packet::Ram(RamPacket::sync(PageSize::MAX, 0));
    assert_eq!(
        sender.packet(&other, &mut out),
        Err(Misuse::TableLength { found: 8 })
    );
    assert!(sender.is_at_boundary());
    // What was refused was not written.
    assert_eq!(out.len(), 64 + 276 + 2 * 1344);
}

/// A first packet that does not tell the page size, as a relay passes it on.
#[test]
fn a_sender_pads_the_first_table() {
    let first = || {
        let mut receiver = ChannelReceiver::new(Limits::default());
        let stream = [vector("hello.txt"), vector("sync-9.0.txt")].concat();
        let mut rest = stream.as_slice();
        let hello = receiver.push(&mut rest);
        let packet = receiver.push(&mut rest);
        match (hello, packet) {
            (Ok(Some(Event::Hello(hello))), Ok(Some(Event::Packet(packet)))) => (hello, packet),
            other => panic!("{other:?}"),
        }
    };
    let (hello, sync) = first();
    let next = Packet::Ram(RamPacket::sync(PageSize::K4, 1));
    let mut out = Vec::new();
    let mut sender = ChannelSender::new();
    sender.hello(&hello, &mut out).expect("in turn");
    sender.packet(&sync, &mut out).expect("in turn");
    assert!(
        sender.is_at_boundary(),
        "a table of 8 entries is one of 64 KiB pages"
    );
    assert_eq!(
        sender.packet(&next, &mut out),
        Err(Misuse::TableLength { found: 128 })
    );
    sender.padding(119, &mut out).expect("in turn");
    assert!(!sender.is_at_boundary(), "no table has 127 entries");
    assert_eq!(
        sender.packet(&next, &mut out),
        Err(Misuse::TableLength { found: 127 })
    );
    assert_eq!(
        sender.padding(usize::MAX, &mut out),
        Err(Misuse::TableLength { found: usize::MAX })
    );
    sender.padding(1, &mut out).expect("in turn");
    assert!(sender.is_at_boundary());
    assert_eq!(out, [vector("hello.txt"), vector("sync-9.0.txt")].concat());

    sender.packet(&next, &mut out).expect("in turn");
    assert_eq!(
        sender.padding(1, &mut out),
        Err(Misuse::TableLength { found: 129 })
    );
    assert_eq!(
        sender.packet(&sync, &mut out),
        Err(Misuse::TableLength { found: 8 }),
        "only the first may not know"
    );
}

/// An engine's packet, compressed, arrives as it was sent.
#[test]
fn what_a_sender_sends_a_receiver_takes() {
    let block = IdStr::try_from("pc.ram").expect("a name");
    for page_size in
        [1024, 4096, 8192, 65536].map(|bytes| PageSize::new(bytes).expect("a page size"))
    {
        let offset = |page: usize| (page * page_size.bytes()) as u64;
        let half = page_size.pages_per_packet() / 2;
        let normal: Vec<_> = (0..half).rev().map(offset).collect();
        let zero: Vec<_> = (half..2 * half).map(offset).collect();
        let mut packet =
            RamPacket::new(page_size, block.clone(), &normal, &zero, 5).expect("a packet");
        packet.set_payload(Method::Zstd, 3).expect("a length");
        assert_eq!((packet.normal(), packet.zero()), (&normal[..], &zero[..]));
        let packet = Packet::Ram(packet);

        let mut stream = vector("hello.txt");
        let mut sender = ChannelSender::new();
        let hello: [u8; Hello::LEN] = stream.split_off(0).try_into().expect("64 bytes");
        sender
            .hello(&Hello::parse(&hello).expect("a hello"), &mut stream)
            .expect("in turn");
        sender.packet(&packet, &mut stream).expect("in turn");
        stream.extend(b"abc");
        let (events, end) = testkit::wire::channel_events(&stream, &[usize::MAX]);
        assert_eq!(end, Ok(()));
        assert_eq!(
            events[1..],
            [
                testkit::wire::Joined::Packet(Box::new(packet)),
                testkit::wire::Joined::Payload(b"abc".to_vec())
            ]
        );
    }
}

/// What was let in may be passed on as it is, and what a stock QEMU takes may be written, whatever
/// was let in.
#[test]
fn a_payload_may_be_as_long_as_the_limits_allow() {
    const STOCK: u32 = 1 << 20;
    for (limit, allowed) in [(3 * STOCK, 3 * STOCK), (STOCK, STOCK), (1000, STOCK)] {
        let limits = Limits::default().with_compressed_payload_bytes(limit);
        let block = IdStr::new(b"pc.ram").unwrap();
        let mut packet = RamPacket::new(PageSize::K4, block, &[0], &[], 0).unwrap();
        packet.set_payload(Method::Zlib, limit.min(STOCK)).unwrap();
        let mut bytes = Vec::new();
        Packet::from(packet.clone()).encode(&mut bytes);
        // The field for the payload's length.
        bytes[20..24].copy_from_slice(&limit.to_be_bytes());
        let hello = vector("hello.txt");
        let mut receiver = ChannelReceiver::new(limits);
        receiver.push(&mut hello.as_slice()).unwrap();
        let Ok(Some(Event::Packet(Packet::Ram(mut taken)))) = receiver.push(&mut bytes.as_slice())
        else {
            panic!("{limit}: not taken")
        };
        assert_eq!(taken.payload_len(), limit);
        for method in [Method::Zlib, Method::Zstd] {
            taken.set_payload(method, limit).unwrap();
            taken.set_payload(method, allowed).unwrap();
            let too_long = taken.set_payload(method, allowed + 1);
            let (found, least, most) = (allowed + 1, 1, allowed);
            assert_eq!(too_long, Err(Fault::PayloadLength { found, least, most }));
        }
        // The limit is nothing that a packet says.
        packet
            .set_payload(Method::Zstd, allowed.min(STOCK))
            .unwrap();
        taken.set_payload(Method::Zstd, allowed.min(STOCK)).unwrap();
        assert_eq!(taken, packet);
    }
}
