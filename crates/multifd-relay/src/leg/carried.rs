//! One of QEMU's connections, as a trunk carries it: bytes in frames.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::ahead::Ahead;
use multifd_transport::{Layer, Stream};

use super::reading::{Over, Reading};
use crate::trunk::frame_memory::FREE_BODY_LEN;
use crate::trunk::{
    Chosen, Compression, Compressor, FailureCode, FailureNotice, FrameWriter, NoCompression, Piece,
    Words,
};

/// The time limit for the last message to the other relay. The connection is closed afterwards.
const LAST_WORD: Duration = Duration::from_millis(500);

/// How long a thread may take to finish a frame that no rate limit holds up any more, and how often
/// that is checked. The socket had room, so this is the time of a copy.
const UNLIMITED: Duration = Duration::from_millis(100);
const UNLIMITED_PAUSE: Duration = Duration::from_millis(1);

/// The most notes that may wait. Each mark has one, and marks are handled in turn.
const MOST_NOTES: usize = 64;

/// The other relay has ended the migration and given its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other relay ended the migration: {words}")]
#[non_exhaustive]
pub struct FarFailure {
    /// Its reason: any text, as the other host is not trusted.
    pub(crate) words: Words,
    /// The destination had everything that makes the guest by then.
    pub(crate) was_complete: bool,
}

impl FarFailure {
    /// Whether the destination may have the guest nevertheless.
    #[must_use]
    pub fn may_have_guest(&self) -> bool {
        self.was_complete
    }
}

/// A connection in frames.
pub(super) struct Carried {
    under: Stream,
    /// Bytes of frames that were read, and that were written.
    bytes: [AtomicU64; 2],
    reading: Mutex<Reading>,
    writing: Mutex<Writing>,
    /// Whether both ends have agreed on notes.
    has_notes: bool,
    /// Notes that wait to be taken.
    notes: Mutex<VecDeque<Vec<u8>>>,
}

struct Writing {
    frames: FrameWriter,
    /// A frame's header, with the first part of its body.
    front: Vec<u8>,
    /// The pieces in work, if the stream is compressed.
    pieces: Option<Pieces>,
}

/// Pieces of the stream. This thread and others compress them; they are written in order.
struct Pieces {
    /// The piece that takes the next bytes.
    next: Piece,
    ahead: Ahead<Piece>,
    /// Written pieces, whose memory is used again.
    spare: Vec<Piece>,
}

impl Carried {
    /// A connection after its preface and answer. `is_stream`: its bytes may be compressed. Other
    /// connections carry pages that are compressed already.
    pub(super) fn new(
        under: Stream,
        chosen: &Chosen,
        is_stream: bool,
    ) -> Result<Self, NoCompression> {
        let compression = match is_stream {
            true => chosen.compression,
            false => Compression::None,
        };
        let writing = Writing {
            // It gets pieces that are compressed already.
            frames: FrameWriter::new(chosen.digest, Compression::None)?,
            front: Vec::new(),
            pieces: match compression {
                Compression::None => None,
                Compression::Zstd => Some(Pieces::new()?),
            },
        };
        Ok(Self {
            under,
            bytes: Default::default(),
            reading: Mutex::new(Reading::new(chosen.digest, compression)?),
            writing: Mutex::new(writing),
            has_notes: false,
            notes: Mutex::default(),
        })
    }

    /// The same, with or without notes, as both ends have agreed.
    pub(super) fn with_notes(self, has_notes: bool) -> Self {
        Self { has_notes, ..self }
    }

    fn notes(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes bytes of frames.
    fn put(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        self.under.write_all_of_two(head, body)?;
        let [_, written] = &self.bytes;
        let count = head.len().saturating_add(body.len());
        written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The writer, unless another thread is blocked in a write: the socket has no room for more
    /// then. A thread that waited for a rate limit finishes what it writes first.
    fn writing_soon(&self) -> Option<MutexGuard<'_, Writing>> {
        let was_limited = self.under.lift_rate_limit();
        let since = Instant::now();
        loop {
            match self.writing.try_lock() {
                Ok(writing) => return Some(writing),
                Err(TryLockError::WouldBlock) if was_limited && since.elapsed() < UNLIMITED => {
                    thread::sleep(UNLIMITED_PAUSE);
                }
                Err(_) => return None,
            }
        }
    }

    /// A panic ends its migration and closes all its connections, so the state does not matter.
    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Over for Carried {
    fn under(&self) -> &Stream {
        &self.under
    }

    fn count(&self, bytes: usize) {
        let [read, _] = &self.bytes;
        read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn note(&self, note: &[u8]) -> bool {
        let mut notes = self.notes();
        let may_come = self.has_notes && notes.len() < MOST_NOTES;
        if may_come {
            notes.push_back(note.to_vec());
        }
        may_come
    }
}

impl Layer for Carried {
    fn under(&self) -> &Stream {
        &self.under
    }

    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<usize> {
        self.reading().read(self, buffer, wait)
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reading().peek(self, buffer)
    }

    fn has_more(&self) -> bool {
        match self.reading.try_lock() {
            Ok(reading) => reading.has_more(),
            // Another thread holds the lock while it waits for the next bytes.
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Poisoned(_)) => true,
        }
    }

    fn write_all_of_two(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut writing = self.writing();
        if writing.pieces.is_some() {
            writing.write_ahead(self, head)?;
            writing.write_ahead(self, body)?;
            return writing.flush(self);
        }
        let mut parts = (head, body);
        loop {
            let (head, body) = parts;
            let now = (
                head.get(..FREE_BODY_LEN).unwrap_or(head),
                body.get(..FREE_BODY_LEN.saturating_sub(head.len()))
                    .unwrap_or(body),
            );
            let left = (
                head.get(now.0.len()..).unwrap_or_default(),
                body.get(now.1.len()..).unwrap_or_default(),
            );
            writing.write_plain(self, now.0, now.1)?;
            if left.0.is_empty() && left.1.is_empty() {
                return Ok(());
            }
            parts = left;
        }
    }

    fn write_ahead(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writing = self.writing();
        match writing.pieces {
            Some(_) => writing.write_ahead(self, bytes),
            None => {
                drop(writing);
                self.write_all_of_two(bytes, &[])
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.writing().flush(self)
    }

    fn bytes_below(&self) -> Option<[u64; 2]> {
        let bytes = self.bytes.each_ref();
        Some(bytes.map(|bytes| bytes.load(Ordering::Relaxed)))
    }

    fn end(&self) -> io::Result<()> {
        let mut writing = self.writing();
        if writing.frames.has_ended() {
            return Ok(());
        }
        writing.flush(self)?;
        let header = writing.frames.end().map_err(io::Error::other)?;
        self.put(&header, &[])?;
        self.under.shutdown(Shutdown::Write)
    }

    fn has_notes(&self) -> bool {
        self.has_notes
    }

    fn tell(&self, note: &[u8]) -> io::Result<()> {
        if !self.has_notes {
            return Ok(());
        }
        let mut writing = self.writing();
        // The note must follow all bytes before it.
        writing.flush(self)?;
        let mut bytes = Vec::new();
        let frames = &mut writing.frames;
        frames.note(note, &mut bytes).map_err(io::Error::other)?;
        self.put(&bytes, &[])
    }

    fn told(&self) -> Option<Vec<u8>> {
        self.notes().pop_front()
    }

    fn explain(&self, words: &str) {
        let Some(mut writing) = self.writing_soon() else {
            return;
        };
        if writing.frames.has_ended() {
            return;
        }
        let failure = FailureNotice {
            code: FailureCode::OTHER,
            words: Words::new(words),
        };
        let mut bytes = Vec::new();
        let said = writing.frames.failure(&failure, &mut bytes).is_ok();
        // The connection is closed next, so an error does not matter.
        let _ = self.under.set_timeouts(Some(LAST_WORD));
        let _ = said.then(|| self.under.write_all_of_two(&bytes, &[]));
    }
}

impl Writing {
    /// Writes 1 to [`FREE_BODY_LEN`] bytes in one frame, or nothing.
    fn write_plain(&mut self, over: &Carried, head: &[u8], body: &[u8]) -> io::Result<()> {
        if head.is_empty() && body.is_empty() {
            return Ok(());
        }
        let header = self.frames.data(&[head, body]).map_err(io::Error::other)?;
        self.front.clear();
        self.front.extend_from_slice(&header);
        self.front.extend_from_slice(head);
        over.put(&self.front, body)
    }

    /// Takes bytes of a compressed stream, and writes the pieces that are ready.
    fn write_ahead(&mut self, over: &Carried, mut bytes: &[u8]) -> io::Result<()> {
        while let (Some(pieces), false) = (&mut self.pieces, bytes.is_empty()) {
            bytes = pieces.next.take(bytes);
            if pieces.next.is_full() {
                pieces.begin();
                self.write_pieces(over, |ahead| ahead.is_ready() || !ahead.has_room())?;
            }
        }
        Ok(())
    }

    /// Writes all bytes that it has taken.
    fn flush(&mut self, over: &Carried) -> io::Result<()> {
        if let Some(pieces) = &mut self.pieces
            && !pieces.next.is_empty()
        {
            pieces.begin();
        }
        self.write_pieces(over, |_| true)
    }

    /// Writes the oldest pieces while there are some and `goes_on` allows it.
    fn write_pieces(
        &mut self,
        over: &Carried,
        goes_on: impl Fn(&Ahead<Piece>) -> bool,
    ) -> io::Result<()> {
        let Some(pieces) = &mut self.pieces else {
            return Ok(());
        };
        while goes_on(&pieces.ahead)
            && let Some(mut piece) = pieces.ahead.pop()
        {
            let [head, body] = { self.frames.frame_of(&mut piece) }.map_err(io::Error::other)?;
            over.put(head, body)?;
            piece.clear();
            pieces.spare.push(piece);
        }
        Ok(())
    }
}

impl Pieces {
    fn new() -> Result<Self, NoCompression> {
        Ok(Self {
            next: Piece::default(),
            ahead: Ahead::new(Compressor::new)?,
            spare: Vec::new(),
        })
    }

    /// Starts to compress the next piece, which is complete.
    fn begin(&mut self) {
        let empty = self.spare.pop().unwrap_or_default();
        self.ahead.push(mem::replace(&mut self.next, empty));
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried")
            .field("under", &self.under)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use multifd_wire::Method;

    use super::super::reading::{FRAME_REST, MOST_AHEAD};
    use crate::trunk::Digest;

    fn chosen() -> Chosen {
        Chosen {
            version: 1,
            method: Method::None,
            digest: Digest::Xxh3,
            compression: Compression::available()[0],
        }
    }

    fn pair(is_stream: bool) -> (Stream, Stream, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        let raw = a.try_clone().unwrap();
        let carried =
            |end: UnixStream| Carried::new(Stream::from(end), &chosen(), is_stream).unwrap();
        let streams = (Stream::layered(carried(a)), Stream::layered(carried(b)));
        (streams.0, streams.1, raw)
    }

    #[test]
    fn bytes_and_their_end_arrive() {
        for is_stream in [false, true] {
            let (ours, theirs, _) = pair(is_stream);
            let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n / 777) as u8).collect();
            thread::scope(|scope| {
                scope.spawn(|| {
                    (&ours).write_all(&sent[..3]).unwrap();
                    ours.write_all_of_two(&sent[3..1344], &sent[1344..3_000_000])
                        .unwrap();
                    (&ours).write_all(&sent[3_000_000..]).unwrap();
                    ours.shutdown(Shutdown::Write).unwrap();
                });
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                assert!(all == sent);
            });
            let [read, _] = theirs.bytes_below().unwrap();
            let [_, written] = ours.bytes_below().unwrap();
            assert_eq!(read, written);
            let is_smaller = is_stream && Compression::available().len() > 1;
            assert_eq!(written < sent.len() as u64, is_smaller);
            // The other direction is still open.
            (&theirs).write_all(b"thanks").unwrap();
            let mut word = [0; 6];
            (&ours).read_exact(&mut word).unwrap();
            assert_eq!(&word, b"thanks");
        }
    }

    #[test]
    fn what_is_looked_at_stays() {
        let (ours, theirs, _) = pair(true);
        let mut buffer = [0; 4];
        let nothing = theirs.peek(&mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        (&ours).write_all(b"0123456789").unwrap();
        assert!(theirs.is_readable_within(Duration::ZERO).unwrap());
        assert_eq!(theirs.peek(&mut buffer).unwrap(), 4);
        assert_eq!(theirs.read_now(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer, b"0123");
        let mut rest = [0; 6];
        (&theirs).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"456789");
    }

    /// The cuts between frames do not show, to a peek neither.
    #[test]
    fn what_lies_in_several_frames_is_looked_at_together() {
        for ending in ["end", "reason", "break"] {
            let (ours, theirs, mut raw) = pair(true);
            for part in [&b"01"[..], b"2", b"3456789"] {
                (&ours).write_all(part).unwrap();
            }
            let mut buffer = [0; 20];
            for end in [2, 5, 10, 20] {
                let count = theirs.peek(&mut buffer[..end]).unwrap();
                assert_eq!(&buffer[..count], &b"0123456789"[..end.min(10)]);
            }
            assert_eq!(theirs.read_now(&mut buffer[..4]).unwrap(), 4);
            (&ours).write_all(b"abc").unwrap();
            match ending {
                "end" => ours.shutdown(Shutdown::Write).unwrap(),
                "reason" => ours.reset(Some("over")),
                _ => raw.write_all(&[0xff; 16]).unwrap(),
            }
            assert_eq!(theirs.peek(&mut buffer).unwrap(), 9);
            let mut rest = [0; 9];
            (&theirs).read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"456789abc");
            let kind = |outcome: io::Result<usize>| outcome.map_err(|error| error.kind());
            let expected = match ending {
                "end" => Ok(0),
                "reason" => Err(io::ErrorKind::Other),
                _ => Err(io::ErrorKind::InvalidData),
            };
            for _ in 0..2 {
                assert_eq!(kind(theirs.peek(&mut buffer)), expected, "{ending}");
                assert_eq!(kind(theirs.read_now(&mut buffer)), expected, "{ending}");
            }
        }
    }

    #[test]
    fn what_is_only_looked_at_is_bounded() {
        let (ours, theirs, _) = pair(false);
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mut all = vec![0; 1 << 20];
        thread::scope(|scope| {
            scope.spawn(|| {
                for part in sent.chunks(1000) {
                    (&ours).write_all(part).unwrap();
                }
                ours.shutdown(Shutdown::Write).unwrap();
            });
            while !theirs.peek(&mut all).is_ok_and(|count| count >= MOST_AHEAD) {}
            for _ in 0..2 {
                let count = theirs.peek(&mut all).unwrap();
                assert!(count < MOST_AHEAD + 1000, "{count}");
            }
            let mut read = Vec::new();
            (&theirs).read_to_end(&mut read).unwrap();
            assert!(read == sent);
        });
    }

    #[test]
    fn an_end_that_was_not_said_is_a_broken_connection() {
        let (ours, theirs, raw) = pair(false);
        (&ours).write_all(b"half").unwrap();
        raw.shutdown(Shutdown::Both).unwrap();
        let mut word = [0; 4];
        (&theirs).read_exact(&mut word).unwrap();
        let error = (&theirs).read(&mut word).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_reason_travels() {
        let (ours, theirs, _) = pair(false);
        ours.reset(Some("dial unix:/run/vm1.sock: no such file"));
        for _ in 0..2 {
            let error = (&theirs).read(&mut [0; 4]).unwrap_err();
            let failure = error.get_ref().unwrap().downcast_ref::<FarFailure>();
            let words = failure.unwrap().words.to_string();
            assert_eq!(words, "dial unix:/run/vm1.sock: no such file");
        }
    }

    /// The length of a frame was changed on the way, and the other end waits for an answer.
    #[test]
    fn a_frame_whose_rest_never_comes_is_not_waited_for() {
        let (ours, theirs, mut raw) = pair(false);
        (&ours).write_all(b"whole").unwrap();
        raw.write_all(&[0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
        let mut whole = [0; 5];
        (&theirs).read_exact(&mut whole).unwrap();
        let error = (&theirs).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Between two frames the peer may be silent without a limit.
        let (ours, theirs, _raw) = pair(false);
        thread::scope(|scope| {
            let reading = scope.spawn(|| (&theirs).read(&mut [0; 8]));
            thread::sleep(3 * FRAME_REST);
            (&ours).write_all(b"late").unwrap();
            assert_eq!(reading.join().unwrap().unwrap(), 4);
        });
    }

    #[test]
    fn a_changed_byte_is_never_given() {
        let (ours, theirs, mut raw) = pair(false);
        raw.write_all(&[0; 3]).unwrap();
        (&ours).write_all(b"contents").unwrap();
        let error = (&theirs).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
