//! The main connection between two engines: messages out and in, with an eye on cancellation.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{RoundFault, Stream, hung_up};
use multifd_wire::{Fault, Limits};

use crate::Failure;
use crate::control::{self, ControlFault, ControlReceiver, Event, Message, Preamble};
use crate::engine_fault::{EngineError, EngineFault};
use crate::failure::{Cause, Channel, MessageError};

/// Poll interval for cancellation while waiting for a peer.
const TICK: Duration = Duration::from_millis(20);

/// Time limit for a peer that has closed its channels to give the reason on the main connection.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Messages are small but for the devices' state, which comes in pieces.
const BUFFER_BYTES: usize = 16 << 10;

/// One end of a control connection.
pub(crate) struct ControlLink<'s> {
    stream: &'s Stream,
    receiver: ControlReceiver,
    buffer: Vec<u8>,
    /// The part of `buffer` that the receiver has not had yet.
    unread: std::ops::Range<usize>,
    outgoing: Vec<u8>,
    bytes_out: u64,
    /// The peer has the beginning of a message whose end it will never get. Nothing may follow: the
    /// peer would read it as that end.
    is_cut: bool,
}

impl<'s> ControlLink<'s> {
    /// A link on a connection of which nothing has been read.
    pub(crate) fn new(stream: &'s Stream, limits: Limits) -> Result<Self, Cause> {
        stream.set_timeouts(Some(TICK))?;
        Ok(Self {
            stream,
            receiver: ControlReceiver::new(limits),
            buffer: vec![0; BUFFER_BYTES],
            unread: 0..0,
            outgoing: Vec::new(),
            bytes_out: 0,
            is_cut: false,
        })
    }

    /// Bytes written so far.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Whether the peer has closed the connection; it may have said something before.
    pub(crate) fn peer_has_closed(&self) -> bool {
        self.stream.peer_has_closed()
    }

    /// Says which versions this end speaks.
    pub(crate) fn send_preamble(
        &mut self,
        watch: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&Preamble::OURS.to_bytes());
        self.write(watch)
    }

    /// Waits for the peer's versions, which have to have one in common with this end's.
    pub(crate) fn preamble(&mut self, watch: &dyn Fn() -> Result<(), Cause>) -> Result<(), Cause> {
        match self.event(watch)? {
            Event::Preamble(theirs) if Preamble::OURS.common(theirs).is_some() => Ok(()),
            Event::Preamble(theirs) => Err(EngineFault::Versions { theirs }.into()),
            Event::Message(message) => Err(out_of_turn(&message, "the versions spoken")),
        }
    }

    /// Sends one message. `watch` is asked now and then while the peer does not take it.
    pub(crate) fn send(
        &mut self,
        message: &Message,
        watch: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        self.outgoing.clear();
        message.encode(&mut self.outgoing)?;
        self.write(watch)
    }

    /// Waits for a message. `watch` is asked now and then meanwhile.
    ///
    /// # Errors
    ///
    /// [`EngineFault::Peer`] when the message is that the peer gives up.
    pub(crate) fn receive(
        &mut self,
        watch: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<Message, Cause> {
        match self.event(watch)? {
            Event::Message(Message::Failure(reason)) => Err(EngineFault::Peer { reason }.into()),
            Event::Message(message) => Ok(message),
            Event::Preamble(_) => Err(EngineFault::OutOfTurn {
                found: "a second preamble",
                wanted: "a message",
            }
            .into()),
        }
    }

    /// The migration has failed here: finds out whether the peer gave up first, and if not sends it
    /// the reason.
    pub(crate) fn explained(&mut self, failure: Failure) -> Failure {
        if let Some(cause) = is_broken_off(&failure.cause)
            .then(|| self.last_words())
            .flatten()
        {
            return Failure {
                channel: Channel::Main,
                leg: failure.leg,
                block: None,
                cause,
            };
        }
        let message = Message::Failure(control::reason(&failure.explain()));
        // A peer that does not take it learns from the closed connection that it is over.
        let _ = self.send(&message, &|| Err(EngineFault::Closed.into()));
        failure
    }

    /// The reason that a peer gives here after it has closed a channel, if it gives one.
    fn last_words(&mut self) -> Option<Cause> {
        let deadline = Instant::now() + LAST_WORDS;
        let watch = || match Instant::now() < deadline {
            true => Ok(()),
            false => Err(EngineFault::Closed.into()),
        };
        loop {
            match self.receive(&watch) {
                Ok(_) => {}
                Err(cause @ Cause::Engine(EngineError(EngineFault::Peer { .. }))) => {
                    return Some(cause);
                }
                Err(_) => return None,
            }
        }
    }

    /// Writes what is outgoing. After an error no part of it has an effect at the peer, and never
    /// will have: either nothing was written, or the peer has the beginning of a message, which
    /// stays the last thing it gets.
    fn write(&mut self, watch: &dyn Fn() -> Result<(), Cause>) -> Result<(), Cause> {
        if self.is_cut {
            return Err(EngineFault::Closed.into());
        }
        let mut written = 0;
        let outcome = self.write_all(&mut written, watch);
        self.is_cut = outcome.is_err() && written > 0;
        self.bytes_out += written as u64;
        outcome
    }

    fn write_all(
        &self,
        written: &mut usize,
        watch: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        loop {
            let rest = self.outgoing.get(*written..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            match (&mut &*self.stream).write(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => *written = written.saturating_add(count),
                Err(error) if is_tick(&error) => watch()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn event(&mut self, watch: &dyn Fn() -> Result<(), Cause>) -> Result<Event, Cause> {
        loop {
            let mut bytes = self.buffer.get(self.unread.clone()).unwrap_or_default();
            let event = self.receiver.push(&mut bytes)?;
            self.unread.start = self.unread.end.saturating_sub(bytes.len());
            if let Some(event) = event {
                return Ok(event);
            }
            watch()?;
            match (&mut &*self.stream).read(&mut self.buffer) {
                Ok(0) => {
                    self.receiver.finish()?;
                    return Err(EngineFault::Closed.into());
                }
                Ok(count) => self.unread = 0..count,
                Err(error) if is_tick(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether this is what a peer's giving up looks like on its other connections, which it may close
/// first.
pub(crate) fn is_broken_off(cause: &Cause) -> bool {
    match cause {
        Cause::Transport(TransportCause::Io(error)) => hung_up(error),
        Cause::Engine(EngineError(EngineFault::Closed))
        | Cause::Control(MessageError(ControlFault::Wire(Fault::Truncated { .. })))
        | Cause::Transport(
            TransportCause::Wire(Fault::Truncated { .. })
            | TransportCause::Round(RoundFault::OpenRound | RoundFault::MissingSync { .. }),
        ) => true,
        _ => false,
    }
}

/// The name of a message, for one that is out of turn.
pub(crate) fn out_of_turn(message: &Message, wanted: &'static str) -> Cause {
    let found = match message {
        Message::Hello(_) => "a hello",
        Message::Accepted(_) => "an acceptance",
        Message::Refused(_) => "a refusal",
        Message::Blocks(_) => "a list of RAM blocks",
        Message::RoundMark(_) => "the end of a round",
        Message::DeviceState(_) => "device state",
        Message::Completion(_) => "the completion",
        Message::Start => "the start",
        Message::Ack(_) => "another acknowledgement",
        Message::Failure(_) => "a failure",
    };
    EngineFault::OutOfTurn { found, wanted }.into()
}

/// Returns whether a read only timed out or was interrupted, so that the caller checks its watch
/// and reads again.
fn is_tick(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MAX_PIECE_LEN;
    use std::os::unix::net::UnixStream;

    /// Two ends, of which the first cannot send much that the second has not read.
    fn pair() -> (Stream, Stream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
        (Stream::from(ours), Stream::from(theirs))
    }

    fn failed() -> Failure {
        Failure {
            channel: Channel::Main,
            leg: crate::failure::Leg::Source,
            block: None,
            cause: TransportCause::Cancelled.into(),
        }
    }

    fn rest_of(stream: &Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        (&mut &*stream).read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// If both ends are of the same make, the beginning of one message and the whole of another can
    /// make a third.
    #[test]
    fn nothing_follows_the_beginning_of_a_message() {
        let (ours, theirs) = pair();
        let mut link = ControlLink::new(&ours, Limits::default()).unwrap();
        let piece = Message::DeviceState(vec![7; MAX_PIECE_LEN]);
        let mut whole = Vec::new();
        piece.encode(&mut whole).unwrap();
        // As many as the peer's buffer takes, and a part of the one after them.
        let mut sent = 0;
        let given_up = || Err(TransportCause::Cancelled.into());
        while link.send(&piece, &given_up).is_ok() {
            sent += 1;
        }
        let written = usize::try_from(link.bytes_out()).unwrap();
        assert!(written > sent * whole.len(), "a part of a message");
        // The peer reads on, so that there is room again.
        theirs.set_read_timeout(Some(TICK)).unwrap();
        let mut got = Vec::new();
        let mut piece = vec![0; 1 << 20];
        while let Ok(count @ 1..) = theirs.read_some(&mut piece) {
            got.extend_from_slice(&piece[..count]);
        }
        assert_eq!(got.len(), written);
        link.explained(failed());
        let start = link.send(&Message::Start, &|| Ok(()));
        assert!(matches!(
            start,
            Err(Cause::Engine(EngineError(EngineFault::Closed)))
        ));
        assert_eq!(usize::try_from(link.bytes_out()).unwrap(), written);
        drop(ours);
        assert!(rest_of(&theirs).is_empty(), "nothing came behind it");
        // Whole messages came, and the beginning of one.
        let (messages, beginning) = got.split_at(sent * whole.len());
        assert!(messages.chunks(whole.len()).all(|message| message == whole));
        assert!(whole.starts_with(beginning) && !beginning.is_empty());
    }

    #[test]
    fn a_message_of_which_nothing_was_written_leaves_the_link_as_it_was() {
        let (ours, theirs) = pair();
        let mut link = ControlLink::new(&ours, Limits::default()).unwrap();
        // The peer takes nothing more.
        let mut filled = 0;
        while let Ok(count @ 1..) = (&ours).write(&[0; 4096]) {
            filled += count;
        }
        let given_up = || Err(TransportCause::Cancelled.into());
        assert!(link.send(&Message::Start, &given_up).is_err());
        assert_eq!(link.bytes_out(), 0);
        (&theirs).read_exact(&mut vec![0; filled]).unwrap();
        link.explained(failed());
        drop(ours);
        let said = String::from_utf8_lossy(&rest_of(&theirs)).into_owned();
        assert!(said.contains("cancelled"), "{said}");
    }
}
