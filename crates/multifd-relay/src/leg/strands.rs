//! Strands: several connections that carry the bytes of one, in order.
//!
//! The bytes of a direction go in pieces of [`PIECE_LEN`] to each strand in turn. So a byte's
//! position tells its strand, and the reader needs no memory to restore the order: early bytes wait
//! in their strand's socket. All strands carry the same amount, so the slowest strand sets the
//! speed.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use multifd_transport::{Layer, Stream};

/// The bytes that a strand carries at a time. They are enough that system calls cost little, and so
/// few that several strands share a packet.
pub(super) const PIECE_LEN: u64 = 64 << 10;

/// The longest silence of the strand that is due while another strand has bytes. Those bytes come
/// later in the order, so after this time the due strand's host or network has gone.
const STALL: Duration = match cfg!(test) {
    true => Duration::from_millis(100),
    false => Duration::from_secs(30),
};

/// Time between two checks for that silence.
const TICK: Duration = match cfg!(test) {
    true => Duration::from_millis(10),
    false => Duration::from_secs(1),
};

/// Several connections that act as one.
pub(super) struct Strands {
    first: Stream,
    /// The connections, at least one.
    more: Vec<Stream>,
    /// The position of the next byte to read.
    read: Mutex<u64>,
    /// The index of the strand that brings it.
    due: AtomicUsize,
    /// The position of the next byte to write. `None`: a write has failed, so the position is
    /// unknown.
    written: Mutex<Option<u64>>,
}

impl Strands {
    /// Joins `first` and `more`, in this order. The peer has the same order.
    pub(super) fn joined(first: Stream, more: Vec<Stream>) -> Stream {
        if more.is_empty() {
            return first;
        }
        Stream::layered(Self {
            first,
            more,
            read: Mutex::new(0),
            due: AtomicUsize::new(0),
            written: Mutex::new(Some(0)),
        })
    }

    fn all(&self) -> impl Iterator<Item = &Stream> {
        std::iter::once(&self.first).chain(&self.more)
    }

    fn count(&self) -> usize {
        self.more.len().saturating_add(1)
    }

    /// The strand of the byte at `place`, and the number of bytes that follow on it.
    fn at(&self, place: u64) -> (usize, usize) {
        let turn = place / PIECE_LEN % self.count() as u64;
        (turn as usize, (PIECE_LEN - place % PIECE_LEN) as usize)
    }

    fn strand(&self, index: usize) -> &Stream {
        let more = index.checked_sub(1).and_then(|index| self.more.get(index));
        more.unwrap_or(&self.first)
    }

    /// Waits until the strand that is due has bytes.
    fn wait(&self, due: usize) -> io::Result<()> {
        let strand = self.strand(due);
        let mut stalled_since = None;
        while !strand.is_readable_within(TICK)? {
            // A source may be silent without a limit.
            let waits = |strand: &Stream| strand.is_readable_within(Duration::ZERO);
            let mut others = self.all().enumerate();
            let is_ahead = others.any(|(index, strand)| {
                // A failure counts as bytes: the read reports it.
                index != due && waits(strand).unwrap_or(true)
            });
            if !is_ahead {
                stalled_since = None;
            } else if stalled_since.get_or_insert_with(Instant::now).elapsed() >= STALL {
                let words = format!(
                    "of the {} connections to the other relay that carry this one, number {} stands still",
                    self.count(),
                    due.saturating_add(1)
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
        }
        Ok(())
    }

    fn place(&self) -> MutexGuard<'_, u64> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer for Strands {
    /// The strand that is due.
    fn under(&self) -> &Stream {
        self.strand(self.due.load(Ordering::Relaxed))
    }

    fn each_under(&self, see: &mut dyn FnMut(&Stream)) {
        self.all().for_each(see);
    }

    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<usize> {
        let mut place = self.place();
        let (due, most) = self.at(*place);
        let most = most.min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let strand = self.strand(due);
        let count = match wait {
            true => self.wait(due).and_then(|()| strand.read_some(buffer))?,
            false => strand.read_now(buffer)?,
        };
        *place = place.saturating_add(count as u64);
        self.due.store(self.at(*place).0, Ordering::Relaxed);
        Ok(count)
    }

    /// A read goes no further than the due strand's piece.
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (due, most) = self.at(*self.place());
        let most = most.min(buffer.len());
        self.strand(due)
            .peek(buffer.get_mut(..most).unwrap_or_default())
    }

    fn has_more(&self) -> bool {
        self.under()
            .is_readable_within(Duration::ZERO)
            .unwrap_or(true)
    }

    fn write_all_of_two(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = written.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (mut head, mut body) = (head, body);
        while !(head.is_empty() && body.is_empty()) {
            let (index, room) = self.at(place);
            let (head_now, head_left) = head.split_at_checked(room).unwrap_or((head, &[]));
            let room = room.saturating_sub(head_now.len());
            let (body_now, body_left) = body.split_at_checked(room).unwrap_or((body, &[]));
            self.strand(index).write_all_of_two(head_now, body_now)?;
            let count = head_now.len().saturating_add(body_now.len());
            place = place.saturating_add(count as u64);
            (head, body) = (head_left, body_left);
        }
        *written = Some(place);
        Ok(())
    }

    fn end(&self) -> io::Result<()> {
        self.all()
            .try_for_each(|strand| strand.shutdown(Shutdown::Write))
    }
}

impl fmt::Debug for Strands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Strands")
            .field("first", &self.first)
            .field("more", &self.more)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// Two ends of the same strands, and handles of their sockets.
    fn pair(count: usize) -> (Stream, Stream, Vec<[UnixStream; 2]>) {
        let sockets: Vec<_> = (0..count).map(|_| UnixStream::pair().unwrap()).collect();
        let raw = { sockets.iter() }
            .map(|(a, b)| [a.try_clone().unwrap(), b.try_clone().unwrap()])
            .collect();
        let (mut ours, mut theirs): (Vec<_>, Vec<_>) = { sockets.into_iter() }
            .map(|(a, b)| (Stream::from(a), Stream::from(b)))
            .unzip();
        let join = |all: &mut Vec<Stream>| Strands::joined(all.remove(0), std::mem::take(all));
        (join(&mut ours), join(&mut theirs), raw)
    }

    fn random(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *state >> 33
    }

    fn bytes(len: usize) -> Vec<u8> {
        let mut state = 7;
        (0..len).map(|_| random(&mut state) as u8).collect()
    }

    /// Passes each strand's bytes on by itself, in pieces and after delays that look random.
    fn delaying(count: usize) -> (Stream, Stream) {
        let (ours, middle, _) = pair_of_sockets(count);
        let (other, theirs, _) = pair_of_sockets(count);
        for (index, (from, to)) in middle.into_iter().zip(other).enumerate() {
            thread::spawn(move || {
                let (mut from, mut to, mut state) = (from, to, index as u64);
                let mut buffer = vec![0; 100_000];
                loop {
                    let most = 1 + random(&mut state) as usize % buffer.len();
                    let count = from.read(&mut buffer[..most]).unwrap_or(0);
                    thread::sleep(Duration::from_micros(random(&mut state) % 500));
                    if count == 0 || to.write_all(&buffer[..count]).is_err() {
                        let _ = to.shutdown(Shutdown::Write);
                        return;
                    }
                }
            });
        }
        (joined(ours), joined(theirs))
    }

    fn pair_of_sockets(count: usize) -> (Vec<UnixStream>, Vec<UnixStream>, ()) {
        let (ours, theirs) = (0..count).map(|_| UnixStream::pair().unwrap()).unzip();
        (ours, theirs, ())
    }

    fn joined(sockets: Vec<UnixStream>) -> Stream {
        let mut all: Vec<_> = sockets.into_iter().map(Stream::from).collect();
        Strands::joined(all.remove(0), all)
    }

    #[test]
    fn bytes_arrive_in_order_whichever_strand_is_late() {
        let sent = bytes(3_000_000);
        for count in [2, 3, 16] {
            let (ours, theirs) = delaying(count);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut left, mut state) = (&sent[..], 3);
                    while !left.is_empty() {
                        let most = left.len().min(random(&mut state) as usize % 200_000);
                        let (now, rest) = left.split_at(most);
                        let (head, body) = now.split_at(most / 5);
                        ours.write_all_of_two(head, body).unwrap();
                        left = rest;
                    }
                    ours.shutdown(Shutdown::Write).unwrap();
                });
                let mut all = Vec::new();
                (&theirs).read_to_end(&mut all).unwrap();
                assert!(all == sent, "{count} strands");
            });
        }
    }

    #[test]
    fn both_directions_are_dealt_out() {
        let (ours, theirs, raw) = pair(3);
        (&ours).write_all(&bytes(2 * PIECE_LEN as usize)).unwrap();
        (&theirs).write_all(&bytes(10)).unwrap();
        let waits =
            |socket: &UnixStream| Stream::from(socket.try_clone().unwrap()).peek(&mut [0; 4]);
        let there: Vec<_> = raw
            .iter()
            .map(|[_, theirs]| waits(theirs).is_ok())
            .collect();
        assert_eq!(there, [true, true, false]);
        let there: Vec<_> = raw.iter().map(|[ours, _]| waits(ours).is_ok()).collect();
        assert_eq!(there, [true, false, false]);
        let mut buffer = [0; 20];
        assert_eq!(ours.peek(&mut buffer).unwrap(), 10);
        assert_eq!(ours.read_now(&mut buffer).unwrap(), 10);
        let nothing = ours.read_now(&mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    /// The strand that is due stands still, and what belongs after it has come.
    #[test]
    fn a_strand_that_stands_still_is_not_waited_for() {
        let (ours, theirs, raw) = pair(2);
        let mut first = vec![0; PIECE_LEN as usize];
        thread::scope(|scope| {
            scope.spawn(|| (&ours).write_all(&bytes(PIECE_LEN as usize)).unwrap());
            (&theirs).read_exact(&mut first).unwrap();
        });
        // Quiet as a whole, for as long as it likes.
        thread::scope(|scope| {
            let reading = scope.spawn(|| (&theirs).read(&mut [0; 8]));
            thread::sleep(3 * STALL);
            assert!(!reading.is_finished());
            (&raw[0][0]).write_all(b"what is due later").unwrap();
            let error = reading.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(
                error.to_string().contains("number 2 stands still"),
                "{error}"
            );
        });
    }

    /// One of them breaks: a thread that waits for another one learns of it too.
    #[test]
    fn a_strand_that_breaks_breaks_all() {
        for broken in [0, 1] {
            let (ours, theirs, raw) = pair(2);
            raw[broken][0].shutdown(Shutdown::Both).unwrap();
            assert!(theirs.peer_has_closed());
            let outcome = (&theirs).read(&mut [0; 8]);
            match broken {
                0 => assert_eq!(outcome.unwrap(), 0),
                _ => assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut),
            }
            let mut outcome = (&ours).write_all(&bytes(2 * PIECE_LEN as usize));
            assert!(outcome.is_err());
            outcome = (&ours).write_all(b"x");
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }

    #[test]
    fn all_are_closed_together() {
        let (ours, _theirs, raw) = pair(3);
        ours.shutdown(Shutdown::Both).unwrap();
        for [_, theirs] in &raw {
            assert_eq!((&*theirs).read(&mut [0; 4]).unwrap(), 0);
        }
    }
}
