//! Words for people: results on stdout, progress and trouble on stderr.

use std::error::Error;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use multifd_relay::receive::Totals;
use multifd_transport::incoming::Acceptor;
use multifd_transport::{Address, ListenOptions, Listener};
pub(crate) use multifd_transport::{printable, printable_path};
use multifd_wire::IdStr;
use serde::{Deserialize, Serialize, Serializer};

use crate::{json, out};

/// The name that stands before each note.
static PROGRAM: OnceLock<&str> = OnceLock::new();

/// Time limit for readers of the output at the end of the process.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Sets the name that stands before each note. Only the first call has an effect.
pub fn set_program(name: &'static str) {
    let _ = PROGRAM.set(name);
}

/// Standard output of a command that prints its result and ends.
pub(crate) struct Stdout(StdoutLock<'static>);

/// Locks standard output for a command's result.
pub(crate) fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(marked)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(marked)
    }
}

/// The reader of standard output has closed it, as `head` does when it has seen enough.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct ReaderGone;

/// Marks a broken pipe as standard output's, to tell it from a broken connection.
fn marked(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::BrokenPipe => io::Error::new(kind, ReaderGone),
        _ => error,
    }
}

/// Whether a command failed because the reader of its result has seen enough.
pub(crate) fn reader_is_gone(failure: &(dyn Error + 'static)) -> bool {
    let error = failure.downcast_ref::<io::Error>();
    error
        .and_then(io::Error::get_ref)
        .is_some_and(|inner| inner.is::<ReaderGone>())
}

/// Prints a command's result, and waits until it is printed. The outcome of a migration is
/// [reported](report) instead.
///
/// # Errors
///
/// When stdout is closed.
pub fn result(line: impl Display) -> io::Result<()> {
    let mut out = stdout();
    writeln!(out, "{}", out::escaped(&line.to_string()))?;
    out.flush()
}

/// Prints a command's result as one line of JSON.
///
/// # Errors
///
/// When stdout is closed.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = stdout();
    writeln!(out, "{}", json::to_string(value)?)?;
    out.flush()
}

/// Prints the outcome of a migration. The migration is over, so an error of printing does not
/// change its outcome; a note reports the error.
pub fn report(summary: &(impl Serialize + Display), json: bool) {
    if json {
        report_json(summary);
    } else {
        report_line(summary);
    }
}

/// Prints a line about a migration, as [`report`] does.
pub(crate) fn report_line(line: impl Display) {
    print(format!("{}\n", out::escaped(&line.to_string())));
}

/// Prints one line of JSON about a migration, as [`report`] does.
pub fn report_json(value: &impl Serialize) {
    match json::to_string(value) {
        Ok(line) => print(line + "\n"),
        Err(error) => note(format_args!("cannot write the result as JSON: {error}")),
    }
}

fn print(line: String) {
    if out::STDOUT.push(line).is_err() {
        note("standard output is blocked: dropping results");
    }
}

/// Prints a note on stderr.
pub fn note(line: impl Display) {
    // If too many wait, a later note counts the dropped ones.
    let program = PROGRAM.get().unwrap_or(&"multifd");
    let _ = out::STDERR.push(format!("{program}: {}\n", printable(line)));
}

/// Waits until all output is written, at most `timeout` for each stream.
pub(crate) fn flush(timeout: Duration) {
    if !out::STDOUT.flush(timeout) {
        note("nobody reads what is printed: results are lost");
    }
    out::STDERR.flush(timeout);
}

/// Waits for the output queues, as at the end of the process.
pub fn last_words() {
    flush(LAST_WORDS);
}

/// Listens, and says so: a source can be started now. A unix socket gets this mode.
///
/// # Errors
///
/// When it cannot, with the address.
pub(crate) fn listen_with(address: &Address, mode: u32) -> Result<Acceptor, String> {
    let acceptor = listener(address, mode)
        .and_then(|listener| Acceptor::on(listener).map_err(cannot_listen(address)))?;
    // Before the line that says that it listens, so that no line is lost.
    acceptor.on_note(|passed_over| note(passed_over));
    note(format_args!("listening on {}", acceptor.address()));
    Ok(acceptor)
}

/// Listens. A unix socket gets this mode.
///
/// # Errors
///
/// When it cannot, with the address.
pub(crate) fn listener(address: &Address, mode: u32) -> Result<Listener, String> {
    let mut options = ListenOptions::default();
    options.mode = mode;
    listener_with(address, &options)
}

/// Listens.
///
/// # Errors
///
/// When it cannot, with the address.
pub(crate) fn listener_with(
    address: &Address,
    options: &ListenOptions,
) -> Result<Listener, String> {
    Listener::bind_with(address, options).map_err(cannot_listen(address))
}

fn cannot_listen<E: Error>(address: &Address) -> impl Fn(E) -> String + '_ {
    move |error| format!("cannot listen on {address}: {}", chain(&error))
}

/// An error and its causes on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Seconds with milliseconds, as a number for JSON and for people.
pub fn seconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64(), 3)
}

/// A number with this many decimals.
pub fn rounded(number: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (number * scale).round() / scale
}

/// A line on a terminal that is written over and over; nothing where stderr is not a terminal.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Makes a progress line that shows nothing.
    pub fn new() -> Self {
        Self {
            shown: false,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether there is a terminal to show it on.
    pub(crate) fn is_shown(&self) -> bool {
        self.terminal
    }

    /// Replaces the line. What does not fit into the terminal's width is left out.
    pub fn show(&mut self, line: impl Display) {
        if self.terminal {
            self.shown = true;
            let line = cut(printable(line), columns());
            out::STDERR.show(format!("\r{line}{}", out::CLEAR_TO_END));
        }
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            out::STDERR.clear();
        }
    }
}

/// How wide the terminal is, if it says so.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
    match size.map_or(0, |size| size.ws_col) {
        0 => usize::MAX,
        columns => usize::from(columns),
    }
}

/// The beginning of a line, in less than this many columns: a full one would begin a new line.
fn cut(mut line: String, columns: usize) -> String {
    if let Some((at, _)) = line.char_indices().nth(columns.saturating_sub(1)) {
        line.truncate(at);
    }
    line
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A migration that failed, for readers of JSON.
#[derive(Serialize)]
pub(crate) struct Failed {
    error: String,
}

impl Failed {
    /// With all causes of `error`.
    pub(crate) fn new(error: &dyn Error) -> Self {
        Self {
            error: chain(error),
        }
    }
}

/// A name for JSON, where it is data: with its letters, and what stands for none replaced.
pub(crate) fn data(name: &IdStr) -> String {
    String::from_utf8_lossy(name.as_bytes()).into_owned()
}

/// A file's name, for people and for JSON, though it may be no text.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct FilePath(PathBuf);

impl From<PathBuf> for FilePath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string_lossy())
    }
}

impl Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable_path(&self.0))
    }
}

/// A number of bytes, short.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A block that the source shares and does not send.
pub(crate) struct LeftOut<T>(pub T);

impl<T: Display> Display for LeftOut<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(block) = self;
        write!(
            f,
            "block {block}, shared by the source and not sent (x-ignore-shared)"
        )
    }
}

/// Stands before the report on a migration whose source asked for no confirmation.
pub(crate) const NOT_CONFIRMED: &str = "whole, not confirmed to the source: no return path; ";

/// Stands before the report on a migration whose source may not have heard that everything is kept.
pub(crate) const UNHEARD: &str = "whole, but it is not known whether the source has heard that: look at it (info \
    status); if its guest runs on there, what is kept is of an earlier moment; ";

/// The pages and bytes of a migration that have arrived.
#[derive(Debug)]
pub(crate) struct Arrived {
    pages: u64,
    zero_pages: u64,
    bytes_in: u64,
}

impl From<Totals> for Arrived {
    fn from(totals: Totals) -> Self {
        Self {
            pages: totals.pages,
            zero_pages: totals.zero_pages,
            bytes_in: totals.bytes_in,
        }
    }
}

impl From<multifd_engine::Arrived> for Arrived {
    fn from(arrived: multifd_engine::Arrived) -> Self {
        Self {
            pages: arrived.normal,
            zero_pages: arrived.duplicate,
            bytes_in: arrived.bytes,
        }
    }
}

impl fmt::Display for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pages,
            zero_pages,
            bytes_in,
        } = self;
        write!(
            f,
            "{pages} pages, {zero_pages} zero pages, {} in",
            size(*bytes_in)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_stays_on_one_line() {
        let cut = |columns| cut("äbcdef".to_owned(), columns);
        assert_eq!(cut(usize::MAX), "äbcdef");
        assert_eq!(cut(7), "äbcdef");
        assert_eq!(cut(6), "äbcde");
        assert_eq!(cut(2), "ä");
        assert_eq!(cut(1), "");
    }
}
