//! Postcopy: carried by a relay, refused where there is no guest to switch to.

use crate::support::made::{Shape, short};
use crate::support::peers::*;
use crate::*;

#[test]
fn postcopy_is_refused_where_there_is_no_guest_to_switch_to() {
    let huge = &[("pc.ram", 2 << 20, Some(2 << 20))];
    for taker in [Taker::Receive, Taker::Record] {
        for (page_sizes, blocks) in [(0x1000, Shape::default().blocks), (0x20_1000, huge)] {
            let migration = short(&Shape {
                return_path: true,
                advise: Some(page_sizes),
                blocks,
                ..Shape::default()
            });
            let taking = Taking::start(taker);
            let source = Source::begin(&taking.address, &migration);
            let heard = source.hears(&SHUT_FAILED);
            assert!(heard.ends_with(&SHUT_FAILED), "{heard:?}");
            taking.fails(&[
                "may switch to postcopy",
                "migrate_set_capability postcopy-ram off",
            ]);
        }
    }
}

#[test]
fn postcopy_that_is_never_used_goes_through_a_relay() {
    let huge = &[("pc.ram", 2 << 20, Some(2 << 20))];
    for (page_sizes, blocks) in [(0x1000, Shape::default().blocks), (0x20_1000, huge)] {
        let migration = short(&Shape {
            return_path: true,
            advise: Some(page_sizes),
            blocks,
            ..Shape::default()
        });
        let taking = Taking::start(Taker::Relay);
        let source = Source::begin(&taking.address, &migration);
        taking.takes(&migration, &source);
    }
}
/// A migration that may switch to postcopy.
fn may_switch() -> Migration {
    short(&Shape {
        return_path: true,
        advise: Some(0x1000),
        ..Shape::default()
    })
}

#[test]
fn postcopys_own_connection_is_passed_on_both_ways() {
    let migration = may_switch();
    // It may say nothing for long, or at once what no other connection begins with.
    for says in [b"".as_slice(), b"\0\0\0\0\0\0\x10\x08page"] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut relay = relay(folder.path(), &destination.address, &["--once"]);
        let from = relay.address();
        let source = Source::begin(&from, &migration);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        let preempt = dial(&from);
        write(&preempt, says);
        drop(destination.wait("a connection more", |seen| seen.connections.len() == 4));
        write(&preempt, b"urgent");
        let there = [says, b"urgent"].concat();
        drop(destination.wait("what it says", |seen| {
            let preempt = seen.of(Role::Other);
            preempt.is_some_and(|preempt| preempt.bytes == there)
        }));
        destination.say(Role::Other, b"answer");
        let mut heard = [0; 6];
        std::io::Read::read_exact(&mut &preempt, &mut heard).expect("an answer");
        assert_eq!(&heard, b"answer");
        destination.say(Role::Main, &SHUT_WELL);
        assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
        source.finish();
        drop(preempt);
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        destination.close_all();
        let report = parse(&relay.end().well());
        assert_eq!(report["confirmed"], true, "{report}");
        assert_eq!(
            report["remarks"],
            json!(["postcopy's own connection was passed on"])
        );
    }
}

/// COMMAND POSTCOPY_RESUME: a migration that goes on after a break.
const RESUME: &[u8] = b"\x08\0\x09\0\0";

#[test]
fn a_recovery_is_passed_on_by_a_relay_and_named_by_others() {
    let taking = Taking::start(Taker::Relay);
    let source = Source::dial(&taking.address, 0);
    write(&source.main, RESUME);
    let destination = taking.destination.as_ref().expect("a relay has one");
    drop(destination.wait("it", |seen| {
        let first = seen.connections.first();
        first.is_some_and(|connection| connection.bytes == RESUME)
    }));
    destination.say(Role::Other, b"\0\x06\0\x04\0\0\0\x01");
    assert_eq!(source.hears(b"\0\0\0\x01"), b"\0\x06\0\x04\0\0\0\x01");

    for taker in [Taker::Receive, Taker::Record] {
        let mut taking = Taking::start(taker);
        let recovery = dial(&taking.address);
        write(&recovery, RESUME);
        end_of(&recovery);
        let note = taking.multifd.complaint();
        assert!(note.contains("it recovers a postcopy migration"), "{note}");
        let migration = &both()[1];
        let source = Source::begin(&taking.address, migration);
        taking.takes(migration, &source);
    }
}

/// With machine types up to 7.2 it is opened right after main, before any channel.
#[test]
fn postcopys_own_connection_may_be_the_second_one() {
    let migration = may_switch();
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let from = relay.address();
    let main = dial(&from);
    let preempt = dial(&from);
    let channels = [0, 1].map(|_| dial(&from));
    let source = Source {
        main,
        channels: channels.into(),
    };
    source.write(&migration);
    drop(destination.wait("all of it", |seen| {
        seen.has_all(&migration) && seen.connections.len() == 4
    }));
    write(&preempt, b"urgent");
    drop(destination.wait("what it says", |seen| {
        let preempt = seen.of(Role::Other);
        preempt.is_some_and(|preempt| preempt.bytes == b"urgent")
    }));
    destination.say(Role::Main, &SHUT_WELL);
    assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    source.finish();
    drop(preempt);
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    assert_eq!(parse(&relay.end().well())["confirmed"], true);
}

/// COMMAND ENABLE_COLO, and what is no stream of a migration.
const COLO: &[u8] = b"\x08\0\x08\0\0\0\0\0\x05what two guests say to each other";

/// What a COLO destination says is no return path, even where a part of it looks like a last word.
#[test]
fn colo_is_passed_on_both_ways() {
    let answer = [b"\0\0\0\x01".as_slice(), &SHUT_WELL, b"and more"].concat();
    let shape = Shape {
        return_path: true,
        end: COLO,
        ..Shape::default()
    };
    let migration = short(&shape);
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let source = Source::begin(&relay.address(), &migration);
    let seen = destination.wait("all of it", |seen| seen.has_all(&migration));
    assert!(seen.main().bytes == migration.main);
    drop(seen);
    assert_eq!(source.hears(&PONG), PONG);
    destination.say(Role::Main, &answer);
    assert_eq!(source.hears(b"and more"), answer);
    write(&source.main, b"and so on");
    drop(destination.wait("the rest", |seen| seen.main().bytes.ends_with(b"so on")));
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    let ended = relay.end();
    assert_ne!(parse(&ended.stdout)["confirmed"], true, "{ended:?}");
}
