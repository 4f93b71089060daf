//! The chosen backend and the reason given for it.

use iaa_sim::settings::{Access, Operations};
use multifd_codec::{Accel, BackendKind, PathCounts, decoder, encoder};
use multifd_wire::Method;

use testkit::alone;
use testkit::libqpl::{Channel, device, with};
use testkit::pages::{Random, packet};

fn chosen(method: Method, accel: Accel) -> [String; 2] {
    let settings = with(accel);
    [
        encoder(method, &settings).map_or_else(|e| e.to_string(), |e| e.backend().to_string()),
        decoder(method, &settings).map_or_else(|e| e.to_string(), |e| e.backend().to_string()),
    ]
}

#[test]
fn without_a_device() {
    if has_an_iaa() {
        qemu_lab::not_run("a machine without an IAA");
        return;
    }
    alone!("choice::without_a_device", || {
        let report = iaa_detect::detect(std::path::Path::new("/"));
        // As on a machine without an IAA. The message belongs to the detection.
        let why = report.explain_status(503).expect("there is no device");
        let why = format!("no IAA: {why}");
        for method in [Method::Qpl, Method::Canned] {
            let software = format!("software ({why})");
            assert_eq!(
                chosen(method, Accel::Qpl),
                [format!("qpl-{software}"), software.clone()]
            );
            assert_eq!(
                chosen(method, Accel::Auto),
                [software.clone(), software.clone()]
            );
            assert_eq!(chosen(method, Accel::QplSoftware)[0], "qpl-software");
        }
        let [encodes, _] = chosen(Method::Zlib, Accel::Qpl);
        assert_eq!(encodes, format!("qpl-software ({why})"));
        let refusal =
            format!("accelerator qpl-hardware is not available for the qpl method: {why}");
        assert_eq!(
            chosen(Method::Qpl, Accel::QplHardware),
            [refusal.clone(), refusal]
        );
        let [encodes, _] = chosen(Method::Zlib, Accel::QplSoftware);
        assert_eq!(encodes, "qpl-software");
    });
}

/// Whether Linux has found an IAA here, usable or not.
fn has_an_iaa() -> bool {
    let devices = std::fs::read_dir("/sys/bus/dsa/devices")
        .into_iter()
        .flatten();
    devices.flatten().any(|device| {
        let name = device.file_name();
        name.to_string_lossy().starts_with("iax")
    })
}

/// Runs this program twice, once without libqpl.
#[test]
fn without_libqpl() {
    if qpl_sys::Library::open().is_ok() {
        return;
    }
    let [encodes, _] = chosen(Method::Qpl, Accel::QplSoftware);
    let refusal = "accelerator qpl-software is not available for the qpl method: no libqpl: ";
    let words = encodes.strip_prefix(refusal);
    assert!(
        words.is_some_and(|words| words.starts_with("libqpl.so.1: ")),
        "{encodes}"
    );
}

#[test]
fn with_a_device() {
    alone!("choice::with_a_device", || {
        let _device = device(&iaa_sim::Settings::default());
        for accel in [Accel::Qpl, Accel::QplHardware, Accel::Auto] {
            for method in [Method::Qpl, Method::Canned] {
                assert_eq!(chosen(method, accel), ["qpl-hardware", "qpl-hardware"]);
            }
            let [encodes, decodes] = chosen(Method::Zlib, accel);
            assert_eq!(encodes, "qpl-hardware");
            assert!(decodes.starts_with("software"), "{decodes}");
        }
        // The alternative would also work.
        assert_eq!(chosen(Method::Qpl, Accel::QplSoftware)[0], "qpl-software");
    });
}

#[test]
fn what_libqpl_has_no_part_in() {
    let libqpl = [Accel::Qpl, Accel::QplHardware, Accel::QplSoftware];
    for accel in libqpl {
        assert_eq!(chosen(Method::None, accel), ["plain", "plain"]);
        if cfg!(feature = "zstd") {
            assert_eq!(
                chosen(Method::Zstd, accel),
                [
                    format!(
                        "accelerator {accel} is not available for the zstd method: libqpl has no zstd"
                    ),
                    "plain (libqpl has no zstd)".to_owned()
                ]
            );
        }
        // Not the encoder: it would look for a device, for which another test may not be ready.
        let decoder = decoder(Method::Zlib, &with(accel)).unwrap();
        assert_eq!(
            decoder.backend().to_string(),
            "software (the window of a stock stream is 32 KiB and the IAA's 4 KiB)"
        );
    }
}

#[test]
fn a_device_which_is_only_half_permitted() {
    alone!("choice::a_device_which_is_only_half_permitted", || {
        let _device = device(&iaa_sim::Settings {
            operations: Operations::Compress,
            ..iaa_sim::Settings::default()
        });
        let settings = with(Accel::Qpl);
        let encoder = encoder(Method::Qpl, &settings).unwrap();
        assert_eq!(encoder.backend().kind(), BackendKind::QplHardware);
        let decoder = decoder(Method::Qpl, &settings).unwrap();
        assert_eq!(decoder.backend().kind(), BackendKind::Software);
        let reason = decoder.backend().to_string();
        assert!(reason.contains("no IAA: "), "{reason}");
        assert!(reason.contains("QPL_STS_NOT_SUPPORTED_BY_WQ"), "{reason}");
    });
}

#[test]
fn a_device_without_rights() {
    alone!("choice::a_device_without_rights", || {
        let _device = device(&iaa_sim::Settings {
            access: Access::Denied,
            ..iaa_sim::Settings::default()
        });
        let [encodes, _] = chosen(Method::Zlib, Accel::Qpl);
        assert!(encodes.starts_with("qpl-software (no IAA: "), "{encodes}");
        let [encodes, _] = chosen(Method::Zlib, Accel::QplHardware);
        assert!(
            encodes.contains("is not available for the zlib method: no IAA: "),
            "{encodes}"
        );
    });
}

/// A page's transfer is allowed and a larger piece's is not: the first packet shows it, and the
/// codec reports it.
#[test]
fn transfers_that_are_too_small_for_the_pieces() {
    alone!(
        "choice::transfers_that_are_too_small_for_the_pieces",
        || {
            let _device = device(&iaa_sim::Settings {
                max_transfer_bytes: 16384,
                ..iaa_sim::Settings::default()
            });
            let settings = with(Accel::Qpl);
            let mut channel = Channel::new(Method::Zlib, &settings, &settings);
            assert_eq!(channel.encoder.backend().to_string(), "qpl-hardware");
            channel.carry(&packet(&mut Random::new(1), 128, 4096));
            let backend = channel.encoder.backend();
            assert_eq!(backend.kind(), BackendKind::QplSoftware);
            let reason = backend.to_string();
            assert!(reason.contains("QPL_STS_TRANSFER_SIZE_INVALID"), "{reason}");
            assert_eq!(channel.encoder.counts().hardware, 0);
            assert_ne!(channel.encoder.counts(), PathCounts::default());
        }
    );
}

/// libqpl offers a thread the devices of its own socket. A remote one is better than none.
#[test]
fn a_device_on_another_socket() {
    alone!("choice::a_device_on_another_socket", || {
        let _device = device(&iaa_sim::Settings {
            numa_node: 7,
            ..iaa_sim::Settings::default()
        });
        let settings = with(Accel::QplHardware);
        let mut channel = Channel::new(Method::Qpl, &settings, &settings);
        channel.carry(&packet(&mut Random::new(2), 30, 4096));
        let (encoded, decoded) = channel.counts();
        assert_eq!((encoded.software, decoded.software), (0, 0));
        assert!(encoded.hardware > 0 && decoded.hardware == encoded.hardware);
    });
}
