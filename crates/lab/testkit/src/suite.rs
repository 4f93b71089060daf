//! What every codec has to do, written over the traits.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use multifd_codec::{
    DecodeError, Decoder, EncodeError, Encoder, Flow, GuestPage, MAX_PAYLOAD_BYTES, PageBuffer,
    Pages, Settings, decoder, encoder,
};
use multifd_wire::{Method, PageSize};

use crate::pages::{Random, packet};

/// Runs all of the suite for functions of these names, each of which gives a subject, or none if it cannot be had here.
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
                a_flow_is_its_packets_one_by_one
                a_flow_that_ends_early
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

/// A codec under test: a method, and the settings that are to behave alike with it, the usual ones first.
pub struct Subject {
    /// The method.
    pub method: Method,
    /// The settings.
    pub settings: Vec<Settings>,
    /// Of the many bits of a payload that could be damaged each how-many-th is: 1 unless the codec is slow.
    pub damage_every: usize,
}

impl Subject {
    fn encoder(&self) -> Box<dyn Encoder> {
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
    encoder: Box<dyn Encoder>,
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
        let mut arrived = vec![0xa5; bytes.len()];
        self.decoder
            .decode(&self.payload, self.page_size, &mut arrived)
            .unwrap();
        assert!(arrived == bytes, "other pages than were sent");
        self.payload.len()
    }
}

fn encode(encoder: &mut dyn Encoder, bytes: &[u8], page_size: PageSize) -> Vec<u8> {
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

/// Both ends say which method they have.
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

/// Each page that arrives has gone one of the ways, at both ends.
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

/// A stock receiver's buffer takes 1 MiB; nothing of 512 KiB of pages comes near to it, whatever is in them.
pub fn full_batches_of_the_worst_pages(subject: &Subject) {
    let mut random = Random::new(3);
    for settings in &subject.settings {
        let mut channel = Channel {
            encoder: encoder(subject.method, settings).unwrap(),
            ..subject.channel(PageSize::K4)
        };
        let noise = incompressible(&mut random);
        // Bytes that have the longest codes in deflate's fixed Huffman table, in an order without repeats.
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

/// A packet without pages has no payload, and the stream goes on.
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

/// The pages of some packets, and what has become of them.
struct Packets {
    packets: Vec<Vec<u8>>,
    brought: usize,
    payloads: Vec<Vec<u8>>,
    /// Wants no more payloads than so many.
    most: usize,
}

impl Packets {
    fn new(packets: &[Vec<u8>]) -> Self {
        Self {
            packets: packets.to_vec(),
            brought: 0,
            payloads: Vec::new(),
            most: usize::MAX,
        }
    }
}

impl Flow for Packets {
    fn next(&mut self) -> Option<PageBuffer> {
        // Now and then there is none at the moment, though there is one when the last one is done.
        if self.brought % 5 == 4 && self.brought > self.payloads.len() {
            return None;
        }
        let packet = self.packets.get_mut(self.brought)?;
        self.brought += 1;
        Some(std::mem::take(packet).into())
    }

    fn done(&mut self, pages: PageBuffer, payload: &mut Vec<u8>) -> bool {
        assert!(self.payloads.len() < self.most, "called after it said no");
        self.packets[self.payloads.len()] = pages.into();
        self.payloads.push(std::mem::take(payload));
        self.payloads.len() < self.most
    }
}

/// A flow has the payloads of its packets one by one.
pub fn a_flow_is_its_packets_one_by_one(subject: &Subject) {
    let mut random = Random::new(31);
    let lengths = [0, 128, 3, 0, 128, 128, 1, 128, 50, 0, 2, 128, 17];
    let packets = lengths.map(|pages| packet(&mut random, pages, 4096));
    for settings in &subject.settings {
        let mut one_by_one = encoder(subject.method, settings).unwrap();
        let mut in_a_flow = encoder(subject.method, settings).unwrap();
        let expected: Vec<_> = packets
            .iter()
            .map(|packet| encode(&mut *one_by_one, packet, PageSize::K4))
            .collect();
        let mut flow = Packets::new(&packets);
        in_a_flow.encode_flow(&mut flow, PageSize::K4).unwrap();
        assert!(flow.payloads == expected, "{settings:?}");
        assert!(flow.packets == packets, "{settings:?}");
        assert_eq!(in_a_flow.counts(), one_by_one.counts(), "{settings:?}");

        // And both go on.
        let next = encode(&mut *one_by_one, &packets[1], PageSize::K4);
        let mut flow = Packets::new(&packets[1..2]);
        in_a_flow.encode_flow(&mut flow, PageSize::K4).unwrap();
        assert!(flow.payloads == [next], "{settings:?}");
    }
}

/// After a flow was stopped the encoder answers with an error.
pub fn a_flow_that_ends_early(subject: &Subject) {
    let mut random = Random::new(32);
    let mut packets = vec![packet(&mut random, 20, 4096); 6];
    for settings in &subject.settings {
        let mut stopped = encoder(subject.method, settings).unwrap();
        let mut flow = Packets::new(&packets);
        flow.most = 2;
        let error = stopped.encode_flow(&mut flow, PageSize::K4).unwrap_err();
        assert!(matches!(error, EncodeError::Stopped { .. }), "{error:?}");
        // That of the one whose payload was taken gladly.
        assert_eq!(stopped.counts().total(), 20, "{settings:?}");
        let error = stopped.encode_flow(&mut flow, PageSize::K4).unwrap_err();
        assert!(matches!(error, EncodeError::Poisoned { .. }), "{error:?}");
    }
    packets[3].pop();
    for settings in &subject.settings {
        let mut encoder = encoder(subject.method, settings).unwrap();
        let mut flow = Packets::new(&packets);
        let error = encoder.encode_flow(&mut flow, PageSize::K4).unwrap_err();
        assert!(matches!(error, EncodeError::Buffer(_)), "{error:?}");
        assert!(flow.payloads.len() <= 3);
        let mut payload = Vec::new();
        let pages = Pages::private(&packets[0], PageSize::K4).unwrap();
        let error = encoder.encode(&pages, &mut payload).unwrap_err();
        assert!(matches!(error, EncodeError::Poisoned { .. }), "{error:?}");
    }
}

/// A payload that is cut off either fails, or has lost nothing but marks behind the last page.
pub fn truncation(subject: &Subject) {
    let bytes = packet(&mut Random::new(8), 3, 4096);
    let payload = encode(subject.encoder().as_mut(), &bytes, PageSize::K4);
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

/// Every bit of a small payload turned over: an error, or as many bytes as there should be, never a panic. What the
/// bytes are cannot be told, as neither method has a checksum.
pub fn corruption(subject: &Subject) {
    let bytes = packet(&mut Random::new(9), 2, 4096);
    let mut encoder = subject.encoder();
    let mut payload = encode(encoder.as_mut(), &bytes, PageSize::K4);
    let next = encode(encoder.as_mut(), &bytes, PageSize::K4);
    let mut pages = vec![0; bytes.len()];
    for bit in (0..payload.len() * 8).step_by(subject.damage_every) {
        payload[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = subject.decoder();
        match decoder.decode(&payload, PageSize::K4, &mut pages) {
            // The damage may show in the packets that follow, and must not panic there either.
            Ok(()) => drop(decoder.decode(&next, PageSize::K4, &mut pages)),
            Err(_) => expect_poisoned(decoder.as_mut(), &payload),
        }
        payload[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Random bytes are refused, or are as many bytes of pages as there should be.
pub fn garbage(subject: &Subject) {
    let mut random = Random::new(10);
    let mut pages = vec![0; 2 * 4096];
    for _ in 0..500 {
        let len = random.below(3000);
        let mut payload: Vec<u8> = (0..len).map(|_| random.byte()).collect();
        if random.next().is_multiple_of(2) {
            // Past the first gate, where the header is checked.
            let head = encode(subject.encoder().as_mut(), &[1; 4096], PageSize::K4);
            let keep = head.len().min(payload.len()).min(6);
            payload[..keep].copy_from_slice(&head[..keep]);
        }
        drop(subject.decoder().decode(&payload, PageSize::K4, &mut pages));
    }
}

/// A payload of three pages is one of three pages only.
pub fn more_or_fewer_pages_than_there_are(subject: &Subject) {
    let bytes = packet(&mut Random::new(11), 3, 4096);
    let payload = encode(subject.encoder().as_mut(), &bytes, PageSize::K4);
    for pages in [0, 1, 2, 4, 128] {
        let mut decoder = subject.decoder();
        let mut room = vec![0; pages * 4096];
        let error = decoder
            .decode(&payload, PageSize::K4, &mut room)
            .unwrap_err();
        match error {
            DecodeError::TooLong { expected } => assert_eq!(expected, room.len()),
            DecodeError::TooShort { found, expected } => {
                assert_eq!((found, expected), (bytes.len(), room.len()));
            }
            DecodeError::Lengths(_) => {
                assert!(matches!(subject.method, Method::Qpl | Method::Canned));
            }
            DecodeError::Length { found, allowed } => {
                assert_eq!((found, allowed), (payload.len(), room.len()));
            }
            DecodeError::Trailing { found } => {
                assert_eq!((found, pages), (payload.len(), 0));
            }
            other => panic!("{other}"),
        }
        expect_poisoned(decoder.as_mut(), &payload);
    }
}

/// Buffers that are not whole pages, or too many, are refused.
pub fn a_buffer_that_is_no_packets_pages(subject: &Subject) {
    let payload = encode(subject.encoder().as_mut(), &[0; 4096], PageSize::K4);
    for len in [1, 4095, 4097, 129 * 4096] {
        let mut decoder = subject.decoder();
        let error = decoder
            .decode(&payload, PageSize::K4, &mut vec![0; len])
            .unwrap_err();
        assert!(matches!(error, DecodeError::Buffer(_)), "{error}");
        expect_poisoned(decoder.as_mut(), &payload);
    }
}

fn expect_poisoned(decoder: &mut dyn Decoder, good_payload: &[u8]) {
    for _ in 0..2 {
        let error = decoder
            .decode(good_payload, PageSize::K4, &mut [0; 4096])
            .unwrap_err();
        assert!(matches!(error, DecodeError::Poisoned { .. }), "{error}");
    }
}

/// A guest that keeps writing while its pages are encoded. Each page has one value in all its words, and the guest
/// changes word by word, so what arrives may be torn between two values, but it is made of what the guest wrote, and the
/// packets behind it are whole.
pub fn a_guest_that_keeps_writing(subject: &Subject) {
    const WORDS: usize = 512;
    let memory: Vec<AtomicU64> = (0..64 * WORDS).map(|_| AtomicU64::new(1)).collect();
    let handles: Vec<GuestPage<'_>> = (0..64)
        .rev()
        .step_by(3)
        .map(|page| {
            let words = NonNull::from(&memory[page * WORDS..][..WORDS]);
            // SAFETY: a page of atomics which outlives the handle and is only written as atomics.
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
            // Whatever value was read, `written` had it before.
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
