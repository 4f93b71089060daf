//! The table of lies: what a peer may say wrong, field by field, and the fault that it is.
//!
//! The bytes are made here, by hand, so that a fault of the writers cannot hide one of the readers.

use multifd_relay::trunk::{
    Answer, AnswerReceiver, Choice, Compression, Digest, FrameFault, FrameReader, HandshakeFault,
    MAX_BODY_LEN, Name, PrefaceReceiver, Refusal, RefusalCode, Versions,
};
use twox_hash::XxHash3_64;

use super::{Received, preface, received, received_in_place};

fn sealed(magic: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let bytes = [magic, &(body.len() as u16).to_be_bytes()[..], body].concat();
    let checksum = crc32fast::hash(&bytes).to_be_bytes();
    [&bytes[..], &checksum].concat()
}

fn read_preface(body: &[u8]) -> Result<(), HandshakeFault> {
    let bytes = sealed(b"MFDT", body);
    let whole = PrefaceReceiver::default().push(&mut bytes.as_slice());
    // The same byte by byte.
    let mut receiver = PrefaceReceiver::default();
    let mut outcome = Ok(None);
    for mut byte in bytes.chunks(1) {
        if outcome == Ok(None) {
            outcome = receiver.push(&mut byte);
        }
    }
    assert_eq!(outcome, whole);
    whole.map(|preface| assert!(preface.is_some()))
}

fn read_answer(body: &[u8]) -> Result<(), HandshakeFault> {
    let bytes = sealed(b"MFDA", body);
    let answer = AnswerReceiver::default().push(&mut bytes.as_slice())?;
    assert!(answer.is_some());
    Ok(())
}

/// The fields of the preface that [`preface`] makes, in order.
const PREFACE: [&[u8]; 13] = [
    b"\x01",
    b"\x01",
    &[0x11; 16],
    &[0x22; 16],
    b"\x04vm-1",
    b"\x00",
    b"\x01",
    b"\x00",
    b"\x00",
    b"\x03\x02\x01\x00",
    b"\x02\x01\x00",
    b"\x02\x01\x00",
    b"\x00",
];
const OLDEST: usize = 0;
const NEWEST: usize = 1;
const NAME: usize = 4;
const CONNECTION: usize = 5;
const HAS_CHANNELS: usize = 6;
const IS_RECOVERY: usize = 8;
const METHODS: usize = 9;
const DIGESTS: usize = 10;
const COMPRESSIONS: usize = 11;
const EXTENSIONS: usize = 12;

fn with(field: usize, lie: &[u8]) -> Vec<u8> {
    let mut fields = PREFACE;
    fields[field] = lie;
    fields.concat()
}

/// A list or a text: its length in two bytes, then its bytes.
fn listed(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len();
    assert!(len < 1 << 14);
    let head = [(len & 0x7f) as u8 | 0x80, (len >> 7) as u8];
    [&head, bytes].concat()
}

#[test]
fn the_fields_are_those_of_a_preface() {
    let bytes = sealed(b"MFDT", &PREFACE.concat());
    assert_eq!(preface().encode(), Ok(bytes));
}

#[test]
fn prefaces() {
    use HandshakeFault as Fault;
    let versions = |oldest, newest| Fault::Versions {
        found: Versions { oldest, newest },
        allowed: Versions::OURS,
    };
    let name = |name: &str| Name::new(name).unwrap_err().into();
    let codes = Fault::Codes {
        found: 65,
        allowed: 64,
    };
    let many: Vec<u8> = (0..17).flat_map(|id| [id, 0]).collect();
    let lies: Vec<(usize, Vec<u8>, Fault)> = vec![
        // Ranges of versions: upside down, without a common one, with a layout that is not known,
        // none at all.
        (OLDEST, b"\x02".to_vec(), versions(2, 1)),
        (OLDEST, b"\x00".to_vec(), versions(0, 1)),
        (NEWEST, b"\x00".to_vec(), versions(1, 0)),
        (OLDEST, b"\x05\x09".to_vec(), versions(5, 9)),
        (OLDEST, b"\xff\xff\xff".to_vec(), Fault::Body),
        // Names.
        (NAME, b"\x00".to_vec(), name("")),
        (NAME, listed(&[b'x'; 65]), name(&"x".repeat(65))),
        (NAME, b"\x03a/b".to_vec(), name("a/b")),
        (NAME, b"\x03a\0b".to_vec(), name("a\0b")),
        (NAME, b"\x02\xc3\xa4".to_vec(), name("ä")),
        (NAME, b"\x02..".to_vec(), name("..")),
        (NAME, b"\x02-a".to_vec(), name("-a")),
        (NAME, b"\x01\xff".to_vec(), Fault::Body),
        (NAME, b"\xff\xff\xff\xff\x0fa".to_vec(), Fault::Body),
        // Connections.
        (CONNECTION, b"\x04".to_vec(), Fault::Body),
        (CONNECTION, b"\x01".to_vec(), Fault::Body),
        (HAS_CHANNELS, b"\x02".to_vec(), Fault::Body),
        (IS_RECOVERY, b"\xff".to_vec(), Fault::Body),
        // Offers.
        (METHODS, listed(&[0; 65]), codes),
        (DIGESTS, listed(&[0; 65]), codes),
        (COMPRESSIONS, listed(&[0; 65]), codes),
        (
            METHODS,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec(),
            Fault::Body,
        ),
        // Extensions.
        (
            EXTENSIONS,
            [b"\x11", many.as_slice()].concat(),
            Fault::Extensions {
                found: 17,
                allowed: 16,
            },
        ),
        (
            EXTENSIONS,
            b"\x02\x07\x01a\x07\x00".to_vec(),
            Fault::ExtensionTwice { id: 7 },
        ),
        (EXTENSIONS, b"\x02\x07\x00".to_vec(), Fault::Body),
        (EXTENSIONS, b"\x01\x07\x05abc".to_vec(), Fault::Body),
        (EXTENSIONS, b"\x01\x80\x80\x04\x00".to_vec(), Fault::Body),
        (
            EXTENSIONS,
            b"\xff\xff\xff\xff\x0f".to_vec(),
            Fault::Extensions {
                found: 0xffff_ffff,
                allowed: 16,
            },
        ),
        (EXTENSIONS, b"\x00!".to_vec(), Fault::Trailing { found: 1 }),
    ];
    assert_eq!(read_preface(&PREFACE.concat()), Ok(()));
    for (field, lie, fault) in lies {
        let found = read_preface(&with(field, &lie));
        assert_eq!(found, Err(fault), "field {field}: {lie:02x?}");
    }
    // What is unknown and need not be known.
    for (field, fine) in [
        (NEWEST, b"\xff\xff\x03".as_slice()),
        (METHODS, b"\x02\xc8\x00"),
        (DIGESTS, b"\x00"),
        (EXTENSIONS, b"\x01\x07\x03abc"),
        (EXTENSIONS, b"\x01\xff\xff\x03\x00"),
    ] {
        assert_eq!(read_preface(&with(field, fine)), Ok(()), "field {field}");
    }
}

#[test]
fn no_beginning_of_a_body_is_a_body() {
    let mut preempt = PREFACE;
    preempt[CONNECTION] = b"\x02";
    preempt[HAS_CHANNELS..=IS_RECOVERY].fill(b"");
    let mut channel = preempt;
    let hello = [1; 57];
    channel[CONNECTION] = &hello;
    let mut strand = preempt;
    strand[CONNECTION] = b"\x03\x80\x02\x01";
    for body in [PREFACE, preempt, channel, strand].map(|fields| fields.concat()) {
        assert_eq!(read_preface(&body), Ok(()));
        for end in 0..body.len() {
            let fault = read_preface(&body[..end]).unwrap_err();
            assert_eq!(fault, HandshakeFault::Body, "after {end} bytes");
            let code = Refusal::from(fault).code;
            assert_eq!(code, RefusalCode::MALFORMED);
        }
    }
    for body in [b"\0\x01\x02\x01\x01\x00".as_slice(), b"\x01\x06\x02no"] {
        assert_eq!(read_answer(body), Ok(()));
        for end in 0..body.len() {
            assert_eq!(read_answer(&body[..end]), Err(HandshakeFault::Body));
        }
    }
}

#[test]
fn magic_numbers_and_lengths_of_prefaces_and_answers() {
    let magic = |found: &[u8; 4], allowed: &[u8; 4]| HandshakeFault::Magic {
        found: *found,
        allowed: *allowed,
    };
    let length = HandshakeFault::Length {
        found: 4097,
        allowed: 4096,
    };
    for (lie, fault) in [
        (b"MFDA\0\x10", magic(b"MFDA", b"MFDT")),
        (b"QEVM\0\0", magic(b"QEVM", b"MFDT")),
        (b"GET / ", magic(b"GET ", b"MFDT")),
        (b"MFDT\x10\x01", length),
    ] {
        let mut receiver = PrefaceReceiver::default();
        assert_eq!(receiver.push(&mut lie.as_slice()), Err(fault));
        assert_eq!(receiver.wanted(), 0);
        assert_eq!(receiver.push(&mut b"more".as_slice()), Err(fault));
    }
    for (lie, fault) in [
        (b"MFDT\0\x10", magic(b"MFDT", b"MFDA")),
        (b"\x16\x03\x03\0\x7a\x02", magic(b"\x16\x03\x03\0", b"MFDA")),
        (
            b"MFDA\xff\xff",
            HandshakeFault::Length {
                found: 65535,
                allowed: 4096,
            },
        ),
    ] {
        let mut receiver = AnswerReceiver::default();
        assert_eq!(receiver.push(&mut lie.as_slice()), Err(fault));
        assert_eq!(receiver.wanted(), 0);
    }
    // The longest body is read.
    let long = [PREFACE[..12].concat(), b"\x01\x07".to_vec()].concat();
    let value = vec![0; 4096 - long.len() - 2];
    let body = [long, listed(&value)].concat();
    assert_eq!(body.len(), 4096);
    assert_eq!(read_preface(&body), Ok(()));
}

/// No name becomes another one on the way, and no choice either.
#[test]
fn a_changed_bit_of_a_preface_or_an_answer_is_found() {
    let preface = sealed(b"MFDT", &PREFACE.concat());
    let answer = sealed(b"MFDA", b"\0\x01\x02\x01\x01\x00");
    for bit in 0..8 * preface.len() {
        let mut bytes = preface.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = PrefaceReceiver::default().push(&mut bytes.as_slice());
        assert!(!matches!(found, Ok(Some(_))), "bit {bit}");
        let is_head = bit / 8 < 6;
        let is_checked = matches!(found, Err(HandshakeFault::Checksum { .. }));
        assert!(is_checked || is_head, "bit {bit}: {found:?}");
    }
    for bit in 0..8 * answer.len() {
        let mut bytes = answer.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let found = AnswerReceiver::default().push(&mut bytes.as_slice());
        assert!(!matches!(found, Ok(Some(_))), "bit {bit}");
    }
    let (found, computed) = (0, crc32fast::hash(&preface[..preface.len() - 4]));
    let fault = HandshakeFault::Checksum { found, computed };
    assert_eq!(Refusal::from(fault).code, RefusalCode::MALFORMED);
    let zero = [&preface[..preface.len() - 4], &[0; 4]].concat();
    let read = PrefaceReceiver::default().push(&mut zero.as_slice());
    assert_eq!(read, Err(fault));
}

#[test]
fn answers() {
    let version = |found| HandshakeFault::NotOffered {
        choice: Choice::Version,
        found,
    };
    let long = [b"\x01\x00".to_vec(), listed(&[b'x'; 1025])].concat();
    let lies: [(&[u8], HandshakeFault); 11] = [
        (b"\x02\x01\x02\x01\x01\x00", HandshakeFault::Body),
        (b"\xff\xff\xff\xff\xff", HandshakeFault::Body),
        (b"\0\x02and another layout", version(2)),
        (b"\0\x00\x02\x01\x01\x00", version(0)),
        (b"\0\x01\x02\x01\x01\x01\x07\x09", HandshakeFault::Body),
        (
            b"\0\x01\x02\x01\x01\x02\x07\0\x07\0",
            HandshakeFault::ExtensionTwice { id: 7 },
        ),
        (
            b"\0\x01\x02\x01\x01\x00!",
            HandshakeFault::Trailing { found: 1 },
        ),
        (b"\x01\x06\x02no!", HandshakeFault::Trailing { found: 1 }),
        (b"\x01\xff\xff\x04\x00", HandshakeFault::Body),
        (b"\x01\x06\x01\xff", HandshakeFault::Body),
        (
            &long,
            HandshakeFault::Words {
                found: 1025,
                allowed: 1024,
            },
        ),
    ];
    for (lie, fault) in lies {
        assert_eq!(read_answer(lie), Err(fault), "{lie:02x?}");
    }
}

#[test]
fn a_refusal_can_be_read_whatever_the_server_speaks() {
    let bytes = sealed(b"MFDA", b"\x01\x02\x05never");
    let answer = AnswerReceiver::default().push(&mut bytes.as_slice());
    let refusal = Refusal::new(RefusalCode::VERSION, "never");
    assert_eq!(answer, Ok(Some(Answer::Refused(refusal))));
}

/// A frame as the format has it, or not.
#[derive(Clone)]
struct Raw {
    head: [u8; 8],
    body: Vec<u8>,
    number: u64,
}

impl Raw {
    fn new(number: u64, kind: u8, body: &[u8]) -> Self {
        let [l0, l1, l2, l3] = (body.len() as u32).to_be_bytes();
        Self {
            head: [kind, 0, 0, 0, l0, l1, l2, l3],
            body: body.into(),
            number,
        }
    }

    fn with_head(mut self, at: usize, byte: u8) -> Self {
        self.head[at] = byte;
        self
    }

    fn with_length(mut self, len: u32) -> Self {
        self.head[4..].copy_from_slice(&len.to_be_bytes());
        self
    }

    fn digest(&self) -> u64 {
        let covered = [&self.head, self.body.as_slice()].concat();
        XxHash3_64::oneshot_with_seed(self.number, &covered)
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with(self.digest())
    }

    fn bytes_with(&self, digest: u64) -> Vec<u8> {
        [&self.head[..], &digest.to_be_bytes(), &self.body].concat()
    }
}

fn reader() -> FrameReader {
    FrameReader::new(Digest::Xxh3, Compression::None).unwrap()
}

/// Each way to read finds the same; nothing of a wrong frame is given out.
fn outcome(
    make: impl Fn() -> FrameReader,
    bytes: &[u8],
) -> (Vec<Received>, Result<(), FrameFault>) {
    let whole = received(make(), bytes, &[usize::MAX]);
    assert_eq!(received(make(), bytes, &[1]), whole);
    assert_eq!(received_in_place(make(), bytes, usize::MAX), whole);
    whole
}

#[test]
fn headers() {
    const MOST: u32 = MAX_BODY_LEN as u32;
    let number = 0;
    let length = |kind, found, least, most| FrameFault::Length {
        number,
        kind,
        found,
        least,
        most,
    };
    let reserved = |flags, reserved| FrameFault::Reserved {
        number,
        flags,
        reserved,
    };
    let data = Raw::new(0, 0, b"guest");
    let words = b"\x01\x02no";
    let lies = [
        (
            data.clone().with_length(MOST + 1),
            length(0, MOST + 1, 1, MOST),
        ),
        (
            data.clone().with_length(u32::MAX),
            length(0, u32::MAX, 1, MOST),
        ),
        (Raw::new(0, 0, b""), length(0, 0, 1, MOST)),
        (Raw::new(0, 2, b"x"), length(2, 1, 0, 0)),
        (Raw::new(0, 4, b"x"), length(4, 1, 0, 0)),
        (Raw::new(0, 5, b"x"), length(5, 1, 0, 0)),
        (Raw::new(0, 3, b""), length(3, 0, 2, 1037)),
        (Raw::new(0, 3, &[0; 1038]), length(3, 1038, 2, 1037)),
        (
            Raw::new(0, 0x80, b"").with_length(MOST + 1),
            length(0x80, MOST + 1, 0, MOST),
        ),
        (Raw::new(0, 6, b""), length(6, 0, 1, 65_536)),
        (Raw::new(0, 6, &[0; 65_537]), length(6, 65_537, 1, 65_536)),
        (Raw::new(0, 7, b"x"), FrameFault::Kind { number, found: 7 }),
        (
            Raw::new(0, 0x7f, b""),
            FrameFault::Kind {
                number,
                found: 0x7f,
            },
        ),
        (
            Raw::new(0, 1, b"\0\0\0\x05xyz"),
            FrameFault::NotChosen { number },
        ),
        (data.clone().with_head(1, 1), reserved(1, 0)),
        (data.clone().with_head(2, 1), reserved(0, 0x100)),
        (data.clone().with_head(3, 1), reserved(0, 1)),
        (
            Raw::new(0, 0xff, b"x").with_head(1, 0x80),
            reserved(0x80, 0),
        ),
        // Failures.
        (
            Raw::new(0, 3, b"\x01\x03no"),
            FrameFault::Failure { number },
        ),
        (
            Raw::new(0, 3, b"\x01\x02no!"),
            FrameFault::Failure { number },
        ),
        (
            Raw::new(0, 3, b"\x01\x01\xff"),
            FrameFault::Failure { number },
        ),
        (
            Raw::new(0, 3, &[b"\x01".to_vec(), listed(&[b'x'; 1025])].concat()),
            FrameFault::Failure { number },
        ),
    ];
    for (lie, fault) in lies {
        assert_eq!(outcome(reader, &lie.bytes()), (vec![], Err(fault)));
    }
    for (body, ok) in [(words.as_slice(), true), (b"\xff\xff\x03\x00", true)] {
        assert_eq!(outcome(reader, &Raw::new(0, 3, body).bytes()).1.is_ok(), ok);
    }
}

#[test]
fn every_changed_bit_is_found() {
    let frames = [
        Raw::new(0, 0, b"some of a guest"),
        Raw::new(1, 5, b""),
        Raw::new(2, 2, b""),
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(Raw::bytes).collect();
    let (whole, end) = outcome(reader, &bytes);
    assert_eq!((whole.len(), end), (3, Ok(())));
    for bit in 0..8 * bytes.len() {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let (found, end) = outcome(reader, &changed);
        assert!(end.is_err(), "bit {bit}");
        assert!(whole.starts_with(&found) && found.len() < 3, "bit {bit}");
    }
}

#[test]
fn a_frame_out_of_its_place_is_found() {
    let frames: Vec<Vec<u8>> = (0..4)
        .map(|number| Raw::new(number, 0, b"guest").bytes())
        .collect();
    let [a, b, c, d] = &frames[..] else { panic!() };
    // Lost, repeated, swapped; at the beginning and after it.
    for (order, good) in [
        (vec![b, c, d], 0),
        (vec![a, c, d], 1),
        (vec![a, a, b], 1),
        (vec![a, b, b, c], 2),
        (vec![b, a], 0),
        (vec![a, c, b, d], 1),
    ] {
        let bytes: Vec<u8> = order.into_iter().flatten().copied().collect();
        let (found, end) = outcome(reader, &bytes);
        assert_eq!(found.len(), good);
        let is_digest =
            |fault| matches!(fault, FrameFault::Digest { number, .. } if number == good as u64);
        assert!(end.is_err_and(is_digest), "{end:?}");
    }
    let lost = Raw::new(1, 0, b"guest");
    let (_, end) = outcome(reader, &lost.bytes());
    let fault = FrameFault::Digest {
        number: 0,
        found: lost.digest(),
        computed: Raw { number: 0, ..lost }.digest(),
    };
    assert_eq!(end, Err(fault));
}

#[test]
fn without_a_digest_its_field_is_zero() {
    let reader = || FrameReader::new(Digest::None, Compression::None).unwrap();
    let end = Raw::new(0, 2, b"");
    assert_eq!(
        outcome(reader, &end.bytes_with(0)),
        (vec![Received::End], Ok(()))
    );
    let fault = FrameFault::Digest {
        number: 0,
        found: 1,
        computed: 0,
    };
    assert_eq!(outcome(reader, &end.bytes_with(1)), (vec![], Err(fault)));
}

#[test]
fn unknown_kinds_are_counted_checked_and_skipped() {
    let bytes = |kind| {
        let frames = [
            Raw::new(0, kind, b"something that a later relay says"),
            Raw::new(1, 0, b"guest"),
            Raw::new(2, 0xff, b""),
            Raw::new(3, 2, b""),
        ];
        frames.iter().flat_map(Raw::bytes).collect::<Vec<u8>>()
    };
    let guest = Received::Data(b"guest".into());
    let expected = (vec![guest, Received::End], Ok(()));
    assert_eq!(outcome(reader, &bytes(0x80)), expected);
    let mut changed = bytes(0xfe);
    changed[20] ^= 1;
    assert!(matches!(
        outcome(reader, &changed),
        (found, Err(FrameFault::Digest { number: 0, .. })) if found.is_empty()
    ));
}

#[test]
fn nothing_follows_an_end() {
    for last in [Raw::new(0, 2, b""), Raw::new(0, 3, b"\x01\x02no")] {
        let more = Raw::new(1, 4, b"").bytes();
        for end in [1, more.len()] {
            let bytes = [last.bytes(), more[..end].to_vec()].concat();
            let (found, end) = outcome(reader, &bytes);
            assert_eq!((found.len(), end), (1, Err(FrameFault::AfterEnd)));
        }
        let mut reader = reader();
        assert!(reader.push(&mut last.bytes().as_slice()).unwrap().is_some());
        assert!(reader.has_ended());
        assert_eq!(reader.wanted(), 0);
        assert!(reader.space().is_empty());
        assert_eq!(reader.filled(0), Ok(None));
        assert_eq!(reader.finish(), Ok(()));
    }
}

#[test]
fn a_reader_stays_at_its_fault() {
    let fault = FrameFault::Kind {
        number: 0,
        found: 9,
    };
    let good = Raw::new(0, 0, b"guest").bytes();
    let mut reader = reader();
    assert_eq!(
        reader.push(&mut Raw::new(0, 9, b"").bytes().as_slice()),
        Err(fault)
    );
    for _ in 0..2 {
        assert_eq!(reader.push(&mut good.as_slice()), Err(fault));
        assert_eq!(reader.filled(0), Err(fault));
        assert_eq!(reader.finish(), Err(fault));
        assert_eq!(reader.wanted(), 0);
        assert!(reader.space().is_empty());
    }
}

#[test]
fn no_more_is_filled_than_there_was_space() {
    let mut reader = reader();
    let allowed = reader.space().len();
    assert_eq!(allowed, 16);
    let fault = FrameFault::Overfilled { found: 17, allowed };
    assert_eq!(reader.filled(17), Err(fault));
}

#[cfg(feature = "zstd")]
mod compressed {
    use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

    use super::*;

    fn reader() -> FrameReader {
        FrameReader::new(Digest::Xxh3, Compression::Zstd).unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
        zstd_safe::compress(&mut out, bytes, 1).unwrap();
        out
    }

    /// A frame that states no length of its content, and a window of its own.
    fn streamed(bytes: &[u8], window_log: u32) -> Vec<u8> {
        let mut context = CCtx::create();
        context
            .set_parameter(CParameter::WindowLog(window_log))
            .unwrap();
        context
            .set_parameter(CParameter::ContentSizeFlag(false))
            .unwrap();
        let mut out = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()) + 64);
        let (half, rest) = bytes.split_at(bytes.len() / 2);
        let mut output = OutBuffer::around(&mut out);
        for part in [half, rest] {
            let mut input = InBuffer::around(part);
            context.compress_stream(&mut output, &mut input).unwrap();
        }
        assert_eq!(context.end_stream(&mut output).unwrap(), 0);
        out
    }

    fn frame(raw_len: u32, zstd: &[u8]) -> Vec<u8> {
        let body = [&raw_len.to_be_bytes(), zstd].concat();
        Raw::new(0, 1, &body).bytes()
    }

    #[test]
    fn compressed_bodies() {
        const MOST: u32 = MAX_BODY_LEN as u32;
        let number = 0;
        let text = b"a line of text, and another line of text, ".repeat(30);
        let len = text.len() as u32;
        let good = zstd(&text);
        let content = |expected| FrameFault::Compressed { number, expected };
        let raw_length = |found| FrameFault::RawLength {
            number,
            found,
            allowed: MOST,
        };
        let window = FrameFault::Window {
            number,
            allowed: 21,
        };
        let skippable = b"\x50\x2a\x4d\x18\x02\0\0\0ab";
        let empty = zstd(b"");
        let (first, second) = text.split_at(100);
        let two = [zstd(first), zstd(second)].concat();
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 0x55;
        let lies = [
            (frame(0, &good), raw_length(0)),
            (frame(MOST + 1, &good), raw_length(MOST + 1)),
            (frame(u32::MAX, &good), raw_length(u32::MAX)),
            (frame(len - 1, &good), content(len - 1)),
            (frame(len + 1, &good), content(len + 1)),
            (frame(MOST, &good), content(MOST)),
            (frame(1, &empty), content(1)),
            (frame(len, &good[..good.len() - 1]), content(len)),
            (frame(len, &[&good[..], b"!"].concat()), content(len)),
            (frame(len, &[&good[..], skippable].concat()), content(len)),
            (frame(len, &[skippable, &good[..]].concat()), window),
            (frame(len, &two), content(len)),
            (frame(len, &good[..4]), window),
            (frame(len, b"text"), window),
            (frame(2, skippable), window),
            (frame(len, &streamed(&text, 22)), window),
        ];
        for (at, (lie, fault)) in lies.into_iter().enumerate() {
            assert_eq!(outcome(reader, &lie), (vec![], Err(fault)), "lie {at}");
        }
        // libzstd may read a frame with a damaged end, but never with another length.
        let (found, _) = outcome(reader, &frame(len, &damaged));
        assert!(
            found
                .iter()
                .all(|frame| matches!(frame, Received::Data(data) if data.len() == text.len()))
        );

        for fine in [good, streamed(&text, 21), streamed(&text, 10)] {
            let (found, end) = outcome(reader, &frame(len, &fine));
            assert_eq!(
                (found, end),
                (vec![Received::Data(text.clone())], Err(FrameFault::NoEnd))
            );
        }
        for short in [b"".as_slice(), b"\0\0\0\x01"] {
            let found = short.len() as u32;
            let fault = FrameFault::Length {
                number,
                kind: 1,
                found,
                least: 5,
                most: MOST,
            };
            let lie = Raw::new(0, 1, short).bytes();
            assert_eq!(outcome(reader, &lie), (vec![], Err(fault)));
        }
    }

    /// A small frame that would fill much memory is stopped at the length it states.
    #[test]
    fn a_bomb_does_not_go_off() {
        let bomb = zstd(&vec![0; 64 << 20]);
        assert!(bomb.len() < 10_000);
        let (most, _) = testkit::allocations::measure(|| {
            let bytes = frame(4096, &bomb);
            let mut reader = reader();
            assert!(reader.push(&mut bytes.as_slice()).is_err());
        });
        assert!(most < 100_000, "{most} bytes");
    }
}
