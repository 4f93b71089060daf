//! Takes one direction of a control connection apart.

use multifd_wire::{Fault, Limits};

use super::body::{self, HEADER_LEN};
use super::{ControlFault, Message, Preamble};

/// The next item of a control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "a stream has a preamble and messages"
)]
pub enum Event {
    /// The first: the versions that the peer speaks. When they have nothing in common with ours,
    /// what follows cannot be read.
    Preamble(Preamble),
    /// A message. Whether it is its turn is for the caller to say.
    Message(Message),
}

/// The receiving machine of a control connection. Like [`multifd_wire::ChannelReceiver`] it does no
/// IO and takes bytes in any cut.
///
/// It holds one message at most, whose length was compared with the limit of its kind before.
#[derive(Debug)]
pub struct ControlReceiver {
    /// The received bytes of the current preamble or message.
    held: Vec<u8>,
    limits: Limits,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Preamble,
    Header,
    /// The header has come. It states this kind and this length of the body.
    Body(u16, usize),
    Failed(ControlFault),
}

impl ControlReceiver {
    /// A machine at the beginning of a connection. Of the limits, those on blocks count.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            held: Vec::new(),
            limits,
            state: State::Preamble,
        }
    }

    /// Takes what it can use from the front of `input`, up to the next event. `None`: all of
    /// `input` is used and more is needed.
    ///
    /// # Errors
    /// When the bytes are no preamble or no message of the version spoken. The machine stays at
    /// that fault.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ControlFault> {
        let outcome = self.step(input);
        if let Err(fault) = outcome {
            self.state = State::Failed(fault);
        }
        outcome
    }

    /// Says whether the connection may end here: after any whole message.
    ///
    /// # Errors
    /// [`Fault::Truncated`] in the middle of one or before the first; the fault itself after one.
    pub fn finish(&self) -> Result<(), ControlFault> {
        match self.state {
            State::Failed(fault) => Err(fault),
            State::Header if self.held.is_empty() => Ok(()),
            _ => Err(Fault::Truncated {
                missing: self.wanted(),
            }
            .into()),
        }
    }

    /// Bytes that must be in hand for the next step.
    fn needed(&self) -> usize {
        match self.state {
            State::Preamble => Preamble::LEN,
            State::Header => HEADER_LEN,
            State::Body(_, len) => HEADER_LEN.saturating_add(len),
            State::Failed(_) => 0,
        }
    }

    fn wanted(&self) -> usize {
        self.needed().saturating_sub(self.held.len())
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ControlFault> {
        loop {
            let (taken, rest) = input
                .split_at_checked(self.wanted())
                .unwrap_or((*input, &[]));
            self.held.extend_from_slice(taken);
            *input = rest;
            if self.wanted() > 0 {
                return Ok(None);
            }
            match self.state {
                State::Failed(fault) => return Err(fault),
                State::Preamble => {
                    if let Some(bytes) = self.held.first_chunk() {
                        let preamble = Preamble::parse(bytes)?;
                        self.next();
                        return Ok(Some(Event::Preamble(preamble)));
                    }
                }
                State::Header => {
                    if let Some(&[k0, k1, l0, l1, l2, l3]) = self.held.first_chunk() {
                        let kind = u16::from_be_bytes([k0, k1]);
                        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
                        body::check_length(kind, len, &self.limits)?;
                        self.state = State::Body(kind, len);
                    }
                }
                State::Body(kind, _) => {
                    let bytes = self.held.get(HEADER_LEN..).unwrap_or_default();
                    let message = body::parse(kind, bytes, &self.limits)?;
                    self.next();
                    return Ok(Some(Event::Message(message)));
                }
            }
        }
    }

    /// Forgets the preamble or message in hand, and begins the next.
    fn next(&mut self) {
        self.held.clear();
        self.state = State::Header;
    }
}
