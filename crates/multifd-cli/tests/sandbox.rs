//! What a relay gives up at its start, and that nothing which it needs is among it.

mod support;

use std::fs;
use std::path::Path;

use multifd_transport::Address;
use rustix::process::{Pid, Signal, kill_process};
use support::made::{Shape, short};
use support::peers::{Destination, Role, SHUT_WELL, Source};
use support::{Ended, Multifd};

fn relay(folder: &Path, more: &[&str]) -> Multifd {
    let connect = format!("unix:{}", folder.join("destination").display());
    // A name, which the C library resolves.
    let args = [
        "relay",
        "--listen",
        "tcp:localhost:0",
        "--connect",
        &connect,
    ];
    Multifd::start([&args, more].concat())
}

/// A field of /proc/PID/status.
fn status(relay: &Multifd, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.id())).expect("it runs");
    let value = status.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == field).then(|| value.trim().to_owned())
    });
    value.unwrap_or_else(|| panic!("no {field}: {status}"))
}

fn end(relay: Multifd) -> Ended {
    let pid = Pid::from_raw(relay.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("it runs");
    relay.end()
}

#[test]
fn a_relay_has_given_up_what_it_does_not_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut relay = relay(folder.path(), &[]);
    let address: Address = relay.address();
    assert_eq!(status(&relay, "NoNewPrivs"), "1");
    assert_eq!(status(&relay, "Seccomp"), "2");
    // Each of its threads has.
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", relay.id())).expect("it runs") {
        let status = thread.expect("a thread").path().join("status");
        // One that has just ended is there no more: its file is missing, or cannot be read.
        let Ok(status) = fs::read_to_string(status) else {
            continue;
        };
        threads += 1;
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    assert!(threads > 0, "it runs");
    // A name is resolved, and threads are made later.
    let migration = short(&Shape {
        return_path: true,
        ..Shape::default()
    });
    let destination = Destination::new(folder.path(), 2);
    let source = Source::begin(&address, &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    destination.say(Role::Main, &SHUT_WELL);
    source.hears(&SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    relay.result();
    let ended = end(relay);
    assert!(ended.stderr.contains("multifd: sandbox: "), "{ended:?}");
    assert_eq!(ended.stderr.matches("sandbox").count(), 1, "{ended:?}");
    if Path::new("/sys/kernel/security").exists() && has_landlock() {
        assert!(ended.stderr.contains("landlock ABI "), "{ended:?}");
    }
}

/// Whether this kernel has it switched on, which it tells at its start.
fn has_landlock() -> bool {
    fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|names| names.contains("landlock"))
}

/// A folder that was made anew is another one, which the sandbox does not know. So a relay cannot
/// even look into it.
#[test]
fn other_folders_are_out_of_reach() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let listen = format!("unix:{}", out.join("{name}").display());
    let connect = format!("unix:{}", folder.path().join("{name}").display());
    let args = ["relay", "--listen", &listen, "--connect", &connect];
    let mut relay = Multifd::start(args);
    relay.complaint();
    let file = out.join("vm1");
    fs::write(&file, "").expect("a file");
    assert!(relay.complaint().contains("guest vm1: listening on"));
    fs::remove_dir_all(&out).expect("a folder");
    fs::create_dir(&out).expect("a folder");
    fs::write(&file, "").expect("a file");
    assert!(
        relay
            .complaint()
            .contains("guest vm1: its socket was removed")
    );
    let next = relay.complaint();
    let ended = end(relay);
    let has_landlock = ended.stderr.contains("landlock ABI ");
    let says = match has_landlock {
        true => "Permission denied",
        false => "guest vm1: listening on",
    };
    assert!(next.contains(says), "{ended:?}");
    assert_eq!(file.exists(), has_landlock, "{ended:?}");
}

#[test]
fn a_sandbox_can_be_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut relay = relay(folder.path(), &["--no-sandbox"]);
    let _: Address = relay.address();
    assert_eq!(status(&relay, "Seccomp"), "0");
    let ended = end(relay);
    let says = "multifd: sandbox: none (--no-sandbox)";
    assert!(ended.stderr.contains(says), "{ended:?}");
}
