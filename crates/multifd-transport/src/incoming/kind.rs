//! The kind of a connection, from its first bytes. The bytes stay in the socket.

use std::io;

use multifd_wire::{Hello, main_stream};

use crate::Stream;

/// The first word that a source engine sends on its main connection: "MFDC". This crate does not
/// read further.
pub const ENGINE_MAGIC: u32 = 0x4d46_4443;

const MAIN_MAGIC: [u8; 4] = main_stream::MAGIC.to_be_bytes();
const CHANNEL_MAGIC: [u8; 4] = multifd_wire::MAGIC.to_be_bytes();
const ENGINE_START: [u8; 4] = ENGINE_MAGIC.to_be_bytes();
/// The record type and major version which every TLS connection begins with (RFC 8446 section 5.1).
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];
/// A command of the main stream. Only a postcopy migration that goes on after a break begins with
/// one.
const COMMAND: [u8; 2] = [0x08, 0x00];

/// The kind of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It has sent nothing so far.
    Silent,
    /// It has sent too few bytes to tell.
    Partial,
    /// The main channel of a QEMU.
    Main,
    /// The main connection of a source engine.
    Engine,
    /// A multifd channel whose hello is complete.
    Channel([u8; Hello::LEN]),
    /// The main channel of a postcopy migration that goes on after a break.
    Recovery,
    /// A TLS handshake, with its first four bytes.
    Tls([u8; 4]),
    /// Another kind, with its first four bytes.
    Unmarked([u8; 4]),
    /// The peer has closed it before it sent enough.
    Closed,
}

/// Looks at the first bytes, without waiting.
pub(super) fn kind(stream: &Stream) -> io::Result<Kind> {
    let mut start = [0; Hello::LEN];
    let count = match stream.peek(&mut start) {
        Ok(0) => return Ok(Kind::Closed),
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Kind::Silent),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Kind::Partial),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Kind::Closed),
        Err(error) => return Err(error),
    };
    let Some(said) = start.first_chunk::<4>().filter(|_| count >= 4) else {
        return Ok(more_or_closed(stream));
    };
    Ok(match *said {
        MAIN_MAGIC => Kind::Main,
        ENGINE_START => Kind::Engine,
        CHANNEL_MAGIC if count == Hello::LEN => Kind::Channel(start),
        CHANNEL_MAGIC => more_or_closed(stream),
        _ if said.starts_with(&TLS_HANDSHAKE) => Kind::Tls(*said),
        _ if said.starts_with(&COMMAND) => Kind::Recovery,
        other => Kind::Unmarked(other),
    })
}

fn more_or_closed(stream: &Stream) -> Kind {
    match stream.peer_has_closed() {
        true => Kind::Closed,
        false => Kind::Partial,
    }
}
