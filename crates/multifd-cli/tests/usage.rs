//! What is typed, and what is said to it.

mod support;

use std::fs;

use multifd_wire::Method;
use serde_json::Value;
use support::made::{Channel, sound};
use support::{Multifd, send};

/// Exit status 2 is for what was typed, 1 for what became of it.
fn refused(args: &[&str], status: i32, says: &str) {
    let ended = Multifd::start(args).end();
    assert_eq!(ended.status.code(), Some(status), "{args:?}: {ended:?}");
    assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    assert_eq!(ended.stdout, "", "{args:?}");
}

#[test]
fn what_is_wrong_with_a_command_is_said_with_what_to_do() {
    let relay = [
        "relay",
        "--listen",
        "unix:a.sock",
        "--connect",
        "unix:b.sock",
    ];
    let with = |more: &[&'static str]| [&relay[..], more].concat();
    refused(
        &["relay", "--listen", "a.sock", "--connect", "unix:b.sock"],
        2,
        "write unix:PATH, tcp:HOST:PORT",
    );
    refused(&["relay", "--listen", "unix:a.sock"], 2, "--connect <LEG>");
    let record = |listen| ["record", "--out", "/no/such/folder/f", "--listen", listen];
    refused(&record("tcp:::1:4444"), 2, "as in tcp:[::1]:4444");
    refused(&record("tcp:[fe80::1]:4444"), 2, "tcp:[fe80::1%eth0]:4444");
    refused(
        &[&record("unix:a.sock")[..], &["--mode", "rw"]].concat(),
        2,
        "modes are 000 to 777 in octal",
    );
    let receive = |listen| ["receive", "--listen", listen];
    refused(&receive("unix:/"), 1, "/ is a folder and no socket");
    refused(
        &receive("tcp:[fe80::1%nosuch0]:4444"),
        1,
        "no network interface `nosuch0`",
    );
    refused(
        &receive(&format!("unix:/{}", "x".repeat(107))),
        1,
        "the path has 108 bytes, and a socket's can have 107",
    );
    refused(
        &with(&["--delta-memory", "1G"]),
        1,
        "only a trunk carries pages as differences",
    );
    refused(
        &with(&["--trunk-channels", "2"]),
        1,
        "--trunk-channels has no effect on",
    );
    refused(&with(&["--trunk-channels", "17"]), 2, "17 is not in 1..=16");
    let trunk = ["relay", "--listen", "unix:a.sock"];
    let connect = ["--connect", "trunk+unix:b.sock", "--compression", "none"];
    refused(
        &[&trunk[..], &connect, &["--delta-memory", "1G"]].concat(),
        1,
        "no effect with --compression none: leave out one of them",
    );
    refused(
        &with(&["--compression", "auto"]),
        1,
        "--compression auto is for a trunk",
    );
    let to_trunk = [&trunk[..], &["--connect", "trunk+unix:b.sock"]].concat();
    for (options, words) in [
        (
            ["--streams", "2"],
            "--streams does not go with --effort auto",
        ),
        (["--zstd-level", "3"], "add --compression zstd"),
        (["--effort", "dense"], "--effort has no effect here"),
    ] {
        refused(&[&to_trunk[..], &options].concat(), 1, words);
    }
    for (method, options, words) in [
        ("none", &[][..], "--effort auto is for"),
        ("canned", &[], "--effort auto is for"),
        ("zlib", &["--accel", "qpl"], "--effort auto is for"),
        ("zlib", &["--accel", "none"], "--effort auto is for"),
        ("zlib", &["--streams", "2"], "--streams does not go with"),
        ("zstd", &["--zstd-level", "3"], "--zstd-level has no effect"),
    ] {
        let auto = ["--compression", method, "--effort", "auto"];
        refused(&with(&[&auto[..], options].concat()), 1, words);
    }
    refused(
        &with(&["--compression", "lz4"]),
        2,
        "[possible values: none, zlib, zstd, qpl, canned, auto]",
    );
    refused(&with(&["--zlib-level", "10"]), 2, "--zlib-level");
    refused(
        &with(&["--zlib-level", "9"]),
        1,
        "add --compression zlib, or leave it out",
    );
    refused(
        &with(&["--compression", "zlib", "--zstd-level", "9"]),
        1,
        "add --compression zstd, or leave it out",
    );
    refused(&with(&["--streams", "4"]), 1, "--streams has no effect");
    refused(&with(&["--recode"]), 1, "--recode has no effect");
    refused(
        &with(&["--compression", "zlib", "--huffman", "dynamic"]),
        1,
        "--huffman has no effect here",
    );
    for accel in ["none", "qpl"] {
        for (option, value) in [("--effort", "dense"), ("--window", "4k")] {
            refused(
                &with(&["--compression", "zlib", "--accel", accel, option, value]),
                1,
                &format!("{option} has no effect here"),
            );
        }
    }
    refused(
        &with(&[
            "--compression",
            "zlib",
            "--accel",
            "auto",
            "--zlib-level",
            "9",
        ]),
        1,
        "--zlib-level has no effect here",
    );
    for compression in ["qpl", "canned"] {
        let with_libqpl = ["--compression", compression, "--accel", "qpl"];
        refused(
            &with(&[&with_libqpl[..], &["--effort", "fast"]].concat()),
            1,
            "--effort has no effect here",
        );
        refused(
            &with(&["--compression", compression, "--window", "4k"]),
            1,
            "--window has no effect here",
        );
    }
    refused(
        &with(&["--compression", "canned", "--huffman", "fixed"]),
        1,
        "--huffman has no effect here",
    );
    refused(
        &with(&["--effort", "9"]),
        2,
        "efforts are auto, fast, balanced and dense",
    );
    refused(&with(&["--window", "8k"]), 2, "\"8k\" is not 4k or 32k");
    refused(&["receive"], 2, "--listen <ADDR>");
    refused(&["inspect"], 2, "<FILE>");
    refused(
        &["replay", "/no/such/file", "--connect", "unix:b.sock"],
        1,
        "cannot replay /no/such/file",
    );
    refused(
        &[
            "record",
            "--listen",
            "tcp:127.0.0.1:0",
            "--out",
            "/no/such/folder/f",
        ],
        1,
        "/no/such/folder/f.partial",
    );
}

#[test]
fn a_guest_goes_to_a_trunk_only_and_in_clear_only_if_that_is_said() {
    for (command, leg) in [("migrate", "--to"), ("accept", "--listen")] {
        let with = |address| [command, "--qmp", "/no/such/qmp", leg, address];
        refused(
            &with("tcp:127.0.0.1:1"),
            1,
            "is no trunk: write trunk:HOST:PORT",
        );
        refused(&with("trunk+tcp:192.0.2.1:1"), 1, "over a network in clear");
        refused(&with("trunk+unix:/run/{name}"), 1, "one guest needs none");
        refused(&with("host:4444"), 2, "is no address");
        refused(
            &with("trunk+tcp:127.0.0.1:1"),
            1,
            "no QEMU listens at /no/such/qmp",
        );
        refused(
            &[&with("trunk+unix:t")[..], &["--channels", "0"]].concat(),
            2,
            "--channels",
        );
    }
}

#[test]
fn every_help_fits_a_screen_and_has_an_example() {
    let commands = [
        "migrate", "accept", "relay", "receive", "record", "replay", "inspect", "detect", "doctor",
    ];
    for command in commands {
        let help = Multifd::start([command, "-h"]).end().well();
        assert!(help.contains("\nExample"), "{help}");
        assert!(help.lines().count() <= 24, "{help}");
        assert!(help.lines().all(|line| line.len() <= 120), "{help}");
        let all = Multifd::start([command, "--help"]).end().well();
        assert!(all.contains("\nExample"), "{all}");
    }
    let help = Multifd::start(["--help"]).end().well();
    assert!(
        commands
            .iter()
            .all(|command| help.contains(&format!("\n  {command} "))),
        "{help}"
    );
    assert!(help.lines().count() <= 24, "{help}");
}

/// Before it listens: an accelerator that is not there is named with the reason.
#[test]
fn what_computes_is_said_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("s").display());
    let relay = ["relay", "--listen", &listen, "--connect", "unix:b.sock"];
    for (more, does) in [
        (["--compression", "zlib", "--accel", "auto"], "writing zlib"),
        (["--compression", "qpl", "--accel", "auto"], "writing qpl"),
        (
            ["--compression", "none", "--accel", "auto"],
            "reading qpl and canned",
        ),
    ] {
        let mut multifd = Multifd::start([&relay[..], &more].concat());
        let line = multifd.complaint();
        let backend = line.strip_prefix(&format!("multifd: {does} by "));
        let backend = backend.unwrap_or_else(|| panic!("{line}"));
        let is_device = backend.starts_with("qpl-hardware");
        assert!(is_device || backend.contains(" (no "), "{line}");
        assert!(multifd.complaint().contains("listening on"));
    }
}

#[test]
fn an_address_in_use_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = format!("unix:{}", folder.path().join("s").display());
    let mut first = Multifd::start(["relay", "--listen", &listen, "--connect", "unix:b.sock"]);
    first.address();
    refused(
        &["relay", "--listen", &listen, "--connect", "unix:b.sock"],
        1,
        &format!("cannot listen on {listen}"),
    );
}

#[test]
fn a_relay_goes_on_after_a_failure_and_tells_of_each_migration() {
    let folder = tempfile::tempdir().expect("a folder");
    // Both listen at the same address, one after the other.
    let images = ["ram.1", "ram.2"].map(|name| folder.path().join(name));
    let mut receiving = support::receive(&images[0]);
    let connect = receiving.address().to_string();
    let listen = format!("unix:{}", folder.path().join("s").display());
    let mut relay = Multifd::start([
        "relay",
        "--json",
        "--listen",
        &listen,
        "--connect",
        &connect,
        "--compression",
        "zlib",
        "--zlib-level",
        "9",
    ]);
    let address = relay.address();
    let mut lie = sound(Method::None, false);
    lie.channels[0][64] ^= 1;
    send(&lie, &address);
    // It may have heard nothing of the migration that failed, and wait for another.
    drop(receiving);

    let mut receiving = support::receive(&images[1]);
    receiving.address();
    send(&sound(Method::None, true), &address);
    receiving.end().well();
    let mut line = || serde_json::from_str::<Value>(&relay.result()).expect("JSON");
    let lines = [line(), line()];
    assert!(
        lines[0]["error"]
            .as_str()
            .expect("text")
            .starts_with("channel 0, source side"),
        "{lines:?}"
    );
    assert_eq!(
        (
            &lines[1]["channels"],
            &lines[1]["pages"],
            &lines[1]["zero_pages"]
        ),
        (&2.into(), &5.into(), &4.into())
    );
    assert!(
        lines[1]["ratio"].as_f64().expect("a number") > 1.0,
        "{lines:?}"
    );
}

#[test]
fn inspect_shows_what_is_readable_and_where_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let cut = folder.path().join("cut");
    let main = folder.path().join("main");
    let mut bytes = Channel::new(7, Method::None)
        .sync()
        .pages(&[(0, 1)], &[4096])
        .sync()
        .bytes();
    bytes.truncate(bytes.len() - 10);
    fs::write(&cut, &bytes).expect("a file");
    fs::write(&main, &sound(Method::None, true).main).expect("a file");
    let (cut, main) = (cut.to_str().expect("text"), main.to_str().expect("text"));

    let ended = Multifd::start(["inspect", "--packets", cut, main]).end();
    assert_eq!(ended.status.code(), Some(1));
    let expected = format!(
        "channel 7, packet 0 at 64: SYNC, number 0\n\
         channel 7, packet 1 at 1408: number 1, none, block pc.ram, normal 1, zero 1, payload 4096 bytes\n\
         {cut}: channel 7, packets 2, sync 1, normal 1, zero 1, payload 4096 bytes, method none, page size 4096\n\
         {main}: main channel, machine none-10.0, flush 3, eos 3, zero records 0, page records 0, return path\n  \
         block pc.ram, 24576 bytes\n"
    );
    assert_eq!(ended.stdout, expected);
    assert!(
        ended
            .stderr
            .contains(&format!("{cut}: channel 7, at offset 6848: ")),
        "{}",
        ended.stderr
    );

    let json = Multifd::start(["inspect", "--json", cut]).end();
    assert_eq!(json.status.code(), Some(1));
    let report: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(
        (
            &report[0]["channel"],
            &report[0]["packets"],
            &report[0]["blocks"]
        ),
        (&7.into(), &2.into(), &Value::Null)
    );
    assert!(
        report[0]["fault"]
            .as_str()
            .expect("text")
            .contains("offset 6848")
    );
}
