//! Guests from `multifd-bench send` to the code of `multifd receive`.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Listener, Stream};
use multifd_wire::Hello;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::bench;
use testkit::process::{DEADLINE, Ended, Tested};

/// A receiver at `listen`.
fn receive(listen: &str, more: &[&str]) -> Tested {
    bench([&["receive", "--json", "--listen", listen], more].concat())
}

/// Sends a guest to `receiver` and returns both results.
fn migrate(mut receiver: Tested, options: &[&str]) -> (Ended, Ended) {
    let address = receiver.address::<String>();
    let sender = bench([&["send", "--json", "--connect", &address], options].concat());
    (sender.end(), receiver.end())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The names of an object, in alphabetical order.
fn names(object: &Value) -> Vec<&str> {
    let names = object.as_object().expect("an object").keys();
    names.map(String::as_str).collect()
}

#[test]
fn memory_is_the_same_at_both_ends_in_every_method_and_over_every_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let unix = format!("unix:{}", folder.path().join("s").display());
    let cases = [
        (
            unix.as_str(),
            "redis",
            "none",
            &["--zero-page-detection", "legacy"][..],
        ),
        ("tcp:127.0.0.1:0", "redis", "zlib", &["--zlib-level", "3"]),
        (
            unix.as_str(),
            "redis",
            "zlib",
            &["--accel", "software", "--streams", "4"],
        ),
        (
            "tcp:[::1]:0",
            "idle",
            "zstd",
            &["--zero-page-detection", "none"],
        ),
        (unix.as_str(), "redis", "qpl", &["--accel", "software"]),
        ("tcp:127.0.0.1:0", "idle", "canned", &[]),
        (unix.as_str(), "redis", "auto", &[]),
        ("tcp:127.0.0.1:0", "redis", "zlib", &["--effort", "auto"]),
    ];
    for (listen, guest, method, more) in cases {
        let guest = ["--guest", guest, "--memory", "64M", "--compression", method];
        // Any machine, however busy, can send such a slow guest within the downtime limit.
        let way = [
            "--multifd-channels",
            "3",
            "--digest",
            "--guest-rate",
            "2000",
        ];
        let (sent, received) = migrate(receive(listen, &[]), &[&guest[..], &way, more].concat());
        let (sent, received) = (json(&sent.well()), json(&received.well()));
        assert_eq!(
            sent["method"],
            if method == "auto" { "zstd" } else { method }
        );
        assert_eq!(sent["channels"], 3);
        assert_eq!(received["channels"], 3);
        assert_eq!(sent["normal"], received["pages"]);
        assert_eq!(sent["duplicate"], received["zero_pages"]);
        assert_eq!(received["blocks"][0]["bytes"], 64 << 20);
        assert_eq!(received["digest"].as_str().map(str::len), Some(64));
        let compresses = sent["ratio"].as_f64().expect("a number") > 1.3;
        // No socket of this host is so slow that compressing has to pay.
        let is_found_out = method == "auto" || more.contains(&"auto");
        assert!(is_found_out || compresses == (method != "none"), "{sent}");
        let pages = ["hardware", "software", "raw"].map(|way| sent[way].as_u64().expect("a count"));
        assert_eq!(sent["normal"], pages.iter().sum::<u64>());
    }
}

/// The digest of all memory is compared, and the guest writes enough for more than one round.
#[test]
fn pages_that_are_sent_again_go_as_differences() {
    let guest = [
        "--guest",
        "redis",
        "--memory",
        "64M",
        "--guest-rate",
        "20000",
    ];
    let way = ["--compression", "zstd", "--digest", "--delta-memory", "64M"];
    // Slow enough that the guest writes to pages that have been sent.
    let link = ["--max-bandwidth", "40M", "--downtime-limit", "100"];
    let receiver = receive("tcp:127.0.0.1:0", &[]);
    let (sent, received) = migrate(receiver, &[&guest[..], &way, &link].concat());
    let (sent, received) = (json(&sent.well()), json(&received.well()));
    assert_eq!(sent["normal"], received["pages"]);
    let count = |name: &str| sent["delta"][name].as_u64().expect("a count");
    let whole = ["new", "lost", "changed", "skipped"].map(count);
    let all = whole.iter().sum::<u64>() + count("differences");
    assert_eq!(sent["normal"], all, "{sent}");
    assert!(count("differences") > 0, "{sent}");
}

#[test]
fn what_is_printed_for_machines_stays() {
    let (sent, received) = migrate(
        receive("tcp:127.0.0.1:0", &[]),
        &["--guest", "idle", "--memory", "1M"],
    );
    let expected = "backend channels cpu_seconds delta dirty_pages_rate dirty_sync_count downtime_ms duplicate guest guest_rate hardware mbps method \
                    normal pages_per_second ratio raw rounds setup_time_ms software total_time_ms transferred";
    assert_eq!(names(&json(&sent.well())).join(" "), expected);
    let expected = "blocks bytes_in channels cpu_seconds digest pages seconds zero_pages";
    assert_eq!(names(&json(&received.well())).join(" "), expected);
}

#[test]
fn an_image_is_sent_and_written_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("a b.ram");
    let contents: Vec<u8> = (0..1_500_000_u32)
        .map(|index| (index / 700) as u8)
        .collect();
    fs::write(&image, &contents).expect("a file");
    let dump = folder.path().join("ram");
    let dump_text = dump.to_str().expect("text");
    let guest = format!("image:{}", image.display());
    let (sent, received) = migrate(
        receive("tcp:127.0.0.1:0", &["--dump", dump_text]),
        &["--guest", &guest, "--compression", "zstd"],
    );
    sent.well();
    let received = json(&received.well());
    let files = fs::read_dir(&dump).expect("a folder");
    let files: Vec<_> = files.map(|entry| entry.expect("an entry").path()).collect();
    let file = Path::new(received["blocks"][0]["file"].as_str().expect("a path"));
    assert_eq!(files, [dump.join("pc.ram.ram")]);
    assert_eq!(files, [file]);
    // Whole pages: the rest of the last one is zero.
    let mut padded = contents;
    padded.resize(padded.len().next_multiple_of(4096), 0);
    assert!(fs::read(file).expect("a file") == padded, "another memory");
}

#[test]
fn a_guest_too_fast_for_its_link_ends_in_time_and_says_why() {
    let (sent, received) = migrate(
        receive("tcp:127.0.0.1:0", &[]),
        &[
            "--guest",
            "redis",
            "--memory",
            "64M",
            "--guest-rate",
            "1000000",
            "--max-bandwidth",
            "4M",
            "--downtime-limit",
            "10",
            "--timeout",
            "3",
        ],
    );
    assert_eq!(sent.status.code(), Some(1), "{sent:?}");
    assert!(
        sent.stderr.contains("the guest runs on here"),
        "{}",
        sent.stderr
    );
    let report = json(&sent.stdout);
    assert_eq!(report["timed_out"], true, "{report}");
    let total = report["total_time_ms"].as_f64().expect("a number");
    assert!((3000.0..8000.0).contains(&total), "{report}");
    assert!(
        report["error"]
            .as_str()
            .expect("text")
            .contains("not done after 3 s"),
        "{report}"
    );
    assert_eq!(received.status.code(), Some(1));
    assert!(json(&received.stdout)["error"].is_string());
}

/// A slow sender, and the process ID of its guest.
fn slow_sender(receiver: &mut Tested) -> (Tested, String) {
    let address = receiver.address::<String>();
    let guest = [
        "--guest",
        "redis",
        "--memory",
        "64M",
        "--max-bandwidth",
        "2M",
    ];
    let mut sender = bench([&["send", "--connect", &address], &guest[..]].concat());
    assert!(sender.complaint().contains("starting a guest"));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let children = Command::new("pgrep")
            .args(["-P", &sender.id().to_string()])
            .output();
        let pid = String::from_utf8(children.expect("pgrep").stdout).expect("text");
        if !pid.is_empty() {
            return (sender, pid.trim().to_owned());
        }
        assert!(Instant::now() < deadline, "there is no guest");
    }
}

#[test]
fn a_killed_guest_ends_its_sender() {
    let mut receiver = receive("tcp:127.0.0.1:0", &[]);
    let (sender, guest) = slow_sender(&mut receiver);
    let killed = Command::new("kill").args(["-9", &guest]).status();
    assert!(killed.expect("kill").success());
    assert_eq!(sender.end().status.code(), Some(1));
}

#[test]
fn a_killed_sender_leaves_no_guest() {
    let mut receiver = receive("tcp:127.0.0.1:0", &[]);
    let (sender, guest) = slow_sender(&mut receiver);
    sender.kill();
    let deadline = Instant::now() + DEADLINE;
    while Path::new("/proc").join(&guest).exists() {
        assert!(Instant::now() < deadline, "{guest} is left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_qemu_whose_memory_has_no_place_keeps_its_guest_and_is_in_nobodys_way() {
    let mut receiver = receive("tcp:127.0.0.1:0", &[]);
    let address: Address = receiver.address();
    let capture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/captures/none2-10.0");
    // The hellos of the channels, and then all of main.
    let files = [
        ("mfd0.fwd", Hello::LEN),
        ("mfd1.fwd", Hello::LEN),
        ("main.fwd", usize::MAX),
    ];
    let connections = files.map(|(file, most)| {
        let bytes = fs::read(capture.join(file)).expect("a capture");
        let stream = Stream::connect(&address).expect("a listener");
        // The receiver may close the connection before it has read everything.
        let _ = (&stream).write_all(&bytes[..bytes.len().min(most)]);
        stream
    });
    let mut back = Vec::new();
    let _ = (&connections[2]).read_to_end(&mut back);
    assert!(back.is_empty(), "nothing is promised to it: {back:?}");
    let note = receiver.complaint();
    assert!(note.contains("add --dump DIR"), "{note}");
    let connect = address.to_string();
    let guest = ["--guest", "idle", "--memory", "1M", "--connect", &connect];
    bench([&["send"], &guest[..]].concat()).end().well();
    let received = json(&receiver.end().well());
    assert_eq!(received["blocks"][0]["bytes"], 1 << 20, "{received}");
}

/// Exit status 2 is for a usage error, 1 for a failure.
fn refused(args: &[&str], status: i32, says: &str) {
    let ended = bench(args).end();
    assert_eq!(ended.status.code(), Some(status), "{args:?}: {ended:?}");
    assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    assert_eq!(ended.stdout, "", "{args:?}");
}

#[test]
fn what_is_wrong_with_a_command_is_said_with_what_to_do() {
    let send = ["send", "--connect", "unix:/no/such/b.sock", "--guest"];
    let with = |more: &[&'static str]| [&send[..], more].concat();
    refused(&with(&["vax"]), 2, "write idle, redis or image:FILE");
    refused(
        &with(&["idle", "--memory", "1.5G"]),
        2,
        "such as 512M or 4G",
    );
    refused(
        &with(&["idle", "--memory", "4K"]),
        1,
        "at least 1048576 bytes",
    );
    refused(
        &with(&["idle", "--multifd-channels", "0"]),
        2,
        "--multifd-channels",
    );
    refused(
        &with(&["idle", "--streams", "4"]),
        1,
        "--streams does not go with --effort auto",
    );
    refused(
        &with(&["image:/no/such/file"]),
        1,
        "cannot open /no/such/file",
    );
    refused(
        &with(&["idle", "--memory", "1M"]),
        1,
        "cannot connect to unix:/no/such/b.sock",
    );
}

#[test]
fn every_help_fits_a_screen_and_has_an_example() {
    // The options for a guest and a migration need more lines than an old terminal has.
    for (command, most) in [("send", 34), ("migrate", 40)] {
        let help = bench([command, "-h"]).end().well();
        assert!(help.contains("\nExample"), "{help}");
        assert!(help.lines().count() <= most, "{help}");
        assert!(help.lines().all(|line| line.len() <= 120), "{help}");
    }
    let help = bench(["--help"]).end().well();
    assert!(
        help.contains("\n  send ") && help.contains("\n  migrate "),
        "{help}"
    );
    assert!(
        !help.contains("\n  guest ") && !help.contains("\n  receive "),
        "{help}"
    );
}

#[test]
fn a_sender_that_is_told_to_end_cancels_its_migration() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = Address::Unix(folder.path().join("s"));
    // A destination that never answers.
    let listener = Listener::bind(&address).expect("an address");
    let connect = address.to_string();
    let args = [
        "send",
        "--guest",
        "idle",
        "--memory",
        "1M",
        "--json",
        "--connect",
        &connect,
    ];
    let sending = bench(args);
    let mut connection = None;
    while connection.is_none() {
        connection = listener.try_accept().expect("a listener");
        std::thread::yield_now();
    }
    let pid = Pid::from_raw(sending.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("it runs");
    let ended = sending.end();
    assert_eq!(ended.status.code(), Some(128 + 15), "{ended:?}");
    let failed: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(failed["error"].is_string(), "{failed}");
    assert!(
        ended.stderr.contains("multifd-bench: SIGTERM: "),
        "{ended:?}"
    );
}
