//! The main connection between two engines: messages out and in, with an eye on who wants the migration to end.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use multifd_wire::control::{self, ControlReceiver, Event, Message, Preamble};
use multifd_wire::{Fault, Limits};

use crate::engine_fault::EngineFault;
use crate::failure::{Cause, Channel};
use crate::stream::hung_up;
use crate::{Failure, RoundFault, Stream};

/// How soon a wish to end is noticed while a peer is waited for.
const TICK: Duration = Duration::from_millis(20);

/// How long a peer that has closed its channels may take to say why on the main connection.
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

    /// The migration has failed here: finds out whether the peer gave up first, and if not tells it why this end does.
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
        self.outgoing.clear();
        let message = Message::Failure(control::reason(&failure.explain()));
        // Whoever does not take it learns from the closed connection that it is over.
        let _ = self.send(&message, &|| Err(EngineFault::Closed.into()));
        failure
    }

    /// What a peer that has hung up on a channel says of it here, if it says anything.
    fn last_words(&mut self) -> Option<Cause> {
        let deadline = Instant::now() + LAST_WORDS;
        let watch = || match Instant::now() < deadline {
            true => Ok(()),
            false => Err(EngineFault::Closed.into()),
        };
        loop {
            match self.receive(&watch) {
                Ok(_) => {}
                Err(cause @ Cause::Engine(EngineFault::Peer { .. })) => return Some(cause),
                Err(_) => return None,
            }
        }
    }

    fn write(&mut self, watch: &dyn Fn() -> Result<(), Cause>) -> Result<(), Cause> {
        let mut rest = self.outgoing.as_slice();
        while !rest.is_empty() {
            match (&mut &*self.stream).write(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if is_tick(&error) => watch()?,
                Err(error) => return Err(error.into()),
            }
        }
        self.bytes_out += self.outgoing.len() as u64;
        self.outgoing.clear();
        Ok(())
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

/// Whether this is what a peer's giving up looks like on its other connections, which it may close first.
pub(crate) fn is_broken_off(cause: &Cause) -> bool {
    match cause {
        Cause::Io(error) => hung_up(error),
        Cause::Engine(EngineFault::Closed)
        | Cause::Wire(Fault::Truncated { .. })
        | Cause::Round(RoundFault::OpenRound | RoundFault::MissingSync { .. }) => true,
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
        _ => "another message",
    };
    EngineFault::OutOfTurn { found, wanted }.into()
}

/// Nothing has happened for a while; or a signal has, which is nothing either.
fn is_tick(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
