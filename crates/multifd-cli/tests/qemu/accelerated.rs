//! Relays whose pages the real libqpl compresses: on its software path, unless the machine has an
//! IAA.

use std::time::Instant;

use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};

use super::libqpl::{CANNED, DYNAMIC, Done, FIXED, Libqpl};
use super::relays::{Relay, hop_through};

const CHANNELS: [u8; 4] = [1, 2, 4, 8];
const STREAMS: [&str; 2] = ["1", "16"];
const HUFFMAN: [&str; 2] = ["fixed", "dynamic"];

/// Migrates the guest as it is, and once more when it is stopped.
fn running_and_stopped(chain: &mut Chain, mut hop: impl FnMut(&mut Chain)) {
    hop(chain);
    chain.current().stop().unwrap();
    hop(chain);
    chain.current().resume().unwrap();
}

/// About half of what the guest's memory holds is redundant, which the fixed code and a window of 4
/// KiB find most of.
fn assert_smaller(report: &serde_json::Value) {
    let [bytes_in, bytes_out] = ["bytes_in", "bytes_out"].map(|key| report[key].as_u64().unwrap());
    assert!(bytes_out < bytes_in * 4 / 5, "{report}");
}

/// libqpl did what could be done, by an IAA if this machine has one; if not, the reason is told.
fn assert_by_libqpl(done: &Done) {
    let (used, unused) = if done.backend == "qpl-hardware" {
        (done.hardware, 0)
    } else {
        let told = done.backend.starts_with("qpl-software (no IAA: ");
        assert!(told, "{done:?}");
        (done.software, done.hardware)
    };
    assert!(used > 0 && unused == 0, "{done:?}");
}

/// The relay's zlib stream, made of libqpl's pieces, is inflated by a QEMU which takes it for
/// another QEMU's.
fn stock_inflates(version: Version, machine: &str) {
    let (Some(libqpl), Some(binary)) = (Libqpl::require(), QemuBinary::require(version)) else {
        return;
    };
    let begun = Instant::now();
    let mut hops = 0;
    let mut chain = Chain::start(&binary, &Guest::default(), machine).unwrap();
    for channels in CHANNELS {
        for streams in STREAMS {
            // Each number of channels and each of streams with both codes, though not all with all.
            let dynamic = (channels.trailing_zeros() % 2 == 1) == (streams == "1");
            let huffman = HUFFMAN[usize::from(dynamic)];
            let parameters = |compression| Parameters {
                return_path: channels > 1,
                ..Parameters::multifd(channels, compression)
            };
            let hop = Hop {
                source_parameters: parameters("none"),
                ..Hop::to(&binary, &parameters("zlib"))
            };
            let options = [
                "--accel",
                "qpl",
                "--streams",
                streams,
                "--huffman",
                huffman,
                "--once",
            ];
            running_and_stopped(&mut chain, |chain| {
                let (_, [report]) = hop_through(chain, &hop, |folder, destination| {
                    let command = libqpl.multifd();
                    [Relay::of(
                        command,
                        folder,
                        "relay",
                        destination,
                        "zlib",
                        &options,
                    )]
                });
                assert_eq!(report["channels"], channels);
                let done = Done::encoding(&report);
                assert_eq!(done.method, "zlib");
                assert_by_libqpl(&done);
                assert_smaller(&report);
                hops += 1;
            });
        }
    }
    println!("{binary}: {hops} hops in {:?}", begun.elapsed());
}

#[test]
fn stock_7_2_inflates() {
    stock_inflates(Version::V7_2, "pc-q35-7.2");
}

#[test]
fn stock_10_0_inflates() {
    stock_inflates(Version::V10_0, "pc-q35-10.0");
}

#[test]
fn stock_11_1_inflates() {
    stock_inflates(Version::V11_1, "q35");
}

/// libqpl compresses at one relay, the other decompresses: with libqpl at hand, and without.
fn between_two_relays(version: Version, machine: &str) {
    let (Some(libqpl), Some(binary)) = (Libqpl::require(), QemuBinary::require(version)) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), machine).unwrap();
    for (index, channels) in CHANNELS.into_iter().enumerate() {
        for (method, options) in [FIXED, DYNAMIC, CANNED] {
            let parameters = Parameters {
                return_path: index % 2 == 1,
                ..Parameters::multifd(channels, "none")
            };
            let hop = Hop::to(&binary, &parameters);
            let write = [&["--accel", "qpl", "--once"], options].concat();
            let read = ["--accel", "qpl", "--once"];
            running_and_stopped(&mut chain, |chain| {
                let (_, [far, near]) = hop_through(chain, &hop, |folder, destination| {
                    let far = if index % 2 == 0 {
                        Relay::start(folder, "far", destination, "none", &["--once"])
                    } else {
                        let command = libqpl.multifd();
                        Relay::of(command, folder, "far", destination, "none", &read)
                    };
                    let command = libqpl.multifd();
                    let near = Relay::of(command, folder, "near", &far.address, method, &write);
                    [far, near]
                });
                let (encoded, decoded) = (Done::encoding(&near), Done::decoding(&far));
                assert_eq!([&*encoded.method, &*decoded.method], [method, method]);
                assert_by_libqpl(&encoded);
                assert_smaller(&near);
                assert_eq!(decoded.raw, encoded.raw);
                // libqpl's software path does not notice a page that is cut off, so it reads none.
                let reader = decoded.backend.starts_with("software") || decoded.hardware > 0;
                assert!(reader, "{decoded:?}");
            });
        }
    }
}

#[test]
fn pages_between_two_relays_on_7_2() {
    between_two_relays(Version::V7_2, "pc-q35-7.2");
}

#[test]
fn pages_between_two_relays_on_10_0() {
    between_two_relays(Version::V10_0, "pc-q35-10.0");
}

#[test]
fn pages_between_two_relays_on_11_1() {
    between_two_relays(Version::V11_1, "q35");
}
