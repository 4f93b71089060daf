//! `multifd receive`, with migrations made here.

mod support;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::path::Path;
use std::thread;
use std::time::Duration;

use multifd_transport::Stream;
use multifd_wire::{DeviceStatePacket, Flags, IdStr, Method, Packet};
use serde_json::{Value, json};
use support::made::{self, Channel, FLUSH, Main, page_record, sound, zero_record};
use support::{Ended, Migration, Multifd, files, receive, send};

const IMAGE: &str = "pc.ram.ram";
const ACK: [u8; 4] = [0, 7, 0, 0];
const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];
const SHUT_WELL: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
const SHUT_FAILED: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 1];

/// Sends `migration` to a `multifd receive` that writes to `images`.
fn take(images: &Path, migration: &Migration) -> (Ended, Vec<u8>) {
    let mut receiving = receive(images);
    let back = send(migration, &receiving.address());
    (receiving.end(), back)
}

#[test]
fn every_method_with_and_without_a_return_path() {
    for method in [Method::None, Method::Zlib, Method::Zstd] {
        for return_path in [false, true] {
            let folder = tempfile::tempdir().expect("a folder");
            let images = folder.path().join("new/ram");
            fs::create_dir(folder.path().join("new")).expect("a folder");
            let migration = sound(method, return_path);
            let (ended, back) = take(&images, &migration);
            let summary: Value = serde_json::from_str(&ended.well()).expect("JSON");
            let block = &summary["blocks"][0];
            assert_eq!(
                (
                    &summary["channels"],
                    &summary["pages"],
                    &summary["zero_pages"]
                ),
                (&json!(2), &json!(5), &json!(4))
            );
            assert_eq!(
                (&block["name"], &block["pages"]),
                (&json!("pc.ram"), &json!(5))
            );
            let bytes =
                migration.main.len() + migration.channels.iter().map(Vec::len).sum::<usize>();
            assert_eq!(summary["bytes_in"], bytes);
            let confirmed = return_path.then_some(true);
            assert_eq!(summary["confirmed"], json!(confirmed), "{summary}");
            assert_eq!(summary["left_out"], json!([]), "{summary}");
            assert_eq!(made::pages(&images.join(IMAGE), 6), made::SOUND_PAGES);
            assert_eq!(files(&images), [IMAGE]);
            let answers = [&ACK[..], &PONG, &SHUT_WELL].concat();
            assert_eq!(back, if return_path { answers } else { Vec::new() });
        }
    }
}

/// Most machine types tell whether a source understands a SWITCHOVER_ACK; for the others one is
/// sent on demand.
#[test]
fn a_switchover_ack_on_demand() {
    let answers = |machine, demand| {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = format!("unix:{}", folder.path().join("s").display());
        let dump = folder.path().join("ram").display().to_string();
        let mut args = vec!["receive", "--listen", &listen, "--dump", &dump];
        args.extend(demand);
        let mut receiving = Multifd::start(args);
        let bodies: [&[u8]; 3] = [&FLUSH, &FLUSH, &FLUSH];
        let main = Main {
            machine,
            return_path: true,
            bodies: &bodies,
        };
        let migration = Migration {
            main: main.bytes(),
            ..sound(Method::None, true)
        };
        let back = send(&migration, &receiving.address());
        receiving.end().well();
        back
    };
    let without = [PONG, SHUT_WELL].concat();
    assert_eq!(answers("pc-q35-noble", None), without);
    assert_eq!(
        answers("pc-q35-noble", Some("--switchover-ack")),
        [&ACK[..], &without].concat()
    );
    assert_eq!(answers("pc-q35-11.1", Some("--switchover-ack")), without);
}

/// The end of every section of RAM ends a round, and zero pages come on the main channel.
#[test]
fn a_machine_from_before_flush_marks() {
    let folder = tempfile::tempdir().expect("a folder");
    let bodies: [&[u8]; 4] = [
        &[],
        &zero_record(0),
        &[4096, 12288, 16384, 20480].map(zero_record).concat(),
        &[],
    ];
    let migration = Migration {
        main: Main {
            machine: "pc-q35-7.2",
            return_path: true,
            bodies: &bodies,
        }
        .bytes(),
        channels: vec![
            Channel::new(0, Method::Zlib)
                .sync()
                .pages(&[(4096, 1)], &[])
                .sync()
                .sync()
                .pages(&[(0, 2)], &[])
                .sync()
                .bytes(),
            Channel::new(1, Method::Zlib)
                .sync()
                .pages(&[(8192, 3)], &[])
                .sync()
                .pages(&[(8192, 4)], &[])
                .sync()
                .sync()
                .bytes(),
        ],
        return_path: true,
        closed: None,
    };
    let (ended, back) = take(folder.path(), &migration);
    ended.well();
    assert_eq!(made::pages(&folder.path().join(IMAGE), 4), [2, 0, 4, 0]);
    // The channels' first SYNC is one of QEMU 9.0 or later, which knows SWITCHOVER_ACK whatever its
    // machine type.
    let early = [&ACK[..], &PONG, &SHUT_WELL].concat();
    let late = [&PONG[..], &ACK, &SHUT_WELL].concat();
    assert!(back == early || back == late, "{back:?}");
}

#[test]
fn without_multifd_all_pages_come_on_the_main_channel() {
    let folder = tempfile::tempdir().expect("a folder");
    let rest = [12288, 16384, 20480].map(zero_record).concat();
    let first = [
        page_record(0, 5),
        zero_record(4096),
        page_record(8192, 6),
        rest,
    ]
    .concat();
    let second = [zero_record(0), page_record(4096, 7)].concat();
    let migration = Migration {
        main: Main {
            machine: "none-10.0",
            return_path: false,
            bodies: &[&[], &first, &second],
        }
        .bytes(),
        channels: Vec::new(),
        return_path: false,
        closed: None,
    };
    // Cut anywhere, in the middle of a page too.
    let mut receiving = receive(folder.path());
    let main = Stream::connect(&receiving.address()).expect("a listener");
    for piece in migration.main.chunks(1499) {
        (&main).write_all(piece).expect("a reader");
        thread::sleep(Duration::from_millis(1));
    }
    main.shutdown(Shutdown::Write).expect("a connection");
    let summary: Value = serde_json::from_str(&receiving.end().well()).expect("JSON");
    assert_eq!(made::pages(&folder.path().join(IMAGE), 4), [0, 7, 6, 0]);
    assert_eq!(
        (&summary["channels"], &summary["pages"]),
        (&json!(0), &json!(3))
    );
}

/// A page that is sent in two rounds on two channels is the later one's, however late the earlier
/// channel is.
#[test]
fn no_channel_gets_ahead_of_a_round() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut receiving = receive(folder.path());
    let address = receiving.address();
    let dial = || Stream::connect(&address).expect("a listener");
    let (main, slow, fast) = (dial(), dial(), dial());
    let slow_bytes = Channel::new(0, Method::None)
        .sync()
        .pages(&[(0, 1), (4096, 1)], &[])
        .sync()
        .sync()
        .bytes();
    let fast_bytes = Channel::new(1, Method::None)
        .sync()
        .sync()
        .pages(&[(0, 2)], &[4096, 8192, 12288, 16384, 20480])
        .sync()
        .bytes();
    let bodies: [&[u8]; 3] = [&FLUSH, &FLUSH, &FLUSH];
    let main_bytes = Main {
        machine: "none",
        return_path: false,
        bodies: &bodies,
    }
    .bytes();
    (&fast).write_all(&fast_bytes).expect("a reader");
    (&slow).write_all(&slow_bytes[..64]).expect("a reader");
    (&main).write_all(&main_bytes).expect("a reader");
    thread::sleep(Duration::from_millis(200));
    (&slow).write_all(&slow_bytes[64..]).expect("a reader");
    for stream in [&main, &slow, &fast] {
        stream.shutdown(Shutdown::Write).expect("a connection");
    }
    receiving.end().well();
    assert_eq!(made::pages(&folder.path().join(IMAGE), 2), [2, 0]);
}

#[test]
fn device_state_is_passed_over_and_a_surplus_sync_harmless() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut migration = sound(Method::None, false);
    let name = IdStr::try_from("0000:01:00.0/vfio").expect("a name");
    let packet = DeviceStatePacket::new(name, 0, 100_000).expect("a packet");
    assert_eq!(packet.flags(), Flags::DEVICE_STATE);
    Packet::from(packet).encode(&mut migration.channels[1]);
    migration.channels[1].extend_from_slice(&[9; 100_000]);
    migration.channels[0] = append_sync(&migration.channels[0]);
    take(folder.path(), &migration).0.well();
    assert_eq!(
        made::pages(&folder.path().join(IMAGE), 6),
        made::SOUND_PAGES
    );
}

/// Such a page belongs to no round. It comes before the source is told that all has arrived, or
/// after that: then nothing is a failure any more, and the images are those of the last round.
#[test]
fn a_page_behind_the_last_sync_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut migration = sound(Method::None, true);
    let late = Channel::new(1, Method::None)
        .sync()
        .pages(&[(12288, 3)], &[16384, 20480])
        .sync()
        .sync()
        .pages(&[(0, 9)], &[]);
    migration.channels[1] = late.bytes();
    migration.closed = Some(1);
    let (ended, back) = take(folder.path(), &migration);
    if back.ends_with(&SHUT_WELL) {
        ended.well();
        let kept = made::pages(&folder.path().join(IMAGE), 6);
        assert_eq!(kept, [1, 2, 7, 3, 0, 0], "the late page is not among them");
        return;
    }
    assert_eq!(ended.status.code(), Some(1));
    let says = "channel 1, source side: the channel has pages after its last SYNC";
    let block = "channel 1, source side, block pc.ram: the channel has pages after its last SYNC";
    assert!(
        ended.stderr.contains(says) || ended.stderr.contains(block),
        "{ended:?}"
    );
    assert!(
        files(folder.path())
            .iter()
            .all(|name| name.ends_with(".ram"))
    );
}

#[test]
fn a_failure_reaches_a_source_that_listens() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut migration = sound(Method::None, true);
    let last = migration.channels[1].len() - 1344;
    migration.channels[1][last] ^= 1;
    let (ended, back) = take(folder.path(), &migration);
    assert_eq!(ended.status.code(), Some(1));
    let error: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(
        error["error"]
            .as_str()
            .expect("text")
            .starts_with("channel 1"),
        "{error}"
    );
    assert!(back.ends_with(&SHUT_FAILED), "{back:?}");
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_source_that_dies_leaves_no_image() {
    for return_path in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut receiving = receive(folder.path());
        let address = receiving.address();
        let mut migration = sound(Method::None, return_path);
        let main = migration.main.len() - 60;
        migration.main.truncate(main);
        migration
            .channels
            .iter_mut()
            .for_each(|channel| channel.truncate(6000));
        let streams: Vec<_> = (0..3)
            .map(|_| Stream::connect(&address).expect("a listener"))
            .collect();
        for (mut stream, bytes) in streams
            .iter()
            .zip([&migration.main].into_iter().chain(&migration.channels))
        {
            stream.write_all(bytes).expect("a reader");
        }
        thread::sleep(Duration::from_millis(50));
        assert!(
            files(folder.path())
                .iter()
                .all(|name| name.ends_with(".partial"))
        );
        drop(streams);
        let ended = receiving.end();
        assert_eq!(ended.status.code(), Some(1));
        assert!(ended.stderr.contains("before it was complete"), "{ended:?}");
        assert!(files(folder.path()).is_empty());
    }
}

#[test]
fn images_of_another_migration_are_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("vga.ram.ram.partial");
    fs::write(&file, "mine").expect("a file");
    let socket = folder.path().join("s");
    let listen = format!("unix:{}", socket.display());
    let dump = folder.path().to_str().expect("text");
    let ended = Multifd::start(["receive", "--listen", &listen, "--dump", dump]).end();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended
            .stderr
            .contains("vga.ram.ram.partial is there already"),
        "{ended:?}"
    );
    assert!(!ended.stderr.contains("listening") && !socket.exists());
    assert_eq!(fs::read(&file).expect("a file"), b"mine");
}

#[test]
fn over_tcp_on_a_port_that_the_system_chooses() {
    let folder = tempfile::tempdir().expect("a folder");
    let dump = folder.path().to_str().expect("text");
    let mut receiving = Multifd::start(["receive", "--listen", "tcp:127.0.0.1:0", "--dump", dump]);
    send(&sound(Method::Zstd, true), &receiving.address());
    let text = receiving.end().well();
    let lines: Vec<_> = text.lines().collect();
    let block = format!("block pc.ram, bytes 24576, pages 5, zero pages 4, file {dump}/{IMAGE}");
    assert_eq!(lines[0], block);
    assert!(
        lines[1].starts_with("channels 2, pages 5, zero pages 4, bytes in "),
        "{}",
        lines[1]
    );
    assert_eq!(
        made::pages(&folder.path().join(IMAGE), 6),
        made::SOUND_PAGES
    );
}

fn append_sync(channel: &[u8]) -> Vec<u8> {
    let sync = Channel::new(0, Method::None).sync().bytes().split_off(64);
    [channel, &sync].concat()
}

/// The accelerator is for a QEMU source too, and one that is not there is a failure.
#[test]
fn the_accelerator_that_was_asked_for_reads() {
    for accel in ["none", "qpl-hardware"] {
        let folder = tempfile::tempdir().expect("a folder");
        let images = folder.path().join("ram").display().to_string();
        let listen = ["receive", "--listen", "tcp:127.0.0.1:0"];
        let more = ["--dump", &images, "--accel", accel];
        let mut receiving = Multifd::start([&listen[..], &more].concat());
        send(&sound(Method::Qpl, true), &receiving.address());
        let ended = receiving.end();
        let has_device = Path::new("/sys/bus/dsa/devices").exists();
        if accel == "none" || ended.status.success() {
            assert!(accel == "none" || has_device, "{ended:?}");
            ended.well();
        } else {
            let says = "accelerator qpl-hardware is not available";
            assert!(ended.stderr.contains(says), "{ended:?}");
        }
    }
}
