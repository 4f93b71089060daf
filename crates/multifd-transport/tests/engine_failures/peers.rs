//! Peers that are none of ours, or have gone wrong.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::destination::{self, DestinationSettings};
use multifd_transport::failure::Channel;
use multifd_transport::incoming::Acceptor;
use multifd_transport::source::GuestState;
use multifd_transport::{Cancel, EngineFault, Listener, Parameters, Stream};
use multifd_wire::Method;
use multifd_wire::control::{Message, Preamble};

use crate::scenarios::{busy_guest, check_next_attempt, engine_fault, send_to};
use crate::support::{Place, TestVm, offered};

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
    let accepted = multifd_wire::control::Accepted {
        capabilities: Default::default(),
        channels: channels as u16,
    };
    Message::Accepted(accepted).encode(&mut answer).unwrap();
    (&main).write_all(&answer).unwrap();
    let channels = (0..channels).map(|_| accept()).collect();
    answer.clear();
    Message::Ack(multifd_wire::control::Acked::Blocks)
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
        assert!(matches!(
            engine_fault(&failure.failure),
            EngineFault::Timeout {
                round: 0,
                remaining_pages: 1..,
                ..
            }
        ));
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
        assert!(matches!(
            engine_fault(&failure.failure),
            EngineFault::Versions { theirs } if *theirs == later
        ));
        let said = failure.failure.explain();
        assert!(said.contains("the peer speaks versions 2 to 5"), "{said}");
    });
    drop(listener);

    // A source that does, one that compresses in an unknown way, and one that breaks the rules.
    let hello = |method_bits| {
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        let hello = multifd_wire::control::Hello {
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
        let hello = multifd_wire::control::Hello {
            capabilities: Default::default(),
            vm: [0; 16],
            session: [1; 16],
            page_size: multifd_wire::PageSize::K4,
            channels: 2,
            method_bits: 0,
        };
        Message::Hello(hello).encode(&mut bytes).unwrap();
        let block = multifd_wire::control::Block {
            name: crate::support::name("ram"),
            len_bytes: 4 << 20,
        };
        Message::Blocks(vec![block]).encode(&mut bytes).unwrap();
        (&main).write_all(&bytes).unwrap();
        // Channel 1 before channel 0, which says that a page is where there is none.
        let channels = [1, 0].map(|id| {
            let channel = Stream::connect(&place.address).unwrap();
            let hello = multifd_wire::Hello {
                uuid: [1; 16],
                channel: id,
                reserved: [0; 39],
            };
            (&channel).write_all(&hello.to_bytes()).unwrap();
            channel
        });
        let packet = multifd_wire::RamPacket::new(
            multifd_wire::PageSize::K4,
            crate::support::name("rom"),
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
