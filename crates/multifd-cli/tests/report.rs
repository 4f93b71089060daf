//! `--report`: the page about a migration.

mod support;

use std::fs;
use std::path::Path;

use support::made::{Shape, short};
use support::peers::{Destination, Role, SHUT_WELL, Source};
use support::{Ended, Migration, Multifd, files};

fn ordinary() -> Migration {
    short(&Shape {
        return_path: true,
        ..Shape::default()
    })
}

fn relay(folder: &Path, more: &[&str]) -> Multifd {
    let connect = format!("unix:{}", folder.join("destination").display());
    let args = ["relay", "--once", "--listen", "tcp:127.0.0.1:0"];
    let way = ["--connect", &connect, "--report"];
    let reports = folder.join("reports");
    let reports = [reports.to_str().expect("text")];
    Multifd::start([&args[..], &way, &reports, more].concat())
}

/// A relay with a folder for reports, through which one migration goes. `before` is done once the
/// relay runs.
fn one_migration(folder: &Path, more: &[&str], before: impl FnOnce()) -> Ended {
    let mut relay = relay(folder, more);
    let address = relay.address();
    before();
    let destination = Destination::new(folder, 2);
    let source = Source::begin(&address, &ordinary());
    drop(destination.wait("all of it", |seen| seen.has_all(&ordinary())));
    destination.say(Role::Main, &SHUT_WELL);
    source.hears(&SHUT_WELL);
    source.finish();
    drop(destination.wait("the end of main", |seen| seen.main().end.is_some()));
    destination.close_all();
    relay.end()
}

/// The only page in the folder.
fn page(folder: &Path) -> String {
    let reports = folder.join("reports");
    let names = files(&reports);
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].ends_with("-1.html"), "{names:?}");
    fs::read_to_string(reports.join(&names[0])).expect("text")
}

#[test]
fn a_migration_through_a_relay_has_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("reports")).expect("a folder");
    let ended = one_migration(folder.path(), &["--json"], || ());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("the report is in "), "{ended:?}");
    let page = page(folder.path());
    for words in [
        ">whole</p>",
        "the destination has the guest",
        "bytes out",
        "What each channel waited for",
        ">channel 0</b>",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
}

#[test]
fn a_migration_that_fails_has_one_too() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("reports")).expect("a folder");
    let mut relay = relay(folder.path(), &[]);
    let destination = Destination::new(folder.path(), 2);
    let source = Source::begin(&relay.address(), &ordinary());
    drop(destination.wait("all of it", |seen| seen.has_all(&ordinary())));
    // It takes its guest back.
    drop(source);
    let ended = relay.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let page = page(folder.path());
    let said = ended.stderr.lines().last().expect("why");
    let why = said.split(": ").last().expect("words");
    assert!(page.contains(why), "{why}: {page}");
    assert!(!page.contains(">whole</p>"), "{page}");
}

#[test]
fn a_page_that_cannot_be_written_changes_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let reports = folder.path().join("reports");
    fs::create_dir(&reports).expect("a folder");
    let remove = || fs::remove_dir(&reports).expect("it is there");
    let ended = one_migration(folder.path(), &[], remove);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let words = "the report could not be written: cannot write ";
    assert!(ended.stderr.contains(words), "{ended:?}");
    assert!(
        ended.stdout.contains("the destination has the guest"),
        "{ended:?}"
    );
}

#[test]
fn what_cannot_become_a_page_is_refused_before_the_migration() {
    let folder = tempfile::tempdir().expect("a folder");
    let ended = relay(folder.path(), &[]).end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("reports is no folder"), "{ended:?}");
    let there = folder.path().join("there.html");
    fs::write(&there, "mine").expect("a file");
    let nowhere = folder.path().join("no/page.html");
    for (path, words) in [(&there, "is there already"), (&nowhere, "no folder for")] {
        let way = ["--qmp", "/nowhere.qmp", "--to", "trunk+unix:/nowhere"];
        let report = ["--report", path.to_str().expect("text")];
        let ended = Multifd::start([&["migrate"], &way[..], &report].concat()).end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
    }
    assert_eq!(fs::read(&there).expect("a file"), b"mine");
}
