//! Plain migrations from QEMU to QEMU: what every comparison with a relay in between rests on.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use qemu_lab::{
    Chain, Config, Guest, Hop, HopReport, LabError, MemoryFault, PAGE, Parameters, QemuBinary,
    Version,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Hops, and once more if a 7.2 source says that a pipe broke.
///
/// In about one of a hundred zlib and zstd migrations 7.2 writes a last, empty packet to a channel
/// which the destination, now complete, has closed, and calls the migration failed; with and
/// without return path. The guest then runs on at the source. (A relay in between reads to the end,
/// and the destination's close does not show.)
fn hop(chain: &mut Chain, hop: &Hop<'_>) -> HopReport {
    match chain.hop(hop) {
        Err(LabError::Migration {
            end: "source",
            status,
            ..
        }) if chain.current().binary().release() == (7, 2)
            && status
                .error_desc
                .as_ref()
                .is_some_and(|error| error.contains("Broken pipe")) =>
        {
            println!("again: {status:?}");
            chain.hop(hop).unwrap()
        }
        other => other.unwrap(),
    }
}

/// Moves one running guest from release to release, once per compression method.
fn moves_along<const N: usize>(machine: &str, versions: [Version; N]) {
    let binaries = versions.map(QemuBinary::require);
    let Some(binaries) = binaries.into_iter().collect::<Option<Vec<_>>>() else {
        return;
    };
    let mut chain = Chain::start(&binaries[0], &Guest::default(), machine).unwrap();
    for destination in &binaries[1..] {
        for compression in ["none", "zlib", "zstd"] {
            let parameters = Parameters::multifd(2, compression);
            let report = hop(&mut chain, &Hop::to(destination, &parameters));
            println!("{destination}, {compression}: {:?}", report.took);
        }
    }
}

#[test]
fn a_guest_moves_along_7_2() {
    moves_along("pc-q35-7.2", [Version::V7_2, Version::V7_2]);
}

#[test]
fn a_guest_moves_from_7_2_to_10_0() {
    moves_along("pc-q35-7.2", [Version::V7_2, Version::V10_0]);
}

#[test]
fn a_guest_moves_along_10_0_and_to_11_1() {
    moves_along(
        "pc-q35-10.0",
        [Version::V10_0, Version::V10_0, Version::V11_1],
    );
}

#[test]
fn a_guest_moves_along_11_1() {
    moves_along("q35", [Version::V11_1, Version::V11_1]);
}

/// A stopped guest's memory stays as it is over any number of plain hops, to the last byte. (A
/// source that has sent its guest away refuses to send it again, so two ways to travel are compared
/// hop by hop.)
fn stays_stopped(version: Version) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), "q35").unwrap();
    chain.current().wait_for_pass(2, LIMIT).unwrap();
    chain.current().stop().unwrap();
    let pass = chain.current().check_guest().unwrap();
    for channels in [None, Some(1), Some(4)] {
        let parameters = Parameters {
            channels,
            return_path: true,
            ..Parameters::default()
        };
        let report = chain
            .hop(&Hop {
                tcp: true,
                ..Hop::to(&binary, &parameters)
            })
            .unwrap();
        assert_eq!(report.pass, pass);
        assert_eq!(chain.current().run_state().unwrap(), "paused");
    }
}

#[test]
fn a_stopped_guest_stays_as_it_is_on_7_2() {
    stays_stopped(Version::V7_2);
}

#[test]
fn a_stopped_guest_stays_as_it_is_on_10_0() {
    stays_stopped(Version::V10_0);
}

#[test]
fn a_stopped_guest_stays_as_it_is_on_11_1() {
    stays_stopped(Version::V11_1);
}

/// What a hop reports as damage must be damage: a byte changed behind the guest's back is found.
#[test]
fn a_changed_byte_is_found() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let mut qemu = Config::new(&binary, &Guest::default()).start().unwrap();
    qemu.wait_for_pass(2, LIMIT).unwrap();
    qemu.stop().unwrap();
    qemu.check_guest().unwrap();
    let ram = std::fs::OpenOptions::new()
        .write(true)
        .open(qemu.ram_path())
        .unwrap();
    // The lowest byte of the counter in the guest's second counter page.
    ram.write_all_at(&[0xff], 257 * PAGE as u64 + 8).unwrap();
    assert!(matches!(
        qemu.check_guest(),
        Err(LabError::Memory(MemoryFault::Damaged { first: 257, .. }))
    ));
    qemu.resume().unwrap();
    assert!(matches!(qemu.check_guest(), Err(LabError::Running)));
    let pass = qemu.pass().unwrap();
    qemu.wait_for_pass(pass + 2, LIMIT).unwrap();
    qemu.stop().unwrap();
    // The guest has set it right, and says that it had to.
    assert!(matches!(qemu.check_guest(), Err(LabError::Guest(printed)) if printed.contains('E')));
}
