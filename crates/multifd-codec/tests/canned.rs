//! Method `canned` in detail: the rules that a second implementation would rely on.

use std::error::Error;

use multifd_codec::{
    DecodeError, Decoder, Encoder, MAX_PAYLOAD_BYTES, Pages, Settings, decoder, encoder,
};
use multifd_wire::{Method, PageSize};
use page_deflate::CodeLengths;
use testkit::canned::Taken;
use testkit::pages::{Random, packet};

const PAGE: usize = PageSize::K4.bytes();

fn sender() -> Encoder {
    encoder(Method::Canned, &Settings::default()).unwrap()
}

fn receiver() -> Box<dyn Decoder> {
    decoder(Method::Canned, &Settings::default()).unwrap()
}

fn encode(encoder: &mut Encoder, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    encoder
        .encode(&Pages::private(bytes, PageSize::K4).unwrap(), &mut payload)
        .unwrap();
    assert!(payload.len() <= MAX_PAYLOAD_BYTES);
    payload
}

fn decode(decoder: &mut dyn Decoder, payload: &[u8], pages: usize) -> Result<Vec<u8>, DecodeError> {
    let mut arrived = vec![0; pages * PAGE];
    decoder.decode(payload, PageSize::K4, &mut arrived)?;
    Ok(arrived)
}

/// What is wrong with the head of a payload, with its cause.
fn head_fault(outcome: Result<Vec<u8>, DecodeError>) -> String {
    let error = match outcome {
        Err(error) => error,
        Ok(pages) => panic!("{} bytes", pages.len()),
    };
    assert_eq!(error.to_string(), "the head of the payload is wrong");
    let fault = error.source().expect("a fault");
    match fault.source() {
        Some(source) => format!("{fault}: {source}"),
        None => fault.to_string(),
    }
}

/// Pages of few different bytes, which depend on `kind`: codes made for one kind are bad for the
/// others.
fn texture(random: &mut Random, kind: u8, pages: usize) -> Vec<u8> {
    let byte = |random: &mut Random| kind.wrapping_mul(31).wrapping_add(random.below(9) as u8);
    (0..pages * PAGE).map(|_| byte(random)).collect()
}

#[test]
fn a_payload_is_what_its_description_says() {
    let mut random = Random::new(1);
    let mut sender = sender();
    let mut code = None;
    for round in 0..30 {
        let bytes = packet(&mut random, 1 + round % 128, PAGE);
        let payload = encode(&mut sender, &bytes);
        let taken = Taken::apart(&payload, bytes.len() / PAGE);
        if !taken.description.is_empty() {
            code = Some(taken.description.to_vec());
        }
        // With the description in front, an IAA and the C zlib read every page.
        taken.check(code.as_deref().unwrap(), &bytes);
    }
}

#[test]
fn codes_come_in_their_turn_and_only_when_they_pay() {
    let mut random = Random::new(2);
    let (mut sender, mut receiver) = (sender(), receiver());
    let mut expected = 0_u8;
    for round in 0..600 {
        // Each texture twice.
        let bytes = texture(&mut random, (round / 2) as u8, 12);
        let payload = encode(&mut sender, &bytes);
        let taken = Taken::apart(&payload, 12);
        let is_new = !taken.description.is_empty();
        assert_eq!(is_new, round % 2 == 0, "packet {round}");
        // 300 codes: generations wrap around after 255.
        if is_new && round > 0 {
            expected = expected.wrapping_add(1);
        }
        assert_eq!((taken.version, taken.generation), (1, expected));
        assert!(decode(receiver.as_mut(), &payload, 12).unwrap() == bytes);
    }
}

#[test]
fn a_code_that_was_missed_is_missed_by_name() {
    let mut random = Random::new(3);
    let mut sender = sender();
    let payloads: Vec<Vec<u8>> = [0, 0, 1, 1, 2]
        .map(|kind| encode(&mut sender, &texture(&mut random, kind, 12)))
        .into();
    let after = |taken: &[usize], next: usize| {
        let mut receiver = receiver();
        for &index in taken {
            decode(receiver.as_mut(), &payloads[index], 12).unwrap();
        }
        head_fault(decode(receiver.as_mut(), &payloads[next], 12))
    };
    let generation =
        |found, expected| format!("generation {found} of the code instead of {expected}");
    assert_eq!(after(&[], 1), "no code has come yet");
    assert_eq!(after(&[], 2), generation(1, 0));
    assert_eq!(after(&[0], 3), generation(1, 0));
    assert_eq!(after(&[0, 1], 4), generation(2, 1));
    assert_eq!(after(&[0, 2], 0), generation(0, 2));
    assert_eq!(after(&[0, 1, 2], 1), generation(0, 1));
}

#[test]
fn what_is_wrong_before_the_pages_is_named() {
    let bytes = texture(&mut Random::new(4), 0, 3);
    let payload = encode(&mut sender(), &bytes);
    let described = Taken::apart(&payload, 3).description.len();
    let fault = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut payload = payload.clone();
        change(&mut payload);
        let outcome = decode(receiver().as_mut(), &payload, 3);
        if let Err(error) = &outcome {
            assert_eq!(error.to_string(), "the head of the payload is wrong");
            assert!(error.source().is_some());
        }
        head_fault(outcome)
    };
    assert_eq!(
        fault(&|payload| payload.truncate(3)),
        "3 bytes instead of 4"
    );
    assert_eq!(
        fault(&|payload| payload.truncate(20)),
        format!("20 bytes instead of {}", 4 + described)
    );
    assert_eq!(
        fault(&|payload| payload[0] = 2),
        "version 2 of the format instead of 1"
    );
    assert_eq!(
        fault(&|payload| payload[1] = 7),
        "generation 7 of the code instead of 0"
    );
    // The fixed code has no description.
    assert_eq!(
        fault(&|payload| payload[4] = 0b011),
        "the description of the code is wrong: not a final dynamic block"
    );
    // Fewer literals and lengths than the format has.
    let fewer = fault(&|payload| payload[4] &= 0b0000_0111);
    let wrong = "the description of the code is wrong: ";
    assert!(fewer.starts_with(wrong), "{fewer}");
    // One byte after the end of the description.
    let longer = fault(&|payload| {
        payload[3] += 1;
        payload.insert(4 + described, 0);
    });
    let trailing = "1 bytes and some bits follow the header";
    assert_eq!(longer, format!("{wrong}{trailing}"));
}

/// Flips every bit of a description: the result is refused or is another valid code.
#[test]
fn no_description_is_taken_that_does_not_hold() {
    let payload = encode(&mut sender(), &texture(&mut Random::new(5), 0, 3));
    let description = Taken::apart(&payload, 3).description.to_vec();
    let whole = CodeLengths::read_header(&description).unwrap();
    let mut again = Vec::new();
    whole.write_header(&mut again);
    assert_eq!(again, description);
    let mut refused = 0;
    for bit in 0..8 * description.len() {
        let mut changed = description.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        match CodeLengths::read_header(&changed) {
            Ok(other) => assert_ne!(other, whole, "bit {bit}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 4 * description.len(), "{refused}");
    for len in 0..description.len() {
        CodeLengths::read_header(&description[..len]).unwrap_err();
    }
}
