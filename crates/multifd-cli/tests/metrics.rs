//! `multifd relay --metrics`: the counters, the health, and clients that misbehave.

mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream};
use multifd_wire::Method;
use rustix::process::{Pid, Signal, kill_process};
use support::made::{Channel, Shape, short};
use support::peers::{Destination, PONG, Role, SHUT_WELL, Source, dial, end_of, write};
use support::{Migration, Multifd, files};

/// A monitor that answers later than this would be taken for dead.
const SOON: Duration = Duration::from_secs(10);

fn ordinary() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

/// A relay, where it listens, and where its metrics are.
struct Served {
    relay: Multifd,
    address: Address,
    metrics: Address,
}

fn relay(folder: &Path, metrics: &str, more: &[&str]) -> Served {
    let connect = format!("unix:{}", folder.join("destination").display());
    relay_to(&connect, metrics, more)
}

fn relay_to(connect: &str, metrics: &str, more: &[&str]) -> Served {
    let listen = ["relay", "--json", "--listen", "tcp:127.0.0.1:0"];
    let way = ["--connect", connect, "--metrics", metrics];
    let mut relay = Multifd::start([&listen, &way, more].concat());
    let metrics = loop {
        let line = relay.complaint();
        if let Some((_, address)) = line.split_once("metrics are at ") {
            break address.parse().expect("an address");
        }
    };
    Served {
        address: relay.address(),
        relay,
        metrics,
    }
}

/// Over TCP and over a unix socket in a folder of its own, which the sandbox has to know.
fn places(folder: &Path) -> [String; 2] {
    let own = folder.join("own");
    std::fs::create_dir(&own).expect("a folder");
    let unix = format!("unix:{}", own.join("metrics").display());
    ["tcp:127.0.0.1:0".to_owned(), unix]
}

impl Served {
    /// The status and the body of an answer.
    fn answer(&self, path: &str) -> (u16, String) {
        let stream = dial(&self.metrics);
        let begun = Instant::now();
        write(
            &stream,
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
        );
        let answer = all_of(&stream);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let length = format!("Content-Length: {}\r\n", body.len());
        assert!(head.contains(&length), "{head}");
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|head| head.get(..3));
        (
            status.expect("a status").parse().expect("a number"),
            body.to_owned(),
        )
    }

    fn counters(&self) -> BTreeMap<String, f64> {
        let (status, body) = self.answer("/metrics");
        assert_eq!(status, 200);
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let name = name.strip_prefix("multifd_").expect("our prefix");
            (name.to_owned(), value.parse().expect("a number"))
        };
        samples.map(sample).collect()
    }

    /// Waits until a counter has a value. Counters are fed beside the migrations.
    fn wait(&self, name: &str, value: f64) -> BTreeMap<String, f64> {
        let begun = Instant::now();
        loop {
            let counters = self.counters();
            if counters.get(name) == Some(&value) {
                return counters;
            }
            assert!(
                begun.elapsed() < SOON,
                "{name} is not {value}: {counters:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self) {
        let pid = Pid::from_raw(self.relay.id() as i32).expect("a process");
        kill_process(pid, Signal::TERM).expect("it runs");
    }
}

fn all_of(stream: &Stream) -> String {
    let mut bytes = Vec::new();
    (&mut &*stream).read_to_end(&mut bytes).expect("an answer");
    String::from_utf8(bytes).expect("text")
}

/// Sends a migration, and waits for its end.
fn goes_through(served: &mut Served, destination: &Destination) {
    let source = Source::begin(&served.address, &ordinary());
    drop(destination.wait("all of it", |seen| seen.has_all(&ordinary())));
    destination.say(Role::Main, &SHUT_WELL);
    source.hears(&SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    destination.forget();
}

#[test]
fn a_migration_moves_the_counters_and_a_stranger_too() {
    let folder = tempfile::tempdir().expect("a folder");
    for place in places(folder.path()) {
        let destination = Destination::new(folder.path(), 2);
        let mut served = relay(folder.path(), &place, &[]);
        let before = served.counters();
        assert_eq!(before["migrations_total{outcome=\"delivered\"}"], 0.0);
        assert_eq!(before["build_info{version=\"0.1.0\"}"], 1.0);
        goes_through(&mut served, &destination);
        let report: serde_json::Value =
            serde_json::from_str(&served.relay.result()).expect("a report");
        let after = served.wait("migrations_total{outcome=\"delivered\"}", 1.0);
        for (key, name) in [
            ("pages", "pages_total"),
            ("zero_pages", "zero_pages_total"),
            ("bytes_in", "received_bytes_total"),
            ("bytes_out", "sent_bytes_total"),
        ] {
            let told = report[key].as_f64().expect("a number");
            assert!(after[name] == told && told > 0.0, "{name}: {after:?}");
        }
        assert!(after["migration_seconds_total"] > 0.0, "{after:?}");
        assert_eq!(after["migrations_running"], 0.0);

        // The source ends the second one.
        let source = Source::begin(&served.address, &ordinary());
        drop(destination.wait("all of it", |seen| seen.has_all(&ordinary())));
        assert_eq!(source.hears(&PONG), PONG);
        let running = served.wait("migrations_running", 1.0);
        assert_eq!(running["migrations_total{outcome=\"failed\"}"], 0.0);
        drop(source);
        let ended = served.wait("migrations_running", 0.0);
        let ends = ["delivered", "unconfirmed", "failed", "cancelled"];
        let ends = ends.map(|end| ended[&format!("migrations_total{{outcome=\"{end}\"}}")]);
        assert_eq!(ends, [1.0, 0.0, 1.0, 0.0], "it may have arrived");
        for (name, value) in &after {
            assert!(ended[name] >= *value, "{name} goes down");
        }

        let stranger = dial(&served.address);
        write(&stranger, b"SSH-2.0-OpenSSH_9.9\r\n");
        served.wait("passed_over_connections_total", 1.0);
        let (_, text) = served.answer("/metrics");
        for word in ["tcp:", "unix:", "127.0.0.1", "pid", "/"] {
            assert!(!text.contains(word), "{word}: {text}");
        }

        served.signal();
        served.relay.end().well();
        drop(destination);
        let left = files(folder.path());
        assert!(
            left.iter()
                .all(|name| name == "own" || name == "destination")
        );
        assert!(files(&folder.path().join("own")).is_empty());
        let _ = std::fs::remove_file(folder.path().join("destination"));
    }
}

#[test]
fn health_changes_once_no_more_migrations_are_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let mut served = relay(folder.path(), "tcp:localhost:0", &["--drain", "60"]);
    assert_eq!(served.answer("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(served.answer("/").0, 404);
    let source = Source::begin(&served.address, &ordinary());
    drop(destination.wait("all of it", |seen| seen.has_all(&ordinary())));
    assert_eq!(source.hears(&PONG), PONG);
    served.signal();
    while !served.relay.complaint().contains("those under way (1)") {}
    assert_eq!(served.answer("/healthz"), (503, "draining\n".to_owned()));
    assert_eq!(served.counters()["migrations_running"], 1.0);
    destination.say(Role::Main, &SHUT_WELL);
    assert_eq!(source.hears(&SHUT_WELL), SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    served.relay.end().well();
}

/// A migration that sends a page again.
fn again() -> Migration {
    let shape = Shape {
        return_path: true,
        ..Shape::default()
    };
    let first = Channel::new(0, Method::None).sync();
    let first = first.pages(&[(0, 1), (4096, 2)], &[8192]).sync();
    let second = Channel::new(1, Method::None).sync();
    let second = second.pages(&[(12288, 3)], &[16384, 20480]).sync();
    Migration {
        main: shape.bytes(2),
        channels: vec![
            first.pages(&[(0, 1), (4096, 2)], &[]).sync().bytes(),
            second.sync().bytes(),
        ],
        return_path: true,
        closed: None,
    }
}

#[test]
fn differences_and_the_memory_for_them_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let destination = Destination::new(folder.path(), 2);
    let to = format!("unix:{}", folder.path().join("destination").display());
    let trunk = format!("trunk+unix:{}", folder.path().join("trunk").display());
    let mut far = Multifd::start(["relay", "--listen", &trunk, "--connect", &to]);
    while !far.complaint().contains("listening on") {}
    let more = ["--delta-memory", "64M", "--drain", "1"];
    let mut near = relay_to(&trunk, "tcp:127.0.0.1:0", &more);
    let migration = again();
    let source = Source::begin(&near.address, &migration);
    drop(destination.wait("all of it", |seen| seen.has_all(&migration)));
    let running = near.counters();
    assert_eq!(running["delta_memory_limit_bytes"], f64::from(64 << 20));
    assert!(running["delta_memory_used_bytes"] > 0.0, "{running:?}");
    destination.say(Role::Main, &SHUT_WELL);
    source.hears(&SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    let report: serde_json::Value = serde_json::from_str(&near.relay.result()).expect("a report");
    let ended = near.wait("migrations_total{outcome=\"delivered\"}", 1.0);
    for (key, name) in [
        ("pages", "difference_pages_total"),
        ("page_bytes", "difference_page_bytes_total"),
        ("difference_bytes", "difference_bytes_total"),
    ] {
        let told = report["differences"][key].as_f64();
        assert_eq!(told, Some(ended[name]), "{report}");
    }
    assert!(ended["difference_pages_total"] > 0.0, "{report}");
    near.wait("delta_memory_used_bytes", 0.0);
}

#[test]
fn clients_that_misbehave_stop_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    for place in places(folder.path()) {
        let destination = Destination::new(folder.path(), 2);
        let mut served = relay(folder.path(), &place, &[]);
        // One says nothing, and is closed.
        let silent = dial(&served.metrics);
        let begun = Instant::now();
        end_of(&silent);
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(1) && took < SOON, "{took:?}");
        // One says so much that its answer may get lost.
        let endless = dial(&served.metrics);
        write(&endless, &[b'x'; 1 << 20]);
        end_of(&endless);
        // One says a bit too much, and is told so.
        let long = dial(&served.metrics);
        write(&long, &[b'x'; 4097]);
        assert!(all_of(&long).starts_with("HTTP/1.1 431 "));
        let odd = dial(&served.metrics);
        write(&odd, b"QEVM\r\n\r\n");
        assert!(all_of(&odd).starts_with("HTTP/1.1 400 "));
        // Many come at once, and stay.
        let crowd: Vec<_> = (0..50).map(|_| dial(&served.metrics)).collect();
        let begun = Instant::now();
        served.counters();
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(2),
            "the crowd is waited for: {took:?}"
        );
        goes_through(&mut served, &destination);
        served.wait("migrations_total{outcome=\"delivered\"}", 1.0);
        drop(crowd);
        // Many monitors at once are all answered.
        let monitors: Vec<_> = (0..50)
            .map(|_| {
                let monitor = dial(&served.metrics);
                write(&monitor, b"GET /healthz HTTP/1.0\r\n\r\n");
                monitor
            })
            .collect();
        let answers = monitors
            .iter()
            .filter(|monitor| all_of(monitor).ends_with("ok\n"));
        assert_eq!(answers.count(), 50);
        served.signal();
        served.relay.end().well();
        drop(destination);
        let _ = std::fs::remove_file(folder.path().join("destination"));
    }
}

#[test]
fn other_hosts_are_not_served() {
    for place in ["tcp::9190", "tcp:0.0.0.0:9190", "tcp:192.0.2.1:9190"] {
        let way = [
            "relay",
            "--listen",
            "tcp:127.0.0.1:0",
            "--connect",
            "unix:/a",
        ];
        let ended = Multifd::start([&way[..], &["--metrics", place]].concat()).end();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains("only loopback or unix"), "{ended:?}");
    }
}
