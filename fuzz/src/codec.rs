//! The targets of the page deflate codec.

use page_deflate::{
    Deflater, Effort, Histogram, PageDeflater, PageInflater, SharedCode, SharedInflater,
    StreamInflater, WindowSize,
};
use testkit::oracle::{Ending, Oracle};

const PAGE: usize = 4096;
/// Enough for an encoder's window to slide.
const MEMORY_BYTES: usize = 80 << 10;

/// Whatever is compressed comes out again: of a stream, packet by packet, with the judge's
/// approval, and of pages by themselves, as hardware would read them.
///
/// The first bytes of `data` choose the encoder, the rest is what memory is made of.
pub fn deflate(data: &[u8]) {
    let Some((&[choice, packet, repeats], texture)) = data.split_first_chunk() else {
        return;
    };
    let effort = Effort::ALL[usize::from(choice) % Effort::ALL.len()];
    let window = WindowSize::ALL[usize::from(choice >> 4) % WindowSize::ALL.len()];
    let memory = memory(texture, usize::from(repeats));

    let mut deflater = Deflater::new(window, effort);
    let mut inflater = StreamInflater::new();
    let mut blocks = Vec::new();
    let mut header = &window.zlib_header()[..];
    for pages in memory.chunks(1 + 97 * usize::from(packet) + memory.len() / 64) {
        let mut payload = header.to_vec();
        deflater.compress(pages, &mut payload);
        let mut arrived = vec![0xaa; pages.len()];
        inflater
            .inflate(&payload, &mut arrived)
            .expect("our own payload");
        assert!(arrived == pages);
        blocks.extend(&payload[header.len()..]);
        header = &[];
    }
    let oracle = Oracle::new(window.bytes(), Ending::SyncFlush);
    if !memory.is_empty() {
        let judged = oracle
            .decode(&blocks, memory.len())
            .expect("our own stream");
        assert!(judged.output == memory);
    }

    let mut deflater = PageDeflater::new(effort);
    let mut histogram = Histogram::new();
    for page in memory.chunks(PAGE).take(2) {
        deflater.count(page, &mut histogram);
    }
    let lengths = histogram.code_lengths();
    let (code, shared) = (SharedCode::new(&lengths), SharedInflater::new(&lengths));
    for page in memory.chunks(PAGE).take(3) {
        let mut out = Vec::new();
        if deflater.body(page, &code, &mut out) {
            let mut arrived = vec![0xaa; page.len()];
            shared.inflate(&out, &mut arrived).expect("our own body");
            assert!(arrived == page);
        }
        for is_fixed in [true, false] {
            out.clear();
            let is_smaller = if is_fixed {
                deflater.fixed_page(page, &mut out)
            } else {
                deflater.dynamic_page(page, &mut out)
            };
            if is_smaller {
                let judged = Oracle::IAA.decode(&out, page.len()).expect("our own page");
                assert!(judged.output == page);
            }
        }
    }
}

/// Data becomes more memory than a fuzzer writes: over and over, with a byte changed each time.
fn memory(texture: &[u8], repeats: usize) -> Vec<u8> {
    let mut memory: Vec<u8> = Vec::new();
    for repeat in 0..=repeats {
        let start = memory.len();
        if start + texture.len() > MEMORY_BYTES {
            break;
        }
        memory.extend(texture);
        if let Some(byte) = memory.get_mut(start + repeat % texture.len().max(1)) {
            *byte = byte.wrapping_add(repeat as u8);
        }
    }
    memory
}

/// Any bytes are read as the judge reads them or refused as it refuses them, and never read or
/// written beyond.
///
/// The first bytes of `data` say how much should come out.
pub fn inflate(data: &[u8]) {
    let Some((&size, stream)) = data.split_first_chunk() else {
        return;
    };
    let size = usize::from(u16::from_le_bytes(size));
    let mut page = vec![0; size];
    let oracle = |ending| Oracle::new(32 << 10, ending).decode(stream, size);

    let outcome = PageInflater::new().inflate(stream, &mut page);
    match oracle(Ending::FinalBlock) {
        Ok(judged) => {
            assert_eq!(outcome, Ok(()));
            assert!(page == judged.output);
        }
        Err(violation) => assert!(outcome.is_err(), "reads what is refused with {violation:?}"),
    }

    let payload = [&WindowSize::ThirtyTwoKiB.zlib_header(), stream].concat();
    let mut inflater = StreamInflater::new();
    let outcome = inflater.inflate(&payload, &mut page);
    match oracle(Ending::SyncFlush) {
        Ok(judged) => {
            assert_eq!(outcome, Ok(()));
            assert!(page == judged.output);
            // The same once more, now with history in which to find what is too far back.
            if inflater.inflate(stream, &mut page).is_ok() {
                assert!(page == judged.output);
            }
        }
        Err(violation) => assert!(outcome.is_err(), "reads what is refused with {violation:?}"),
    }

    // Two streams at a time give what one gives, wherever the other one ends.
    let (first, second) = stream.split_at(stream.len() / 2);
    for pieces in [[stream, stream], [stream, first], [second, stream]] {
        let [mut one, mut all] =
            [0x00, 0xff].map(|before| [vec![before; size], vec![before; size]]);
        let places = pieces.iter().zip(&mut one);
        let outcomes: Vec<_> = places
            .map(|(piece, page)| PageInflater::new().inflate(piece, page))
            .collect();
        let places = pieces
            .into_iter()
            .zip(all.iter_mut().map(Vec::as_mut_slice));
        match PageInflater::new().inflate_all(places) {
            Ok(()) => {
                assert!(outcomes.iter().all(Result::is_ok));
                assert!(one == all);
            }
            Err(error) => assert!(outcomes.contains(&Err(error))),
        }
    }

    // What comes out does not depend on what was there.
    let shared = SharedInflater::new(&Histogram::new().code_lengths());
    let outcomes = [0x00, 0xff].map(|before| {
        let mut page = vec![before; size];
        shared.inflate(stream, &mut page).map(|()| page)
    });
    assert!(outcomes[0] == outcomes[1]);
}
