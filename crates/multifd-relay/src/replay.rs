//! A recorded migration comes to life again.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{
    Address, Cancel, DIAL_TIMEOUT, Stream, Target, hung_up, printable_path, report_end,
};
use multifd_wire::Hello;
use multifd_wire::return_path::{Message, ReturnPathReceiver};

use crate::failure::{Cause, Channel, Failure, Leg};
use crate::inspect::{InspectError, Inspection, StreamFault, Summary};
use crate::recording::{RecordingError, StreamReader};
use crate::supervise::wait_for;

/// Channels that have said hello, or never will.
#[derive(Default)]
struct Hellos(Mutex<usize>, Condvar);

impl Hellos {
    /// This ends: every writer sends its hello or drops its `Told`.
    fn wait(&self, channels: usize) {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.1.wait_while(said, |said| *said < channels);
        drop(outcome.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Dropped, a channel has said hello.
struct Told<'a>(&'a Hellos);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let mut said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *said = said.saturating_add(1);
        self.0.1.notify_all();
    }
}

/// Time limit for a destination that neither takes nor says anything. Long, because a debugger may
/// hold the destination meanwhile; [`Cancel`] ends the replay sooner.
const STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Whether a replay still makes progress.
struct Progress {
    moved: u64,
    since: Instant,
    timeout: Duration,
}

impl Progress {
    fn new(timeout: Duration) -> Self {
        Self {
            moved: 0,
            since: Instant::now(),
            timeout,
        }
    }

    /// Fails if `moved`, the bytes written and read so far, has not changed within the limit.
    fn check(&mut self, moved: u64) -> Result<(), Cause> {
        if moved != self.moved {
            self.moved = moved;
            self.since = Instant::now();
        } else if self.since.elapsed() >= self.timeout {
            let within = self.timeout;
            return Err(Cause::Stalled { within });
        }
        Ok(())
    }
}

/// The messages of the return path have a few bytes each, and there are few.
const ANSWER_BYTES: usize = 512;

/// A recording that has been found whole.
#[derive(Debug)]
pub struct Replay {
    path: PathBuf,
    /// The main channel first.
    streams: Vec<Recorded>,
    return_path: bool,
}

#[derive(Debug)]
struct Recorded {
    number: u16,
    channel: Channel,
    /// A destination may close the connection once it has this many bytes.
    needed_bytes: u64,
}

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReplayError(#[from] Unfit);

#[derive(Debug, thiserror::Error)]
enum Unfit {
    /// It cannot be read at all.
    #[error("cannot replay {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: InspectError,
    },
    /// It is one channel and not a recording.
    #[error("{} is a captured channel; only a recording can be replayed", path.display())]
    NotARecording {
        /// The file.
        path: PathBuf,
    },
    /// It is a recording, and not whole.
    #[error("cannot replay {}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: InspectError,
    },
    /// The recorded source could have switched to postcopy, for which a destination waits.
    #[error(
        "cannot replay {}: its source had postcopy on, and the destination would wait for it; \
         record anew with migrate_set_capability postcopy-ram off",
        printable_path(path)
    )]
    Postcopy {
        /// The file.
        path: PathBuf,
    },
    /// The recorded migration is one that no destination could load.
    #[error("cannot replay {}", path.display())]
    Stream {
        /// The file.
        path: PathBuf,
        /// The channel, and its fault.
        source: StreamFault,
    },
}

/// A migration that was replayed whole.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReplayReport {
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// Bytes written to the destination.
    pub bytes_out: u64,
    /// Whether the destination has said that it has the guest. It cannot where the recording has no
    /// return path.
    pub confirmed: bool,
    /// From the first dial to the last close.
    pub duration: Duration,
}

impl Replay {
    /// Opens a recording and checks all of it: its checksums, its end, and that every channel is
    /// whole.
    ///
    /// # Errors
    ///
    /// When it is not whole. A destination would hang on a stream that breaks off.
    pub fn open(path: &Path) -> Result<Self, ReplayError> {
        let owned = || path.to_owned();
        let inspection = Inspection::open(path).map_err(|source| Unfit::Open {
            path: owned(),
            source,
        })?;
        let report = inspection.finish();
        if !report.recording {
            return Err(Unfit::NotARecording { path: owned() }.into());
        }
        if let Some(source) = report.damage {
            return Err(Unfit::Damaged {
                path: owned(),
                source,
            }
            .into());
        }
        let mut streams = Vec::new();
        for (number, stream) in (0..).zip(&report.streams) {
            if let Some(source) = stream.fault {
                return Err(Unfit::Stream {
                    path: owned(),
                    source,
                }
                .into());
            }
            streams.push(Recorded {
                number,
                channel: stream.summary.channel(),
                needed_bytes: match &stream.summary {
                    Summary::Main(_) => stream.bytes,
                    Summary::Channel(channel) => channel.needed_bytes,
                },
            });
        }
        // A destination before QEMU 8.0 takes the first connection for the main channel. The others
        // keep their order.
        streams.sort_by_key(|stream| stream.channel != Channel::Main);
        if report.main().is_some_and(|main| main.postcopy) {
            return Err(Unfit::Postcopy { path: owned() }.into());
        }
        let return_path = report.main().is_some_and(|main| main.return_path);
        Ok(Self {
            path: owned(),
            streams,
            return_path,
        })
    }

    /// The number of multifd channels: the destination's `multifd-channels` has to be the same.
    pub fn channels(&self) -> usize {
        self.streams.len().saturating_sub(1)
    }

    /// Dials `connect` and sends the migration. Calls `progress` with the bytes sent about twice a
    /// second meanwhile.
    ///
    /// # Errors
    ///
    /// The first failure of any connection. Also when the destination does not say that it has the
    /// guest although the recorded source asked for that; then a `Refused` comes before any other
    /// failure. Also after `cancel`, and when the destination neither takes nor says anything for
    /// ten minutes.
    pub fn send(
        &self,
        connect: &Address,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplayReport, Failure> {
        self.send_within(STALL_TIMEOUT, connect, cancel, progress)
    }

    fn send_within(
        &self,
        timeout: Duration,
        connect: &Address,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplayReport, Failure> {
        let started = Instant::now();
        // All are open, and have said hello, before the first byte of main: so it is with a source
        // too.
        let mut links = Vec::new();
        let cannot_dial = |source| {
            let address = connect.clone();
            Cause::from(TransportCause::Dial { address, source })
        };
        let target = Target::resolve(connect, &|| cancel.is_cancelled())
            .map_err(|error| cannot_dial(error.into()))
            .map_err(failed(Channel::Main))?;
        for recorded in &self.streams {
            let dialled = target.dial(DIAL_TIMEOUT, &|| cancel.is_cancelled());
            cancelled(cancel)?;
            let stream = dialled
                .map_err(|error| cannot_dial(error.into()))
                .map_err(failed(recorded.channel))?;
            links.push((recorded, stream));
        }
        let (sent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        let hellos = Hellos::default();
        let verdict = OnceLock::new();
        let close_all = || {
            for (_, stream) in &links {
                // A connection that cannot be shut down is closed already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        };
        let first = thread::scope(|scope| {
            let (ended, endings) = mpsc::channel();
            let (sent, answered) = (&sent, &answered);
            let (verdict, hellos, close_all) = (&verdict, &hellos, &close_all as &CloseAll);
            // If a thread is lacking, the rest of these is dropped, so that no hello is awaited.
            let told: Vec<_> = links
                .iter()
                .map(|(recorded, _)| (recorded.channel != Channel::Main).then(|| Told(hellos)))
                .collect();
            let mut threads = 0_usize;
            let start_all = || {
                for ((recorded, stream), told) in links.iter().zip(told) {
                    let channel = recorded.channel;
                    let write = move || {
                        if channel == Channel::Main {
                            hellos.wait(self.channels());
                        }
                        self.write(recorded, stream, sent, told)
                    };
                    start(scope, &ended, close_all, channel, write)?;
                    threads = threads.saturating_add(1);
                    if channel == Channel::Main {
                        let read = move || self.read_answers(stream, answered, verdict);
                        start(scope, &ended, close_all, channel, read)?;
                        threads = threads.saturating_add(1);
                    }
                }
                Ok(())
            };
            let lacking: Option<Failure> = start_all().err();
            if lacking.is_some() {
                close_all();
            }
            drop(ended);
            let mut stall = Progress::new(timeout);
            let watch = || {
                let sent = sent.load(Ordering::Relaxed);
                progress(sent);
                cancelled(cancel)?;
                let answered = answered.load(Ordering::Relaxed);
                let stalled = stall.check(sent.saturating_add(answered));
                stalled.map_err(failed(Channel::Main))
            };
            lacking.or(wait_for(threads, &endings, watch, close_all))
        });
        match (verdict.get(), first) {
            // A destination that fails closes everything, in any order; its word says more than a
            // broken connection.
            (Some(&status), _) if status != 0 => {
                Err(failed(Channel::Main)(Cause::Refused { status }))
            }
            (_, Some(failure)) => Err(failure),
            (verdict, None) => Ok(ReplayReport {
                channels: self.channels(),
                bytes_out: sent.into_inner(),
                confirmed: verdict.is_some(),
                duration: started.elapsed(),
            }),
        }
    }

    /// Writes one connection. Each writer goes through the file by itself: a destination stops
    /// reading a channel at a SYNC until the main channel has come there, so that none may wait for
    /// another here.
    fn write(
        &self,
        recorded: &Recorded,
        mut stream: &Stream,
        sent: &AtomicU64,
        mut hello: Option<Told<'_>>,
    ) -> Result<(), Cause> {
        let file = File::open(&self.path).map_err(RecordingError::unopened)?;
        let mut reader = StreamReader::new(BufReader::new(file), recorded.number)?;
        let mut written: u64 = 0;
        while let Some(mut bytes) = reader.next_data()? {
            while !bytes.is_empty() {
                let count = match stream.write(bytes) {
                    // It would be asked for ever.
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                    Err(error) if hung_up(&error) && written >= recorded.needed_bytes => {
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                };
                bytes = bytes.get(count..).unwrap_or_default();
                written = written.saturating_add(count as u64);
                sent.fetch_add(count as u64, Ordering::Relaxed);
                if written >= Hello::LEN as u64 {
                    hello = None;
                }
            }
        }
        drop(hello);
        // A source that waits for an answer closes its connections only when it has it.
        if !self.return_path {
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Reads the return path up to the destination's word, or where there is none to the end of the
    /// connection. Counts the bytes in `answered`.
    fn read_answers(
        &self,
        stream: &Stream,
        answered: &AtomicU64,
        verdict: &OnceLock<u32>,
    ) -> Result<(), Cause> {
        let mut receiver = ReturnPathReceiver::new();
        let mut buffer = [0; ANSWER_BYTES];
        loop {
            let count = match stream.read_some(&mut buffer) {
                Ok(count) => count,
                // A destination that closes with something unread resets.
                Err(error)
                    if self.return_path && error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    0
                }
                Err(error) => return Err(error.into()),
            };
            answered.fetch_add(count as u64, Ordering::Relaxed);
            let mut bytes = buffer.get(..count).unwrap_or_default();
            while let Some(message) = receiver.push(&mut bytes)? {
                if let Message::Shut(status) = message {
                    verdict.get_or_init(|| status);
                    return match status {
                        0 => Ok(()),
                        status => Err(Cause::Refused { status }),
                    };
                }
            }
            match count {
                0 if self.return_path => return Err(Cause::Unconfirmed),
                0 => return Ok(()),
                _ => {}
            }
        }
    }
}

/// Closes all connections, from any thread.
type CloseAll<'env> = dyn Fn() + Sync + 'env;

/// Starts the thread of one connection in one direction.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    ended: &Sender<Result<(), Failure>>,
    close_all: &'scope CloseAll<'scope>,
    channel: Channel,
    work: impl FnOnce() -> Result<(), Cause> + Send + 'scope,
) -> Result<(), Failure> {
    let tell = ended.clone();
    let thread = move || report_end(&tell, close_all, || work().map_err(failed(channel)));
    let started = thread::Builder::new().spawn_scoped(scope, thread);
    started.map(drop).map_err(|error| Failure {
        channel,
        ..Failure::here(TransportCause::thread(error).into())
    })
}

/// Places a failure at the destination's side of a channel.
fn failed(channel: Channel) -> impl Fn(Cause) -> Failure {
    move |cause| Failure {
        channel,
        leg: Leg::Destination,
        block: None,
        cause,
    }
}

/// Fails after a cancel.
fn cancelled(cancel: &Cancel) -> Result<(), Failure> {
    match cancel.is_cancelled() {
        true => Err(Failure::here(TransportCause::Cancelled.into())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    use crate::recording::{Role, Writer};

    /// More than a socket's buffers take.
    const LONG: usize = 64 << 20;

    /// A replay of one connection with `bytes` zero bytes, which is no migration.
    fn replay(folder: &Path, bytes: usize) -> Replay {
        let path = folder.join("recording");
        let mut writer = Writer::new(File::create(&path).unwrap()).unwrap();
        let stream = writer.open(Role::Main).unwrap();
        for part in vec![0; bytes].chunks(1 << 16) {
            writer.data(stream, part).unwrap();
        }
        writer.eof(stream).unwrap();
        writer.finish().unwrap();
        let main = Recorded {
            number: 0,
            channel: Channel::Main,
            needed_bytes: bytes as u64,
        };
        Replay {
            path,
            streams: vec![main],
            return_path: true,
        }
    }

    /// Sends to a destination which reads nothing and says nothing.
    fn send(bytes: usize, timeout: Duration, cancel: &Cancel) -> Failure {
        let folder = tempfile::tempdir().unwrap();
        let replay = replay(folder.path(), bytes);
        let path = folder.path().join("destination");
        let _listener = UnixListener::bind(&path).unwrap();
        let cancel_later = &mut |_| {
            if timeout == STALL_TIMEOUT {
                cancel.cancel();
            }
        };
        let connect = Address::Unix(path);
        let ended = replay.send_within(timeout, &connect, cancel, cancel_later);
        ended.expect_err("a silent destination")
    }

    #[test]
    fn a_stalled_destination_ends_a_replay() {
        // Waiting to write, and waiting for the answer.
        for bytes in [LONG, 10] {
            let failure = send(bytes, Duration::from_millis(600), &Cancel::new());
            assert!(
                matches!(failure.cause, Cause::Stalled { .. }),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_cancel_ends_a_replay() {
        for bytes in [LONG, 10] {
            let failure = send(bytes, STALL_TIMEOUT, &Cancel::new());
            assert_eq!(failure.explain(), "main channel, this host: cancelled");
        }
        let before = Cancel::new();
        before.cancel();
        let failure = send(10, STALL_TIMEOUT, &before);
        assert_eq!(failure.explain(), "main channel, this host: cancelled");
    }

    #[test]
    fn any_byte_is_progress() {
        let mut progress = Progress::new(Duration::ZERO);
        assert!(progress.check(1).is_ok());
        assert!(progress.check(2).is_ok());
        assert!(progress.check(2).is_err());
    }
}
