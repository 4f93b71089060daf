//! Processes of a command: their output, line by line, and their end.
//!
//! Every wait has a limit. [`Process`] returns the events, for measurements and for the campaign;
//! [`Tested`] panics, for tests.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Far above the duration of any step of a test; a step that exceeds it hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One of a process's output pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    /// Results.
    Stdout,
    /// Messages for people.
    Stderr,
}

/// A running process without standard input. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    pid: u32,
    printed: Arc<Printed>,
}

/// The expected line did not come.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The time limit expired.
    #[error("it hangs, having said: {0}")]
    Hangs(String),
    /// The process has closed its pipe.
    #[error("it has ended, having said: {0}")]
    Ended(String),
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let pipes = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.stdin(Stdio::null()).spawn()?;
        let printed = Arc::new(Printed::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Printed::read(&printed, Pipe::Stdout, stdout);
        Printed::read(&printed, Pipe::Stderr, stderr);
        Ok(Self {
            pid: child.id(),
            child: Mutex::new(child),
            printed,
        })
    }

    /// The process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// All lines printed so far.
    #[must_use]
    pub fn lines(&self, pipe: Pipe) -> Vec<String> {
        locked(&self.printed.lines).of(pipe).clone()
    }

    /// Waits for line `number` of a pipe, counted from 0.
    ///
    /// # Errors
    /// If the pipe ends before, or the limit expires.
    pub fn line(&self, pipe: Pipe, number: usize, limit: Duration) -> Result<String, Fault> {
        self.find(pipe, limit, |lines| lines.get(number).cloned())
    }

    /// Waits until the command reports for the first time that it listens. Returns the address.
    ///
    /// # Errors
    /// If it ends before, or the limit expires.
    pub fn address(&self, limit: Duration) -> Result<String, Fault> {
        self.find(Pipe::Stderr, limit, |lines| {
            let mut lines = lines.iter();
            lines.find_map(|line| listening(line).map(str::to_owned))
        })
    }

    fn find(
        &self,
        pipe: Pipe,
        limit: Duration,
        wanted: impl Fn(&[String]) -> Option<String>,
    ) -> Result<String, Fault> {
        let found = self.printed.wait(limit, |lines| {
            wanted(lines.of(pipe)).is_some() || lines.is_closed(pipe)
        });
        match wanted(found.of(pipe)) {
            Some(line) => Ok(line),
            None if found.is_closed(pipe) => Err(Fault::Ended(found.stderr.join("\n"))),
            None => Err(Fault::Hangs(found.stderr.join("\n"))),
        }
    }

    /// Waits until both pipes are closed. Returns whether they are.
    pub fn wait_for_output(&self, limit: Duration) -> bool {
        self.printed.wait(limit, Lines::is_complete).is_complete()
    }

    /// Returns the exit status if the process has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        locked(&self.child).try_wait().ok().flatten()
    }

    /// Waits for the end of the process and of its output. Returns `None` if the limit expires.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            if let Some(status) = self.ended() {
                // A child of the process may hold the pipes slightly longer.
                self.wait_for_output(LINGERING);
                return Some(status);
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the process.
    pub fn kill(&self) {
        let mut child = locked(&self.child);
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process under test: a step that takes longer than [`DEADLINE`] fails the test. Dropping it
/// kills the process.
#[derive(Debug)]
pub struct Tested {
    process: Process,
    results: usize,
    complaints: usize,
}

/// The end of a process, and all its output.
#[derive(Debug)]
pub struct Ended {
    /// The exit status.
    pub status: ExitStatus,
    /// Results.
    pub stdout: String,
    /// Messages for people.
    pub stderr: String,
}

impl Tested {
    /// Starts a command.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        Self {
            process: Process::start(command).expect("a built command"),
            results: 0,
            complaints: 0,
        }
    }

    /// Skips its messages until the next report that it listens. Returns the address.
    ///
    /// # Panics
    /// If it does not listen.
    pub fn address<A: FromStr>(&mut self) -> A {
        loop {
            if let Some(address) = listening(&self.complaint()) {
                return address.parse().ok().expect("an address");
            }
        }
    }

    /// Waits for the next line of its results.
    ///
    /// # Panics
    /// If there is none.
    pub fn result(&mut self) -> String {
        self.results += 1;
        self.line(Pipe::Stdout, self.results - 1)
    }

    /// Waits for the next line of its messages.
    ///
    /// # Panics
    /// If there is none.
    pub fn complaint(&mut self) -> String {
        loop {
            self.complaints += 1;
            let line = self.line(Pipe::Stderr, self.complaints - 1);
            // It depends on the kernel, and stands before all else.
            if !line.contains(": sandbox: ") {
                return line;
            }
        }
    }

    fn line(&self, pipe: Pipe, number: usize) -> String {
        let line = self.process.line(pipe, number, DEADLINE);
        line.unwrap_or_else(|fault| panic!("no such line: {fault}"))
    }

    /// The process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.pid()
    }

    /// Kills the process.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(self) -> Ended {
        let status = self.process.wait(DEADLINE);
        let text = |pipe| {
            let lines = self.process.lines(pipe);
            lines.iter().map(|line| format!("{line}\n")).collect()
        };
        let stderr: String = text(Pipe::Stderr);
        Ended {
            status: status.unwrap_or_else(|| panic!("it hangs, having said: {stderr}")),
            stdout: text(Pipe::Stdout),
            stderr,
        }
    }
}

impl Ended {
    /// The results, if the process succeeded.
    ///
    /// # Panics
    /// If it failed.
    pub fn well(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }
}

/// The address in the line that reports it.
fn listening(line: &str) -> Option<&str> {
    let (program, address) = line.split_once("listening on ")?;
    (program.is_empty() || program.ends_with(": ")).then_some(address)
}

/// The time for which the pipes of an ended process may stay open.
const LINGERING: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Printed {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    stdout: Vec<String>,
    stderr: Vec<String>,
    closed: Vec<Pipe>,
}

impl Printed {
    /// Reads a pipe to its end, in a thread of its own.
    fn read(self: &Arc<Self>, pipe: Pipe, stream: Option<impl Read + Send + 'static>) {
        let printed = Arc::clone(self);
        thread::spawn(move || {
            let streams = stream.into_iter();
            for line in streams.flat_map(|stream| BufReader::new(stream).split(b'\n')) {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                let mut lines = locked(&printed.lines);
                match pipe {
                    Pipe::Stdout => lines.stdout.push(line),
                    Pipe::Stderr => lines.stderr.push(line),
                }
                printed.changed.notify_all();
            }
            locked(&printed.lines).closed.push(pipe);
            printed.changed.notify_all();
        });
    }

    /// Waits until `is_there` holds, at most for `limit`.
    fn wait(&self, limit: Duration, is_there: impl Fn(&Lines) -> bool) -> MutexGuard<'_, Lines> {
        let lines = locked(&self.lines);
        let waited = self
            .changed
            .wait_timeout_while(lines, limit, |lines| !is_there(lines));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Lines {
    fn of(&self, pipe: Pipe) -> &Vec<String> {
        match pipe {
            Pipe::Stdout => &self.stdout,
            Pipe::Stderr => &self.stderr,
        }
    }

    fn is_closed(&self, pipe: Pipe) -> bool {
        self.closed.contains(&pipe)
    }

    fn is_complete(&self) -> bool {
        self.closed.len() == 2
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(words: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", words]);
        command
    }

    #[test]
    fn lines_and_end_are_told() {
        let words = "echo one; echo at: listening on unix:x >&2; echo more >&2; echo two; exit 3";
        let mut process = Tested::spawn(&mut shell(words));
        assert_eq!(process.address::<String>(), "unix:x");
        assert_eq!(process.result(), "one");
        assert_eq!(process.complaint(), "more");
        let ended = process.end();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stdout, "one\ntwo\n");
    }

    #[test]
    fn silence_has_an_end() {
        let process = Process::start(&mut shell("echo no >&2; exec sleep 60")).unwrap();
        let limit = Duration::from_millis(20);
        let fault = process.line(Pipe::Stdout, 0, limit);
        assert!(matches!(fault, Err(Fault::Hangs(_))), "{fault:?}");
        assert!(process.wait(limit).is_none());
        process.kill();
        assert!(process.wait_for_output(DEADLINE));
        let fault = process.address(limit);
        assert!(
            matches!(&fault, Err(Fault::Ended(said)) if said == "no"),
            "{fault:?}"
        );
    }
}
