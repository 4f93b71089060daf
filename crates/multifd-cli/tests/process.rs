//! What the command is to the system around it: signals, files and their modes, limits, output that
//! nobody reads.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use multifd_transport::{Address, Stream};
use multifd_wire::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::made::{Channel, Shape, short, sound};
use support::peers::{Destination, Role, SHUT_WELL, Source};
use support::{DEADLINE, Multifd, files, program, send};

/// The command, started by a shell that does something before.
fn after(words: &str, args: &[&OsStr]) -> Multifd {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{words}; exec \"$0\" \"$@\""));
    Multifd::spawn(command.arg(program()).args(args))
}

fn mode(path: &Path) -> u32 {
    let file = path
        .metadata()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.permissions().mode() & 0o777
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        std::thread::yield_now();
    }
}

/// Where the words that say so cannot be read.
fn wait_for_listener(address: &Address) {
    wait_for("a listener", || Stream::connect(address).is_ok());
}

fn signal(multifd: &Multifd, signal: Signal) {
    let pid = Pid::from_raw(multifd.id() as i32).expect("a process");
    kill_process(pid, signal).expect("it runs");
}

/// `record` and `receive`, with where they listen and what they make below a folder.
fn keepers(folder: &Path) -> [(Vec<OsString>, Address); 2] {
    let listen = |name: &str| Address::Unix(folder.join(name));
    let args = |command: &str, listen: &Address, option: &str, out: &str| {
        let words = [command, "--listen", &listen.to_string(), option].map(OsString::from);
        [&words[..], &[folder.join(out).into()]].concat()
    };
    let (record, receive) = (listen("record.sock"), listen("receive.sock"));
    [
        (args("record", &record, "--out", "guest.mfd"), record),
        (args("receive", &receive, "--dump", "ram"), receive),
    ]
}

/// All files below a folder, without folders.
fn all_files(folder: &Path) -> Vec<String> {
    let mut found = files(folder);
    if let Some(index) = found.iter().position(|name| name == "ram") {
        found.splice(index..=index, files(&folder.join("ram")));
    }
    found
}

#[test]
fn a_signal_leaves_no_socket_and_no_unfinished_file() {
    for (which, number) in [(Signal::TERM, 15), (Signal::INT, 2), (Signal::HUP, 1)] {
        let folder = tempfile::tempdir().expect("a folder");
        for (args, _) in keepers(folder.path()) {
            // The second time nothing is in the way.
            for _ in 0..2 {
                let mut multifd = Multifd::start(&args);
                let address = multifd.address();
                let dial = || Stream::connect(&address).expect("a listener");
                let migration = sound(Method::None, false);
                let connections = [dial(), dial(), dial()];
                for (mut stream, bytes) in connections
                    .iter()
                    .zip(std::iter::once(&migration.main).chain(&migration.channels))
                {
                    stream
                        .write_all(&bytes[..bytes.len() - 1])
                        .expect("a reader");
                }
                wait_for("an unfinished file", || {
                    all_files(folder.path())
                        .iter()
                        .any(|name| name.ends_with(".partial"))
                });
                signal(&multifd, which);
                let ended = multifd.end();
                assert_eq!(ended.status.code(), Some(128 + number), "{ended:?}");
                assert!(all_files(folder.path()).is_empty(), "{ended:?}");
                assert!(ended.stderr.contains("multifd: SIG"), "{ended:?}");
            }
        }
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    let [(args, address), _] = keepers(folder.path());
    let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
    let mut multifd = after("trap '' HUP", &args);
    multifd.address();
    signal(&multifd, Signal::HUP);
    // It is served still, and so was not ended by the signal.
    send(&sound(Method::None, true), &address);
    multifd.end().well();
}

#[test]
fn files_and_sockets_are_their_owners_whatever_the_umask() {
    for umask in ["000", "022", "277"] {
        let folder = tempfile::tempdir().expect("a folder");
        for (args, address) in keepers(folder.path()) {
            let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
            // Folders are another matter.
            if umask == "277" && args[0] == "receive" {
                continue;
            }
            let mut multifd = after(&format!("umask {umask}"), &args);
            multifd.address();
            assert_eq!(mode(address.unix_path().expect("a path")), 0o600);
            send(&sound(Method::None, true), &address);
            multifd.end().well();
        }
        assert_eq!(mode(&folder.path().join("guest.mfd")), 0o600);
        if umask != "277" {
            assert_eq!(mode(&folder.path().join("ram")), 0o700);
            assert_eq!(mode(&folder.path().join("ram/pc.ram.ram")), 0o600);
        }
    }
}

#[test]
fn a_socket_has_the_mode_that_is_wanted() {
    let folder = tempfile::tempdir().expect("a folder");
    for (mut args, address) in keepers(folder.path()) {
        args.extend(["--mode", "666"].map(OsString::from));
        let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
        let mut multifd = after("umask 077", &args);
        multifd.address();
        assert_eq!(mode(address.unix_path().expect("a path")), 0o666);
    }
}

#[test]
fn all_descriptors_that_may_be_had_are_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let [(args, _), _] = keepers(folder.path());
    let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
    let mut multifd = after("ulimit -Sn 100; ulimit -Hn 200", &args);
    multifd.address();
    let limits = fs::read_to_string(format!("/proc/{}/limits", multifd.id())).expect("a process");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = line.expect("a limit").split_whitespace().collect();
    assert_eq!(words[3..5], ["200", "200"], "{words:?}");
}

/// The system only says "try again". Somewhere on the way down a thread is the first to be missing.
#[test]
fn what_a_thread_lacks_is_named_with_the_limit_and_its_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("--listen=unix:{}", folder.path().join("s").display());
    let mut told = 0;
    for mib in (60..240).rev().step_by(2) {
        let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", mib << 10);
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(program());
        command.args(["relay", &listen, "--connect=unix:/nowhere"]);
        let mut relay = command.stderr(Stdio::piped()).spawn().expect("a shell");
        let stderr = BufReader::new(relay.stderr.take().expect("a pipe"));
        for line in stderr.lines().map(|line| line.expect("text")) {
            if line.contains("listening on") {
                break;
            }
            if line.contains("os error 11") {
                told += 1;
                for words in ["this host", "address space, RLIMIT_AS", "ulimit -v"] {
                    assert!(line.contains(words), "{mib} MiB: {line}");
                }
            }
        }
        // It may have ended.
        let _ = relay.kill();
        relay.wait().expect("a process");
    }
    assert!(told > 0, "none of these limits lets all start but a thread");
}

#[test]
fn names_need_not_be_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let within = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
    let listen = |name: &[u8]| {
        let path = within(name);
        OsString::from_vec([b"unix:", path.as_os_str().as_bytes()].concat())
    };
    let [socket, recording, images] = [b"s\xff", b"g\xff", b"r\xff"].map(|name| within(name));
    let cases = [
        [
            OsStr::new("record"),
            OsStr::new("--out"),
            recording.as_os_str(),
        ]
        .to_vec(),
        [
            OsStr::new("receive"),
            OsStr::new("--json"),
            OsStr::new("--dump"),
            images.as_os_str(),
        ]
        .to_vec(),
    ];
    for case in cases {
        let listen = listen(b"s\xff");
        let args = [&case[..], &[OsStr::new("--listen"), &listen]].concat();
        let multifd = Multifd::start(args);
        wait_for_listener(&Address::Unix(socket.clone()));
        let back = send(&sound(Method::None, true), &Address::Unix(socket.clone()));
        assert!(
            back.ends_with(&[0; 4]),
            "the source hears of its success: {back:?}"
        );
        let text = multifd.end().well();
        assert!(!text.is_empty());
        if case[0] == "receive" {
            let summary: Value = serde_json::from_str(&text).expect("JSON");
            let file = summary["blocks"][0]["file"].as_str().expect("a name");
            assert!(file.ends_with("r\u{fffd}/pc.ram.ram"), "{file}");
        }
    }
    assert!(recording.exists() && images.join("pc.ram.ram").exists());
    let ended = Multifd::start([OsStr::new("inspect"), recording.as_os_str()]).end();
    let text = ended.well();
    assert!(text.contains("g\\xff: recording"), "{text}");
    let refused = Multifd::start([
        OsStr::new("relay"),
        OsStr::new("--listen"),
        OsStr::from_bytes(b"\xff"),
    ]);
    assert_eq!(refused.end().status.code(), Some(2));
}

#[test]
fn what_a_killed_run_has_left_is_named_with_its_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let [(args, _), _] = keepers(folder.path());
    let mut multifd = Multifd::start(&args);
    multifd.address();
    let while_it_runs = Multifd::start(&args).end();
    assert!(
        while_it_runs
            .stderr
            .contains("is being written by another process"),
        "{while_it_runs:?}"
    );
    multifd.kill();
    let left = folder.path().join("guest.mfd.partial");
    let ended = Multifd::start(&args).end();
    assert_eq!(ended.status.code(), Some(1));
    let remedy = format!("rm '{}'", left.display());
    assert!(ended.stderr.contains(&remedy), "{ended:?}");
    fs::remove_file(left).expect("it was left");
    // The socket that was left is in nobody's way.
    Multifd::start(&args).address();
}

/// A pipe that takes nothing more.
fn full() -> (std::io::PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let bytes = rustix::pipe::fcntl_getpipe_size(&writer).expect("a pipe");
    writer.write_all(&vec![b'x'; bytes]).expect("room");
    (reader, writer)
}

#[test]
fn a_migration_does_not_wait_for_readers() {
    let closed = || {
        let (_, writer) = std::io::pipe().expect("a pipe");
        writer
    };
    let (_reader, stuck) = full();
    let cases: [(&str, PipeWriter, PipeWriter); 4] = [
        (
            "nobody reads stderr",
            closed(),
            stuck.try_clone().expect("a pipe"),
        ),
        (
            "nobody reads stdout",
            stuck.try_clone().expect("a pipe"),
            closed(),
        ),
        (
            "nobody reads either",
            stuck.try_clone().expect("a pipe"),
            stuck.try_clone().expect("a pipe"),
        ),
        ("both are closed", closed(), closed()),
    ];
    for (case, stdout, stderr) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        for (args, address) in keepers(folder.path()) {
            let mut child = Command::new(program())
                .args(&args)
                .stdout(stdout.try_clone().expect("a pipe"))
                .stderr(stderr.try_clone().expect("a pipe"))
                .spawn()
                .expect("the built command");
            wait_for_listener(&address);
            send(&sound(Method::None, true), &address);
            let start = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().expect("a child") {
                    break status;
                }
                if start.elapsed() > DEADLINE {
                    let _ = child.kill();
                    panic!("{case}: it waits");
                }
                std::thread::yield_now();
            };
            assert_eq!(status.code(), Some(0), "{case}");
        }
    }
}

/// A relay prints from one thread for all of its migrations.
#[test]
fn no_migration_through_a_relay_waits_for_readers() {
    let (_reader, stuck) = full();
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let listen = Address::Unix(folder.path().join("s"));
    let mut child = Command::new(program())
        .args(["relay", "--json", "--listen", &listen.to_string()])
        .args(["--connect", &destination.address.to_string()])
        .stdout(stuck.try_clone().expect("a pipe"))
        .stderr(stuck)
        .spawn()
        .expect("the built command");
    wait_for("a listener", || Stream::connect(&listen).is_ok());
    let migration = short(&Shape {
        return_path: true,
        ..Shape::default()
    });
    for _ in 0..3 {
        let source = Source::begin(&listen, &migration);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        destination.say(Role::Main, &SHUT_WELL);
        assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
        source.finish();
        destination.forget();
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn a_result_that_cannot_be_printed_is_told_of_and_is_no_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    for (args, address) in keepers(folder.path()) {
        let args: Vec<_> = args.iter().map(OsString::as_os_str).collect();
        let mut multifd = after("exec >/dev/full", &args);
        multifd.address();
        send(&sound(Method::None, true), &address);
        let ended = multifd.end();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(
            ended.stderr.contains("multifd: cannot print results: "),
            "{ended:?}"
        );
    }
}

/// As in `multifd inspect FILE --packets | head -1`.
#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("channel");
    let mut channel = Channel::new(0, Method::None);
    for _ in 0..500 {
        channel = channel.packet("ram", &[0], &[], &[7; support::made::PAGE_BYTES]);
    }
    fs::write(&file, channel.bytes()).expect("a file");
    let file = file.to_str().expect("a name in UTF-8");
    for args in [
        &["inspect", file, "--packets"][..],
        &["inspect", file, "--packets", "--json"],
        &["detect"],
        &["detect", "--json"],
    ] {
        let mut child = Command::new(program())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("multifd starts");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("multifd ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn what_a_peer_names_commands_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("channel");
    let name = "x\u{9b}31m\u{202e}\u{2028}\u{7f}\u{1b}[2J\nmultifd: all is well";
    let bytes = Channel::new(0, Method::None)
        .packet(name, &[0], &[], &[7; support::made::PAGE_BYTES])
        .bytes();
    fs::write(&file, bytes).expect("a file");
    let file = file.to_str().expect("text");
    let text = Multifd::start(["inspect", "--packets", file]).end().well();
    assert!(
        text.contains(r"block x\u{9b}31m\u{202e}\u{2028}\u{7f}\u{1b}[2J\nmultifd: all is well, "),
        "{text}"
    );
    let json = Multifd::start(["inspect", "--packets", "--json", file])
        .end()
        .well();
    for text in [&text, &json] {
        assert!(
            text.bytes()
                .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)),
            "{text}"
        );
    }
    let report: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(report[0]["packet_list"][0]["block"], name, "{json}");

    // The words about a failure too.
    let [(args, address), _] = keepers(folder.path());
    let mut multifd = Multifd::start(&args);
    multifd.address();
    let mut lie = sound(Method::None, false);
    lie.channels[0] = Channel::new(0, Method::None)
        .sync()
        .packet(name, &[0], &[], &[7; support::made::PAGE_BYTES])
        .bytes();
    lie.channels[0].pop();
    send(&lie, &address);
    let ended = multifd.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        ended
            .stderr
            .bytes()
            .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)),
        "{ended:?}"
    );
}
