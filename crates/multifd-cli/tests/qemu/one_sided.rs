//! One relay: on its other side a stock QEMU that compresses by itself.

use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};

use super::libqpl::Done;
use super::relays::{Relay, hop_through};

fn hop_through_one(chain: &mut Chain, hop: &Hop<'_>, compression: &str) {
    hop_through(chain, hop, |folder, destination| {
        [Relay::start(
            folder,
            "relay",
            destination,
            compression,
            &["--once"],
        )]
    });
}

fn both_ways(from: Version, to: Version, machine: &str) {
    let (Some(from), Some(to)) = (QemuBinary::require(from), QemuBinary::require(to)) else {
        return;
    };
    for method in ["zlib", "zstd"] {
        for channels in [1, 4] {
            for return_path in [false, true] {
                let parameters = |compression| Parameters {
                    return_path,
                    ..Parameters::multifd(channels, compression)
                };
                let mut chain = Chain::start(&from, &Guest::default(), machine).unwrap();
                // The relay compresses for a destination that inflates.
                let to_stock = Hop {
                    source_parameters: parameters("none"),
                    destination_parameters: parameters(method),
                    ..Hop::to(&to, &parameters(method))
                };
                hop_through_one(&mut chain, &to_stock, method);
                // The source compresses, and the relay inflates.
                let from_stock = Hop {
                    source_parameters: parameters(method),
                    destination_parameters: parameters("none"),
                    ..Hop::to(&to, &parameters("none"))
                };
                hop_through_one(&mut chain, &from_stock, "none");
            }
        }
    }
}

#[test]
fn stock_7_2() {
    both_ways(Version::V7_2, Version::V7_2, "pc-q35-7.2");
}

#[test]
fn stock_10_0() {
    both_ways(Version::V10_0, Version::V10_0, "pc-q35-10.0");
}

#[test]
fn stock_11_1() {
    both_ways(Version::V11_1, Version::V11_1, "q35");
}

#[test]
fn stock_7_2_to_10_0() {
    both_ways(Version::V7_2, Version::V10_0, "pc-q35-7.2");
}

#[test]
fn stock_10_0_to_11_1() {
    both_ways(Version::V10_0, Version::V11_1, "pc-q35-10.0");
}

/// A relay between QEMUs of two different methods: the source's is inflated, the destination's made
/// anew.
#[test]
fn from_zstd_to_zlib() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), "pc-q35-10.0").unwrap();
    let hop = Hop {
        source_parameters: Parameters::multifd(2, "zstd"),
        ..Hop::to(&binary, &Parameters::multifd(2, "zlib"))
    };
    hop_through_one(&mut chain, &hop, "zlib");
}

/// Efforts that change from packet to packet, in both methods that have them.
fn found_out(version: Version, machine: &str) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), machine).unwrap();
    for method in ["zlib", "zstd"] {
        for channels in [1, 4] {
            let parameters = |compression| Parameters {
                return_path: channels == 1,
                ..Parameters::multifd(channels, compression)
            };
            let hop = Hop {
                source_parameters: parameters("none"),
                ..Hop::to(&binary, &parameters(method))
            };
            let options = ["--effort", "auto", "--once"];
            let (_, [report]) = hop_through(&mut chain, &hop, |folder, destination| {
                [Relay::start(folder, "relay", destination, method, &options)]
            });
            let efforts = report["auto"]["efforts"].as_array().unwrap();
            let used = efforts.iter().filter(|effort| effort["packets"] != 0);
            // Each is tried with the first packets.
            assert_eq!(used.count(), efforts.len(), "{report}");
            let sum = |key: &str| -> u64 {
                efforts
                    .iter()
                    .map(|effort| effort[key].as_u64().unwrap())
                    .sum()
            };
            let pages = report["pages"].as_u64().unwrap();
            assert_eq!(sum("page_bytes"), pages * 4096, "{report}");
            assert!(sum("payload_bytes") < report["bytes_out"].as_u64().unwrap());
        }
    }
}

#[test]
fn found_out_to_stock_7_2() {
    found_out(Version::V7_2, "pc-q35-7.2");
}

#[test]
fn found_out_to_stock_10_0() {
    found_out(Version::V10_0, "pc-q35-10.0");
}

#[test]
fn found_out_to_stock_11_1() {
    found_out(Version::V11_1, "pc-q35-11.0");
}

/// A source that can be told zlib only, as by libvirt, and leaves the work to the relay.
#[test]
fn anew_from_level_0() {
    for (version, machine) in [(Version::V10_0, "pc-q35-10.0"), (Version::V11_1, "q35")] {
        let Some(binary) = QemuBinary::require(version) else {
            return;
        };
        let mut chain = Chain::start(&binary, &Guest::default(), machine).unwrap();
        let hop = Hop {
            source_parameters: Parameters {
                zlib_level: Some(0),
                return_path: true,
                ..Parameters::multifd(2, "zlib")
            },
            ..Hop::to(&binary, &Parameters::multifd(2, "zlib"))
        };
        let options = ["--recode", "--effort", "balanced", "--once"];
        let (_, [report]) = hop_through(&mut chain, &hop, |folder, destination| {
            [Relay::start(folder, "relay", destination, "zlib", &options)]
        });
        let [bytes_in, bytes_out] =
            ["bytes_in", "bytes_out"].map(|key| report[key].as_u64().unwrap());
        let page_bytes = report["pages"].as_u64().unwrap() * 4096;
        assert!(bytes_in > page_bytes, "{version:?}: {report}");
        assert!(bytes_out < bytes_in * 4 / 5, "{report}");
        assert_eq!(Done::encoding(&report).method, "zlib", "{report}");
    }
}

/// Streams of the relay's own deflate, in every effort and window, as one and as many, are inflated
/// by a stock QEMU; and the relay's own inflate reads what stock QEMUs write.
fn own_deflate(version: Version, machine: &str) {
    let Some(binary) = QemuBinary::require(version) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), machine).unwrap();
    for (index, effort) in ["fast", "balanced", "dense"].into_iter().enumerate() {
        for window in ["4k", "32k"] {
            for streams in ["1", "16"] {
                let parameters = |compression| Parameters {
                    return_path: streams == "1",
                    ..Parameters::multifd([1, 2, 4][index], compression)
                };
                let hop = Hop {
                    source_parameters: parameters("none"),
                    ..Hop::to(&binary, &parameters("zlib"))
                };
                let options = [
                    "--accel",
                    "software",
                    "--effort",
                    effort,
                    "--window",
                    window,
                    "--streams",
                    streams,
                    "--once",
                ];
                let (_, [report]) = hop_through(&mut chain, &hop, |folder, destination| {
                    [Relay::start(folder, "relay", destination, "zlib", &options)]
                });
                let done = Done::encoding(&report);
                assert_eq!((&*done.method, &*done.backend), ("zlib", "software"));
                assert!(done.software > 0 && done.hardware == 0, "{report}");
                let [bytes_in, bytes_out] =
                    ["bytes_in", "bytes_out"].map(|key| report[key].as_u64().unwrap());
                assert!(bytes_out < bytes_in * 4 / 5, "{report}");
            }
        }
    }
    let hop = Hop {
        source_parameters: Parameters::multifd(2, "zlib"),
        ..Hop::to(&binary, &Parameters::multifd(2, "none"))
    };
    let options = ["--accel", "software", "--once"];
    let (_, [report]) = hop_through(&mut chain, &hop, |folder, destination| {
        [Relay::start(folder, "relay", destination, "none", &options)]
    });
    let done = Done::decoding(&report);
    assert_eq!((&*done.method, &*done.backend), ("zlib", "software"));
}

#[test]
fn own_deflate_to_stock_7_2() {
    own_deflate(Version::V7_2, "pc-q35-7.2");
}

#[test]
fn own_deflate_to_stock_10_0() {
    own_deflate(Version::V10_0, "pc-q35-10.0");
}
