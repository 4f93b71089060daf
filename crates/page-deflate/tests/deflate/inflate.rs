//! Our decoders against zlib's output, and against damaged data, of which they accept only the
//! valid part.

use page_deflate::{InflateError, PageInflater, StreamInflater};
use testkit::iterations;
use testkit::oracle::{Ending, Oracle};
use testkit::pages::{Random, packet, push_page};
use testkit::zlib::{Deflate, Inflate};

const PAGE: usize = 4096;

fn damage(random: &mut Random, data: &mut Vec<u8>) {
    for _ in 0..1 + random.below(3) {
        let place = random.below(data.len());
        match random.below(4) {
            0 => data[place] ^= 1 << random.below(8),
            1 => data[place] = random.byte(),
            2 => data.truncate(place.max(1)),
            _ => {
                let other = random.below(data.len());
                data.swap(place, other);
            }
        }
    }
}

#[test]
fn reads_streams_of_zlib() {
    let mut random = Random::new(10);
    for level in [0, 1, 3, 6, 9] {
        for page_bytes in [1024, 4096, 65536] {
            let mut deflate = Deflate::new(level, 15);
            let mut inflater = StreamInflater::new();
            for count in [1, 2, 128 * 1024 / page_bytes, 1, 1] {
                let pages = packet(&mut random, count, page_bytes);
                let mut payload = Vec::new();
                deflate.packet(&pages, page_bytes, &mut payload);
                let mut decoded = vec![0xaa; pages.len()];
                assert_eq!(inflater.inflate(&payload, &mut decoded), Ok(()));
                assert!(decoded == pages);
            }
        }
    }
}

#[test]
fn reads_pages_of_zlib() {
    let mut random = Random::new(11);
    let mut inflater = PageInflater::new();
    for level in [0, 1, 6, 9] {
        let mut deflate = Deflate::new(level, -15);
        for _ in 0..iterations(100) {
            let mut page = Vec::new();
            push_page(&mut random, PAGE, &mut page);
            let mut stream = Vec::new();
            deflate.whole(&page, &mut stream);
            let mut decoded = vec![0xaa; PAGE];
            assert_eq!(inflater.inflate(&stream, &mut decoded), Ok(()));
            assert!(decoded == page);
        }
    }
}

#[test]
fn agrees_with_zlib_on_damaged_pages() {
    let mut random = Random::new(12);
    let mut deflate = Deflate::new(6, -15);
    let mut inflate = Inflate::new(-15);
    let mut inflater = PageInflater::new();
    for _ in 0..iterations(4000) {
        let mut page = Vec::new();
        push_page(&mut random, PAGE, &mut page);
        let mut stream = Vec::new();
        deflate.whole(&page, &mut stream);
        damage(&mut random, &mut stream);
        let mut decoded = vec![0; PAGE];
        let (reference, ended) = inflate.whole(&stream, PAGE);
        match inflater.inflate(&stream, &mut decoded) {
            Ok(()) => {
                assert!(ended);
                assert!(decoded == reference);
            }
            Err(error) => assert!(
                !ended || reference.len() < PAGE,
                "zlib reads on after {error:?}"
            ),
        }
    }
}

#[test]
fn agrees_with_the_oracle_on_damaged_packets() {
    let mut random = Random::new(13);
    let oracle = Oracle::new(32 * 1024, Ending::SyncFlush);
    let mut good = 0;
    for round in 0..iterations(400) {
        let count = 1 + random.below(12);
        let pages = packet(&mut random, count, PAGE);
        let mut payload = Vec::new();
        Deflate::new([1, 6, 9][round % 3], 15).packet(&pages, PAGE, &mut payload);
        let mut blocks = payload.split_off(2);
        damage(&mut random, &mut blocks);
        payload.extend_from_slice(&blocks);

        let mut decoded = vec![0; pages.len()];
        let outcome = StreamInflater::new().inflate(&payload, &mut decoded);
        match oracle.decode(&blocks, pages.len()) {
            Ok(reference) => {
                assert_eq!(outcome, Ok(()));
                assert!(decoded == reference.output);
                good += 1;
            }
            Err(violation) => {
                assert!(outcome.is_err(), "reads what is refused with {violation:?}");
            }
        }
    }
    assert!(good > 0);
}

#[test]
fn never_takes_a_part_for_the_whole() {
    let mut random = Random::new(14);
    let pages = packet(&mut random, 3, 1024);
    let mut payload = Vec::new();
    Deflate::new(6, 15).packet(&pages, 1024, &mut payload);
    let mut stream = Vec::new();
    Deflate::new(6, -15).whole(&pages, &mut stream);
    let mut decoded = vec![0; pages.len()];
    for end in 0..payload.len() {
        assert!(
            StreamInflater::new()
                .inflate(&payload[..end], &mut decoded)
                .is_err()
        );
    }
    for end in 0..stream.len() {
        assert!(
            PageInflater::new()
                .inflate(&stream[..end], &mut decoded)
                .is_err()
        );
    }
    let words = |outcome: Result<(), InflateError>| outcome.unwrap_err().to_string();
    stream.push(0);
    assert_eq!(
        words(PageInflater::new().inflate(&stream, &mut decoded)),
        "1 bytes follow the end of the compressed data"
    );
    stream.pop();
    let (whole, less, more) = (pages.len(), pages.len() - 1, pages.len() + 1);
    assert_eq!(
        words(PageInflater::new().inflate(&stream, &mut decoded[1..])),
        format!("the compressed data gives more than {less} bytes")
    );
    decoded.push(0);
    let too_short = format!("the compressed data gives {whole} bytes instead of {more}");
    assert_eq!(
        words(PageInflater::new().inflate(&stream, &mut decoded)),
        too_short
    );
    assert_eq!(
        words(StreamInflater::new().inflate(&payload, &mut decoded)),
        too_short
    );
}

#[test]
fn survives_noise() {
    let mut random = Random::new(15);
    let mut inflater = PageInflater::new();
    let mut page = vec![0; PAGE];
    for _ in 0..iterations(20_000) {
        let length = random.below(300);
        let mut noise: Vec<u8> = (0..length).map(|_| random.byte()).collect();
        // Half of the cases start like a dynamic block with few symbols, to get past the
        // description.
        if let Some(first) = noise.first_mut().filter(|_| length.is_multiple_of(2)) {
            *first = *first & 0x18 | 0x05;
        }
        let outcome = inflater.inflate(&noise, &mut page);
        assert!(
            outcome.is_err()
                || Oracle::new(32 * 1024, Ending::FinalBlock)
                    .decode(&noise, PAGE)
                    .is_ok()
        );
    }
}

#[test]
fn refuses_other_headers() {
    let mut pages = [0; 16];
    for found in [
        [0x78, 0x02],
        [0x79, 0x01],
        [0x88, 0x1c],
        [0x78, 0x20],
        [0x1f, 0x8b],
    ] {
        let error = StreamInflater::new()
            .inflate(&found, &mut pages)
            .unwrap_err();
        let words = format!("bytes {found:02x?} are not a zlib header");
        assert_eq!(error.to_string(), words);
    }
}

#[test]
fn keeps_history_over_packets() {
    let mut random = Random::new(16);
    let noise: Vec<u8> = (0..PAGE).map(|_| random.byte()).collect();
    let mut deflate = Deflate::new(6, 15);
    let mut inflater = StreamInflater::new();
    let mut payload = Vec::new();
    let mut decoded = vec![0; PAGE];
    for packet in 0..20 {
        payload.clear();
        deflate.packet(&noise, PAGE, &mut payload);
        assert!(packet == 0 || payload.len() < 100);
        assert_eq!(inflater.inflate(&payload, &mut decoded), Ok(()));
        assert!(decoded == noise);
        if packet > 0 {
            let alone = [&[0x78, 0x01], &payload[..]].concat();
            let error = StreamInflater::new()
                .inflate(&alone, &mut decoded)
                .unwrap_err();
            assert!(error.to_string().starts_with("distance "), "{error}");
        }
    }
}
