//! The tiny guest on every QEMU.

use std::time::Duration;

use qemu_lab::{Config, Guest, QemuBinary, Version};

const LIMIT: Duration = Duration::from_secs(20);

fn runs(version: Version) {
    runs_as(version, &Guest::default());
}

fn runs_as(version: Version, guest: &Guest) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let mut qemu = Config::new(&binary, guest).start().unwrap();
    qemu.wait_for_pass(20, LIMIT).unwrap();
    qemu.stop().unwrap();
    let pass = qemu.check_guest().unwrap();
    assert!(pass >= 20);
    assert!(
        qemu.serial().unwrap().starts_with("S."),
        "{:?}",
        qemu.serial()
    );
    assert_eq!(qemu.stderr(), "");
}

#[test]
fn runs_on_qemu_7_2() {
    runs(Version::V7_2);
}

#[test]
fn runs_on_qemu_10_0() {
    runs(Version::V10_0);
}

#[test]
fn runs_on_qemu_11_1() {
    runs(Version::V11_1);
}

#[test]
fn runs_without_a_rest() {
    runs_as(
        Version::V10_0,
        &Guest {
            pages_per_tick: 0,
            ..Guest::default()
        },
    );
}
