//! The protocol between a guest's process and its parent: one JSON object per line.

use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::guests::Spec;

/// An order to a guest. Each gets one [`Answer`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// The first order: be this guest, and run.
    Start(Spec),
    /// Stop writing.
    Pause,
    /// Resume writing.
    Resume,
    /// Compute the SHA-256 of the memory.
    Digest,
    /// End. The end of the input means the same.
    Stop,
}

/// A guest's answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// It runs.
    Started {
        /// Its memory's file descriptor, in its process.
        descriptor: i32,
        /// The address of its memory in its process.
        address: u64,
    },
    /// The order has been carried out.
    Done {
        /// The number of actions so far.
        acts: u64,
    },
    /// The digest in hexadecimal digits.
    Digest(String),
    /// It failed, for this reason.
    Failed(String),
}

/// Writes a line.
pub(super) fn tell(to: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads a line; `None` at the end.
pub(super) fn hear<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if io::Read::take(&mut *from, MAX_LINE_BYTES).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// The longest line has a path in it.
const MAX_LINE_BYTES: u64 = 64 << 10;
