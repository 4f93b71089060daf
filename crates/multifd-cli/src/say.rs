//! Words for people: results on stdout, progress and trouble on stderr.

use std::error::Error;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use multifd_transport::Address;
use multifd_transport::incoming::Acceptor;
use multifd_transport::receive::Totals;
use serde::Serialize;

/// Prints a result.
///
/// # Errors
///
/// When stdout is closed.
pub fn result(line: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Prints a result as one line of JSON.
///
/// # Errors
///
/// When stdout is closed.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    result(serde_json::to_string(value)?)
}

/// Tells about something that is no result.
pub fn note(line: impl Display) {
    // There is nobody to tell when stderr is closed.
    let _ = writeln!(io::stderr(), "multifd: {line}");
}

/// Listens, and says so: a source can be started now.
///
/// # Errors
///
/// When it cannot, with the address.
pub fn listen(address: &Address) -> Result<Acceptor, String> {
    let acceptor =
        Acceptor::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    note(format_args!("listening on {}", acceptor.address()));
    Ok(acceptor)
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

/// A number with so many decimals.
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

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self {
            shown: false,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Takes the line away, for others to be printed.
    pub fn clear(&mut self) {
        if self.shown {
            self.shown = false;
            let _ = write!(io::stderr(), "\r{CLEAR_TO_END}");
        }
    }

    /// Shows `line` instead of the one before.
    pub fn show(&mut self, line: impl Display) {
        if self.terminal {
            self.shown = true;
            let _ = write!(io::stderr(), "\r{line}{CLEAR_TO_END}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r{CLEAR_TO_END}");
        }
    }
}

/// ECMA-48 EL: what is right of the cursor goes.
const CLEAR_TO_END: &str = "\x1b[K";

/// Prints what a migration came to.
///
/// # Errors
///
/// When stdout is closed.
pub fn summary(summary: &(impl Serialize + Display), json: bool) -> io::Result<()> {
    if json {
        self::json(summary)
    } else {
        result(summary)
    }
}

/// A migration that failed, for readers of JSON.
#[derive(Serialize)]
pub struct Failed {
    error: String,
}

impl Failed {
    /// With all causes of `error`.
    pub fn new(error: &dyn Error) -> Self {
        Self {
            error: chain(error),
        }
    }
}

/// A name from outside, without what could command a terminal.
pub fn printable(name: &impl Display) -> String {
    name.to_string()
        .chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
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

/// How much of a migration has arrived.
#[derive(Debug)]
pub struct Arrived(pub Totals);

impl From<multifd_transport::Arrived> for Arrived {
    fn from(arrived: multifd_transport::Arrived) -> Self {
        Self(Totals {
            pages: arrived.normal,
            zero_pages: arrived.duplicate,
            bytes_in: arrived.bytes,
        })
    }
}

impl fmt::Display for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals {
            pages,
            zero_pages,
            bytes_in,
        } = self.0;
        write!(
            f,
            "{pages} pages, {zero_pages} zero pages, {} in",
            size(bytes_in)
        )
    }
}
