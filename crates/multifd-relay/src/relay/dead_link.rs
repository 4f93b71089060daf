//! Detects a link to the destination that has died with the last bytes of a migration on it.
//!
//! While bytes wait for an acknowledgement, the system does not ask whether the peer's host is
//! there, and sends them again for a quarter of an hour.

use std::io;
use std::time::Duration;

use multifd_transport::{Backlog, Moment};

use super::link::Links;
use super::outline::Outline;
use crate::failure::{Channel, Failure, Leg};

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
        self.note(match is_due {
            true => links.find_unsent(|backlog| backlog != Backlog::Peer),
            false => None,
        })
    }

    /// `stuck`: a channel whose bytes wait for the link, and how many bytes wait on all channels.
    fn note(&mut self, stuck: Option<(Channel, u64)>) -> Option<Failure> {
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;

    use multifd_transport::Stream;

    use super::*;
    use crate::relay::link::Link;

    const WITHIN: Duration = Duration::from_millis(20);

    #[test]
    fn a_link_is_dead_once_no_byte_has_gone_for_a_while() {
        let mut link = DeadLink::new(WITHIN);
        for unsent in [30, 20, 10] {
            assert!(link.note(Some((Channel::Multifd(1), unsent))).is_none());
            thread::sleep(WITHIN);
        }
        let failure = link.note(Some((Channel::Multifd(1), 10))).unwrap();
        assert_eq!(
            (failure.channel, failure.leg),
            (Channel::Multifd(1), Leg::Destination)
        );
        // What waits for the peer to read, or is acknowledged, begins the time anew.
        assert!(link.note(None).is_none());
        assert!(link.note(Some((Channel::Main, 10))).is_none());
    }

    #[test]
    fn a_destination_that_does_not_read_is_no_dead_link() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _theirs = listener.accept().unwrap();
        let destination = Stream::from(ours);
        destination.set_timeouts(Some(WITHIN)).unwrap();
        while io::Write::write(&mut &destination, &[1; 1 << 20]).is_ok() {}
        let (source, _there) = UnixStream::pair().unwrap();
        let links = Links::default();
        links.add(&Arc::new(Link {
            channel: Channel::Main,
            source: Arc::new(Stream::from(source)),
            destination,
        }));
        let outline = Outline::default();
        assert!(outline.completes());
        let deadline = Moment::now() + Duration::from_secs(20);
        // The last bytes on the way may have to be sent again.
        while links
            .find_unsent(|backlog| backlog != Backlog::Peer)
            .is_some()
        {
            assert!(Moment::now() < deadline, "its window is closed");
            thread::sleep(WITHIN);
        }
        assert!(links.find_unsent(|_| true).is_some());
        let mut link = DeadLink::new(Duration::ZERO);
        assert!(link.look(&outline, &links).is_none());
    }
}
