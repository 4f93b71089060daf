//! Ends that nothing forces: by a wish, or because of a channel.

use std::net::UdpSocket;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::support::made::{END, Shape, short};
use super::super::support::peers::{Destination, Role, SHUT_WELL, Source, a_while, end_of, write};
use super::super::support::{Multifd, program};
use super::super::{parse, relay};

/// Not the beginning of a packet.
const GARBAGE: [u8; 4096] = [0x55; 4096];

fn tell_to_end(relay: &Multifd) {
    let pid = Pid::from_raw(relay.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("it runs");
}

/// The destination starts its guest at any moment, whether or not the relay has seen that it has
/// everything.
#[test]
fn a_channels_failure_waits_for_the_word_where_main_cannot_be_followed_too() {
    for is_followed in [true, false] {
        let migration = short(&Shape {
            return_path: true,
            behind_setup: match is_followed {
                true => b"",
                false => b"\x55\0\0\0\x02what is new",
            },
            ..Shape::default()
        });
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut relay = relay(folder.path(), &destination.address, &["--once"]);
        let source = Source::begin(&relay.address(), &migration);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        write(&source.channels[1], &GARBAGE);
        while !relay.complaint().contains("for its word") {}
        destination.say(Role::Main, &SHUT_WELL);
        assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
        source.finish();
        destination.close_all();
        assert_eq!(parse(&relay.end().well())["confirmed"], true);
    }
}

/// A source without a return path has given its guest up as soon as it has written everything, and
/// all of that may wait in this relay.
#[test]
fn what_a_source_that_waits_for_no_word_has_written_is_delivered_before_a_wish_ends_it() {
    for is_whole in [true, false] {
        let mut migration = short(&Shape::default());
        if !is_whole {
            migration.main.truncate(migration.main.len() - END.len());
        }
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut relay = relay(folder.path(), &destination.address, &["--drain", "0"]);
        let source = Source::dial(&relay.address(), 2);
        // The last SYNC is to come, and main is held for it.
        let (early, late) = migration.channels[1].split_at(migration.channels[1].len() - 1344);
        write(&source.channels[0], &migration.channels[0]);
        write(&source.channels[1], early);
        write(&source.main, &migration.main);
        drop(destination.wait("pages", |seen| {
            let channel = seen.of(Role::Channel(1));
            channel.is_some_and(|channel| channel.bytes.len() >= early.len())
        }));
        a_while();
        tell_to_end(&relay);
        // From now on the source cannot write, so it knows what it has written.
        end_of(&source.main);
        write(&source.channels[1], late);
        for channel in &source.channels {
            let _ = channel.shutdown(std::net::Shutdown::Write);
        }
        let seen = destination.wait("the end of main", |seen| seen.main().end.is_some());
        assert!(!is_whole || seen.main().bytes == migration.main);
        drop(seen);
        destination.close_all();
        let ended = relay.end();
        let report = parse(&ended.stdout);
        assert_eq!(report["confirmed"], Value::Null, "{report}");
        assert_eq!(report["error"].is_null(), is_whole, "{report}");
    }
}

/// Nobody has asked the destination for a word.
#[test]
fn a_failure_behind_the_end_says_that_nobody_knows_who_has_the_guest() {
    for return_path in [false, true] {
        let migration = short(&Shape {
            return_path,
            ..Shape::default()
        });
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut relay = relay(folder.path(), &destination.address, &["--once"]);
        let source = Source::begin(&relay.address(), &migration);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        match return_path {
            false => write(&source.channels[1], &GARBAGE),
            // This one has its guest.
            true => destination.close_all(),
        }
        source.wait_for_end();
        drop(source);
        destination.close_all();
        let report = parse(&relay.end().stdout);
        let confirmed = return_path.then_some(false);
        assert_eq!(report["confirmed"], Value::from(confirmed), "{report}");
    }
}

/// A name server that does not answer.
#[test]
fn a_wish_is_heard_while_a_name_is_looked_up() {
    const SERVER: &str = "127.0.0.77";
    let silent = UdpSocket::bind((SERVER, 53));
    let unshared = Command::new("unshare").args(["--mount", "true"]).output();
    let (Ok(_silent), Ok(true)) = (silent, unshared.map(|output| output.status.success())) else {
        qemu_lab::not_run("unshare, and root, for a name server of its own");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let servers = folder.path().join("resolv.conf");
    let text = format!("nameserver {SERVER}\noptions timeout:30\n");
    std::fs::write(&servers, text).expect("a file");
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(&servers).arg(program());
    let listen = format!("--listen=unix:{}", folder.path().join("s").display());
    command.args(["relay", "--json", "--drain", "0", &listen]);
    command
        .arg("--connect=tcp:guest.example:4444")
        .arg("--insecure");
    let mut relay = Multifd::spawn(&mut command);
    let migration = short(&Shape {
        return_path: true,
        ..Shape::default()
    });
    let source = Source::begin(&relay.address(), &migration);
    while !relay.complaint().contains("a migration begins") {}
    a_while();
    tell_to_end(&relay);
    source.wait_for_end();
    let report = parse(&relay.end().stdout);
    let error = report["error"].as_str().expect("words");
    assert!(error.contains("cancelled"), "{error}");
}
