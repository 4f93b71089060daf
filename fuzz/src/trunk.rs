//! The target of the trunk: two relays of this project, of which one may lie.

use multifd_relay::trunk::{
    Abilities, Accepted, Answer, AnswerReceiver, Compression, Digest, FailureCode, FailureNotice,
    Frame, FrameFault, FrameReader, FrameWriter, HEADER_LEN, HandshakeFault, MAX_BODY_LEN,
    MAX_HANDSHAKE_BODY_LEN, PrefaceReceiver, Words, choose,
};
use multifd_wire::Method;
use testkit::allocations::measure;
use testkit::wire::{events, pieces};
use twox_hash::XxHash3_64;

use super::split_cut;

/// Prefaces, answers and frames are the same in every cut, and what is taken can be written and
/// read again. Memory is bounded. Where a digest is on, frames that were changed, lost, repeated or
/// moved give nothing of what was changed.
///
/// The first bytes of `data` say how the rest is cut, and what it is.
pub fn trunk(data: &[u8]) {
    let Some((cut, rest)) = split_cut(data) else {
        return;
    };
    let Some((choice, stream)) = rest.split_first() else {
        return;
    };
    match choice % 6 {
        0 => preface(stream, &cut),
        1 => preface(&sealed(b"MFDT", stream), &cut),
        2 => answer(&sealed(b"MFDA", stream), &cut),
        3 => frames(stream, &cut, Digest::None),
        4 => frames(&mended(stream), &cut, Digest::Xxh3),
        _ => changed(stream, &cut),
    }
}

/// With a magic number, the right length and the right checksum.
fn sealed(magic: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let len = body.len().min(MAX_HANDSHAKE_BODY_LEN + 1);
    let bytes = [magic, &(len as u16).to_be_bytes()[..], &body[..len]].concat();
    let checksum = crc32fast::hash(&bytes).to_be_bytes();
    [&bytes[..], &checksum].concat()
}

fn preface(stream: &[u8], cut: &[usize]) {
    let read = |stream: &[u8], cut: &[usize]| {
        let mut receiver = PrefaceReceiver::default();
        events(stream, cut, |piece| receiver.push(piece))
    };
    let whole = read(stream, &[usize::MAX]);
    assert_eq!(read(stream, cut), whole);
    let (most, _) = measure(|| drop(read(stream, cut)));
    assert!(most <= 8 * MAX_HANDSHAKE_BODY_LEN, "{most} bytes");

    for preface in whole.0 {
        // Numbers may be written in more bytes than they need, so not to the byte.
        let again = preface.encode().expect("what was taken");
        let reread = read(&again, &[usize::MAX]);
        assert_eq!(reread, (vec![preface.clone()], Ok(())));
        if let Ok(chosen) = choose(&preface, &abilities()) {
            let accepted = Accepted::from(chosen);
            assert_eq!(accepted.chosen(&preface, &[]), Ok(chosen));
        }
        assert!(preface.name.matches(preface.name.as_str()) && preface.name.matches("*"));
    }
}

fn answer(stream: &[u8], cut: &[usize]) {
    let read = |stream: &[u8], cut: &[usize]| -> (Vec<Answer>, Result<(), HandshakeFault>) {
        let mut receiver = AnswerReceiver::default();
        events(stream, cut, |piece| receiver.push(piece))
    };
    let whole = read(stream, &[usize::MAX]);
    assert_eq!(read(stream, cut), whole);
    let (most, _) = measure(|| drop(read(stream, cut)));
    assert!(most <= 8 * MAX_HANDSHAKE_BODY_LEN, "{most} bytes");

    for answer in whole.0 {
        let again = answer.encode().expect("what was taken");
        if let Answer::Refused(refusal) = &answer {
            assert!(!refusal.to_string().chars().any(char::is_control));
        }
        assert_eq!(read(&again, &[usize::MAX]), (vec![answer], Ok(())));
    }
}

fn frames(stream: &[u8], cut: &[usize], digest: Digest) {
    for compression in [Compression::None, Compression::Zstd] {
        let reader = || FrameReader::new(digest, compression).expect("built with zstd");
        let whole = received(reader(), stream, &[usize::MAX]);
        assert_eq!(received(reader(), stream, cut), whole);
        assert_eq!(in_place(reader(), stream, cut), whole);

        let (most, _) = measure(|| {
            let mut reader = reader();
            for mut piece in pieces(stream, cut) {
                while let Ok(Some(_)) = reader.push(&mut piece) {}
            }
        });
        // The buffer: a header brings 64 KiB, and it doubles. While it grows there are two. A
        // content is as long as stated.
        let content = match compression {
            Compression::None => 0,
            _ => 2 * MAX_BODY_LEN,
        };
        assert!(
            most <= (132 << 10) + 4 * stream.len() + content,
            "{most} bytes"
        );
    }
}

/// Frames of our own, of which something is changed, give what was before the change and then a
/// fault.
fn changed(mut script: &[u8], cut: &[usize]) {
    let (wire, sent) = written(&mut script);
    let whole: Vec<u8> = wire.concat();
    let reader = || FrameReader::new(Digest::Xxh3, Compression::Zstd).expect("built with zstd");
    assert_eq!(received(reader(), &whole, cut), (sent.clone(), Ok(())));

    let mut lies = wire;
    while let Some((&[what, at, value], rest)) = script.split_first_chunk() {
        script = rest;
        let frame = usize::from(at) % lies.len();
        match what % 5 {
            0 => drop(lies.remove(frame)),
            1 => lies.insert(frame, lies[frame].clone()),
            2 => {
                let other = usize::from(value) % lies.len();
                lies.swap(frame, other);
            }
            _ => {
                let len = lies[frame].len();
                let byte = usize::from(what / 5) * 37 % len;
                lies[frame][byte] ^= value;
            }
        }
        if lies.is_empty() {
            break;
        }
    }
    let lies = lies.concat();
    let (found, end) = received(reader(), &lies, cut);
    assert_eq!(in_place(reader(), &lies, cut), (found.clone(), end));
    assert!(sent.starts_with(&found));
    assert_eq!(end.is_ok(), lies == whole, "{end:?}");
}

/// Some frames by a script, up to an end: their bytes, and what they are.
fn written(script: &mut &[u8]) -> (Vec<Vec<u8>>, Vec<Received>) {
    let mut writer = FrameWriter::new(Digest::Xxh3, Compression::Zstd).expect("built with zstd");
    let (mut wire, mut sent) = (Vec::new(), Vec::new());
    while let Some((&[kind, len], rest)) = script.split_first_chunk() {
        *script = rest;
        let (bytes, _) = rest.split_at(rest.len().min(usize::from(len)));
        let mut frame = Vec::new();
        match kind % 6 {
            0 if !bytes.is_empty() => {
                writer.append(bytes, &mut frame).expect("not ended");
                sent.push(Received::Data(bytes.into()));
            }
            1 => {
                let long = bytes.repeat(1 + usize::from(kind));
                if !writer.compressed(&long, &mut frame).expect("not ended") {
                    continue;
                }
                sent.push(Received::Data(long));
            }
            2 => {
                frame.extend(writer.begun().expect("not ended"));
                sent.push(Received::Begun);
            }
            3 => {
                frame.extend(writer.alive().expect("not ended"));
                sent.push(Received::Alive);
            }
            4 => {
                let words = Words::new(&String::from_utf8_lossy(bytes));
                let code = FailureCode(kind.into());
                let failure = FailureNotice { code, words };
                writer.failure(&failure, &mut frame).expect("not ended");
                sent.push(Received::Failure(failure));
            }
            _ => break,
        }
        wire.push(frame);
        if writer.has_ended() {
            return (wire, sent);
        }
    }
    wire.push(writer.end().expect("not ended").to_vec());
    sent.push(Received::End);
    (wire, sent)
}

/// The same frames with the digests that they should have, or no frame after the first would ever
/// be looked at.
fn mended(stream: &[u8]) -> Vec<u8> {
    let mut bytes = stream.to_vec();
    let mut at = 0;
    for number in 0.. {
        let Some(header) = bytes[at..].first_chunk::<HEADER_LEN>() else {
            break;
        };
        let (head, _) = header.split_at(8);
        let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(body) = bytes[at + HEADER_LEN..].get(..len) else {
            break;
        };
        let digest = XxHash3_64::oneshot_with_seed(number, &[head, body].concat());
        bytes[at + 8..at + HEADER_LEN].copy_from_slice(&digest.to_be_bytes());
        at += HEADER_LEN + len;
    }
    bytes
}

fn abilities() -> Abilities {
    Abilities {
        methods: vec![Method::Canned, Method::Zstd, Method::Zlib, Method::None],
        digests: vec![Digest::Xxh3, Digest::None],
        compressions: Compression::available().to_vec(),
        extensions: vec![0x8001],
    }
}

/// A frame with contents of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Received {
    Data(Vec<u8>),
    End,
    Failure(FailureNotice),
    Alive,
    Begun,
    Note(Vec<u8>),
}

impl From<Frame<'_>> for Received {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Data(bytes) => Self::Data(bytes.into()),
            Frame::End => Self::End,
            Frame::Failure(failure) => Self::Failure(failure),
            Frame::Alive => Self::Alive,
            Frame::Begun => Self::Begun,
            Frame::Note(note) => Self::Note(note.into()),
        }
    }
}

fn received(
    mut reader: FrameReader,
    stream: &[u8],
    cut: &[usize],
) -> (Vec<Received>, Result<(), FrameFault>) {
    let (frames, outcome) = events(stream, cut, |piece| {
        Ok(reader.push(piece)?.map(Received::from))
    });
    (frames, outcome.and_then(|()| reader.finish()))
}

/// Each piece is put where it belongs.
fn in_place(
    mut reader: FrameReader,
    stream: &[u8],
    cut: &[usize],
) -> (Vec<Received>, Result<(), FrameFault>) {
    let mut frames = Vec::new();
    for mut piece in pieces(stream, cut) {
        while !piece.is_empty() {
            let space = reader.space();
            if space.is_empty() {
                return (frames, Err(FrameFault::AfterEnd));
            }
            let len = space.len().min(piece.len());
            space[..len].copy_from_slice(&piece[..len]);
            piece = &piece[len..];
            match reader.filled(len) {
                Ok(frame) => frames.extend(frame.map(Received::from)),
                Err(fault) => return (frames, Err(fault)),
            }
        }
    }
    (frames, reader.finish())
}
