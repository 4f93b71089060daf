//! Efforts that change from packet to packet, against the C zlib and libzstd.

use multifd_codec::auto::{Auto, Step};
use multifd_codec::{Accel, Encoder, Pages, Settings, WindowSize, decoder};
use multifd_wire::{Method, PageSize};

use testkit::pages::{Random, packet};

/// Writes packets with steps in any order, each several times in a row and alone, and reads them.
fn every_order(
    settings: &Settings,
    method: Method,
    mut stock: impl FnMut(&[u8], usize, &mut [u8]),
) {
    let auto = Auto::new(method, settings).unwrap();
    let steps: Vec<Step> = auto.steps().collect();
    assert!(steps.len() >= 4);
    let mut encoder: Encoder = Encoder::with_steps(&auto, settings).unwrap();
    let mut ours = [Accel::None, Accel::Software].map(|accel| {
        let mut settings = Settings::default();
        settings.accel = accel;
        decoder(method, &settings).unwrap()
    });
    let mut random = Random::new(7);
    let (mut payload, mut step) = (Vec::new(), steps[0]);
    for round in 0..300 {
        if random.below(3) > 0 {
            step = steps[random.below(steps.len())];
        }
        encoder.set_step(step);
        let page_size = PageSize::new([4096, 16_384, 65_536][round % 3]).unwrap();
        let full = page_size.pages_per_packet();
        let count = if random.below(2) == 0 {
            full
        } else {
            1 + random.below(full)
        };
        let bytes = packet(&mut random, count, page_size.bytes());
        let pages = Pages::private(&bytes, page_size).unwrap();
        encoder.encode(&pages, &mut payload).unwrap();
        if step.index() == 0 {
            // Next to nothing beside the pages.
            assert!((bytes.len()..bytes.len() + 64).contains(&payload.len()));
        }
        let mut arrived = vec![0; bytes.len()];
        stock(&payload, page_size.bytes(), &mut arrived);
        assert!(arrived == bytes, "packet {round}, {step}");
        for decoder in &mut ours {
            arrived.fill(0);
            decoder.decode(&payload, page_size, &mut arrived).unwrap();
            assert!(arrived == bytes, "packet {round}, {step}");
        }
    }
}

#[test]
fn a_stock_zlib_receiver_reads_every_step() {
    for window in [WindowSize::FourKiB, WindowSize::ThirtyTwoKiB] {
        let mut settings = Settings::default();
        settings.accel = Accel::Software;
        settings.window = window;
        let mut receiver = testkit::zlib::Inflate::new(15);
        every_order(&settings, Method::Zlib, |payload, page_bytes, pages| {
            let left = receiver.stock_packet(payload, page_bytes, pages);
            assert_eq!(left, Some(0));
        });
    }
}

#[test]
fn a_stock_zstd_receiver_reads_every_step() {
    let mut receiver = crate::zstd::StockReceiver::new();
    let settings = Settings::default();
    every_order(&settings, Method::Zstd, |payload, page_bytes, pages| {
        assert!(receiver.takes(payload, page_bytes, pages));
    });
}

#[test]
fn an_encoder_without_steps_ignores_them() {
    let auto = Auto::new(Method::Zstd, &Settings::default()).unwrap();
    let mut encoder: Encoder = Encoder::new(Method::None, &Settings::default()).unwrap();
    let bytes = [1; 4096];
    let pages = Pages::private(&bytes, PageSize::K4).unwrap();
    for step in auto.steps() {
        encoder.set_step(step);
        let mut payload = Vec::new();
        encoder.encode(&pages, &mut payload).unwrap();
        assert_eq!(payload, bytes);
    }
}

/// Where there is no choice, there are no steps.
#[test]
fn a_method_with_one_way_has_no_steps() {
    let mut settings = Settings::default();
    for method in [Method::None, Method::Qpl, Method::Canned, Method::Zlib] {
        assert!(Auto::new(method, &settings).is_none(), "{method}");
    }
    settings.streams = multifd_codec::Streams::new(2).unwrap();
    settings.accel = Accel::Software;
    for method in [Method::Zlib, Method::Zstd] {
        assert!(Auto::new(method, &settings).is_none(), "{method}");
    }
}
