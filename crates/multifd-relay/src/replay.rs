//! A recorded migration comes to life again.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{
    Address, DIAL_TIMEOUT, Stream, Target, hung_up, printable_path, report_end,
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
    /// Every channel's writer comes to it, or ends.
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
    /// A destination may close the connection once it has so many bytes.
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
        /// What is wrong with it.
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
        /// What is wrong with it.
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
        /// What is wrong with which channel.
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

    /// How many multifd channels there are: the destination's `multifd-channels` has to be the
    /// same.
    pub fn channels(&self) -> usize {
        self.streams.len().saturating_sub(1)
    }

    /// Dials `connect` and sends the migration. `progress` is told the bytes sent about twice a
    /// second meanwhile.
    ///
    /// # Errors
    ///
    /// The first failure of any connection. Also when the destination does not say that it has the
    /// guest although the recorded source asked for that; then a `Refused` comes before whatever
    /// else broke.
    pub fn send(
        &self,
        connect: &Address,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplayReport, Failure> {
        let started = Instant::now();
        let failed = |channel| {
            move |cause| Failure {
                channel,
                leg: Leg::Destination,
                block: None,
                cause,
            }
        };
        // All are open, and have said hello, before the first byte of main: so it is with a source
        // too.
        let mut links = Vec::new();
        let cannot_dial = |source| {
            let address = connect.clone();
            Cause::from(TransportCause::Dial { address, source })
        };
        let target = Target::resolve(connect, &|| false)
            .map_err(|error| cannot_dial(error.into()))
            .map_err(failed(Channel::Main))?;
        for recorded in &self.streams {
            let stream = target
                .dial(DIAL_TIMEOUT, &|| false)
                .map_err(|error| cannot_dial(error.into()))
                .map_err(failed(recorded.channel))?;
            links.push((recorded, stream));
        }
        let sent = AtomicU64::new(0);
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
            let (sent, verdict, close_all) = (&sent, &verdict, &close_all);
            let hellos = &hellos;
            for (recorded, stream) in &links {
                let channel = recorded.channel;
                let tell = ended.clone();
                scope.spawn(move || {
                    report_end(&tell, close_all, || {
                        let told = match channel {
                            Channel::Main => {
                                hellos.wait(self.channels());
                                None
                            }
                            _ => Some(Told(hellos)),
                        };
                        self.write(recorded, stream, sent, told)
                            .map_err(failed(channel))
                    })
                });
                if channel == Channel::Main {
                    let tell = ended.clone();
                    scope.spawn(move || {
                        report_end(&tell, close_all, || {
                            self.read_answers(stream, verdict).map_err(failed(channel))
                        })
                    });
                }
            }
            drop(ended);
            // Every connection's writer, and the reader of main.
            let threads = links.len().saturating_add(1);
            wait_for(
                threads,
                &endings,
                || progress(sent.load(Ordering::Relaxed)),
                close_all,
            )
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
    /// connection.
    fn read_answers(&self, stream: &Stream, verdict: &OnceLock<u32>) -> Result<(), Cause> {
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
