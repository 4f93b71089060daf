//! Method `canned` on every backend: all senders and readers, and how many pages each backend does.

use multifd_codec::{Accel, BackendKind, Pages, Settings, encoder};
use multifd_wire::{Method, PageSize};

use testkit::alone;
use testkit::canned::Taken;
use testkit::libqpl::{Channel, PAGE, device, healthy_device, libqpl, streams, with};
use testkit::pages::{Random, packet};

/// Settings of every available sender.
fn senders() -> Vec<Settings> {
    let mut accels = vec![Accel::None];
    if libqpl() {
        accels.push(Accel::QplSoftware);
    }
    if healthy_device().is_some() {
        accels.push(Accel::QplHardware);
    }
    accels.into_iter().map(with).collect()
}

#[test]
fn every_receiver_reads_every_senders_pages() {
    for sender in senders() {
        for receiver in [Accel::None, Accel::QplHardware] {
            if receiver == Accel::QplHardware && healthy_device().is_none() {
                continue;
            }
            let mut channel = Channel::new(Method::Canned, &sender, &with(receiver));
            for seed in 0..8 {
                channel.carry(&packet(&mut Random::new(seed), 40, PAGE));
            }
            let (encoded, decoded) = channel.counts();
            assert_eq!(encoded.total(), 8 * 40);
            assert_eq!(encoded.raw, decoded.raw);
            // If there was a device, at either end, it did every compressible page.
            let by_hardware = |accel, hardware| match accel {
                Accel::QplHardware => hardware == encoded.total() - encoded.raw,
                _ => hardware == 0,
            };
            assert!(by_hardware(sender.accel, encoded.hardware), "{encoded:?}");
            assert!(by_hardware(receiver, decoded.hardware), "{decoded:?}");
        }
    }
}

/// With its description in front every page is a stream, on every backend: nothing follows its end,
/// libqpl has used exactly the code that was sent, and an IAA could read it.
#[test]
fn an_iaa_and_stock_zlib_read_every_page() {
    for settings in senders() {
        let mut encoder = encoder(Method::Canned, &settings).unwrap();
        let mut code = Vec::new();
        let mut payload = Vec::new();
        for seed in 0..60 {
            let bytes = packet(&mut Random::new(seed), 30, PAGE);
            let pages = Pages::private(&bytes, PageSize::K4).unwrap();
            encoder.encode(&pages, &mut payload).unwrap();
            let taken = Taken::apart(&payload, 30);
            if !taken.description.is_empty() {
                code = taken.description.to_vec();
            }
            taken.check(&code, &bytes);
        }
        let counts = encoder.counts();
        assert!(counts.raw < counts.total() / 4, "{settings:?}: {counts:?}");
    }
}

#[test]
fn streams_change_nothing_in_a_payload() {
    let bytes = packet(&mut Random::new(1), 128, PAGE);
    let payload = |count| {
        let settings = streams(with(Accel::Software), count);
        let mut channel = Channel::new(Method::Canned, &settings, &settings);
        channel.carry(&bytes).to_vec()
    };
    let one = payload(1);
    assert!([2, 16, 128].into_iter().all(|count| payload(count) == one));
}

/// A device that can only compress is used for that.
#[test]
fn half_a_device() {
    alone!("canned::half_a_device", || {
        let _device = device(&iaa_sim::Settings {
            operations: iaa_sim::settings::Operations::Compress,
            ..iaa_sim::Settings::default()
        });
        let settings = with(Accel::Qpl);
        let mut channel = Channel::new(Method::Canned, &settings, &settings);
        channel.carry(&packet(&mut Random::new(2), 100, PAGE));
        let (encoded, decoded) = channel.counts();
        assert!(encoded.hardware > 0 && encoded.software == 0, "{encoded:?}");
        assert!(decoded.software > 0 && decoded.hardware == 0, "{decoded:?}");
        assert_eq!(channel.decoder.backend().kind(), BackendKind::Software);
    });
}
