//! `multifd-bench plan`, with short measurements.

mod support;

use std::process::Command;

use multifd_bench::guests::{Guest, Kind, Spec};
use serde_json::Value;
use support::bench;

fn plan(options: &[&str]) -> Value {
    let printed = bench([&["plan", "--json", "--cpus", "2"], options].concat());
    serde_json::from_str(&printed.end().well()).expect("JSON")
}

fn row<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let rows = plan["candidates"].as_array().expect("rows");
    let mut rows = rows.iter();
    rows.find(|row| {
        row["name"]
            .as_str()
            .is_some_and(|found| found.starts_with(name))
    })
    .unwrap_or_else(|| panic!("no {name}: {plan}"))
}

const GUEST: [&str; 6] = ["--memory", "1G", "--used", "512M", "--link", "100mbit"];

#[test]
fn on_a_slow_link_compression_is_best() {
    let plan = plan(&[&GUEST[..], &["--dirty-rate", "1000"]].concat());
    let seconds = |name| {
        row(&plan, name)["prediction"]["total_s"]
            .as_f64()
            .expect("a number")
    };
    // 537 MB at 11.95 MB/s, and then the pages that the guest writes meanwhile, at a third of this
    // rate.
    let plain = seconds("none");
    assert!((60.0..75.0).contains(&plain), "{plain}");
    assert!(seconds("zstd") < plain * 0.6, "{plan}");
    assert_eq!(row(&plan, "none")["prediction"]["limit"], "link");
    assert!(plan["best"] != "none", "{plan}");
    let why = plan["why"].as_str().expect("words");
    assert!(why.contains("The link is the limit."), "{why}");
}

#[test]
fn a_plan_that_does_not_converge_names_a_way_out() {
    let fast = [&GUEST[..], &["--dirty-rate", "100000"]].concat();
    let plan = plan(&[&fast[..], &["--method", "none,zstd", "--delta"]].concat());
    assert_eq!(row(&plan, "none")["prediction"]["converges"], false);
    let rate = row(&plan, "none")["highest_dirty_rate"]
        .as_f64()
        .expect("a rate");
    assert!((2500.0..2950.0).contains(&rate), "{rate}");
    // On this slow link, whatever the speed of the processors. `None` is no limit.
    let differences = row(&plan, "zstd + differences")["highest_dirty_rate"].as_f64();
    assert!(differences.is_none_or(|more| more > rate * 1.5), "{plan}");

    let printed = bench([&["plan", "--cpus", "2", "--method", "none"][..], &fast].concat());
    let printed = printed.end().well();
    assert!(
        printed.contains("never") && printed.contains("No way converges."),
        "{printed}"
    );
}

#[test]
fn a_running_guest_is_measured_and_goes_on() {
    let spec = Spec {
        rate: 100_000,
        ..Spec::new(Kind::Redis, 192 << 20)
    };
    let program = env!("CARGO_BIN_EXE_multifd-bench");
    let mut guest = Guest::start(Command::new(program).arg("guest"), &spec).expect("a guest");
    let pid = guest.pid().to_string();
    let from = [
        "plan", "--json", "--cpus", "2", "--from", &pid, "--for", "1",
    ];
    let options = ["--link", "1gbit", "--method", "none"];
    let ended = bench([&from[..], &options].concat()).end();
    if !ended.status.success() {
        // Without the right to read, the message has to name a remedy.
        assert!(ended.stderr.contains("ptrace_scope"), "{ended:?}");
        qemu_lab::not_run("the right to read another process's memory");
        return;
    }
    let plan: Value = serde_json::from_str(&ended.well()).expect("JSON");
    let number = |name: &str| plan[name].as_f64().expect("a number");
    assert_eq!(number("memory_pages"), 49_152.0);
    let used = number("used_pages") / number("memory_pages");
    assert!((0.25..0.45).contains(&used), "{used}");
    assert!(number("dirty_rate") > 100.0, "{plan}");
    let before = guest.pause().expect("a guest");
    assert!(before > 0);
}

#[test]
fn missing_and_wrong_options_are_reported() {
    for (options, says) in [
        (&["--dirty-rate", "1"][..], "--memory"),
        (&["--memory", "1G"], "--dirty-rate"),
        (&["--from", "0"], "is it running?"),
        (&["--from", "/no/such/socket"], "cannot talk to the monitor"),
        (&["--method", "lz4"], "methods are none, zlib"),
        (
            &["--memory", "1G", "--dirty-rate", "1", "--pages", "/no/file"],
            "cannot read pages",
        ),
        (&["--cpus", "0"], "a number from"),
    ] {
        let ended = bench([&["plan"], options].concat()).end();
        assert!(!ended.status.success(), "{options:?}");
        assert!(ended.stderr.contains(says), "{options:?}: {}", ended.stderr);
    }
}

#[test]
fn published_rows_are_compared() {
    let printed = bench(["plan", "--published"]).end().well();
    assert_eq!(
        printed
            .lines()
            .filter(|line| line.starts_with("| "))
            .count(),
        14,
        "{printed}"
    );
    assert!(printed.contains("do not tell"), "{printed}");
}
