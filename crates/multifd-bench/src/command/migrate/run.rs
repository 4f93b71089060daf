//! One migration; source and destination are separate processes.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::num::NonZeroU8;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};

use crate::guests::Kind;
use multifd_cli::receive;
use serde::de::DeserializeOwned;

use super::link::Path;
use super::mode::Mode;
use crate::command::args::MigrateArgs;
use crate::command::{send, this_program};

/// The guest to move, and the mode.
pub(super) struct Run {
    pub guest: Kind,
    pub channels: NonZeroU8,
    pub mode: Mode,
    pub memory_bytes: u64,
    pub guest_rate: Option<u64>,
    /// The memory for differences, in modes with them.
    pub delta_memory_bytes: u64,
    pub downtime_limit_ms: u64,
    pub timeout_s: u64,
}

/// The result of an attempt.
pub(super) enum Attempt {
    /// The guest was moved.
    Moved {
        sent: Box<send::Summary>,
        /// CPU time of source and destination.
        cpu_seconds: f64,
    },
    /// It took too long.
    TimedOut,
    /// It failed for another reason.
    Failed(String),
}

impl Run {
    pub(super) fn new(args: &MigrateArgs, guest: &Kind, channels: NonZeroU8, mode: &Mode) -> Self {
        Self {
            guest: guest.clone(),
            channels,
            mode: mode.clone(),
            memory_bytes: args.memory,
            guest_rate: args.guest_rate,
            delta_memory_bytes: args.delta_memory.unwrap_or(args.memory),
            downtime_limit_ms: args.downtime_limit,
            timeout_s: args.timeout,
        }
    }

    /// Moves a guest that is made for this run.
    ///
    /// # Errors
    ///
    /// If the attempt cannot even start.
    pub(super) fn migrate(&self, path: &Path) -> Result<Attempt, Box<dyn std::error::Error>> {
        let destination = Destination::start(self, path)?;
        let mut source = this_program::command()?;
        source
            .args(["send", "--json", "--connect", &destination.address])
            .args(["--guest", &self.guest.to_string()])
            .args(["--memory", &self.memory_bytes.to_string()])
            .args(["--multifd-channels", &self.channels.to_string()])
            .args(["--compression", self.mode.method().as_str()])
            .args(["--accel", self.mode.accel().as_str()])
            .args(["--downtime-limit", &self.downtime_limit_ms.to_string()])
            .args(["--timeout", &self.timeout_s.to_string()]);
        if let Some(rate) = self.guest_rate {
            source.args(["--guest-rate", &rate.to_string()]);
        }
        if self.mode.delta() {
            source.args(["--delta-memory", &self.delta_memory_bytes.to_string()]);
        }
        if let Some(bandwidth) = path.max_bandwidth() {
            source.args(["--max-bandwidth", &bandwidth.to_string()]);
        }
        let ended = path.at_source(source).stdin(Stdio::null()).output()?;
        if !ended.status.success() {
            return Ok(match serde_json::from_slice(&ended.stdout) {
                Ok(send::Failed {
                    timed_out: true, ..
                }) => Attempt::TimedOut,
                Ok(failed) => Attempt::Failed(failed.error),
                Err(_) => {
                    let said = String::from_utf8_lossy(&ended.stderr);
                    let is_reason = |line: &&str| {
                        line.starts_with("multifd-bench: ") || line.starts_with("error: ")
                    };
                    let why = said.lines().rfind(is_reason);
                    Attempt::Failed(why.unwrap_or("the source printed no reason").to_owned())
                }
            });
        }
        let sent: Box<send::Summary> = serde_json::from_slice(&ended.stdout)?;
        Ok(match destination.end::<receive::Summary>()? {
            Ok(received) => Attempt::Moved {
                cpu_seconds: sent.cpu_seconds + received.cpu_seconds,
                sent,
            },
            Err(said) => Attempt::Failed(said),
        })
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { sent, .. } => write!(
                f,
                "{:.0} ms, downtime {:.0} ms, {:.0} mbps",
                sent.total_time_ms, sent.downtime_ms, sent.mbps
            ),
            Self::TimedOut => f.write_str("exceeded the time limit"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// A `multifd-bench receive`. Dropping it kills the process.
struct Destination {
    child: Child,
    address: String,
    /// Collects the messages that the process prints after it has begun to listen.
    complaints: Option<JoinHandle<String>>,
}

impl Destination {
    fn start(run: &Run, path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let listen = format!("tcp:{}:0", path.host());
        let mut command = this_program::command()?;
        command
            .args(["receive", "--json", "--listen", &listen])
            .args(["--accel", run.mode.accel().as_str()]);
        let child = path
            .at_destination(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut destination = Self {
            child,
            address: String::new(),
            complaints: None,
        };
        let stderr = destination.child.stderr.take().ok_or("a pipe is missing")?;
        let mut stderr = BufReader::new(stderr);
        let mut said = String::new();
        while stderr.read_line(&mut said)? > 0 {
            if let Some((_, address)) = said.trim_end().rsplit_once("listening on ") {
                destination.address = address.to_owned();
                // Read to the end, so that the process never blocks on a full pipe.
                destination.complaints = Some(thread::spawn(move || {
                    let mut said = String::new();
                    let _ = stderr.read_to_string(&mut said);
                    said
                }));
                return Ok(destination);
            }
        }
        Err(format!("the destination does not listen: {}", said.trim_end()).into())
    }

    /// Waits until the process ends. Returns its output, or its messages if it failed.
    fn end<T: DeserializeOwned>(mut self) -> Result<Result<T, String>, Box<dyn std::error::Error>> {
        let mut stdout = self.child.stdout.take().ok_or("a pipe is missing")?;
        let mut printed = String::new();
        stdout.read_to_string(&mut printed)?;
        let complaints = self.complaints.take().and_then(|reader| reader.join().ok());
        Ok(match self.child.wait()?.success() {
            true => Ok(serde_json::from_str(&printed)?),
            false => Err(complaints.unwrap_or_default().trim_end().to_owned()),
        })
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
