//! A folder in which empty files ask for listening sockets, each for a guest of its name.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::made::{Shape, short};
use support::peers::{Destination, Limits, Role, SHUT_WELL, Source, a_while, dial};
use support::{DEADLINE, Migration, Multifd, files};

fn ordinary() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

/// A relay that watches `out`, and leads to the sockets in `to`.
fn relay(out: &Path, to: &Path, more: &[&str]) -> Multifd {
    let listen = format!("unix:{}", out.join("{name}.sock").display());
    let connect = format!("unix:{}", to.join("{name}").display());
    let args = [
        "relay",
        "--json",
        "--listen",
        &listen,
        "--connect",
        &connect,
    ];
    let mut relay = Multifd::start([&args, more].concat());
    let line = relay.complaint();
    let says = format!("multifd: listening on {listen}, where empty files ask for it");
    assert_eq!(line, says);
    relay
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// As a script does: makes the file, and waits until there is a socket.
fn ask(path: &Path) -> Address {
    fs::write(path, "").expect("a file");
    let since = Instant::now();
    while !is_socket(path) {
        assert!(since.elapsed() < Duration::from_secs(10), "no socket");
        thread::sleep(Duration::from_millis(1));
    }
    Address::Unix(path.to_owned())
}

fn goes_through(relay: &mut Multifd, to: &Path, name: &str, address: &Address) {
    let migration = ordinary();
    let destination = Destination::at(&Address::Unix(to.join(name)), 2, Limits::default());
    let source = Source::begin(address, &migration);
    ends_well(&migration, &source, &destination);
    let report: Value = serde_json::from_str(&relay.result()).expect("a report");
    assert_eq!(
        (&report["name"], &report["confirmed"]),
        (&name.into(), &true.into())
    );
    fs::remove_file(to.join(name)).expect("the destination's socket");
}

fn ends_well(migration: &Migration, source: &Source, destination: &Destination) {
    drop(destination.wait("all of it", |seen| seen.has_all(migration)));
    destination.say(Role::Main, &SHUT_WELL);
    source.hears(&SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
}

fn wait_for(what: &str, is: impl Fn() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_file_becomes_a_socket_and_its_name_the_guests() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, to) = (folder.path().join("out"), folder.path().join("to"));
    fs::create_dir(&out)
        .and_then(|()| fs::create_dir(&to))
        .expect("folders");
    // One stands there before, one is left over from a relay that was killed.
    fs::write(out.join("early.sock"), "").expect("a file");
    drop(UnixListener::bind(out.join("left.sock")).expect("a socket"));
    let mut relay = relay(&out, &to, &["--mode", "660"]);
    let at = |name: &str| out.join(format!("{name}.sock"));
    wait_for("a socket", || is_socket(&at("early")));
    for name in ["early", "left"] {
        wait_for("a listener", || {
            std::os::unix::net::UnixStream::connect(at(name)).is_ok()
        });
    }
    for name in ["vm1", "vm2"] {
        // It listens from the moment at which it is seen.
        let address = ask(&at(name));
        drop(dial(&address));
        let mode = fs::metadata(at(name))
            .expect("a socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        for _ in 0..2 {
            goes_through(&mut relay, &to, name, &address);
        }
    }
    // A migration under way goes on without its socket.
    let migration = ordinary();
    let destination = Destination::at(&Address::Unix(to.join("vm1")), 2, Limits::default());
    let source = Source::begin(&Address::Unix(at("vm1")), &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    fs::remove_file(at("vm1")).expect("the socket");
    a_while();
    ends_well(&migration, &source, &destination);
    relay.result();
    fs::remove_file(to.join("vm1")).expect("the destination's socket");
    // The same name may be asked for again.
    let address = ask(&at("vm1"));
    goes_through(&mut relay, &to, "vm1", &address);
    let pid = Pid::from_raw(relay.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("it runs");
    let ended = relay.end();
    assert!(ended.status.success(), "{ended:?}");
    assert!(
        ended.stderr.contains("guest vm1: its socket was removed"),
        "{ended:?}"
    );
    assert_eq!(files(&out), [""; 0]);
}

/// The moment of a guest's coming and that of the relay's end, in many orders: a guest that was
/// taken is not cut off.
#[test]
fn a_guest_that_comes_while_the_relay_ends_is_taken_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let migration = ordinary();
    for pause in 0..24_u64 {
        let (out, to) = (
            folder.path().join(format!("out{pause}")),
            folder.path().join(format!("to{pause}")),
        );
        fs::create_dir(&out)
            .and_then(|()| fs::create_dir(&to))
            .expect("folders");
        let relay = relay(&out, &to, &[]);
        let address = ask(&out.join("vm1.sock"));
        let destination = Destination::at(&Address::Unix(to.join("vm1")), 2, Limits::default());
        let pid = Pid::from_raw(relay.id() as i32).expect("a process");
        let is_over = AtomicBool::new(false);
        let was_taken = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_micros(pause * 250));
                kill_process(pid, Signal::TERM).expect("it runs");
            });
            scope.spawn(|| {
                // Its source ends in time, whatever becomes of it.
                while !is_over.load(Ordering::Relaxed) && !destination.seen().has_all(&migration) {
                    thread::sleep(Duration::from_millis(1));
                }
                if destination.seen().has_all(&migration) {
                    destination.say(Role::Main, &SHUT_WELL);
                }
            });
            // Its first byte is written once all of its connections are open.
            let open = || Stream::connect(&address).ok();
            let heard = open()
                .zip(open().zip(open()))
                .map(|(main, (first, second))| {
                    main.set_read_timeout(Some(DEADLINE)).expect("a socket");
                    let channels = vec![first, second];
                    let source = Source { main, channels };
                    source.write(&migration);
                    let heard = source.hears(&SHUT_WELL);
                    source.finish();
                    heard
                });
            is_over.store(true, Ordering::Relaxed);
            heard.is_some_and(|heard| heard.ends_with(&SHUT_WELL))
        });
        destination.close_all();
        let ended = relay.end();
        let has_begun = ended.stderr.contains("a migration begins");
        assert_eq!(has_begun, was_taken, "{pause}: {ended:?}");
        let is_confirmed = ended.stdout.contains("\"confirmed\":true");
        assert_eq!(is_confirmed, was_taken, "{pause}: {ended:?}");
        assert!(ended.status.success(), "{pause}: {ended:?}");
    }
}

#[test]
fn what_is_no_request_is_left_alone_and_told_of_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let _served = UnixListener::bind(out.join("qemu.sock")).expect("a socket");
    fs::write(out.join("full.sock"), "text").expect("a file");
    fs::write(out.join("-x.sock"), "").expect("a file");
    let mut relay = relay(&out, folder.path(), &["--no-sandbox"]);
    ask(&out.join("vm1.sock"));
    a_while();
    assert_eq!(
        files(&out),
        ["-x.sock", "full.sock", "qemu.sock", "vm1.sock"]
    );
    assert_eq!(fs::read(out.join("full.sock")).expect("a file"), b"text");
    // The folder goes, and comes back: a new folder is outside of a sandbox.
    fs::remove_dir_all(&out).expect("a folder");
    // Every line comes within a time limit.
    while !relay.complaint().contains("start the relay anew") {}
    fs::create_dir(&out).expect("a folder");
    ask(&out.join("vm1.sock"));
    let pid = Pid::from_raw(relay.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("it runs");
    let ended = relay.end();
    assert!(ended.status.success(), "{ended:?}");
    for words in [
        "-x.sock is no request",
        "full.sock is not empty",
        "cannot read",
    ] {
        assert_eq!(ended.stderr.matches(words).count(), 1, "{words}: {ended:?}");
    }
    assert_eq!(files(&out), [""; 0]);
}

#[test]
fn a_rule_that_cannot_work_is_refused_with_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| format!("unix:{}", folder.path().join(name).display());
    let refused = |listen: &str, connect: &str, more: &[&str], says: &str| {
        let args = ["relay", "--listen", listen, "--connect", connect];
        let ended = Multifd::start([&args, more].concat()).end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(says), "{says}: {ended:?}");
    };
    let (rule, to) = (at("{name}.sock"), at("{name}"));
    refused(&rule, &to, &["--name", "vm1"], "--name has no effect");
    refused(&rule, &at("to"), &[], "takes none: connect to a trunk");
    refused(
        &at("{name}/a"),
        &to,
        &[],
        "{name} must stand once, after the last `/`",
    );
    refused(&at("no/{name}"), &to, &[], "make the folder");
    let trunk = format!("trunk+{rule}");
    refused(&trunk, &to, &[], "a trunk brings the names");
}
