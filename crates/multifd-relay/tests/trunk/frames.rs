//! Frames that are as they should be.

use multifd_relay::trunk::frame_memory::FREE_BODY_LEN;
use multifd_relay::trunk::{
    Compression, Digest, FailureCode, FailureNotice, FrameFault, FrameReader, FrameWriter,
    HEADER_LEN, MAX_BODY_LEN, MAX_NOTE_LEN, Words, WriterMisuse,
};
use testkit::wire::{CUTS, vector};

use super::{Received, received, received_in_place};

const LENGTHS: [usize; 7] = [1, 2, 8, 16, 255, 4096, 70_000];

fn pattern(len: usize) -> Vec<u8> {
    let mixed = |at: u32| at.wrapping_mul(0x9e37_79b9) >> 24;
    (0..len as u32).map(|at| mixed(at) as u8).collect()
}

fn failure() -> FailureNotice {
    FailureNotice {
        code: FailureCode::CONNECTION,
        words: Words::new("the destination's QEMU ended"),
    }
}

/// Something of every kind, and what comes of it.
fn stream(digest: Digest, fails: bool) -> (Vec<u8>, Vec<Received>) {
    let mut writer = FrameWriter::new(digest, Compression::None).unwrap();
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for len in LENGTHS {
        let data = pattern(len);
        let (left, right) = data.split_at(len / 3);
        let header = writer.data(&[left, &[], right]).unwrap();
        bytes.extend([&header, data.as_slice()].concat());
        expected.push(Received::Data(data));
        bytes.extend(writer.alive().unwrap());
        expected.push(Received::Alive);
    }
    bytes.extend(writer.begun().unwrap());
    expected.push(Received::Begun);
    if fails {
        writer.failure(&failure(), &mut bytes).unwrap();
        expected.push(Received::Failure(failure()));
    } else {
        bytes.extend(writer.end().unwrap());
        expected.push(Received::End);
    }
    (bytes, expected)
}

fn reader(digest: Digest) -> FrameReader {
    FrameReader::new(digest, Compression::None).unwrap()
}

#[test]
fn frames_come_apart_as_they_were_made_in_every_cut() {
    for (digest, fails) in [
        (Digest::Xxh3, false),
        (Digest::Xxh3, true),
        (Digest::None, false),
    ] {
        let (bytes, expected) = stream(digest, fails);
        let expected = (expected, Ok(()));
        for cut in CUTS {
            assert_eq!(received(reader(digest), &bytes, cut), expected);
        }
        for most in [1, 7, 4096, usize::MAX] {
            assert_eq!(received_in_place(reader(digest), &bytes, most), expected);
        }
    }
}

#[test]
fn an_end_anywhere_else_is_a_broken_one() {
    let (bytes, _) = stream(Digest::Xxh3, false);
    let last = bytes.len() - HEADER_LEN;
    for end in (0..400).chain(last - 20..bytes.len()) {
        let (_, outcome) = received(reader(Digest::Xxh3), &bytes[..end], &[usize::MAX]);
        assert_eq!(outcome, Err(FrameFault::NoEnd), "after {end} bytes");
    }
}

#[test]
fn both_ways_to_read_can_be_mixed() {
    let (bytes, expected) = stream(Digest::Xxh3, false);
    let mut reader = reader(Digest::Xxh3);
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    let mut turn = 0;
    while !rest.is_empty() {
        turn += 1;
        if turn % 2 == 0 {
            let (mut piece, after) = rest.split_at(rest.len().min(turn * 5));
            let frame = reader.push(&mut piece).unwrap();
            found.extend(frame.map(Received::from));
            rest = &rest[rest.len() - after.len() - piece.len()..];
        } else {
            let space = reader.space();
            let len = space.len().min(turn * 3).min(rest.len());
            space[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            let frame = reader.filled(len).unwrap();
            found.extend(frame.map(Received::from));
        }
    }
    assert_eq!((found, reader.finish()), (expected, Ok(())));
}

#[test]
fn bytes_beyond_a_frame_go_into_several() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    let data = pattern(2 * FREE_BODY_LEN + 5);
    let mut bytes = Vec::new();
    writer.append(&data, &mut bytes).unwrap();
    writer.append(&[], &mut bytes).unwrap();
    assert_eq!(writer.frames(), 3);
    assert_eq!(bytes.len(), data.len() + 3 * HEADER_LEN);
    bytes.extend(writer.end().unwrap());
    let (frames, outcome) = received(reader(Digest::Xxh3), &bytes, &[usize::MAX]);
    assert_eq!(outcome, Ok(()));
    let pieces = data.chunks(FREE_BODY_LEN);
    let mut expected: Vec<_> = pieces.map(|piece| Received::Data(piece.into())).collect();
    expected.push(Received::End);
    assert!(frames == expected);
}

#[test]
fn a_note_stands_beside_the_bytes_in_their_order() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    let mut bytes = Vec::new();
    writer.append(b"before", &mut bytes).unwrap();
    writer.note(b"note", &mut bytes).unwrap();
    writer.append(b"behind", &mut bytes).unwrap();
    assert!(writer.note(&[], &mut bytes).is_err());
    assert!(writer.note(&vec![0; MAX_NOTE_LEN + 1], &mut bytes).is_err());
    bytes.extend(writer.end().unwrap());
    let (frames, outcome) = received(reader(Digest::Xxh3), &bytes, &[3]);
    let expected = [
        Received::Data(b"before".into()),
        Received::Note(b"note".into()),
        Received::Data(b"behind".into()),
        Received::End,
    ];
    assert_eq!((frames.as_slice(), outcome), (&expected[..], Ok(())));
}

#[test]
fn a_writer_says_when_it_is_misused() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    let length = |found| WriterMisuse::Length {
        found,
        allowed: MAX_BODY_LEN,
    };
    assert_eq!(writer.data(&[]), Err(length(0)));
    assert_eq!(writer.data(&[&[], &[]]), Err(length(0)));
    let long = vec![0; MAX_BODY_LEN];
    assert_eq!(writer.data(&[&long, &[1]]), Err(length(MAX_BODY_LEN + 1)));
    assert_eq!(writer.frames(), 0);
    let mut out = Vec::new();
    assert_eq!(writer.compressed(&[0; 4096], &mut out), Ok(false));
    writer.end().unwrap();
    assert!(writer.has_ended());
    assert_eq!(writer.data(&[&[1]]), Err(WriterMisuse::Ended));
    assert_eq!(writer.append(&[1], &mut out), Err(WriterMisuse::Ended));
    assert_eq!(writer.compressed(&[1], &mut out), Err(WriterMisuse::Ended));
    assert_eq!(writer.alive(), Err(WriterMisuse::Ended));
    assert_eq!(writer.begun(), Err(WriterMisuse::Ended));
    assert_eq!(writer.end(), Err(WriterMisuse::Ended));
    assert_eq!(
        writer.failure(&failure(), &mut out),
        Err(WriterMisuse::Ended)
    );
    assert!(out.is_empty());
}

/// These bytes are the format. A change of them needs another version.
#[test]
fn the_bytes_stay_as_they_are() {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::None).unwrap();
    let mut bytes = Vec::new();
    writer.append(b"guest", &mut bytes).unwrap();
    bytes.extend(writer.begun().unwrap());
    writer.append(b"guest", &mut bytes).unwrap();
    bytes.extend(writer.alive().unwrap());
    let mut failed = bytes.clone();
    bytes.extend(writer.end().unwrap());
    assert_eq!(bytes, vector("trunk-frames.txt"));

    let mut writer = FrameWriter::new(Digest::None, Compression::None).unwrap();
    failed.clear();
    writer.append(b"guest", &mut failed).unwrap();
    writer.failure(&failure(), &mut failed).unwrap();
    assert_eq!(failed, vector("trunk-failure.txt"));
}

#[cfg(feature = "zstd")]
mod compressed {
    use super::*;

    fn writer() -> FrameWriter {
        FrameWriter::new(Digest::Xxh3, Compression::Zstd).unwrap()
    }

    fn reader() -> FrameReader {
        FrameReader::new(Digest::Xxh3, Compression::Zstd).unwrap()
    }

    fn text(len: usize) -> Vec<u8> {
        b"a line of text, and another line of text, "
            .iter()
            .copied()
            .cycle()
            .take(len)
            .collect()
    }

    #[test]
    fn compressed_frames_bring_what_went_in() {
        let mut writer = writer();
        let (mut bytes, mut data) = (Vec::new(), Vec::new());
        for len in [
            64,
            4096,
            100_000,
            MAX_BODY_LEN,
            MAX_BODY_LEN + 1,
            3 * MAX_BODY_LEN,
        ] {
            let text = text(len);
            assert_eq!(writer.compressed(&text, &mut bytes), Ok(true));
            data.extend(text);
            bytes.extend(writer.data(&[b"plain"]).unwrap());
            bytes.extend(b"plain");
            data.extend(b"plain");
        }
        assert!(bytes.len() < data.len() / 20);
        bytes.extend(writer.end().unwrap());
        for cut in [[1].as_slice(), &[4096], &[usize::MAX]] {
            let (frames, outcome) = received(reader(), &bytes, cut);
            assert_eq!(outcome, Ok(()));
            assert_eq!(frames.last(), Some(&Received::End));
            let joined: Vec<u8> = frames
                .into_iter()
                .flat_map(|frame| match frame {
                    Received::Data(bytes) => bytes,
                    _ => Vec::new(),
                })
                .collect();
            assert!(joined == data);
        }
    }

    #[test]
    fn what_grows_is_left_alone() {
        let mut writer = writer();
        let mut out = b"before".to_vec();
        for len in [0, 1, 5, 300, 70_000] {
            assert_eq!(
                writer.compressed(&pattern_without_order(len), &mut out),
                Ok(false)
            );
        }
        assert_eq!(out, b"before");
        assert_eq!(writer.frames(), 0);
        // A whole frame that is left as it is stands beside one that is not.
        let mixed = [pattern_without_order(FREE_BODY_LEN), text(FREE_BODY_LEN)].concat();
        out.clear();
        assert_eq!(writer.compressed(&mixed, &mut out), Ok(true));
        out.extend(writer.end().unwrap());
        let (frames, outcome) = received(reader(), &out, &[usize::MAX]);
        assert_eq!((frames.len(), outcome), (3, Ok(())));
        assert_eq!(out[0], 0);
    }

    fn pattern_without_order(len: usize) -> Vec<u8> {
        let mut random = testkit::pages::Random::new(7);
        (0..len).map(|_| random.next() as u8).collect()
    }
}

#[cfg(not(feature = "zstd"))]
#[test]
fn without_zstd_there_is_none() {
    use multifd_relay::trunk::NoCompression;

    assert_eq!(Compression::available(), [Compression::None]);
    let writer = FrameWriter::new(Digest::Xxh3, Compression::Zstd);
    assert_eq!(writer.err(), Some(NoCompression::NotBuilt));
    let reader = FrameReader::new(Digest::Xxh3, Compression::Zstd);
    assert_eq!(reader.err(), Some(NoCompression::NotBuilt));
}
