//! The main channel: passed on byte for byte, both ways, and understood as far as needed to know whether the migration went through whole.

use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::Mutex;

use multifd_wire::main_stream::{Command, MainEvent, MainReceiver};
use multifd_wire::return_path::{Message, ReturnPathReceiver};
use multifd_wire::{Fault, Limits};

use super::session::{Counters, Link};
use crate::failure::{Cause, Leg};

/// The main channel carries little beside multifd, and a guest's whole memory without it.
const BUFFER_BYTES: usize = 64 << 10;

/// What the forward direction has shown, for the return path to judge by.
#[derive(Debug, Default)]
pub(super) struct Outline(Mutex<Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Everything that makes the guest has been read; at most its description is to come.
    complete: bool,
    /// The source will wait for the destination's word.
    return_path: bool,
    /// The stream could not be followed beyond some point, so `complete` says nothing. It is passed on all the same.
    lost: Option<Fault>,
    /// The destination has said that it has the guest.
    confirmed: bool,
}

impl Outline {
    /// Whether a destination may close a channel in front of a packet. QEMU does so when it has
    /// the guest: QEMU 8.2 and earlier send an empty packet after the last one that matters.
    pub(super) fn needs_no_more(&self, packet_has_pages: bool) -> bool {
        let seen = self.seen();
        seen.confirmed || seen.complete && !packet_has_pages
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(
            &mut self
                .0
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
    }

    fn seen(&self) -> Seen {
        *self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Source to destination. `start` has been read already.
pub(super) fn forward(
    link: &Link,
    start: &[u8],
    limits: Limits,
    outline: &Outline,
    counters: &Counters,
) -> Result<(), (Leg, Cause)> {
    let source = |cause: Cause| (Leg::Source, cause);
    let destination = |error: io::Error| (Leg::Destination, error.into());
    let mut receiver = MainReceiver::new(limits);
    let mut pass_on = |bytes: &[u8]| {
        // Before it is passed on: the destination may answer the last byte at once.
        follow(&mut receiver, bytes, outline);
        (&link.destination).write_all(bytes).map_err(destination)?;
        counters.main(bytes.len());
        Ok(())
    };
    pass_on(start)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = link
            .source
            .read_some(&mut buffer)
            .map_err(|error| source(error.into()))?;
        if count == 0 {
            break;
        }
        pass_on(buffer.get(..count).unwrap_or_default())?;
    }
    let seen = outline.seen();
    // The destination's word counts more than our own reading.
    if !seen.confirmed {
        if let Some(fault) = seen.lost {
            return Err(source(fault.into()));
        }
        if receiver.finish().is_err() {
            return Err(source(Cause::Incomplete));
        }
    }
    let closed = link.destination.shutdown(Shutdown::Write);
    closed.map_err(destination)
}

fn follow(receiver: &mut MainReceiver, mut bytes: &[u8], outline: &Outline) {
    if outline.seen().lost.is_some() {
        return;
    }
    loop {
        match receiver.push(&mut bytes) {
            Ok(Some(MainEvent::Command(Command::OpenReturnPath))) => {
                outline.see(|seen| seen.return_path = true)
            }
            Ok(Some(MainEvent::Eof)) => outline.see(|seen| seen.complete = true),
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(fault) => return outline.see(|seen| seen.lost = Some(fault)),
        }
    }
}

fn listen(
    receiver: &mut ReturnPathReceiver,
    mut bytes: &[u8],
    outline: &Outline,
) -> Result<(), Cause> {
    while let Some(message) = receiver.push(&mut bytes)? {
        match message {
            Message::Shut(0) => outline.see(|seen| seen.confirmed = true),
            Message::Shut(status) => return Err(Cause::Refused { status }),
            _ => {}
        }
    }
    Ok(())
}

/// Destination to source: the return path.
pub(super) fn back(link: &Link, outline: &Outline) -> Result<(), (Leg, Cause)> {
    let destination = |cause: Cause| (Leg::Destination, cause);
    let mut receiver = ReturnPathReceiver::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match link.destination.read_some(&mut buffer) {
            Ok(count) => count,
            // A destination that closes with something unread resets: no more will come either way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(destination(error.into())),
        };
        if count == 0 {
            break;
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        // Before it is passed on: the source may answer the last byte at once, by closing.
        let heard = listen(&mut receiver, bytes, outline);
        // A source that has gone already needs no answer; the forward direction tells of it.
        let _ = (&link.source).write_all(bytes);
        heard.map_err(destination)?;
    }
    let seen = outline.seen();
    if seen.return_path && !seen.confirmed {
        return Err(destination(Cause::Unconfirmed));
    }
    if !seen.complete && seen.lost.is_none() {
        return Err(destination(
            io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        ));
    }
    // The source may have closed by now.
    let _ = link.source.shutdown(Shutdown::Write);
    Ok(())
}
