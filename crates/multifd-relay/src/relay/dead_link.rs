//! Detects a link to the destination that has died with the last bytes of a migration on it.
//!
//! While bytes wait for an acknowledgement, the system does not ask whether the peer's host is there,
//! and sends them again for a quarter of an hour.

use std::io;
use std::time::Duration;

use multifd_transport::{Backlog, Moment};

use super::link::Links;
use super::outline::Outline;
use crate::failure::{Failure, Leg};

/// How long a link may take nothing. The system has sent the same bytes eight times or so by then.
pub(super) const LINK_TIMEOUT: Duration = Duration::from_secs(60);

/// Measures how long no byte was acknowledged.
#[derive(Debug)]
pub(super) struct DeadLink {
    within: Duration,
    /// Since when, and the number of bytes that wait.
    since: Option<(Moment, u64)>,
}

impl DeadLink {
    pub(super) fn new(within: Duration) -> Self {
        Self {
            within,
            since: None,
        }
    }

    /// The failure, once everything that makes the guest was read, and nothing of it moves any more
    /// because of the link. A peer that does not read is no dead link: its host answers.
    pub(super) fn look(&mut self, outline: &Outline, links: &Links) -> Option<Failure> {
        let is_due = outline.look(|seen| (seen.complete || seen.ended) && !seen.confirmed);
        let stuck = match is_due {
            true => links.find_unsent(|backlog| backlog != Backlog::Peer),
            false => None,
        };
        let Some((channel, unsent)) = stuck else {
            self.since = None;
            return None;
        };
        let (since, before) = *self.since.get_or_insert_with(|| (Moment::now(), unsent));
        if before != unsent {
            self.since = Some((Moment::now(), unsent));
            return None;
        }
        (since.elapsed() >= self.within).then(|| Failure {
            channel,
            leg: Leg::Destination,
            block: None,
            cause: io::Error::from(io::ErrorKind::TimedOut).into(),
        })
    }
}
