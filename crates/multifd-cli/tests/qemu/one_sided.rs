//! One relay: on its other side a stock QEMU that compresses by itself.

use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};

use crate::relays::{Relay, hop_through};

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

/// A relay between QEMUs of two different methods: the source's is inflated, the destination's made anew.
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
