//! Packets that a relay has in work at once: their order, and what becomes of them when something
//! goes wrong among them.

use std::sync::mpsc;

use multifd_codec::ZlibLevel;
use multifd_wire::{ChannelReceiver, DeviceStatePacket, Event, IdStr, Limits};
use rustix::net::sockopt;

use super::*;

/// One channel's bytes: packets of all kinds among each other. Also where the last one begins,
/// which has pages.
fn mixed_channel_bytes() -> (Vec<u8>, usize) {
    let (mut sender, mut bytes) = begin_channel(0);
    let mut last = 0;
    for number in 0..40_u64 {
        let offsets = |pages: u64| (0..pages).map(|page| page * 4096).collect::<Vec<u64>>();
        let packet = |normal: &[u64], zero: &[u64]| {
            RamPacket::new(
                PAGE,
                BlockName::new(b"pc.ram").unwrap(),
                normal,
                zero,
                number,
            )
            .unwrap()
        };
        match number % 8 {
            2 => {
                let packet = packet(&[], &offsets(128));
                sender.packet(&Packet::Ram(packet), &mut bytes).unwrap();
            }
            4 => {
                let sync = RamPacket::sync(PAGE, number);
                sender.packet(&Packet::Ram(sync), &mut bytes).unwrap();
            }
            6 if number % 16 == 6 => {
                let name = IdStr::new(b"a device").unwrap();
                let state = DeviceStatePacket::new(name, number as u32, 5).unwrap();
                sender
                    .packet(&Packet::DeviceState(state), &mut bytes)
                    .unwrap();
                bytes.extend_from_slice(b"state");
                sender.payload_sent(5).unwrap();
            }
            _ => {
                last = bytes.len();
                let pages = [128, 1, 0, 50, 0, 128, 3, 127][number as usize % 8];
                let contents = contents(0, number, pages as usize);
                let mut packet = packet(&offsets(pages), &[]);
                packet
                    .set_payload(Method::None, contents.len() as u32)
                    .unwrap();
                sender.packet(&Packet::Ram(packet), &mut bytes).unwrap();
                bytes.extend_from_slice(&contents);
                sender.payload_sent(contents.len()).unwrap();
            }
        }
    }
    (bytes, last)
}

/// The number of packets after the hello in a channel's bytes.
fn count_packets(mut bytes: &[u8]) -> usize {
    let mut receiver = ChannelReceiver::new(Limits::default());
    let (_, hello) = begin_channel(0);
    receiver.push(&mut &hello[..Hello::LEN]).unwrap();
    let mut packets = 0;
    while !bytes.is_empty() {
        if let Some(Event::Packet(_)) = receiver.push(&mut bytes).unwrap() {
            packets += 1;
        }
    }
    receiver.finish().unwrap();
    packets
}

#[test]
fn packets_of_all_kinds_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["near", "far", "destination"].map(|name| unix(folder.path(), name));
    let sent = Sent {
        main: main_bytes(false),
        channels: vec![mixed_channel_bytes().0],
    };
    for method in [Method::Zlib, Method::Zstd, Method::Qpl] {
        for settings in all_settings(Accel::Auto) {
            let (taken, _, [near, far]) =
                through_two_with(&sent, method, settings, names.each_ref(), b"");
            assert!(taken.channels == sent.channels, "{method}, {settings:?}");
            assert_eq!(near.totals.pages, far.totals.pages);
            assert_eq!(near.totals.bytes_out, far.totals.bytes_in);
            assert_eq!(near.totals.bytes_in, far.totals.bytes_out);
        }
    }
}

#[test]
fn what_precedes_a_malformed_packet_goes_out() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["relay", "destination"].map(|name| unix(folder.path(), name));
    let (sound, last) = mixed_channel_bytes();
    for settings in all_settings(Accel::Auto) {
        let mut acceptor = Acceptor::bind(&names[1]).unwrap();
        let mut config = config(acceptor.address(), Method::Zlib);
        config.settings = settings;
        let mut relay = Relay::bind(&names[0], config).unwrap();
        let mut bytes = sound.clone();
        bytes[last] ^= 1;
        let sent = Sent {
            main: main_bytes(false),
            channels: vec![bytes],
        };
        let arrived = thread::scope(|scope| {
            let arrived = scope.spawn(|| {
                let whole = accept(&mut acceptor, 1);
                let mut bytes = Vec::new();
                let _ = (&whole.channels[0].stream).read_to_end(&mut bytes);
                bytes
            });
            scope.spawn(|| send(&names[0], &sent));
            let failure = relay.serve_one(&mut |_| {}).unwrap_err();
            assert_eq!(failure.leg, Leg::Source, "{}", failure.explain());
            // The source waits for no word. It may have given its guest up by then.
            let cause = match failure.cause {
                Cause::Untold { source } => *source,
                cause => cause,
            };
            assert!(
                matches!(cause, Cause::Transport(TransportCause::Wire(_))),
                "{cause:?}"
            );
            arrived.join().unwrap()
        });
        let all = count_packets(&sound[Hello::LEN..]);
        assert_eq!(count_packets(&arrived), all - 1, "{settings:?}");
    }
}

/// A connection that is reset between two packets, while the relay has others in work, is no end of
/// its channel.
#[test]
fn a_reset_between_packets_is_a_failure() {
    let tcp: Address = "tcp:127.0.0.1:0".parse().unwrap();
    // Without the last SYNC, so that the last packet is one that takes a while, at this level.
    let sync_len = channel_bytes(0, 0, Method::None).len() - begin_channel(0).1.len();
    let mut bytes = channel_bytes(0, 4, Method::None);
    bytes.truncate(bytes.len() - sync_len);
    for pause in [5, 10, 20, 40, 80].map(Duration::from_millis) {
        for streams in [1, 4] {
            let mut settings = Settings::default();
            settings.zlib_level = ZlibLevel::MAX;
            settings.streams = Streams::new(streams).unwrap();
            let mut acceptor = Acceptor::bind(&tcp).unwrap();
            let mut config = config(acceptor.address(), Method::Zlib);
            config.settings = settings;
            let mut relay = Relay::bind(&tcp, config).unwrap();
            let address = relay.address().clone();
            let (accepted, is_accepted) = mpsc::channel();
            let failure = thread::scope(|scope| {
                scope.spawn(move || {
                    let whole = accept(&mut acceptor, 1);
                    accepted.send(()).unwrap();
                    let mut bytes = Vec::new();
                    let _ = (&whole.channels[0].stream).read_to_end(&mut bytes);
                });
                let bytes = &bytes;
                scope.spawn(move || {
                    let main = Stream::connect(&address).unwrap();
                    let channel = Stream::connect(&address).unwrap();
                    (&channel).write_all(bytes).unwrap();
                    (&main).write_all(&main_bytes(false)).unwrap();
                    is_accepted.recv().unwrap();
                    thread::sleep(pause);
                    // Closing it says so at once then, whatever was not read yet.
                    sockopt::set_socket_linger(&channel, Some(Duration::ZERO)).unwrap();
                    drop(channel);
                    let _ = (&main).read_to_end(&mut Vec::new());
                });
                relay.serve_one(&mut |_| {})
            });
            // All of it may have been through by then, but for the end.
            let failure = failure.expect_err("a reset is no end");
            let explained = failure.explain();
            assert_eq!(failure.leg, Leg::Source, "{explained}");
            assert_eq!(failure.channel, Channel::Multifd(0), "{explained}");
        }
    }
}

#[test]
fn a_method_that_changes_names_the_block() {
    let (mut sender, mut bytes) = begin_channel(0);
    for (number, method) in [(0, Method::None), (1, Method::Zstd)] {
        let block = BlockName::new(b"pc.ram").unwrap();
        let mut packet = RamPacket::new(PAGE, block, &[0], &[], number).unwrap();
        packet.set_payload(method, 4096).unwrap();
        sender.packet(&Packet::Ram(packet), &mut bytes).unwrap();
        bytes.extend([1; 4096]);
        sender.payload_sent(4096).unwrap();
    }
    let source = |address: &Address| {
        let main = main_bytes(false);
        let channels = vec![bytes.clone()];
        send(address, &Sent { main, channels });
    };
    let failure = fails_and_recovers(source, |_| ());
    assert_eq!(failure.leg, Leg::Source);
    assert_eq!(failure.block.unwrap().as_bytes(), b"pc.ram");
    let said = failure.cause.to_string();
    assert!(said.starts_with("the channel changed from "), "{said}");
}
