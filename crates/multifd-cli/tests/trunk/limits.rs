//! Relays whose memory is limited.

use std::process::Command;

use multifd_wire::Method;

use super::super::support::made::{BLOCK, Channel, PAGE_BYTES, Shape};
use super::super::support::peers::{Destination, Source, write};
use super::super::support::{Migration, Multifd, program};
use super::super::{arrives, relay, report, trunk_of};

/// Pages of one packet, and packets: more than the relays may keep.
const PAGES: u64 = 128;
const PACKETS: u64 = 400;

/// The kept pages of a guest leave room for everything else, so that no relay ends.
#[test]
fn a_limited_address_space_ends_no_relay() {
    let bytes = PACKETS * PAGES * PAGE_BYTES as u64;
    let shape = Shape {
        return_path: true,
        blocks: &[(BLOCK, bytes, None)],
        ..Shape::default()
    };
    let mut channel = Channel::new(0, Method::None).sync();
    for packet in 0..PACKETS {
        let pages = packet * PAGES..(packet + 1) * PAGES;
        let pages: Vec<_> = pages
            .map(|page| (page * PAGE_BYTES as u64, page as u8 | 1))
            .collect();
        channel = channel.pages(&pages, &[]);
    }
    let migration = Migration {
        main: shape.bytes(1),
        channels: vec![channel.sync().bytes()],
        return_path: true,
        closed: None,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 1);
    let listen = format!("trunk+unix:{}", folder.path().join("trunk").display());
    let more = ["--once", "--delta-memory", "4G"];
    let mut far = relay(&listen, &destination.address.to_string(), &more);
    let connect = format!("trunk+{}", trunk_of(&mut far));
    let mut limited = Command::new("sh");
    // An allocator with an arena for each thread would take the address space in advance.
    limited.env("MALLOC_ARENA_MAX", "1");
    limited.args(["-c", "ulimit -v 240000; exec \"$0\" \"$@\""]);
    limited.arg(program()).args(["relay", "--json"]);
    limited.args(["--compression", "zstd"]);
    limited.args(["--listen", "tcp:127.0.0.1:0", "--connect", &connect]);
    let mut near = Multifd::spawn(limited.args(more));
    let source = Source::dial(&near.address(), 1);
    write(&source.main, &migration.main);
    write(&source.channels[0], &migration.channels[0]);
    arrives(&destination, &source, &migration);
    for ended in [near.end(), far.end()] {
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(report(&ended)["confirmed"], true, "{ended:?}");
    }
}
