//! Several migrations at once through one relay: by several addresses, and at one.

mod support;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::Address;
use multifd_wire::Method;
use serde_json::{Value, json};
use support::made::{Channel, Shape, short};
use support::peers::{Destination, Limits, Role, SHUT_WELL, Source, dial, dial_from};
use support::{Migration, Multifd, record, replay, send};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn ordinary() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

fn unix(folder: &Path, name: &str) -> Address {
    Address::Unix(folder.join(name))
}

/// Sends a migration whole.
fn goes_through(migration: &Migration, address: &Address, destination: &Destination) {
    let source = Source::begin(address, migration);
    ends_well(migration, &source, destination);
}

fn ends_well(migration: &Migration, source: &Source, destination: &Destination) {
    drop(destination.wait("all of it", |seen| seen.has_all(migration)));
    destination.say(Role::Main, &SHUT_WELL);
    let heard = source.hears(&SHUT_WELL);
    assert!(heard.ends_with(&SHUT_WELL), "{heard:?}");
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.forget();
}

/// A relay with two routes, from `a` to `x` and from `b` to `y`.
struct Two {
    relay: Multifd,
    from: [Address; 2],
    to: [Destination; 2],
}

impl Two {
    fn start(folder: &Path, options: &[&str]) -> Self {
        let from = ["a", "b"].map(|name| unix(folder, name));
        let to = ["x", "y"].map(|name| Destination::at(&unix(folder, name), 2, Limits::default()));
        let mut relay = Multifd::start([&["relay", "--json"], options].concat());
        for (from, to) in from.iter().zip(&to) {
            let line = relay.complaint();
            let listening = format!("multifd: listening on {from}, for {}", to.address);
            assert_eq!(line, listening);
        }
        Self { relay, from, to }
    }

    /// The next report; which route it names.
    fn report(&mut self) -> (Value, usize) {
        let report = parse(&self.relay.result());
        let mut from = self.from.iter();
        let index = from.position(|from| report["route"] == from.to_string());
        let index = index.unwrap_or_else(|| panic!("{report}"));
        (report, index)
    }
}

fn route(folder: &Path, from: &str, to: &str) -> String {
    format!("{}={}", unix(folder, from), unix(folder, to))
}

#[test]
fn routes_serve_at_once_and_fail_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (
        route(folder.path(), "a", "x"),
        route(folder.path(), "b", "y"),
    );
    let mut two = Two::start(folder.path(), &["--route", &a, "--route", &b]);
    let migration = ordinary();
    // One that never ends.
    let endless = Source::begin(&two.from[0], &migration);
    drop(two.to[0].wait("all of it", |seen| seen.has_all(&migration)));
    for _ in 0..2 {
        goes_through(&migration, &two.from[1], &two.to[1]);
        let (report, index) = two.report();
        assert_eq!((&report["confirmed"], index), (&json!(true), 1), "{report}");
    }
    // One that fails beside it.
    let mut lie = ordinary();
    lie.channels[1][64] ^= 1;
    let lying = Source::begin(&two.from[1], &lie);
    lying.wait_for_end();
    let (failed, index) = two.report();
    assert_eq!(
        (&failed["confirmed"], index),
        (&json!(false), 1),
        "{failed}"
    );
    assert!(
        failed["error"].is_string() && failed["peer"].is_string(),
        "{failed}"
    );
    drop(lying);
    two.to[1].forget();

    assert!(!endless.main.peer_has_closed());
    ends_well(&migration, &endless, &two.to[0]);
    let (report, index) = two.report();
    assert_eq!((&report["confirmed"], index), (&json!(true), 0), "{report}");
    // And words for people say which.
    drop(Source::begin(&two.from[0], &migration));
    let (failed, index) = two.report();
    assert_eq!(
        (&failed["confirmed"], index),
        (&json!(false), 0),
        "{failed}"
    );
    loop {
        let line = two.relay.complaint();
        if line.contains("goes on with its guest") || line.contains("before it was complete") {
            assert!(line.contains(&format!("({}): ", two.from[0])), "{line}");
            break;
        }
    }
}

/// The process ends with the first migration, and would take the other one with it.
#[test]
fn one_migration_does_not_end_another_that_has_begun() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (
        route(folder.path(), "a", "x"),
        route(folder.path(), "b", "y"),
    );
    let mut two = Two::start(folder.path(), &["--once", "--route", &a, "--route", &b]);
    let migration = ordinary();
    let sources = two.from.each_ref().map(|from| Source::dial(from, 2));
    sources.iter().for_each(|source| source.write(&migration));
    // The second one may have been refused, with its guest at its source.
    let deadline = Instant::now() + Duration::from_secs(60);
    let begun = [0, 1].map(|index| {
        loop {
            let has_all = two.to[index].seen().has_all(&migration);
            if has_all || sources[index].main.peer_has_closed() {
                return has_all;
            }
            assert!(Instant::now() < deadline, "neither begun nor refused");
            thread::sleep(Duration::from_millis(10));
        }
    });
    for index in [0, 1].into_iter().filter(|&index| begun[index]) {
        ends_well(&migration, &sources[index], &two.to[index]);
        let (report, of) = two.report();
        assert_eq!(
            (&report["confirmed"], of),
            (&json!(true), index),
            "{report}"
        );
    }
    assert!(begun.contains(&true));
    assert!(two.relay.end().status.success());
}

#[test]
fn routes_stand_in_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (
        route(folder.path(), "a", "x"),
        route(folder.path(), "b", "y"),
    );
    let file = folder.path().join("routes");
    fs::write(&file, format!("# VMs of this host\n{a}\n\n  {b}\n")).expect("a file");
    let file = file.to_str().expect("text");
    let mut two = Two::start(folder.path(), &["--routes", file]);
    for which in [0, 1] {
        goes_through(&ordinary(), &two.from[which], &two.to[which]);
        let (report, index) = two.report();
        assert_eq!((&report["confirmed"], index), (&json!(true), which));
    }
    drop(two);

    let refused = |text: &str, says: &str| {
        fs::write(file, text).expect("a file");
        let ended = Multifd::start(["relay", "--routes", file]).end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(says), "{says}: {ended:?}");
        assert!(!ended.stderr.contains("listening"), "{ended:?}");
    };
    refused(
        &format!("{a}\nnothing\n"),
        "line 2: `nothing` is no route: write LISTEN=CONNECT",
    );
    refused(&format!("{a}\n{a}\n"), "is listened on twice");
    refused(
        &route(folder.path(), "a", "a"),
        "leads back to this relay itself",
    );
    refused("# nothing\n", "say where to listen and where to connect");
    let ended = Multifd::start(["relay", "--routes", "/no/such/file"]).end();
    assert!(
        ended.stderr.contains("cannot read /no/such/file"),
        "{ended:?}"
    );
}

/// Other pages than the ordinary one has: two with contents and four of zeros.
fn other(shape: &Shape<'_>) -> Migration {
    let uuid = shape.uuid.unwrap_or_default();
    let channel = |id| Channel::of_vm(uuid, id, Method::None).sync();
    Migration {
        channels: vec![
            channel(0).pages(&[(0, 7)], &[4096, 8192]).sync().bytes(),
            channel(1)
                .pages(&[(12288, 8)], &[16384, 20480])
                .sync()
                .bytes(),
        ],
        ..short(shape)
    }
}

/// Both of two migrations are under way at a relay's one address, and end well; each with its own
/// pages.
fn both_end_well(
    relay: &mut Multifd,
    destination: &Destination,
    sources: [(&Source, &Migration); 2],
) {
    for (source, migration) in sources {
        source.write(migration);
    }
    let lengths = |seen: &support::peers::Seen, role| -> Vec<usize> {
        let connections = seen.connections.iter();
        let those = connections.filter(|connection| connection.role() == role);
        those.map(|connection| connection.bytes.len()).collect()
    };
    let [(_, first), (_, second)] = sources;
    drop(destination.wait("all of both", |seen| {
        let sum = |role| lengths(seen, role).iter().sum::<usize>();
        sum(Role::Main) >= first.main.len() + second.main.len()
            && (0..2).all(|id| {
                let bytes = [first, second].map(|migration| migration.channels[id].len());
                sum(Role::Channel(id as u8)) >= bytes.iter().sum()
            })
    }));
    destination.say_all(Role::Main, &SHUT_WELL);
    for (source, _) in sources {
        assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
        source.finish();
    }
    destination.forget();
    let mut pages = [0, 1].map(|_| {
        let report = parse(&relay.result());
        assert_eq!(report["confirmed"], true, "{report}");
        assert_eq!(report["channels"], 2, "{report}");
        report["pages"].as_u64().expect("a number")
    });
    pages.sort();
    assert_eq!(pages, [2, 3]);
}

#[test]
fn two_at_one_address_from_different_hosts() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 4);
    let connect = destination.address.to_string();
    let args = [
        "relay",
        "--json",
        "--listen",
        "tcp:127.0.0.1:0",
        "--connect",
        &connect,
    ];
    let mut relay = Multifd::start(args);
    let address = relay.address();
    let sources = [[127, 0, 0, 2], [127, 0, 0, 3]].map(|host| Source {
        main: dial_from(host, &address),
        channels: (0..2).map(|_| dial_from(host, &address)).collect(),
    });
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let (first, second) = (ordinary(), other(&shape));
    both_end_well(
        &mut relay,
        &destination,
        [(&sources[0], &first), (&sources[1], &second)],
    );
}

#[test]
fn two_at_one_address_that_say_who_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 4);
    let (listen, connect) = (
        unix(folder.path(), "s").to_string(),
        destination.address.to_string(),
    );
    let args = [
        "relay",
        "--json",
        "--listen",
        &listen,
        "--connect",
        &connect,
    ];
    let mut relay = Multifd::start(args);
    let address = relay.address();
    // Of one process, in the order that tells them apart least.
    let mains = [dial(&address), dial(&address)];
    let channels = [0, 1].map(|_| [dial(&address), dial(&address)]);
    let mut sources = mains.map(|main| Source {
        main,
        channels: Vec::new(),
    });
    for [first, second] in channels {
        sources[0].channels.push(first);
        sources[1].channels.push(second);
    }
    let shape = |uuid| Shape {
        uuid: Some(uuid),
        return_path: true,
        ..Shape::default()
    };
    let (first, second) = (short(&shape([1; 16])), other(&shape([2; 16])));
    both_end_well(
        &mut relay,
        &destination,
        [(&sources[0], &first), (&sources[1], &second)],
    );
}

/// Whatever has become of them, and whether the set-up says who they are or a channel does.
#[test]
fn reports_name_the_vm() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let listen = unix(folder.path(), "s");
    let start = |more: &[&str]| {
        let (listen, connect) = (listen.to_string(), destination.address.to_string());
        let args = ["relay", "--listen", &listen, "--connect", &connect];
        let mut relay = Multifd::start([&args, more].concat());
        relay.address();
        relay
    };
    let mut relay = start(&["--json"]);
    let uuid = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\0\x11\x22\x33\x44\x55\x66\x77";
    let text = "01234567-89ab-cdef-0011-223344556677";
    for states_it in [true, false] {
        let shape = Shape {
            uuid: Some(uuid),
            return_path: true,
            ..Shape::default()
        };
        let mut migration = short(&shape);
        if !states_it {
            let uuid = None;
            migration.main = Shape { uuid, ..shape }.bytes(1);
        }
        goes_through(&migration, &listen, &destination);
        let report = parse(&relay.result());
        assert_eq!(
            (&report["confirmed"], &report["uuid"]),
            (&json!(true), &json!(text))
        );
        let mut lie = migration.clone();
        lie.channels[1][64] ^= 1;
        let source = Source::begin(&listen, &lie);
        source.wait_for_end();
        let failed = parse(&relay.result());
        assert_eq!(
            (&failed["confirmed"], &failed["uuid"]),
            (&json!(false), &json!(text))
        );
        drop(source);
        destination.forget();
    }
    // A QEMU without -uuid has none.
    goes_through(&ordinary(), &listen, &destination);
    assert_eq!(parse(&relay.result())["uuid"], Value::Null);
    loop {
        let line = relay.complaint();
        if line.contains("channel 1, source side") {
            assert!(
                line.contains(&format!("({listen}, VM {text}): "))
                    || line.starts_with("multifd: channel"),
                "{line}"
            );
            break;
        }
    }
}

/// Processes of one host, as QEMUs are, at one unix socket.
#[test]
fn two_processes_at_one_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 4);
    let (listen, connect) = (
        unix(folder.path(), "s").to_string(),
        destination.address.to_string(),
    );
    let args = [
        "relay",
        "--json",
        "--listen",
        &listen,
        "--connect",
        &connect,
    ];
    let mut relay = Multifd::start(args);
    let address = relay.address();
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let migrations = [ordinary(), other(&shape)];
    let mut replaying = Vec::new();
    for (index, migration) in migrations.iter().enumerate() {
        let file = folder.path().join(format!("{index}.mfd"));
        let mut recording = record(&file);
        send(migration, &recording.address());
        recording.end().well();
        replaying.push(replay(&file, &address));
    }
    drop(destination.wait("both mains", |seen| {
        let mains = seen.connections.iter();
        let mains = mains.filter(|main| main.bytes.len() >= migrations[0].main.len());
        mains.filter(|main| main.role() == Role::Main).count() == 2
    }));
    destination.say_all(Role::Main, &SHUT_WELL);
    for replay in replaying {
        // It has its word, and closes.
        assert!(
            replay
                .end()
                .well()
                .contains("the destination has the guest")
        );
    }
    destination.forget();
    let mut pages = [0, 1].map(|_| parse(&relay.result())["pages"].as_u64().expect("a number"));
    pages.sort();
    assert_eq!(pages, [2, 3]);
}

/// From a host of its own, with a channel that lies.
#[test]
fn one_that_fails_at_an_address_fails_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let connect = destination.address.to_string();
    let args = [
        "relay",
        "--json",
        "--listen",
        "tcp:127.0.0.1:0",
        "--connect",
        &connect,
    ];
    let mut relay = Multifd::start(args);
    let address = relay.address();
    let migration = ordinary();
    let endless = Source::begin(&address, &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    let host = [127, 0, 0, 7];
    let mut lie = ordinary();
    lie.channels[0][64] ^= 1;
    let lying = Source {
        main: dial_from(host, &address),
        channels: (0..2).map(|_| dial_from(host, &address)).collect(),
    };
    lying.write(&lie);
    lying.wait_for_end();
    let failed = parse(&relay.result());
    assert_eq!(failed["confirmed"], false, "{failed}");
    assert!(
        failed["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.7:")),
        "{failed}"
    );
    assert!(!endless.main.peer_has_closed());
    destination.say(Role::Main, &SHUT_WELL);
    assert!(endless.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    endless.finish();
    destination.forget();
    assert_eq!(parse(&relay.result())["confirmed"], true);
}
