//! QEMU, relay, relay, QEMU: every method between the relays, with every way to set up a migration.

use std::time::Instant;

use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};

use serde_json::Value;

use super::relays::{Relay, hop_through};

/// A header for 4 KiB pages.
const EMPTY_PACKET_BYTES: u64 = 1344;

const METHODS: [&str; 3] = ["none", "zlib", "zstd"];
const CHANNELS: [u8; 4] = [1, 2, 4, 8];

/// Moves the guest through two relays with `between` on the link between them, and checks what they
/// counted.
fn hop_through_two(chain: &mut Chain, hop: &Hop<'_>, between: &str) {
    let source_release = chain.current().binary().release();
    let (hopped, [far, near]) = hop_through(chain, hop, |folder, destination| {
        let far = Relay::start(folder, "far", destination, "none", &["--once"]);
        let near = Relay::start(folder, "near", &far.address, between, &["--once"]);
        [far, near]
    });
    let parameters = &hop.source_parameters;
    assert_eq!(near["channels"], parameters.channels.unwrap());
    assert_eq!(near["pages"], far["pages"]);
    // The first relay sees what the source sends, the last one restores it to the byte. QEMU 8.2
    // and earlier end with an empty packet on each channel, for which the destination does not
    // wait.
    let (sent, restored) = (bytes("bytes_in", &near), bytes("bytes_out", &far));
    let unread = if source_release < (9, 0) {
        u64::from(parameters.channels.unwrap()) * EMPTY_PACKET_BYTES
    } else {
        0
    };
    assert!(
        restored <= sent && sent - restored <= unread,
        "{sent} bytes sent, {restored} restored"
    );
    let (seen, counted) = (near["pages"].as_u64().unwrap(), hopped.source.ram.normal);
    // QEMU 7.2 sometimes queues the last page of a packet for the next one too, and counts it once.
    let repeats = source_release < (8, 0);
    assert!(
        seen == counted || repeats && seen > counted,
        "{seen} pages seen, {counted} sent"
    );
    let (bytes_in, bytes_out) = (sent, bytes("bytes_out", &near));
    match between {
        "none" => assert_eq!(bytes_in, bytes_out),
        _ => assert!(
            bytes_out < bytes_in * 4 / 5,
            "{between}: {bytes_in} bytes in, {bytes_out} out"
        ),
    }
}

fn bytes(which: &str, report: &Value) -> u64 {
    report[which].as_u64().unwrap()
}

fn guest_in(destination: &QemuBinary, machine: &str) -> Chain {
    Chain::start(destination, &Guest::default(), machine).unwrap()
}

/// All of it on one release: methods, channels, unix and tcp, return path, zero page detection; the
/// guest runs, and for each method is moved once more when it is stopped.
fn everything_on(version: Version, machine: &str, detections: &[Option<&str>]) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let begun = Instant::now();
    let mut hops = 0;
    let mut chain = guest_in(&binary, machine);
    for between in METHODS {
        for channels in CHANNELS {
            for (index, detection) in detections.iter().enumerate() {
                for return_path in [false, true] {
                    let parameters = Parameters {
                        return_path,
                        zero_page_detection: detection.map(str::to_owned),
                        ..Parameters::multifd(channels, "none")
                    };
                    // Both kinds of sockets with each of the other settings, though not with all of
                    // them at once.
                    let tcp = (usize::from(channels.trailing_zeros() as u8)
                        + index
                        + usize::from(return_path))
                        % 2
                        == 1;
                    let hop = Hop {
                        tcp,
                        ..Hop::to(&binary, &parameters)
                    };
                    hop_through_two(&mut chain, &hop, between);
                    hops += 1;
                }
            }
        }
        chain.current().stop().unwrap();
        hop_through_two(
            &mut chain,
            &Hop::to(&binary, &Parameters::multifd(2, "none")),
            between,
        );
        chain.current().resume().unwrap();
        hops += 1;
    }
    println!("{binary}: {hops} hops in {:?}", begun.elapsed());
}

#[test]
fn everything_on_10_0() {
    everything_on(
        Version::V10_0,
        "pc-q35-10.0",
        &[Some("none"), Some("legacy"), Some("multifd")],
    );
}

#[test]
fn everything_on_7_2() {
    everything_on(Version::V7_2, "pc-q35-7.2", &[None]);
}

#[test]
fn everything_on_11_1() {
    everything_on(Version::V11_1, "q35", &[Some("legacy"), Some("multifd")]);
}

/// From one release to the next, as hosts are upgraded.
fn upgrades(machine: &str, from: Version, to: Version) {
    let (Some(from), Some(to)) = (QemuBinary::require(from), QemuBinary::require(to)) else {
        return;
    };
    for between in METHODS {
        let mut chain = guest_in(&from, machine);
        let parameters = Parameters {
            return_path: true,
            ..Parameters::multifd(2, "none")
        };
        hop_through_two(&mut chain, &Hop::to(&to, &parameters), between);
    }
}

#[test]
fn from_7_2_to_10_0() {
    upgrades("pc-q35-7.2", Version::V7_2, Version::V10_0);
}

#[test]
fn from_10_0_to_11_1() {
    upgrades("pc-q35-10.0", Version::V10_0, Version::V11_1);
}

/// Pages that go from content to zeros and back at a pace which the migration sees in every state,
/// in several rounds.
#[test]
fn pages_that_become_zero_and_content_again() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let guest = Guest {
        counters: 20,
        blinkers: 600,
        blink_cycle: 2,
        pages_per_tick: 5000,
        ..Guest::default()
    };
    let mut chain = Chain::start(&binary, &guest, "pc-q35-10.0").unwrap();
    for between in METHODS {
        for detection in ["none", "legacy", "multifd"] {
            let parameters = Parameters {
                return_path: true,
                zero_page_detection: Some(detection.to_owned()),
                // Slow, and without leave to stop the guest early: many rounds.
                max_bandwidth: Some(40 << 20),
                downtime_limit: Some(std::time::Duration::from_millis(20)),
                ..Parameters::multifd(2, "none")
            };
            hop_through_two(&mut chain, &Hop::to(&binary, &parameters), between);
        }
    }
}
