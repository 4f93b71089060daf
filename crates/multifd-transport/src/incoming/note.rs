//! An acceptor's notes on connections that it closed, and why.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::SetupFault;

/// Something that happened to a connection which is part of no migration.
#[derive(Debug)]
#[non_exhaustive]
pub enum Note {
    /// The acceptor has closed a connection.
    PassedOver {
        /// The other end, as far as the system names it.
        peer: String,
        /// Why.
        reason: Reason,
    },
    /// More connections were closed within a second, without a note each.
    Further {
        /// Their number.
        connections: u64,
    },
    /// A relay has asked what would become of a migration, and has begun none.
    Visited {
        /// The other end, as far as the system names it.
        peer: String,
    },
    /// No connection can be accepted at the moment. Accepting goes on as soon as the system allows.
    CannotAccept(io::Error),
}

/// Why a connection was passed over. [`Display`](fmt::Display) says it.
#[derive(Debug)]
pub struct Reason(pub(super) Why);

impl Reason {
    /// It sent no first bytes in time, or too few.
    pub fn silent(within: Duration) -> Self {
        Self(Why::Silent { within })
    }

    /// There were too many connections of unknown kind, and this was the oldest.
    pub fn crowded() -> Self {
        Self(Why::Crowded)
    }

    /// It came over another protocol, whose reader gives the reason.
    pub fn other(words: String) -> Self {
        Self(Why::Other(words))
    }
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        Self(why)
    }
}

#[derive(Debug)]
pub(super) enum Why {
    /// It sent no first bytes in time, or too few.
    Silent {
        /// For how long.
        within: Duration,
    },
    /// There were too many connections of unknown kind, and this was the oldest.
    Crowded,
    /// It began a TLS handshake.
    Tls,
    /// It came over another protocol, whose reader gives the reason.
    Other(String),
    /// Its first bytes are not those of a connection of a migration.
    Unmarked([u8; 4]),
    /// It began like a multifd channel, but its hello is malformed.
    Hello(multifd_wire::Fault),
    /// A multifd channel whose main channel did not come, or has gone.
    NoMain {
        /// The VM that it named.
        uuid: [u8; 16],
        /// Its id.
        channel: u8,
    },
    /// A main channel that ended, stopped or broke in its set-up.
    SetUp(SetUpFault),
    /// The main channel of a migration that is refused.
    Refused(SetupFault),
    /// An engine where only QEMUs are served, or a QEMU where only engines are.
    OtherKind(SetupFault),
    /// A postcopy migration that goes on after a break, where it cannot be carried.
    Recovery,
    /// The socket failed.
    Io(io::Error),
}

/// Why the set-up part of a main channel was given up.
#[derive(Debug)]
pub(super) struct SetUpFault(pub(super) SetUpEnd);

#[derive(Debug)]
pub(super) enum SetUpEnd {
    /// The source closed it.
    Ended,
    /// Nothing came for a while.
    Stalled {
        /// For how long.
        within: Duration,
    },
    /// It took too long altogether.
    Slow {
        /// The limit.
        within: Duration,
    },
    /// It is no main stream.
    Wire(multifd_wire::Fault),
    /// All set-ups together take too much memory, and this one has the most.
    TooMuch {
        /// The most bytes that all set-ups may take.
        limit_bytes: usize,
    },
    /// The socket failed.
    Io(io::Error),
}

/// The most notes in a second. Further ones are only counted.
const NOTES_A_SECOND: u64 = 8;

type Listen = Box<dyn Fn(&Note) + Send>;

/// Limits the notes that strangers can cause.
#[derive(Default)]
pub(super) struct Notes {
    listen: Option<Listen>,
    second: Option<Instant>,
    said: u64,
    /// The connections of this second without a note.
    further: u64,
    cannot_accept: bool,
}

impl Notes {
    pub(super) fn listen_to(&mut self, listen: Listen) {
        self.listen = Some(listen);
    }

    pub(super) fn take(&mut self, note: &Note, now: Instant) {
        self.sum_up(now);
        self.second.get_or_insert(now);
        let is_told = match note {
            // The acceptor tries again many times in a second.
            Note::CannotAccept(_) => !std::mem::replace(&mut self.cannot_accept, true),
            _ => self.said < NOTES_A_SECOND,
        };
        match (note, is_told) {
            // A visit is no stranger's, so nobody counts it as one.
            (Note::CannotAccept(_), _) | (Note::Visited { .. }, false) => {}
            (_, true) => self.said += 1,
            (_, false) => self.further += 1,
        }
        if is_told {
            self.tell(note);
        }
    }

    /// Gives a note about connections that were only counted, once their second is over.
    pub(super) fn sum_up(&mut self, now: Instant) {
        let is_over = |second| now.duration_since(second) >= Duration::from_secs(1);
        if !self.second.is_some_and(is_over) {
            return;
        }
        let connections = self.further;
        (self.second, self.said, self.further) = (None, 0, 0);
        self.cannot_accept = false;
        if connections > 0 {
            self.tell(&Note::Further { connections });
        }
    }

    fn tell(&self, note: &Note) {
        if let Some(listen) = &self.listen {
            listen(note);
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::PassedOver { peer, reason } => {
                write!(f, "passed over a connection from {peer}: {reason}")
            }
            Note::Further { connections } => {
                write!(f, "passed over {connections} more connections")
            }
            Note::Visited { peer } => write!(
                f,
                "{peer} looked whether a migration would be taken here (multifd doctor): none has begun"
            ),
            Note::CannotAccept(error) => write!(
                f,
                "cannot accept connections for the moment ({error}); trying again"
            ),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Why::Silent { within } => {
                write!(f, "it did not say what it is within {} s", within.as_secs())
            }
            Why::Crowded => f.write_str("too many connections have not said what they are"),
            Why::Tls => write!(f, "{}", SetupFault::Tls),
            Why::Other(words) => f.write_str(words),
            Why::Unmarked(bytes) => write!(
                f,
                "it begins with {:#010x}, which no connection of a migration does",
                u32::from_be_bytes(*bytes)
            ),
            Why::Hello(fault) => write!(f, "its hello is malformed: {fault}"),
            Why::NoMain { uuid, channel } => write!(
                f,
                "channel {channel} of VM {} has no main channel here",
                crate::failure::Uuid(uuid)
            ),
            Why::SetUp(fault) => write!(f, "a migration that had not begun: {fault}"),
            Why::Refused(fault) | Why::OtherKind(fault) => write!(f, "{fault}"),
            Why::Recovery => {
                f.write_str("it recovers a postcopy migration; only `multifd relay` can carry that")
            }
            Why::Io(error) => write!(f, "{error}"),
        }
    }
}

impl fmt::Display for SetUpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SetUpEnd::Ended => f.write_str("the source closed it in its set-up"),
            SetUpEnd::Stalled { within } => {
                write!(f, "nothing came for {} s in its set-up", within.as_secs())
            }
            SetUpEnd::Slow { within } => {
                write!(f, "its set-up took more than {} s", within.as_secs())
            }
            SetUpEnd::Wire(fault) => write!(f, "{fault}"),
            SetUpEnd::TooMuch { limit_bytes } => write!(
                f,
                "all set-ups together would take more than {} MiB",
                limit_bytes >> 20
            ),
            SetUpEnd::Io(error) => write!(f, "{error}"),
        }
    }
}
