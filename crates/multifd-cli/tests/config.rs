//! `relay --config`: options from a file.

mod support;

use std::fs;
use std::path::Path;

use multifd_transport::Address;
use serde_json::Value;
use support::made::{Shape, short};
use support::peers::{Destination, Limits, Role, SHUT_WELL, Source};
use support::{Migration, Multifd};

fn unix(folder: &Path, name: &str) -> Address {
    Address::Unix(folder.join(name))
}

fn migration() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

/// The relay listens at `from`, and what comes there arrives at `to`.
fn goes_through(relay: &mut Multifd, from: &Address, to: &Destination) {
    let migration = migration();
    let source = Source::begin(from, &migration);
    drop(to.wait("all of it", |seen| seen.has_all(&migration)));
    to.say(Role::Main, &SHUT_WELL);
    assert!(source.hears(&SHUT_WELL).ends_with(&SHUT_WELL));
    source.finish();
    drop(to.wait("the end of main", |seen| seen.main().end.is_some()));
    // It closes, as a QEMU does: until then the relay waits.
    to.forget();
    let report: Value = serde_json::from_str(&relay.result()).expect("a report");
    assert_eq!(report["confirmed"], true, "{report}");
    assert_eq!(report["route"], from.to_string(), "{report}");
}

#[test]
fn options_stand_in_a_file_and_the_command_line_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let file = folder.join("relay.toml");
    let [x, y, z] =
        ["x", "y", "z"].map(|name| Destination::at(&unix(folder, name), 2, Limits::default()));
    let route = |from: &str, to: &Destination| format!("{}={}", unix(folder, from), to.address);
    let text = format!(
        "# Two routes.\njson = true\nmode = 660\nmax-rate = \"1gbit\"\nroute = [\n  '{}',\n  '{}',\n]\n",
        route("a", &x),
        route("b", &y)
    );
    fs::write(&file, text).expect("a file");
    let config = format!("--config={}", file.display());

    let mut relay = Multifd::start(["relay", &config]);
    for (from, to) in [("a", &x), ("b", &y)] {
        let from = unix(folder, from);
        let listening = format!("multifd: listening on {from}, for {}", to.address);
        assert_eq!(relay.complaint(), listening);
    }
    goes_through(&mut relay, &unix(folder, "a"), &x);
    goes_through(&mut relay, &unix(folder, "b"), &y);
    drop(relay);

    // Its route replaces both of the file, wherever the file is named.
    let c = route("c", &z);
    for args in [["--route", &c, &config], [&config, "--route", &c]] {
        let mut relay = Multifd::start([&["relay"], &args[..]].concat());
        let listening = format!("multifd: listening on {}", unix(folder, "c"));
        assert_eq!(relay.complaint(), listening);
    }

    // Routes may stay in a file of their own.
    let routes = folder.join("out.routes");
    let lines = format!("# A route.\n{}\n", route("d", &z));
    fs::write(&routes, lines).expect("a file");
    let text = format!("json = true\nroutes = '{}'\n", routes.display());
    fs::write(&file, text).expect("a file");
    let mut relay = Multifd::start(["relay", &config]);
    drop(relay.complaint());
    goes_through(&mut relay, &unix(folder, "d"), &z);
}

#[test]
fn a_fault_of_the_file_has_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("relay.toml");
    let name = file.display().to_string();
    for (text, words) in [
        (
            "listen = 'unix:a'\nconect = 'unix:b'",
            ", line 2: `conect` is no option of `multifd relay`; it has accel,",
        ),
        (
            "listen = 'a'",
            ", line 1: invalid value 'a' for '--listen <LEG>': ",
        ),
        (
            "\n\ndrain = [1]",
            ", line 3: `drain` takes a string or a number, and this is a list",
        ),
        ("listen = 'unix:a", ", line 1: "),
    ] {
        fs::write(&file, text).expect("a file");
        let ended = Multifd::start(["relay", "--config", &name]).end();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        let wanted = format!("error: {name}{words}");
        assert!(ended.stderr.starts_with(&wanted), "{wanted}: {ended:?}");
    }
    // What is missing is missed as on a command line.
    fs::write(&file, "listen = 'unix:a'").expect("a file");
    let ended = Multifd::start(["relay", "--config", &name]).end();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("--connect <LEG>"), "{ended:?}");
}
