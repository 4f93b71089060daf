//! `--max-rate`: what a relay writes towards its destination has a limit. Tests count bytes. Times
//! only bound them from above, so a slow machine changes nothing.

mod support;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use multifd_transport::Address;
use multifd_wire::{Hello, Method};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::made::{BLOCK, Channel, Main, PAGE_BYTES, Shape, page_record};
use support::peers::{Destination, Limits, Role, SHUT_WELL, Source, a_while, write};
use support::{Migration, Multifd};

/// Bytes of pages on each of two channels.
const CHANNEL_BYTES: usize = 9 << 20;

/// Too slow for any test to wait for a whole migration: more than two minutes.
const SLOW: &str = "1mbit";

/// Bytes that no method makes smaller.
struct Random(u64);

impl Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

/// A migration of pages that no method makes smaller.
fn large() -> Migration {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let mut random = Random(1);
    let offsets: Vec<u64> = (0..6).map(|page| page << 12).collect();
    let mut channel = |id| {
        let mut channel = Channel::new(id, Method::None).sync();
        let mut contents = vec![0; offsets.len() << 12];
        for _ in 0..CHANNEL_BYTES / contents.len() {
            random.fill(&mut contents);
            channel = channel.packet(BLOCK, &offsets, &[], &contents);
        }
        channel.sync().bytes()
    };
    Migration {
        main: shape.bytes(1),
        channels: vec![channel(0), channel(1)],
        return_path: true,
        closed: None,
    }
}

/// The same without multifd: all pages are on main.
fn large_on_main() -> Migration {
    // A trunk compresses main.
    let mut random = Random(1);
    let pages = (0..4096).flat_map(|page| {
        let mut record = page_record((page % 6) << 12, 0);
        let contents = record.len() - PAGE_BYTES;
        random.fill(&mut record[contents..]);
        record
    });
    let main = Main {
        machine: "none",
        return_path: true,
        bodies: &[&[], &pages.collect::<Vec<_>>()],
    };
    Migration {
        main: main.bytes(),
        channels: Vec::new(),
        return_path: true,
        closed: None,
    }
}

fn unix(folder: &Path, name: &str) -> Address {
    Address::Unix(folder.join(name))
}

fn relay(listen: &str, connect: &str, more: &[&str]) -> Multifd {
    let args = ["relay", "--json", "--listen", listen, "--connect", connect];
    Multifd::start([&args, more].concat())
}

/// Waits until it listens at one more address.
fn listens(relay: &mut Multifd) {
    while !relay.complaint().contains(": listening on ") {}
}

/// The last report of a command.
fn report(stdout: &str) -> Value {
    let text = stdout.trim().lines().last().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

/// Sends a migration that does not fit into sockets.
fn begin(address: &Address, migration: &Migration) -> Arc<Source> {
    let source = Arc::new(Source::dial(address, migration.channels.len()));
    // The hellos come before main's first byte, as a QEMU's do.
    for (channel, bytes) in source.channels.iter().zip(&migration.channels) {
        write(channel, &bytes[..Hello::LEN]);
    }
    for index in 0..=migration.channels.len() {
        let (source, migration) = (Arc::clone(&source), migration.clone());
        thread::spawn(move || {
            // What breaks off is what a test is about.
            let _ = match migration.channels.get(index) {
                Some(bytes) => (&source.channels[index]).write_all(&bytes[Hello::LEN..]),
                None => (&source.main).write_all(&migration.main),
            };
        });
    }
    source
}

/// Gives the destination's word as soon as all of main and each channel's end have come.
fn takes(destination: &Destination, migration: &Migration, source: &Source) {
    drop(destination.wait("all of main", |seen| {
        seen.of(Role::Main)
            .is_some_and(|main| main.bytes.len() >= migration.main.len())
    }));
    destination.say(Role::Main, &SHUT_WELL);
    assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
}

fn close(source: &Source) {
    for stream in source.channels.iter().chain([&source.main]) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn interrupt(relay: &Multifd) {
    let id = i32::try_from(relay.id()).expect("an id");
    let id = Pid::from_raw(id).expect("an id");
    kill_process(id, Signal::INT).expect("it runs");
}

fn received(destination: &Destination) -> usize {
    let seen = destination.seen();
    seen.connections.iter().map(|one| one.bytes.len()).sum()
}

#[test]
fn two_migrations_share_one_rate() {
    let migration = large();
    for compression in ["none", "zstd"] {
        let folder = tempfile::tempdir().expect("a folder");
        let pages = folder.path().join("pages");
        fs::create_dir(&pages).expect("a folder");
        let names = [("a", "x"), ("b", "y")];
        let to =
            names.map(|(_, to)| Destination::at(&unix(folder.path(), to), 2, Limits::default()));
        let routes = names
            .map(|(from, to)| format!("{}={}", unix(folder.path(), from), unix(folder.path(), to)));
        let report = format!("--report={}", pages.display());
        let mut relay = Multifd::start([
            "relay",
            "--json",
            "--max-rate",
            "24M",
            "--compression",
            compression,
            &report,
            "--route",
            &routes[0],
            "--route",
            &routes[1],
        ]);
        for _ in names {
            listens(&mut relay);
        }
        let before = Instant::now();
        let counts = thread::scope(|scope| {
            let runs = [0, 1].map(|index| {
                let (migration, to, folder) = (&migration, &to[index], folder.path());
                scope.spawn(move || {
                    let source = begin(&unix(folder, names[index].0), migration);
                    takes(to, migration, &source);
                    received(to)
                })
            });
            runs.map(|run| run.join().expect("no panic"))
        });
        let seconds = before.elapsed().as_secs_f64();
        let all: usize = counts.iter().sum();
        assert!(
            all > 4 * CHANNEL_BYTES * 99 / 100,
            "{compression}: {all} bytes"
        );
        // A burst at the beginning, and 10 %.
        let rate = f64::from(24 << 20);
        let most = rate * (seconds + 0.05) * 1.1;
        assert!(
            all as f64 <= most,
            "{compression}: {all} bytes in {seconds} s"
        );
        for _ in names {
            let report: Value = serde_json::from_str(&relay.result()).expect("a report");
            assert_eq!(report["confirmed"], true, "{report}");
        }
        // Pages are whole when the relay has ended.
        interrupt(&relay);
        let ended = relay.end();
        assert!(ended.status.success(), "{ended:?}");
        let page = fs::read_dir(&pages)
            .expect("a folder")
            .next()
            .expect("a page");
        let page = fs::read_to_string(page.expect("a page").path()).expect("a page");
        assert!(page.contains("--max-rate "), "{page}");
    }
}

/// Encrypted or not, what a trunk's connections carry counts, strands included.
#[test]
fn a_trunk_keeps_the_rate_and_its_guest_arrives() {
    let migration = large();
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let trunk = format!("trunk+{}", unix(folder.path(), "trunk"));
    let mut far = relay(&trunk, &destination.address.to_string(), &["--once"]);
    listens(&mut far);
    let more = ["--once", "--max-rate", "200mbit", "--trunk-channels", "3"];
    let mut near = relay("tcp:127.0.0.1:0", &trunk, &more);
    let address = near.address();
    let before = Instant::now();
    let source = begin(&address, &migration);
    takes(&destination, &migration, &source);
    let seconds = before.elapsed().as_secs_f64();
    for ended in [near.end(), far.end()] {
        assert!(ended.status.success(), "{ended:?}");
        let told = report(&ended.stdout);
        assert_eq!(told["confirmed"], true, "{ended:?}");
    }
    let all = received(&destination) as f64;
    let most = 25e6 * (seconds + 0.05) * 1.1;
    assert!(all <= most, "{all} bytes in {seconds} s");
}

/// Each of these migrations would take more than a minute at this rate.
#[test]
fn a_wait_for_the_rate_ends_with_its_migration() {
    for (migration, by_signal) in [
        (large(), false),
        (large(), true),
        // Without channels, a source that closes is no failure but an end, behind what it wrote.
        (large_on_main(), true),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), migration.channels.len());
        let trunk = format!("trunk+{}", unix(folder.path(), "trunk"));
        let mut far = relay(&trunk, &destination.address.to_string(), &["--once"]);
        listens(&mut far);
        let more = [
            "--once",
            "--max-rate",
            SLOW,
            "--drain",
            "0",
            "--compression",
            "none",
        ];
        let mut near = relay("tcp:127.0.0.1:0", &trunk, &more);
        let source = begin(&near.address(), &migration);
        // A part of the pages, and by far not all.
        let few = 60_000;
        drop(destination.wait("some pages", |seen| {
            let bytes = seen.connections.iter().map(|one| one.bytes.len());
            bytes.sum::<usize>() > few
        }));
        a_while();
        match by_signal {
            true => interrupt(&near),
            false => close(&source),
        }
        let ended = near.end();
        assert!(!ended.status.success(), "{ended:?}");
        let far = far.end();
        assert_eq!(far.status.code(), Some(1), "{far:?}");
        assert!(far.stderr.contains("ended the migration"), "{far:?}");
        let all = migration.main.len() + migration.channels.concat().len();
        assert!(received(&destination) < all / 2, "it ended early");
    }
}

#[test]
fn a_rate_that_is_none_is_refused_with_the_reason() {
    for (rate, words) in [
        (
            "999kbit",
            "the lowest rate is 1 mbit (125000 bytes a second)",
        ),
        (
            "fast",
            "rates are whole numbers of bits a second with kbit, mbit or gbit",
        ),
    ] {
        let args = [
            "relay",
            "--listen",
            "unix:a",
            "--connect",
            "unix:b",
            "--max-rate",
            rate,
        ];
        let migrate = [
            "migrate",
            "--qmp",
            "q",
            "--to",
            "trunk+unix:b",
            "--max-rate",
            rate,
        ];
        for args in [args, migrate] {
            let ended = Multifd::start(args).end();
            assert_eq!(ended.status.code(), Some(2), "{ended:?}");
            assert!(ended.stderr.contains(words), "{ended:?}");
        }
    }
}
