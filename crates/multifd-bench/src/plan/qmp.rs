//! Asks a QEMU's monitor for the figures of its guest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use multifd_wire::PageSize;
use serde_json::{Value, json};

/// The figures of a guest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Bytes of the guest's memory.
    pub memory_bytes: u64,
    /// Pages that change in a second.
    pub dirty_rate: f64,
    /// `multifd-channels`.
    pub channels: Option<u64>,
    /// `downtime-limit` in milliseconds.
    pub downtime_limit_ms: Option<u64>,
    /// `max-bandwidth` in bytes a second.
    pub max_bandwidth: Option<u64>,
}

/// Why a monitor could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum QmpError {
    /// The connection failed.
    #[error(
        "cannot talk to the monitor at {path}; if another program is connected to it, give the QEMU \
         a second -qmp socket"
    )]
    Socket {
        /// The socket.
        path: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The answer is not a monitor's.
    #[error("the answer to {command} is not one of a QEMU's monitor")]
    Answer {
        /// The command.
        command: &'static str,
    },
    /// QEMU refused a command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// The measurement did not end.
    #[error("QEMU did not end its measurement of the dirty rate within {seconds} s")]
    Slow {
        /// The time limit.
        seconds: u64,
    },
}

/// Asks the monitor at `path`. QEMU measures the dirty rate for `seconds`.
///
/// # Errors
///
/// See [`QmpError`].
pub(crate) fn ask(path: &Path, seconds: u64) -> Result<Figures, QmpError> {
    let mut monitor = Monitor::connect(path)?;
    let memory = monitor.run("query-memory-size-summary", json!({}))?;
    let parameters = monitor.run("query-migrate-parameters", json!({}))?;
    let parameter = |name: &str| parameters.get(name).and_then(Value::as_u64);
    let seconds = seconds.clamp(1, MOST_SECONDS);
    let mode = json!({"calc-time": seconds, "mode": "page-sampling", "sample-pages": SAMPLES});
    monitor.run("calc-dirty-rate", mode)?;
    let mebibytes = monitor.measured(seconds)?;
    let base = memory.get("base-memory").and_then(Value::as_u64);
    let plugged = memory.get("plugged-memory").and_then(Value::as_u64);
    Ok(Figures {
        memory_bytes: base
            .ok_or(QmpError::Answer {
                command: "query-memory-size-summary",
            })?
            .saturating_add(plugged.unwrap_or(0)),
        dirty_rate: mebibytes * f64::from(1 << 20) / PageSize::K4.bytes() as f64,
        channels: parameter("multifd-channels"),
        downtime_limit_ms: parameter("downtime-limit"),
        max_bandwidth: parameter("max-bandwidth").filter(|limit| *limit > 0),
    })
}

/// A connection to a monitor.
struct Monitor {
    path: String,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self, QmpError> {
        let name = path.display().to_string();
        let socket = |source| QmpError::Socket {
            path: name.clone(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(socket)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(socket)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(socket)?;
        let mut monitor = Self {
            path: name,
            lines: BufReader::new(stream),
        };
        let greeting = monitor.line("the connection")?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Answer {
                command: "the connection",
            });
        }
        monitor.run("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs a command and returns its answer. It ignores events.
    fn run(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let written = self.lines.get_mut().write_all(line.as_bytes());
        written.map_err(|source| self.failed(source))?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let mut answer = self.line(command)?;
            if let Some(answer) = answer.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str);
                let reason = reason.unwrap_or("without a reason").to_owned();
                return Err(QmpError::Refused { command, reason });
            }
        }
        Err(self.failed(io::ErrorKind::TimedOut.into()))
    }

    /// Waits for the dirty rate, in MiB a second.
    fn measured(&mut self, seconds: u64) -> Result<f64, QmpError> {
        let end = Instant::now() + Duration::from_secs(seconds) + PATIENCE;
        while Instant::now() < end {
            let answer = self.run("query-dirty-rate", json!({}))?;
            let rate = answer.get("dirty-rate").and_then(Value::as_f64);
            match (answer.get("status").and_then(Value::as_str), rate) {
                (Some("measured"), Some(rate)) => return Ok(rate.max(0.0)),
                (Some(_), _) => thread::sleep(POLL),
                (None, _) => {
                    return Err(QmpError::Answer {
                        command: "query-dirty-rate",
                    });
                }
            }
        }
        let seconds = seconds + PATIENCE.as_secs();
        Err(QmpError::Slow { seconds })
    }

    fn line(&mut self, command: &'static str) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.lines).take(MOST_LINE_BYTES);
        let read = bounded.read_until(b'\n', &mut line);
        match read {
            Err(source) => Err(self.failed(source)),
            Ok(0) => Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => serde_json::from_slice(&line).map_err(|_| QmpError::Answer { command }),
        }
    }

    fn failed(&self, source: io::Error) -> QmpError {
        QmpError::Socket {
            path: self.path.clone(),
            source,
        }
    }
}

/// The time limit of an answer: a monitor may be busy with another command.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// The longest line: answers to these commands are far shorter.
const MOST_LINE_BYTES: u64 = 1 << 20;
/// The longest measurement that QEMU accepts.
const MOST_SECONDS: u64 = 60;
/// Pages that QEMU samples in each GiB: its default.
const SAMPLES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Asks a monitor that writes the first line at once, and then one line for each line it reads.
    fn ask_monitor_with(lines: &[&str]) -> Result<Figures, QmpError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut heard = BufReader::new(stream.try_clone().unwrap()).lines();
                for line in lines {
                    let told = (&stream).write_all(format!("{line}\n").as_bytes());
                    if told.is_err() || heard.next().is_none() {
                        break;
                    }
                }
            });
            ask(&path, 1)
        })
    }

    const HELLO: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    const NOTHING: &str = r#"{"return": {}}"#;

    #[test]
    fn all_figures_are_read() {
        let told = ask_monitor_with(&[
            HELLO,
            NOTHING,
            r#"{"return": {"base-memory": 1073741824, "plugged-memory": 0}}"#,
            r#"{"return": {"multifd-channels": 4, "downtime-limit": 300, "max-bandwidth": 0}}"#,
            NOTHING,
            r#"{"return": {"status": "measuring", "dirty-rate": -1}}"#,
            "{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"measured\", \"dirty-rate\": 2}}",
        ])
        .unwrap();
        let expected = Figures {
            memory_bytes: 1 << 30,
            dirty_rate: 512.0,
            channels: Some(4),
            downtime_limit_ms: Some(300),
            max_bandwidth: None,
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn wrong_answers_are_errors() {
        let refusal = r#"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#;
        for (lines, says) in [
            (&["SSH-2.0"][..], "not one of a QEMU's monitor"),
            (&["{}"], "not one of a QEMU's monitor"),
            (&[HELLO, refusal], "no such command"),
            (&[HELLO, NOTHING, "7"], "cannot talk to the monitor"),
            (
                &[HELLO, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING],
                "query-dirty-rate",
            ),
        ] {
            let error = ask_monitor_with(lines).unwrap_err().to_string();
            assert!(error.contains(says), "{lines:?}: {error}");
        }
    }
}
