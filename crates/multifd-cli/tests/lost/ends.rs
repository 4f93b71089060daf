//! Ends that a destination sees: what has failed is no clean end.

use std::io::Write;
use std::net::TcpStream;
use std::thread;

use multifd_transport::Address;
use rustix::net::sockopt::set_tcp_cork;

use super::super::support::Migration;
use super::super::support::made::{Shape, short};
use super::super::support::peers::{Destination, End, Limits, Role, Source, dial, write};
use super::super::{fails_with, relay_at};

fn ordinary(return_path: bool) -> Migration {
    short(&Shape {
        return_path,
        ..Shape::default()
    })
}

fn destination() -> (Destination, Address) {
    let address: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let destination = Destination::at(&address, 2, Limits::default());
    let address = destination.address.clone();
    (destination, address)
}

/// A QEMU takes a clean end of main for the end of a migration, and starts a guest without a return
/// path.
#[test]
fn what_has_failed_has_no_clean_end() {
    thread::scope(|scope| {
        for return_path in [false, true] {
            // The magic of a channel's second packet; a packet that is cut short; a main channel
            // that is. Without a return path its end is passed on as it is.
            for spoils in [0, 1, 2] {
                if spoils == 2 && !return_path {
                    continue;
                }
                scope.spawn(move || {
                    let mut migration = ordinary(return_path);
                    let whole = migration.main.len();
                    let channel = &mut migration.channels[1];
                    match spoils {
                        0 => channel[64 + 1344] ^= 1,
                        1 => channel.truncate(channel.len() - 1344 - 1),
                        _ => migration.main.truncate(whole - 10),
                    }
                    let (destination, address) = destination();
                    let mut relay = relay_at("tcp:127.0.0.1:0", &address, &["--once"]);
                    let source = Source::begin(&relay.address(), &migration);
                    drop(destination.wait("main", |seen| seen.of(Role::Main).is_some()));
                    if spoils != 0 {
                        source.finish();
                    }
                    let seen = destination.wait("the end", |seen| seen.main().end.is_some());
                    let end = seen.main().end;
                    assert!(matches!(end, Some(End::Broken(_))), "{spoils}: {end:?}");
                    assert!(seen.main().bytes.len() < whole);
                    drop(seen);
                    drop(source);
                    destination.close_all();
                    fails_with(&relay.end(), &["source side"]);
                });
            }
        }
    });
}

/// A destination takes each connection for a migration's, and takes one migration only.
#[test]
fn nobody_is_dialled_for_a_source_that_has_gone() {
    thread::scope(|scope| {
        // Main alone, or channels too.
        for channels in [0, 2] {
            scope.spawn(move || {
                let migration = ordinary(true);
                let (destination, address) = destination();
                let mut relay = relay_at("tcp:127.0.0.1:0", &address, &["--once"]);
                let from = relay.address();
                let text = from.to_string();
                let text = text.strip_prefix("tcp:").expect("tcp");
                let main = TcpStream::connect(text).expect("a listener");
                let whole = migration.channels[..channels].iter();
                let channels: Vec<_> = whole
                    .map(|bytes| {
                        let channel = dial(&from);
                        write(&channel, &bytes[..64]);
                        channel
                    })
                    .collect();
                // Corked, so that its end is in the same segment and is there when its set-up is.
                set_tcp_cork(&main, true).expect("a TCP socket");
                (&main).write_all(&migration.main).expect("a reader");
                drop(main);
                drop(channels);
                fails_with(&relay.end(), &["source side"]);
                assert!(destination.seen().connections.is_empty());
            });
        }
    });
}
