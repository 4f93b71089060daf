//! What comes once a source has been told that all of its guest has arrived.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use multifd_relay::SourceSettings;
use multifd_relay::image::Folder;
use multifd_relay::receive::receive;
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Cancel, Stream};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, RamPacket};

use super::{END, PAGE, begin_channel, unix};

const CONFIRMATION: &[u8] = b"\0\x01\0\x04\0\0\0\0";

/// A guest of two pages, up to its first round.
fn set_up() -> Vec<u8> {
    [
        b"QEVM\0\0\0\x03\x07\0\0\0\x04none".as_slice(),
        b"\x08\0\x01\0\0\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\x20\x04",
        b"\x06pc.ram\0\0\0\0\0\0\x20\0",
        b"\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
    ]
    .concat()
}

fn channel() -> Vec<u8> {
    let mut sender = ChannelSender::new();
    let mut bytes = Vec::new();
    sender.hello(&Hello::new([0; 16], 0), &mut bytes).unwrap();
    let block = BlockName::new(b"pc.ram").unwrap();
    let mut pages = RamPacket::new(PAGE, block, &[0], &[4096], 1).unwrap();
    pages.set_payload(Method::None, 4096).unwrap();
    let syncs = [0, 2].map(|number| Packet::Ram(RamPacket::sync(PAGE, number)));
    let [first, last] = &syncs;
    sender.packet(first, &mut bytes).unwrap();
    sender.packet(&Packet::Ram(pages), &mut bytes).unwrap();
    bytes.extend([7; 4096]);
    sender.payload_sent(4096).unwrap();
    sender.packet(last, &mut bytes).unwrap();
    bytes
}

/// Another migration cannot be told apart from the first one, whose source has given its guest up.
#[test]
fn a_second_migration_makes_no_failure_of_one_that_has_arrived() {
    let folder = tempfile::tempdir().unwrap();
    let address = unix(folder.path(), "receive");
    let mut acceptor = Acceptor::bind(&address).unwrap();
    let images = Folder::prepare(&folder.path().join("images")).unwrap();
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            let [main, other] = [(); 2].map(|()| Stream::connect(&address).unwrap());
            (&main).write_all(&[&set_up(), END].concat()).unwrap();
            (&other).write_all(&channel()).unwrap();
            let mut word = [0; 8];
            (&main).read_exact(&mut word).unwrap();
            assert_eq!(word, CONFIRMATION);
            let [second, its] = [(); 2].map(|()| Stream::connect(&address).unwrap());
            (&second).write_all(&set_up()).unwrap();
            (&its).write_all(&begin_channel(0).1).unwrap();
            thread::sleep(Duration::from_millis(500));
        });
        let settings = SourceSettings::default();
        receive(
            &mut acceptor,
            &images,
            settings,
            &Cancel::new(),
            &mut |_| {},
        )
    });
    let report = report.unwrap_or_else(|failure| panic!("{}", failure.explain()));
    assert_eq!(report.confirmed, Some(true));
}
