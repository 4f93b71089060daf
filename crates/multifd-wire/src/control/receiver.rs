//! Takes one direction of a control connection apart.

use super::body::{self, HEADER_LEN};
use super::{Message, Preamble};
use crate::fault::Fault;
use crate::limits::Limits;
use crate::reader::{Carry, Reader, Stop};

/// What comes next on a control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first: the versions that the peer speaks. When they have nothing in common with ours, what
    /// follows cannot be read.
    Preamble(Preamble),
    /// A message. Whether it is its turn is for the caller to say.
    Message(Message),
}

/// The receiving machine of a control connection. Like [`ChannelReceiver`](crate::ChannelReceiver)
/// it does no IO and takes bytes in any cut.
///
/// It holds one message at most, whose length was compared with the limit of its kind before.
#[derive(Debug)]
pub struct ControlReceiver {
    carry: Carry,
    limits: Limits,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Preamble,
    Message,
    Failed(Fault),
}

impl ControlReceiver {
    /// A machine at the beginning of a connection. Of the limits, those on blocks count.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            carry: Carry::default(),
            limits,
            state: State::Preamble,
        }
    }

    /// Takes what it can use from the front of `input`, up to the next event. `None`: all of
    /// `input` is used and more is needed.
    ///
    /// # Errors
    /// When the bytes are no preamble or no message of the version spoken. The machine stays at that
    /// fault.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Event>, Fault> {
        let (state, limits) = (&mut self.state, &self.limits);
        let outcome = self
            .carry
            .drive(input, |reader| step(state, reader, limits));
        if let Err(fault) = outcome {
            self.state = State::Failed(fault);
        }
        outcome
    }

    /// Says whether the connection may end here: after any whole message.
    ///
    /// # Errors
    /// [`Fault::Truncated`] in the middle of one or before the first; the fault itself after one.
    pub fn finish(&self) -> Result<(), Fault> {
        match self.state {
            State::Failed(fault) => Err(fault),
            State::Message if self.carry.bytes().is_empty() => Ok(()),
            _ => Err(Fault::Truncated {
                missing: self.carry.missing(),
            }),
        }
    }
}

fn step(
    state: &mut State,
    reader: &mut Reader<'_>,
    limits: &Limits,
) -> Result<Option<Event>, Stop> {
    match *state {
        State::Failed(fault) => Err(fault.into()),
        State::Preamble => {
            let preamble = Preamble::parse(&reader.chunk::<{ Preamble::LEN }>()?)?;
            *state = State::Message;
            Ok(Some(Event::Preamble(preamble)))
        }
        State::Message => {
            let mut header = Reader::new(reader.take(HEADER_LEN)?);
            let kind = header.be16()?;
            let len = header.be32()? as usize;
            body::check_length(kind, len, limits)?;
            let message = body::parse(kind, reader.take(len)?, limits)?;
            Ok(Some(Event::Message(message)))
        }
    }
}
