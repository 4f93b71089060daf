//! A destination that stands still hides nothing that its source does.

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use multifd_transport::Address;

use super::super::support::Migration;
use super::super::support::made::{Main, Shape, long, page_record};
use super::super::support::peers::{Destination, Limits, Role, Source, dial, write};
use super::super::{fails_with, relay_at};

/// The bytes of main that a destination reads before it stands still.
const SOME: usize = 100;

fn shape(return_path: bool) -> Shape<'static> {
    Shape {
        return_path,
        ..Shape::default()
    }
}

/// A migration that no socket's buffers take whole.
fn migration(return_path: bool, has_channels: bool) -> Migration {
    let mut migration = long(&shape(return_path));
    if !has_channels {
        migration.channels.clear();
        migration.main = without_multifd(return_path);
    }
    migration
}

/// Sixteen MiB of pages on main.
fn without_multifd(return_path: bool) -> Vec<u8> {
    let pages: Vec<u8> = (0..4096)
        .flat_map(|fill| page_record(0, fill as u8))
        .collect();
    let main = Main {
        machine: "none",
        return_path,
        bodies: &[&[], &pages, &[]],
    };
    main.bytes()
}

/// Only with a return path: a source without one may have written everything before it closed.
#[test]
fn a_source_that_gives_up_is_noticed_while_the_destination_reads_nothing() {
    thread::scope(|scope| {
        for has_channels in [false, true] {
            scope.spawn(move || {
                let migration = migration(true, has_channels);
                let limits = Limits {
                    main: SOME,
                    channel: SOME,
                };
                let any: Address = "tcp:127.0.0.1:0".parse().expect("an address");
                let destination = Destination::at(&any, 0, limits);
                let to = &destination.address;
                let mut relay = relay_at("tcp:127.0.0.1:0", to, &["--once"]);
                let source = Source::dial(&relay.address(), migration.channels.len());
                thread::scope(|scope| {
                    let all = source.channels.iter().zip(&migration.channels);
                    for (stream, bytes) in all.chain([(&source.main, &migration.main)]) {
                        scope.spawn(move || write(stream, bytes));
                    }
                    drop(destination.wait("some of it", |seen| {
                        let main = seen.of(Role::Main);
                        main.is_some_and(|main| main.bytes.len() >= SOME)
                    }));
                    for stream in source.channels.iter().chain([&source.main]) {
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                    }
                });
                drop(source);
                fails_with(&relay.end(), &["source side"]);
            });
        }
    });
}

/// Its queue is full, or its host does not answer.
#[test]
fn a_source_that_gives_up_is_noticed_while_the_destination_is_called() {
    let listener = {
        use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
        bind(&socket, &any).expect("a port");
        listen(&socket, 0).expect("a socket");
        TcpListener::from(socket)
    };
    let to = listener.local_addr().expect("a port");
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let to: Address = format!("tcp:{to}").parse().expect("an address");
    thread::scope(|scope| {
        for return_path in [false, true] {
            for has_channels in [false, true] {
                let to = &to;
                scope.spawn(move || {
                    // Longer than any test may take.
                    let patient = ["--once", "--dial-timeout", "600"];
                    let mut relay = relay_at("tcp:127.0.0.1:0", to, &patient);
                    let migration = migration(return_path, has_channels);
                    let from = relay.address();
                    let main = dial(&from);
                    let whole = migration.channels.iter();
                    let channels: Vec<_> = whole
                        .map(|bytes| {
                            let channel = dial(&from);
                            write(&channel, &bytes[..64 + 1344]);
                            channel
                        })
                        .collect();
                    // Not all of it, which could be delivered without the source.
                    let some = match has_channels {
                        true => shape(return_path).set_up().len(),
                        false => 4096,
                    };
                    write(&main, &migration.main[..some]);
                    while !relay.complaint().contains("a migration begins") {}
                    drop((main, channels));
                    fails_with(&relay.end(), &["source side"]);
                });
            }
        }
    });
}

/// A source that had written all could stop its guest, and wait for what is never delivered.
#[test]
fn a_source_is_held_until_all_its_channels_were_accepted() {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("destination");
    // Room for main and one channel.
    let listener = {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &SocketAddrUnix::new(&path).expect("a path")).expect("a folder");
        listen(&socket, 1).expect("a socket");
        UnixListener::from(socket)
    };
    let migration = migration(true, true);
    let to = Address::Unix(path);
    let mut relay = relay_at("tcp:127.0.0.1:0", &to, &["--once", "--dial-timeout", "1"]);
    let source = Source::dial(&relay.address(), 2);
    thread::scope(|scope| {
        let all = source.channels.iter().zip(&migration.channels);
        for (stream, bytes) in all.chain([(&source.main, &migration.main)]) {
            scope.spawn(move || write(stream, bytes));
        }
        source.wait_for_end();
    });
    drop(source);
    let ended = relay.end();
    fails_with(&ended, &["destination side"]);
    // What came was not all of main: its last mark, and its end, were held.
    let (mut main, _) = listener.accept().expect("main");
    let mut bytes = Vec::new();
    let _ = main.read_to_end(&mut bytes);
    assert!(bytes.starts_with(b"QEVM"));
    assert!(bytes.len() <= shape(true).set_up().len(), "{}", bytes.len());
}
