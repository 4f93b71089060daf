//! What the fuzz targets check: each function takes any bytes, and panics only when the code under
//! test is wrong. The seeds run through the same functions as plain tests.

mod acceptor;
mod canned;
mod codec;
mod delta;
mod inlet;
mod recording;
mod trunk;

pub use acceptor::acceptor;
pub use canned::canned;
pub use codec::{deflate, inflate};
pub use delta::delta;
pub use inlet::inlet;
use multifd_engine::control::{self, ControlFault, ControlReceiver};
use multifd_wire::main_stream::{MainEvent, MainReceiver};
use multifd_wire::return_path::{Message, ReturnPathReceiver};
use multifd_wire::{
    ChannelReceiver, ChannelSender, Event, Fault, Hello, Limits, Method, Packet, PageSize,
    RamPacket, lengths,
};
pub use recording::recording;
use testkit::allocations::{Counting, measure};
use testkit::wire::{Joined, channel_events, events, main_events, pieces};
pub use trunk::trunk;

/// Counts what the code under test allocates.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A hello that is taken is written again to the byte.
pub fn hello(data: &[u8]) {
    let Some(bytes) = data.first_chunk() else {
        return;
    };
    if let Ok(hello) = Hello::parse(bytes) {
        assert_eq!(hello.to_bytes(), *bytes);
    }
}

/// A packet that is taken keeps the rules of the format, is written again to the byte, and can be
/// given another payload.
pub fn packet(data: &[u8]) {
    let mut receiver = after_hello();
    let mut rest = data;
    if let Ok(Some(Event::Packet(packet))) = receiver.push(&mut rest) {
        let header = &data[..data.len() - rest.len()];
        assert_eq!(encoded(&packet), header);
        assert_eq!(receiver.payload_remaining(), packet.payload_len());
        if let Packet::Ram(packet) = packet {
            check_pages(&packet);
            check_set_payload(packet);
        }
    }
}

/// A channel gives the same events in every cut, and what was taken of it is written again to the
/// byte. Its machine keeps little, whatever the channel states.
///
/// The first bytes of `data` say how the rest is cut.
pub fn channel(data: &[u8]) {
    let Some((cut, stream)) = split_cut(data) else {
        return;
    };
    let whole = channel_events(stream, &[usize::MAX]);
    assert_eq!(channel_events(stream, &cut), whole);
    let (events, end) = whole;
    assert_eq!(channel_steps(stream), (events.len(), end));

    let rebuilt = rebuilt(&events);
    assert!(stream.starts_with(&rebuilt));
    assert!(end.is_err() || rebuilt.len() == stream.len());

    let (most, _) = measure(|| {
        let mut receiver = ChannelReceiver::new(Limits::default());
        for mut piece in pieces(stream, &cut) {
            while let Ok(Some(_)) = receiver.push(&mut piece) {}
        }
    });
    // The longest table twice: while it is gathered, and in the packet given out.
    assert!(most <= 16 << 10, "{most} bytes");
}

/// A main stream gives the same events in every cut, and all its pages lie in its blocks. What its
/// reader keeps grows with the list of blocks that really came, whatever the stream states.
///
/// The first bytes of `data` say how the rest is cut.
pub fn main_stream(data: &[u8]) {
    let Some((cut, stream)) = split_cut(data) else {
        return;
    };
    let whole = main_events(stream, &[usize::MAX]);
    assert_eq!(main_events(stream, &cut), whole);

    let mut blocks = Vec::new();
    for event in whole.0 {
        match event {
            MainEvent::RamBlocks(listed) => blocks = listed,
            MainEvent::ZeroPage { block, offset } | MainEvent::Page { block, offset } => {
                assert!(offset < blocks[block].used_length);
            }
            _ => {}
        }
    }

    let (most, _) = measure(|| {
        let mut receiver = MainReceiver::new(Limits::default());
        for mut piece in pieces(stream, &cut) {
            while let Ok(Some(_)) = receiver.push(&mut piece) {}
        }
    });
    // A block has at least 10 bytes in the stream and less than 300 in memory: there twice, in the
    // reader and in the event, in vectors which may be filled by half.
    assert!(
        most <= (16 << 10) + stream.len() / 10 * 4 * 300,
        "{most} bytes"
    );
}

/// A return path gives the same messages in every cut, and each is written again to the byte.
///
/// The first bytes of `data` say how the rest is cut.
pub fn return_path(data: &[u8]) {
    let Some((cut, stream)) = split_cut(data) else {
        return;
    };
    let whole = messages(stream, &[usize::MAX]);
    assert_eq!(messages(stream, &cut), whole);

    // Bitmaps stand between messages and are not given out.
    let has_bitmap = |message: &Message| matches!(message, Message::ReceivedBitmap { .. });
    let before_bitmap = whole.0.iter().take_while(|message| !has_bitmap(message));
    let mut rebuilt = Vec::new();
    before_bitmap.for_each(|message| message.encode(&mut rebuilt));
    assert!(stream.starts_with(&rebuilt));
}

/// A control connection gives the same messages in every cut, and what was taken of it can be
/// written and is the same when it is read again. Its machine keeps no more than came.
///
/// The first bytes of `data` say how the rest is cut.
pub fn control(data: &[u8]) {
    let Some((cut, stream)) = split_cut(data) else {
        return;
    };
    let whole = control_events(stream, &[usize::MAX]);
    assert_eq!(control_events(stream, &cut), whole);

    // Numbers may be written in more bytes than they need, so not to the byte.
    let mut rebuilt = Vec::new();
    for event in &whole.0 {
        match event {
            control::Event::Preamble(preamble) => rebuilt.extend(preamble.to_bytes()),
            control::Event::Message(message) => {
                message.encode(&mut rebuilt).expect("what was taken");
            }
        }
    }
    assert!(rebuilt.len() <= stream.len());
    if !whole.0.is_empty() {
        assert_eq!(control_events(&rebuilt, &[usize::MAX]), (whole.0, Ok(())));
    }

    let (most, _) = measure(|| {
        let mut receiver = ControlReceiver::new(Limits::default());
        for mut piece in pieces(stream, &cut) {
            while let Ok(Some(_)) = receiver.push(&mut piece) {}
        }
    });
    // A block has at least 3 bytes in the stream and less than 300 in memory, and stands in lists
    // that may be filled by half.
    assert!(
        most <= (4 << 10) + stream.len() / 3 * 4 * 300,
        "{most} bytes"
    );
}

/// The events of a control connection given in pieces of the lengths `cut`, and how it ended.
fn control_events(bytes: &[u8], cut: &[usize]) -> (Vec<control::Event>, Result<(), ControlFault>) {
    let mut receiver = ControlReceiver::new(Limits::default());
    let (events, outcome) = events(bytes, cut, |piece| receiver.push(piece));
    (events, outcome.and_then(|()| receiver.finish()))
}

/// A length table that is taken covers its payload, and is written again to the byte.
///
/// The first bytes of `data` say how many pages there are, and of which size.
pub fn lengths(data: &[u8]) {
    let Some((&[pages, log2], payload)) = data.split_first_chunk() else {
        return;
    };
    let page_size = PageSize::new(1 << (10 + log2 % 7)).expect("a page size");
    if let Ok(pages) = lengths::parse(payload, usize::from(pages), page_size) {
        let pages: Vec<_> = pages.collect();
        let mut rebuilt = Vec::new();
        lengths::write(&pages, page_size, &mut rebuilt).expect("what was taken can be written");
        assert_eq!(rebuilt, payload);
    }
}

/// A way to cut, from the first eight bytes: lengths from 0 to about the longest header.
fn split_cut(data: &[u8]) -> Option<(Vec<usize>, &[u8])> {
    let (cut, stream) = data.split_first_chunk::<8>()?;
    let lengths = cut
        .iter()
        .map(|&byte| usize::from(byte) * usize::from(byte) / 16);
    // A cut of nothing but empty pieces comes to no end.
    Some((lengths.chain([1]).collect(), stream))
}

fn after_hello() -> ChannelReceiver {
    let hello = Hello::new([0; 16], 0);
    let mut receiver = ChannelReceiver::new(Limits::default());
    let bytes = hello.to_bytes();
    let taken = receiver.push(&mut bytes.as_slice());
    assert!(matches!(taken, Ok(Some(Event::Hello(_)))));
    receiver
}

fn encoded(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(&mut bytes);
    bytes
}

fn check_pages(packet: &RamPacket) {
    let mut pages = [packet.normal(), packet.zero()].concat();
    assert!(pages.is_empty() || !packet.block().is_empty());
    assert!(packet.normal().is_empty() == (packet.payload_len() == 0));
    if let Some(page_size) = packet.page_size() {
        assert!(pages.len() <= page_size.pages_per_packet());
        let bytes = page_size.bytes() as u64;
        let limit = Limits::default().block_bytes;
        assert!(
            pages
                .iter()
                .all(|page| page % bytes == 0 && page + bytes <= limit)
        );
    } else {
        assert!(pages.is_empty());
    }
    pages.sort_unstable();
    assert!(pages.is_sorted_by(|a, b| a < b));
}

/// Whatever payload is set, the packet says so, and taking it apart again gives the same packet.
fn check_set_payload(mut packet: RamPacket) {
    for method in Method::ALL {
        let page_bytes = packet.page_size().map_or(0, PageSize::bytes);
        // A length which goes for every method.
        let len = packet.normal().len() * page_bytes;
        packet
            .set_payload(method, len as u32)
            .expect("a length for every method");
        assert_eq!(packet.payload_len() as usize, len);
        let has_pages = !packet.normal().is_empty() || !packet.zero().is_empty();
        assert!(!has_pages || packet.method() == Ok(method));
        let packet = Packet::Ram(packet.clone());
        let bytes = encoded(&packet);
        let again = after_hello().push(&mut bytes.as_slice());
        assert_eq!(again, Ok(Some(Event::Packet(packet))));
    }
}

/// Reads a channel by exactly what is wanted; answers how many events there were, and its end.
fn channel_steps(mut stream: &[u8]) -> (usize, Result<(), Fault>) {
    let mut receiver = ChannelReceiver::new(Limits::default());
    let mut events = 0;
    let mut in_padding = false;
    while !stream.is_empty() {
        let wanted = receiver.wanted();
        assert_ne!(wanted, 0);
        let (mut step, rest) = stream.split_at(wanted.min(stream.len()));
        stream = rest;
        if receiver.payload_remaining() != 0 {
            events += 1;
            receiver
                .payload_taken(step.len())
                .expect("within the payload");
            continue;
        }
        match receiver.push(&mut step) {
            Ok(Some(event)) => {
                // Padding comes in several steps, which are one when joined.
                let was_padding =
                    std::mem::replace(&mut in_padding, matches!(event, Event::Padding { .. }));
                events += usize::from(!(was_padding && in_padding));
            }
            Ok(None) => {}
            Err(fault) => return (events, Err(fault)),
        }
        assert!(step.is_empty());
    }
    (events, receiver.finish())
}

fn rebuilt(events: &[Joined]) -> Vec<u8> {
    let mut sender = ChannelSender::new();
    let mut bytes = Vec::new();
    for event in events {
        let in_turn = match event {
            Joined::Hello(hello) => sender.hello(hello, &mut bytes),
            Joined::Packet(packet) => sender.packet(packet, &mut bytes),
            Joined::Padding(entries) => sender.padding(*entries, &mut bytes),
            Joined::Payload(payload) => {
                bytes.extend_from_slice(payload);
                sender.payload_sent(payload.len())
            }
        };
        in_turn.expect("what was received in turn is sent in turn");
    }
    bytes
}

fn messages(stream: &[u8], cut: &[usize]) -> (Vec<Message>, Result<(), Fault>) {
    let mut receiver = ReturnPathReceiver::new();
    let mut messages = Vec::new();
    for mut piece in pieces(stream, cut) {
        loop {
            match receiver.push(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(fault) => return (messages, Err(fault)),
            }
        }
    }
    (messages, receiver.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    fn run(target: fn(&[u8]), name: &str) {
        run_some(target, name, usize::MAX);
    }

    /// With no more than so many of a seed's beginnings and changes, evenly spread.
    fn run_some(target: fn(&[u8]), name: &str, most: usize) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(name);
        let seeds: Vec<_> = fs::read_dir(&folder).expect("a folder of seeds").collect();
        assert!(!seeds.is_empty(), "no seeds for {name}");
        for seed in seeds {
            let path = seed.expect("a readable folder").path();
            let data = fs::read(&path).expect("a readable seed");
            println!("{}", path.display());
            target(&data);
            // What a fuzzer tries first: less of it, and something else in it.
            for at in (0..data.len()).step_by(data.len() / most + 1) {
                target(&data[..at]);
                let mut changed = data.clone();
                changed[at] ^= 1 << (at % 8);
                target(&changed);
            }
        }
    }

    #[test]
    fn hello() {
        run(super::hello, "hello");
    }

    #[test]
    fn packet() {
        run(super::packet, "packet");
    }

    #[test]
    fn channel() {
        run(super::channel, "channel");
    }

    #[test]
    fn control() {
        run(super::control, "control");
    }

    #[test]
    fn lengths() {
        run(super::lengths, "lengths");
    }

    #[test]
    fn main_stream() {
        run(super::main_stream, "main_stream");
    }

    #[test]
    fn deflate() {
        run(super::deflate, "deflate");
    }

    #[test]
    fn canned() {
        run(super::canned, "canned");
    }

    #[test]
    fn delta() {
        run_some(super::delta, "delta", 400);
    }

    #[test]
    fn inflate() {
        run(super::inflate, "inflate");
    }

    /// Each takes two socket pairs and a thread.
    #[test]
    fn acceptor() {
        run(super::acceptor, "acceptor");
    }

    #[test]
    fn inlet() {
        run_some(super::inlet, "inlet", 250);
    }

    #[test]
    fn recording() {
        run_some(super::recording, "recording", 500);
    }

    #[test]
    fn return_path() {
        run(super::return_path, "return_path");
    }

    #[test]
    fn trunk() {
        run(super::trunk, "trunk");
    }
}
