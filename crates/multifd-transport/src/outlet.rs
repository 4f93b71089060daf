//! The outlet: packets and their pages become one multifd channel's bytes.

use std::io::Write;
use std::sync::Arc;

use multifd_codec::auto::Lane;
use multifd_codec::delta::{self, Sent};
use multifd_codec::{Encoder, PageBuffer, PathCounts};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, RamPacket};

use crate::Stream;
use crate::clock::{self, Clock, Doing};
use crate::failure::{Cause, Leg};
use crate::inlet::Inlet;
use crate::splice::Conduit;

/// Writes one multifd channel with one method.
///
/// Every packet is written at once, header and payload together: a peer waits for a SYNC. Packets
/// that are to be encoded are pushed, as many as there is room for, and written in their order:
///
/// ```
/// use multifd_transport::failure::Cause;
/// use multifd_transport::Outlet;
/// use multifd_wire::RamPacket;
///
/// /// Writes packets, whose pages `read` reads, for as long as it has some.
/// fn write_all(
///     outlet: &mut Outlet<'_>,
///     mut read: impl FnMut(&mut [u8]) -> Option<RamPacket>,
/// ) -> Result<(), Cause> {
///     loop {
///         while outlet.room() > 0 {
///             let mut pages = outlet.page_buffer();
///             let Some(packet) = read(pages.space(4096)) else {
///                 break;
///             };
///             outlet.push(packet, pages);
///         }
///         let written = outlet.pop_and_write().map_err(|unwritten| unwritten.cause)?;
///         if written.is_none() {
///             return Ok(());
///         }
///     }
/// }
/// ```
pub struct Outlet<'s> {
    encoder: delta::Encoder<RamPacket>,
    /// Says with which effort packets are encoded, if that may change.
    lane: Option<Lane>,
    /// Packets may go with the method `none`.
    has_plain_packets: bool,
    /// A packet that goes so, pushed.
    plain: Option<(RamPacket, PageBuffer)>,
    plain_pages: usize,
    /// SYNCs among the packets so far.
    syncs: u64,
    wire: Wire<'s>,
    conduit: Conduit,
    /// The payload that is written next.
    payload: Vec<u8>,
    /// Memory for the pages of further packets.
    spare: Vec<PageBuffer>,
}

/// The connection, and what has been said on it.
struct Wire<'s> {
    stream: &'s Stream,
    sender: ChannelSender,
    clock: Option<&'s Clock>,
    /// The bytes to write next.
    head: Vec<u8>,
    /// Nothing is written until the first packet is whole.
    holds: bool,
    bytes_out: u64,
}

/// A packet that is to be written.
struct Encoded {
    packet: RamPacket,
    method: Method,
    /// Bytes that were encoded: of pages, and of differences to pages.
    encoded_bytes: usize,
}

/// The SYNCs of a channel before the end of the first round: a QEMU since 8.2 begins with one.
const FIRST_ROUND_SYNCS: u64 = 1;

/// A packet that was written.
#[derive(Debug)]
#[non_exhaustive]
pub struct Written {
    /// The packet.
    pub packet: RamPacket,
    /// Bytes written, the hello included if it was kept until now.
    pub bytes: u64,
}

/// A packet that could not be encoded or written. All before it were written.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unwritten {
    /// The block of the packet's pages, if it has any.
    pub block: Option<Box<BlockName>>,
    /// The cause.
    pub cause: Cause,
}

impl<'s> Outlet<'s> {
    /// Opens the channel: says `hello`.
    pub fn open(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Encoder<RamPacket>,
    ) -> Result<Self, Cause> {
        let mut outlet = Self::open_later(stream, hello, encoder)?;
        outlet.release()?;
        Ok(outlet)
    }

    /// Opens the channel with its first packet: `hello`, and what is written without a payload, are
    /// kept until [`Outlet::release`]. A QEMU that has all hellos reads its main channel and waits
    /// for SYNCs, for ever if one does not come whole; so what breaks must find both with it, or
    /// neither.
    pub fn open_later(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Encoder<RamPacket>,
    ) -> Result<Self, Cause> {
        let mut outlet = Outlet {
            encoder: delta::Encoder::new(encoder, None),
            lane: None,
            has_plain_packets: false,
            plain: None,
            plain_pages: 0,
            syncs: 0,
            wire: Wire {
                stream,
                sender: ChannelSender::new(),
                clock: None,
                head: Vec::new(),
                holds: true,
                bytes_out: 0,
            },
            conduit: Conduit::default(),
            payload: Vec::new(),
            spare: Vec::new(),
        };
        outlet.wire.sender.hello(hello, &mut outlet.wire.head)?;
        Ok(outlet)
    }

    /// The same for a channel whose `hello` was said in another way.
    pub fn open_behind(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Encoder<RamPacket>,
    ) -> Result<Self, Cause> {
        let mut outlet = Self::open_later(stream, hello, encoder)?;
        outlet.wire.head.clear();
        Ok(outlet)
    }

    /// Makes pages that are sent again differences to those in `sent`, which the other side has
    /// too. All channels of a migration share it, from their first packets on.
    #[must_use]
    pub fn with_differences(self, sent: Arc<Sent>) -> Self {
        Self {
            encoder: self.encoder.with_differences(sent),
            ..self
        }
    }

    /// Lets `lane` say with which effort packets are encoded. The encoder must have been made with
    /// steps, by [`Encoder::with_steps`]. If the reader takes `plain_packets`, those without any
    /// effort go with the method `none`.
    #[must_use]
    pub fn with_lane(self, lane: Lane, plain_packets: bool) -> Self {
        Self {
            lane: Some(lane),
            has_plain_packets: plain_packets,
            ..self
        }
    }

    /// Counts the time that it writes, and waits for room to write, on `clock`.
    #[must_use]
    pub fn with_clock(mut self, clock: &'s Clock) -> Self {
        self.wire.clock = Some(clock);
        self
    }

    /// Whether pages that are sent again become differences.
    pub fn has_differences(&self) -> bool {
        self.encoder.has_differences()
    }

    /// Writes what was kept, in one call. From now on everything is written at once.
    pub fn release(&mut self) -> Result<(), Cause> {
        self.wire.release()
    }

    /// The method which this outlet writes.
    pub fn method(&self) -> Method {
        self.encoder.method()
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder<RamPacket> {
        self.encoder.inner()
    }

    /// Bytes written so far, the hello included.
    pub fn bytes_out(&self) -> u64 {
        self.wire.bytes_out
    }

    /// Writes a packet without a payload: a SYNC, or only zero pages.
    pub fn write_packet(&mut self, packet: &Packet) -> Result<(), Cause> {
        if let Packet::Ram(packet) = packet {
            self.encoder.forget_zero_pages(packet);
            self.syncs += u64::from(packet.is_sync());
        }
        self.wire.write_packet(packet)
    }

    /// Writes more of the offset table of the packet before: [`crate::inlet::Item::Padding`].
    pub fn write_padding(&mut self, entries: usize) -> Result<(), Cause> {
        self.wire.sender.padding(entries, &mut self.wire.head)?;
        self.wire.write_head()
    }

    /// The number of packets that may be pushed now: see [`Encoder::room`].
    pub fn room(&self) -> usize {
        match self.plain {
            Some(_) => 0,
            None => self.encoder.room(),
        }
    }

    /// The pages written so far, by what encoded them.
    pub fn counts(&self) -> PathCounts {
        let mut counts = self.encoder.counts();
        counts += PathCounts::raw(self.plain_pages);
        counts
    }

    /// A buffer for the pages of the next packet, to be given back with [`Self::push`].
    pub fn page_buffer(&mut self) -> PageBuffer {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a packet to encode, with the contents of its normal pages in the order of their
    /// offsets. There must be [room](Self::room).
    pub fn push(&mut self, packet: RamPacket, pages: PageBuffer) {
        let syncs_before = self.syncs;
        self.syncs += u64::from(packet.is_sync());
        if let Some(lane) = &mut self.lane
            && !packet.normal().is_empty()
        {
            let step = lane.step(lane.now());
            // Pages that come for the first time may come again, and then as differences; but only
            // a guest that outruns the link has so many of them that they matter.
            let is_first_round = syncs_before <= FIRST_ROUND_SYNCS;
            let is_plain = step.index() == 0 && self.has_plain_packets;
            let may_be_plain = is_first_round || !self.has_differences();
            if is_plain && may_be_plain && !self.encoder.needs_all_pages() {
                self.plain = Some((packet, pages));
                return;
            }
            self.encoder.set_step(step);
        }
        self.encoder.push(pages, syncs_before, packet);
    }

    /// Encodes and writes the packet that has waited longest. None if there is no packet.
    ///
    /// # Errors
    /// Why this packet could not be written. Packets after it are lost.
    pub fn pop_and_write(&mut self) -> Result<Option<Written>, Unwritten> {
        if let Some((packet, pages)) = self.plain.take() {
            self.plain_pages = self.plain_pages.saturating_add(packet.normal().len());
            let encoded = Encoded {
                packet,
                method: Method::None,
                encoded_bytes: pages.as_ref().len(),
            };
            let written = self.write_encoded(encoded, pages.as_ref());
            self.spare.push(pages);
            return written.map(Some);
        }
        let mut payload = std::mem::take(&mut self.payload);
        let outcome = match self.encoder.pop(&mut payload) {
            Ok(Some((pages, packet))) => {
                let encoded = Encoded {
                    packet,
                    method: self.encoder.packet_method(),
                    encoded_bytes: pages.as_ref().len(),
                };
                self.spare.push(pages);
                self.write_encoded(encoded, &payload).map(Some)
            }
            Ok(None) => Ok(None),
            Err(failed) => Err(unwritten(&failed.tag, failed.error.into())),
        };
        self.payload = payload;
        outcome
    }

    fn write_encoded(&mut self, encoded: Encoded, payload: &[u8]) -> Result<Written, Unwritten> {
        let Encoded {
            mut packet,
            method,
            encoded_bytes,
        } = encoded;
        let mut lane = self.lane.as_mut().filter(|_| encoded_bytes > 0);
        if let Some(lane) = &mut lane {
            let waiting = self.wire.stream.queued_bytes();
            lane.encoded(lane.now(), encoded_bytes, payload.len(), waiting);
        }
        let before = self.wire.bytes_out;
        // A packet's pages are 512 KiB and hardly grow; a length that did not fit would be refused
        // as too long.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        packet
            .set_payload(method, len)
            .map_err(Cause::from)
            .and_then(|()| self.wire.write_with(&packet, payload))
            .map_err(|cause| unwritten(&packet, cause))?;
        if let Some(lane) = lane {
            lane.written(lane.now());
            if let Some(pause) = lane.pause(lane.now()) {
                std::thread::sleep(pause);
            }
        }
        let bytes = self.wire.bytes_out - before;
        Ok(Written { packet, bytes })
    }

    /// Writes a packet whose payload comes from `inlet` as it is. An error says on which leg it
    /// happened.
    pub fn forward(&mut self, packet: &Packet, inlet: &mut Inlet<'_>) -> Result<(), (Leg, Cause)> {
        let here = |cause| (Leg::Destination, cause);
        self.write_packet(packet).map_err(here)?;
        let wire = &mut self.wire;
        let (from, len) = inlet.payload_source();
        if len > 0 {
            wire.release().map_err(here)?;
        }
        let moved = self
            .conduit
            .transfer(from, wire.stream, len, wire.clock)
            .map_err(|(leg, error)| (leg, error.into()))?;
        inlet
            .payload_moved(moved)
            .map_err(|cause| (Leg::Source, cause))?;
        if moved < len {
            inlet.ended().map_err(|cause| (Leg::Source, cause))?;
        }
        wire.sender
            .payload_sent(moved)
            .map_err(|fault| here(fault.into()))?;
        wire.bytes_out += moved as u64;
        Ok(())
    }
}

impl Wire<'_> {
    fn write_packet(&mut self, packet: &Packet) -> Result<(), Cause> {
        self.sender.packet(packet, &mut self.head)?;
        self.write_head()
    }

    fn write_with(&mut self, packet: &RamPacket, payload: &[u8]) -> Result<(), Cause> {
        self.sender.ram_packet(packet, &mut self.head)?;
        let write = || self.stream.write_all_of_two(&self.head, payload);
        clock::on(self.clock, Doing::Writes, write)?;
        self.sender.payload_sent(payload.len())?;
        self.bytes_out += (self.head.len() + payload.len()) as u64;
        self.head.clear();
        self.holds = false;
        Ok(())
    }

    fn release(&mut self) -> Result<(), Cause> {
        self.holds = false;
        self.write_head()
    }

    fn write_head(&mut self) -> Result<(), Cause> {
        if self.holds {
            return Ok(());
        }
        let write = || (&mut &*self.stream).write_all(&self.head);
        clock::on(self.clock, Doing::Writes, write)?;
        self.bytes_out += self.head.len() as u64;
        self.head.clear();
        Ok(())
    }
}

fn unwritten(packet: &RamPacket, cause: Cause) -> Unwritten {
    let block = block_of(packet);
    Unwritten { block, cause }
}

/// The block of a packet's pages, if it has any.
pub fn block_of(packet: &RamPacket) -> Option<Box<BlockName>> {
    let has_pages = !packet.normal().is_empty() || !packet.zero().is_empty();
    has_pages.then(|| Box::new(packet.block().clone()))
}
