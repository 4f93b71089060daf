//! The memory for long frames is bounded over all connections of a process. The bound is that of
//! the process, so these tests have one of their own.

use std::sync::{Mutex, PoisonError};

use multifd_relay::trunk::frame_memory::{DEFAULT_LIMIT, FREE_BODY_LEN, held, limit, set_limit};
use multifd_relay::trunk::{
    Compression, Digest, Frame, FrameFault, FrameReader, FrameWriter, HEADER_LEN, MAX_BODY_LEN,
};

/// The tests have the process's total one after another.
static ALONE: Mutex<()> = Mutex::new(());

fn reader() -> FrameReader {
    FrameReader::new(Digest::Xxh3, Compression::None).expect("no compression")
}

/// A data frame with a body of this length.
fn frame(len: usize) -> Vec<u8> {
    let body = vec![0x5a; len];
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).expect("no compression");
    let header = writer.data(&[&body]).expect("a length that is allowed");
    [&header[..], &body].concat()
}

#[test]
fn long_frames_share_a_total_and_short_ones_need_none() {
    const ALLOWED: u64 = 4 << 20;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_limit(ALLOWED);
    assert_eq!((limit(), held()), (ALLOWED, 0));
    // A stated length takes nothing.
    let long = frame(MAX_BODY_LEN);
    let mut stated = reader();
    assert_eq!(stated.push(&mut &long[..HEADER_LEN]), Ok(None));
    assert_eq!(held(), 0);
    // Each of these peers withholds the last byte.
    let unfinished = &long[..long.len() - 1];
    let mut readers: Vec<_> = (0..256).map(|_| reader()).collect();
    let outcomes: Vec<_> = readers
        .iter_mut()
        .map(|reader| reader.push(&mut &*unfinished).map(|frame| frame.is_none()))
        .collect();
    let taken = outcomes.iter().filter(|outcome| **outcome == Ok(true));
    assert_eq!(
        taken.count() as u64,
        ALLOWED / (MAX_BODY_LEN - FREE_BODY_LEN) as u64
    );
    let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
    let Some(&FrameFault::Memory { left, allowed, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(left < (MAX_BODY_LEN - FREE_BODY_LEN) as u64);
    assert_eq!(allowed, ALLOWED);
    assert!(held() <= ALLOWED);
    // What our relays write passes beside them.
    let short = frame(FREE_BODY_LEN);
    let body = &short[HEADER_LEN..];
    assert_eq!(reader().push(&mut &short[..]), Ok(Some(Frame::Data(body))));
    drop(readers);
    assert_eq!(held(), 0);
    // A reader returns its share when it has no use for it and others may need it.
    set_limit(1 << 20);
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).expect("no compression");
    let mut keeper = reader();
    for len in [900_000, FREE_BODY_LEN, 900_000] {
        let body = vec![1; len];
        let header = writer.data(&[&body]).expect("a length that is allowed");
        let bytes = [&header[..], &body].concat();
        assert_eq!(keeper.push(&mut &bytes[..]), Ok(Some(Frame::Data(&body))));
        assert_eq!(held() > 0, len > FREE_BODY_LEN, "{len}");
    }
}

/// What is compressed takes its share before it is decompressed.
#[cfg(feature = "zstd")]
#[test]
fn a_content_counts_too() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_limit(DEFAULT_LIMIT);
    let zeros = vec![0; MAX_BODY_LEN];
    let mut compressed = Vec::new();
    // The peer's frame, which states more than ours would.
    let mut packed = vec![0; 4096];
    let len = zstd_safe::compress(&mut packed[..], &zeros, 1).expect("it fits");
    let body = [&(MAX_BODY_LEN as u32).to_be_bytes()[..], &packed[..len]].concat();
    let mut head = [0; 8];
    head[0] = 1;
    head[4..].copy_from_slice(&(body.len() as u32).to_be_bytes());
    compressed.extend(head);
    compressed.extend([0; 8]);
    compressed.extend(&body);
    let mut reader =
        FrameReader::new(Digest::None, Compression::Zstd).expect("this build has zstd");
    let frame = reader.push(&mut &compressed[..]);
    assert_eq!(frame, Ok(Some(Frame::Data(&zeros))));
    assert!(held() >= (MAX_BODY_LEN - FREE_BODY_LEN) as u64);
}
