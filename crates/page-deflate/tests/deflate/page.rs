//! Independent pages under the fixed code, a code of their own, and a shared code.

use page_deflate::{
    CodeLengths, Effort, Histogram, PageDeflater, PageInflater, SharedCode, SharedInflater,
};
use testkit::iterations;
use testkit::oracle::Oracle;
use testkit::pages::{Random, packet, push_page};
use testkit::zlib::Inflate;

/// Returns whether a page that does not get smaller leaves the output untouched.
fn is_left_alone(page: &[u8], out: &[u8], is_smaller: bool) -> bool {
    assert!(out.starts_with(b"before"));
    assert_eq!(is_smaller, out.len() > 6);
    assert!(out.len() < 6 + page.len());
    !is_smaller
}

#[test]
fn hardware_and_zlib_read_every_page() {
    let mut random = Random::new(40);
    let mut zlib = Inflate::new(-15);
    let mut own = PageInflater::new();
    let mut smaller = 0;
    for effort in Effort::ALL {
        let mut deflater = PageDeflater::new(effort);
        for round in 0..iterations(400) {
            let page_bytes = [4096, 4096, 1024, 65536][round % 4];
            let mut page = Vec::new();
            push_page(&mut random, page_bytes, &mut page);
            for is_fixed in [true, false] {
                let mut out = b"before".to_vec();
                let is_smaller = match is_fixed {
                    true => deflater.fixed_page(&page, &mut out),
                    false => deflater.dynamic_page(&page, &mut out),
                };
                if is_left_alone(&page, &out, is_smaller) {
                    continue;
                }
                smaller += 1;
                let stream = &out[6..];
                let decoded = Oracle::IAA.decode(stream, page.len()).unwrap();
                assert!(decoded.output == page);
                assert_eq!(decoded.tokens.fixed_blocks, usize::from(is_fixed));
                assert_eq!(decoded.tokens.dynamic_blocks, usize::from(!is_fixed));
                assert!(zlib.whole(stream, page.len()) == (page.clone(), true));
                let mut decoded = vec![0xaa; page.len()];
                assert_eq!(own.inflate(stream, &mut decoded), Ok(()));
                assert!(decoded == page);
            }
        }
    }
    assert!(smaller > iterations(1500));
}

#[test]
fn bodies_are_read_with_the_code_they_were_written_with() {
    let mut random = Random::new(41);
    for effort in Effort::ALL {
        let mut deflater = PageDeflater::new(effort);
        let mut histogram = Histogram::new();
        let sample = packet(&mut random, 64, 4096);
        for page in sample.chunks(4096) {
            deflater.count(page, &mut histogram);
        }
        let lengths = histogram.code_lengths();
        let mut header = Vec::new();
        lengths.write_header(&mut header);
        let sent = CodeLengths::read_header(&header).unwrap();
        assert_eq!(sent, lengths);
        let (code, inflater) = (SharedCode::new(&lengths), SharedInflater::new(&sent));

        let (mut fixed_bytes, mut shared_bytes) = (0, 0);
        for round in 0..iterations(300) {
            let page_bytes = [4096, 4096, 1024, 65536][round % 4];
            let mut page = Vec::new();
            push_page(&mut random, page_bytes, &mut page);
            let mut fixed = Vec::new();
            let is_smaller = deflater.fixed_page(&page, &mut fixed);
            fixed_bytes += if is_smaller { fixed.len() } else { page.len() };
            let mut body = b"before".to_vec();
            let is_smaller = deflater.body(&page, &code, &mut body);
            if is_left_alone(&page, &body, is_smaller) {
                shared_bytes += page.len();
                continue;
            }
            shared_bytes += body.len() - 6;
            let mut decoded = vec![0xaa; page.len()];
            assert_eq!(inflater.inflate(&body[6..], &mut decoded), Ok(()));
            assert!(decoded == page);
            // The output is empty or complete, never partial.
            assert!(
                inflater
                    .inflate(&body[6..body.len() - 1], &mut decoded)
                    .is_err()
            );
            body.push(0);
            let error = inflater.inflate(&body[6..], &mut decoded).unwrap_err();
            let trailing = "1 bytes follow the end of the compressed data";
            assert_eq!(error.to_string(), trailing);
        }
        assert!(shared_bytes < fixed_bytes, "{shared_bytes} {fixed_bytes}");
    }
}

#[test]
fn a_code_without_samples_takes_every_page() {
    let lengths = Histogram::new().code_lengths();
    let (code, inflater) = (SharedCode::new(&lengths), SharedInflater::new(&lengths));
    let mut deflater = PageDeflater::new(Effort::Balanced);
    let page: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let mut body = Vec::new();
    assert!(deflater.body(&page, &code, &mut body));
    let mut decoded = vec![0; 4096];
    assert_eq!(inflater.inflate(&body, &mut decoded), Ok(()));
    assert!(decoded == page);
}

#[test]
fn noise_in_a_large_page_does_not_spoil_the_rest() {
    let mut random = Random::new(42);
    let mut page = vec![7; 64 << 10];
    page[20_000..30_000].fill_with(|| random.byte());
    let mut out = Vec::new();
    assert!(PageDeflater::new(Effort::Balanced).dynamic_page(&page, &mut out));
    assert!(out.len() < 12_000, "{}", out.len());
    assert!(Oracle::IAA.decode(&out, page.len()).unwrap().output == page);
}
