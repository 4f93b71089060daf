//! Output queues, so that no migration waits for a reader.
//!
//! A terminal may be stopped, a pipe may be full, a reader may be gone. So threads of their own
//! write, from bounded queues. Lines that do not fit are dropped and counted; a note reports their
//! number once there is room.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

/// Notes and progress.
pub(crate) static STDERR: Queue = Queue::new(rustix::stdio::stderr, 256 << 10, "messages");
/// Results.
pub(crate) static STDOUT: Queue = Queue::new(rustix::stdio::stdout, 4 << 20, "results");

/// Pause before retrying a non-blocking output that is full.
const PAUSE: Duration = Duration::from_millis(20);

/// ECMA-48 EL: what is right of the cursor goes.
pub(crate) const CLEAR_TO_END: &str = "\x1b[K";

/// Output that waits for one of the standard streams.
pub(crate) struct Queue {
    stream: fn() -> BorrowedFd<'static>,
    most_bytes: usize,
    holds: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines that there was no room for since the last one that there was room for.
    dropped: u64,
    progress: Step,
    has_thread: bool,
    is_writing: bool,
}

/// The next change of the progress line.
enum Step {
    Nothing,
    Show(String),
    Clear,
}

/// The queue is full.
pub(crate) struct Full;

impl Queue {
    const fn new(
        stream: fn() -> BorrowedFd<'static>,
        most_bytes: usize,
        holds: &'static str,
    ) -> Self {
        Self {
            stream,
            most_bytes,
            holds,
            state: Mutex::new(State {
                lines: VecDeque::new(),
                bytes: 0,
                dropped: 0,
                progress: Step::Nothing,
                has_thread: false,
                is_writing: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Starts the thread that writes, so that none is made in the middle of something.
    pub(crate) fn start(&'static self) {
        self.wake(self.lock());
    }

    /// Queues a line.
    ///
    /// # Errors
    ///
    /// When so much waits to be written that the line is dropped, and none was before it.
    pub(crate) fn push(&'static self, line: String) -> Result<(), Full> {
        let mut state = self.lock();
        let is_full = !state.lines.is_empty() && state.bytes + line.len() > self.most_bytes;
        if is_full {
            state.dropped += 1;
            return if state.dropped == 1 {
                Err(Full)
            } else {
                Ok(())
            };
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        self.wake(state);
        Ok(())
    }

    /// Replaces the progress line.
    pub(crate) fn show(&'static self, line: String) {
        let mut state = self.lock();
        state.progress = Step::Show(line);
        self.wake(state);
    }

    /// Removes the progress line.
    pub(crate) fn clear(&'static self) {
        let mut state = self.lock();
        state.progress = Step::Clear;
        self.wake(state);
    }

    /// Waits until all is written, at most as long as `timeout`. Returns whether it is.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let unwritten = |state: &mut State| state.is_writing || !state.is_empty();
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), timeout, unwritten)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in between can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&'static self, mut state: MutexGuard<'_, State>) {
        if !state.has_thread {
            // Without a thread what there is waits for the next line, which tries again.
            let thread = thread::Builder::new().name(self.holds.to_owned());
            state.has_thread = thread.spawn(|| self.serve()).is_ok();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Writes queued output, for ever.
    fn serve(&self) {
        let mut shown = false;
        let mut told = false;
        loop {
            let text = self.next(&mut shown);
            let outcome = self.write(text.as_bytes());
            match outcome {
                Ok(()) => told = false,
                // An error of stderr cannot be reported.
                Err(error) if !told && !std::ptr::eq(self, &raw const STDERR) => {
                    told = true;
                    crate::say::note(format_args!("cannot print {}: {error}", self.holds));
                }
                Err(_) => {}
            }
            // Last, so that the end of the process waits for its messages.
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for the next output and takes it.
    fn next(&self, shown: &mut bool) -> String {
        let mut state = self
            .changed
            .wait_while(self.lock(), |state| state.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        state.is_writing = true;
        let mut text = String::new();
        if *shown {
            text.push('\r');
            text.push_str(CLEAR_TO_END);
        }
        if let Some(line) = state.lines.pop_front() {
            *shown = false;
            state.bytes -= line.len();
            text.push_str(&line);
            if state.dropped > 0 && state.lines.is_empty() {
                let (dropped, holds) = (std::mem::take(&mut state.dropped), self.holds);
                drop(state);
                let told = format_args!("{dropped} {holds} were dropped, as nobody read them");
                crate::say::note(told);
            }
            return text;
        }
        match std::mem::replace(&mut state.progress, Step::Nothing) {
            Step::Show(line) => {
                *shown = true;
                text.push_str(&line);
            }
            Step::Clear | Step::Nothing => *shown = false,
        }
        text
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write((self.stream)(), bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => thread::sleep(PAUSE),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && matches!(self.progress, Step::Nothing)
    }
}

/// Lines, each of which is its own and none a peer's: see [`multifd_transport::escape`].
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if text
        .bytes()
        .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte))
    {
        return Cow::Borrowed(text);
    }
    let lines: Vec<_> = text.split('\n').map(multifd_transport::printable).collect();
    Cow::Owned(lines.join("\n"))
}
