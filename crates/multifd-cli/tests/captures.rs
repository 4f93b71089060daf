//! Captured migrations of real QEMUs, sent to the built command again.

mod support;

use std::path::Path;

use multifd_relay::leg::LegAddress;
use multifd_transport::Address;
use serde_json::Value;
use support::captures::{self, Capture};
use support::{Multifd, files, receive, record, replay, send, sha256};
use testkit::plain::{PlainChannel, description};

#[test]
fn receive_writes_the_memory_of_the_captured_guest() {
    for capture in captures::all() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut receiving = receive(folder.path());
        let back = send(&capture.migration, &receiving.address());
        let summary: Value = serde_json::from_str(&receiving.end().well()).expect("JSON");
        check(&capture, folder.path(), &summary);
        check_answers(&capture, &back);
    }
}

#[test]
fn what_is_recorded_is_replayed_to_the_byte() {
    for capture in captures::all() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("migration.mfd");
        let mut recording = record(&file);
        let back = send(&capture.migration, &recording.address());
        recording.end().well();
        check_answers(&capture, &back);
        assert_eq!(
            files(folder.path()),
            ["migration.mfd"],
            "{}",
            capture.name()
        );

        let images = folder.path().join("ram");
        let mut receiving = receive(&images);
        replay(&file, &receiving.address()).end().well();
        let summary: Value = serde_json::from_str(&receiving.end().well()).expect("JSON");
        check(&capture, &images, &summary);
        let bytes = capture
            .migration
            .channels
            .iter()
            .chain([&capture.migration.main])
            .map(Vec::len)
            .sum::<usize>();
        assert_eq!(summary["bytes_in"], bytes as u64, "{}", capture.name());
    }
}

#[test]
fn two_relays_with_a_method_between_them_change_nothing() {
    for capture in captures::all() {
        for method in ["zlib", "zstd"] {
            let folder = tempfile::tempdir().expect("a folder");
            let images = folder.path().join("ram");
            let mut receiving = receive(&images);
            let mut far = relay(folder.path(), "far.sock", &receiving.address(), "none");
            let mut near = relay(folder.path(), "near.sock", &far.address(), method);
            let back = send(&capture.migration, &near.address());
            let summary: Value = serde_json::from_str(&receiving.end().well()).expect("JSON");
            check(&capture, &images, &summary);
            check_answers(&capture, &back);
            for relay in [near, far] {
                let report: Value = serde_json::from_str(&relay.end().well()).expect("JSON");
                assert_eq!(
                    report["channels"],
                    capture.migration.channels.len(),
                    "{}",
                    capture.name()
                );
                let confirmed = capture.migration.return_path.then_some(true);
                assert_eq!(report["confirmed"], Value::from(confirmed), "{report}");
                assert_eq!(report["remarks"], Value::Array(Vec::new()), "{report}");
            }
        }
    }
}

/// Packets of two methods come over the trunk, some as they are, some compressed, and become one
/// stream of the method that is written after it.
#[test]
fn two_relays_with_a_trunk_between_them_change_nothing() {
    for capture in captures::all() {
        for (delta, behind) in [
            ("64M", "none"),
            ("64M", "zstd"),
            ("0", "zstd"),
            ("0", "zlib"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let images = folder.path().join("ram");
            let mut receiving = receive(&images);
            let at = |protocol: &str, name: &str| {
                format!("{protocol}:{}", folder.path().join(name).display())
            };
            let start = |legs: [&str; 2], more: &[&str]| {
                let args = [
                    "relay",
                    "--once",
                    "--json",
                    "--listen",
                    legs[0],
                    "--connect",
                    legs[1],
                ];
                Multifd::start([&args, more].concat())
            };
            let trunk = at("trunk+unix", "trunk");
            let connect = receiving.address().to_string();
            let mut far = start([&trunk, &connect], &["--compression", behind]);
            let _: LegAddress = (*far).address();
            let mut near = start([&at("unix", "near"), &trunk], &["--delta-memory", delta]);
            let back = send(&capture.migration, &near.address());
            let summary: Value = serde_json::from_str(&receiving.end().well()).expect("JSON");
            check(&capture, &images, &summary);
            check_answers(&capture, &back);
            let reports = [near, far].map(|relay| {
                let report: Value = serde_json::from_str(&relay.end().well()).expect("JSON");
                assert_eq!(report["remarks"], Value::Array(Vec::new()), "{report}");
                report
            });
            let efforts = reports[0]["auto"]["efforts"].as_array().expect("efforts");
            assert_eq!(efforts.len(), 5, "{reports:?}");
        }
    }
}

/// Payloads that have the outgoing method are passed on as they are, or made anew if that is asked
/// for. Either way the memory is the captured guest's.
#[test]
fn a_relay_compresses_its_own_method_anew_if_it_is_told_to() {
    let captures = captures::folders();
    for capture in captures
        .iter()
        .filter(|capture| capture.name().starts_with("zlib"))
    {
        let mut sizes = Vec::new();
        for recode in [&[][..], &["--recode", "--effort", "dense"]] {
            let folder = tempfile::tempdir().expect("a folder");
            let images = folder.path().join("ram");
            let mut receiving = receive(&images);
            let more = [&["--accel", "software"], recode].concat();
            let mut relay = relay_with(folder.path(), "relay", &receiving.address(), "zlib", &more);
            let back = send(&capture.migration, &relay.address());
            let summary: Value = serde_json::from_str(&receiving.end().well()).expect("JSON");
            check(capture, &images, &summary);
            check_answers(capture, &back);
            let ended = relay.end();
            let has_hint = ended.stderr.contains("--recode compresses them anew");
            let report: Value = serde_json::from_str(&ended.well()).expect("JSON");
            for side in ["decoded", "encoded"] {
                assert_eq!(report[side].is_null(), recode.is_empty(), "{report}");
            }
            assert_eq!(has_hint, recode.is_empty(), "{report}");
            sizes.push(report["bytes_out"].as_u64().expect("a number"));
        }
        // These sources compressed with level 1.
        assert!(sizes[1] < sizes[0], "{}: {sizes:?}", capture.name());
    }
}

/// What `inspect` says of each file is what a second decoder finds in it, packet for packet.
#[test]
fn inspect_counts_what_an_independent_decoder_counts() {
    for capture in captures::folders() {
        let name = capture.name();
        let mut args = vec!["inspect".into(), "--json".into(), "--packets".into()];
        args.extend(
            capture
                .files()
                .into_iter()
                .map(|path| path.into_os_string()),
        );
        let files: Value = serde_json::from_str(&Multifd::start(args).end().well()).expect("JSON");
        let files = files.as_array().expect("an array");
        let description: Value =
            serde_json::from_slice(description(&capture.migration.main)).expect("JSON");
        let page_size = description["page_size"].as_u64().expect("a page size");
        let (main, channels) = files.split_first().expect("a main channel");
        assert_eq!(
            (&main["kind"], &main["fault"]),
            (&"main".into(), &Value::Null),
            "{name}"
        );
        assert_eq!(channels.len(), capture.migration.channels.len(), "{name}");
        for (file, bytes) in channels.iter().zip(&capture.migration.channels) {
            let plain = PlainChannel::read(bytes, page_size as usize);
            let place = format!("{name}: channel {}", plain.id);
            let expected = [
                ("kind", "channel".into()),
                ("fault", Value::Null),
                ("page_size", page_size.into()),
                ("packets", plain.packets.len().into()),
                ("normal", plain.normal().into()),
                ("zero", plain.zero().into()),
                ("payload_bytes", plain.payload().into()),
            ];
            for (key, value) in expected {
                assert_eq!(file[key], value, "{place}: {key}");
            }
            let list = file["packet_list"].as_array().expect("a list");
            assert_eq!(list.len(), plain.packets.len(), "{place}");
            for (packet, plain) in list.iter().zip(&plain.packets) {
                assert_eq!(packet["offset"], plain.at, "{place}");
                assert_eq!(packet["normal"], plain.normal.len(), "{place}");
                assert_eq!(packet["zero"], plain.zero.len(), "{place}");
                if plain.has_pages() {
                    assert_eq!(packet["block"], plain.block, "{place}");
                }
            }
        }
    }
}

fn relay(folder: &Path, name: &str, connect: &Address, compression: &str) -> Multifd {
    relay_with(folder, name, connect, compression, &[])
}

fn relay_with(
    folder: &Path,
    name: &str,
    connect: &Address,
    compression: &str,
    more: &[&str],
) -> Multifd {
    let listen = format!("unix:{}", folder.join(name).display());
    let connect = connect.to_string();
    let args = [
        "relay",
        "--once",
        "--json",
        "--listen",
        &listen,
        "--connect",
        &connect,
        "--compression",
        compression,
    ];
    Multifd::start([&args, more].concat())
}

fn check(capture: &Capture, images: &Path, summary: &Value) {
    assert_eq!(
        summary["channels"],
        capture.migration.channels.len(),
        "{}",
        capture.name()
    );
    let blocks = summary["blocks"].as_array().expect("blocks");
    assert!(!blocks.is_empty(), "{}", capture.name());
    for block in blocks {
        let file = Path::new(block["file"].as_str().expect("a path"));
        assert_eq!(
            file.metadata().expect("an image").len(),
            block["bytes"].as_u64().expect("a length")
        );
    }
    assert_eq!(
        files(images).len(),
        blocks.len(),
        "nothing else is left in the folder"
    );
    for (name, hash) in &capture.images {
        assert_eq!(
            sha256(&images.join(name)),
            *hash,
            "{}: {name} differs",
            capture.name()
        );
    }
}

/// With a return path: what a real destination said, the order of PONG and SWITCHOVER_ACK aside.
fn check_answers(capture: &Capture, back: &[u8]) {
    if !capture.migration.return_path {
        assert!(back.is_empty(), "{}", capture.name());
        return;
    }
    let pong_at = back.windows(4).position(|head| head == [0, 2, 0, 4]);
    assert!(pong_at.is_some(), "{}: {back:?}", capture.name());
    assert!(
        back.ends_with(&[0, 1, 0, 4, 0, 0, 0, 0]),
        "{}: {back:?}",
        capture.name()
    );
}
