//! No guest is lost: whatever comes late, in between, too little or not at all, either everything
//! arrives and success is said, or the source keeps its guest and everybody says failure.

mod support;

/// Cases of one kind each.
mod lost {
    mod ends;
    mod left;
    pub mod marks;
    mod numbers;
    mod postcopy;
    mod silence;
    mod standstill;
    mod strangers;
    mod wishes;
    mod word;
}

use std::path::Path;
use std::thread;

use lost::marks;
use multifd_transport::Address;
use multifd_wire::Method;
use serde_json::{Value, json};
use support::made::{self, Channel, END, FLUSH, SHORT_PAGES, Shape, long, short};
use support::peers::{
    Destination, End, Limits, PONG, Role, SHUT_FAILED, SHUT_WELL, Source, a_while, dial, end_of,
    write,
};
use support::{Ended, Migration, Multifd, files, receive, record, replay};

/// A hello and a SYNC.
const CHANNEL_START: usize = 64 + 1344;

/// Who takes a migration.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Taker {
    Receive,
    Record,
    Relay,
}

const TAKERS: [Taker; 3] = [Taker::Receive, Taker::Record, Taker::Relay];

/// One that runs.
struct Taking {
    taker: Taker,
    multifd: Multifd,
    address: Address,
    folder: tempfile::TempDir,
    destination: Option<Destination>,
}

impl Taking {
    /// Of one migration, of two channels.
    fn start(taker: Taker) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut destination = None;
        let mut multifd = match taker {
            Taker::Receive => receive(&folder.path().join("ram")),
            Taker::Record => record(&folder.path().join("guest.mfd")),
            Taker::Relay => {
                let there = destination.insert(Destination::new(folder.path(), 2));
                relay(folder.path(), &there.address, &["--once"])
            }
        };
        let address = multifd.address();
        Self {
            taker,
            multifd,
            address,
            folder,
            destination,
        }
    }

    /// All of `migration` arrives, which `source` is writing or has written.
    fn takes(self, migration: &Migration, source: &Source) {
        if let Some(destination) = &self.destination {
            let seen = destination.wait("all of it", |seen| seen.has_all(migration));
            // A destination before QEMU 8.0 takes the first connection for main.
            assert_eq!(seen.connections[0].role(), Role::Main);
            drop(seen);
            if migration.return_path {
                destination.say(Role::Main, &SHUT_WELL);
            }
        }
        if migration.return_path {
            let heard = source.hears(&SHUT_WELL);
            assert!(heard.ends_with(&SHUT_WELL), "{:?}: {heard:?}", self.taker);
        }
        source.finish();
        if let Some(destination) = &self.destination {
            drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
            destination.close_all();
        }
        let text = self.multifd.end().well();
        match self.taker {
            Taker::Receive => {
                let image = self.folder.path().join("ram/pc.ram.ram");
                assert_eq!(made::pages(&image, 6), SHORT_PAGES);
            }
            Taker::Record => {
                let images = self.folder.path().join("replayed");
                let mut receiving = receive(&images);
                let file = self.folder.path().join("guest.mfd");
                replay(&file, &receiving.address()).end().well();
                receiving.end().well();
                assert_eq!(made::pages(&images.join("pc.ram.ram"), 6), SHORT_PAGES);
            }
            Taker::Relay => {
                let report = parse(&text);
                let confirmed = migration.return_path.then_some(true);
                assert_eq!(report["confirmed"], json!(confirmed), "{report}");
                assert_eq!(report["channels"], migration.channels.len(), "{report}");
            }
        }
    }

    /// It fails, says all of `says`, and leaves nothing.
    fn fails(self, says: &[&str]) {
        let ended = self.multifd.end();
        fails_with(&ended, says);
        let ram = self.folder.path().join("ram");
        assert!(!ram.exists() || files(&ram).is_empty(), "{ended:?}");
        let is_ours = |name: &String| name != "destination" && name != "ram";
        let left: Vec<_> = files(self.folder.path())
            .into_iter()
            .filter(is_ours)
            .collect();
        assert!(left.is_empty(), "{left:?}: {ended:?}");
    }
}

fn relay(folder: &Path, connect: &Address, more: &[&str]) -> Multifd {
    relay_at(
        &format!("unix:{}", folder.join("s").display()),
        connect,
        more,
    )
}

fn relay_at(listen: &str, connect: &Address, more: &[&str]) -> Multifd {
    let connect = connect.to_string();
    let args = ["relay", "--json", "--listen", listen, "--connect", &connect];
    Multifd::start([&args, more].concat())
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn fails_with(ended: &Ended, says: &[&str]) {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let mut rest = ended.stderr.as_str();
    for words in says {
        let at = rest.find(words);
        let at = at.unwrap_or_else(|| panic!("{words:?} is not said: {ended:?}"));
        rest = &rest[at + words.len()..];
    }
}

/// With and without a return path.
fn both() -> [Migration; 2] {
    [false, true].map(|return_path| {
        short(&Shape {
            return_path,
            ..Shape::default()
        })
    })
}

#[test]
fn a_silent_connection_in_between_is_in_nobodys_way() {
    for taker in TAKERS {
        for migration in both() {
            let taking = Taking::start(taker);
            let main = dial(&taking.address);
            let silent = [0; 5].map(|_| dial(&taking.address));
            let channels = [0, 1].map(|_| dial(&taking.address));
            let source = Source {
                main,
                channels: channels.into(),
            };
            source.write(&migration);
            taking.takes(&migration, &source);
            drop(silent);
        }
    }
}

#[test]
fn channels_that_come_late_are_taken() {
    for taker in TAKERS {
        // How many channels are there before main says anything.
        for early in [0, 1] {
            for migration in both() {
                let taking = Taking::start(taker);
                let mut source = Source::dial(&taking.address, early);
                for (channel, bytes) in source.channels.iter().zip(&migration.channels) {
                    write(channel, bytes);
                }
                write(&source.main, &migration.main);
                for bytes in &migration.channels[early..] {
                    a_while();
                    let channel = dial(&taking.address);
                    write(&channel, bytes);
                    source.channels.push(channel);
                }
                taking.takes(&migration, &source);
            }
        }
    }
}

/// The source has not half the time of a slow link for what its last channel has.
#[test]
fn channels_of_any_order_are_brought_together() {
    for taker in TAKERS {
        for migration in both() {
            let taking = Taking::start(taker);
            // Main is the last to be opened, and the ids come in reverse.
            let mut channels = Vec::new();
            for bytes in migration.channels.iter().rev() {
                let channel = dial(&taking.address);
                write(&channel, bytes);
                channels.push(channel);
            }
            a_while();
            let main = dial(&taking.address);
            write(&main, &migration.main);
            let source = Source { main, channels };
            taking.takes(&migration, &source);
        }
    }
}

#[test]
fn channels_of_two_sources_at_once_are_nobodys() {
    let migration = &both()[1];
    for taker in [Taker::Receive, Taker::Record] {
        let taking = Taking::start(taker);
        let mains = [dial(&taking.address), dial(&taking.address)];
        mains.iter().for_each(|main| write(main, &migration.main));
        let [first, second] = mains.map(|main| Source {
            main,
            channels: Vec::new(),
        });
        first.hears(&PONG);
        let channels = [0, 1, 0, 1].map(|id| {
            let channel = dial(&taking.address);
            write(&channel, &migration.channels[id]);
            channel
        });
        assert!(first.hears(&SHUT_FAILED).ends_with(&SHUT_FAILED));
        let heard = second.hears(&SHUT_WELL);
        assert!(!heard.ends_with(&SHUT_WELL), "{heard:?}");
        let remedy = ["several migrations at once at one address", "validate-uuid"];
        taking.fails(&remedy);
        drop(channels);
    }
}

#[test]
fn two_alike_are_refused_at_a_relay_and_the_next_is_served() {
    let migration = &both()[0];
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &destination.address, &[]);
    let address = relay.address();
    let mains = [dial(&address), dial(&address)];
    mains.iter().for_each(|main| write(main, &migration.main));
    let channels = [0, 1, 0, 1].map(|id| {
        let channel = dial(&address);
        write(&channel, &migration.channels[id]);
        channel
    });
    mains.iter().for_each(|main| {
        end_of(main);
    });
    for _ in 0..2 {
        let report = parse(&relay.result());
        assert_eq!(report["confirmed"], false, "{report}");
        let error = report["error"].as_str().expect("words");
        assert!(
            error.contains("or its own -uuid with the capability validate-uuid"),
            "{error}"
        );
    }
    assert!(
        destination.seen().connections.is_empty(),
        "nothing is dialled for them"
    );
    drop((mains, channels));
    let source = Source::begin(&address, migration);
    source.finish();
    destination.take(migration);
    assert_eq!(parse(&relay.result())["channels"], 2);
}

/// What takes as long as channels and pages are waited for, all at once.
#[test]
fn what_never_comes_is_missed_and_no_success_is_said() {
    type Change = fn(&mut Migration);
    let cases: [(&str, Change, &[&str]); 7] = [
        (
            "a page",
            |migration| {
                let channel = Channel::new(1, Method::None).sync();
                migration.channels[1] = channel.pages(&[(12288, 3)], &[16384]).sync().bytes();
            },
            &["1 of 6 pages of block pc.ram never came", "0x5000"],
        ),
        (
            "the last channel",
            |migration| drop(migration.channels.pop()),
            &["3 of 6 pages of block pc.ram never came", "0x3000"],
        ),
        (
            "the first channel",
            |migration| drop(migration.channels.remove(0)),
            &["channel 0 did not come"],
        ),
        (
            "all channels",
            |migration| migration.channels.clear(),
            &["its set-up says multifd, but no channel came"],
        ),
        (
            "a channel that says something else",
            |migration| migration.channels[1][0] = 0x12,
            &["begins with 0x12223344", "never came"],
        ),
        (
            "a channel with a hello of the future",
            |migration| migration.channels[1][7] = 2,
            &["its hello is malformed", "version 2", "never came"],
        ),
        (
            "a channel of another VM",
            |migration| migration.channels[1][8] = 1,
            &["channel 1 of VM 01000000-", "or its own -uuid"],
        ),
    ];
    thread::scope(|scope| {
        for taker in [Taker::Receive, Taker::Record] {
            for (what, change, says) in cases {
                for mut migration in both() {
                    change(&mut migration);
                    scope.spawn(move || {
                        let taking = Taking::start(taker);
                        let source = Source::begin(&taking.address, &migration);
                        if migration.return_path {
                            let heard = source.hears(&SHUT_FAILED);
                            assert!(heard.ends_with(&SHUT_FAILED), "{what}: {heard:?}");
                        } else {
                            source.finish();
                        }
                        taking.fails(says);
                    });
                }
            }
        }
        // A relay waits for the channels that it knows of.
        for (what, change, says) in [cases[2], cases[3]] {
            let mut migration = both()[1].clone();
            change(&mut migration);
            scope.spawn(move || {
                let taking = Taking::start(Taker::Relay);
                let source = Source::begin(&taking.address, &migration);
                let heard = source.hears(&SHUT_WELL);
                assert!(!heard.ends_with(&SHUT_WELL), "{what}: {heard:?}");
                taking.fails(says);
            });
        }
        // Nothing shows whether this one has channels.
        scope.spawn(|| {
            let taking = Taking::start(Taker::Relay);
            let source = Source::begin(&taking.address, &marks::of_zeros_first(false));
            source.wait_for_end();
            taking.fails(&["its first round had no page with contents"]);
        });
    });
}

#[test]
fn a_channel_with_the_id_of_another_ends_the_migration() {
    thread::scope(|scope| {
        for taker in TAKERS {
            let mut migration = both()[1].clone();
            migration.channels[1][24] = 0;
            scope.spawn(move || {
                let taking = Taking::start(taker);
                let source = Source::begin(&taking.address, &migration);
                let heard = source.hears(&SHUT_FAILED);
                assert!(!heard.ends_with(&SHUT_WELL), "{heard:?}");
                taking.fails(&["channel id 0 was used twice"]);
            });
        }
    });
}

#[test]
fn a_block_that_the_source_shares_is_named_and_left_out() {
    let migration = short(&Shape {
        capabilities: &["x-ignore-shared"],
        blocks: &[("pc.ram", made::BLOCK_BYTES, None), ("shm", 8192, None)],
        return_path: true,
        ..Shape::default()
    });
    let folder = tempfile::tempdir().expect("a folder");
    let mut receiving = receive(folder.path());
    let back = support::send(&migration, &receiving.address());
    assert!(back.ends_with(&SHUT_WELL), "{back:?}");
    let summary = parse(&receiving.end().well());
    assert_eq!(summary["left_out"], json!(["shm"]), "{summary}");
    assert_eq!(files(folder.path()), ["pc.ram.ram"]);
    let image = folder.path().join("pc.ram.ram");
    assert_eq!(made::pages(&image, 6), SHORT_PAGES);

    // For people, in words.
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out").display().to_string();
    for (command, option) in [("receive", "--dump"), ("record", "--out")] {
        let listen = ["--listen", "tcp:127.0.0.1:0"];
        let mut taking = Multifd::start([&[command], &listen[..], &[option, &out]].concat());
        support::send(&migration, &taking.address());
        let text = taking.end().well();
        assert!(
            text.contains("block shm, shared by the source and not sent"),
            "{command}: {text}"
        );
        assert!(!text.contains("not confirmed"), "{command}: {text}");
        if command == "receive" {
            std::fs::remove_dir_all(&out).expect("images");
        }
    }
}

/// Streams whose end is not understood, without a return path, towards a destination that is slow.
#[test]
fn what_cannot_be_followed_is_delivered_to_the_last_byte() {
    // A device whose state has a footer in it, and after that what looks like the end.
    let look_alike = [
        b"\x04\0\0\0\x03\x03dev\0\0\0\0\0\0\0\x01".as_slice(),
        b"\x7e\0\0\0\x03\0\x06\0\0\0\x02{}",
        &[9; 5000],
        b"\x7e\0\0\0\x03",
        END,
    ]
    .concat();
    let ordinary = Shape::default();
    let shapes = [
        // suppress-vmdesc
        (
            Shape {
                end: b"\0",
                ..ordinary
            },
            false,
        ),
        (
            Shape {
                behind_setup: b"\x55\0\0\0\x02what is new",
                ..Shape::default()
            },
            true,
        ),
        (
            Shape {
                end: &look_alike,
                ..Shape::default()
            },
            true,
        ),
        // suppress-vmdesc, and the guest's state ends in no way that is known.
        (
            Shape {
                end: b"\x04\0\0\0\x03\x03dev\0\0\0\0\0\0\0\x01 state",
                ..Shape::default()
            },
            true,
        ),
    ];
    for (shape, is_remarkable) in shapes {
        let migration = long(&shape);
        let folder = tempfile::tempdir().expect("a folder");
        let set_up = Limits {
            main: shape.set_up().len(),
            channel: CHANNEL_START,
        };
        let address = Address::Unix(folder.path().join("destination"));
        let destination = Destination::at(&address, 2, set_up);
        let mut relay = relay(folder.path(), &address, &["--once"]);
        let from = relay.address();
        thread::scope(|scope| {
            scope.spawn(|| support::send(&migration, &from));
            drop(destination.wait("the set-up", |seen| {
                let has_channel = |id| seen.of(Role::Channel(id)).is_some();
                seen.of(Role::Main).is_some() && has_channel(0) && has_channel(1)
            }));
            // The source has written all that it can by now, and has closed what it could.
            a_while();
            destination.limit(Limits::default());
            let seen = destination.wait("everything", |seen| seen.is_over());
            assert!(seen.main().bytes == migration.main);
            for (id, bytes) in (0..).zip(&migration.channels) {
                let channel = seen.of(Role::Channel(id)).expect("a channel");
                assert!(
                    channel.bytes == *bytes,
                    "{} of {}",
                    channel.bytes.len(),
                    bytes.len()
                );
            }
            for connection in &seen.connections {
                assert_eq!(connection.end, Some(End::Closed));
            }
            drop(seen);
            destination.close_all();
        });
        let report = parse(&relay.end().well());
        assert_eq!(report["confirmed"], Value::Null, "{report}");
        let remarks = report["remarks"].as_array().expect("a list");
        assert_eq!(!remarks.is_empty(), is_remarkable, "{report}");
    }
}

/// QEMU up to 8.2 writes an empty packet to each channel at its end, and a destination that has the
/// guest hangs up before.
#[test]
fn a_channel_that_the_destination_closes_early_is_no_failure() {
    let migration = &both()[1];
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let source = Source::begin(&relay.address(), migration);
    drop(destination.wait("all of it", |seen| seen.has_all(migration)));
    destination.close(Role::Channel(1));
    // No pages, and no SYNC.
    let mut empty = Channel::new(1, Method::None).sync().bytes().split_off(64);
    empty[11] = 0;
    let [_, channel] = &source.channels[..] else {
        panic!("two channels")
    };
    write(channel, &empty.repeat(200));
    a_while();
    assert!(!source.main.peer_has_closed(), "the word is still to come");
    destination.say(Role::Main, &SHUT_WELL);
    assert_eq!(source.hears(&SHUT_WELL), [PONG, SHUT_WELL].concat());
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    let ended = relay.end();
    assert!(!ended.stderr.contains("source side"), "{ended:?}");
    assert_eq!(parse(&ended.well())["confirmed"], true);
}

/// Where the nth flush mark of a main channel ends.
fn mark_end(main: &[u8], nth: usize) -> usize {
    let marks = main.windows(FLUSH.len()).enumerate();
    let mut marks = marks.filter(|(_, bytes)| *bytes == FLUSH);
    marks.nth(nth).expect("a mark").0 + FLUSH.len()
}

/// A QEMU that has read a mark waits for the SYNC of every channel, for ever if one does not come.
#[test]
fn no_mark_overtakes_a_sync() {
    for return_path in [false, true] {
        let shape = Shape {
            return_path,
            ..Shape::default()
        };
        let migration = long(&shape);
        let folder = tempfile::tempdir().expect("a folder");
        let set_up = Limits {
            main: shape.set_up().len(),
            channel: CHANNEL_START,
        };
        let address = Address::Unix(folder.path().join("destination"));
        let destination = Destination::at(&address, 2, set_up);
        let mut relay = relay(folder.path(), &address, &["--once"]);
        let from = relay.address();
        let source = Source::dial(&from, 2);
        thread::scope(|scope| {
            for (stream, bytes) in source.channels.iter().zip(&migration.channels) {
                write(stream, &bytes[..64]);
                scope.spawn(move || write(stream, &bytes[64..]));
            }
            write(&source.main, &migration.main);
            drop(destination.wait("the set-up", |seen| {
                let has_all = |id| {
                    let channel = seen.of(Role::Channel(id));
                    channel.is_some_and(|channel| channel.bytes.len() >= CHANNEL_START)
                };
                seen.of(Role::Main).is_some() && has_all(0) && has_all(1)
            }));
            // The source cancels while the destination stands still, and has more to write.
            a_while();
            for stream in source.channels.iter().chain([&source.main]) {
                stream
                    .shutdown(std::net::Shutdown::Both)
                    .expect("a connection");
            }
        });
        drop(source);
        a_while();
        destination.limit(Limits::default());
        let seen = destination.wait("the end", |seen| seen.is_over());
        let second = mark_end(&migration.main, 1);
        assert!(seen.main().bytes.len() >= mark_end(&migration.main, 0));
        assert!(
            seen.main().bytes.len() < second,
            "the second mark, and channels of {:?} bytes",
            seen.connections
                .iter()
                .map(|connection| connection.bytes.len())
                .collect::<Vec<_>>()
        );
        drop(seen);
        destination.close_all();
        fails_with(&relay.end(), &["source side"]);
    }
}

/// It takes its guest back, and so the destination must not start it.
#[test]
fn a_source_that_closes_before_the_word_is_no_success_at_any_relay() {
    let migration = &both()[1];
    for relays in [1, 2] {
        let destination = Destination::at(
            &"tcp:127.0.0.1:0".parse().expect("an address"),
            2,
            Limits::default(),
        );
        let mut next = destination.address.clone();
        let mut running = Vec::new();
        for _ in 0..relays {
            let mut relay = relay_at("tcp:127.0.0.1:0", &next, &["--once"]);
            next = relay.address();
            running.push(relay);
        }
        let source = Source::begin(&next, migration);
        drop(destination.wait("all of it", |seen| seen.has_all(migration)));
        drop(source);
        let seen = destination.wait("the end", |seen| seen.main().end.is_some());
        assert_eq!(
            seen.main().end,
            Some(End::Broken(std::io::ErrorKind::ConnectionReset)),
            "no clean end"
        );
        drop(seen);
        for relay in running {
            let ended = relay.end();
            fails_with(
                &ended,
                &["main channel, source side", "goes on with its guest"],
            );
            assert_eq!(parse(&ended.stdout)["confirmed"], false);
        }
    }
}

#[test]
fn a_destination_with_fewer_channels_holds_the_source_back() {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let migration = short(&shape);
    let folder = tempfile::tempdir().expect("a folder");
    // It has the set-up, and waits for a channel that it is to have and the source has not, or
    // takes fewer than it gets.
    let destination = Destination::new(folder.path(), 2).silent();
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let source = Source::begin(&relay.address(), &migration);
    loop {
        let note = relay.complaint();
        if note.contains("does not begin to load") {
            assert!(
                note.contains("migrate_set_parameter multifd-channels 2"),
                "{note}"
            );
            break;
        }
    }
    let seen = destination.seen();
    // Where the RAM section's first body ends it is held; the section's footer is behind that.
    let footer = b"\x7e\0\0\0\x02".len();
    let set_up = shape.set_up();
    assert_eq!(seen.main().bytes, set_up[..set_up.len() - footer]);
    for id in [0, 1] {
        let channel = seen.of(Role::Channel(id)).expect("a channel");
        assert_eq!(channel.bytes.len(), CHANNEL_START, "its hello and its SYNC");
    }
    drop(seen);
    drop(source);
    fails_with(&relay.end(), &["source side"]);
}

/// What it has lost is waited for there without end, as it accepts all channels before it begins.
#[test]
fn a_channel_that_the_destination_loses_before_it_begins_ends_the_migration() {
    let migration = &both()[1];
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2).silent();
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let source = Source::begin(&relay.address(), migration);
    drop(destination.wait("the second SYNC", |seen| {
        let channel = seen.of(Role::Channel(1));
        channel.is_some_and(|channel| channel.bytes.len() >= CHANNEL_START)
    }));
    destination.close(Role::Channel(1));
    source.wait_for_end();
    fails_with(&relay.end(), &["channel 1, destination side"]);
}

/// Its end was not understood, so only the source's own end shows that nothing more was to come.
#[test]
fn a_destination_that_closes_first_behind_what_could_not_be_followed_is_no_failure() {
    let migration = short(&Shape {
        end: b"\x04\0\0\0\x03\x03dev\0\0\0\0\0\0\0\x01 state",
        ..Shape::default()
    });
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut relay = relay(folder.path(), &destination.address, &["--once"]);
    let source = Source::begin(&relay.address(), &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    destination.close(Role::Main);
    a_while();
    source.finish();
    drop(destination.wait("the channels' end", |seen| seen.is_over()));
    destination.close_all();
    let report = parse(&relay.end().well());
    assert_eq!(report["confirmed"], Value::Null, "{report}");
}

/// The destination's word is on its way to the source, or has been read there: only main can tell
/// which.
#[test]
fn what_breaks_behind_the_destinations_word_does_not_hide_it() {
    let migration = &both()[1];
    for is_read in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let destination = Destination::new(folder.path(), 2);
        let mut relay = relay(folder.path(), &destination.address, &["--once"]);
        let source = Source::begin(&relay.address(), migration);
        drop(destination.wait("all of it", |seen| seen.has_all(migration)));
        if is_read {
            // The first answer is read, so that nothing but the word is behind it.
            source.hears(&PONG);
        }
        destination.say(Role::Main, &SHUT_WELL);
        a_while();
        if is_read {
            source.hears(&SHUT_WELL);
            // A channel breaks with half a packet in it.
            write(&source.channels[1], b"\x11\x22");
        }
        drop(source);
        drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
        destination.close_all();
        let ended = relay.end();
        match is_read {
            true => assert_eq!(parse(&ended.well())["confirmed"], true),
            false => fails_with(&ended, &["the destination has the guest", "at both ends"]),
        }
    }
}
