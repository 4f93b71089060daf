//! QMP, QEMU's control protocol: one JSON object per line over a unix socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer. A destination that has been sent nonsense never answers again, so every call ends.
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
}

impl Qmp {
    /// Connects to a QEMU that listens at `path`, and gets ready for commands.
    pub fn connect(path: &Path) -> Result<Qmp, QmpError> {
        let stream = UnixStream::connect(path)?;
        let mut qmp = Qmp {
            stream,
            received: Vec::new(),
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
            let mut message = self.message(command, deadline)?;
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

    fn message(&mut self, command: &str, deadline: Instant) -> Result<Value, QmpError> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let hangs = || QmpError::Hangs {
                command: command.to_owned(),
                limit: ANSWER_LIMIT,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(hangs());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(len) => self.received.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(hangs()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
