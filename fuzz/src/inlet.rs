//! The target of a whole inlet: a channel of anybody, over a socket pair.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use multifd_codec::{Accel, Settings, window_memory};
use multifd_transport::failure::Cause;
use multifd_transport::{Inlet, Item, Stream};
use multifd_wire::{Fault, Hello, Limits, Method, Packet};

use crate::split_cut;
use testkit::allocations::measure;
use testkit::wire::{Joined, channel_events, pieces};

/// What the inlet's caller does with payloads.
#[derive(Clone, Copy, PartialEq)]
enum Taking {
    Pages,
    Payload,
    Nothing,
    Some,
}

/// What came out of a channel.
#[derive(Debug, PartialEq)]
enum Seen {
    Packet(Box<Packet>),
    Padding(usize),
    /// Pages or a payload: how long, and a hash of it.
    Bytes(usize, u64),
    End,
    Fault(Fault),
    /// What a decoder or the inlet itself has refused.
    Refused(String),
}

/// An inlet gives the same in every cut, and the packets that its machine gives by itself; payloads
/// are what stands on the wire, whether or not those before them were taken; its memory is bounded.
///
/// The first bytes of `data` say how the rest is cut, the next one what is done with payloads and
/// by which decoder.
pub fn inlet(data: &[u8]) {
    let Some((cut, data)) = split_cut(data) else {
        return;
    };
    let Some((&choice, stream)) = data.split_first() else {
        return;
    };
    let Some((hello, stream)) = stream.split_first_chunk() else {
        return;
    };
    let Ok(hello) = Hello::parse(hello) else {
        return;
    };
    let taking = [
        Taking::Pages,
        Taking::Payload,
        Taking::Nothing,
        Taking::Some,
    ][usize::from(choice % 4)];
    let mut settings = Settings::default();
    settings.accel = [Accel::None, Accel::Software][usize::from(choice >> 2 & 1)];

    let whole = over_a_socket(&hello, stream, &[usize::MAX], taking, settings);
    let in_pieces = over_a_socket(&hello, stream, &cut, taking, settings);
    assert_eq!(in_pieces, whole);
    check_against_the_machine(&hello, stream, taking, &whole);
    assert_eq!(window_memory::held(), held_by_other_threads());
}

/// Tests of other targets have no zstd decoders.
fn held_by_other_threads() -> u64 {
    0
}

fn over_a_socket(
    hello: &Hello,
    stream: &[u8],
    cut: &[usize],
    taking: Taking,
    settings: Settings,
) -> Vec<Seen> {
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let queue = near.try_clone().expect("a descriptor");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(far, &queue, stream, cut, &done));
        let near = Stream::from(near);
        let mut seen = Vec::new();
        let (most, _) = measure(|| seen = read(hello, &near, taking, settings));
        done.store(true, Ordering::Relaxed);
        near.shutdown(Shutdown::Both).expect("a socket");
        // The end of a scope does not wait for what a thread leaves to the system to be gone.
        writer.join().expect("a writer");
        // A payload, pages, and what decoders have for each of eight helpers, beside what was seen.
        let bound = (8 << 20) + 8 * stream.len();
        assert!(most <= bound, "{most} bytes");
        seen
    })
}

/// Writes a piece when the one before has been read, so that it is read as it was cut.
fn write(mut far: UnixStream, queue: &UnixStream, stream: &[u8], cut: &[usize], done: &AtomicBool) {
    for piece in pieces(stream, cut) {
        while rustix::io::ioctl_fionread(queue).is_ok_and(|unread| unread > 0) {
            if done.load(Ordering::Relaxed) {
                return;
            }
            thread::yield_now();
        }
        // The inlet may have seen enough.
        if far.write_all(piece).is_err() {
            return;
        }
    }
}

fn read(hello: &Hello, stream: &Stream, taking: Taking, settings: Settings) -> Vec<Seen> {
    let mut inlet = Inlet::new(stream, hello, Limits::default(), settings).expect("a hello");
    let mut seen = Vec::new();
    loop {
        match next(&mut inlet, taking, &mut seen) {
            Ok(true) => {}
            Ok(false) => return seen,
            Err(Cause::Wire(fault)) => {
                seen.push(Seen::Fault(fault));
                return seen;
            }
            Err(cause) => {
                seen.push(Seen::Refused(cause.to_string()));
                return seen;
            }
        }
    }
}

fn next(inlet: &mut Inlet<'_>, taking: Taking, seen: &mut Vec<Seen>) -> Result<bool, Cause> {
    let packet = match inlet.next_item()? {
        Item::Packet(packet) => packet,
        Item::Padding { entries } => {
            match seen.last_mut() {
                Some(Seen::Padding(before)) => *before += entries,
                _ => seen.push(Seen::Padding(entries)),
            }
            return Ok(true);
        }
        Item::End => {
            seen.push(Seen::End);
            return Ok(false);
        }
    };
    seen.push(Seen::Packet(Box::new(packet.clone())));
    let takes = match taking {
        // Every other one, by what the packet says itself.
        Taking::Some => packet.payload_len() % 2 == 0,
        Taking::Nothing => false,
        _ => true,
    };
    if takes && packet.payload_len() > 0 {
        let bytes = match &packet {
            Packet::Ram(packet) if taking == Taking::Pages => inlet.read_pages(packet)?,
            _ => inlet.read_payload()?,
        };
        seen.push(hashed(bytes));
    }
    Ok(true)
}

fn hashed(bytes: &[u8]) -> Seen {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Seen::Bytes(bytes.len(), hasher.finish())
}

/// Headers are those of the machine, and payloads those on the wire.
fn check_against_the_machine(hello: &Hello, stream: &[u8], taking: Taking, seen: &[Seen]) {
    let bytes = [&hello.to_bytes()[..], stream].concat();
    let (events, end) = channel_events(&bytes, &[usize::MAX]);
    let mut events = events.iter().skip(1).peekable();
    for seen in seen {
        match seen {
            Seen::Packet(packet) => {
                while events
                    .next_if(|event| matches!(event, Joined::Payload(_)))
                    .is_some()
                {}
                let event = events.next();
                assert!(matches!(event, Some(Joined::Packet(other)) if other == packet));
                // Method `none` is on the wire as it is.
                let is_plain = match &**packet {
                    Packet::Ram(packet) => packet.method() == Ok(Method::None),
                    Packet::DeviceState(_) => true,
                };
                if !is_plain && taking == Taking::Pages {
                    events.next_if(|event| matches!(event, Joined::Payload(_)));
                }
            }
            Seen::Padding(entries) => {
                assert_eq!(events.next(), Some(&Joined::Padding(*entries)));
            }
            Seen::Bytes(len, _) => {
                if let Some(Joined::Payload(payload)) =
                    events.next_if(|event| matches!(event, Joined::Payload(_)))
                {
                    assert_eq!(hashed(payload), *seen, "{len}");
                }
            }
            Seen::End => assert_eq!(end, Ok(())),
            Seen::Fault(fault) => assert!(
                end == Err(*fault) || matches!(fault, Fault::PayloadLength { .. }),
                "{fault:?}, {end:?}"
            ),
            Seen::Refused(_) => {}
        }
    }
}
