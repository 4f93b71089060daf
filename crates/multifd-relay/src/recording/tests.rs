use std::io::Cursor;

use super::*;

#[derive(Debug, PartialEq)]
enum Owned {
    Open(u16, Role),
    Data(u16, Vec<u8>),
    Eof(u16),
}

fn sample() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    let channel = writer.open(Role::Channel).unwrap();
    writer.data(channel, b"hello").unwrap();
    let main = writer.open(Role::Main).unwrap();
    writer.data(main, &vec![7; MAX_DATA_BYTES + 1]).unwrap();
    writer.data(channel, b"again").unwrap();
    writer.eof(channel).unwrap();
    writer.eof(main).unwrap();
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> Result<Vec<Owned>, RecordingError> {
    let mut reader = Reader::new(Cursor::new(bytes))?;
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        chunks.push(match chunk {
            Chunk::Open { stream, role } => Owned::Open(stream, role),
            Chunk::Data { stream, bytes } => Owned::Data(stream, bytes.to_vec()),
            Chunk::Eof { stream } => Owned::Eof(stream),
        });
    }
    Ok(chunks)
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(
        read(&sample()).unwrap(),
        [
            Owned::Open(0, Role::Channel),
            Owned::Data(0, b"hello".to_vec()),
            Owned::Open(1, Role::Main),
            Owned::Data(1, vec![7; MAX_DATA_BYTES]),
            Owned::Data(1, vec![7]),
            Owned::Data(0, b"again".to_vec()),
            Owned::Eof(0),
            Owned::Eof(1),
        ]
    );
}

#[test]
fn one_stream_is_walked_alone() {
    let bytes = sample();
    let mut reader = StreamReader::new(Cursor::new(&bytes), 0).unwrap();
    let mut seen = Vec::new();
    while let Some(data) = reader.next_data().unwrap() {
        seen.extend_from_slice(data);
    }
    assert_eq!(seen, b"helloagain");
    // It stays at its end.
    assert_eq!(reader.next_data().unwrap(), None);
    let mut reader = StreamReader::new(Cursor::new(&bytes), 1).unwrap();
    let mut len = 0;
    while let Some(data) = reader.next_data().unwrap() {
        len += data.len();
    }
    assert_eq!(len, MAX_DATA_BYTES + 1);
    let mut reader = StreamReader::new(Cursor::new(&bytes), 2).unwrap();
    assert_eq!(reader.next_data().unwrap(), None);
}

#[test]
fn as_many_channels_as_there_are_ids_are_recorded() {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for _ in 0..MAX_CHANNELS {
        writer.open(Role::Channel).unwrap();
    }
    let main = writer.open(Role::Main).unwrap();
    let error = writer.open(Role::Channel).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a recording holds at most 257 connections"
    );
    for stream in 0..=main {
        writer.eof(stream).unwrap();
    }
    let chunks = read(&writer.finish().unwrap()).unwrap();
    assert_eq!(chunks.len(), 2 * MAX_STREAMS);
}

#[test]
fn every_cut_is_noticed() {
    let bytes = sample();
    for len in (0..400).chain(bytes.len() - 400..bytes.len()) {
        let error = read(&bytes[..len]).unwrap_err();
        assert!(
            matches!(error.0, RecordingFault::Truncated { .. }),
            "cut at {len}: {error}"
        );
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = sample();
    for at in (0..200).chain(bytes.len() - 200..bytes.len()) {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(&damaged).is_err(), "bit {bit} of byte {at} was missed");
        }
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
    let mut bytes = sample();
    // The length of the first data chunk: after the file's header and the chunk that opens the
    // stream.
    bytes[16 + 13 + 4..][..4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        read(&bytes),
        Err(RecordingError(RecordingFault::ChunkLength {
            offset: 29,
            found: u32::MAX,
            allowed: MAX_DATA_BYTES
        }))
    ));
}

/// Recordings that are well-formed chunk by chunk and yet break a rule of the whole.
#[test]
fn nonsense_is_refused() {
    type Script = fn(&mut Writer<Vec<u8>>) -> io::Result<()>;
    let cases: [(&str, Script); 7] = [
        ("its end is that of a stream", |w| {
            w.chunk(Kind::End, 1, &[0; TOTALS_LEN])
        }),
        ("a second main channel is opened", |w| {
            w.open(Role::Main)?;
            w.open(Role::Main).map(|_| ())
        }),
        ("it is of a stream that is not open", |w| w.data(0, b"x")),
        ("it is of a stream that is not open", |w| {
            let main = w.open(Role::Main)?;
            w.eof(main)?;
            w.eof(main)
        }),
        ("the recording ends while a stream is open", |w| {
            w.open(Role::Main).map(|_| ())
        }),
        ("the recording ends without a main channel", |_| Ok(())),
        ("a stream is opened out of turn", |w| {
            w.streams = 1;
            w.open(Role::Main).map(|_| ())
        }),
    ];
    for (expected, script) in cases {
        let mut writer = Writer::new(Vec::new()).unwrap();
        script(&mut writer).unwrap();
        let bytes = writer.finish().unwrap();
        match read(&bytes) {
            Err(RecordingError(RecordingFault::Nonsense { what, .. })) => {
                assert_eq!(what, expected)
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut bytes = sample();
    bytes.push(0);
    assert!(matches!(
        read(&bytes),
        Err(RecordingError(RecordingFault::Nonsense {
            what: "it comes after the end of the recording",
            ..
        }))
    ));
}

#[test]
fn another_file_is_not_a_recording() {
    assert!(
        matches!(read(&[b'Q'; 64]), Err(RecordingError(RecordingFault::NotARecording { found })) if found == [b'Q'; 8])
    );
}

#[test]
fn a_later_version_is_named() {
    let mut bytes = sample();
    bytes[11] = 2;
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&crc.to_be_bytes());
    assert!(matches!(
        read(&bytes),
        Err(RecordingError(RecordingFault::Version { found: 2 }))
    ));
}
