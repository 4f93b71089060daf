//! A made QEMU: what it says is foreign input, and what it does not say ends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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
        self.served.join().unwrap()
    }
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

fn order(qmp: &Path) -> source::Order {
    let nobody: LegAddress = "trunk+unix:/no/such/trunk".parse().unwrap();
    let config = RelayConfig::new(nobody, "none".parse().unwrap());
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
