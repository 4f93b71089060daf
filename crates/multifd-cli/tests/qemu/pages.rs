//! Two relays which compress every page by itself, without libqpl.

use qemu_lab::{Chain, Guest, Hop, Parameters, QemuBinary, Version};

use super::libqpl::Done;
use super::relays::{Relay, folder, hop_through};

/// A running guest moves through two relays with each of the options at the first.
fn between_two_relays(method: &str, options: &[&[&str]]) {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), "pc-q35-10.0").unwrap();
    for channels in [1, 4] {
        let parameters = Parameters {
            return_path: channels > 1,
            ..Parameters::multifd(channels, "none")
        };
        let hop = Hop::to(&binary, &parameters);
        for more in options {
            let write = [*more, &["--once"]].concat();
            let (_, [far, near]) = hop_through(&mut chain, &hop, |folder, destination| {
                let far = Relay::start(folder, "far", destination, "none", &["--once"]);
                let near = Relay::start(folder, "near", &far.address, method, &write);
                [far, near]
            });
            let (encoded, decoded) = (Done::encoding(&near), Done::decoding(&far));
            for done in [&encoded, &decoded] {
                assert_eq!((&*done.method, &*done.backend), (method, "software"));
                assert!(done.software > 0 && done.hardware == 0, "{done:?}");
            }
            assert_eq!(encoded.raw, decoded.raw);
            assert_eq!(near["channels"], channels);
            let [bytes_in, bytes_out] =
                ["bytes_in", "bytes_out"].map(|key| near[key].as_u64().unwrap());
            assert!(bytes_out < bytes_in * 4 / 5, "{near}");
        }
    }
}

#[test]
fn canned() {
    let streams = ["--accel", "software", "--streams", "16"];
    between_two_relays("canned", &[&[], &streams, &["--effort", "fast"]]);
}

#[test]
fn qpl() {
    let streams = ["--accel", "software", "--streams", "16"];
    between_two_relays("qpl", &[&streams, &["--huffman", "dynamic"]]);
}

/// Nobody asks who is at the other end: a stock destination ends such a migration, and the guest
/// stays where it is.
#[test]
fn a_stock_destination_refuses_canned() {
    let Some(binary) = QemuBinary::require(Version::V10_0) else {
        return;
    };
    let mut chain = Chain::start(&binary, &Guest::default(), "pc-q35-10.0").unwrap();
    let folder = folder();
    let mut relay = None;
    let parameters = Parameters {
        return_path: true,
        ..Parameters::multifd(2, "none")
    };
    let hopped = chain.hop_via(&Hop::to(&binary, &parameters), |destination| {
        let relay = relay.insert(Relay::start(
            folder.path(),
            "relay",
            destination,
            "canned",
            &[],
        ));
        relay.address.clone()
    });
    assert!(hopped.is_err());
    let complaint = relay.expect("it was started").next_complaint();
    assert!(complaint.contains("destination side"), "{complaint}");
    let limit = std::time::Duration::from_secs(30);
    chain.current().check_goes_on(limit).unwrap();
}
