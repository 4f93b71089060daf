//! Marks and the SYNCs that they are about.

use multifd_transport::Address;
use multifd_wire::Method;

use super::super::support::Migration;
use super::super::support::made::{Channel, Main, Shape, page_record, zero_record};
use super::super::support::peers::{
    Destination, Limits, PONG, Role, SHUT_WELL, Source, a_while, write,
};
use super::super::{fails_with, mark_end, parse, relay, relay_at};

/// The system takes what is written into a connection that its peer has closed. A SYNC there is not
/// passed on.
#[test]
fn a_sync_that_nobody_reads_lets_no_mark_pass() {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let channel = |id| Channel::new(id, Method::None).sync();
    let migration = Migration {
        main: shape.bytes(1),
        channels: vec![channel(0).sync().bytes(), channel(1).sync().bytes()],
        return_path: true,
        closed: None,
    };
    let address: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let destination = Destination::at(&address, 2, Limits::default());
    let mut relay = relay_at("tcp:127.0.0.1:0", &destination.address, &["--once"]);
    let source = Source::dial(&relay.address(), 2);
    let begun = channel(0).bytes().len();
    for (stream, bytes) in source.channels.iter().zip(&migration.channels) {
        write(stream, &bytes[..begun]);
    }
    write(&source.main, &migration.main);
    assert!(source.hears(&PONG).ends_with(&PONG), "it loads");
    destination.close(Role::Channel(1));
    a_while();
    for (stream, bytes) in source.channels.iter().zip(&migration.channels) {
        write(stream, &bytes[begun..]);
    }
    source.wait_for_end();
    let seen = destination.wait("the end", |seen| seen.main().end.is_some());
    assert!(seen.main().bytes.len() < mark_end(&migration.main, 1));
    drop(seen);
    fails_with(&relay.end(), &["channel 1, destination side"]);
}

/// A guest without multifd whose first pages are all zero.
pub fn of_zeros_first(return_path: bool) -> Migration {
    let zeros: Vec<u8> = (0..5).flat_map(|page| zero_record(page << 12)).collect();
    let main = Main {
        machine: "none",
        return_path,
        bodies: &[&[], &zeros, &page_record(5 << 12, 7)],
    };
    Migration {
        main: main.bytes(),
        channels: Vec::new(),
        return_path,
        closed: None,
    }
}

/// A destination that loads without channels awaits none.
#[test]
fn a_first_round_of_zeros_is_no_missing_channel() {
    let migration = of_zeros_first(true);
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 0);
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let source = Source::begin(&relay.address(), &migration);
    drop(destination.wait("the second round", |seen| seen.has_all(&migration)));
    destination.say(Role::Main, &SHUT_WELL);
    assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    assert_eq!(parse(&relay.end().well())["confirmed"], true);
}
