//! The return path: the destination's answers on the main connection, if the source has requested
//! them.
//!
//! It begins with [`OpenReturnPath`](crate::main_stream::Command::OpenReturnPath). Without that
//! command the destination sends nothing.

use alloc::vec::Vec;

use crate::fault::Fault;
use crate::idstr::{BlockName, IdStr};
use crate::reader::{Carry, Reader, Stop};

/// A message from the destination to the source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// The last message: the destination has loaded everything (0) or failed (any other number).
    /// After a failure the source's guest continues.
    Shut(u32),
    /// Answers a ping with its value.
    Pong(u32),
    /// Postcopy: requests pages of a block.
    RequestPagesOf {
        /// The block.
        block: BlockName,
        /// Offset in the block, in bytes.
        start: u64,
        /// Bytes requested.
        len: u32,
    },
    /// Postcopy: requests pages of the block requested before.
    RequestPages {
        /// Offset in the block, in bytes.
        start: u64,
        /// Bytes requested.
        len: u32,
    },
    /// Postcopy recovery: a bitmap of the pages received follows, outside the message. A
    /// [`ReturnPathReceiver`] skips it.
    ReceivedBitmap {
        /// The block.
        block: BlockName,
    },
    /// Postcopy recovery: answers the request to resume.
    ResumeAck(u32),
    /// The destination is ready for the guest's stop. With capability `switchover-ack`, QEMU 8.1
    /// and later.
    SwitchoverAck,
}

impl Message {
    /// Appends the message's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        let message = match self {
            Self::Shut(value) => {
                payload.extend_from_slice(&value.to_be_bytes());
                SHUT
            }
            Self::Pong(value) => {
                payload.extend_from_slice(&value.to_be_bytes());
                PONG
            }
            Self::ResumeAck(value) => {
                payload.extend_from_slice(&value.to_be_bytes());
                RESUME_ACK
            }
            Self::SwitchoverAck => SWITCHOVER_ACK,
            Self::RequestPagesOf { block, start, len } => {
                payload.extend_from_slice(&start.to_be_bytes());
                payload.extend_from_slice(&len.to_be_bytes());
                block.put_counted(&mut payload);
                REQUEST_PAGES_OF
            }
            Self::RequestPages { start, len } => {
                payload.extend_from_slice(&start.to_be_bytes());
                payload.extend_from_slice(&len.to_be_bytes());
                REQUEST_PAGES
            }
            Self::ReceivedBitmap { block } => {
                block.put_counted(&mut payload);
                RECEIVED_BITMAP
            }
        };
        out.extend_from_slice(&message.to_be_bytes());
        // The longest payload is a name of 255 bytes and 13 more.
        out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        out.extend_from_slice(&payload);
    }
}

/// Parses the return path. Like [`ChannelReceiver`](crate::ChannelReceiver) it does no IO and takes
/// bytes in any cut.
#[derive(Debug, Default)]
pub struct ReturnPathReceiver {
    carry: Carry,
    state: State,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Message,
    /// At the length of a bitmap, after the message that announces it.
    BitmapLength,
    Bitmap {
        remaining: u64,
    },
    BitmapEnd,
    Failed(Fault),
}

impl ReturnPathReceiver {
    /// Makes a machine at the start of a return path.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes it can use from the front of `input`, up to the next message. Returns `None`
    /// if all of `input` is used and more is needed.
    ///
    /// # Errors
    /// If a type is unknown or a length does not fit it; QEMU itself would fail too. The machine
    /// stays at that fault.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Message>, Fault> {
        let state = &mut self.state;
        let outcome = self.carry.drive(input, |reader| state.step(reader));
        if let Err(fault) = outcome {
            self.state = State::Failed(fault);
        }
        outcome
    }

    /// Returns whether the stream may end here: after any complete message.
    ///
    /// # Errors
    /// [`Fault::Truncated`] in the middle of a message; the fault itself after one.
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

impl State {
    fn step(&mut self, reader: &mut Reader<'_>) -> Result<Option<Message>, Stop> {
        match *self {
            Self::Message => {
                let message = message(reader)?;
                if matches!(message, Message::ReceivedBitmap { .. }) {
                    *self = Self::BitmapLength;
                }
                return Ok(Some(message));
            }
            Self::BitmapLength => {
                *self = Self::Bitmap {
                    remaining: reader.be64()?,
                };
            }
            Self::Bitmap { remaining: 0 } => *self = Self::BitmapEnd,
            Self::Bitmap { remaining } => {
                let crossed = reader.take_some(remaining)?.len() as u64;
                *self = Self::Bitmap {
                    remaining: remaining.saturating_sub(crossed),
                };
            }
            Self::BitmapEnd => {
                let found = reader.be64()?;
                if found != BITMAP_END {
                    let allowed = BITMAP_END;
                    return Err(Fault::BitmapEnd { found, allowed }.into());
                }
                *self = Self::Message;
            }
            Self::Failed(fault) => return Err(fault.into()),
        }
        Ok(None)
    }
}

fn message(reader: &mut Reader<'_>) -> Result<Message, Stop> {
    let message = reader.be16()?;
    let found = reader.be16()?;
    let wrong_length = Fault::MessageLength { message, found };
    if found > MAX_PAYLOAD_LEN {
        return Err(wrong_length.into());
    }
    let mut payload = Reader::new(reader.take(usize::from(found))?);
    // Bytes missing within the stated length never arrive.
    let message = payload_of(message, &mut payload).map_err(|stop| match stop {
        Stop::More(_) => wrong_length,
        Stop::Fault(fault) => fault,
    })?;
    if !payload.rest().is_empty() {
        return Err(wrong_length.into());
    }
    Ok(message)
}

fn payload_of(message: u16, payload: &mut Reader<'_>) -> Result<Message, Stop> {
    Ok(match message {
        SHUT => Message::Shut(payload.be32()?),
        PONG => Message::Pong(payload.be32()?),
        REQUEST_PAGES_OF => {
            let (start, len) = (payload.be64()?, payload.be32()?);
            let block = IdStr::take_counted(payload)?;
            Message::RequestPagesOf { block, start, len }
        }
        REQUEST_PAGES => Message::RequestPages {
            start: payload.be64()?,
            len: payload.be32()?,
        },
        RECEIVED_BITMAP => Message::ReceivedBitmap {
            block: IdStr::take_counted(payload)?,
        },
        RESUME_ACK => Message::ResumeAck(payload.be32()?),
        SWITCHOVER_ACK => Message::SwitchoverAck,
        found => return Err(Fault::MessageType { found }.into()),
    })
}

// The types of messages.
const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQUEST_PAGES_OF: u16 = 3;
const REQUEST_PAGES: u16 = 4;
const RECEIVED_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
/// QEMU 8.1 and later.
const SWITCHOVER_ACK: u16 = 7;

/// The longest payload that a source accepts (observed in QEMU 10.0).
const MAX_PAYLOAD_LEN: u16 = 512;
/// The word after a bitmap.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;
