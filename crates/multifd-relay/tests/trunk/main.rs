//! The protocol between two relays: its bytes, and what is refused.

mod frames;
mod handshake;
mod lies;
mod memory;

use multifd_relay::trunk::{
    Abilities, Compression, Connection, Digest, Extension, FailureNotice, Frame, FrameFault,
    FrameReader, Name, Offers, Preface, Versions,
};
use multifd_wire::Method;
use testkit::allocations::Counting;
use testkit::wire::events;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn abilities() -> Abilities {
    Abilities {
        methods: vec![Method::Zstd, Method::Zlib, Method::None],
        digests: vec![Digest::Xxh3, Digest::None],
        compressions: vec![Compression::Zstd, Compression::None],
        extensions: Vec::new(),
    }
}

fn preface() -> Preface {
    Preface {
        versions: Versions::OURS,
        migration: [0x11; 16],
        process: [0x22; 16],
        name: Name::new("vm-1").unwrap(),
        connection: Connection::Main {
            has_channels: true,
            may_be_postcopy: false,
            is_recovery: false,
        },
        offers: Offers::of(&abilities()),
        extensions: Vec::new(),
    }
}

fn extension(id: u16, bytes: &[u8]) -> Extension {
    let bytes = bytes.into();
    Extension { id, bytes }
}

/// A frame with contents of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Received {
    Data(Vec<u8>),
    End,
    Failure(FailureNotice),
    Alive,
    Begun,
    Note(Vec<u8>),
}

impl From<Frame<'_>> for Received {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Data(bytes) => Self::Data(bytes.into()),
            Frame::End => Self::End,
            Frame::Failure(failure) => Self::Failure(failure),
            Frame::Alive => Self::Alive,
            Frame::Begun => Self::Begun,
            Frame::Note(note) => Self::Note(note.into()),
        }
    }
}

/// The frames in `bytes` given in pieces of the lengths `cut`, and how they ended.
fn received(
    mut reader: FrameReader,
    bytes: &[u8],
    cut: &[usize],
) -> (Vec<Received>, Result<(), FrameFault>) {
    let (frames, outcome) = events(bytes, cut, |piece| {
        Ok(reader.push(piece)?.map(Received::from))
    });
    (frames, outcome.and_then(|()| reader.finish()))
}

/// The same by the other way: each read lands in the reader, no longer than `most` bytes.
fn received_in_place(
    mut reader: FrameReader,
    mut bytes: &[u8],
    most: usize,
) -> (Vec<Received>, Result<(), FrameFault>) {
    let mut frames = Vec::new();
    while !bytes.is_empty() && reader.wanted() != 0 {
        let space = reader.space();
        assert!(!space.is_empty());
        let len = space.len().min(most).min(bytes.len());
        let (taken, rest) = bytes.split_at(len);
        space[..len].copy_from_slice(taken);
        bytes = rest;
        match reader.filled(len) {
            Ok(frame) => frames.extend(frame.map(Received::from)),
            Err(fault) => return (frames, Err(fault)),
        }
    }
    if !bytes.is_empty() {
        return (frames, Err(FrameFault::AfterEnd));
    }
    (frames, reader.finish())
}
