//! Moving bytes from one socket to another without looking at them.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::Stream;
use crate::clock::{self, Clock, Doing};
use crate::failure::Leg;
use crate::inlet::space;

/// Bytes that one step moves: a packet of raw pages, and as much as an unprivileged process may
/// give a pipe (fs.pipe-max-size).
const STEP: usize = 1 << 20;

/// Bytes to copy at once if the kernel cannot splice.
const COPY_STEP: usize = 256 << 10;

/// Moves bytes between sockets, inside the kernel where it can: `splice` hands on the pages that
/// hold them.
pub(crate) struct Conduit {
    pipe: Option<Pipe>,
    make_pipe: fn() -> io::Result<Pipe>,
    /// Set when the kernel has refused to splice these sockets, or has no descriptors for a pipe:
    /// bytes are then copied through `buffer`.
    copies: bool,
    buffer: Vec<u8>,
}

impl Default for Conduit {
    fn default() -> Self {
        Self {
            pipe: None,
            make_pipe: Pipe::new,
            copies: false,
            buffer: Vec::new(),
        }
    }
}

/// The socket that failed, and its error.
pub(crate) type TransferError = (Leg, io::Error);

struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Conduit {
    /// Moves `len` bytes, or fewer when `from` ends before. Returns how many.
    pub(crate) fn transfer(
        &mut self,
        from: &Stream,
        to: &Stream,
        len: usize,
        clock: Option<&Clock>,
    ) -> Result<usize, TransferError> {
        let mut moved = 0;
        while moved < len {
            let step = self.step(from, to, len - moved, clock)?;
            if step == 0 {
                break;
            }
            moved += step;
        }
        Ok(moved)
    }

    /// Moves at least one byte and at most `most`; 0 is the end of `from`.
    fn step(
        &mut self,
        from: &Stream,
        to: &Stream,
        most: usize,
        clock: Option<&Clock>,
    ) -> Result<usize, TransferError> {
        if self.copies || !from.is_bare() || !to.is_bare() {
            return copy(
                from,
                to,
                space(&mut self.buffer, most.min(COPY_STEP)),
                clock,
            );
        }
        let pipe = match self.pipe.take().map_or_else(self.make_pipe, Ok) {
            Ok(pipe) => self.pipe.insert(pipe),
            // Neither peer has to do with it, and copying needs no descriptor.
            Err(_) => {
                self.copies = true;
                return self.step(from, to, most, clock);
            }
        };
        let step = most.min(STEP);
        let fill = || retrying(|| splice(from, None, &pipe.writer, None, step, SpliceFlags::MOVE));
        match clock::on(clock, Doing::Reads, fill) {
            Ok(count) => {
                clock::on(clock, Doing::Writes, || pipe.drain(to, count))
                    .map_err(|error| (Leg::Destination, error))?;
                Ok(count)
            }
            // The only error that is about the kind of socket and not about this one; nothing has
            // been moved.
            Err(Errno::INVAL) => {
                self.copies = true;
                self.step(from, to, most, clock)
            }
            Err(error) => Err((Leg::Source, error.into())),
        }
    }
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // A smaller pipe only takes more steps.
        let _ = fcntl_setpipe_size(&writer, STEP);
        Ok(Pipe { reader, writer })
    }

    /// Empties the pipe, which holds `count` bytes, into `to`.
    fn drain(&self, to: &Stream, mut count: usize) -> io::Result<()> {
        while count > 0 {
            let drained = to.write_allowed(count, |allowed| {
                retrying(|| splice(&self.reader, None, to, None, allowed, SpliceFlags::MOVE))
            });
            count -= match drained? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                moved => moved,
            };
        }
        Ok(())
    }
}

fn copy(
    from: &Stream,
    mut to: &Stream,
    buffer: &mut [u8],
    clock: Option<&Clock>,
) -> Result<usize, TransferError> {
    let count = clock::on(clock, Doing::Reads, || from.read_some(buffer))
        .map_err(|error| (Leg::Source, error))?;
    let bytes = buffer.get(..count).unwrap_or_default();
    clock::on(clock, Doing::Writes, || to.write_all(bytes))
        .map_err(|error| (Leg::Destination, error))?;
    Ok(count)
}

fn retrying(mut call: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Stream, Stream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Stream::from(a), Stream::from(b))
    }

    #[test]
    fn all_of_it_arrives_and_no_more_is_taken() {
        for copies in [false, true] {
            let (source, from) = pair();
            let (to, destination) = pair();
            let bytes: Vec<u8> = (0..3_000_000_u32)
                .map(|i| (i.wrapping_mul(i) >> 7) as u8)
                .collect();
            let mut received = vec![0; bytes.len()];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    (&source).write_all(&bytes).unwrap();
                    (&source).write_all(b"rest").unwrap();
                });
                scope.spawn(|| (&destination).read_exact(&mut received).unwrap());
                let mut conduit = Conduit {
                    copies,
                    ..Conduit::default()
                };
                assert_eq!(
                    conduit.transfer(&from, &to, bytes.len(), None).unwrap(),
                    bytes.len()
                );
            });
            assert!(received == bytes, "copies: {copies}");
            let mut rest = [0; 4];
            (&from).read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"rest");
        }
    }

    #[test]
    fn without_descriptors_for_a_pipe_bytes_are_copied() {
        let (source, from) = pair();
        let (to, destination) = pair();
        (&source).write_all(b"some").unwrap();
        let mut conduit = Conduit {
            make_pipe: || Err(Errno::MFILE.into()),
            ..Conduit::default()
        };
        assert_eq!(conduit.transfer(&from, &to, 4, None).unwrap(), 4);
        let mut arrived = [0; 4];
        (&destination).read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"some");
    }

    #[test]
    fn an_early_end_gives_what_there_was() {
        for copies in [false, true] {
            let (source, from) = pair();
            let (to, _destination) = pair();
            (&source).write_all(b"some").unwrap();
            drop(source);
            let mut conduit = Conduit {
                copies,
                ..Conduit::default()
            };
            assert_eq!(conduit.transfer(&from, &to, 10, None).unwrap(), 4);
        }
    }
}
