//! The bodies of messages: between the checked types and what postcard writes.

use multifd_wire::{BlockName, Fault, IdStr, Limits, PageSize};
use serde::{Deserialize, Serialize};

use super::{
    Accepted, Acked, Block, Capabilities, Completion, ControlFault, Hello, MAX_CHANNELS,
    MAX_PIECE_LEN, MAX_REASON_LEN, Message,
};

/// The longest body that a message of `kind` may have.
pub(super) fn limit(kind: u16, limits: &Limits) -> Result<usize, ControlFault> {
    Ok(match kind {
        HELLO | ACCEPTED | ROUND_MARK | COMPLETION | START | ACK => MAX_PLAIN_LEN,
        REFUSED | FAILURE => MAX_REASON_LEN.saturating_add(MAX_VARINT_LEN),
        BLOCKS => limits.blocks.saturating_mul(MAX_BLOCK_LEN),
        DEVICE_STATE => MAX_PIECE_LEN.saturating_add(MAX_VARINT_LEN),
        found => return Err(ControlFault::Kind { found }),
    })
}

/// Takes a body apart.
pub(super) fn parse(kind: u16, body: &[u8], limits: &Limits) -> Result<Message, ControlFault> {
    Ok(match kind {
        HELLO => {
            let raw: RawHello = whole(kind, body)?;
            let found = raw.page_bytes;
            Message::Hello(Hello {
                capabilities: Capabilities::from_bits(raw.capabilities),
                vm: raw.vm,
                session: raw.session,
                page_size: PageSize::new(found).map_err(|_| ControlFault::PageBytes { found })?,
                channels: check_channels(raw.channels)?,
                method_bits: raw.method_bits,
            })
        }
        ACCEPTED => {
            let raw: RawAccepted = whole(kind, body)?;
            Message::Accepted(Accepted {
                capabilities: Capabilities::from_bits(raw.capabilities),
                channels: check_channels(raw.channels)?,
            })
        }
        REFUSED => Message::Refused(words(kind, body)?),
        BLOCKS => Message::Blocks(blocks(body, limits)?),
        ROUND_MARK => Message::RoundMark(whole(kind, body)?),
        DEVICE_STATE => {
            let piece: &[u8] = whole(kind, body)?;
            Message::DeviceState(piece.into())
        }
        COMPLETION => {
            let raw: RawCompletion = whole(kind, body)?;
            Message::Completion(Completion {
                device_state_bytes: raw.device_state_bytes,
                digest: raw.digest,
            })
        }
        START => {
            let () = whole(kind, body)?;
            Message::Start
        }
        ACK => Message::Ack(match whole(kind, body)? {
            RawAcked::Blocks => Acked::Blocks,
            RawAcked::Round(round) => Acked::Round(round),
            RawAcked::Completion => Acked::Completion,
            RawAcked::Start => Acked::Start,
        }),
        FAILURE => Message::Failure(words(kind, body)?),
        found => return Err(ControlFault::Kind { found }),
    })
}

/// Appends a whole message, or nothing.
pub(super) fn write(message: &Message, out: &mut Vec<u8>) -> Result<(), ControlFault> {
    let start = out.len();
    let outcome = write_at(message, start, out);
    if outcome.is_err() {
        out.truncate(start);
    }
    outcome
}

fn write_at(message: &Message, start: usize, out: &mut Vec<u8>) -> Result<(), ControlFault> {
    out.extend_from_slice(&[0; HEADER_LEN]);
    let kind = match message {
        Message::Hello(hello) => {
            let raw = RawHello {
                capabilities: hello.capabilities.bits(),
                vm: hello.vm,
                session: hello.session,
                // At most 64 KiB.
                page_bytes: hello.page_size.bytes() as u32,
                channels: check_channels(hello.channels)?,
                method_bits: hello.method_bits,
            };
            put(HELLO, &raw, out)
        }
        Message::Accepted(accepted) => {
            let raw = RawAccepted {
                capabilities: accepted.capabilities.bits(),
                channels: check_channels(accepted.channels)?,
            };
            put(ACCEPTED, &raw, out)
        }
        Message::Refused(words) => put(REFUSED, words.as_str(), out),
        Message::Blocks(blocks) => {
            check_blocks(blocks)?;
            for block in blocks {
                let raw = RawBlock {
                    name: block.name.as_bytes(),
                    len_bytes: block.len_bytes,
                };
                put(BLOCKS, &raw, out)?;
            }
            Ok(BLOCKS)
        }
        Message::RoundMark(round) => put(ROUND_MARK, round, out),
        Message::DeviceState(piece) => put(DEVICE_STATE, piece.as_slice(), out),
        Message::Completion(completion) => {
            let raw = RawCompletion {
                device_state_bytes: completion.device_state_bytes,
                digest: completion.digest,
            };
            put(COMPLETION, &raw, out)
        }
        Message::Start => Ok(START),
        Message::Ack(acked) => {
            let raw = match *acked {
                Acked::Blocks => RawAcked::Blocks,
                Acked::Round(round) => RawAcked::Round(round),
                Acked::Completion => RawAcked::Completion,
                Acked::Start => RawAcked::Start,
            };
            put(ACK, &raw, out)
        }
        Message::Failure(words) => put(FAILURE, words.as_str(), out),
    }?;
    let len = out.len().saturating_sub(start).saturating_sub(HEADER_LEN);
    check_length(kind, len, &Limits::default())?;
    if let Some(header) = out.get_mut(start..) {
        let [k0, k1] = kind.to_be_bytes();
        // No body is allowed to be longer than a few megabytes.
        let [l0, l1, l2, l3] = (len as u32).to_be_bytes();
        let header_bytes = [k0, k1, l0, l1, l2, l3];
        for (to, from) in header.iter_mut().zip(header_bytes) {
            *to = from;
        }
    }
    Ok(())
}

/// Compares a body's length with what its kind may have.
pub(super) fn check_length(kind: u16, found: usize, limits: &Limits) -> Result<(), ControlFault> {
    let allowed = limit(kind, limits)?;
    match found <= allowed {
        true => Ok(()),
        false => Err(ControlFault::Length {
            kind,
            found,
            allowed,
        }),
    }
}

/// One value which fills the body.
fn whole<'a, T: Deserialize<'a>>(kind: u16, body: &'a [u8]) -> Result<T, ControlFault> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(ControlFault::Body { kind }),
    }
}

fn words(kind: u16, body: &[u8]) -> Result<String, ControlFault> {
    let words: &str = whole(kind, body)?;
    Ok(words.into())
}

/// The blocks stand one after the other and fill the body; no number says how many there are.
fn blocks(mut body: &[u8], limits: &Limits) -> Result<Vec<Block>, ControlFault> {
    let mut blocks = Vec::new();
    while !body.is_empty() {
        let (raw, rest): (RawBlock<'_>, _) =
            postcard::take_from_bytes(body).map_err(|_| ControlFault::Body { kind: BLOCKS })?;
        if blocks.len() >= limits.blocks {
            let allowed = limits.blocks;
            return Err(Fault::Blocks { allowed }.into());
        }
        if raw.len_bytes > limits.block_bytes {
            return Err(Fault::BlockLength {
                found: raw.len_bytes,
                allowed: limits.block_bytes,
            }
            .into());
        }
        if raw.name.len() > IdStr::MAX_LEN {
            return Err(Fault::NameLength {
                found: raw.name.len(),
                allowed: IdStr::MAX_LEN,
            }
            .into());
        }
        blocks.push(Block {
            // The length is right, so what is wrong is a NUL inside.
            name: BlockName::new(raw.name).map_err(|_| Fault::UnterminatedName)?,
            len_bytes: raw.len_bytes,
        });
        body = rest;
    }
    check_blocks(&blocks)?;
    Ok(blocks)
}

/// Every block has a name, and no two the same.
fn check_blocks(blocks: &[Block]) -> Result<(), ControlFault> {
    let mut names: Vec<(&[u8], usize)> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        if block.name.is_empty() {
            return Err(Fault::EmptyName.into());
        }
        names.push((block.name.as_bytes(), index));
    }
    names.sort_unstable();
    let twice = names.array_windows().find(|[(a, _), (b, _)]| a == b);
    match twice {
        Some(&[_, (_, index)]) => Err(Fault::BlockRepeated { index }.into()),
        None => Ok(()),
    }
}

fn check_channels(found: u16) -> Result<u16, ControlFault> {
    match found {
        1..=MAX_CHANNELS => Ok(found),
        _ => Err(ControlFault::Channels {
            found,
            allowed: MAX_CHANNELS,
        }),
    }
}

/// Appends `value` and answers its kind.
fn put<T: Serialize + ?Sized>(
    kind: u16,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<u16, ControlFault> {
    postcard::to_extend(value, Appending(out))
        .map(|_| kind)
        .map_err(|_| ControlFault::Body { kind })
}

/// The buffer that postcard writes to: it takes its output by value.
struct Appending<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appending<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

#[derive(Serialize, Deserialize)]
struct RawHello {
    capabilities: u64,
    vm: [u8; 16],
    session: [u8; 16],
    page_bytes: u32,
    channels: u16,
    method_bits: u32,
}

#[derive(Serialize, Deserialize)]
struct RawAccepted {
    capabilities: u64,
    channels: u16,
}

#[derive(Serialize, Deserialize)]
struct RawBlock<'a> {
    name: &'a [u8],
    len_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct RawCompletion {
    device_state_bytes: u64,
    digest: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
enum RawAcked {
    Blocks,
    Round(u64),
    Completion,
    Start,
}

/// Bytes of a message's kind and length.
pub(super) const HEADER_LEN: usize = 6;

// The kinds of messages.
const HELLO: u16 = 1;
const ACCEPTED: u16 = 2;
const REFUSED: u16 = 3;
const BLOCKS: u16 = 4;
const ROUND_MARK: u16 = 5;
const DEVICE_STATE: u16 = 6;
const COMPLETION: u16 = 7;
const START: u16 = 8;
const ACK: u16 = 9;
const FAILURE: u16 = 10;

/// Postcard writes 7 bits of a number in a byte.
const MAX_VARINT_LEN: usize = 10;
/// The longest body of a message without a list or a text in it; the hello's is the longest.
const MAX_PLAIN_LEN: usize = 16 + 16 + 4 * MAX_VARINT_LEN;
/// The longest entry of a list of blocks.
const MAX_BLOCK_LEN: usize = IdStr::MAX_LEN + 2 * MAX_VARINT_LEN;
