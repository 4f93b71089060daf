//! Control messages: their bytes, and what is refused.

use multifd_engine::control::{
    Accepted, Acked, Block, Capabilities, Completion, ControlFault, ControlReceiver, Event, Hello,
    MAX_PIECE_LEN, MAX_REASON_LEN, Message, Preamble, reason,
};
use multifd_wire::{BlockName, Fault, Limits, Method, PageSize};
use testkit::allocations::{Counting, measure};
use testkit::wire::{CUTS, events, vector};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The events of a control connection given in pieces of the lengths `cut`, and how it ended.
fn control_events(bytes: &[u8], cut: &[usize]) -> (Vec<Event>, Result<(), ControlFault>) {
    let mut receiver = ControlReceiver::new(Limits::default());
    let (events, outcome) = events(bytes, cut, |piece| receiver.push(piece));
    (events, outcome.and_then(|()| receiver.finish()))
}

fn block(name: &str, len_bytes: u64) -> Block {
    Block {
        name: BlockName::new(name.as_bytes()).unwrap(),
        len_bytes,
    }
}

fn hello() -> Hello {
    Hello {
        capabilities: Capabilities::DIGEST,
        vm: [0x11; 16],
        session: [0x22; 16],
        page_size: PageSize::K4,
        channels: 2,
        method_bits: Method::Zlib.bits(),
    }
}

fn source() -> Vec<Event> {
    let preamble = Preamble {
        oldest: 1,
        newest: 1,
    };
    let messages = [
        Message::Hello(hello()),
        Message::Blocks(vec![block("pc.ram", 1 << 30), block("rom", 1 << 16)]),
        Message::RoundMark(0),
        Message::RoundMark(300),
        Message::DeviceState(b"state".to_vec()),
        Message::Completion(Completion {
            device_state_bytes: 5,
            digest: Some([0xab; 32]),
        }),
        Message::Completion(Completion {
            device_state_bytes: 0,
            digest: None,
        }),
        Message::Start,
        Message::Failure("no".into()),
    ];
    let messages = messages.into_iter().map(Event::Message);
    std::iter::once(Event::Preamble(preamble))
        .chain(messages)
        .collect()
}

fn destination() -> Vec<Event> {
    let preamble = Preamble {
        oldest: 1,
        newest: 3,
    };
    let messages = [
        Message::Accepted(Accepted {
            capabilities: Capabilities::DIGEST,
            channels: 2,
        }),
        Message::Ack(Acked::Blocks),
        Message::Ack(Acked::Round(300)),
        Message::Ack(Acked::Completion),
        Message::Ack(Acked::Start),
        Message::Refused("no".into()),
    ];
    let messages = messages.into_iter().map(Event::Message);
    std::iter::once(Event::Preamble(preamble))
        .chain(messages)
        .collect()
}

fn encoded(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        match event {
            Event::Preamble(preamble) => bytes.extend(preamble.to_bytes()),
            Event::Message(message) => message.encode(&mut bytes).unwrap(),
        }
    }
    bytes
}

#[test]
fn messages_are_written_and_read_to_the_byte_in_every_cut() {
    for (file, events) in [
        ("control-source.txt", source()),
        ("control-destination.txt", destination()),
    ] {
        let bytes = vector(file);
        assert_eq!(encoded(&events), bytes, "{file}");
        for cut in CUTS {
            assert_eq!(
                control_events(&bytes, cut),
                (events.clone(), Ok(())),
                "{file} cut {cut:?}"
            );
        }
    }
}

#[test]
fn a_stream_may_end_behind_messages_only() {
    let bytes = vector("control-source.txt");
    let ends: Vec<usize> = (0..=source().len())
        .skip(1)
        .map(|count| encoded(&source()[..count]).len())
        .collect();
    for len in 0..=bytes.len() {
        let (_, end) = control_events(&bytes[..len], &[usize::MAX]);
        assert_eq!(end.is_ok(), ends.contains(&len), "{len}");
    }
}

#[test]
fn the_newest_common_version_is_spoken() {
    let range = |oldest, newest| Preamble { oldest, newest };
    assert_eq!(range(1, 1).common(range(1, 3)), Some(1));
    assert_eq!(range(2, 4).common(range(1, 3)), Some(3));
    assert_eq!(range(1, 1).common(range(2, 3)), None);
    assert_eq!(range(1, 4).common(range(3, 2)), None, "an empty range");
}

/// The fault of the message `kind` with this body.
fn fault(kind: u16, body: &[u8]) -> ControlFault {
    let len = (body.len() as u32).to_be_bytes();
    let bytes = [
        &Preamble::OURS.to_bytes(),
        &kind.to_be_bytes() as &[u8],
        &len,
        body,
    ]
    .concat();
    let (_, end) = control_events(&bytes, &[usize::MAX]);
    end.unwrap_err()
}

#[test]
fn lies_are_named() {
    assert!(matches!(
        control_events(b"QEVM\0\0\0\x03", &[8]).1,
        Err(ControlFault::Wire(Fault::Magic {
            found: 0x5145_564d,
            ..
        }))
    ));
    assert_eq!(fault(0, b""), ControlFault::Kind { found: 0 });
    assert_eq!(fault(11, b""), ControlFault::Kind { found: 11 });
    // Too short, too long, a digest that is neither there nor not.
    assert_eq!(fault(5, b""), ControlFault::Body { kind: 5 });
    assert_eq!(fault(5, b"\0\0"), ControlFault::Body { kind: 5 });
    assert_eq!(fault(8, b"\0"), ControlFault::Body { kind: 8 });
    assert_eq!(fault(7, b"\0\x02"), ControlFault::Body { kind: 7 });
    assert_eq!(fault(9, b"\x04"), ControlFault::Body { kind: 9 });
    // Words that are not UTF-8, and bytes that are not there.
    assert_eq!(fault(10, b"\x01\xff"), ControlFault::Body { kind: 10 });
    assert_eq!(fault(6, b"\x05abc"), ControlFault::Body { kind: 6 });
    let channels = |found| ControlFault::Channels {
        found,
        allowed: 256,
    };
    assert_eq!(fault(2, b"\0\0"), channels(0));
    assert_eq!(fault(2, b"\0\x81\x02"), channels(257));
    let with_page_size = |varint: &[u8]| [&[1; 33], varint, b"\x02\x02"].concat();
    assert_eq!(
        fault(1, &with_page_size(b"\x81\x20")),
        ControlFault::PageBytes { found: 4097 }
    );
    assert_eq!(
        fault(4, b"\x01a\x01\x01a\x02"),
        Fault::BlockRepeated { index: 1 }.into()
    );
    assert_eq!(fault(4, b"\x00\x01"), Fault::EmptyName.into());
    assert_eq!(fault(4, b"\x02a\0\x01"), Fault::UnterminatedName.into());
    let long = [b"\x80\x02" as &[u8], &[b'a'; 256], b"\x01"].concat();
    assert_eq!(
        fault(4, &long),
        Fault::NameLength {
            found: 256,
            allowed: 255
        }
        .into()
    );
    assert!(matches!(
        fault(4, b"\x01a\x81\x80\x80\x80\x80\x80\x80\x08"),
        ControlFault::Wire(Fault::BlockLength { .. })
    ));
}

#[test]
fn a_length_is_refused_before_the_body_comes() {
    for (kind, allowed) in [
        (1_u16, 72),
        (6, MAX_PIECE_LEN + 10),
        (10, MAX_REASON_LEN + 10),
    ] {
        let found = allowed as u32 + 1;
        let head = [
            &Preamble::OURS.to_bytes() as &[u8],
            &kind.to_be_bytes(),
            &found.to_be_bytes(),
        ]
        .concat();
        let (_, end) = control_events(&head, &[1]);
        let found = found as usize;
        assert_eq!(
            end,
            Err(ControlFault::Length {
                kind,
                found,
                allowed
            })
        );
    }
}

#[test]
fn what_a_receiver_refuses_is_not_written() {
    let mut bytes = b"before".to_vec();
    let refused = [
        Message::Blocks(vec![block("a", 1), block("a", 2)]),
        Message::Blocks(vec![block("", 1)]),
        Message::DeviceState(vec![0; MAX_PIECE_LEN + 100]),
        Message::Failure("a".repeat(MAX_REASON_LEN + 100)),
        Message::Hello(Hello {
            channels: 0,
            ..hello()
        }),
    ];
    for message in refused {
        assert!(message.encode(&mut bytes).is_err(), "{message:?}");
        assert_eq!(bytes, b"before");
    }
    // As long as they may be.
    let words = reason(&"ä".repeat(MAX_REASON_LEN));
    assert_eq!(words.len(), MAX_REASON_LEN);
    assert_eq!(reason(&format!("a{words}")).len(), MAX_REASON_LEN - 1);
    for message in [
        Message::Failure(words),
        Message::DeviceState(vec![0xff; MAX_PIECE_LEN]),
    ] {
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        message.encode(&mut bytes).unwrap();
        let (events, end) = control_events(&bytes, &[usize::MAX]);
        assert_eq!(end, Ok(()));
        assert_eq!(events[1], Event::Message(message));
    }
}

#[test]
fn no_number_sizes_memory() {
    for file in ["control-source.txt", "control-destination.txt"] {
        let stream = vector(file);
        // Every four bytes as large as they go: among them are all lengths.
        for at in Preamble::LEN..stream.len() - 4 {
            let mut lie = stream.clone();
            lie[at..at + 4].fill(0xff);
            let (most, _) = measure(|| {
                let mut receiver = ControlReceiver::new(Limits::default());
                for mut piece in lie.chunks(7) {
                    while let Ok(Some(_)) = receiver.push(&mut piece) {}
                }
            });
            assert!(most <= 4 << 10, "{file} at {at}: {most} bytes");
        }
    }
}
