//! The built command looks at a machine without an IAA, which is a folder without files.

mod support;

use serde_json::Value;
use support::Multifd;

fn detect(more: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut args = vec!["detect".to_owned(), "--root".to_owned()];
    args.push(folder.path().display().to_string());
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    Multifd::start(args).end().well()
}

#[test]
fn words() {
    let report = detect(&[]);
    assert!(
        report.contains("verdict             no IAA: none on the PCI bus\n"),
        "{report}"
    );
    assert!(report.contains("as root:\n  # "), "{report}");
}

#[test]
fn json() {
    let report: Value = serde_json::from_str(&detect(&["--json"])).expect("JSON");
    assert_eq!(report["verdict"]["state"], "not-ready");
    assert_eq!(report["verdict"]["cause"], "no-device");
    assert_eq!(report["facts"]["devices"], Value::Array(vec![]));
}
