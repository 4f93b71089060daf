//! `multifd record` and `multifd replay`, with migrations made here.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use multifd_relay::recording::{Role, Writer};
use multifd_transport::Address;
use multifd_wire::Method;
use support::made::{self, Channel, Shape, short, sound};
use support::peers::{Destination, Limits, Role as Of, Seen};
use support::{Ended, Migration, Multifd, files, receive, record, replay, send};

/// A recording of a sound migration.
fn recorded(folder: &Path, method: Method, return_path: bool) -> PathBuf {
    let file = folder.join("guest.mfd");
    let mut recording = record(&file);
    let back = send(&sound(method, return_path), &recording.address());
    let text = recording.end().well();
    let confirmed = match return_path {
        true => "",
        false => "whole, not confirmed to the source: no return path; ",
    };
    assert!(
        text.starts_with(&format!(
            "{confirmed}channels 2, pages 5, zero pages 4, bytes in "
        )),
        "{text}"
    );
    assert_eq!(back.is_empty(), !return_path);
    file
}

#[test]
fn a_recorded_migration_comes_to_life() {
    for method in [Method::None, Method::Zlib, Method::Zstd] {
        for return_path in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let file = recorded(folder.path(), method, return_path);
            let images = folder.path().join("ram");
            let mut receiving = receive(&images);
            let text = replay(&file, &receiving.address()).end().well();
            assert_eq!(
                text.contains("the destination has the guest"),
                return_path,
                "{text}"
            );
            receiving.end().well();
            assert_eq!(
                made::pages(&images.join("pc.ram.ram"), 6),
                made::SOUND_PAGES
            );
        }
    }
}

#[test]
fn a_recording_is_partial_until_it_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("guest.mfd");
    let mut recording = record(&out);
    let address = recording.address();
    assert_eq!(files(folder.path()), ["guest.mfd.partial", "guest.sock"]);
    let mut migration = sound(Method::None, false);
    migration.channels[0].pop();
    send(&migration, &address);
    assert_eq!(recording.end().status.code(), Some(1));
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_file_that_is_there_is_not_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("guest.mfd");
    fs::write(&out, "mine").expect("a file");
    let ended = record(&out).end();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stderr.contains("guest.mfd is there already"),
        "{ended:?}"
    );
    assert_eq!(fs::read(&out).expect("a file"), b"mine");
}

#[test]
fn a_damaged_recording_is_refused_before_anybody_is_dialled() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = recorded(folder.path(), Method::None, false);
    let sound = fs::read(&file).expect("a recording");
    let nowhere = Address::Unix(folder.path().join("nobody"));
    let refused = |bytes: &[u8], says: &str| {
        fs::write(&file, bytes).expect("a file");
        let ended = replay(&file, &nowhere).end();
        assert_eq!(ended.status.code(), Some(1));
        assert!(ended.stderr.contains(says), "{says}: {ended:?}");
        assert!(!ended.stderr.contains("connect"), "{ended:?}");
    };
    refused(&sound[..sound.len() - 1], "cut short");
    refused(&sound[..100], "cut short");
    refused(&sound[..4], "neither a channel");
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 0x10;
    refused(&damaged, "damaged at offset");
    refused(
        &support::made::sound(Method::None, false).main,
        "only a recording can be replayed",
    );

    fs::write(&file, &sound).expect("a file");
    let ended = replay(&file, &nowhere).end();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended
            .stderr
            .contains("main channel, destination side: cannot connect to unix:"),
        "{ended:?}"
    );
}

/// Replays a recording with a return path to a destination which takes everything and then does as
/// `answer` says.
fn answered(answer: impl FnOnce(&Destination)) -> Ended {
    let folder = tempfile::tempdir().expect("a folder");
    let file = recorded(folder.path(), Method::None, true);
    let destination = Destination::new(folder.path(), 2).silent();
    let replaying = replay(&file, &destination.address);
    let whole = sound(Method::None, true);
    drop(destination.wait("a whole migration", |seen| seen.has_all(&whole)));
    answer(&destination);
    replaying.end()
}

#[test]
fn the_destination_has_the_last_word() {
    let says =
        |bytes: &'static [u8]| move |destination: &Destination| destination.say(Of::Main, bytes);
    answered(says(b"\0\x02\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0")).well();

    let refused = answered(says(b"\0\x01\0\x04\0\0\0\x05"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused
            .stderr
            .contains("could not load the guest (status 5)"),
        "{refused:?}"
    );

    let silent = answered(Destination::close_all);
    assert_eq!(silent.status.code(), Some(1));
    assert!(
        silent.stderr.contains("closed without saying"),
        "{silent:?}"
    );
}

/// Replays a recording of `migration` to a destination which takes all of main and the first bytes
/// of each channel, then closes everything.
fn deserted(migration: &Migration, taken: usize) -> Ended {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("guest.mfd");
    let mut recording = record(&file);
    send(migration, &recording.address());
    recording.end().well();
    let limits = Limits {
        channel: taken,
        ..Limits::default()
    };
    let address = Address::Unix(folder.path().join("destination"));
    let destination = Destination::at(&address, 2, limits);
    let replaying = replay(&file, &address);
    let has_read = |seen: &Seen, role, most: usize| {
        seen.of(role)
            .is_some_and(|connection| connection.bytes.len() >= most)
    };
    drop(destination.wait("its share", |seen| {
        let channels = migration.channels.iter().zip(0..);
        let mut channels =
            channels.map(|(bytes, id)| has_read(seen, Of::Channel(id), bytes.len().min(taken)));
        has_read(seen, Of::Main, migration.main.len()) && channels.all(|has_read| has_read)
    }));
    destination.close_all();
    replaying.end()
}

#[test]
fn a_destination_that_dies_ends_a_replay() {
    let mut migration = sound(Method::None, false);
    let pages: Vec<_> = (0..6).map(|page| (page * 4096, 1)).collect();
    let mut long = Channel::new(0, Method::None).sync();
    for _ in 0..40 {
        long = long.pages(&pages, &[]);
    }
    migration.channels[0] = long.sync().sync().bytes();
    let ended = deserted(&migration, 10_000);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended
            .stderr
            .contains("channel 0, destination side: the connection broke"),
        "{ended:?}"
    );
}

/// QEMU 8.2 and earlier end a channel with an empty packet, and a destination that has the guest
/// closes it before.
#[test]
fn a_destination_needs_no_empty_packets() {
    let mut migration = sound(Method::None, false);
    let needed = migration.channels[0].len();
    let mut empty = Channel::new(0, Method::None).sync().bytes().split_off(64);
    empty[11] = 0;
    // More than the system buffers.
    migration.channels[0].extend_from_slice(&empty.repeat(1000));
    deserted(&migration, needed).well();
}

#[test]
fn inspect_sees_all_streams_of_a_recording() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = recorded(folder.path(), Method::Zlib, true);
    let path = file.to_str().expect("text");
    let text = Multifd::start(["inspect", "--json", path]).end().well();
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let report = &report[0];
    assert_eq!(report["kind"], "recording");
    assert_eq!(
        (&report["packets"], &report["sync"]),
        (&10.into(), &6.into())
    );
    assert_eq!((&report["normal"], &report["zero"]), (&5.into(), &4.into()));
    assert_eq!(
        (&report["flush"], &report["methods"][0]),
        (&3.into(), &"zlib".into())
    );
    assert_eq!(report["blocks"][0]["bytes"], 6 << 12);
    let streams = report["streams"].as_array().expect("streams");
    assert_eq!(streams.len(), 3);
    assert_eq!(
        (&streams[0]["kind"], &streams[0]["packets"]),
        (&"main".into(), &().into())
    );
    assert_eq!(
        streams
            .iter()
            .filter(|stream| stream["packets"] == 5)
            .count(),
        2
    );
}

/// `record` takes none like it; another program's, or an earlier build's, may hold one.
#[test]
fn a_recording_of_a_source_that_may_switch_to_postcopy_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("guest.mfd");
    let migration = short(&Shape {
        return_path: true,
        advise: Some(0x1000),
        ..Shape::default()
    });
    let mut writer = Writer::new(fs::File::create(&file).expect("a file")).expect("a header");
    let channels = migration
        .channels
        .iter()
        .map(|bytes| (Role::Channel, bytes));
    let streams: Vec<_> = std::iter::once((Role::Main, &migration.main))
        .chain(channels)
        .map(|(role, bytes)| (writer.open(role).expect("a stream"), bytes))
        .collect();
    for (stream, bytes) in &streams {
        writer.data(*stream, bytes).expect("a file");
    }
    for (stream, _) in &streams {
        writer.eof(*stream).expect("a file");
    }
    writer.finish().expect("a file");
    let destination = Destination::new(folder.path(), 2);
    let ended = replay(&file, &destination.address).end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for words in ["its source had postcopy on", "postcopy-ram off"] {
        assert!(ended.stderr.contains(words), "{words}: {ended:?}");
    }
    assert!(
        destination.seen().connections.is_empty(),
        "nobody is dialled"
    );
}
