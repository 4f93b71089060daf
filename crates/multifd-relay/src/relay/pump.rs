//! One multifd channel: what its source sends, on to the destination, packet by packet.

use std::convert::Infallible;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use multifd_codec::PageBuffer;
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::inlet::{Inlet, Item};
use multifd_transport::outlet::{FlowFailure, Outlet, Supply, block_of};
use multifd_transport::{Stream, hung_up};
use multifd_wire::{BlockName, Fault, Hello, Method, Packet, PageSize, RamPacket};

use super::RelayConfig;
use super::counters::{Counters, Tally};
use super::first::{self, SYNC_REST, Start};
use super::gate::{End, Gate};
use super::link::{Link, Links};
use super::main_channel::Outline;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::leg::Caller;

/// What a channel shares with the others of its migration.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) config: &'a RelayConfig,
    pub(super) target: &'a Caller,
    pub(super) links: &'a Links,
    pub(super) main: &'a Link,
    pub(super) outline: &'a Outline,
    pub(super) gate: &'a Gate,
    pub(super) counters: &'a Counters,
}

/// Passes one channel on, to its end.
pub(super) fn run(hello: Hello, source: &Arc<Stream>, shared: Shared<'_>) -> Result<(), Failure> {
    let id = hello.channel;
    let failed = |(leg, cause)| Failure {
        channel: Channel::Multifd(id),
        leg,
        block: None,
        cause,
    };
    let config = shared.config;
    // A hello goes on together with the whole SYNC behind it.
    shared.gate.idle(id, true);
    let start = first::wait(source, &hello, config.limits, shared.gate);
    match start.map_err(|error: io::Error| failed(source_side(error)))? {
        Start::Whole => shared.gate.idle(id, false),
        Start::Nothing => {
            shared.gate.ended(id, End::Closed);
            return Ok(());
        }
        Start::Cut { missing } => {
            let cause = plain_cause(
                Leg::Source,
                Fault::Truncated { missing }.into(),
                shared.main,
            );
            return Err(failed((Leg::Source, cause)));
        }
    }
    let given_up = || shared.gate.is_stopped();
    let dialled = shared
        .target
        .channel(&hello, config.dial_timeout, &given_up);
    let destination = dialled.map_err(|error| {
        super::session::dial_failure(error, shared.target, Channel::Multifd(id))
    })?;
    let link = Arc::new(Link {
        channel: Channel::Multifd(id),
        source: Arc::clone(source),
        destination,
    });
    shared.links.add(&link);
    let inlet = Inlet::new(&link.source, &hello, config.limits, config.settings)
        .map_err(|cause| failed(source_side(cause)))?;
    let encoder = multifd_codec::encoder(config.compression, &config.settings)
        .map_err(|error| failed((Leg::Here, error.into())))?;
    let outlet = match shared.target.is_relay() {
        true => Outlet::open_behind(&link.destination, &hello, encoder),
        false => Outlet::open_later(&link.destination, &hello, encoder),
    };
    let outlet = outlet.map_err(|cause| failed(destination_side(cause)))?;
    let pump = Pump {
        id,
        inlet,
        outlet,
        link: &link,
        shared,
        has_synced: false,
    };
    pump.run()
}

/// The forward direction of one multifd channel.
struct Pump<'s> {
    id: u8,
    inlet: Inlet<'s>,
    outlet: Outlet<'s>,
    link: &'s Link,
    shared: Shared<'s>,
    /// The channel's first SYNC was passed on.
    has_synced: bool,
}

impl Pump<'_> {
    fn run(mut self) -> Result<(), Failure> {
        let Shared {
            outline,
            gate,
            counters,
            ..
        } = self.shared;
        let mut tally = Tally::new(counters);
        let (mut next, mut block) = (None, None);
        loop {
            let went_on = match self.pass_on(&mut next, &mut block, &mut tally) {
                Err((Leg::Destination, Cause::Transport(TransportCause::Io(error))))
                    if hung_up(&error) && outline.needs_no_more(block.is_some()) =>
                {
                    gate.ended(self.id, End::Abandoned(error.kind()));
                    counters.channel_ended(&self.inlet, &self.outlet);
                    // It does not need the rest, or has failed, which its word on main tells: the source can wait for that.
                    self.link.source.drain();
                    return Ok(());
                }
                other => other.map_err(|(leg, cause)| {
                    let cause = plain_cause(leg, cause, self.shared.main);
                    Failure {
                        channel: Channel::Multifd(self.id),
                        leg,
                        block: block.take(),
                        cause,
                    }
                })?,
            };
            tally.read(&self.inlet);
            tally.wrote(self.outlet.bytes_out());
            if !went_on {
                counters.channel_ended(&self.inlet, &self.outlet);
                gate.ended(self.id, End::Closed);
                return Ok(());
            }
        }
    }

    /// The next item, which may have been read already; `false` at the channel's end. Of packets whose pages are transcoded, as
    /// many as there are. `block` becomes that of the last packet, or of the one which has failed.
    fn pass_on(
        &mut self,
        next: &mut Option<Item>,
        block: &mut Option<Box<BlockName>>,
        tally: &mut Tally<'_>,
    ) -> Result<bool, (Leg, Cause)> {
        *block = None;
        let item = match next.take() {
            Some(item) => item,
            None => {
                self.shared.gate.idle(self.id, true);
                let item = self.inlet.next_item().map_err(source_side)?;
                self.shared.gate.idle(self.id, false);
                item
            }
        };
        match item {
            Item::End => {
                self.link
                    .destination
                    .shutdown(Shutdown::Write)
                    .map_err(destination_side)?;
                return Ok(false);
            }
            Item::Padding { entries } => self
                .outlet
                .write_padding(entries)
                .map_err(destination_side)?,
            Item::Packet(packet @ Packet::DeviceState(_)) => {
                self.forward(&packet)?;
                self.outlet.release().map_err(destination_side)?;
            }
            Item::Packet(Packet::Ram(mut packet)) => {
                *block = block_of(&packet);
                let method = self.outlet.method();
                if let Some(page_size) = packet.page_size()
                    && !packet.normal().is_empty()
                    && self.inlet.method_of(&packet).map_err(source_side)? != method
                {
                    let mut arriving = Arriving {
                        id: self.id,
                        destination: &self.link.destination,
                        gate: self.shared.gate,
                        inlet: &mut self.inlet,
                        first: Some(packet),
                        behind: next,
                        method,
                        page_size,
                        block,
                        tally,
                    };
                    let outcome = self.outlet.write_flow(&mut arriving, page_size);
                    return match outcome {
                        Ok(()) => Ok(true),
                        Err(FlowFailure::Supply(cause)) => Err(source_side(cause)),
                        Err(FlowFailure::Outlet(cause, failed)) => {
                            *block = failed;
                            Err(destination_side(cause))
                        }
                    };
                }
                let (pages, zero_pages) = (packet.normal().len(), packet.zero().len());
                packet
                    .set_payload(method, packet.payload_len())
                    .map_err(source_side)?;
                let is_sync = packet.is_sync();
                self.forward(&Packet::Ram(packet))?;
                tally.pages(pages, zero_pages);
                match is_sync {
                    true => self.synced(next)?,
                    false => self.outlet.release().map_err(destination_side)?,
                }
            }
        }
        Ok(true)
    }

    /// Passes a packet on with its payload as it is.
    fn forward(&mut self, packet: &Packet) -> Result<(), (Leg, Cause)> {
        let outcome = self.outlet.forward(packet, &mut self.inlet);
        outcome.map_err(|(leg, cause)| (leg, cause.into()))
    }

    /// A SYNC was passed on. The first one may have a table whose end does not show, and behind it nothing is read before
    /// the destination loads.
    fn synced(&mut self, next: &mut Option<Item>) -> Result<(), (Leg, Cause)> {
        if !self.has_synced {
            self.has_synced = true;
            while let Some(entries) = self.inlet.open_table() {
                let may_end = first::may_end(entries);
                let more = |within| {
                    let readable = self.link.source.is_readable_within(within);
                    readable.map_err(source_side)
                };
                if first::ends(entries) || may_end && !more(SYNC_REST)? {
                    break;
                }
                match self.inlet.next_item().map_err(source_side)? {
                    Item::Padding { entries } => {
                        let written = self.outlet.write_padding(entries);
                        written.map_err(destination_side)?;
                    }
                    other => {
                        *next = Some(other);
                        break;
                    }
                }
            }
            let released = self.outlet.release();
            released.map_err(destination_side)?;
            self.count_sync()?;
            // An end of the migration shows in the connections too.
            let Ok(_) = self.shared.gate.wait_begun(|_| Ok::<_, Infallible>(()));
            return Ok(());
        }
        self.count_sync()
    }

    /// Counts a SYNC, unless it went into a connection that its peer has closed: the system takes it there, and nobody reads it.
    fn count_sync(&self) -> Result<(), (Leg, Cause)> {
        if self.link.destination.peer_has_closed() {
            let closed = io::Error::from(io::ErrorKind::BrokenPipe);
            return Err((Leg::Destination, closed.into()));
        }
        self.shared.gate.synced(self.id);
        Ok(())
    }
}

fn source_side(cause: impl Into<Cause>) -> (Leg, Cause) {
    (Leg::Source, cause.into())
}

fn destination_side(cause: impl Into<Cause>) -> (Leg, Cause) {
    (Leg::Destination, cause.into())
}

/// A channel that ends inside a packet is malformed, unless the source has given up the whole migration.
fn plain_cause(leg: Leg, cause: Cause, main: &Link) -> Cause {
    match cause {
        Cause::Transport(TransportCause::Wire(Fault::Truncated { .. }))
            if leg == Leg::Source && main.source.peer_has_closed() =>
        {
            Cause::Incomplete
        }
        cause => cause,
    }
}

/// Packets that are transcoded, as long as there are some which need not be waited for.
struct Arriving<'p, 's, 'c> {
    id: u8,
    destination: &'p Stream,
    gate: &'p Gate,
    inlet: &'p mut Inlet<'s>,
    first: Option<RamPacket>,
    /// What came behind them and is none of them.
    behind: &'p mut Option<Item>,
    /// That of the outlet.
    method: Method,
    page_size: PageSize,
    /// That of the last packet.
    block: &'p mut Option<Box<BlockName>>,
    tally: &'p mut Tally<'c>,
}

impl Supply for Arriving<'_, '_, '_> {
    type Error = Cause;

    fn next(&mut self, pages: &mut PageBuffer) -> Result<Option<RamPacket>, Cause> {
        let packet = match self.first.take() {
            Some(first) => first,
            None if self.behind.is_some() || !self.inlet.has_more() => return Ok(None),
            None => {
                *self.block = None;
                let item = self.inlet.next_item()?;
                if let Item::Packet(Packet::Ram(packet)) = &item {
                    *self.block = block_of(packet);
                }
                match item {
                    Item::Packet(Packet::Ram(packet)) if self.is_one(&packet)? => packet,
                    other => {
                        *self.behind = Some(other);
                        return Ok(None);
                    }
                }
            }
        };
        self.inlet.read_pages_into(&packet, pages)?;
        self.tally.read(self.inlet);
        Ok(Some(packet))
    }

    fn sent(&mut self, packet: &RamPacket, bytes: u64) {
        self.tally.pages(packet.normal().len(), packet.zero().len());
        self.tally.wrote_more(bytes);
        // QEMU 8.2 and earlier: a SYNC with pages. A mark waits in vain for one that nobody reads, and says so.
        if packet.is_sync() && !self.destination.peer_has_closed() {
            self.gate.synced(self.id);
        }
    }
}

impl Arriving<'_, '_, '_> {
    /// Whether it is to be transcoded, or has nothing to transcode.
    fn is_one(&mut self, packet: &RamPacket) -> Result<bool, Cause> {
        let fits = packet.page_size() == Some(self.page_size);
        let has_payload = !packet.normal().is_empty();
        Ok(fits && (!has_payload || self.inlet.method_of(packet)? != self.method))
    }
}
