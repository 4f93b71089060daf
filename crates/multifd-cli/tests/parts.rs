//! A channel whose first packet comes in parts is nobody's at the destination before it is whole.

mod support;

use support::made::{Shape, short};
use support::peers::{Destination, End, Role, SHUT_WELL, Source, a_while, write};
use support::{Migration, Multifd};

/// A hello and a SYNC.
const CHANNEL_START: usize = 64 + 1344;

fn migration() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

struct Begun {
    relay: Multifd,
    destination: Destination,
    source: Source,
    migration: Migration,
    _folder: tempfile::TempDir,
}

/// A migration of which everything was written but what channel 1 has after these bytes.
fn begun(bytes: usize) -> Begun {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let listen = "tcp:127.0.0.1:0";
    let args = ["relay", "--once", "--listen", listen, "--connect", &connect];
    let mut relay = Multifd::start(args);
    let migration = migration();
    let source = Source::dial(&relay.address(), 2);
    write(&source.channels[0], &migration.channels[0]);
    write(&source.channels[1], &migration.channels[1][..bytes]);
    write(&source.main, &migration.main);
    // A destination has its first channel and main, and waits for the other one.
    drop(destination.wait("a channel", |seen| {
        let channel = seen.of(Role::Channel(0));
        channel.is_some_and(|channel| channel.bytes.len() >= CHANNEL_START)
    }));
    a_while();
    assert_eq!(destination.seen().connections.len(), 2, "{bytes}");
    Begun {
        relay,
        destination,
        source,
        migration,
        _folder: folder,
    }
}

/// Behind the hello, in the header, between parts of its table, and one byte too few.
const PARTS: [usize; 5] = [64, 64 + 1, 64 + 320, 64 + 1000, CHANNEL_START - 1];

#[test]
fn it_is_passed_on_when_the_rest_comes() {
    for bytes in PARTS {
        let begun = begun(bytes);
        let (destination, source) = (&begun.destination, &begun.source);
        write(&source.channels[1], &begun.migration.channels[1][bytes..]);
        drop(destination.wait("all of it", |seen| seen.has_all(&begun.migration)));
        destination.say(Role::Main, &SHUT_WELL);
        assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
        source.finish();
        destination.forget();
        begun.relay.end().well();
    }
}

/// A QEMU that had the hello would wait for the SYNC for ever, and its monitor with it.
#[test]
fn a_source_that_gives_up_before_leaves_nothing_of_it() {
    for bytes in PARTS {
        let Begun {
            relay,
            destination,
            source,
            ..
        } = begun(bytes);
        drop(source);
        let ended = relay.end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let seen = destination.wait("the end", |seen| seen.is_over());
        assert_eq!(seen.connections.len(), 2, "{bytes}");
        assert!(seen.of(Role::Channel(1)).is_none());
        assert!(matches!(
            seen.main().end,
            Some(End::Closed | End::Broken(_))
        ));
    }
}
