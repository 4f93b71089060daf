//! Service goes on: strangers, leftovers, limits of the system and signals cost no migration but
//! their own.

mod support;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream};
use multifd_wire::Method;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};
use support::made::{Channel, END, Shape, short};
use support::peers::{
    Destination, Limits, PONG, Role, SHUT_WELL, Source, a_while, dial, dial_from, end_of, write,
};
use support::{DEADLINE, Migration, Multifd, files, program};

/// The made strangers come from another host than the made sources.
const ELSEWHERE: [u8; 4] = [127, 0, 0, 9];

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// With a return path, as almost all are.
fn ordinary() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

/// A relay over TCP to a destination in `folder`.
fn relay(folder: &Path, more: &[&str]) -> Multifd {
    Multifd::start(relay_args(folder, "tcp:127.0.0.1:0", more))
}

fn relay_args(folder: &Path, listen: &str, more: &[&str]) -> Vec<String> {
    let connect = format!("unix:{}", folder.join("destination").display());
    let args = ["relay", "--json", "--listen", listen, "--connect", &connect];
    let args = args.iter().chain(more);
    args.map(ToString::to_string).collect()
}

/// Sends a migration whole.
fn goes_through(migration: &Migration, address: &Address, destination: Option<&Destination>) {
    let source = arrives(migration, address, destination);
    leaves(&source, destination);
}

/// Sends it up to the word of success. A command that takes one migration runs on until its source
/// has left.
fn arrives(migration: &Migration, address: &Address, destination: Option<&Destination>) -> Source {
    let source = Source::begin(address, migration);
    if let Some(destination) = destination {
        drop(destination.wait("all of it", |seen| seen.has_all(migration)));
        destination.say(Role::Main, &SHUT_WELL);
    }
    let heard = source.hears(&SHUT_WELL);
    assert!(heard.ends_with(&SHUT_WELL), "{heard:?}");
    source
}

fn leaves(source: &Source, destination: Option<&Destination>) {
    source.finish();
    if let Some(destination) = destination {
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        destination.close_all();
    }
}

/// All that may knock at a port.
fn strangers(address: &Address) -> Vec<Stream> {
    let words: [&[u8]; 9] = [
        b"QEVM",
        &ordinary().main[..30],
        &Channel::new(0, Method::None).bytes()[..40],
        b"\x11",
        b"Q",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        &[0xff; 4096],
    ];
    let mut strangers: Vec<_> = words
        .iter()
        .map(|words| {
            let stranger = dial_from(ELSEWHERE, address);
            write(&stranger, words);
            stranger
        })
        .collect();
    // A probe that looks whether somebody listens.
    drop(dial_from(ELSEWHERE, address));
    strangers.extend((0..257).map(|_| dial_from(ELSEWHERE, address)));
    strangers
}

/// As many descriptors as the system lets this process have.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let (current, maximum) = (limit.maximum, limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("a limit");
}

#[test]
fn strangers_hold_up_nobody() {
    raise_descriptors();
    for command in ["receive", "record", "relay"] {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out").display().to_string();
        let listen = ["--listen", "tcp:127.0.0.1:0"];
        let mut destination = None;
        let mut multifd = match command {
            "receive" => Multifd::start([&[command], &listen[..], &["--dump", &out]].concat()),
            "record" => Multifd::start([&[command], &listen[..], &["--out", &out]].concat()),
            _ => {
                destination = Some(Destination::new(folder.path(), 2));
                // With --once it would refuse the other main channel as soon as this one begins.
                relay(folder.path(), &[])
            }
        };
        let address = multifd.address();
        let strangers = strangers(&address);
        let source = arrives(&ordinary(), &address, destination.as_ref());
        // They have not had their time: nothing has waited for it.
        for (index, name) in [(0, "a main channel"), (2, "a hello"), (9, "silence")] {
            assert!(!strangers[index].peer_has_closed(), "{command}: {name}");
        }
        leaves(&source, destination.as_ref());
        if command == "relay" {
            assert_eq!(parse(&multifd.result())["confirmed"], true);
            signal(&multifd, Signal::TERM);
        }
        let ended = multifd.end();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        for words in ["TLS", "which no connection of a migration does"] {
            assert!(ended.stderr.contains(words), "{words}: {ended:?}");
        }
    }
}

#[test]
fn more_silence_than_there_are_seats() {
    raise_descriptors();
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &["--once"]);
    let address = relay.address();
    let silent: Vec<_> = (0..1100).map(|_| dial_from(ELSEWHERE, &address)).collect();
    let source = arrives(&ordinary(), &address, Some(&destination));
    let closed = silent
        .iter()
        .filter(|stream| stream.peer_has_closed())
        .count();
    assert!(
        (1..=100).contains(&closed),
        "the oldest have gone: {closed}"
    );
    leaves(&source, Some(&destination));
    let ended = relay.end();
    assert!(
        ended.stderr.contains("too many connections have not said"),
        "{ended:?}"
    );
    assert_eq!(parse(&ended.well())["confirmed"], true);
}

/// Without a return path a source gives its guest up once it has sent everything. What breaks
/// after that is no reason to take the guest from its destination too.
#[test]
fn a_connection_that_breaks_behind_the_end_loses_nothing() {
    for main_breaks in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut relay = relay(folder.path(), &["--once"]);
        let migration = short(&Shape::default());
        let source = Source::begin(&relay.address(), &migration);
        drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
        let breaks = match main_breaks {
            true => &source.main,
            false => &source.channels[0],
        };
        // Closing it resets it then.
        set_socket_linger(breaks, Some(Duration::ZERO)).expect("a socket");
        let Source { main, channels, .. } = source;
        drop(channels);
        thread::sleep(Duration::from_millis(300));
        drop(main);
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        destination.close_all();
        let report = parse(&relay.result());
        assert_eq!(report["confirmed"], Value::Null, "{report}");
        assert_eq!(report["error"], Value::Null, "{report}");
        assert_eq!(relay.end().status.code(), Some(0));
    }
}

/// They have ten seconds, and hold up nobody who has more to say.
#[test]
fn who_stalls_is_closed_with_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &[]);
    let address = relay.address();
    let migration = ordinary();
    let stalled = [
        b"QEVM".as_slice(),
        &migration.main[..30],
        b"",
        &[0x11, 0x22, 0x33],
    ];
    let stalled = stalled.map(|words| {
        let stream = dial(&address);
        write(&stream, words);
        stream
    });
    goes_through(&migration, &address, Some(&destination));
    assert_eq!(parse(&relay.result())["confirmed"], true);
    for stream in &stalled {
        end_of(stream);
    }
    let mut said = [0, 0];
    while said != [2, 2] {
        let note = relay.complaint();
        said[0] += usize::from(note.contains("nothing came for 10 s in its set-up"));
        said[1] += usize::from(note.contains("did not say what it is within 10 s"));
    }
}

#[test]
fn leftovers_of_a_failure_are_in_no_other_migration() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &[]);
    let address = relay.address();
    let mut lie = ordinary();
    lie.channels[0][64] ^= 1;
    // Pages which the next one has not.
    lie.channels[1] = Channel::new(1, Method::None)
        .sync()
        .pages(&[(0, 99)], &[])
        .bytes();
    // What of the first comes before it fails, and what comes after.
    for is_late in [false, true] {
        let source = Source::dial(&address, 1);
        let mut left = vec![dial(&address)];
        if !is_late {
            write(&left[0], &lie.channels[1]);
        }
        write(&source.channels[0], &lie.channels[0]);
        write(&source.main, &lie.main);
        source.wait_for_end();
        if is_late {
            write(&left[0], &lie.channels[1]);
            left.push(dial_from(ELSEWHERE, &address));
            write(&left[1], &lie.channels[1][..50]);
        }
        let failed = parse(&relay.result());
        let error = failed["error"].as_str().expect("words");
        assert!(error.starts_with("channel 0, source side"), "{failed}");
        assert_eq!(failed["confirmed"], false, "{failed}");
        drop(source);
        drop(left.remove(0));

        drop(destination.wait("the end", |seen| {
            seen.connections
                .iter()
                .all(|connection| connection.end.is_some())
        }));
        destination.forget();
        let migration = ordinary();
        goes_through(&migration, &address, Some(&destination));
        let seen = destination.seen();
        for (id, bytes) in (0..).zip(&migration.channels) {
            let channel = seen.of(Role::Channel(id)).expect("a channel");
            assert!(channel.bytes == *bytes);
        }
        assert_eq!(seen.connections.len(), 3);
        drop(seen);
        let report = parse(&relay.result());
        assert_eq!(
            (&report["confirmed"], &report["pages"]),
            (&json!(true), &json!(3))
        );
        destination.forget();
    }
}

/// The command, with this many descriptors and no more.
fn with_descriptors(most: u64, args: Vec<String>) -> Multifd {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -n {most}; exec \"$0\" \"$@\""));
    command.arg0("sh");
    Multifd::spawn(command.arg(program()).args(args))
}

#[test]
fn too_few_descriptors_cost_the_migration_that_needs_them_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let args = relay_args(folder.path(), "tcp:127.0.0.1:0", &[]);
    let mut relay = with_descriptors(31, args);
    let address = relay.address();
    // Nobody else can be accepted, and none of this is a migration's fault.
    let silent: Vec<_> = (0..40).map(|_| dial_from(ELSEWHERE, &address)).collect();
    loop {
        if relay
            .complaint()
            .contains("cannot accept connections for the moment")
        {
            break;
        }
    }
    drop(silent);
    goes_through(&ordinary(), &address, Some(&destination));
    assert_eq!(parse(&relay.result())["confirmed"], true);
    destination.forget();

    let mut wide = ordinary();
    let channel = |id| Channel::new(id, Method::None).sync().bytes();
    wide.channels = (0..20).map(channel).collect();
    let source = Source::begin(&address, &wide);
    source.wait_for_end();
    let failed = parse(&relay.result());
    assert_eq!(failed["confirmed"], false, "{failed}");
    drop(source);
    drop(destination.wait("the end", |seen| {
        seen.connections
            .iter()
            .all(|connection| connection.end.is_some())
    }));
    destination.forget();
    goes_through(&ordinary(), &address, Some(&destination));
    assert_eq!(parse(&relay.result())["confirmed"], true);
}

/// The kernel counts the threads of a user, and limits no root.
#[test]
fn too_few_threads_cost_the_migration_that_needs_them_and_no_other() {
    if !rustix::process::geteuid().is_root() {
        qemu_lab::not_run("root, to be a user without other processes");
        return;
    }
    let tcp: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let destinations = [2, 20].map(|channels| Destination::at(&tcp, channels, Limits::default()));
    // Of no other process.
    let user = 64_000 + std::process::id() % 500 * 2;
    let start = |user: u32, threads: u64| {
        let mut command = Command::new("setpriv");
        command.args(["--clear-groups", &format!("--reuid={user}"), "prlimit"]);
        command.arg(format!("--nproc={threads}:{threads}"));
        command.arg(program()).args(["relay", "--json"]);
        for destination in &destinations {
            command.arg(format!("--route=tcp:127.0.0.1:0={}", destination.address));
        }
        Multifd::spawn(&mut command)
    };
    let idle = {
        let mut relay = start(user, 1000);
        while !relay.complaint().contains("listening") {}
        let threads = std::fs::read_dir(format!("/proc/{}/task", relay.id()));
        threads.expect("a process").count() as u64
    };
    // Enough for ordinary migrations.
    let mut relay = start(user + 1, idle + 9);
    let [narrow, wide] = [0, 1].map(|_| {
        let line = relay.complaint();
        let address = line.strip_prefix("multifd: listening on ");
        let address = address.and_then(|rest| rest.split_once(','));
        let (address, _) = address.unwrap_or_else(|| panic!("{line}"));
        address.parse::<Address>().expect("an address")
    });
    let [destination, wide_destination] = destinations;
    let beside = Source::begin(&narrow, &ordinary());
    drop(destination.wait("all of it", |seen| seen.has_all(&ordinary())));
    assert_eq!(beside.hears(&PONG), PONG);

    let mut many = ordinary();
    let channel = |id| Channel::new(id, Method::None).sync().bytes();
    many.channels = (0..20).map(channel).collect();
    let source = Source::begin(&wide, &many);
    source.wait_for_end();
    let failed = parse(&relay.result());
    assert_eq!(failed["confirmed"], false, "{failed}");
    let error = failed["error"].as_str().expect("words");
    assert!(
        error.contains("this host") && error.contains("ulimit -u"),
        "{failed}"
    );
    drop((source, wide_destination));

    destination.say(Role::Main, &SHUT_WELL);
    assert_eq!(beside.hears(&SHUT_WELL), SHUT_WELL);
    beside.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.forget();
    assert_eq!(parse(&relay.result())["confirmed"], true);
    goes_through(&ordinary(), &narrow, Some(&destination));
    assert_eq!(parse(&relay.result())["confirmed"], true);
}

/// A source waits for each of its channels, so what this host cannot accept would hold it without
/// end.
#[test]
fn a_receiver_without_descriptors_says_so_while_the_source_has_its_guest() {
    let folder = tempfile::tempdir().expect("a folder");
    let images = folder.path().join("ram").display().to_string();
    let args = ["receive", "--listen", "tcp:127.0.0.1:0", "--dump", &images];
    let mut receiving = with_descriptors(20, args.map(str::to_owned).to_vec());
    let mut wide = ordinary();
    let channel = |id| Channel::new(id, Method::None).sync().bytes();
    wide.channels = (0..20).map(channel).collect();
    let source = Source::begin(&receiving.address(), &wide);
    source.wait_for_end();
    let ended = receiving.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("main channel, this host"),
        "{ended:?}"
    );
}

#[test]
fn all_the_channels_there_may_be_need_no_more_than_usual_descriptors() {
    raise_descriptors();
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 255);
    let args = relay_args(folder.path(), "tcp:127.0.0.1:0", &["--once"]);
    let mut relay = with_descriptors(1024, args);
    let mut wide = ordinary();
    let channel = |id| Channel::new(id, Method::None).sync().sync().bytes();
    wide.channels = (0..255).map(channel).collect();
    goes_through(&wide, &relay.address(), Some(&destination));
    let report = parse(&relay.end().well());
    assert_eq!(
        (&report["channels"], &report["confirmed"]),
        (&json!(255), &json!(true))
    );
}

fn signal(multifd: &Multifd, signal: Signal) {
    let pid = Pid::from_raw(multifd.id() as i32).expect("a process");
    kill_process(pid, signal).expect("it runs");
}

/// A migration under way through a relay at a unix socket.
fn under_way(folder: &Path, more: &[&str]) -> (Destination, Multifd, Address, Source) {
    sends(&ordinary(), folder, more)
}

fn sends(
    migration: &Migration,
    folder: &Path,
    more: &[&str],
) -> (Destination, Multifd, Address, Source) {
    let destination = Destination::new(folder, 2);
    let listen = format!("unix:{}", folder.join("s").display());
    let mut relay = Multifd::start(relay_args(folder, &listen, more));
    let address = relay.address();
    let source = Source::begin(&address, migration);
    drop(destination.wait("all of it", |seen| seen.has_all(migration)));
    assert_eq!(source.hears(&PONG), PONG);
    (destination, relay, address, source)
}

#[test]
fn what_is_under_way_ends_before_a_relay_that_was_told_to_end() {
    for which in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().expect("a folder");
        let (destination, mut relay, address, source) = under_way(folder.path(), &[]);
        signal(&relay, which);
        loop {
            if relay
                .complaint()
                .contains("those under way (1) have 80 s to end")
            {
                break;
            }
        }
        // Nobody new is served.
        let other = dial(&address);
        write(&other, &ordinary().main);
        end_of(&other);
        assert!(
            relay
                .complaint()
                .contains("is ending and takes no new migrations")
        );

        destination.say(Role::Main, &SHUT_WELL);
        assert_eq!(source.hears(&SHUT_WELL), SHUT_WELL);
        source.finish();
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        destination.close_all();
        let ended = relay.end();
        assert_eq!(parse(&ended.well())["confirmed"], true);
        assert_eq!(files(folder.path()), ["destination"]);
    }
}

#[test]
fn what_does_not_end_in_time_is_ended_with_words_and_the_source_keeps_its_guest() {
    // A destination that has everything may start the guest at any moment, and has 10 s to say so.
    for (has_everything, confirmed, words) in [
        (false, Value::Bool(false), "this host"),
        (
            true,
            Value::Null,
            "did not say within 10s whether it has it",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut migration = ordinary();
        if !has_everything {
            migration.main.truncate(migration.main.len() - END.len());
        }
        let (destination, relay, _, source) = sends(&migration, folder.path(), &["--drain", "0"]);
        signal(&relay, Signal::TERM);
        assert_eq!(source.hears(&SHUT_WELL), b"", "no word of success");
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        let ended = relay.end();
        let failed = parse(&ended.stdout);
        assert_eq!(failed["confirmed"], confirmed, "{failed}");
        let error = failed["error"].as_str();
        assert!(error.is_some_and(|error| error.contains(words)), "{failed}");
        assert_eq!(files(folder.path()), ["destination"]);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_destination, mut relay, _, source) = under_way(folder.path(), &[]);
    signal(&relay, Signal::TERM);
    while !relay.complaint().contains("those under way (1)") {}
    signal(&relay, Signal::TERM);
    let ended = relay.end();
    assert_eq!(ended.status.code(), Some(128 + 15), "{ended:?}");
    assert!(ended.stderr.contains("SIGTERM: ended"), "{ended:?}");
    assert_eq!(source.hears(&SHUT_WELL), b"");
    assert_eq!(files(folder.path()), ["destination"]);
}

/// A destination that hangs up as one does which cannot read what it gets.
#[test]
fn advice_stands_in_json_as_in_text() {
    for (method, advice) in [
        (
            "none",
            "as many multifd-channels as the source, and multifd-compression none?",
        ),
        ("zlib", "and the multifd-compression of this relay?"),
        ("canned", "canned is read by another multifd only"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let more = ["--once", "--compression", method];
        let mut relay = relay(folder.path(), &more);
        let source = Source::begin(&relay.address(), &ordinary());
        drop(destination.wait("pages", |seen| {
            let channel = seen.of(Role::Channel(1));
            channel.is_some_and(|channel| channel.bytes.len() > 64 + 1344)
        }));
        destination.close_all();
        source.wait_for_end();
        let ended = relay.end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let failed = parse(&ended.stdout);
        assert_eq!(failed["confirmed"], false, "{failed}");
        let said = failed["advice"]
            .as_str()
            .unwrap_or_else(|| panic!("{failed}"));
        assert!(said.contains(advice), "{failed}");
        assert!(ended.stderr.contains(advice), "{ended:?}");
    }
}

/// Who takes a guest without a return path does not say so, and neither does anybody else.
#[test]
fn nobody_confirms_for_another() {
    let migration = short(&Shape::default());
    for command in ["relay", "receive", "record"] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let (to, out) = (
            destination.address.to_string(),
            folder.path().join("out").display().to_string(),
        );
        let (option, words) = match command {
            "relay" => (["--connect", &to], "not confirmed: no return path"),
            "receive" => (
                ["--dump", &out],
                "not confirmed to the source: no return path",
            ),
            _ => (
                ["--out", &out],
                "not confirmed to the source: no return path",
            ),
        };
        let once: &[&str] = if command == "relay" { &["--once"] } else { &[] };
        let listen = ["--listen", "tcp:127.0.0.1:0"];
        let mut multifd = Multifd::start([&[command], &listen[..], &option, once].concat());
        let source = Source::begin(&multifd.address(), &migration);
        source.finish();
        if command == "relay" {
            destination.take(&migration);
        }
        let text = multifd.end().well();
        assert!(text.contains(words), "{command}: {text}");
    }
}

/// There is no `multifd-compression` at the other end of a trunk.
#[test]
fn advice_towards_a_trunk_is_about_a_relay() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = format!("trunk+tcp:{}", listener.local_addr().expect("a port"));
    let more = ["--once", "--connect", &to];
    let args = ["relay", "--json", "--listen", "tcp:127.0.0.1:0"];
    let mut relay = Multifd::start([&args[..], &more].concat());
    let source = Source::begin(&relay.address(), &ordinary());
    drop(listener.accept().expect("a call"));
    source.wait_for_end();
    let ended = relay.end();
    let failed = parse(&ended.stdout);
    assert_eq!(failed["confirmed"], false, "{failed}");
    assert!(!failed.to_string().contains("QEMU"), "{failed}");
    assert!(
        !failed.to_string().contains("multifd-compression"),
        "{failed}"
    );
    drop(folder);
}

/// What becomes of the source, or of the result, after the word is no failure.
#[test]
fn no_failure_follows_a_word_of_success() {
    for command in ["receive", "record"] {
        for breaks in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let out = folder.path().join("out").display().to_string();
            let option = if command == "receive" {
                "--dump"
            } else {
                "--out"
            };
            let args = [command, "--listen", "tcp:127.0.0.1:0", option, &out];
            let mut multifd = Multifd::start(args);
            let source = Source::begin(&multifd.address(), &ordinary());
            assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
            if breaks {
                // Half a packet, and a reset.
                write(
                    &source.channels[0],
                    &Channel::new(0, Method::None).bytes()[..3],
                );
                source.channels[1].reset(None);
                source.main.reset(None);
            } else {
                // An ordinary end of main, and channels that stay for a while.
                let _ = source.main.shutdown(std::net::Shutdown::Both);
                a_while();
            }
            drop(source);
            let words = multifd.end().well();
            // Behind a reset nobody knows what the source has read before.
            let is_known = !words.contains("it is not known whether the source has heard");
            assert_eq!(is_known, !breaks, "{words}");
            assert!(Path::new(&out).exists());
        }
    }
}

/// The source is cancelled while the word is on its way, and closes without reading it.
#[test]
fn behind_a_break_receive_and_record_do_not_know_what_the_source_has_heard() {
    for (command, option) in [("receive", "--dump"), ("record", "--out")] {
        for listen in ["tcp:127.0.0.1:0", "unix"] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = |name: &str| folder.path().join(name).display().to_string();
            let (out, socket) = (path("out"), format!("unix:{}", path("s")));
            let listen = if listen == "unix" { &socket } else { listen };
            let mut args = vec![command, "--listen", listen, option, &out];
            args.extend((command == "receive").then_some("--json"));
            let mut multifd = Multifd::start(args);
            let source = Source::begin(&multifd.address(), &ordinary());
            let has_word = || {
                let mut heard = [0; 64];
                let count = source.main.peek(&mut heard).unwrap_or(0);
                heard[..count].ends_with(&SHUT_WELL)
            };
            let deadline = Instant::now() + DEADLINE;
            while !has_word() {
                assert!(Instant::now() < deadline, "no word");
                thread::sleep(Duration::from_millis(5));
            }
            source.main.reset(None);
            drop(source);
            let words = multifd.end().well();
            if command == "receive" {
                let report = parse(&words);
                assert!(report["confirmed"].is_null(), "{report}");
                assert!(report["advice"].is_string(), "{report}");
            } else {
                assert!(words.contains("it is not known whether"), "{words}");
            }
            assert!(Path::new(&out).exists());
        }
    }
}

#[test]
fn receive_prints_json_whatever_happens() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (file, listen) = (path("file"), format!("unix:{}", path("s")));
    std::fs::write(&file, "mine").expect("a file");
    let receive = |listen: &str, dump: &str| {
        Multifd::start(["receive", "--json", "--listen", listen, "--dump", dump])
    };
    let failed = |multifd: Multifd| {
        let ended = multifd.end();
        assert!(!ended.status.success(), "{ended:?}");
        let failed = parse(&ended.stdout);
        assert!(failed["error"].is_string(), "{failed}");
    };
    // There is no such address, no such folder, and no migration when it is told to end.
    failed(receive(&format!("unix:{}/s", path("nothing")), &path("a")));
    failed(receive(&listen, &file));
    let mut idle = receive(&listen, &path("b"));
    idle.address();
    signal(&idle, Signal::TERM);
    failed(idle);
    // In the middle of a migration.
    let mut busy = receive(&listen, &path("c"));
    let source = Source::begin(
        &busy.address(),
        &Migration {
            main: ordinary().main[..120].to_vec(),
            ..ordinary()
        },
    );
    assert!(source.hears(&PONG).ends_with(&PONG));
    signal(&busy, Signal::TERM);
    failed(busy);
    let mut left = receive(&listen, &path("d"));
    let source = Source::begin(
        &left.address(),
        &Migration {
            main: ordinary().main[..120].to_vec(),
            ..ordinary()
        },
    );
    assert!(source.hears(&PONG).ends_with(&PONG));
    drop(source);
    failed(left);
    thread::scope(|scope| {
        let mut well = receive(&listen, &path("e"));
        let address = well.address();
        scope.spawn(move || goes_through(&ordinary(), &address, None));
        let summary = parse(&well.end().well());
        assert_eq!(summary["confirmed"], true, "{summary}");
    });
    a_while();
    assert_eq!(files(&folder.path().join("c")), [""; 0]);
    assert_eq!(files(&folder.path().join("d")), [""; 0]);
}
