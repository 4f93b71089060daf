//! The target of recordings: files from anybody.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use multifd_relay::inspect::{Inspection, Summary};
use multifd_relay::recording::{
    Chunk, MAX_DATA_BYTES, Reader, RecordingError, StreamReader, Writer,
};
use multifd_relay::replay::Replay;

use testkit::allocations::measure;

const FILE_HEADER_LEN: usize = 16;
const CHUNK_HEADER_LEN: usize = 12;

/// A recording that is read whole is written again to the byte, and each of its streams is the same
/// by itself; what `inspect` and `replay` say of it fits. Of any other file no more is read at once
/// than a chunk.
///
/// Bytes are tried as they are and with their checksums mended, or nothing but checksums would ever
/// be looked at.
pub fn recording(data: &[u8]) {
    check(data);
    let mut mended = data.to_vec();
    mend(&mut mended);
    if mended != data {
        check(&mended);
    }
}

fn check(file: &[u8]) {
    let (most, _) = measure(|| {
        let _ = read(file, |_| ());
    });
    // A chunk's body, whose memory grows by doubling, and a bit for each stream.
    assert!(most <= 2 * MAX_DATA_BYTES + (16 << 10), "{most} bytes");

    let mut streams: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    let mut writer = Writer::new(Vec::new()).expect("memory");
    let outcome = read(file, |chunk| match chunk {
        Chunk::Open { stream, role } => {
            streams.insert(stream, Vec::new());
            assert_eq!(writer.open(role).expect("memory"), stream);
        }
        Chunk::Data { stream, bytes } => {
            streams.entry(stream).or_default().extend_from_slice(bytes);
            writer.data(stream, bytes).expect("memory");
        }
        Chunk::Eof { stream } => writer.eof(stream).expect("memory"),
    });
    let is_whole = outcome.is_ok();
    if is_whole {
        let again = writer.finish().expect("memory");
        let differs = again.iter().zip(file).position(|(a, b)| a != b);
        assert!(
            again == file,
            "differs at {differs:?}, {} of {} bytes",
            again.len(),
            file.len()
        );
    }
    for number in 0..=streams.len() as u16 {
        let mut alone = Vec::new();
        let ended = read_alone(file, number, &mut alone);
        if is_whole {
            assert!(ended.is_ok());
            assert!(alone == streams.get(&number).cloned().unwrap_or_default());
        }
    }
    check_file(file, &outcome);
}

fn read(file: &[u8], mut see: impl FnMut(Chunk<'_>)) -> Result<(), RecordingError> {
    let mut reader = Reader::new(Cursor::new(file))?;
    while let Some(chunk) = reader.next_chunk()? {
        see(chunk);
        assert!(reader.offset() <= file.len() as u64);
    }
    Ok(())
}

fn read_alone(file: &[u8], number: u16, alone: &mut Vec<u8>) -> Result<(), RecordingError> {
    let mut reader = StreamReader::new(Cursor::new(file), number)?;
    while let Some(bytes) = reader.next_data()? {
        alone.extend_from_slice(bytes);
    }
    Ok(())
}

/// The same as a file.
fn check_file(file: &[u8], outcome: &Result<(), RecordingError>) {
    thread_local! {
        static FILE: RefCell<Option<TemporaryFile>> = const { RefCell::new(None) };
    }
    FILE.with_borrow_mut(|slot| {
        let TemporaryFile(path) = slot.get_or_insert_with(TemporaryFile::new);
        fs::write(&*path, file).expect("a file");
        let report = match Inspection::open(path) {
            Ok(inspection) => inspection.finish(),
            Err(error) => {
                assert!(outcome.is_err(), "{error}");
                return;
            }
        };
        if report.recording {
            assert_eq!(report.damage.is_some(), outcome.is_err());
        }
        let has_main = report
            .streams
            .iter()
            .any(|stream| matches!(stream.summary, Summary::Main(_)));
        match Replay::open(path) {
            Ok(replay) => {
                assert!(report.recording && report.is_sound() && has_main);
                assert_eq!(replay.channels() + 1, report.streams.len());
            }
            Err(_) => assert!(!report.recording || !report.is_sound()),
        }
    });
}

/// A file of this thread, in memory where the system has such a place.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new() -> Self {
        let shared = PathBuf::from("/dev/shm");
        let folder = if shared.is_dir() {
            shared
        } else {
            std::env::temp_dir()
        };
        let thread = std::thread::current().id();
        Self(folder.join(format!("multifd-fuzz-{}-{thread:?}", std::process::id())))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Gives the header and every chunk, as far as they are there, the checksum that belongs to it; and
/// the last chunk the totals.
fn mend(file: &mut [u8]) {
    let Some((header, mut rest)) = file.split_at_mut_checked(FILE_HEADER_LEN) else {
        return;
    };
    let checksum = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&checksum.to_be_bytes());
    let (mut chunks, mut data_bytes) = (0_u64, 0_u64);
    while let Some((head, behind)) = rest.split_at_mut_checked(CHUNK_HEADER_LEN) {
        let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some((body, behind)) = behind.split_at_mut_checked(len) else {
            return;
        };
        match head[0] {
            2 => data_bytes += len as u64,
            4 if len == 16 => {
                body[..8].copy_from_slice(&chunks.to_be_bytes());
                body[8..].copy_from_slice(&data_bytes.to_be_bytes());
            }
            _ => {}
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head[..8]);
        hasher.update(body);
        head[8..].copy_from_slice(&hasher.finalize().to_be_bytes());
        chunks += 1;
        rest = behind;
    }
}
