//! Peeks at a channel's first packet in the socket.
//!
//! A destination counts a channel by its hello, and a QEMU that has counted all of them reads its
//! main channel and waits for the SYNC of each. If only a part of a SYNC comes, the QEMU and its
//! monitor wait for ever (seen with 10.0: with 1343 of 1344 bytes as with none). So the relay
//! passes on nothing of a channel, and dials nobody for it, before its first packet is complete
//! here. Over a link that loses packets, its parts may be seconds apart.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use multifd_transport::Stream;
use multifd_wire::{ChannelReceiver, Event, Hello, Limits};

use super::gate::Gate;

/// Time limit for the rest of a first SYNC, if its end is not visible. Its source wrote it in one
/// go.
pub(super) const SYNC_REST: Duration = Duration::from_millis(100);

/// The entries of a table for pages of 4 KiB. A first SYNC of this length is complete on all usual
/// machines.
const USUAL_ENTRIES: usize = 128;

/// More bytes than any header has.
const MOST_BYTES: usize = 64 << 10;

/// Poll interval while nothing comes.
const PAUSE: Duration = Duration::from_millis(100);

/// Poll interval for a partial packet. The socket is readable, so a poll would not wait.
const PARTIAL_PAUSE: Duration = Duration::from_millis(5);

/// How a channel starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The header of its first packet is complete, or malformed.
    Whole,
    /// The channel has ended before a packet, or the migration has ended.
    Nothing,
    /// The channel has ended inside the packet.
    Cut { missing: usize },
}

/// The state of a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Whole,
    /// A complete SYNC, if its table ends here.
    MayEnd,
    Part {
        missing: usize,
    },
}

/// Whether the table of a first SYNC may have this many entries.
pub(super) fn may_end(entries: usize) -> bool {
    entries.is_power_of_two()
}

/// Whether a table usually has this many entries.
pub(super) fn ends(entries: usize) -> bool {
    may_end(entries) && entries >= USUAL_ENTRIES
}

/// Waits until the first packet of a channel is complete. It stays in the socket.
pub(super) fn wait(
    stream: &Stream,
    hello: &Hello,
    limits: Limits,
    gate: &Gate,
) -> io::Result<Start> {
    let mut bytes = vec![0; 2048];
    let mut before = 0;
    let mut since = Instant::now();
    loop {
        if gate.is_stopped() {
            return Ok(Start::Nothing);
        }
        if !stream.is_readable_within(PAUSE)? {
            continue;
        }
        // The order matters: bytes before an end are seen together with it.
        let has_closed = stream.peer_has_closed();
        let count = match stream.peek(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            other => other?,
        };
        if count == 0 {
            return Ok(Start::Nothing);
        }
        if count > before {
            before = count;
            since = Instant::now();
        }
        match look(bytes.get(..count).unwrap_or_default(), hello, limits) {
            Seen::Whole => return Ok(Start::Whole),
            _ if count == bytes.len() && count >= MOST_BYTES => return Ok(Start::Whole),
            _ if count == bytes.len() => {
                bytes.resize(count.saturating_mul(2), 0);
                continue;
            }
            Seen::MayEnd if has_closed || since.elapsed() >= SYNC_REST => return Ok(Start::Whole),
            Seen::Part { missing } if has_closed => return Ok(Start::Cut { missing }),
            Seen::MayEnd | Seen::Part { .. } => {}
        }
        sleep(PARTIAL_PAUSE);
    }
}

fn look(mut bytes: &[u8], hello: &Hello, limits: Limits) -> Seen {
    let mut receiver = ChannelReceiver::new(limits);
    let mut has_packet = false;
    if receiver.push(&mut hello.to_bytes().as_slice()).is_err() {
        return Seen::Whole;
    }
    loop {
        match receiver.push(&mut bytes) {
            Ok(Some(Event::Packet(_))) if !has_packet && receiver.open_table().is_some() => {
                has_packet = true;
            }
            Ok(Some(Event::Padding { .. } | Event::Hello(_))) => {}
            Ok(None) => break,
            // The next packet has begun after this one, or this one is malformed. Its reader finds
            // the fault.
            Ok(Some(Event::Packet(_) | Event::Payload(_))) | Err(_) => return Seen::Whole,
        }
    }
    let missing = receiver.wanted();
    match receiver.open_table() {
        Some(entries) if ends(entries) => Seen::Whole,
        Some(_) if receiver.finish().is_ok() => Seen::MayEnd,
        _ => Seen::Part { missing },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::thread;

    const MINUTE: Duration = Duration::from_secs(60);

    fn hello() -> Hello {
        Hello::new([7; 16], 0)
    }

    /// A SYNC with a table for this many pages, as QEMU 9.0 and later write it.
    fn sync(entries: usize) -> Vec<u8> {
        let mut bytes = vec![0; 320 + 8 * entries];
        bytes[..12].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1, 0, 0, 0, 1]);
        bytes
    }

    fn pair() -> (UnixStream, Stream) {
        let (far, near) = UnixStream::pair().unwrap();
        (far, Stream::from(near))
    }

    fn start(stream: &Stream, gate: &Gate) -> Start {
        wait(stream, &hello(), Limits::default(), gate).unwrap()
    }

    #[test]
    fn a_sync_is_waited_for_to_its_last_byte() {
        let (mut far, near) = pair();
        let gate = Gate::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| start(&near, &gate));
            let whole = sync(128);
            let mut written = 0;
            // Not where a shorter table would end, which counts after a while.
            for end in [1, 12, 320, 1000, 1343] {
                far.write_all(&whole[written..end]).unwrap();
                written = end;
                thread::sleep(SYNC_REST + PAUSE);
                assert!(!waiting.is_finished(), "{end}");
            }
            far.write_all(&whole[written..]).unwrap();
            assert_eq!(waiting.join().unwrap(), Start::Whole);
        });
        let mut all = vec![0; 2000];
        assert_eq!(near.peek(&mut all).unwrap(), 1344, "nothing was taken");
    }

    #[test]
    fn a_table_for_larger_pages_ends_where_no_more_comes() {
        let (mut far, near) = pair();
        far.write_all(&sync(8)).unwrap();
        let since = Instant::now();
        assert_eq!(start(&near, &Gate::default()), Start::Whole);
        assert!((SYNC_REST..MINUTE).contains(&since.elapsed()));
        // The next bytes show it at once.
        far.write_all(&sync(8)).unwrap();
        assert_eq!(start(&near, &Gate::default()), Start::Whole);
    }

    #[test]
    fn an_end_is_told_from_a_cut() {
        let gate = Gate::default();
        for (bytes, says) in [
            (0, Start::Nothing),
            (11, Start::Cut { missing: 1 }),
            (1343, Start::Cut { missing: 1 }),
            (1344, Start::Whole),
        ] {
            let (mut far, near) = pair();
            far.write_all(&sync(128)[..bytes]).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
            assert_eq!(start(&near, &gate), says, "{bytes}");
        }
        let (mut far, near) = pair();
        far.write_all(b"no packet of any kind").unwrap();
        assert_eq!(start(&near, &gate), Start::Whole, "for its reader to say");
        let (mut far, near) = pair();
        far.write_all(&sync(128)[..500]).unwrap();
        gate.stop();
        assert_eq!(start(&near, &gate), Start::Nothing);
    }
}
