//! The return path: the main channel from the destination to the source.

use std::io::{self, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use multifd_transport::failure::Cause as TransportCause;
use multifd_wire::return_path::{Message, ReturnPathReceiver};

use super::gate::Gate;
use super::link::Link;
use super::main_channel::{BUFFER_BYTES, failed};
use super::outline::Outline;
use super::{Remark, Unusual};
use crate::failure::{Cause, Failure, Leg, Other};

/// How soon to look again whether the source's host has the destination's word.
pub(super) const WORD_PAUSE: Duration = Duration::from_millis(2);

/// Passes the return path on.
///
/// A QEMU may close with unread bytes, which looks like a broken connection. Another relay
/// (`is_relay`) announces its end.
pub(super) fn run(
    link: &Link,
    outline: &Outline,
    gate: &Gate,
    is_relay: bool,
) -> Result<(), Failure> {
    let destination = |cause| failed(Leg::Destination, cause);
    let mut receiver = Some(ReturnPathReceiver::new());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match link.destination.read_some(&mut buffer) {
            Ok(count) => count,
            Err(error) if is_relay => {
                if outline.look(|seen| seen.confirmed) {
                    break;
                }
                // However the connection breaks, the other relay has said no end.
                return Err(destination(match Cause::of_connection(error) {
                    Cause::Transport(TransportCause::Io(_)) => outline.relay_gone(),
                    said => said,
                }));
            }
            // A destination that closes with unread bytes resets the connection. Nothing more comes
            // either way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(destination(Cause::of_connection(error))),
        };
        if count == 0 {
            break;
        }
        gate.loads();
        let bytes = buffer.get(..count).unwrap_or_default();
        // This must be known before the bytes are passed on: the source may close at once after the
        // last byte.
        let had_gone = link.source.peer_has_closed();
        let (word, passed) = listen(&mut receiver, bytes, outline);
        match word {
            Some(Word::TooLate) => return Err(destination(Cause::NotTold)),
            Some(Word::TooEarly) => return Err(destination(Other::WordTooEarly.into())),
            _ => {}
        }
        let told = (&*link.source).write_all(bytes.get(..passed).unwrap_or_default());
        match word {
            Some(Word::Arrived) if had_gone || told.is_err() || !is_heard(link, gate) => {
                return Err(destination(Cause::NotTold));
            }
            Some(Word::Arrived) => outline.see(|seen| seen.told = true),
            Some(Word::Refused(status)) => return Err(destination(Cause::Refused { status })),
            _ => {}
        }
    }
    if outline.is_taken_back() {
        return Err(destination(outline.unconfirmed()));
    }
    // After all memory, an end may not be recognised. The source's own end then decides. If the
    // destination has failed there, a later write shows it.
    let is_early = outline.look(|seen| {
        let may_be_over = seen.ram_ended || seen.complete || seen.ended;
        !may_be_over && !seen.confirmed && seen.remarks.is_empty()
    });
    if is_early {
        let end = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(destination(end.into()));
    }
    // An end over TLS is a record. A QEMU reads nothing after the word, closes with that record
    // unread, and so resets the connection: as a source does that has not read the word. It closes
    // without our end, too.
    let is_tls = !link.source.is_bare() && link.source.bytes_below().is_none();
    if !(is_tls && outline.look(|seen| seen.confirmed)) {
        // The source may have closed by now.
        let _ = link.source.shutdown(Shutdown::Write);
    }
    Ok(())
}

/// Waits until the source's host has the destination's word. `false` if it does not get it: the
/// source had closed, or the session has given up meanwhile. A write that has gone well shows
/// neither: the source's end may be on its way, and the link may be cut.
fn is_heard(link: &Link, gate: &Gate) -> bool {
    loop {
        match link.source.is_acknowledged() {
            Ok(true) => return true,
            Ok(false) if gate.is_stopped() => return false,
            Ok(false) => thread::sleep(WORD_PAUSE),
            Err(_) => return false,
        }
    }
}

/// The destination's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// The destination has the guest.
    Arrived,
    /// The destination has the guest, but the migration had failed before.
    TooLate,
    /// The destination says that it has a guest whose memory has not come.
    TooEarly,
    Refused(u32),
}

/// Follows the return path while it can be parsed. Returns the destination's word, if it was in
/// these bytes, and the number of bytes to pass on. A source decides at the first word, so no bytes
/// after it are passed on.
fn listen(
    receiver: &mut Option<ReturnPathReceiver>,
    bytes: &[u8],
    outline: &Outline,
) -> (Option<Word>, usize) {
    let mut rest = bytes;
    while let Some(following) = receiver
        && !outline.look(|seen| seen.confirmed)
    {
        match following.push(&mut rest) {
            Ok(Some(Message::Shut(0))) => {
                let word = outline.see(|seen| {
                    seen.confirmed = !seen.failed && seen.may_have_arrived();
                    match seen.failed {
                        true => Word::TooLate,
                        false if seen.confirmed => Word::Arrived,
                        false => Word::TooEarly,
                    }
                });
                if !rest.is_empty() {
                    outline.remark(Remark(Unusual::BehindWord));
                }
                return (Some(word), bytes.len().saturating_sub(rest.len()));
            }
            Ok(Some(Message::Shut(status))) => {
                let passed = bytes.len().saturating_sub(rest.len());
                return (Some(Word::Refused(status)), passed);
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            // COLO has other messages here. The source judges them itself.
            Err(fault) => {
                outline.remark(Remark(Unusual::ReturnPathNotFollowed(fault)));
                outline.see(|seen| seen.return_path_lost = true);
                *receiver = None;
            }
        }
    }
    if receiver.is_some() && outline.look(|seen| seen.confirmed) {
        outline.remark(Remark(Unusual::BehindWord));
        return (None, 0);
    }
    (None, bytes.len())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use multifd_transport::Stream;

    use super::*;
    use crate::failure::Channel;

    const SHUT_WELL: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
    /// Its source's end of main, and its destination's.
    fn link() -> (Link, TcpStream, UnixStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let source = Stream::from(listener.accept().unwrap().0);
        let (ours, destination) = UnixStream::pair().unwrap();
        let link = Link {
            channel: Channel::Main,
            source: Arc::new(source),
            destination: Stream::from(ours),
        };
        (link, theirs, destination)
    }

    /// A write of the word goes well wherever the source's end is on its way.
    #[test]
    fn a_word_that_a_source_does_not_take_is_not_told() {
        for gives_up in [false, true] {
            let (link, mut source, _destination) = link();
            (&*link.source).write_all(&SHUT_WELL).unwrap();
            if gives_up {
                // The system refuses what comes behind this.
                source.shutdown(Shutdown::Both).unwrap();
                (&*link.source).write_all(&SHUT_WELL).unwrap();
            } else {
                source.read_exact(&mut [0; 8]).unwrap();
            }
            assert_eq!(is_heard(&link, &Gate::default()), !gives_up);
        }
    }

    #[test]
    fn a_word_is_told_once_the_source_has_it() {
        let (link, mut source, mut destination) = link();
        let outline = Outline::default();
        outline.see(|seen| (seen.ram_ended, seen.return_path) = (true, true));
        destination.write_all(&SHUT_WELL).unwrap();
        drop(destination);
        run(&link, &outline, &Gate::default(), false).unwrap();
        assert!(outline.look(|seen| seen.confirmed && seen.told));
        source.read_exact(&mut [0; 8]).unwrap();
        assert_eq!(source.read(&mut [0]).unwrap(), 0);
    }

    const SHUT_FAILED: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 1];

    #[test]
    fn the_first_word_counts_and_what_is_behind_it_goes_nowhere() {
        for parts in [
            &[[SHUT_WELL, SHUT_FAILED].concat()][..],
            &[SHUT_WELL.to_vec(), SHUT_FAILED.to_vec()],
        ] {
            let (outline, mut receiver) = (Outline::default(), Some(ReturnPathReceiver::new()));
            outline.see(|seen| seen.ram_ended = true);
            let heard: Vec<_> = { parts.iter() }
                .map(|part| listen(&mut receiver, part, &outline))
                .collect();
            assert_eq!(heard[0], (Some(Word::Arrived), 8));
            assert!(heard.get(1).is_none_or(|behind| *behind == (None, 0)));
            assert!(
                outline
                    .look(|seen| seen.confirmed && seen.remarks == [Remark(Unusual::BehindWord)])
            );
        }
        let (outline, mut receiver) = (Outline::default(), Some(ReturnPathReceiver::new()));
        let both = [SHUT_FAILED, SHUT_WELL].concat();
        let heard = listen(&mut receiver, &both, &outline);
        assert_eq!(heard, (Some(Word::Refused(1)), 8));
        assert!(!outline.look(|seen| seen.confirmed));
    }

    #[test]
    fn a_word_before_all_memory_is_none() {
        let (outline, mut receiver) = (Outline::default(), Some(ReturnPathReceiver::new()));
        let (word, _) = listen(&mut receiver, &SHUT_WELL, &outline);
        assert_eq!(word, Some(Word::TooEarly));
        assert!(outline.look(|seen| !seen.confirmed));
        // It is in the hands of the source that recovers.
        let (outline, mut receiver) = (Outline::default(), Some(ReturnPathReceiver::new()));
        outline.see(|seen| seen.recovers = true);
        let (word, _) = listen(&mut receiver, &SHUT_WELL, &outline);
        assert_eq!(word, Some(Word::Arrived));
    }

    #[test]
    fn either_a_migration_has_failed_or_its_source_is_told_the_word() {
        for fails_first in [false, true] {
            let (outline, mut receiver) = (Outline::default(), Some(ReturnPathReceiver::new()));
            outline.see(|seen| seen.ram_ended = true);
            if fails_first {
                assert!(outline.fails());
            }
            let word = match fails_first {
                true => Word::TooLate,
                false => Word::Arrived,
            };
            assert_eq!(listen(&mut receiver, &SHUT_WELL, &outline).0, Some(word));
            assert_eq!(outline.fails(), fails_first);
        }
    }
}
