//! Channels that are missed because packets of theirs are.

use std::thread;
use std::time::Duration;

use multifd_wire::Method;

use super::super::support::Migration;
use super::super::support::made::{Channel, Shape};
use super::super::support::peers::{SHUT_FAILED, Source, dial, write};
use super::super::{Taker, Taking};

const CONTENTS: [(u64, u8); 3] = [(0, 1), (4096, 2), (12288, 3)];

const ZEROS: [u64; 3] = [8192, 16384, 20480];

/// A migration that comes on one channel, with every page of the guest.
fn on(channel: Channel) -> Migration {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    Migration {
        main: shape.bytes(2),
        channels: vec![channel.bytes()],
        return_path: true,
        closed: None,
    }
}

/// All pages have come once, and the channel that did not come may have had newer contents of some.
fn is_refused(migration: &Migration, words: &str) {
    thread::scope(|scope| {
        for taker in [Taker::Receive, Taker::Record] {
            scope.spawn(move || {
                let taking = Taking::start(taker);
                let source = Source::begin(&taking.address, migration);
                let heard = source.hears(&SHUT_FAILED);
                assert!(heard.ends_with(&SHUT_FAILED), "{taker:?}: {heard:?}");
                taking.fails(&[words]);
            });
        }
    });
}

#[test]
fn a_channel_that_never_came_is_missed_by_its_packets_numbers() {
    let channel = Channel::new(0, Method::None).sync().skip(1);
    let channel = channel.pages(&CONTENTS, &ZEROS).sync().skip(3).sync();
    is_refused(&on(channel), "only 4 of 8 packets came");
}

/// The other channel's SYNCs have the numbers 1, 4 and 6; nobody has seen the last of them.
#[test]
fn a_channel_of_an_early_source_is_missed_by_the_numbers_of_its_syncs() {
    let channel = Channel::new(0, Method::None).early_sync().skip(1);
    let channel = channel.pages(&CONTENTS, &ZEROS).early_sync().skip(1);
    is_refused(&on(channel.early_sync()), "only 4 of 6 packets came");
}

/// An early source leaves out the number of a packet that a SYNC has taken the place of.
#[test]
fn one_number_that_an_early_source_leaves_out_is_no_channel() {
    let channel = Channel::new(0, Method::None).early_sync().skip(1);
    let channel = channel.pages(&CONTENTS, &ZEROS).early_sync().early_sync();
    let migration = on(channel);
    for taker in [Taker::Receive, Taker::Record] {
        let taking = Taking::start(taker);
        let source = Source::begin(&taking.address, &migration);
        taking.takes(&migration, &source);
    }
}

/// A channel that comes after main's end may have newer contents of pages, up to its last SYNC:
/// what is kept has them.
#[test]
fn a_late_channel_is_waited_for_up_to_its_last_sync() {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let old = [(0, 8), CONTENTS[1], CONTENTS[2]];
    let first = Channel::new(0, Method::None).sync().skip(1);
    let first = first.pages(&old, &ZEROS).sync().skip(1).sync().bytes();
    let start = || Channel::new(1, Method::None).skip(1).sync().skip(2).sync();
    let late = start().skip(1).pages(&[CONTENTS[0]], &[]).sync().bytes();
    let begun = start().bytes().len();
    let migration = Migration {
        main: shape.bytes(2),
        channels: vec![first, late],
        return_path: true,
        closed: None,
    };
    for taker in [Taker::Receive, Taker::Record] {
        let taking = Taking::start(taker);
        let main = dial(&taking.address);
        write(&main, &migration.main);
        let first = dial(&taking.address);
        write(&first, &migration.channels[0]);
        thread::sleep(Duration::from_millis(500));
        let second = dial(&taking.address);
        let (start, rest) = migration.channels[1].split_at(begun);
        write(&second, start);
        thread::sleep(Duration::from_millis(500));
        write(&second, rest);
        let channels = vec![first, second];
        taking.takes(&migration, &Source { main, channels });
    }
}
