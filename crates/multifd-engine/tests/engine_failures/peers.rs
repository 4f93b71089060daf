//! Peers that are none of ours, or have gone wrong.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use multifd_engine::Parameters;
use multifd_engine::control::{Message, Preamble};
use multifd_engine::destination::{self, DestinationSettings};
use multifd_engine::source::GuestState;
use multifd_transport::failure::Channel;
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Cancel, Listener, Stream};
use multifd_wire::Method;

use crate::scenarios::{busy_guest, check_next_attempt, engine_fault, send_to};
use testkit::engine::{Place, TestVm, offered};

/// Agrees to everything as a destination would, up to the block list, and hands over what it has.
fn accept_all(listener: &Listener, channels: usize) -> (Stream, Vec<Stream>) {
    let accept = || loop {
        if let Some(stream) = listener.try_accept().unwrap() {
            return stream;
        }
        thread::sleep(Duration::from_millis(1));
    };
    let main = accept();
    let mut answer = Preamble::OURS.to_bytes().to_vec();
    let accepted = multifd_engine::control::Accepted {
        capabilities: Default::default(),
        channels: channels as u16,
    };
    Message::Accepted(accepted).encode(&mut answer).unwrap();
    (&main).write_all(&answer).unwrap();
    let channels = (0..channels).map(|_| accept()).collect();
    answer.clear();
    Message::Ack(multifd_engine::control::Acked::Blocks)
        .encode(&mut answer)
        .unwrap();
    (&main).write_all(&answer).unwrap();
    (main, channels)
}

pub fn destination_stalls() {
    let place = Place::unix();
    let listener = Listener::bind(&place.address).unwrap();
    let guest = busy_guest();
    let mut parameters = Parameters::default();
    parameters.timeout = Duration::from_millis(500);
    thread::scope(|scope| {
        let stalling = scope.spawn(|| accept_all(&listener, 2));
        let started = Instant::now();
        let failure = send_to(&place.address, &guest, &parameters);
        assert!(started.elapsed() >= parameters.timeout);
        let fault = engine_fault(&failure.failure);
        assert!(fault.is_timeout(), "{fault}");
        let words = fault.to_string();
        assert!(words.contains(" pages left in round 0"), "{words}");
        assert!(!words.contains(": 0 pages left"), "{words}");
        assert!(matches!(failure.guest, GuestState::Runs));
        let (mut said, (main, _)) = (Vec::new(), stalling.join().unwrap());
        (&main).read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("not done after 0.5 s"), "{said}");
    });
    check_next_attempt(&guest);
}

pub fn versions_and_methods() {
    // A destination that speaks only later versions.
    let place = Place::unix();
    let listener = Listener::bind(&place.address).unwrap();
    let guest = busy_guest();
    let later = Preamble {
        oldest: 2,
        newest: 5,
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let main = loop {
                if let Some(stream) = listener.try_accept().unwrap() {
                    break stream;
                }
                thread::sleep(Duration::from_millis(1));
            };
            (&main).write_all(&later.to_bytes()).unwrap();
            let _ = (&main).read_to_end(&mut Vec::new());
        });
        let failure = send_to(&place.address, &guest, &Parameters::default());
        let said = engine_fault(&failure.failure).to_string();
        assert!(
            said.starts_with("the peer speaks versions 2 to 5"),
            "{said}"
        );
    });
    drop(listener);

    // A source that does, one that compresses in an unknown way, and one that breaks the rules.
    let hello = |method_bits| {
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        let hello = multifd_engine::control::Hello {
            capabilities: Default::default(),
            vm: [0; 16],
            session: [1; 16],
            page_size: multifd_wire::PageSize::K4,
            channels: 1,
            method_bits,
        };
        Message::Hello(hello).encode(&mut bytes).unwrap();
        bytes
    };
    let mut out_of_turn = Preamble::OURS.to_bytes().to_vec();
    Message::Start.encode(&mut out_of_turn).unwrap();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    for (bytes, wanted) in [
        (later.to_bytes().to_vec(), "the peer speaks versions 2 to 5"),
        (hello(0x100), "0x100 name no known compression method"),
        (
            hello(Method::Qatzip.bits()),
            "no codec for the qatzip method",
        ),
        (out_of_turn, "the start where a hello was due"),
        (
            b"MFDC\0\x01\0\x01\0\x63\0\0\0\0".to_vec(),
            "control message of kind 99",
        ),
    ] {
        thread::scope(|scope| {
            let destination = scope.spawn(|| {
                destination::receive(
                    &mut acceptor,
                    offered,
                    &mut TestVm::empty(),
                    &DestinationSettings::default(),
                    &Cancel::new(),
                    &mut |_| {},
                )
            });
            let main = Stream::connect(&place.address).unwrap();
            (&main).write_all(&bytes).unwrap();
            let mut said = Vec::new();
            (&main).read_to_end(&mut said).unwrap();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(said.contains(wanted), "{said}");
            let failure = destination.join().unwrap().unwrap_err();
            assert!(failure.explain().contains(wanted), "{}", failure.explain());
        });
    }
}

/// A failure names the channel it happened on.
pub fn a_channel_that_breaks_the_rules_is_named() {
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let destination = thread::scope(|scope| {
        let destination = scope.spawn(|| {
            destination::receive(
                &mut acceptor,
                offered,
                &mut TestVm::empty(),
                &DestinationSettings::default(),
                &Cancel::new(),
                &mut |_| {},
            )
        });
        let main = Stream::connect(&place.address).unwrap();
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        let hello = multifd_engine::control::Hello {
            capabilities: Default::default(),
            vm: [0; 16],
            session: [1; 16],
            page_size: multifd_wire::PageSize::K4,
            channels: 2,
            method_bits: 0,
        };
        Message::Hello(hello).encode(&mut bytes).unwrap();
        let block = multifd_engine::control::Block {
            name: testkit::engine::name("ram"),
            len_bytes: 4 << 20,
        };
        Message::Blocks(vec![block]).encode(&mut bytes).unwrap();
        (&main).write_all(&bytes).unwrap();
        // Channel 1 before channel 0, which says that a page is where there is none.
        let channels = [1, 0].map(|id| {
            let channel = Stream::connect(&place.address).unwrap();
            let hello = multifd_wire::Hello::new([1; 16], id);
            (&channel).write_all(&hello.to_bytes()).unwrap();
            channel
        });
        let packet = multifd_wire::RamPacket::new(
            multifd_wire::PageSize::K4,
            testkit::engine::name("rom"),
            &[],
            &[0],
            0,
        );
        let mut bytes = Vec::new();
        multifd_wire::Packet::Ram(packet.unwrap()).encode(&mut bytes);
        (&channels[1]).write_all(&bytes).unwrap();
        destination.join().unwrap()
    });
    let failure = destination.unwrap_err();
    assert_eq!(failure.channel, Channel::Multifd(0));
    assert_eq!(
        failure.explain(),
        "channel 0, source side, block rom: this guest has no block of that name"
    );
}

/// A source made of bytes: all that it says on its main connection up to the block list, of one
/// block `ram`, and as many channels as it was asked for.
fn made_source(place: &Place, pages: u64, channels: u8) -> (Stream, Vec<Stream>) {
    let main = Stream::connect(&place.address).unwrap();
    let mut bytes = Preamble::OURS.to_bytes().to_vec();
    let hello = multifd_engine::control::Hello {
        capabilities: Default::default(),
        vm: [0; 16],
        session: [1; 16],
        page_size: multifd_wire::PageSize::K4,
        channels: channels.into(),
        method_bits: 0,
    };
    Message::Hello(hello).encode(&mut bytes).unwrap();
    let block = multifd_engine::control::Block {
        name: testkit::engine::name("ram"),
        len_bytes: pages * 4096,
    };
    Message::Blocks(vec![block]).encode(&mut bytes).unwrap();
    (&main).write_all(&bytes).unwrap();
    let channels = (0..channels).map(|id| {
        let channel = Stream::connect(&place.address).unwrap();
        let hello = multifd_wire::Hello::new([1; 16], id);
        (&channel).write_all(&hello.to_bytes()).unwrap();
        channel
    });
    (main, channels.collect())
}

/// Zero pages in one packet, and a SYNC after it.
fn zero_pages(channel: &Stream, offsets: &[u64]) {
    use multifd_wire::{Packet, PageSize, RamPacket};
    let name = testkit::engine::name("ram");
    let packet = RamPacket::new(PageSize::K4, name, &[], offsets, 0).unwrap();
    let mut bytes = Vec::new();
    Packet::Ram(packet).encode(&mut bytes);
    Packet::Ram(RamPacket::sync(PageSize::K4, 1)).encode(&mut bytes);
    (&*channel).write_all(&bytes).unwrap();
}

fn say(main: &Stream, messages: &[Message]) {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&mut bytes).unwrap();
    }
    (&*main).write_all(&bytes).unwrap();
}

/// Everything that the destination says until it closes.
fn said(main: &Stream) -> String {
    let mut bytes = Vec::new();
    // It may close before it has read all that was said to it, which is a reset.
    let _ = (&*main).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn whole(device_state_bytes: u64) -> Message {
    Message::Completion(multifd_engine::control::Completion {
        device_state_bytes,
        digest: None,
    })
}

/// It says that all is sent. The destination looks whether that is so, and would load nothing.
pub fn a_source_that_leaves_pages_out() {
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let offsets = |pages: &[u64]| pages.iter().map(|page| page * 4096).collect::<Vec<_>>();
    for (pages, missing) in [
        (&[0, 1, 2, 3][..], None),
        (&[0, 1, 3], Some((1, 8192))),
        (&[], Some((4, 0))),
    ] {
        let (outcome, vm) = thread::scope(|scope| {
            let destination = scope.spawn(|| {
                let mut vm = TestVm::empty();
                let (settings, none) = (DestinationSettings::default(), &mut |_| {});
                let cancel = Cancel::new();
                let outcome =
                    destination::receive(&mut acceptor, offered, &mut vm, &settings, &cancel, none);
                (outcome, vm)
            });
            let (main, channels) = made_source(&place, 4, 1);
            zero_pages(&channels[0], &offsets(pages));
            say(&main, &[Message::RoundMark(0), whole(0), Message::Start]);
            let said = said(&main);
            assert_eq!(said.contains("never came"), missing.is_some(), "{said}");
            destination.join().unwrap()
        });
        assert_eq!(
            vm.runs.load(std::sync::atomic::Ordering::SeqCst),
            missing.is_none()
        );
        match (outcome, missing) {
            (Ok(_), None) => {}
            (Err(failure), Some((missing_pages, at))) => {
                let said = engine_fault(&failure).to_string();
                let pages = format!("{missing_pages} of 4 pages of block ");
                let first = format!(" never came, the first is at {at:#x}");
                assert!(said.starts_with(&pages) && said.ends_with(&first), "{said}");
            }
            (outcome, missing) => panic!("{missing:?}: {outcome:?}"),
        }
    }
}

/// In each place where it is the source's turn.
pub fn sources_that_fall_silent() {
    let place = Place::unix();
    let mut acceptor = Acceptor::bind(&place.address).unwrap();
    let mut settings = DestinationSettings::default();
    settings.idle_timeout = Duration::from_millis(300);
    let behind_its_round = |main: &Stream, channels: &[Stream]| {
        for channel in channels {
            zero_pages(channel, &[0, 4096, 8192, 12288]);
        }
        say(main, &[Message::RoundMark(0)]);
    };
    type Says<'a> = &'a (dyn Fn(&Stream, &[Stream]) + Sync);
    let cases: &[(&str, Says<'_>)] = &[
        ("before any page", &|_, _| {}),
        ("before a SYNC", &|main, channels| {
            zero_pages(&channels[0], &[0]);
            say(main, &[Message::RoundMark(0)]);
        }),
        ("inside a packet", &|_, channels| {
            (&channels[1]).write_all(&[0x11, 0x22]).unwrap();
        }),
        ("behind a round", &behind_its_round),
        ("inside a message", &|main, channels| {
            behind_its_round(main, channels);
            (&*main).write_all(&[0]).unwrap();
        }),
        ("before the start", &|main, channels| {
            behind_its_round(main, channels);
            say(main, &[whole(0)]);
        }),
    ];
    for (place_of_silence, says) in cases {
        thread::scope(|scope| {
            let destination = scope.spawn(|| {
                let (vm, none) = (&mut TestVm::empty(), &mut |_| {});
                destination::receive(&mut acceptor, offered, vm, &settings, &Cancel::new(), none)
            });
            let (main, channels) = made_source(&place, 4, 2);
            says(&main, &channels);
            let said = said(&main);
            assert!(
                said.contains("the other end has sent nothing"),
                "{place_of_silence}: {said}"
            );
            let failure = destination.join().unwrap().unwrap_err();
            let said = engine_fault(&failure).to_string();
            assert!(
                said.starts_with("the other end has sent nothing for "),
                "{place_of_silence}: {said}"
            );
        });
    }
}
