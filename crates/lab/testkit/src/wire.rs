//! Streams for tests of the wire format: cut into pieces, taken apart, read from `testdata/wire`.

use std::fs;
use std::path::Path;

use multifd_wire::main_stream::{MainEvent, MainReceiver};
use multifd_wire::{ChannelReceiver, Event, Fault, Hello, Limits, Packet};

/// Ways to cut a stream: lengths of pieces, over and over.
pub const CUTS: &[&[usize]] = &[
    &[1],
    &[7],
    &[1, 0, 63, 2],
    &[12],
    &[308, 1024, 1],
    &[4096],
    &[65537],
];

/// An event with its contents, pieces joined.
#[derive(Debug, Clone, PartialEq)]
pub enum Joined {
    /// The hello.
    Hello(Hello),
    /// A header.
    Packet(Box<Packet>),
    /// So many unused entries of a table.
    Padding(usize),
    /// A payload, or what there is of it.
    Payload(Vec<u8>),
}

/// The events of a channel given in pieces of the lengths `cut`, and how it ended.
pub fn channel_events(bytes: &[u8], cut: &[usize]) -> (Vec<Joined>, Result<(), Fault>) {
    let mut receiver = ChannelReceiver::new(Limits::default());
    let mut events = Vec::new();
    for mut piece in pieces(bytes, cut) {
        loop {
            match receiver.push(&mut piece) {
                Ok(Some(event)) => join(&mut events, event),
                Ok(None) => break,
                Err(fault) => return (events, Err(fault)),
            }
        }
        assert!(piece.is_empty(), "a machine without an event has used all");
    }
    (events, receiver.finish())
}

fn join(events: &mut Vec<Joined>, event: Event<'_>) {
    match (events.last_mut(), event) {
        (Some(Joined::Payload(joined)), Event::Payload(piece)) => joined.extend_from_slice(piece),
        (Some(Joined::Padding(joined)), Event::Padding { entries }) => *joined += entries,
        (_, Event::Hello(hello)) => events.push(Joined::Hello(hello)),
        (_, Event::Packet(packet)) => events.push(Joined::Packet(Box::new(packet))),
        (_, Event::Padding { entries }) => events.push(Joined::Padding(entries)),
        (_, Event::Payload(piece)) => events.push(Joined::Payload(piece.to_vec())),
    }
}

/// The events of a main stream given in pieces of the lengths `cut`, and how it ended.
pub fn main_events(bytes: &[u8], cut: &[usize]) -> (Vec<MainEvent>, Result<(), Fault>) {
    let mut receiver = MainReceiver::new(Limits::default());
    let (events, outcome) = events(bytes, cut, |piece| receiver.push(piece));
    (events, outcome.and_then(|()| receiver.finish()))
}

/// What a receiver's `push` makes of bytes that come in pieces of the lengths `cut`, up to its
/// first fault.
pub fn events<E, F>(
    bytes: &[u8],
    cut: &[usize],
    mut push: impl FnMut(&mut &[u8]) -> Result<Option<E>, F>,
) -> (Vec<E>, Result<(), F>) {
    let mut events = Vec::new();
    for mut piece in pieces(bytes, cut) {
        loop {
            match push(&mut piece) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(fault) => return (events, Err(fault)),
            }
        }
    }
    (events, Ok(()))
}

/// `bytes` in pieces of the lengths `cut`, over and over.
pub fn pieces<'a>(mut bytes: &'a [u8], cut: &[usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = cut.iter().cycle();
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let len = lengths
            .next()
            .map_or(bytes.len(), |&len| len.min(bytes.len()));
        let (piece, rest) = bytes.split_at(len);
        bytes = rest;
        Some(piece)
    })
}

/// The bytes of a vector in `testdata/wire`, whose README says how they are written.
pub fn vector(name: &str) -> Vec<u8> {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut folders = above.map(|folder| folder.join("testdata/wire"));
    let folder = folders
        .find(|folder| folder.exists())
        .expect("a folder of vectors");
    let text =
        fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    text.lines().flat_map(vector_line).collect()
}

fn vector_line(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (token, after) = if let Some(quoted) = rest.strip_prefix('"') {
            let (text, after) = quoted.split_once('"').expect("a closing quote");
            bytes.extend_from_slice(text.as_bytes());
            ("", after)
        } else {
            rest.split_once(' ').unwrap_or((rest, ""))
        };
        let (hex, count) = token.split_once('*').unwrap_or((token, "1"));
        let digits = hex.as_bytes().chunks(2);
        let run: Vec<u8> = digits
            .map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap())
            .collect();
        bytes.extend(run.repeat(count.parse().unwrap()));
        rest = after.trim_start();
    }
    bytes
}
