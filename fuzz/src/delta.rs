//! The target of differences to pages that were sent before.

use std::sync::Arc;
use std::time::Duration;

use multifd_codec::delta::memory::Share;
use multifd_codec::delta::{Decoder, DeltaError, Encoder, Kept, Sent};
use multifd_codec::{PageBuffer, Settings, decoder};
use multifd_wire::{BlockName, Method, PageSize, RamPacket};
use testkit::allocations::measure;

const PAGE_SIZE: PageSize = PageSize::MIN;
const PAGE: usize = PAGE_SIZE.bytes();
/// The pages of the guest, of which not all have a slot.
const PAGES: usize = 12;
const BUDGET: u64 = 8 * (PAGE as u64 + 64);

/// Payloads from anywhere are taken or refused, in bounded memory; after one that is refused none
/// is taken. Payloads of a sender arrive, and after a change they are refused, or give pages of
/// which only those are wrong that nothing proves.
///
/// The first byte of `data` says which of the two the rest is, and whether the receiver has slots
/// or the pages in place.
pub fn delta(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    let method = match choice / 2 % 3 {
        0 => Method::None,
        1 => Method::Zlib,
        _ => Method::Qpl,
    };
    let is_in_place = choice / 6 % 2 == 1;
    match choice % 2 {
        0 => foreign(method, is_in_place, rest),
        _ => changed(method, is_in_place, rest),
    }
}

/// Each payload is preceded by the number of its pages and its length.
fn foreign(method: Method, is_in_place: bool, mut rest: &[u8]) {
    let mut receiver = Receiver::new(method, is_in_place);
    let (most, _) = measure(|| {
        let mut is_whole = true;
        while let Some((&[pages, high, low], behind)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_be_bytes([high, low])).min(behind.len());
            let (payload, behind) = behind.split_at(len);
            rest = behind;
            let numbers: Vec<usize> = (0..1 + usize::from(pages) % PAGES).collect();
            let outcome = receiver.decode(&packet(&numbers), payload);
            is_whole &= outcome.is_ok();
            assert!(is_whole || outcome.is_err(), "taken after an error");
        }
    });
    // All slots, a packet or two, the method's tools.
    assert!(most <= 512 << 10, "{most} bytes");
}

/// A script of packets: the first page and the number of pages, how they are changed, and at last
/// which bit of which payload is changed on the way.
fn changed(method: Method, is_in_place: bool, script: &[u8]) {
    let Some((&[high, low, which], script)) = script.split_first_chunk() else {
        return;
    };
    let at = usize::from(u16::from_be_bytes([high, low]));
    let share = Share::take(BUDGET);
    let sent = Arc::new(match is_in_place {
        true => Sent::in_place(share),
        false => Sent::new(share),
    });
    let inner = multifd_codec::Encoder::new(method, &Settings::default()).expect("a method");
    let mut encoder = Encoder::new(inner, Some(sent));
    let mut receiver = Receiver::new(method, is_in_place);
    let mut guest: Vec<u8> = (0..PAGES * PAGE).map(|at| (at / 9) as u8).collect();
    let mut is_changed = false;
    for (index, step) in script.chunks_exact(4).take(32).enumerate() {
        let &[first, count, place, change] = step else {
            return;
        };
        let first = usize::from(first) % PAGES;
        let count = 1 + usize::from(count) % (PAGES - first);
        let numbers: Vec<usize> = (first..first + count).collect();
        for &number in &numbers {
            let page = &mut guest[number * PAGE..(number + 1) * PAGE];
            let start = usize::from(place) * 4;
            let end = PAGE.min(start + usize::from(change) * usize::from(change) / 32);
            page[start..end].iter_mut().for_each(|byte| *byte ^= change);
        }
        let pages = &guest[first * PAGE..(first + count) * PAGE];
        let mut payload = Vec::new();
        encoder.push(pages.to_vec().into(), index as u64 / 4, packet(&numbers));
        let (_, packet) = encoder
            .pop(&mut payload)
            .expect("encoded")
            .expect("a packet");
        if usize::from(which) == index && !payload.is_empty() {
            let at = at % (8 * payload.len());
            payload[at / 8] ^= 1 << (at % 8);
            is_changed = true;
        }
        match receiver.decode(&packet, &payload) {
            Ok(arrived) => assert!(is_changed || arrived == pages, "wrong pages"),
            Err(error) => {
                assert!(is_changed, "{error}");
                return;
            }
        }
    }
}

/// One channel's decoder, and what is in place.
struct Receiver {
    decoder: Decoder,
    is_in_place: bool,
    /// The pages that have come.
    pages: Vec<Option<Vec<u8>>>,
}

impl Receiver {
    fn new(method: Method, is_in_place: bool) -> Self {
        let inner = decoder(method, &Settings::default()).expect("a method");
        let decoder = match is_in_place {
            true => Decoder::in_place(inner),
            false => {
                let share = Share::take(BUDGET);
                assert_eq!(share.bytes(), BUDGET);
                // There is one channel, so no wait is of use.
                let kept = Kept::new(share).with_patience(Duration::ZERO);
                Decoder::new(inner, Some(Arc::new(kept)))
            }
        };
        Self {
            decoder,
            is_in_place,
            pages: vec![None; PAGES],
        }
    }

    fn decode(&mut self, packet: &RamPacket, payload: &[u8]) -> Result<Vec<u8>, DeltaError> {
        let mut arrived = PageBuffer::default();
        arrived.space(packet.normal().len() * PAGE);
        let mut payload = payload.to_vec();
        if !self.is_in_place {
            // It is given up as soon as it waits for a time.
            let decoder = &mut self.decoder;
            decoder.decode(&mut payload, packet, &mut arrived, &|| true)?;
            return Ok(arrived.into());
        }
        let base = |offset: u64, page: &mut [u8]| match &self.pages[offset as usize / PAGE] {
            Some(base) => {
                page.copy_from_slice(base);
                true
            }
            None => false,
        };
        let decoder = &mut self.decoder;
        decoder.decode_in_place(&mut payload, packet, &mut arrived, &base)?;
        for (offset, page) in packet.normal().iter().zip(arrived.as_ref().chunks(PAGE)) {
            self.pages[*offset as usize / PAGE] = Some(page.to_vec());
        }
        Ok(arrived.into())
    }
}

fn packet(numbers: &[usize]) -> RamPacket {
    let offsets: Vec<u64> = numbers.iter().map(|page| (page * PAGE) as u64).collect();
    let block = BlockName::try_from("pc.ram").expect("a name");
    RamPacket::new(PAGE_SIZE, block, &offsets, &[], 0).expect("a packet")
}
