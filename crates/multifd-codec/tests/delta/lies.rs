//! Payloads that are wrong.

use std::error::Error;
use std::time::Duration;

use multifd_codec::delta::payload_method;

use super::*;

/// The payloads of two packets: pages that are kept, and differences to them.
struct Two {
    packet: RamPacket,
    payloads: [Vec<u8>; 2],
    pages: [Vec<u8>; 2],
}

const FOOT: usize = 17;

fn two(method: Method) -> Two {
    let (sent, _) = ends(1 << 20);
    let mut encoder = writer(method, &sent);
    let old: Vec<u8> = (0..4).flat_map(|number| page(number, 4096)).collect();
    let mut new = old.clone();
    new[5] ^= 1;
    new[2 * 4096 + 9] ^= 1;
    new[3 * 4096..].copy_from_slice(&page(77, 4096));
    let pages = [old, new];
    let packet = packet("ram", PageSize::K4, &[3, 4, 5, 6], &[]);
    let payloads = pages.each_ref().map(|pages| {
        let (_, payload) = encode(&mut encoder, packet.clone(), pages, 0);
        payload
    });
    Two {
        packet,
        payloads,
        pages,
    }
}

impl Two {
    /// What comes of the second payload, changed, after the first one.
    fn changed(&self, method: Method, change: impl FnOnce(&mut Vec<u8>)) -> DeltaError {
        let (_, kept) = ends(1 << 20);
        let mut decoder = reader(method, &kept);
        decode(&mut decoder, &self.packet, &self.payloads[0]).unwrap();
        let mut payload = self.payloads[1].clone();
        change(&mut payload);
        let error = decode(&mut decoder, &self.packet, &payload).unwrap_err();
        let again = decode(&mut decoder, &self.packet, &self.payloads[1]);
        assert_eq!(again.unwrap_err().to_string(), POISONED);
        error
    }
}

#[test]
fn every_field_is_checked() {
    let two = two(Method::None);
    assert_eq!(payload_method(&two.payloads[1]).unwrap(), Method::None);
    // From the end: layout, directory bytes, pages, area bytes, digest.
    let byte = |back: usize, to: u8| {
        let two = &two;
        two.changed(Method::None, |payload| {
            let at = payload.len() - back;
            assert_ne!(payload[at], to);
            payload[at] = to;
        })
    };
    for (back, to, expected) in [
        (1, 9, "the layout 9 is unknown"),
        (1, 0x12, "a payload in zstd, but the channel has none"),
        (2, 200, "bytes of stored pages"),
        (2, 0, "bytes of stored pages"),
        (3, 0xff, "bytes of directory"),
        (4, 9, "the payload's foot states 9 pages, but there are 4"),
        (4, 0, "1 pages of differences, but there are 0"),
        (4, 4, "bytes of stored pages"),
        (6, 0xff, "bytes of stored pages"),
        (8, 0xff, "pages of differences"),
        (9, 0xff, "pages of differences"),
        (10, 1, "have digest"),
        (17, 1, "have digest"),
    ] {
        let error = byte(back, to).to_string();
        let full = format!("{error} {:?}", byte(back, to));
        assert!(
            full.contains(expected) || error.contains(expected),
            "{back} from the end: {error}"
        );
    }
    let none = two.changed(Method::None, Vec::clear);
    assert_eq!(none.to_string(), "a payload of 0 bytes has no foot");
    let cut = two.changed(Method::None, |payload| payload.truncate(9));
    let said = cut.to_string();
    let is_layout = said.starts_with("the layout ") && said.ends_with(" is unknown");
    assert!(
        is_layout || said == "a payload of 9 bytes has no foot",
        "{said}"
    );
}

/// Any bit of a payload that is wrong gives an error, or whole pages with that bit wrong: nothing
/// proves those, as without differences. Differences are never wrong.
#[test]
fn a_wrong_bit_never_makes_a_wrong_difference() {
    let two = two(Method::None);
    let (mut refused, mut taken) = (0, 0);
    for at in 0..two.payloads[1].len() {
        if at > 64 && at % 37 != 0 && at + 300 < two.payloads[1].len() {
            continue;
        }
        for bit in 0..8 {
            let kept = Kept::new(Share::take(64 << 10));
            let kept = Arc::new(kept.with_patience(Duration::ZERO));
            let mut decoder = reader(Method::None, &kept);
            decode(&mut decoder, &two.packet, &two.payloads[0]).unwrap();
            let mut payload = two.payloads[1].clone();
            payload[at] ^= 1 << bit;
            match decode(&mut decoder, &two.packet, &payload) {
                Err(_) => refused += 1,
                Ok(pages) => {
                    taken += 1;
                    assert!(pages[..3 * 4096] == two.pages[1][..3 * 4096], "byte {at}");
                }
            }
        }
    }
    assert!(
        refused > 200 && taken > 300,
        "{refused} refused, {taken} taken"
    );
}

#[test]
fn a_base_that_is_not_there_is_told() {
    let two = two(Method::Zlib);
    // The first payload twice: the second time its versions are gone.
    let (_, kept) = ends(1 << 20);
    let mut first = reader(Method::Zlib, &kept);
    let mut second = reader(Method::Zlib, &kept);
    decode(&mut first, &two.packet, &two.payloads[0]).unwrap();
    let error = decode(&mut second, &two.packet, &two.payloads[0]).unwrap_err();
    let expected = "slot 0 has version 1, but the operation expects the older version 0";
    assert_eq!(error.to_string(), expected);

    // Another page is in the slot.
    let (_, kept) = ends(1 << 20);
    let mut decoder = reader(Method::None, &kept);
    let two = super::lies::two(Method::None);
    let mut other = two.payloads[0].clone();
    other[100] ^= 1;
    decode(&mut decoder, &two.packet, &other).unwrap();
    let error = decode(&mut decoder, &two.packet, &two.payloads[1]).unwrap_err();
    assert!(is_wrong_digest(&error), "{error}");
}

/// A payload of the method none with these parts.
fn made(pages: &[u8], area: &[u8], directory: &[u8], count: u16) -> Vec<u8> {
    let mut payload = [pages, area, directory].concat();
    payload.extend(0_u64.to_be_bytes());
    payload.extend((area.len() as u32).to_be_bytes());
    payload.extend(count.to_be_bytes());
    payload.extend((directory.len() as u16).to_be_bytes());
    payload.push(0x10);
    assert!(payload.len() >= FOOT);
    payload
}

#[test]
fn parts_have_to_fit() {
    let page = page(1, 4096);
    let outcome = |pages: &[u8], area: &[u8], directory: &[u8], count: u16| {
        let kept = Kept::new(Share::take(budget(3, PageSize::K4)));
        let kept = Arc::new(kept.with_patience(Duration::ZERO));
        let packet = packet("ram", PageSize::K4, &[3], &[]);
        let payload = made(pages, area, directory, count);
        decode(&mut reader(Method::None, &kept), &packet, &payload).map(drop)
    };
    let message = |outcome: Result<(), DeltaError>| outcome.unwrap_err().to_string();
    outcome(&page, b"", b"\x10", 1).unwrap();
    outcome(&page, b"", b"\x15\x04\x00", 1).unwrap();
    let error = outcome(&page, b"", b"\x15\x06\x00", 1);
    assert_eq!(message(error), "slot 3, but there are 3");
    let error = outcome(b"", b"", b"\x10", 0);
    assert_eq!(
        message(error),
        "the payload's foot states 0 whole pages, but there are 0"
    );
    let error = outcome(b"", b"\x00", b"\x10", 1);
    assert_eq!(
        message(error),
        "the payload's foot states 0 whole pages, but there are 0"
    );
    let error = outcome(&page, b"", b"\x13\x02", 1);
    let expected = "slot 2 has version 0, and version 1 did not come in time";
    let error = outcome(&page, b"", b"\x17\x04\x02", 1).and(error);
    assert_eq!(message(error), expected);
    let error = outcome(&page, b"", b"\x10\x10", 1);
    let error = error.unwrap_err();
    let place = "the directory is wrong at page 1 of the packet";
    assert_eq!(error.to_string(), place);
    let trailing = "1 bytes follow the last page's operation";
    assert_eq!(error.source().unwrap().to_string(), trailing);
}

/// A page of another size than the first for a slot.
#[test]
fn slots_are_of_one_size() {
    let (_, kept) = ends(1 << 20);
    let send = |page_size: PageSize| {
        let packet = packet("ram", page_size, &[3], &[]);
        let payload = made(&page(1, page_size.bytes()), b"", b"\x11\x00", 1);
        decode(&mut reader(Method::None, &kept), &packet, &payload).map(drop)
    };
    send(PageSize::MAX).unwrap();
    let error = send(PageSize::K4).unwrap_err();
    let words = "a page of 4096 bytes for a slot of 65536 bytes";
    assert_eq!(error.to_string(), words);
}
