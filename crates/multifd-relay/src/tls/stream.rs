//! [`TlsStream`]: an established TLS connection as a [`Layer`].

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use multifd_transport::{Layer, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

use super::engine::{Engine, Incoming, RECORD_BYTES, Stop, has_record};
use super::error::{Place, TlsError};

/// Bytes of ciphertext to read at once. Several records, so that a system call costs little of the
/// time.
const READ_BYTES: usize = 128 << 10;

/// Bytes of plaintext to encrypt before their records are written.
const WRITE_BYTES: usize = 8 * RECORD_BYTES;

/// The most that is kept of a message that comes in parts. Nothing that a peer says after its
/// handshake is near that size.
const HELD_BYTES: usize = 2 * READ_BYTES;

/// Time limit for the end of a direction to find room in the socket.
const END_WAIT: Duration = Duration::from_secs(10);

/// Time limit for the rest of a record to go on, if the peer writes each at once. A host or a
/// network that is silent as long is gone; or the length of the record was changed on the way, and
/// its rest never comes. A QEMU may be held by a debugger in the middle of one.
const RECORD_REST: Duration = match cfg!(test) {
    true => Duration::from_secs(2),
    false => Duration::from_secs(30),
};

/// Time after the handshake in which a cut may be a refusal without words. GnuTLS lets its caller
/// judge a certificate after the handshake, and QEMU just closes then.
const EARLY: Duration = Duration::from_secs(5);

/// A TLS connection whose handshake is over.
///
/// One thread reads and one writes. They share the keys only while records are made or opened,
/// never while one of them waits for the socket. It keeps at most 384 KiB for reading and 132 KiB
/// for writing.
pub struct TlsStream {
    under: Stream,
    place: Place,
    lenient_end: bool,
    since: Instant,
    core: Mutex<Core>,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    /// The first failure. Both directions end with it.
    failure: OnceLock<TlsError>,
}

struct Core {
    engine: Engine,
    incoming: Incoming,
    /// Bytes of `incoming.plain` that were read.
    read: usize,
    /// Records that the engine made while it read. They go before the next ones.
    pending: Vec<u8>,
    /// The peer has said its end.
    closed: bool,
    /// Data came after the handshake.
    heard: bool,
}

/// Ciphertext from the socket.
#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// Ciphertext for the socket.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    sent: usize,
    /// Bytes of plaintext, of the call that ran out of time, that are in records already.
    taken: usize,
    /// The socket took a part of a record and no more.
    broken: bool,
    ended: bool,
}

impl TlsStream {
    /// The connection after its handshake. `incoming` came with the handshake's last bytes.
    pub(super) fn new(
        under: Stream,
        engine: Engine,
        incoming: Incoming,
        place: Place,
        lenient_end: bool,
    ) -> Self {
        Self {
            under,
            place,
            lenient_end,
            since: Instant::now(),
            core: Mutex::new(Core {
                closed: engine.is_closed(),
                heard: !incoming.plain.is_empty(),
                engine,
                incoming,
                read: 0,
                pending: Vec::new(),
            }),
            reader: Mutex::default(),
            writer: Mutex::default(),
            failure: OnceLock::new(),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first failure and returns it.
    fn fail(&self, error: TlsError) -> io::Error {
        self.failure.get_or_init(|| error).to_io()
    }

    fn check(&self) -> io::Result<()> {
        match self.failure.get() {
            Some(failure) => Err(failure.to_io()),
            None => Ok(()),
        }
    }

    /// Opens records that are there, until `buffer` is full. `None`: there is no whole one.
    /// `Some(0)`: the peer's end.
    fn open(&self, reader: &mut Reader, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut core = self.core();
        let mut filled = core.give(buffer);
        while filled < buffer.len() {
            if self.failure.get().is_some() {
                break;
            }
            let free = buffer.get_mut(filled..).unwrap_or_default();
            let (count, result) = core.open_one(reader, free);
            filled = filled.saturating_add(count);
            match result {
                Ok(Stop::Data) => {}
                Ok(Stop::NeedsMore) if filled == 0 => return Ok(None),
                Ok(Stop::Closed) if filled == 0 => return Ok(Some(0)),
                Ok(Stop::NeedsMore | Stop::Closed) => break,
                Err(error) => {
                    let error = self.fail(TlsError::from_rustls(error, &self.place));
                    drop(core);
                    self.send_last_words();
                    if filled == 0 {
                        return Err(error);
                    }
                    return Ok(Some(filled));
                }
            }
        }
        if filled == 0 {
            self.check()?;
        }
        Ok(Some(filled))
    }

    /// Opens records that are there until `bytes` of plaintext wait. Returns whether the peer has
    /// said its end.
    fn open_ahead(&self, reader: &mut Reader, bytes: usize) -> bool {
        let mut core = self.core();
        while core.waiting() < bytes && self.failure.get().is_none() {
            match core.open_one(reader, &mut []).1 {
                Ok(Stop::Data) => {}
                Ok(Stop::NeedsMore) => return false,
                Ok(Stop::Closed) => return true,
                Err(error) => {
                    self.fail(TlsError::from_rustls(error, &self.place));
                    drop(core);
                    self.send_last_words();
                    return false;
                }
            }
        }
        core.closed
    }

    /// Reads ciphertext. An error leaves everything as it was, except for the end, which is kept.
    fn fetch(&self, reader: &mut Reader, wait: bool) -> io::Result<()> {
        let is_inside = reader.start < reader.end && !self.lenient_end;
        if wait && is_inside && !self.under.is_readable_within(RECORD_REST)? {
            let words = "the peer stopped inside a TLS record";
            return Err(io::Error::new(io::ErrorKind::TimedOut, words));
        }
        let free = reader.room();
        let count = if wait {
            self.under.read_some(free)
        } else {
            self.under.read_now(free)
        };
        match count {
            Ok(0) if self.lenient_end && reader.start == reader.end => {
                self.core().closed = true;
                Ok(())
            }
            Ok(0) => Err(self.cut()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(self.cut()),
            Ok(count) => {
                reader.end = reader.end.saturating_add(count);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn cut(&self) -> io::Error {
        let before_data = !self.core().heard && self.since.elapsed() < EARLY;
        self.fail(TlsError::Cut { before_data })
    }

    /// Sends the alert that tells the peer of a failure, if the socket takes it at once.
    fn send_last_words(&self) {
        let Ok(mut writer) = self.writer.try_lock() else {
            // A writer is at work. It sees the failure next and does the same.
            return;
        };
        self.send_pending(&mut writer);
    }

    fn send_pending(&self, writer: &mut Writer) {
        if writer.broken || writer.ended {
            return;
        }
        let mut core = self.core();
        writer.bytes.append(&mut core.pending);
        drop(core);
        let left = writer.bytes.get(writer.sent..).unwrap_or_default();
        if let Ok(count) = send(&self.under, left, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            writer.sent = writer.sent.saturating_add(count);
        }
        writer.broken = true;
    }

    /// A write has failed as the peer is gone. Its last words may have come before that.
    fn heard_why(&self, error: io::Error) -> io::Error {
        if !multifd_transport::hung_up(&error) {
            return error;
        }
        if let Ok(mut reader) = self.reader.try_lock() {
            while self.failure.get().is_none() && !self.open_ahead(&mut reader, HELD_BYTES) {
                if self.core().waiting() >= HELD_BYTES || self.fetch(&mut reader, false).is_err() {
                    break;
                }
            }
        }
        match self.failure.get() {
            Some(failure @ TlsError::PeerRefused { .. }) => failure.to_io(),
            _ => error,
        }
    }

    /// Writes what is in `writer`.
    fn flush(&self, writer: &mut Writer) -> io::Result<()> {
        while let Some(left @ [_, ..]) = writer.bytes.get(writer.sent..) {
            match io::Write::write(&mut &self.under, left) {
                Ok(0) => return Err(self.broken(writer, io::ErrorKind::WriteZero.into())),
                Ok(count) => writer.sent = writer.sent.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(error),
                Err(error) => return Err(self.broken(writer, error)),
            }
        }
        writer.bytes.clear();
        writer.sent = 0;
        Ok(())
    }

    fn broken(&self, writer: &mut Writer, error: io::Error) -> io::Error {
        writer.broken = true;
        self.heard_why(error)
    }

    /// Puts the records of up to [`WRITE_BYTES`] of `head` and `body` into `writer`. Returns how
    /// much plaintext that is.
    fn seal(&self, writer: &mut Writer, head: &[u8], body: &[u8]) -> io::Result<usize> {
        let mut sealed = 0_usize;
        let mut core = self.core();
        let Core {
            engine,
            incoming,
            pending,
            ..
        } = &mut *core;
        writer.bytes.append(pending);
        for part in [head, body] {
            let count = part.len().min(WRITE_BYTES.saturating_sub(sealed));
            let piece = part.get(..count).unwrap_or_default();
            if piece.is_empty() {
                continue;
            }
            if let Err(error) = engine.encrypt(piece, &mut writer.bytes, incoming) {
                drop(core);
                writer.broken = true;
                return Err(self.fail(TlsError::from_rustls(error, &self.place)));
            }
            sealed = sealed.saturating_add(count);
        }
        Ok(sealed)
    }
}

impl Core {
    fn waiting(&self) -> usize {
        self.incoming.plain.len().saturating_sub(self.read)
    }

    /// Gives plaintext that waits.
    fn give(&mut self, buffer: &mut [u8]) -> usize {
        let waiting = self.incoming.plain.get(self.read..).unwrap_or_default();
        let count = copy(waiting, buffer);
        self.read = self.read.saturating_add(count);
        if self.waiting() == 0 {
            self.incoming.plain.clear();
            self.read = 0;
        }
        count
    }

    /// Opens the next record into `free`; what does not fit waits.
    fn open_one(
        &mut self,
        reader: &mut Reader,
        free: &mut [u8],
    ) -> (usize, Result<Stop, rustls::Error>) {
        if self.closed {
            return (0, Ok(Stop::Closed));
        }
        let Incoming { held, plain } = &mut self.incoming;
        if self.read > 0 && self.read == plain.len() {
            plain.clear();
            self.read = 0;
        }
        let mut given = 0_usize;
        let mut give = |data: &[u8]| {
            let count = copy(data, free.get_mut(given..).unwrap_or_default());
            given = given.saturating_add(count);
            plain.extend_from_slice(data.get(count..).unwrap_or_default());
        };
        let result = if held.is_empty() {
            let bytes = reader.whole_mut();
            let (taken, result) = self.engine.take(bytes, &mut self.pending, &mut give);
            reader.skip(taken);
            if result == Ok(Stop::NeedsMore) && has_record(reader.whole()) {
                held.extend_from_slice(reader.whole());
                reader.skip(usize::MAX);
            }
            result
        } else {
            held.extend_from_slice(reader.whole());
            reader.skip(usize::MAX);
            let (taken, result) = self.engine.take(held, &mut self.pending, &mut give);
            held.drain(..taken.min(held.len()));
            if result == Ok(Stop::NeedsMore) && !has_record(held) {
                reader.put_back(held);
                held.clear();
            }
            if held.len() > HELD_BYTES {
                Err(rustls::Error::PeerSentOversizedRecord)
            } else {
                result
            }
        };
        self.closed |= result == Ok(Stop::Closed);
        self.heard |= result == Ok(Stop::Data);
        (given, result)
    }
}

impl Reader {
    fn whole(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn whole_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Takes bytes from the front.
    fn skip(&mut self, bytes: usize) {
        self.start = self.start.saturating_add(bytes).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Takes a part of a record back. Nothing else is there.
    fn put_back(&mut self, part: &[u8]) {
        self.skip(usize::MAX);
        self.end = copy(part, self.room());
    }

    /// Room for more, at least as much as a record lacks.
    fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.resize(READ_BYTES, 0);
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
        to.copy_from_slice(from);
    }
    count
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

impl Layer for TlsStream {
    fn under(&self) -> &Stream {
        &self.under
    }

    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut reader = if wait {
            self.reader.lock().unwrap_or_else(PoisonError::into_inner)
        } else {
            try_lock(&self.reader).ok_or(io::ErrorKind::WouldBlock)?
        };
        loop {
            if let Some(count) = self.open(&mut reader, buffer)? {
                return Ok(count);
            }
            self.fetch(&mut reader, wait)?;
        }
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut reader = try_lock(&self.reader).ok_or(io::ErrorKind::WouldBlock)?;
        let end = loop {
            let closed = self.open_ahead(&mut reader, buffer.len());
            if closed || self.core().waiting() >= buffer.len() {
                break Ok(0);
            }
            if let Err(error) = self.check() {
                break Err(error);
            }
            if let Err(error) = self.fetch(&mut reader, false) {
                break Err(error);
            }
        };
        let core = self.core();
        let waiting = core.incoming.plain.get(core.read..).unwrap_or_default();
        match copy(waiting, buffer) {
            0 => end,
            count => Ok(count),
        }
    }

    fn has_more(&self) -> bool {
        let Some(reader) = try_lock(&self.reader) else {
            // Another thread reads and takes what is there.
            return false;
        };
        let core = self.core();
        core.waiting() > 0
            || core.closed
            || self.failure.get().is_some()
            || has_record(&core.incoming.held)
            || has_record(reader.whole())
    }

    /// Writes all of both parts. After `WouldBlock` or `TimedOut`, by a time limit of the socket,
    /// the next call must have the same bytes: it goes on where this one has stopped.
    fn write_all_of_two(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(failure) = self.check() {
            self.send_pending(&mut writer);
            return Err(failure);
        }
        if writer.broken || writer.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        loop {
            self.flush(&mut writer)?;
            let head_left = head.get(writer.taken.min(head.len())..).unwrap_or_default();
            let body_taken = writer.taken.saturating_sub(head.len());
            let body_left = body.get(body_taken.min(body.len())..).unwrap_or_default();
            if head_left.is_empty() && body_left.is_empty() {
                writer.taken = 0;
                return Ok(());
            }
            let sealed = self.seal(&mut writer, head_left, body_left)?;
            writer.taken = writer.taken.saturating_add(sealed);
        }
    }

    fn end(&self) -> io::Result<()> {
        let Some(mut writer) = try_lock(&self.writer) else {
            // A writer is cut off in the middle of what it says: that is no end.
            return Ok(());
        };
        let has_failed = self.failure.get().is_some();
        if writer.ended || writer.broken || writer.taken > 0 || has_failed {
            return Ok(());
        }
        {
            let mut core = self.core();
            let Core {
                engine,
                incoming,
                pending,
                ..
            } = &mut *core;
            writer.bytes.append(pending);
            if let Err(error) = engine.close(&mut writer.bytes, incoming) {
                return Err(TlsError::from_rustls(error, &self.place).to_io());
            }
        }
        writer.ended = true;
        let until = Instant::now() + END_WAIT;
        while let Some(left @ [_, ..]) = writer.bytes.get(writer.sent..) {
            match send(&self.under, left, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => writer.sent = writer.sent.saturating_add(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait_for(&self.under, PollFlags::OUT, left)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Waits until `stream` has one of `events`, at most as long as `within`.
pub(super) fn wait_for(stream: &Stream, events: PollFlags, within: Duration) -> io::Result<()> {
    let mut source = [PollFd::new(stream, events)];
    match poll(&mut source, Timespec::try_from(within).ok().as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("under", &self.under)
            .finish_non_exhaustive()
    }
}

impl TlsStream {
    /// The version and the cipher suite, for people.
    pub(super) fn describe(&self) -> String {
        let core = self.core();
        let version = core
            .engine
            .version()
            .and_then(|version| version.as_str().map(str::to_owned));
        let suite = core
            .engine
            .suite()
            .map(|suite| format!("{:?}", suite.suite()));
        let known = [version, suite].into_iter().flatten().collect::<Vec<_>>();
        known.join(" ")
    }
}
