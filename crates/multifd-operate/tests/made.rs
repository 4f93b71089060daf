//! A made QEMU: what it says is foreign input, and what it does not say ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use multifd_operate::settings::Wish;
use multifd_operate::{Cause, Failure, News, Whereabouts, destination, source};
use multifd_relay::leg::LegAddress;
use multifd_relay::relay::RelayConfig;
use multifd_transport::Cancel;
use serde_json::{Value, json};

/// A monitor that answers commands by `answer`, and closes where that gives nothing. It gives all
/// commands that it got.
struct Made {
    folder: tempfile::TempDir,
    served: JoinHandle<Vec<Value>>,
}

impl Made {
    fn new(mut answer: impl FnMut(&str, &UnixStream) -> Option<Value> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let served = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            say(
                &stream,
                &json!({"QMP": {"version": {"qemu": {"major": 99}}, "new": []}}),
            );
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let name = command["execute"].as_str().unwrap().to_owned();
                let id = command["id"].clone();
                got.push(command);
                match answer(&name, &stream) {
                    Some(returned) => say(&stream, &json!({"return": returned, "id": id})),
                    None => break,
                }
            }
            got
        });
        Self { folder, served }
    }

    fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// Ends it, and returns the commands that it got.
    fn commands(self) -> Vec<Value> {
        // Nothing but the monitor stays in the folder.
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 1);
        ended(self.served)
    }
}

/// What a thread returns that has to end now: the product has closed its connection, or has come.
fn ended<T>(thread: JoinHandle<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !thread.is_finished() {
        assert!(
            Instant::now() < deadline,
            "a connection did not come or end"
        );
        thread::sleep(Duration::from_millis(5));
    }
    thread.join().unwrap()
}

fn say(mut stream: &UnixStream, value: &Value) {
    // The client may have gone.
    let _ = stream.write_all(format!("{value}\r\n").as_bytes());
}

/// What an idle QEMU answers.
fn idle(command: &str, state: &str) -> Value {
    match command {
        "query-status" => json!({"status": state, "running": state == "running", "new": 1}),
        "query-migrate-capabilities" => {
            let all = [
                "multifd",
                "return-path",
                "events",
                "pause-before-switchover",
                "new-one",
            ];
            let all = all.map(|name| json!({"capability": name, "state": false, "new": {}}));
            json!(all)
        }
        "query-migrate-parameters" => json!({"multifd-channels": 2, "multifd-compression": "none",
            "max-bandwidth": 1, "downtime-limit": 300, "new": [{}]}),
        _ => json!({}),
    }
}

/// An address where calls are heard, and nobody answers.
fn nobody() -> LegAddress {
    static LISTENS: OnceLock<(tempfile::TempDir, UnixListener)> = OnceLock::new();
    let (folder, _) = LISTENS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("trunk")).unwrap();
        (folder, listener)
    });
    let address = format!("trunk+unix:{}/trunk", folder.path().display());
    address.parse().unwrap()
}

fn order(qmp: &Path) -> source::Order {
    let config = RelayConfig::new(nobody(), "none".parse().unwrap());
    source::Order::new(qmp.to_owned(), config, Wish::new(4))
}

fn migrate(made: &Made) -> (Failure, Vec<News>) {
    let mut news = Vec::new();
    let mut observe = |one| news.push(one);
    let outcome = source::migrate(&order(&made.qmp()), &Cancel::new(), &mut observe);
    (outcome.unwrap_err(), news)
}

fn names(commands: &[Value]) -> Vec<&str> {
    let names = commands.iter();
    names
        .map(|command| command["execute"].as_str().unwrap())
        .collect()
}

#[test]
fn a_machine_that_cannot_migrate_is_quoted_and_left_alone() {
    let made = Made::new(|command, _| {
        Some(match command {
            "query-migrate" => json!({"blocked-reasons": ["a disk", "a card\u{1b}[2J"]}),
            command => idle(command, "running"),
        })
    });
    let (failure, _) = migrate(&made);
    assert_eq!(failure.guest, Whereabouts::Source);
    let words = failure.to_string();
    assert!(words.contains("cannot migrate: a disk; a card"), "{words}");
    assert!(!words.contains('\u{1b}'), "{words}");
    let commands = made.commands();
    assert!(
        !names(&commands).iter().any(|name| name.contains("set")),
        "{commands:?}"
    );
}

#[test]
fn a_migration_under_way_is_left_alone() {
    for status in ["active", "postcopy-device", "of-next-year"] {
        let made = Made::new(move |command, _| {
            Some(match command {
                "query-migrate" => json!({ "status": status }),
                command => idle(command, "running"),
            })
        });
        let (failure, _) = migrate(&made);
        assert!(matches!(failure.cause, Cause::Busy(_)), "{failure}");
        let commands = made.commands();
        assert!(
            !names(&commands).iter().any(|name| name.contains("set")),
            "{commands:?}"
        );
    }
}

/// Unknown states and events end nothing, QEMU's reason is quoted, and its settings are put back.
#[test]
fn states_of_a_later_release_are_followed() {
    let mut asked = 0;
    let made = Made::new(move |command, stream| {
        say(stream, &json!({"event": "OF_NEXT_YEAR", "data": [7]}));
        Some(match command {
            "query-migrate" => {
                asked += 1;
                match asked {
                    1 => json!({}),
                    2 => json!({"status": "warming-up", "remaining": {"now": 1}}),
                    3 => json!({"status": "failing", "ram": "none"}),
                    _ => json!({"status": "failed", "error-desc": "no such luck"}),
                }
            }
            command => idle(command, "running"),
        })
    });
    let (failure, news) = migrate(&made);
    assert_eq!(failure.guest, Whereabouts::Source);
    let words = failure.to_string();
    assert!(
        words.starts_with("the source QEMU says: no such luck"),
        "{words}"
    );
    assert!(
        words.ends_with("The guest runs on at the source"),
        "{words}"
    );
    for status in ["warming-up", "failing", "failed"] {
        assert!(news.contains(&News::Status(status.to_owned())), "{news:?}");
    }
    let commands = made.commands();
    let set: Vec<_> = commands
        .iter()
        .filter(|command| command["execute"] == "migrate-set-parameters")
        .map(|command| command["arguments"]["multifd-channels"].clone())
        .collect();
    assert_eq!(set, [4, 2], "{commands:?}");
    let set = names(&commands)
        .iter()
        .filter(|name| **name == "migrate-set-capabilities")
        .count();
    assert_eq!(set, 2, "{commands:?}");
}

#[test]
fn a_qemu_that_goes_in_the_middle_leaves_it_open_who_has_the_guest() {
    let mut asked = 0;
    let made = Made::new(move |command, _| {
        asked += i32::from(command == "query-migrate");
        match asked {
            3 => None,
            2 if command == "query-migrate" => Some(json!({"status": "device"})),
            _ => Some(idle(command, "running")),
        }
    });
    let (failure, _) = migrate(&made);
    assert_eq!(failure.guest, Whereabouts::Unknown, "{failure}");
    assert!(
        failure.to_string().contains("Look at both QEMUs"),
        "{failure}"
    );
    made.commands();
}

/// A wish to cancel is passed on, and waited for.
#[test]
fn a_wish_to_cancel_reaches_qemu() {
    let mut cancelled = false;
    let mut begun = false;
    let made = Made::new(move |command, _| {
        cancelled |= command == "migrate_cancel";
        begun |= command == "migrate";
        Some(match command {
            "query-migrate" if cancelled => json!({"status": "cancelled"}),
            "query-migrate" if begun => json!({"status": "active"}),
            command => idle(command, "running"),
        })
    });
    let cancel = Cancel::new();
    let wish = cancel.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        wish.cancel();
    });
    let failure = source::migrate(&order(&made.qmp()), &cancel, &mut |_| {}).unwrap_err();
    assert!(failure.cancelled, "{failure}");
    assert_eq!(failure.guest, Whereabouts::Source);
    let commands = made.commands();
    let cancels = names(&commands)
        .iter()
        .filter(|name| **name == "migrate_cancel")
        .count();
    assert_eq!(cancels, 1, "{commands:?}");
}

/// A destination that cannot make its socket is quoted, and its settings are put back.
#[test]
fn a_destination_that_refuses_to_listen_is_as_before() {
    let made = Made::new(|command, stream| match command {
        "migrate-incoming" => {
            say(stream, &json!({"error": {"desc": "Permission denied"}}));
            // Its own answer comes too late.
            Some(json!({}))
        }
        command => Some(idle(command, "inmigrate")),
    });
    let listen: LegAddress = "trunk+tcp:127.0.0.1:0".parse().unwrap();
    let config = RelayConfig::new(listen.clone(), "none".parse().unwrap());
    let order = destination::Order::new(made.qmp(), listen, config, Wish::new(4));
    let failure = destination::accept(&order, &Cancel::new(), &mut |_| {}).unwrap_err();
    let words = failure.to_string();
    assert!(
        words.contains("refuses `migrate-incoming`: Permission denied"),
        "{words}"
    );
    let commands = made.commands();
    let last = commands.last().unwrap();
    assert_eq!(last["execute"], "migrate-set-capabilities", "{commands:?}");
    assert_eq!(last["arguments"]["capabilities"][0]["state"], false);
}

/// QEMU waits before its switch-over until it is told to go on. A wish to cancel that comes after
/// that is not passed on: the guest could run at both ends.
#[test]
fn a_guest_that_was_let_go_is_not_called_back() {
    let cancel = Cancel::new();
    let wish = cancel.clone();
    let mut status = "setup";
    let mut asked = 0;
    let made = Made::new(move |command, stream| {
        match command {
            "migrate" => {
                status = "pre-switchover";
                say(
                    stream,
                    &json!({"event": "MIGRATION", "data": {"status": status}}),
                );
            }
            "migrate-continue" => {
                status = "device";
                wish.cancel();
            }
            "query-migrate" if status == "device" => asked += 1,
            _ => {}
        }
        Some(match command {
            "query-migrate" if status == "setup" => json!({}),
            "query-migrate" if asked > 3 => json!({"status": "failed"}),
            "query-migrate" => json!({ "status": status }),
            command => idle(command, "running"),
        })
    });
    let mut news = Vec::new();
    let mut observe = |one| news.push(one);
    let failure = source::migrate(&order(&made.qmp()), &cancel, &mut observe).unwrap_err();
    assert!(!failure.cancelled, "{failure}");
    let is_late =
        |one: &News| matches!(one, News::Note(text) if text.contains("cannot be called back"));
    assert!(news.iter().any(is_late), "{news:?}");
    let commands = made.commands();
    let names = names(&commands);
    assert!(names.contains(&"migrate-continue"), "{names:?}");
    assert!(!names.contains(&"migrate_cancel"), "{names:?}");
}

/// QEMU asks for another migration than that of this command, or never came to its relay.
#[test]
fn a_migration_that_did_not_come_through_here_is_no_success() {
    let mut begun = false;
    let made = Made::new(move |command, _| {
        begun |= command == "migrate";
        Some(match command {
            "query-migrate" if begun => json!({"status": "completed", "total-time": 1}),
            command => idle(command, "running"),
        })
    });
    let (failure, _) = migrate(&made);
    assert_eq!(failure.guest, Whereabouts::Unknown, "{failure}");
    assert!(matches!(failure.cause, Cause::NotOurs { .. }), "{failure}");
    made.commands();
}

/// Another client has begun a migration meanwhile, and needs the settings as they are.
#[test]
fn settings_of_another_clients_migration_are_left_alone() {
    let mut refused = false;
    let made = Made::new(move |command, stream| {
        if command == "migrate" {
            refused = true;
            say(stream, &json!({"error": {"desc": "one is under way"}}));
        }
        Some(match command {
            "query-migrate" if refused => json!({"status": "active"}),
            command => idle(command, "running"),
        })
    });
    let (failure, news) = migrate(&made);
    assert_eq!(failure.guest, Whereabouts::Source, "{failure}");
    let is_told = |one: &News| matches!(one, News::Note(text) if text.contains("put back"));
    assert!(news.iter().any(is_told), "{news:?}");
    let commands = made.commands();
    let sets = names(&commands).into_iter();
    let sets = sets.filter(|name| name.contains("-set-")).count();
    assert_eq!(sets, 2, "{commands:?}");
}

/// The main channel of a guest of one page. With a return path it asks for the destination's word.
fn guest(return_path: bool) -> Vec<u8> {
    let end_of_section = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    let asks: &[u8] = match return_path {
        true => b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01",
        false => b"",
    };
    [
        b"QEVM\0\0\0\x03\x07\0\0\0\x04none".as_slice(),
        asks,
        b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\x10\x04",
        b"\x06pc.ram\0\0\0\0\0\0\x10\0",
        end_of_section,
        b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x08\x06pc.ram",
        &[7; 4096],
        end_of_section,
        b"\0\x06\0\0\0\x02{}",
    ]
    .concat()
}

/// A source that sends its guest when it is told to, to a destination that takes it and says so.
/// `answer` is asked about all but that, with whether the word has come. If it is `late`, the source
/// says that it is done before the relay gets its connection.
fn moves(
    return_path: bool,
    late: bool,
    mut answer: impl FnMut(&str, bool) -> Option<Value> + Send + 'static,
) -> (Made, source::Order, JoinHandle<()>) {
    let there = tempfile::tempdir().unwrap();
    let socket = there.path().join("destination");
    let listener = UnixListener::bind(&socket).unwrap();
    let destination = thread::spawn(move || {
        let _folder = there;
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = vec![0; guest(return_path).len()];
        if return_path {
            stream.write_all(b"\0\x02\0\x04\0\0\0\x01").unwrap();
        }
        stream.read_exact(&mut all).unwrap();
        if return_path {
            stream.write_all(b"\0\x01\0\x04\0\0\0\0").unwrap();
        }
        // Until the relay closes.
        let _ = stream.read(&mut [0]);
    });
    let has_word = Arc::new(AtomicBool::new(false));
    let made = Made::new(move |command, stream| {
        if command == "migrate" {
            // The relay's socket is in the only folder beside the monitor's.
            let folder = stream.local_addr().unwrap();
            let folder = folder.as_pathname().unwrap().parent().unwrap().to_owned();
            let entries = std::fs::read_dir(folder).unwrap();
            let mut entries = entries.map(|entry| entry.unwrap().path());
            let beside = entries.find(|path| path.is_dir()).unwrap().join("qemu");
            let has_word = Arc::clone(&has_word);
            thread::spawn(move || {
                if late {
                    has_word.store(true, Ordering::SeqCst);
                    thread::sleep(Duration::from_secs(2));
                }
                let mut main = UnixStream::connect(beside).unwrap();
                main.write_all(&guest(return_path)).unwrap();
                if return_path {
                    main.read_exact(&mut [0; 16]).unwrap();
                }
                has_word.store(true, Ordering::SeqCst);
            });
            return Some(json!({}));
        }
        answer(command, has_word.load(Ordering::SeqCst))
    });
    let to: LegAddress = format!("unix:{}", socket.display()).parse().unwrap();
    let config = RelayConfig::new(to, "none".parse().unwrap());
    let order = source::Order::new(made.qmp(), config, Wish::new(4));
    (made, order, destination)
}

/// A program ends the source as soon as it has nothing to do any more.
#[test]
fn a_source_that_goes_right_after_its_migration_has_moved() {
    let mut said = false;
    let (made, order, destination) = moves(true, false, move |command, has_word| match command {
        "query-migrate" if said => None,
        "query-migrate" if has_word => {
            said = true;
            Some(json!({"status": "completed"}))
        }
        "query-migrate" => Some(json!({})),
        command => Some(idle(command, "running")),
    });
    let moved = source::migrate(&order, &Cancel::new(), &mut |_| {}).unwrap();
    assert_eq!(moved.report.unwrap().confirmed, Some(true));
    ended(destination);
    made.commands();
}

/// Another client has switched the return path off. The source says that it is done, and nobody
/// knows whether the destination is.
#[test]
fn a_source_that_is_done_without_a_word_is_no_success() {
    let (made, order, destination) = moves(false, false, |command, has_sent| {
        Some(match command {
            "query-migrate" if has_sent => json!({"status": "completed", "total-time": 1}),
            "query-migrate" => json!({}),
            command => idle(command, "running"),
        })
    });
    let failure = source::migrate(&order, &Cancel::new(), &mut |_| {}).unwrap_err();
    assert_eq!(failure.guest, Whereabouts::Unknown, "{failure}");
    ended(destination);
    made.commands();
}

/// Without a return path a source is done as soon as it has written everything. On a machine with
/// too much to do, the relay may not have begun then: all of a small guest waits for it.
#[test]
fn a_guest_that_waits_for_a_late_relay_is_not_lost() {
    let (made, order, destination) = moves(false, true, |command, is_done| {
        Some(match command {
            "query-migrate" if is_done => json!({"status": "completed", "total-time": 1}),
            "query-migrate" => json!({}),
            command => idle(command, "running"),
        })
    });
    let failure = source::migrate(&order, &Cancel::new(), &mut |_| {}).unwrap_err();
    assert_eq!(failure.guest, Whereabouts::Unknown, "{failure}");
    // It has the whole guest.
    ended(destination);
    made.commands();
}

/// The destination runs its guest, and the source says that its migration has failed.
#[test]
fn a_failure_behind_the_destinations_word_may_leave_two_guests() {
    let (made, order, destination) = moves(true, false, |command, has_word| {
        Some(match command {
            "query-migrate" if has_word => json!({"status": "failed", "error-desc": "late"}),
            "query-migrate" => json!({}),
            command => idle(command, "running"),
        })
    });
    let failure = source::migrate(&order, &Cancel::new(), &mut |_| {}).unwrap_err();
    assert_eq!(failure.guest, Whereabouts::Unknown, "{failure}");
    let words = failure.to_string();
    assert!(words.contains("the destination has the guest"), "{words}");
    ended(destination);
    made.commands();
}

/// The monitor's connection breaks while QEMU waits before its switch-over: its guest would stand
/// still for ever. QEMU serves its next client.
#[test]
fn a_monitor_whose_connection_broke_is_connected_to_again() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("qmp");
    let listener = UnixListener::bind(&qmp).unwrap();
    let served = thread::spawn(move || {
        let mut status = None;
        let mut clients = 0;
        while clients < 2 {
            let (stream, _) = listener.accept().unwrap();
            clients += 1;
            say(&stream, &json!({"QMP": {}}));
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let name = command["execute"].as_str().unwrap();
                let returned = match name {
                    "query-migrate" => match status {
                        Some(status) => json!({"status": status, "error-desc": "enough"}),
                        None => json!({}),
                    },
                    _ => idle(name, "running"),
                };
                say(&stream, &json!({"return": returned, "id": command["id"]}));
                match name {
                    "migrate" => {
                        status = Some("pre-switchover");
                        break;
                    }
                    "migrate-continue" => status = Some("failed"),
                    _ => {}
                }
            }
        }
        status
    });
    let mut news = Vec::new();
    let mut observe = |one| news.push(one);
    let failure = source::migrate(&order(&qmp), &Cancel::new(), &mut observe).unwrap_err();
    let words = failure.to_string();
    assert!(words.contains("The guest runs on at the source"), "{words}");
    let is_told = |one: &News| matches!(one, News::Note(text) if text.contains("connected again"));
    assert!(news.iter().any(is_told), "{news:?}");
    let is_lost = |one: &News| matches!(one, News::Note(text) if text.contains("put back"));
    assert!(!news.iter().any(is_lost), "{news:?}");
    assert_eq!(ended(served), Some("failed"));
}
