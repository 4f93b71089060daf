//! QMP, QEMU's control protocol: one JSON object per line over a unix socket.
//!
//! QEMU is a peer like any other: a line has a length limit, an answer has a time limit, and an
//! answer that comes after its limit is dropped.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use multifd_transport::{Address, Stream, printable, printable_path};
use rustix::net::sockopt::socket_peercred;
use serde_json::{Value, json};

/// The time limit for QEMU's answer. A destination that has received garbage never answers again,
/// so every call must end.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The time limit for the greeting. A monitor serves one client at a time, and lets others wait
/// without a word.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// The longest line that is read. QEMU's answers to the commands used here have a few KiB.
const LONGEST_LINE: usize = 1 << 20;

/// The most events that wait to be taken; the oldest ones go.
const MOST_EVENTS: usize = 256;

/// The longest text of QEMU's that goes into a message, in characters.
const LONGEST_QUOTE: usize = 1000;

/// Errors between a QEMU and its controller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// No process serves the socket.
    #[error(
        "no QEMU listens at {0}: start it with -qmp unix:{0},server=on,wait=off",
        printable_path(.path)
    )]
    Nobody {
        /// The socket's path.
        path: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot connect to the monitor {}", printable_path(.path))]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No greeting comes.
    #[error(
        "the monitor {} has not said a word for {limit:?}: another client may have it, as libvirt \
         does. Give QEMU a second -qmp socket",
        printable_path(.path)
    )]
    NoGreeting {
        /// The socket's path.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// Something else than a QMP monitor greets.
    #[error("{} is no QMP monitor (-qmp unix:PATH,server=on,wait=off)", printable_path(.path))]
    NoMonitor {
        /// The socket's path.
        path: PathBuf,
    },
    /// The socket failed, or QEMU closed it.
    #[error("the QMP connection broke")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("QEMU has not answered `{command}` for {limit:?}: it hangs")]
    Hangs {
        /// The command that has no answer.
        command: String,
        /// The limit.
        limit: Duration,
    },
    /// The answer is an error.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's message.
        reason: String,
    },
    /// A line is longer than any answer.
    #[error("QEMU's line has more than {most} bytes")]
    TooLong {
        /// The most bytes that are read.
        most: usize,
    },
    /// The answer violates the protocol.
    #[error("QEMU's answer is not QMP")]
    Malformed(#[from] serde_json::Error),
}

impl QmpError {
    /// Whether the connection is of no use any more. After a refusal, or an answer that did not
    /// come in time, the next command may succeed.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Hangs { .. })
    }
}

/// An event, as QEMU names it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Its name: `MIGRATION`, `STOP`, ...
    pub name: String,
    /// Its data, or `null`.
    pub data: Value,
}

/// A release of QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// The first number.
    pub(crate) major: u32,
    /// The second number.
    pub(crate) minor: u32,
    /// The third number.
    pub(crate) micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QMP connection.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    stream: Stream,
    lines: Lines,
    version: Version,
    /// The number of the next command. Answers repeat it.
    next: u64,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Connects to a QEMU that listens at `path`, and prepares it for commands.
    ///
    /// # Errors
    /// When no process serves the socket, or another client has the monitor.
    pub fn connect(path: &Path) -> Result<Qmp, QmpError> {
        let address = Address::Unix(path.to_owned());
        let stream = Stream::connect_within(&address, GREETING_LIMIT);
        let stream = stream.map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    QmpError::Nobody { path }
                }
                _ => QmpError::Connect { path, source },
            }
        })?;
        stream.set_timeouts(Some(ANSWER_LIMIT))?;
        let mut qmp = Qmp {
            path: path.to_owned(),
            stream,
            lines: Lines::default(),
            version: Version::default(),
            next: 0,
            events: VecDeque::new(),
        };
        let greeting = match qmp.message(Instant::now() + GREETING_LIMIT) {
            Ok(Some(message)) => message,
            Ok(None) => {
                return Err(QmpError::NoGreeting {
                    path: path.to_owned(),
                    limit: GREETING_LIMIT,
                });
            }
            Err(QmpError::Malformed(_)) => Value::Null,
            Err(error) => return Err(error),
        };
        let Some(told) = greeting.get("QMP") else {
            return Err(QmpError::NoMonitor {
                path: path.to_owned(),
            });
        };
        let number = |name: &str| {
            let number = field(field(field(told, "version"), "qemu"), name).as_u64();
            number.and_then(|number| u32::try_from(number).ok())
        };
        qmp.version = Version {
            major: number("major").unwrap_or_default(),
            minor: number("minor").unwrap_or_default(),
            micro: number("micro").unwrap_or_default(),
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Connects again to the same QEMU, after its connection has broken: its monitor serves the
    /// next client. Events of the meantime are lost.
    ///
    /// # Errors
    /// When no process serves the socket any more, or another process does.
    pub(crate) fn reconnect(&mut self) -> Result<(), QmpError> {
        let process = |qmp: &Qmp| socket_peercred(&qmp.stream).map(|peer| peer.pid).ok();
        let again = Qmp::connect(&self.path)?;
        if process(&again) != process(self) {
            let path = self.path.clone();
            return Err(QmpError::Nobody { path });
        }
        *self = again;
        Ok(())
    }

    /// QEMU's release, from its greeting.
    #[must_use]
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The user whose process made the socket, as the system says.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn user(&self) -> io::Result<u32> {
        Ok(socket_peercred(&self.stream)?.uid.as_raw())
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// When QEMU refuses, or does not answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, ANSWER_LIMIT)
    }

    /// Runs a command that must be answered within `limit`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub(crate) fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        let hangs = || QmpError::Hangs {
            command: command.to_owned(),
            limit,
        };
        match (&mut &self.stream).write_all(&line) {
            Ok(()) => {}
            // A part of the line may have gone, so the connection is of no use any more.
            Err(error) => return Err(error.into()),
        }
        let deadline = Instant::now() + limit;
        loop {
            let message = self.message(deadline)?.ok_or_else(hangs)?;
            // An error about a line that is no command has no number.
            let is_ours = message.get("id").is_none_or(|told| *told == json!(id));
            if let Some(event) = event_of(&message) {
                self.keep(event);
            } else if is_ours && let Some(returned) = message.get("return") {
                return Ok(returned.clone());
            } else if is_ours && let Some(error) = message.get("error") {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: quote(field(error, "desc").as_str().unwrap_or_default()),
                });
            }
        }
    }

    /// Waits for an event, at most for `limit`. Returns at once if one has come since the last
    /// call.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn wait_event(&mut self, limit: Duration) -> Result<Option<Event>, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.message(deadline)? {
                // All else is an answer that comes too late.
                Some(message) => self.events.extend(event_of(&message)),
                None => return Ok(None),
            }
        }
    }

    /// The events that were not taken so far.
    pub(crate) fn waiting_events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// Drops the events that were not taken so far.
    pub(crate) fn forget_events(&mut self) {
        self.events.clear();
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() >= MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next message, if it comes in time.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(line) = self.lines.next()? {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut piece = [0; 4096];
            match self.stream.read_some(&mut piece) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => self.lines.take(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A field of an object; `null` where there is none.
pub(crate) fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

/// A text of QEMU's for a message: printable, and of readable length.
#[must_use]
pub(crate) fn quote(text: &str) -> String {
    let text: String = text.trim().chars().take(LONGEST_QUOTE).collect();
    printable(text)
}

fn event_of(message: &Value) -> Option<Event> {
    Some(Event {
        name: message.get("event")?.as_str()?.to_owned(),
        data: message.get("data").cloned().unwrap_or_default(),
    })
}

/// Bytes as they come, cut into lines.
#[derive(Debug, Default)]
struct Lines {
    received: Vec<u8>,
    /// The number of leading bytes that are known to hold no end of a line.
    searched: usize,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) {
        self.received.extend_from_slice(piece);
    }

    /// The next line that is whole. Empty ones are skipped.
    fn next(&mut self) -> Result<Option<Vec<u8>>, QmpError> {
        loop {
            let fresh = self.received.get(self.searched..).unwrap_or_default();
            let Some(end) = fresh.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.received.len();
                let is_long = self.searched > LONGEST_LINE;
                return match is_long {
                    true => Err(QmpError::TooLong { most: LONGEST_LINE }),
                    false => Ok(None),
                };
            };
            let end = self.searched.saturating_add(end);
            let line: Vec<u8> = self.received.drain(..=end).collect();
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread::{self, JoinHandle};

    use super::*;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"major": 12, "minor": 3, "micro": 4}}}}"#;

    /// A QEMU that answers each line by what `answers` makes of its number.
    fn made(answers: fn(usize) -> String) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let served = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let say = |mut stream: &UnixStream, text: &str| {
                // The client may have seen enough.
                let _ = stream.write_all(text.as_bytes());
            };
            say(&stream, &format!("{GREETING}\r\n"));
            for number in 0.. {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                say(&stream, &answers(number));
            }
        });
        (folder, path, served)
    }

    #[test]
    fn answers_events_and_late_answers_are_told_apart() {
        let (_folder, path, served) = made(|number| match number {
            0 => "{\"return\": {}, \"id\": 0}\r\n".to_owned(),
            1 => {
                "{\"return\": 9, \"id\": 77}\r\n{\"event\": \"NEW\", \"data\": {\"a\": 1}}\r\n\r\n\
                  {\"return\": 1, \"id\": 1}\r\n"
                    .to_owned()
            }
            2 => "{\"error\": {\"desc\": \"no \\u001b[1m\"}, \"id\": 2}\r\n".to_owned(),
            _ => "{\"event\": \"LATER\"}\r\n".to_owned(),
        });
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.version().to_string(), "12.3.4");
        assert_eq!(qmp.user().unwrap(), rustix::process::getuid().as_raw());
        assert_eq!(qmp.execute("one", json!({})).unwrap(), 1);
        let event = qmp.wait_event(Duration::ZERO).unwrap().unwrap();
        assert_eq!((event.name.as_str(), &event.data["a"]), ("NEW", &json!(1)));
        let refused = qmp.execute("two", json!({})).unwrap_err();
        assert!(!refused.is_final());
        let words = refused.to_string();
        assert!(words.starts_with("QEMU refuses `two`: no "), "{words}");
        assert!(!words.contains('\u{1b}'), "{words}");
        let hangs = qmp.execute_within("three", json!({}), Duration::from_millis(50));
        assert!(matches!(hangs, Err(QmpError::Hangs { .. })), "{hangs:?}");
        let event = qmp.wait_event(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(event.name, "LATER");
        drop(qmp);
        served.join().unwrap();
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let (_folder, path, served) = made(|number| match number {
            0 => "{\"return\": {}}\n".to_owned(),
            _ => "x".repeat(LONGEST_LINE + 1),
        });
        let mut qmp = Qmp::connect(&path).unwrap();
        let error = qmp.execute("one", json!({})).unwrap_err();
        assert!(matches!(error, QmpError::TooLong { .. }), "{error}");
        drop(qmp);
        served.join().unwrap();
    }

    #[test]
    fn what_is_no_monitor_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let nobody = Qmp::connect(&path).unwrap_err();
        assert!(matches!(nobody, QmpError::Nobody { .. }), "{nobody}");
        let listener = UnixListener::bind(&path).unwrap();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"SSH-2.0-x\r\n").unwrap();
        });
        let other = Qmp::connect(&path).unwrap_err();
        assert!(matches!(other, QmpError::NoMonitor { .. }), "{other}");
        served.join().unwrap();
    }
}
