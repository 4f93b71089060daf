//! QMP, QEMU's control protocol: one JSON object per line over a unix socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer. A destination that has been sent nonsense never answers again,
/// so every call ends.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What can go wrong between a QEMU and its controller.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed, or QEMU closed it.
    #[error("the QMP connection broke")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("QEMU has not answered `{command}` for {limit:?}: it hangs")]
    Hangs {
        /// The command that waits for its answer.
        command: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The answer is an error.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// The answer is not what the protocol says.
    #[error("QEMU's answer is not QMP")]
    Malformed(#[from] serde_json::Error),
}

/// A QMP connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    /// Whether an event has come that [`Qmp::wait_event`] has not told of.
    has_event: bool,
}

impl Qmp {
    /// Connects to a QEMU that listens at `path`, and gets ready for commands.
    pub fn connect(path: &Path) -> Result<Qmp, QmpError> {
        let stream = UnixStream::connect(path)?;
        let mut qmp = Qmp {
            stream,
            received: Vec::new(),
            has_event: false,
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut line = serde_json::to_vec(&json!({"execute": command, "arguments": arguments}))?;
        line.push(b'\n');
        self.stream.write_all(&line)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            // The greeting and events come between a command and its answer.
            let Some(mut message) = self.message(deadline)? else {
                return Err(QmpError::Hangs {
                    command: command.to_owned(),
                    limit: ANSWER_LIMIT,
                });
            };
            self.has_event |= message.get("event").is_some();
            if let Some(returned) = message.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or_default().to_owned();
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason,
                });
            }
        }
    }

    /// Waits until QEMU tells of an event, or has told of one since the last time, but not longer
    /// than `limit`.
    pub fn wait_event(&mut self, limit: Duration) -> Result<(), QmpError> {
        let deadline = Instant::now() + limit;
        while !self.has_event {
            match self.message(deadline)? {
                Some(message) => self.has_event = message.get("event").is_some(),
                None => return Ok(()),
            }
        }
        self.has_event = false;
        Ok(())
    }

    /// The next message, if it comes in time.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(len) => self.received.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
