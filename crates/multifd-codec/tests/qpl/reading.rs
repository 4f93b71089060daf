//! Who reads whom: libqpl's two paths, the decoders here, the C zlib, and the judge of what an IAA
//! would read.

use multifd_codec::{Accel, Pages, Settings, decoder, encoder};
use multifd_wire::lengths::{self, PageData};
use multifd_wire::{Method, PageSize};
use testkit::oracle::{Ending, Oracle};

use testkit::libqpl::{Channel, PAGE, dynamic, healthy_device, libqpl, streams, with};
use testkit::pages::{Random, packet};
use testkit::zlib::Inflate;

/// Settings of every accelerator there is here, each with both codes.
fn senders() -> Vec<Settings> {
    let mut accels = Vec::new();
    if libqpl() {
        accels.push(Accel::QplSoftware);
    }
    if healthy_device().is_some() {
        accels.push(Accel::QplHardware);
    }
    let settings = accels.into_iter();
    settings
        .flat_map(|accel| [with(accel), dynamic(accel)])
        .collect()
}

#[test]
fn every_receiver_reads_every_senders_pages() {
    for sender in senders() {
        for receiver in [Accel::None, Accel::QplHardware] {
            let mut channel = Channel::new(Method::Qpl, &sender, &with(receiver));
            for seed in 0..8 {
                channel.carry(&packet(&mut Random::new(seed), 40, PAGE));
            }
            let (encoded, decoded) = channel.counts();
            assert_eq!(encoded.total(), 8 * 40);
            assert_eq!(encoded.raw, decoded.raw);
            let by_hardware = |accel, hardware| match accel {
                Accel::QplHardware => hardware == encoded.total() - encoded.raw,
                _ => hardware == 0,
            };
            assert!(by_hardware(sender.accel, encoded.hardware), "{encoded:?}");
            assert!(by_hardware(receiver, decoded.hardware), "{decoded:?}");
        }
    }
}

#[test]
fn an_iaa_reads_every_page() {
    for settings in senders() {
        let bytes = packet(&mut Random::new(3), 128, PAGE);
        let mut payload = Vec::new();
        encoder(Method::Qpl, &settings)
            .unwrap()
            .encode(&Pages::private(&bytes, PageSize::K4).unwrap(), &mut payload)
            .unwrap();
        let pages = lengths::parse(&payload, 128, PageSize::K4).unwrap();
        for (sent, content) in pages.zip(bytes.chunks(PAGE)) {
            match sent {
                PageData::Raw(raw) => assert!(raw == content),
                PageData::Compressed(stream) => {
                    let decoded = Oracle::IAA.decode(stream, PAGE).unwrap();
                    assert!(decoded.output == content);
                    let tokens = decoded.tokens;
                    let huffman = settings.huffman;
                    match huffman {
                        multifd_codec::Huffman::Dynamic => assert_eq!(tokens.fixed_blocks, 0),
                        _ => assert_eq!(tokens.dynamic_blocks, 0),
                    }
                }
            }
        }
    }
}

/// Streams of every number, sizes of every kind: a stock receiver reads packet after packet, page
/// by page; no distance is over 4 KiB, and nothing in a packet looks back at the one before.
#[test]
fn stock_zlib_reads_every_stream() {
    for settings in senders() {
        for count in [1, 2, 5, 16, 128] {
            let settings = streams(settings, count);
            let mut random = Random::new(count.into());
            let mut encoder = encoder(Method::Zlib, &settings).unwrap();
            let mut ours = decoder(Method::Zlib, &Settings::default()).unwrap();
            let mut stock = Inflate::new(15);
            let mut small = Inflate::new(12);
            let mut payload = Vec::new();
            for round in 0..6 {
                let bytes = packet(&mut random, [1, 128, 17, 3, 64, 128][round], PAGE);
                let pages = Pages::private(&bytes, PageSize::K4).unwrap();
                encoder.encode(&pages, &mut payload).unwrap();
                let mut arrived = vec![0; bytes.len()];
                for receiver in [&mut stock, &mut small] {
                    let left = receiver.stock_packet(&payload, PAGE, &mut arrived);
                    assert_eq!(left, Some(0), "{settings:?}, packet {round}");
                    assert!(arrived == bytes, "{settings:?}, packet {round}");
                    arrived.fill(0);
                }
                ours.decode(&payload, PageSize::K4, &mut arrived).unwrap();
                assert!(arrived == bytes);

                assert!(payload.ends_with(&[0, 0, 0xff, 0xff]));
                let header = if round == 0 { 2 } else { 0 };
                assert_eq!(payload.starts_with(&[0x48, 0x0d]), round == 0);
                let iaa = Oracle::new(4096, Ending::SyncFlush);
                let decoded = iaa.decode(&payload[header..], bytes.len()).unwrap();
                assert!(decoded.output == bytes);
            }
        }
    }
}

/// Pieces do not look back at one another, whatever code and path: with a stream for each page a
/// page's neighbours make no difference to whether it is shorter.
#[test]
fn pieces_know_nothing_of_each_other() {
    let mut random = Random::new(9);
    let noise: Vec<u8> = (0..PAGE).map(|_| random.byte()).collect();
    for settings in senders() {
        let settings = streams(settings, 128);
        let mut encoder = encoder(Method::Zlib, &settings).unwrap();
        let mut payload = Vec::new();
        // A page that cannot be compressed, twice: the second could be a copy of the first.
        let bytes = [noise.as_slice(), &noise].concat();
        let pages = Pages::private(&bytes, PageSize::K4).unwrap();
        encoder.encode(&pages, &mut payload).unwrap();
        assert!(payload.len() > bytes.len(), "{}", payload.len());
        assert_eq!(encoder.counts().raw, 2);
    }
}

/// Every page size, as pieces are at least a page: the largest does not fit into one stored block.
#[test]
fn stock_zlib_reads_pages_of_every_size() {
    for settings in senders() {
        for kib in [1, 2, 8, 16, 32, 64] {
            let page_size = PageSize::new(kib << 10).unwrap();
            let mut random = Random::new(kib.into());
            for count in [1, 128] {
                let settings = streams(settings, count);
                let mut encoder = encoder(Method::Zlib, &settings).unwrap();
                let mut stock = Inflate::new(15);
                let mut payload = Vec::new();
                for pages in [page_size.pages_per_packet(), 1] {
                    let bytes = packet(&mut random, pages, page_size.bytes());
                    let batch = Pages::private(&bytes, page_size).unwrap();
                    encoder.encode(&batch, &mut payload).unwrap();
                    let mut arrived = vec![0; bytes.len()];
                    let left = stock.stock_packet(&payload, page_size.bytes(), &mut arrived);
                    assert_eq!(left, Some(0), "{settings:?}, {kib} KiB");
                    assert!(arrived == bytes, "{settings:?}, {kib} KiB");
                }
            }
        }
    }
}
