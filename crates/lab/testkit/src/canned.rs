//! A `canned` payload, taken apart by what its format says and with nothing of the codec.

use multifd_wire::PageSize;
use multifd_wire::lengths::{self, PageData};
use page_deflate::CodeLengths;

use crate::oracle::Oracle;
use crate::zlib::Inflate;

/// A payload's parts.
pub struct Taken<'a> {
    /// The format's version.
    pub version: u8,
    /// The number of the code that the pages are written in.
    pub generation: u8,
    /// Of a new code; empty without.
    pub description: &'a [u8],
    pages: Vec<PageData<'a>>,
}

impl<'a> Taken<'a> {
    /// Takes apart a payload of so many pages.
    pub fn apart(payload: &'a [u8], pages: usize) -> Self {
        let len = usize::from(u16::from_be_bytes([payload[2], payload[3]]));
        let (description, list) = payload[4..].split_at(len);
        Self {
            version: payload[0],
            generation: payload[1],
            description,
            pages: lengths::parse(list, pages, PageSize::K4).unwrap().collect(),
        }
    }

    /// Checks that the pages, each behind the description of its code, are streams of these
    /// contents: for the judge of what an IAA reads, and for the C zlib.
    pub fn check(&self, description: &[u8], contents: &[u8]) {
        let lengths = CodeLengths::read_header(description).unwrap();
        let header_bits = lengths.write_header(&mut Vec::new());
        let mut stock = Inflate::new(-15);
        for (page, content) in self.pages.iter().zip(contents.chunks(4096)) {
            match page {
                PageData::Raw(raw) => assert!(*raw == content),
                PageData::Compressed(body) => {
                    let mut stream = join(description, header_bits, body);
                    let (inflated, _) = stock.whole(&stream, 4096);
                    assert!(inflated == content);
                    // What fills the body's last byte may be a byte of its own behind the header.
                    let decoded = Oracle::IAA.decode(&stream, 4096).or_else(|_| {
                        assert_eq!(stream.pop(), Some(0));
                        Oracle::IAA.decode(&stream, 4096)
                    });
                    assert!(decoded.unwrap().output == content);
                }
            }
        }
    }
}

/// One behind the other, bit by bit.
fn join(header: &[u8], header_bits: usize, body: &[u8]) -> Vec<u8> {
    let mut stream = header.to_vec();
    stream.resize((header_bits + 8 * body.len()).div_ceil(8), 0);
    for bit in 0..8 * body.len() {
        let at = header_bits + bit;
        stream[at / 8] |= (body[bit / 8] >> (bit % 8) & 1) << (at % 8);
    }
    stream
}
