//! The target of the method `canned`.

use multifd_codec::{Settings, decoder};
use multifd_wire::lengths::{self, PageData};
use multifd_wire::{Method, PageSize};
use page_deflate::CodeLengths;
use testkit::oracle::{Ending, Oracle};

/// Payloads that are taken hold, after the description of their code, streams which the judge
/// reads the same; after one that is refused none is taken.
///
/// The first bytes of `data` say how many pages there are, of which size, and how long the first of
/// two payloads is.
pub fn canned(data: &[u8]) {
    let Some((&[pages, log2, high, low], payloads)) = data.split_first_chunk() else {
        return;
    };
    let pages = 1 + usize::from(pages % 4);
    let page_size = PageSize::new(1 << (10 + log2 % 7)).expect("a page size");
    let first = usize::from(u16::from_be_bytes([high, low])).min(payloads.len());
    let (first, second) = payloads.split_at(first);

    let mut decoder = decoder(Method::Canned, &Settings::default()).expect("always there");
    let mut description = Vec::new();
    for payload in [first, second] {
        let mut arrived = vec![0xaa; pages * page_size.bytes()];
        match decoder.decode(payload, page_size, &mut arrived) {
            Ok(()) => check(payload, page_size, &arrived, &mut description),
            Err(_) => {
                let outcome = decoder.decode(first, page_size, &mut arrived);
                let said = outcome.expect_err("an earlier error").to_string();
                assert_eq!(said, "the canned stream ended at an earlier error");
                return;
            }
        }
    }
}

fn check(payload: &[u8], page_size: PageSize, arrived: &[u8], description: &mut Vec<u8>) {
    let len = usize::from(u16::from_be_bytes([payload[2], payload[3]]));
    let (brought, list) = payload[4..].split_at(len);
    if !brought.is_empty() {
        let lengths = CodeLengths::read_header(brought).expect("it was taken");
        description.clear();
        lengths.write_header(description);
    }
    let lengths = CodeLengths::read_header(description).expect("our own");
    let header_bits = lengths.write_header(&mut Vec::new());
    let contents = arrived.chunks(page_size.bytes());
    let list = lengths::parse(list, contents.len(), page_size).expect("it was taken");
    let oracle = Oracle::new(32 << 10, Ending::FinalBlock);
    for (page, content) in list.zip(contents) {
        let PageData::Compressed(body) = page else {
            assert_eq!(page.bytes(), content);
            continue;
        };
        let mut stream = join(description, header_bits, body);
        let judged = oracle.decode(&stream, content.len()).or_else(|_| {
            // The last byte may hold nothing of the page.
            stream.pop();
            oracle.decode(&stream, content.len())
        });
        assert!(judged.expect("it was taken").output == content);
    }
}

/// One after the other, bit by bit.
fn join(header: &[u8], header_bits: usize, body: &[u8]) -> Vec<u8> {
    let mut stream = header.to_vec();
    stream.resize((header_bits + 8 * body.len()).div_ceil(8), 0);
    for bit in 0..8 * body.len() {
        let at = header_bits + bit;
        stream[at / 8] |= (body[bit / 8] >> (bit % 8) & 1) << (at % 8);
    }
    stream
}
