//! What a peer can make an end allocate.

use multifd_relay::trunk::{
    AnswerReceiver, Compression, Digest, Frame, FrameReader, FrameWriter, HEADER_LEN, MAX_BODY_LEN,
    PrefaceReceiver,
};
use testkit::allocations::{measure, on_this_thread};

use super::preface;

#[test]
fn a_frame_allocates_nothing_once_there_was_one_as_long() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    let mut reader = FrameReader::new(Digest::Xxh3, Compression::None).unwrap();
    let data = vec![0x5a; 300_000];
    let mut wire = vec![0; HEADER_LEN + data.len()];
    let mut round = |len: usize| {
        let header = writer
            .data(&[&data[..len / 2], &data[len / 2..len]])
            .unwrap();
        wire[..HEADER_LEN].copy_from_slice(&header);
        wire[HEADER_LEN..][..len].copy_from_slice(&data[..len]);
        let mut input = &wire[..HEADER_LEN + len];
        assert_eq!(reader.push(&mut input), Ok(Some(Frame::Data(&data[..len]))));
        let mut input = &writer.alive().unwrap()[..];
        assert_eq!(reader.push(&mut input), Ok(Some(Frame::Alive)));
    };
    round(300_000);
    let before = on_this_thread();
    for len in [1, 100, 4096, 299_999, 300_000] {
        round(len);
    }
    assert_eq!(on_this_thread() - before, 0);
}

#[cfg(feature = "zstd")]
#[test]
fn a_compressed_frame_allocates_nothing_once_there_was_one_as_long() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::Zstd).unwrap();
    let mut reader = FrameReader::new(Digest::Xxh3, Compression::Zstd).unwrap();
    let data = vec![0x5a; 128_000];
    let mut out = Vec::new();
    let mut round = |len: usize| {
        out.clear();
        assert_eq!(writer.compressed(&data[..len], &mut out), Ok(true));
        let frame = reader.push(&mut out.as_slice());
        assert_eq!(frame, Ok(Some(Frame::Data(&data[..len]))));
    };
    round(128_000);
    let before = on_this_thread();
    for len in [100, 4096, 127_999, 128_000] {
        round(len);
    }
    assert_eq!(on_this_thread() - before, 0);
}

#[test]
fn a_reader_holds_one_frame_at_most() {
    let data = vec![0x5a; 3 * MAX_BODY_LEN];
    let mut wire = Vec::new();
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    for piece in data.chunks(MAX_BODY_LEN) {
        wire.extend(writer.data(&[piece]).unwrap());
        wire.extend(piece);
    }
    for cut in [1000, 65_536, usize::MAX] {
        let (most, largest) = measure(|| {
            let mut reader = FrameReader::new(Digest::Xxh3, Compression::None).unwrap();
            for mut piece in wire.chunks(cut.min(wire.len())) {
                while let Ok(Some(_)) = reader.push(&mut piece) {}
            }
            assert_eq!(reader.frames(), 3);
        });
        assert_eq!(largest, HEADER_LEN + MAX_BODY_LEN);
        // While it grows there are two.
        assert!(most <= 2 * (HEADER_LEN + MAX_BODY_LEN), "{most} bytes");
    }
}

#[test]
fn a_stated_length_brings_no_memory() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    let header = writer.data(&[&vec![0; MAX_BODY_LEN]]).unwrap();
    let (most, _) = measure(|| {
        let mut reader = FrameReader::new(Digest::Xxh3, Compression::None).unwrap();
        assert_eq!(reader.push(&mut &header[..]), Ok(None));
        assert_eq!(reader.wanted(), MAX_BODY_LEN);
        assert!(reader.space().len() >= 4096);
    });
    assert!(most <= 70_000, "{most} bytes");

    let bytes = preface().encode().unwrap();
    let (most, _) = measure(|| {
        let mut receiver = PrefaceReceiver::default();
        assert_eq!(receiver.push(&mut &b"MFDT\x10\0"[..]), Ok(None));
        assert_eq!(receiver.wanted(), 4100);
        let mut receiver = AnswerReceiver::default();
        assert_eq!(receiver.push(&mut &b"MFDA\x10\0"[..]), Ok(None));
        // Every length in it may lie.
        let end = bytes.len() - 4;
        for at in 6..end {
            let mut lie = bytes.clone();
            lie[at] = 0xff;
            let checksum = crc32fast::hash(&lie[..end]);
            lie[end..].copy_from_slice(&checksum.to_be_bytes());
            let _ = PrefaceReceiver::default().push(&mut lie.as_slice());
        }
    });
    assert!(most <= 4096, "{most} bytes");
}
