//! A relay that reaches itself is found out, whatever the name, while the source has its guest.

mod support;

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;

use multifd_transport::Address;
use serde_json::Value;
use support::made::{Shape, short};
use support::peers::{Destination, Role, SHUT_WELL, Source};
use support::{Migration, Multifd};

const FOUND_OUT: &str = "leads back to this relay itself, which listens on ";

fn migration(return_path: bool) -> Migration {
    short(&Shape {
        return_path,
        ..Shape::default()
    })
}

/// A port that nobody listens at.
fn free_port() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    listener.local_addr().expect("a port").port()
}

fn unix(folder: &Path, name: &str) -> String {
    Address::Unix(folder.join(name)).to_string()
}

fn start(routes: &[(String, String)], more: &[&str]) -> Multifd {
    let routes = routes
        .iter()
        .map(|(from, to)| format!("--route={from}={to}"));
    let more = more.iter().map(ToString::to_string);
    let args = ["relay", "--json"].map(str::to_owned).into_iter();
    Multifd::start(args.chain(routes).chain(more))
}

/// It ends before it listens.
fn is_refused_at_the_start(routes: &[(String, String)], listeners: &str) {
    let ended = start(routes, &[]).end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let says = format!("{} {FOUND_OUT}{listeners}; name", routes[0].1);
    assert!(ended.stderr.contains(&says), "{says}: {ended:?}");
    assert!(!ended.stderr.contains("multifd: listening"), "{ended:?}");
}

/// A migration to `address` fails, and nothing of it was passed on.
fn fails(relay: &mut Multifd, address: &str, migration: &Migration) {
    let source = Source::begin(&address.parse().expect("an address"), migration);
    source.wait_for_end();
    let failed: Value = serde_json::from_str(&relay.result()).expect("a report");
    let error = failed["error"].as_str().expect("words");
    assert!(error.contains(FOUND_OUT), "{failed}");
    assert!(error.starts_with("main channel, this host"), "{failed}");
    assert_eq!(failed["confirmed"], false, "{failed}");
    assert_eq!(failed["bytes_out"], 0, "{failed}");
}

fn goes_through(address: &str, destination: &Destination) {
    let migration = migration(true);
    let source = Source::begin(&address.parse().expect("an address"), &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    destination.say(Role::Main, &SHUT_WELL);
    assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.forget();
}

#[test]
fn names_that_only_it_can_answer_to_are_refused_at_the_start() {
    let port = free_port();
    for (listen, host) in [
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.9"),
        ("[::]", "127.0.0.1"),
        ("", "[::1]"),
        ("", ""),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("127.0.0.1", "127.0.0.1"),
    ] {
        let [listen, connect] = [listen, host].map(|host| format!("tcp:{host}:{port}"));
        is_refused_at_the_start(&[(listen.clone(), connect)], &listen);
    }

    let folder = tempfile::tempdir().expect("a folder");
    let [socket, link] = ["socket", "link"].map(|name| unix(folder.path(), name));
    symlink(folder.path().join("socket"), folder.path().join("link")).expect("a link");
    is_refused_at_the_start(&[(socket.clone(), link)], &socket);
}

/// As a port on all addresses is the usual way to listen, and the host's own name a likely mistake.
#[test]
fn this_hosts_own_addresses_are_known() {
    // The one that leads elsewhere is this host's, if it has any but its loopback; nothing is sent.
    let asking = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let Ok(own) = asking
        .connect("192.0.2.1:9")
        .and_then(|()| asking.local_addr())
    else {
        qemu_lab::not_run("an address of this host that is not its loopback");
        return;
    };
    let port = free_port();
    let listen = format!("tcp:0.0.0.0:{port}");
    is_refused_at_the_start(
        &[(listen.clone(), format!("tcp:{}:{port}", own.ip()))],
        &listen,
    );
}

#[test]
fn routes_that_lead_to_each_other_are_refused_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let [a, link] = ["a", "link"].map(|name| unix(folder.path(), name));
    symlink(folder.path().join("a"), folder.path().join("link")).expect("a link");
    let b = format!("tcp:0.0.0.0:{port}");
    let routes = [
        (a.clone(), format!("tcp:127.0.0.2:{port}")),
        (b.clone(), link.clone()),
    ];
    is_refused_at_the_start(&routes, &format!("{b} and on {a}"));
    // One that only comes to them goes nowhere either.
    let [first, second] = routes;
    let third = (unix(folder.path(), "c"), link);
    is_refused_at_the_start(&[third, second, first], &format!("{a} and on {b}"));
}

/// Somebody else could answer to the name: it shows when the call is answered.
#[test]
fn a_name_of_several_addresses_is_found_out_by_the_first_migration() {
    for host in ["localhost", ""] {
        let port = free_port();
        let listen = format!("tcp:127.0.0.1:{port}");
        let routes = [(listen.clone(), format!("tcp:{host}:{port}"))];
        let mut relay = start(&routes, &[]);
        let line = relay.complaint();
        if line.contains(FOUND_OUT) {
            // This host knows only one address of that name.
            assert_eq!(relay.end().status.code(), Some(1));
            continue;
        }
        assert_eq!(line, format!("multifd: listening on {listen}"));
        // It goes on, and the next one is told the same.
        for return_path in [true, false] {
            fails(&mut relay, &listen, &migration(return_path));
        }
        drop(relay);
        let mut relay = start(&routes, &["--once"]);
        relay.address();
        fails(&mut relay, &listen, &migration(true));
        let ended = relay.end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(FOUND_OUT), "{ended:?}");
    }
}

/// A link that is made later closes the circle of two routes; migrations of another one go on.
#[test]
fn a_way_that_comes_to_be_is_found_out_by_a_migration() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name| unix(folder.path(), name);
    let destination = Destination::new(folder.path(), 2);
    let port = free_port();
    let [a, c] = ["a", "c"].map(at);
    let b = format!("tcp:127.0.0.1:{port}");
    let routes = [
        (a.clone(), format!("tcp:127.0.0.1:{port}")),
        (b.clone(), at("link")),
        (c.clone(), destination.address.to_string()),
    ];
    let mut relay = start(&routes, &[]);
    while !relay.complaint().contains(&c) {}
    symlink(folder.path().join("a"), folder.path().join("link")).expect("a link");
    for address in [&a, &b] {
        for return_path in [true, false] {
            fails(&mut relay, address, &migration(return_path));
        }
    }
    goes_through(&c, &destination);
    let report: Value = serde_json::from_str(&relay.result()).expect("a report");
    assert_eq!(report["confirmed"], true, "{report}");
}

#[test]
fn relays_of_one_process_may_follow_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let port = free_port();
    let a = unix(folder.path(), "a");
    let routes = [
        (a.clone(), format!("tcp:127.0.0.1:{port}")),
        (
            format!("tcp:0.0.0.0:{port}"),
            destination.address.to_string(),
        ),
    ];
    let mut relay = start(&routes, &[]);
    while !relay.complaint().contains(&destination.address.to_string()) {}
    goes_through(&a, &destination);
    for _ in &routes {
        let report: Value = serde_json::from_str(&relay.result()).expect("a report");
        assert_eq!(report["confirmed"], true, "{report}");
    }
}
