//! The requirements on every codec, tested through the traits.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use multifd_codec::{
    Decoder, EncodeError, Encoder, GuestPage, MAX_PAYLOAD_BYTES, Pages, Settings, decoder, encoder,
};
use multifd_wire::{Method, PageSize};

use crate::pages::{Random, packet};

/// Runs the whole suite for functions of these names. Each returns a subject, or `None` if it is
/// not available here.
#[macro_export]
macro_rules! conformance {
    ($subject:ident: $($test:ident)*) => {
        mod $subject {
            $(
                #[test]
                fn $test() {
                    if let Some(subject) = super::$subject() {
                        $crate::suite::$test(&subject);
                    }
                }
            )*
        }
    };
    ($($subject:ident)*) => {
        $(
            $crate::conformance! { $subject:
                both_ends_name_their_method
                round_trip
                one_page
                pages_are_counted
                full_batches_of_the_worst_pages
                zero_pages
                an_empty_batch_leaves_the_stream_alone
                page_sizes
                a_thousand_packets
                all_settings
                packets_in_work_are_as_one_by_one
                a_packet_that_fails_comes_behind_the_others
                truncation
                corruption
                garbage
                more_or_fewer_pages_than_there_are
                a_buffer_that_is_no_packets_pages
                a_guest_that_keeps_writing
            }
        )*
    };
}

/// A codec under test: a method, and settings that must behave alike with it, the usual ones first.
pub struct Subject {
    /// The method.
    pub method: Method,
    /// The settings.
    pub settings: Vec<Settings>,
    /// The step between damaged bits of a payload: 1 unless the codec is slow.
    pub damage_every: usize,
}

impl Subject {
    fn encoder(&self) -> Encoder {
        encoder(self.method, &self.settings[0]).unwrap()
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        decoder(self.method, &self.settings[0]).unwrap()
    }

    fn channel(&self, page_size: PageSize) -> Channel {
        Channel {
            encoder: self.encoder(),
            decoder: self.decoder(),
            page_size,
            payload: Vec::new(),
        }
    }
}

/// An encoder and the decoder at the other end.
struct Channel {
    encoder: Encoder,
    decoder: Box<dyn Decoder>,
    page_size: PageSize,
    payload: Vec<u8>,
}

impl Channel {
    /// Sends a packet and checks what arrives. Returns the payload's length.
    fn carry(&mut self, bytes: &[u8]) -> usize {
        let pages = Pages::private(bytes, self.page_size).unwrap();
        self.encoder.encode(&pages, &mut self.payload).unwrap();
        assert!(self.payload.len() <= MAX_PAYLOAD_BYTES);
        let mut arrived = vec![0xa5; bytes.len()].into();
        let len = self.payload.len();
        self.decoder
            .decode_owned(&mut self.payload, self.page_size, &mut arrived)
            .unwrap();
        assert_eq!(self.payload.len(), len);
        assert!(arrived.as_ref() == bytes, "other pages than were sent");
        self.payload.len()
    }
}

fn encode(encoder: &mut Encoder, bytes: &[u8], page_size: PageSize) -> Vec<u8> {
    let mut payload = b"what was in the buffer before".to_vec();
    encoder
        .encode(&Pages::private(bytes, page_size).unwrap(), &mut payload)
        .unwrap();
    payload
}

/// A full packet that no method can make smaller.
fn incompressible(random: &mut Random) -> Vec<u8> {
    (0..128 * 4096).map(|_| random.byte()).collect()
}

/// Both ends report their method.
pub fn both_ends_name_their_method(subject: &Subject) {
    assert_eq!(subject.encoder().method(), subject.method);
    assert_eq!(subject.decoder().method(), subject.method);
}

/// Packets of all kinds of pages arrive.
pub fn round_trip(subject: &Subject) {
    let mut random = Random::new(1);
    let mut channel = subject.channel(PageSize::K4);
    for _ in 0..20 {
        let pages = 1 + random.below(PageSize::K4.pages_per_packet());
        channel.carry(&packet(&mut random, pages, 4096));
    }
}

/// Each page that arrives is counted once at both ends.
pub fn pages_are_counted(subject: &Subject) {
    let mut random = Random::new(12);
    let mut channel = subject.channel(PageSize::K4);
    for pages in [3, 0, 5] {
        channel.carry(&packet(&mut random, pages, 4096));
    }
    assert_eq!(channel.encoder.counts().total(), 8);
    assert_eq!(channel.decoder.counts().total(), 8);
}

/// A packet of one page arrives.
pub fn one_page(subject: &Subject) {
    subject
        .channel(PageSize::K4)
        .carry(&packet(&mut Random::new(2), 1, 4096));
}

/// A stock receiver's buffer has 1 MiB; no payload of 512 KiB of pages comes near this, with any
/// content.
pub fn full_batches_of_the_worst_pages(subject: &Subject) {
    let mut random = Random::new(3);
    for settings in &subject.settings {
        let mut channel = Channel {
            encoder: encoder(subject.method, settings).unwrap(),
            ..subject.channel(PageSize::K4)
        };
        let noise = incompressible(&mut random);
        // Bytes with the longest codes in deflate's fixed Huffman table, in an order without
        // repeats.
        let long_codes: Vec<u8> = noise.iter().map(|byte| byte % 112 + 144).collect();
        for bytes in [&noise, &long_codes] {
            let len = channel.carry(bytes);
            assert!(len <= bytes.len() * 9 / 8 + 1024, "{len} at {settings:?}");
        }
    }
}

/// Pages of zeros arrive, in small payloads.
pub fn zero_pages(subject: &Subject) {
    let mut channel = subject.channel(PageSize::K4);
    for pages in [1, 128, 3] {
        let len_bytes = pages * 4096;
        let len = channel.carry(&vec![0; len_bytes]);
        assert!(
            subject.method == Method::None || len <= len_bytes / 64 + 100,
            "{len}"
        );
    }
}

/// A packet without pages has no payload, and the stream continues.
pub fn an_empty_batch_leaves_the_stream_alone(subject: &Subject) {
    let mut random = Random::new(4);
    let mut channel = subject.channel(PageSize::K4);
    assert_eq!(channel.carry(&[]), 0);
    for _ in 0..3 {
        channel.carry(&packet(&mut random, 5, 4096));
        assert_eq!(channel.carry(&[]), 0);
    }
}

/// Pages of all sizes arrive.
pub fn page_sizes(subject: &Subject) {
    let mut random = Random::new(5);
    for bytes in [1, 2, 4, 8, 16, 32, 64].map(|kib| kib << 10) {
        let page_size = PageSize::new(bytes).unwrap();
        let mut channel = subject.channel(page_size);
        for pages in [1, 3, page_size.pages_per_packet()] {
            channel.carry(&packet(&mut random, pages, page_size.bytes()));
        }
    }
}

/// A channel carries a thousand packets.
pub fn a_thousand_packets(subject: &Subject) {
    let mut random = Random::new(6);
    let mut channel = subject.channel(PageSize::K4);
    for _ in 0..1000 {
        let pages = 1 + random.below(4);
        channel.carry(&packet(&mut random, pages, 4096));
    }
}

/// The receiver reads payloads of all settings.
pub fn all_settings(subject: &Subject) {
    for settings in &subject.settings {
        let mut random = Random::new(7);
        let mut channel = Channel {
            encoder: encoder(subject.method, settings).unwrap(),
            ..subject.channel(PageSize::K4)
        };
        for pages in [2, 30] {
            channel.carry(&packet(&mut random, pages, 4096));
        }
    }
}

/// Encodes packets, usually as many at a time as there is room for, sometimes fewer. Checks that
/// their pages come back. Returns the payloads, up to the first error.
fn encode_all(
    encoder: &mut Encoder<usize>,
    packets: &[Vec<u8>],
) -> (Vec<Vec<u8>>, Result<(), EncodeError>) {
    let mut payloads = Vec::new();
    let mut pushed = 0;
    loop {
        while encoder.room() > 0
            && let Some(packet) = packets.get(pushed)
        {
            encoder.push(packet.clone().into(), PageSize::K4, pushed);
            pushed += 1;
            if pushed % 5 == 4 {
                break;
            }
        }
        let mut payload = b"what was in the buffer before".to_vec();
        match encoder.pop(&mut payload) {
            Ok(Some((pages, number))) => {
                assert_eq!(number, payloads.len());
                assert!(pages.as_ref() == packets[number]);
                payloads.push(payload);
            }
            Ok(None) => return (payloads, Ok(())),
            Err(failed) => {
                assert_eq!(failed.tag, payloads.len());
                return (payloads, Err(failed.error));
            }
        }
    }
}

/// Packets in work at the same time have the same payloads as one by one.
pub fn packets_in_work_are_as_one_by_one(subject: &Subject) {
    let mut random = Random::new(31);
    let lengths = [0, 128, 3, 0, 128, 128, 1, 128, 50, 0, 2, 128, 17];
    let packets = lengths.map(|pages| packet(&mut random, pages, 4096));
    for settings in &subject.settings {
        let mut one_by_one = encoder(subject.method, settings).unwrap();
        let mut together = Encoder::new(subject.method, settings).unwrap();
        // Twice, as both channels continue.
        for _ in 0..2 {
            let expected: Vec<_> = packets
                .iter()
                .map(|packet| encode(&mut one_by_one, packet, PageSize::K4))
                .collect();
            let (payloads, outcome) = encode_all(&mut together, &packets);
            outcome.unwrap();
            assert!(payloads == expected, "{settings:?}");
            assert_eq!(together.counts(), one_by_one.counts(), "{settings:?}");
        }
    }
}

/// The packets before a failing one have their payloads, and those after it are refused.
pub fn a_packet_that_fails_comes_behind_the_others(subject: &Subject) {
    let mut random = Random::new(32);
    let mut packets = vec![packet(&mut random, 20, 4096); 6];
    packets[3].pop();
    for settings in &subject.settings {
        let mut encoder = Encoder::new(subject.method, settings).unwrap();
        let (payloads, outcome) = encode_all(&mut encoder, &packets);
        let error = outcome.unwrap_err();
        assert_eq!(error.to_string(), "cannot encode this");
        assert_eq!(payloads.len(), 3);
        assert_eq!(encoder.counts().total(), 60, "{settings:?}");
        let (payloads, outcome) = encode_all(&mut encoder, &packets);
        assert!(payloads.is_empty());
        // Without room nothing is pushed and nothing is returned.
        outcome.unwrap();
        encoder.push(packets[0].clone().into(), PageSize::K4, 0);
        let error = encoder.pop(&mut Vec::new()).unwrap_err().error;
        assert_eq!(error.to_string(), poisoned(subject.method));
    }
}

/// A truncated payload either fails, or has lost only marks after the last page.
pub fn truncation(subject: &Subject) {
    let bytes = packet(&mut Random::new(8), 3, 4096);
    let payload = encode(&mut subject.encoder(), &bytes, PageSize::K4);
    let mut cut_pages = 0;
    let mut tried = 0;
    for len in (0..payload.len()).rev().step_by(subject.damage_every) {
        tried += 1;
        let mut decoder = subject.decoder();
        let mut pages = vec![0xa5; bytes.len()];
        match decoder.decode(&payload[..len], PageSize::K4, &mut pages) {
            Ok(()) => assert!(pages == bytes, "wrong pages out of {len} bytes"),
            Err(_) => {
                cut_pages += 1;
                expect_poisoned(decoder.as_mut(), &payload);
            }
        }
    }
    assert!(cut_pages + 8 >= tried, "{cut_pages}");
}

/// Flips every bit of a small payload: the result is an error or the right number of bytes, never a
/// panic. The bytes can be wrong, as the methods have no checksum.
pub fn corruption(subject: &Subject) {
    let bytes = packet(&mut Random::new(9), 2, 4096);
    let mut encoder = subject.encoder();
    let mut payload = encode(&mut encoder, &bytes, PageSize::K4);
    let next = encode(&mut encoder, &bytes, PageSize::K4);
    let mut pages = vec![0; bytes.len()];
    for bit in (0..payload.len() * 8).step_by(subject.damage_every) {
        payload[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = subject.decoder();
        match decoder.decode(&payload, PageSize::K4, &mut pages) {
            // The damage may show in later packets, which must not panic either.
            Ok(()) => drop(decoder.decode(&next, PageSize::K4, &mut pages)),
            Err(_) => expect_poisoned(decoder.as_mut(), &payload),
        }
        payload[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Random bytes are refused, or produce the right number of bytes of pages.
pub fn garbage(subject: &Subject) {
    let mut random = Random::new(10);
    let mut pages = vec![0; 2 * 4096];
    for _ in 0..500 {
        let len = random.below(3000);
        let mut payload: Vec<u8> = (0..len).map(|_| random.byte()).collect();
        if random.next().is_multiple_of(2) {
            // Valid at the start, to get past the check of the header.
            let head = encode(&mut subject.encoder(), &[1; 4096], PageSize::K4);
            let keep = head.len().min(payload.len()).min(6);
            payload[..keep].copy_from_slice(&head[..keep]);
        }
        drop(subject.decoder().decode(&payload, PageSize::K4, &mut pages));
    }
}

/// A payload of three pages is only accepted for three pages.
pub fn more_or_fewer_pages_than_there_are(subject: &Subject) {
    let bytes = packet(&mut Random::new(11), 3, 4096);
    let payload = encode(&mut subject.encoder(), &bytes, PageSize::K4);
    for pages in [0, 1, 2, 4, 128] {
        let mut decoder = subject.decoder();
        let mut room = vec![0; pages * 4096];
        let error = decoder
            .decode(&payload, PageSize::K4, &mut room)
            .unwrap_err();
        let (said, has) = (error.to_string(), bytes.len());
        let (expected, len) = (room.len(), payload.len());
        let mut allowed = vec![
            format!("the payload holds more than the {expected} bytes of its pages"),
            format!("the payload holds {has} bytes of pages instead of {expected}"),
            format!("a payload of {len} bytes for {expected} bytes of pages"),
        ];
        if matches!(subject.method, Method::Qpl | Method::Canned) {
            allowed.push("the table of page lengths is wrong".to_owned());
        }
        if pages == 0 {
            let words = "extra bytes after the payload's last page";
            allowed.push(format!("{len} {words}"));
        }
        assert!(allowed.contains(&said), "{said}");
        expect_poisoned(decoder.as_mut(), &payload);
    }
}

/// Buffers with partial pages, or too many, are refused.
pub fn a_buffer_that_is_no_packets_pages(subject: &Subject) {
    let payload = encode(&mut subject.encoder(), &[0; 4096], PageSize::K4);
    for len in [1, 4095, 4097, 129 * 4096] {
        let mut decoder = subject.decoder();
        let error = decoder
            .decode(&payload, PageSize::K4, &mut vec![0; len])
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot decode into this buffer");
        expect_poisoned(decoder.as_mut(), &payload);
    }
}

/// The words of a stream that ended at an earlier error.
fn poisoned(method: Method) -> String {
    format!("the {method} stream ended at an earlier error")
}

fn expect_poisoned(decoder: &mut dyn Decoder, good_payload: &[u8]) {
    for _ in 0..2 {
        let error = decoder
            .decode(good_payload, PageSize::K4, &mut [0; 4096])
            .unwrap_err();
        assert_eq!(error.to_string(), poisoned(decoder.method()));
    }
}

/// A guest that keeps writing while its pages are encoded. Each page has one value in all its
/// words, and the guest changes it word by word. So a page may arrive torn between two values, but
/// both are the guest's, and later packets are correct.
pub fn a_guest_that_keeps_writing(subject: &Subject) {
    const WORDS: usize = 512;
    let memory: Vec<AtomicU64> = (0..64 * WORDS).map(|_| AtomicU64::new(1)).collect();
    let handles: Vec<GuestPage<'_>> = (0..64)
        .rev()
        .step_by(3)
        .map(|page| {
            let words = NonNull::from(&memory[page * WORDS..][..WORDS]);
            // SAFETY: a page of atomics that outlives the handle and is only written as atomics.
            unsafe { GuestPage::new(words.cast(), PageSize::K4) }
        })
        .collect();
    let pages = Pages::guest(&handles, PageSize::K4).unwrap();
    let mut channel = subject.channel(PageSize::K4);
    let mut arrived = vec![0; handles.len() * 4096];
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 2.. {
                written.store(value, Ordering::SeqCst);
                for word in &memory {
                    word.store(value, Ordering::Release);
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..30 {
            let oldest = written.load(Ordering::SeqCst).saturating_sub(1);
            channel
                .encoder
                .encode(&pages, &mut channel.payload)
                .unwrap();
            // `written` contained every value before it could be read.
            fence(Ordering::Acquire);
            let newest = written.load(Ordering::SeqCst);
            channel
                .decoder
                .decode(&channel.payload, PageSize::K4, &mut arrived)
                .unwrap();
            for word in arrived.as_chunks().0 {
                let value = u64::from_ne_bytes(*word);
                assert!((oldest..=newest).contains(&value), "{value}");
            }
            channel.carry(&packet(&mut Random::new(newest), 4, 4096));
        }
        stop.store(true, Ordering::Relaxed);
    });
}
