//! `multifd-bench migrate`, with guests too small to measure anything.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::bench;
use testkit::process::DEADLINE;

const TINY: [&str; 7] = [
    "migrate",
    "--memory",
    "2M",
    "--runs",
    "2",
    "--channels",
    "1,3",
];

#[test]
fn the_table_has_every_mode_and_names_missing_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (json, report) = (path("b.json"), path("b.html"));
    let options = [
        "--workload",
        "idle,redis",
        "--modes",
        "zlib,zlib+software,zstd+qpl,none",
    ];
    let files = ["--json", &json, "--report", &report];
    let printed = bench([&TINY[..], &options, &files].concat()).end().well();
    assert!(
        printed.starts_with(|c: char| c.is_ascii_digit()),
        "{printed}"
    );
    assert!(
        printed.contains("guests of 2.0 MiB; tcp on the loopback; means of 2 runs"),
        "{printed}"
    );
    let rows: Vec<_> = printed
        .lines()
        .filter(|line| line.starts_with("| 1 |") || line.starts_with("| 3 |"))
        .collect();
    assert_eq!(rows.len(), 2 * 2 * 4, "{printed}");
    for row in &rows {
        assert_eq!(
            row.matches(" | ").count() + row.matches("| |").count(),
            10,
            "{row}"
        );
        assert_eq!(
            row.contains("libqpl has no zstd"),
            row.contains("zstd+qpl"),
            "{row}"
        );
        assert_eq!(
            row.contains("| 0 of 2 |"),
            !row.contains("zstd+qpl"),
            "{row}"
        );
    }

    let text = fs::read_to_string(&json).expect("a file");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let rows = value["rows"].as_array().expect("an array");
    assert_eq!(rows.len(), 16);
    for row in rows {
        let means = &row["means"];
        assert_eq!(means.is_null(), row["mode"] == "zstd+qpl", "{row}");
        assert_eq!(row["unavailable"].is_string(), means.is_null(), "{row}");
        if means.is_null() {
            continue;
        }
        for name in ["total_time_ms", "mbps", "pages_per_second", "ratio"] {
            assert!(
                means[name].as_f64().expect("a number") > 0.0,
                "{name}: {row}"
            );
        }
    }
    let page = fs::read_to_string(&report).expect("a file");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(page.len() < 20_000 && !page.contains("http"), "{page}");
}

#[test]
fn the_highest_rate_is_found_with_and_without_differences() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("b.json").display().to_string();
    // More than any guest can do, so that the search ends at once: two megabytes always move.
    let options = ["migrate", "--find-rate", "--guest-rate", "100000000000"];
    let guest = ["--memory", "2M", "--workload", "redis", "--channels", "2"];
    let modes = ["--modes", "none+delta,zstd,zstd+qpl+delta", "--json", &json];
    let printed = bench([&options[..], &guest, &modes].concat()).end().well();
    let rows: Vec<_> = printed
        .lines()
        .filter(|line| line.starts_with("| redis |"))
        .collect();
    assert_eq!(rows.len(), 3, "{printed}");
    for (row, mode) in rows.iter().zip(["none+delta", "zstd", "zstd+qpl+delta"]) {
        assert!(row.contains(&format!("| {mode} |")), "{row}");
        let is_here = !row.contains("not here");
        assert_eq!(is_here, mode != "zstd+qpl+delta", "{row}");
        assert_eq!(row.contains("at least"), is_here, "{row}");
        assert_eq!(row.matches('|').count(), 8, "{row}");
    }
    let text = fs::read_to_string(&json).expect("a file");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let row = &value["rows"][0];
    assert_eq!(
        (&row["outcome"], &row["is_guest_limit"]),
        (&"rate".into(), &true.into())
    );
    // On a busy machine the guest may move before it has done anything.
    assert!(row["guest_rate"].is_number(), "{row}");
    assert_eq!(value["rows"][2]["outcome"], "unavailable");
}

#[test]
fn a_killed_run_leaves_no_link() {
    let link = ["--link", "250mbit", "--modes", "none", "--workload", "idle"];
    let ended = bench([&TINY[..], &link].concat()).end();
    let shaped = ended
        .stderr
        .contains("a 250mbit link between two network namespaces");
    let limited = ended
        .stderr
        .contains("max-bandwidth of 250mbit, because no link could be made");
    assert!(shaped != limited, "{ended:?}");
    ended.well();
    if !shaped {
        qemu_lab::not_run("unshare, ip and tc, and the right to make network namespaces with them");
        return;
    }
    let many = ["--runs", "1000"];
    let mut running = bench([&TINY[..3], &link, &many].concat());
    while !running.complaint().contains("run 1 of") {}
    let children = Command::new("pgrep")
        .args(["-P", &running.id().to_string()])
        .output();
    let children = String::from_utf8(children.expect("pgrep").stdout).expect("text");
    assert!(
        children.lines().count() >= 2,
        "the link's holders: {children}"
    );
    running.kill();
    let deadline = Instant::now() + DEADLINE;
    for child in children.lines() {
        while Path::new("/proc").join(child).exists() {
            assert!(Instant::now() < deadline, "{child} is left");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn wrong_modes_and_rates_are_refused() {
    for (option, value, says) in [
        ("--modes", "zlib,lz4", "no such compression method"),
        ("--modes", "zlib+qat", "\"qat\" is not none, software"),
        ("--link", "fast", "rates are such as 10gbit or 250mbit"),
        ("--channels", "0", "--channels"),
        ("--workload", "vax", "write idle, redis or image:FILE"),
    ] {
        let ended = bench(["migrate", option, value]).end();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
}
